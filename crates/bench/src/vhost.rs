//! vhost-user-blk: Shale and qemu-storage-daemon under the same guest-like load, and the bare file.

use std::path::Path;

use anyhow::Result;
use e2e::Shale;

use crate::Options;
use crate::contestant::{self, Cache, STORE};
use crate::fio::{self, Job, Until};
use crate::load::{self, Cost, Load, Pattern};
use crate::report::Report;
use crate::stats::{Ratio, median};

const GIB: u64 = 1 << 30;
/// Layers above the base of the deep disk.
const SNAPSHOTS: usize = 32;

struct Case {
    name: &'static str,
    pattern: Pattern,
    block: usize,
    depth: usize,
}

const CASES: &[Case] = &[
    Case {
        name: "4 KiB random read, depth 32",
        pattern: Pattern::RandomRead,
        block: 4096,
        depth: 32,
    },
    Case {
        name: "4 KiB random write, depth 32",
        pattern: Pattern::RandomWrite,
        block: 4096,
        depth: 32,
    },
    Case {
        name: "4 KiB random read, depth 1",
        pattern: Pattern::RandomRead,
        block: 4096,
        depth: 1,
    },
    Case {
        name: "4 KiB random write, depth 1",
        pattern: Pattern::RandomWrite,
        block: 4096,
        depth: 1,
    },
    Case {
        name: "1 MiB sequential read, depth 8",
        pattern: Pattern::Read,
        block: 1 << 20,
        depth: 8,
    },
    Case {
        name: "1 MiB sequential write, depth 8",
        pattern: Pattern::Write,
        block: 1 << 20,
        depth: 8,
    },
];

const THIN: usize = 0;
const FIXED: usize = 1;
const DEEP: usize = 2;
const DAEMON: usize = 3;
const FILE: usize = 4;
const NAMES: [&str; 5] = ["thin", "fixed", "33 layers", "qemu-storage-daemon", "file"];

pub(crate) fn measure(options: &Options, report: &mut Report) -> Result<()> {
    let scratch = options.scratch(&options.dir)?;
    section(
        options,
        report,
        scratch.path(),
        Cache::Direct,
        2 * GIB,
        "on a disk, opened for direct I/O",
    )
}

pub(crate) fn measure_in_memory(options: &Options, report: &mut Report) -> Result<()> {
    let scratch = options.scratch(&options.memory)?;
    section(options, report, scratch.path(), Cache::Buffered, GIB, "on tmpfs")
}

fn section(
    options: &Options,
    report: &mut Report,
    dir: &Path,
    cache: Cache,
    size: u64,
    place: &str,
) -> Result<()> {
    if options.without_shale {
        return Ok(());
    }
    let field = Field::new(dir, cache, size)?;
    let mut rows = Vec::new();
    for case in CASES.iter().filter(|case| case.name.contains(&options.case)) {
        let mut costs: [Vec<Cost>; 5] = Default::default();
        for round in 0..options.rounds {
            for step in 0..costs.len() {
                let at = (round + step) % costs.len();
                let Case { pattern, block, depth, .. } = *case;
                let load = Load { pattern, block, depth, size, seed: round as u64 + 1 };
                costs[at].push(field.run(at, load, options)?);
            }
        }
        rows.push(row(case, &costs));
        report.progress(rows.last().expect("just pushed"));
    }
    report.section(
        &format!("vhost-user-blk {place}"),
        "One guest-like client without a guest: one queue, EVENT_IDX, on a disk whose whole range is written. \
         Requests a second (medians), and ratios inside each round, median (lowest–highest). CPU is the server's \
         processor time for a request, of thin by the daemon's. `file` is fio on a bare file (io_uring; direct where \
         the file system has that).",
    );
    let head = [
        "case",
        "thin",
        "fixed",
        "33 layers",
        "qemu-storage-daemon",
        "file",
        "thin / daemon",
        "thin / file",
        "daemon / file",
        "33 layers / fixed",
        "thin / fixed",
        "CPU µs",
        "CPU thin / daemon",
    ];
    report.table(&head.map(str::to_owned), &rows);
    Ok(())
}

fn row(case: &Case, costs: &[Vec<Cost>; 5]) -> Vec<String> {
    let iops: Vec<Vec<f64>> =
        costs.iter().map(|runs| runs.iter().map(|c| c.iops).collect()).collect();
    let cpu: Vec<Vec<f64>> =
        costs.iter().map(|runs| runs.iter().map(|c| c.cpu).collect()).collect();
    let ratio =
        |ours: usize, theirs: usize| Ratio::of_pairs(&iops[ours], &iops[theirs]).to_string();
    let mut cells = vec![case.name.to_owned()];
    cells.extend(iops.iter().map(|values| format!("{:.0}", median(values))));
    cells.extend([
        ratio(THIN, DAEMON),
        ratio(THIN, FILE),
        ratio(DAEMON, FILE),
        ratio(DEEP, FIXED),
        ratio(THIN, FIXED),
    ]);
    cells.push(format!("{:.1}, {:.1}", median(&cpu[THIN]), median(&cpu[DAEMON])));
    cells.push(Ratio::of_pairs(&cpu[THIN], &cpu[DAEMON]).to_string());
    cells
}

/// All that take part.
struct Field {
    shale: Shale,
    daemon: contestant::Vhost,
    volumes: Vec<contestant::Vhost>,
    file: contestant::Served,
}

impl Field {
    fn new(dir: &Path, cache: Cache, size: u64) -> Result<Self> {
        let shale = contestant::shale(dir)?;
        let mut volumes = Vec::new();
        for name in NAMES.iter().take(3) {
            let kind = if *name == "fixed" { "fixed" } else { "thin" };
            let name = name.replace(' ', "-");
            let size_text = size.to_string();
            let words = ["volume", "create", &name, "--datastore", STORE, "--size", &size_text];
            shale.cli(&[&words[..], &["--kind", kind]].concat())?;
            let disk = contestant::vhost_volume(&shale, &name)?;
            load::fill(&disk.socket, size)?;
            volumes.push(disk);
        }
        for number in 0..SNAPSHOTS {
            shale.snapshot(&format!("s{number}"), "33-layers")?;
        }
        let daemon = contestant::vhost_daemon(dir, size, cache)?;
        load::fill(&daemon.socket, size)?;
        let file = contestant::bare_file(dir)?;
        fio::fill(&file.uri, size)?;
        Ok(Self { shale, daemon, volumes, file })
    }

    fn run(&self, at: usize, load: Load, options: &Options) -> Result<Cost> {
        match at {
            FILE => {
                let (pattern, block) = (load.pattern.name(), load.block.to_string());
                let depth = u32::try_from(load.depth)?;
                let job = Job {
                    pattern,
                    block: &block,
                    depth,
                    size: load.size,
                    flush_each: 0,
                    seed: load.seed,
                };
                let figures = fio::measure(&job, &self.file.uri, Until::Time(options.time()))?;
                Ok(Cost { iops: figures.iops, cpu: 0.0 })
            }
            DAEMON => load::measure(load, &self.daemon.socket, self.daemon.server, options.time()),
            volume => {
                let socket = &self.volumes[volume].socket;
                load::measure(load, socket, self.shale.node_pid()?, options.time())
            }
        }
    }
}
