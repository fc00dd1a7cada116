//! fio cases in rounds: every contestant once a round on the same offsets, the first one rotating.

use std::path::Path;

use anyhow::Result;
use e2e::Shale;

use crate::Options;
use crate::blank::BlankDisk;
use crate::contestant::{self, Cache, Format, Served};
use crate::fio::{self, Job, Until};
use crate::report::Report;
use crate::stats::Ratio;

const GIB: u64 = 1 << 30;
const ALLOCATED: u64 = 4 * GIB;
const FRESH: u64 = 16 * GIB;
/// The file system for what a run allocates of [`FRESH`].
const BLANK: u64 = 12 * GIB;

#[derive(Clone, Copy, Debug)]
enum Unit {
    Iops,
    MiB,
}

#[derive(Clone, Debug)]
struct Case {
    name: &'static str,
    job: Job,
    unit: Unit,
    /// Every run gets a new, empty disk.
    fresh: bool,
    /// (peer, ratio to reach).
    aims: &'static [(&'static str, f64)],
}

fn cases() -> Vec<Case> {
    let job = |pattern, block, depth| Job {
        pattern,
        block,
        depth,
        size: ALLOCATED,
        flush_each: 0,
        seed: 0,
    };
    let case = |name, job, unit, aims| Case { name, job, unit, fresh: false, aims };
    vec![
        case("4 KiB random read, depth 32", job("randread", "4k", 32), Unit::Iops, &[("raw", 1.3)]),
        case("4 KiB random read, depth 1", job("randread", "4k", 1), Unit::Iops, &[]),
        case(
            "4 KiB random write, allocated, depth 32",
            job("randwrite", "4k", 32),
            Unit::Iops,
            &[("qcow2", 1.3)],
        ),
        case("4 KiB random write, allocated, depth 1", job("randwrite", "4k", 1), Unit::Iops, &[]),
        case(
            "4 KiB random write, allocated, depth 1, a flush after each",
            Job { flush_each: 1, ..job("randwrite", "4k", 1) },
            Unit::Iops,
            &[],
        ),
        Case {
            name: "4 KiB random write, first touch of 16 GiB, depth 32",
            job: Job { size: FRESH, ..job("randwrite", "4k", 32) },
            unit: Unit::Iops,
            fresh: true,
            aims: &[("qcow2", 3.0), ("vpc", 20.0)],
        },
        case("1 MiB sequential read, depth 8", job("read", "1M", 8), Unit::MiB, &[]),
        case("1 MiB sequential write, allocated, depth 8", job("write", "1M", 8), Unit::MiB, &[]),
    ]
}

/// A contestant's name and, for a case: its disk.
struct Field<'a> {
    shale: Option<&'a Shale>,
    dir: &'a Path,
}

const SHALE: &str = "shale";

impl Field<'_> {
    fn names(&self) -> Vec<&'static str> {
        let peers = Format::ALL.iter().map(|format| format.name());
        self.shale.map(|_| SHALE).into_iter().chain(peers).collect()
    }

    /// A new disk of contestant `name`.
    fn disk(&self, name: &str, size: u64) -> Result<Served> {
        match (self.shale, Format::ALL.iter().find(|format| format.name() == name)) {
            (_, Some(format)) => contestant::daemon(*format, self.dir, size, Cache::Direct),
            (Some(shale), None) => contestant::volume(shale, "disk", size),
            (None, None) => anyhow::bail!("{name} does not take part"),
        }
    }

    fn remove(&self, name: &str, disk: Served) -> Result<()> {
        disk.remove(self.shale)?;
        if name != SHALE {
            std::fs::remove_file(self.dir.join(format!("disk.{name}")))?;
        }
        Ok(())
    }
}

