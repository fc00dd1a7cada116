//! Snapshots under load: how long does the client wait?
//!
//! fio writes at depth 32 and logs the worst completion of every 2 ms. What a snapshot costs is the
//! worst completion between its command and its end: the snapshot's pause, the request's own time,
//! and the first touches of the new layer together, which is the honest side to look from. The same
//! without a snapshot, over as long a time just before, stands beside it.

use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use e2e::Shale;
use e2e::process::Owned;
use e2e::shale::pause_ms;

use crate::Options;
use crate::contestant;
use crate::fio::{self, Job, Until};
use crate::report::Report;
use crate::stats::{median, percentile};

/// Each snapshot of a volume that is written all over takes as much again.
const SIZE: u64 = 256 << 20;
/// A volume keeps at most 32 snapshots, so the hundred are spread over volumes.
const VOLUMES: usize = 4;
const EACH: usize = 25;
/// Milliseconds after a command's end in which its last held requests are logged.
const LATE: u64 = 20;
/// The load goes on until it is ended; this only bounds a failure.
const LONGEST: Duration = Duration::from_secs(600);

pub(crate) fn measure(options: &Options, report: &mut Report) -> Result<()> {
    if options.without_shale {
        return Ok(());
    }
    let scratch = options.scratch(&options.dir)?;
    let shale = contestant::shale(scratch.path())?;
    let (mut seen, mut told, mut quiet) = (Vec::new(), Vec::new(), Vec::new());
    for index in 0..VOLUMES {
        let name = format!("busy{index}");
        let disk = contestant::volume(&shale, &name, SIZE)?;
        fio::fill(&disk.uri, SIZE)?;
        let pauses = snapshots(&shale, &name, &disk.uri)?;
        report.progress(&[name.clone(), format!("client {:.1?} ms", pauses.seen)]);
        seen.extend(pauses.seen);
        told.extend(pauses.told);
        quiet.extend(pauses.quiet);
        // Not deleted: freeing gigabytes of scattered blocks would burden the next one's disk.
        shale.disconnect(&name)?;
    }
    report.section(
        "Pause of a snapshot",
        &format!(
            "{} snapshots of a volume under 4 KiB random writes at depth 32, on a disk. Milliseconds.",
            seen.len()
        ),
    );
    let row = |name: &str, values: &[f64], aim: &str| {
        vec![
            name.to_owned(),
            format!("{:.2}", median(values)),
            format!("{:.2}", percentile(values, 0.95)),
            format!("{:.2}", percentile(values, 1.0)),
            aim.to_owned(),
        ]
    };
    let judged = if told.is_empty() { &seen } else { &told };
    let aim =
        if percentile(judged, 0.95) < 10.0 { "p95 < 10: reached" } else { "p95 < 10: **missed**" };
    let mut rows = Vec::new();
    if !told.is_empty() {
        rows.push(row("gate closed, told by the task", &told, aim));
    }
    let name = "worst request of the client during the command";
    rows.push(row(name, &seen, if told.is_empty() { aim } else { "" }));
    rows.push(row("the same just before it", &quiet, ""));
    report.table(&["", "p50", "p95", "max", "aim"].map(str::to_owned), &rows);
    Ok(())
}

struct Pauses {
    /// The client's worst request during each snapshot.
    seen: Vec<f64>,
    /// The same over as long a time before it.
    quiet: Vec<f64>,
    /// What the tasks tell.
    told: Vec<f64>,
}

fn snapshots(shale: &Shale, volume: &str, uri: &str) -> Result<Pauses> {
    let logs = tempfile::tempdir()?;
    let prefix = logs.path().join("load");
    let job =
        Job { pattern: "randwrite", block: "4k", depth: 32, size: SIZE, flush_each: 0, seed: 3 };
    let mut command = fio::command(&job, uri, Until::Time(LONGEST))?;
    command.arg(format!("--write_lat_log={}", prefix.display()));
    command.args(["--log_avg_msec=2", "--log_max_value=1", "--log_unix_epoch=1"]);
    let mut load = Owned::spawn(command.stdout(Stdio::null()).stdin(Stdio::null()))?;
    std::thread::sleep(Duration::from_secs(2)); // the load's own start is not what is measured
    let mut times = Vec::new();
    let mut told = Vec::new();
    for index in 0..EACH {
        let begin = now()?;
        let name = format!("s{index}");
        let answer = shale.json(&["snapshot", "create", &name, "--volume", volume])?;
        times.push((begin, now()?));
        told.extend(pause_ms(&answer));
        std::thread::sleep(Duration::from_millis(100)); // some load between two snapshots
    }
    // fio writes its logs when it is asked to end, not when it is killed.
    e2e::process::signal(load.pid(), e2e::process::Signal::INT)?;
    load.wait(Duration::from_secs(60))?;
    let log = fio::latency_log(&prefix.with_extension("_clat.1.log"))
        .or_else(|_| fio::latency_log(&logs.path().join("load_clat.1.log")))?;
    ensure!(log.len() > EACH, "fio logged nothing");
    let worst = |begin: u64, end: u64| -> Result<f64> {
        let during = log.iter().filter(|(at, _)| (begin..=end).contains(at));
        let worst =
            during.map(|(_, nanoseconds)| *nanoseconds).max().context("no I/O completed")?;
        Ok(worst as f64 / 1e6)
    };
    // A request that waited completes, and is logged, a little after the command's end.
    let seen = times.iter().map(|(begin, end)| worst(*begin, end + LATE));
    let quiet = times.iter().map(|(begin, end)| worst(2 * begin - end - LATE, *begin));
    Ok(Pauses { seen: seen.collect::<Result<_>>()?, quiet: quiet.collect::<Result<_>>()?, told })
}

fn now() -> Result<u64> {
    Ok(u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?)
}
