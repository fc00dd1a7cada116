//! One run of fio, with its nbd engine or on a bare file, and its figures.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use e2e::need;
use e2e::process::run;
use serde_json::Value;

/// What a place begins with that is a file, reached without any server.
pub(crate) const BARE: &str = "file:";

/// What fio does: over one NBD connection, or on a bare file.
#[derive(Clone, Debug)]
pub(crate) struct Job<'a> {
    pub(crate) pattern: &'static str,
    pub(crate) block: &'a str,
    pub(crate) depth: u32,
    /// The part of the disk that is used, from its start.
    pub(crate) size: u64,
    /// A flush after so many writes; 0 is none.
    pub(crate) flush_each: u32,
    /// Seed of the offsets: the same for every contestant of a round.
    pub(crate) seed: u64,
}

/// How long a job runs.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Until {
    /// For this long, again from the start where needed.
    Time(Duration),
    /// Once over its size.
    Done,
}

/// What came of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figures {
    pub(crate) iops: f64,
    /// Bytes a second.
    pub(crate) rate: f64,
}

pub(crate) fn command(job: &Job<'_>, uri: &str, until: Until) -> Result<Command> {
    let mut command = Command::new(need::tool("/usr/bin/fio")?);
    command.args(["--name=job", "--output-format=json", "--group_reporting"]);
    match uri.strip_prefix(BARE) {
        Some(path) => command
            .args(["--ioengine=io_uring", "--direct=1"])
            .arg(format!("--filename={}", path.replace(':', "\\:"))),
        None => command.arg("--ioengine=nbd").arg(format!("--uri={uri}")),
    };
    command.arg(format!("--rw={}", job.pattern)).arg(format!("--bs={}", job.block));
    command.arg(format!("--iodepth={}", job.depth)).arg(format!("--size={}", job.size));
    command.arg(format!("--randseed={}", job.seed)).arg("--norandommap");
    // Random contents, so that no layer below can make zeroes or duplicates cheap.
    command.arg("--refill_buffers");
    if job.flush_each > 0 {
        command.arg(format!("--fsync={}", job.flush_each));
    }
    match until {
        Until::Time(time) => {
            command.arg("--time_based").arg(format!("--runtime={}", time.as_secs()));
            // The first moments fill queues and caches.
            command.arg("--ramp_time=500ms");
        }
        Until::Done => drop(command.arg("--end_fsync=1")),
    }
    Ok(command)
}

pub(crate) fn measure(job: &Job<'_>, uri: &str, until: Until) -> Result<Figures> {
    let output = run(&mut command(job, uri, until)?)?;
    figures(&output.stdout)
}

/// Writes the whole range once, in large blocks.
pub(crate) fn fill(uri: &str, size: u64) -> Result<()> {
    let job = Job { pattern: "write", block: "1M", depth: 8, size, flush_each: 0, seed: 1 };
    measure(&job, uri, Until::Done).map(drop)
}

fn figures(output: &[u8]) -> Result<Figures> {
    // fio may say something before the JSON.
    let start = output.iter().position(|byte| *byte == b'{').context("fio printed no JSON")?;
    let json: Value = serde_json::from_slice(&output[start..]).context("fio printed bad JSON")?;
    let job = &json["jobs"][0];
    let sum = |field: &str| -> f64 {
        ["read", "write"].iter().filter_map(|side| job[*side][field].as_f64()).sum()
    };
    Ok(Figures { iops: sum("iops"), rate: sum("bw_bytes") })
}

/// The worst latencies that fio logged: (unix milliseconds, nanoseconds).
pub(crate) fn latency_log(path: &Path) -> Result<Vec<(u64, u64)>> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("fio left no {}", path.display()))?;
    text.lines()
        .map(|line| {
            let mut cells = line.split(',').map(str::trim);
            let time = cells.next().context("an empty line")?.parse()?;
            let value = cells.next().context("no value")?.parse()?;
            Ok((time, value))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_count() {
        let text = br#"note
            {"jobs": [{"read": {"iops": 10.5, "bw_bytes": 100}, "write": {"iops": 2.0, "bw_bytes": 1}}]}"#;
        let figures = figures(text).expect("figures");
        assert!((figures.iops - 12.5).abs() < 1e-9);
        assert!((figures.rate - 101.0).abs() < 1e-9);
    }
}
