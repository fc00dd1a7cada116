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
/// Disk of the cases that find everything written.
const ALLOCATED: u64 = 4 * GIB;
/// The same in memory.
const IN_MEMORY: u64 = GIB;
const FRESH: u64 = 16 * GIB;
/// The file system for what a run allocates: all of [`FRESH`], where a block is touched once.
const BLANK: u64 = 20 * GIB;

#[derive(Clone, Copy, Debug)]
enum Unit {
    Iops,
    MiB,
}

#[derive(Clone, Debug)]
struct Case {
    name: &'static str,
    job: Job<'static>,
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

/// Who takes part, and where its disks lie.
struct Field<'a> {
    shale: Option<&'a Shale>,
    dir: &'a Path,
    cache: Cache,
}

const SHALE: &str = "shale";
/// No contestant, but the measure of what any of them can reach.
const FILE: &str = "file";

impl Field<'_> {
    /// A new disk of contestant `name`.
    fn disk(&self, name: &str, size: u64) -> Result<Served> {
        if name == FILE {
            return contestant::bare_file(self.dir);
        }
        match (self.shale, Format::ALL.iter().find(|format| format.name() == name)) {
            (_, Some(format)) => contestant::daemon(*format, self.dir, size, self.cache),
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
    let wanted = |case: &Case| case.name.contains(&options.case);
    let (fresh, allocated): (Vec<_>, Vec<_>) =
        cases().into_iter().filter(wanted).partition(|case| case.fresh);
    let scratch = options.scratch(&options.dir)?;
    let mut table = Vec::new();
    if !allocated.is_empty() {
        table = on_written_disks(options, report, scratch.path(), Cache::Direct, &allocated)?;
    }
    if !fresh.is_empty() {
        let blank = BlankDisk::new(scratch.path(), BLANK)?;
        for case in &fresh {
            let runs = rounds(options, &names(options), |name, seed| {
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
         Medians over all rounds; a ratio is taken inside each round, median (lowest–highest). `file` is fio on \
         a bare file (io_uring, direct), without any server: where it is no faster than the servers, the disk \
         is what was measured.",
    );
    report.table(&head(options), &table);
    Ok(())
}

/// The same in memory.
pub(crate) fn measure_in_memory(options: &Options, report: &mut Report) -> Result<()> {
    let wanted = |case: &Case| !case.fresh && case.name.contains(&options.case);
    let small: Vec<Case> = cases()
        .into_iter()
        .filter(wanted)
        .map(|case| Case { job: Job { size: IN_MEMORY, ..case.job.clone() }, ..case })
        .collect();
    if small.is_empty() {
        return Ok(());
    }
    let scratch = options.scratch(&options.memory)?;
    let table = on_written_disks(options, report, scratch.path(), Cache::Buffered, &small)?;
    report.section(
        "Throughput in memory",
        "The same with images on tmpfs, where no disk sets the pace: what the servers themselves cost.",
    );
    report.table(&head(options), &table);
    Ok(())
}

fn names(options: &Options) -> Vec<&'static str> {
    let shale = (!options.without_shale).then_some(SHALE);
    shale.into_iter().chain(Format::ALL.iter().map(|format| format.name())).collect()
}

fn head(options: &Options) -> Vec<String> {
    let names = names(options);
    let mut head = vec!["case".to_owned()];
    head.extend(names.iter().map(|name| (*name).to_owned()));
    head.push(FILE.to_owned());
    head.extend(names.iter().filter(|name| **name != SHALE).map(|name| format!("shale / {name}")));
    head.push("aim".to_owned());
    head
}

/// Cases on disks that are written in full first.
fn on_written_disks(
    options: &Options,
    report: &Report,
    dir: &Path,
    cache: Cache,
    cases: &[Case],
) -> Result<Vec<Vec<String>>> {
    let shale = if options.without_shale { None } else { Some(contestant::shale(dir)?) };
    let field = Field { shale: shale.as_ref(), dir, cache };
    let size = cases.iter().map(|case| case.job.size).max().unwrap_or_default();
    let mut disks = Vec::new();
    for name in names(options).into_iter().chain([FILE]) {
        let disk = field.disk(name, size)?;
        fio::fill(&disk.uri, size)?;
        disks.push((name, disk));
    }
    let mut table = Vec::new();
    let all: Vec<&'static str> = disks.iter().map(|(name, _)| *name).collect();
    for case in cases {
        let runs = rounds(options, &all, |name, seed| {
            let (_, disk) = disks.iter().find(|(of, _)| *of == name).expect("all have one");
            run(options, case, &disk.uri, seed)
        })?;
        table.push(row(case, &runs));
        report.progress(table.last().expect("just pushed"));
    }
    for (name, disk) in disks {
        field.remove(name, disk)?;
    }
    Ok(table)
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
    let field = Field { shale: shale.as_ref(), dir: mounted.dir(), cache: Cache::Direct };
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
    let median = |values: &Vec<f64>| format!("{:.0}{unit}", crate::stats::median(values));
    cells.extend(runs.iter().map(|(_, values)| median(values)));
    if runs.iter().all(|(name, _)| *name != FILE) {
        cells.push("–".into());
    }
    let ours = runs.iter().find(|(name, _)| *name == SHALE).map(|(_, values)| values);
    for (_, theirs) in runs.iter().filter(|(name, _)| ![SHALE, FILE].contains(name)) {
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
