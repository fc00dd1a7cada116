//! Random reads through one layer and through 33, in memory and warm, so that the engine shows and
//! not a disk. Every layer owns a scattered share of the sectors.

use std::path::{Path, PathBuf};

use anyhow::Result;
use e2e::Shale;

use crate::Options;
use crate::contestant::{self, Cache, Format, Served};
use crate::fio::{self, Job, Until};
use crate::report::Report;
use crate::stats::{Ratio, median};

const SIZE: u64 = 1 << 28;
/// One base and 32 layers on it: the limit of a volume.
const DEEP: usize = 33;

fn touch(seed: u64) -> Job<'static> {
    // About 1/33 of the disk in each layer, in pieces that do not fill a block.
    let size = SIZE / DEEP as u64;
    Job { pattern: "randwrite", block: "64k", depth: 8, size, flush_each: 0, seed }
}

/// Writes a layer's share: as many random blocks as fit in it, all over the disk.
fn share(uri: &str, seed: u64) -> Result<()> {
    let job = Job { size: SIZE, ..touch(seed) };
    let mut command = fio::command(&job, uri, Until::Done)?;
    command.arg(format!("--io_size={}", SIZE / DEEP as u64));
    e2e::process::run(&mut command).map(drop)
}

pub(crate) fn measure(options: &Options, report: &mut Report) -> Result<()> {
    let scratch = options.scratch(&options.memory)?;
    let shale = if options.without_shale { None } else { Some(contestant::shale(scratch.path())?) };
    let mut disks: Vec<(String, Served)> = Vec::new();
    if let Some(shale) = &shale {
        disks.push(("shale, 1".into(), shale_chain(shale, "flat", 1)?));
        disks.push((format!("shale, {DEEP}"), shale_chain(shale, "deep", DEEP)?));
    }
    disks.push(("qcow2, 1".into(), qcow2_chain(scratch.path(), "flat", 1)?));
    disks.push((format!("qcow2, {DEEP}"), qcow2_chain(scratch.path(), "deep", DEEP)?));

    let read =
        |depth, block, pattern| Job { pattern, block, depth, size: SIZE, flush_each: 0, seed: 7 };
    let mut rows = Vec::new();
    for queue in [1, 32] {
        let mut runs = vec![Vec::new(); disks.len()];
        for (_, disk) in &disks {
            // Warm: every block was met once.
            fio::measure(&read(8, "1M", "read"), &disk.uri, Until::Done)?;
        }
        for round in 0..options.rounds {
            for step in 0..disks.len() {
                let at = (round + step) % disks.len();
                let job = Job { seed: round as u64 + 1, ..read(queue, "4k", "randread") };
                let figures = fio::measure(&job, &disks[at].1.uri, Until::Time(options.time()))?;
                runs[at].push(figures.iops);
            }
        }
        for pair in 0..disks.len() / 2 {
            let (flat, deep) = (&runs[2 * pair], &runs[2 * pair + 1]);
            let name = disks[2 * pair].0.split(',').next().unwrap_or_default().to_owned();
            let ratio = Ratio::of_pairs(deep, flat);
            let aim = match (name.as_str(), ratio.median >= 0.95) {
                ("shale", true) => "≥ 0.95: reached",
                ("shale", false) => "≥ 0.95: **missed**",
                _ => "",
            };
            let row = vec![
                name,
                queue.to_string(),
                format!("{:.0}", median(flat)),
                format!("{:.0}", median(deep)),
                ratio.to_string(),
                aim.to_owned(),
            ];
            report.progress(&row);
            rows.push(row);
        }
    }
    report.section(
        "Depth of the chain",
        &format!(
            "4 KiB random reads of a full 256 MiB disk in memory (tmpfs), warm: in one layer, and in {DEEP} that each own a \
             scattered share."
        ),
    );
    let head = ["", "queue depth", "1 layer", "33 layers", "33 / 1", "aim"];
    report.table(&head.map(str::to_owned), &rows);
    Ok(())
}

fn shale_chain(shale: &Shale, name: &str, layers: usize) -> Result<Served> {
    let disk = contestant::volume(shale, name, SIZE)?;
    fio::fill(&disk.uri, SIZE)?;
    for layer in 1..layers {
        shale.cli(&["snapshot", "create", &format!("s{layer}"), "--volume", name])?;
        share(&disk.uri, layer as u64)?;
    }
    Ok(disk)
}

fn qcow2_chain(dir: &Path, name: &str, layers: usize) -> Result<Served> {
    let image = |layer: usize| -> PathBuf { dir.join(format!("{name}{layer}.qcow2")) };
    contestant::create_image(Format::Qcow2, &image(0), SIZE, None)?;
    let serve =
        |layer: usize| contestant::serve_image(Format::Qcow2, &image(layer), Cache::Buffered);
    let mut disk = serve(0)?;
    fio::fill(&disk.uri, SIZE)?;
    for layer in 1..layers {
        drop(disk);
        contestant::create_image(Format::Qcow2, &image(layer), SIZE, Some(&image(layer - 1)))?;
        disk = serve(layer)?;
        share(&disk.uri, layer as u64)?;
    }
    Ok(disk)
}