pub(crate) fn measure(options: &Options, report: &mut Report) -> Result<()> {
    let scratch = options.scratch(&options.dir)?;
    let shale = if options.without_shale { None } else { Some(contestant::shale(scratch.path())?) };
    let field = Field { shale: shale.as_ref(), dir: scratch.path() };
    let cases: Vec<_> =
        cases().into_iter().filter(|case| case.name.contains(&options.case)).collect();

    let mut table = Vec::new();
    let (fresh, allocated): (Vec<_>, Vec<_>) = cases.into_iter().partition(|case| case.fresh);
    if !allocated.is_empty() {
        let mut disks = Vec::new();
        for name in field.names() {
            let disk = field.disk(name, ALLOCATED)?;
            fio::fill(&disk.uri, ALLOCATED)?;
            disks.push((name, disk));
        }
        for case in &allocated {
            let runs = rounds(options, &field.names(), |name, seed| {
                let (_, disk) = disks.iter().find(|(of, _)| *of == name).expect("all have one");
                run(options, case, &disk.uri, seed)
            })?;
            table.push(row(case, &runs));
            report.progress(table.last().expect("just pushed"));
        }
        for (name, disk) in disks {
            field.remove(name, disk)?;
        }
    }
    if !fresh.is_empty() {
        let blank = BlankDisk::new(scratch.path(), BLANK)?;
        for case in &fresh {
            let runs = rounds(options, &field.names(), |name, seed| {
                first_touch(options, case, &blank, name, seed)
            })?;
            table.push(row(case, &runs));
            report.progress(table.last().expect("just pushed"));
        }
    }
    report.section(
        "Throughput",
        "fio's nbd engine over one connection to a unix socket; images on a disk, opened for direct I/O; \
         for the first touch in a file system that is new for each run (ext4, a loop device with direct I/O). \
         Medians over all rounds; a ratio is taken inside each round, median (lowest–highest).",
    );
    let names = field.names();
    let mut head = vec!["case".to_owned()];
    head.extend(names.iter().map(|name| (*name).to_owned()));
    head.extend(names.iter().filter(|name| **name != SHALE).map(|name| format!("shale / {name}")));
    head.push("aim".to_owned());
    report.table(&head, &table);
    Ok(())
}

/// A run on an empty disk in an empty file system; Shale's whole system is new as well.
fn first_touch(
    options: &Options,
    case: &Case,
    blank: &BlankDisk,
    name: &str,
    seed: u64,
) -> Result<f64> {
    let mounted = blank.format()?;
    let mut shale = if name == SHALE { Some(contestant::shale(mounted.dir())?) } else { None };
    let field = Field { shale: shale.as_ref(), dir: mounted.dir() };
    let disk = field.disk(name, case.job.size)?;
    let value = run(options, case, &disk.uri, seed)?;
    drop(disk);
    if let Some(shale) = &mut shale {
        shale.down()?;
    }
    mounted.unmount()?;
    Ok(value)
}

fn run(options: &Options, case: &Case, uri: &str, seed: u64) -> Result<f64> {
    let job = Job { seed, ..case.job.clone() };
    let figures = fio::measure(&job, uri, Until::Time(options.time()))?;
    Ok(match case.unit {
        Unit::Iops => figures.iops,
        Unit::MiB => figures.rate / f64::from(1 << 20),
    })
}

/// (contestant, its value in each round).
type Runs = Vec<(&'static str, Vec<f64>)>;

fn rounds(
    options: &Options,
    names: &[&'static str],
    mut run: impl FnMut(&'static str, u64) -> Result<f64>,
) -> Result<Runs> {
    let mut runs: Runs = names.iter().map(|name| (*name, Vec::new())).collect();
    for round in 0..options.rounds {
        for step in 0..runs.len() {
            let at = (round + step) % runs.len();
            let (name, values) = &mut runs[at];
            values.push(run(name, round as u64 + 1)?);
        }
    }
    Ok(runs)
}

fn row(case: &Case, runs: &Runs) -> Vec<String> {
    let unit = match case.unit {
        Unit::Iops => "",
        Unit::MiB => " MiB/s",
    };
    let mut cells = vec![case.name.to_owned()];
    for (_, values) in runs {
        cells.push(format!("{:.0}{unit}", crate::stats::median(values)));
    }
    let ours = runs.iter().find(|(name, _)| *name == SHALE).map(|(_, values)| values);
    for (_, theirs) in runs.iter().filter(|(name, _)| *name != SHALE) {
        cells.push(ours.map_or("–".into(), |ours| Ratio::of_pairs(ours, theirs).to_string()));
    }
    let aims = case.aims.iter().map(|(peer, aim)| {
        let theirs = runs.iter().find(|(name, _)| name == peer).map(|(_, values)| values);
        let reached = match (ours, theirs) {
            (Some(ours), Some(theirs)) if Ratio::of_pairs(ours, theirs).median >= *aim => "reached",
            (Some(_), Some(_)) => "**missed**",
            _ => "not measured",
        };
        format!("{aim} × {peer}: {reached}")
    });
    cells.push(aims.collect::<Vec<_>>().join("; "));
    cells
}
