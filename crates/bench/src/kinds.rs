//! What the kinds of a volume differ in: fixed and lazy beside thin, on a disk.

use anyhow::Result;
use e2e::Shale;

use crate::Options;
use crate::contestant::{self, STORE, Served};
use crate::fio::{self, Job, Until};
use crate::report::Report;
use crate::stats::{Ratio, median};

const SIZE: u64 = 1 << 30;
const KINDS: [&str; 3] = ["thin", "lazy", "fixed"];

struct Case {
    name: &'static str,
    pattern: &'static str,
    block: &'static str,
    depth: u32,
    /// Each run on a volume that nobody has written.
    fresh: bool,
}

const CASES: &[Case] = &[
    Case { name: "4 KiB random read", pattern: "randread", block: "4k", depth: 32, fresh: false },
    Case {
        name: "4 KiB random write, written before",
        pattern: "randwrite",
        block: "4k",
        depth: 32,
        fresh: false,
    },
    Case { name: "1 MiB sequential read", pattern: "read", block: "1M", depth: 8, fresh: false },
    Case {
        name: "1 MiB sequential write, written before",
        pattern: "write",
        block: "1M",
        depth: 8,
        fresh: false,
    },
    Case {
        name: "4 KiB random write, never written",
        pattern: "randwrite",
        block: "4k",
        depth: 32,
        fresh: true,
    },
];

pub(crate) fn measure(options: &Options, report: &mut Report) -> Result<()> {
    if options.without_shale {
        return Ok(());
    }
    let scratch = options.scratch(&options.dir)?;
    let shale = contestant::shale(scratch.path())?;
    let written: Vec<Served> =
        KINDS.iter().map(|kind| made(&shale, kind, kind)).collect::<Result<_>>()?;
    for disk in &written {
        fio::fill(&disk.uri, SIZE)?;
    }
    let mut rows = Vec::new();
    for case in CASES.iter().filter(|case| case.name.contains(&options.case)) {
        let mut runs = vec![Vec::new(); KINDS.len()];
        for round in 0..options.rounds {
            for step in 0..KINDS.len() {
                let at = (round + step) % KINDS.len();
                let seed = round as u64 + 1;
                let Case { pattern, block, depth, .. } = *case;
                let job = Job { pattern, block, depth, size: SIZE, flush_each: 0, seed };
                let until = Until::Time(options.time());
                let figures = if case.fresh {
                    let disk = made(&shale, &format!("fresh-{}", KINDS[at]), KINDS[at])?;
                    let figures = fio::measure(&job, &disk.uri, until)?;
                    disk.remove(Some(&shale))?;
                    figures
                } else {
                    fio::measure(&job, &written[at].uri, until)?
                };
                runs[at].push(figures.iops);
            }
        }
        let ratio = |kind: usize| Ratio::of_pairs(&runs[kind], &runs[0]);
        let judged = if ratio(2).median >= 1.0 { "reached" } else { "**missed**" };
        let mut row = vec![format!("{}, depth {}", case.name, case.depth)];
        row.extend(runs.iter().map(|of_kind| format!("{:.0}", median(of_kind))));
        row.extend([ratio(1).to_string(), ratio(2).to_string(), format!("fixed ≥ thin: {judged}")]);
        report.progress(&row);
        rows.push(row);
    }
    report.section(
        "Kinds",
        &format!(
            "Volumes of {} GiB of each kind on a disk, opened for direct I/O; requests a second. What was never written has \
             its space in a lazy volume, and its bytes in a fixed one.",
            SIZE >> 30
        ),
    );
    let head = ["case", "thin", "lazy", "fixed", "lazy / thin", "fixed / thin", "aim"];
    report.table(&head.map(str::to_owned), &rows);
    Ok(())
}

/// A new connected volume.
fn made(shale: &Shale, name: &str, kind: &str) -> Result<Served> {
    let size = SIZE.to_string();
    shale.cli(&[
        "volume",
        "create",
        name,
        "--datastore",
        STORE,
        "--size",
        &size,
        "--kind",
        kind,
    ])?;
    contestant::connect(shale, name)
}
