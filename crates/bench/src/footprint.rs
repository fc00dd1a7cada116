//! What a connected disk of the largest size costs the node in memory, with one layer and with a chain as
//! long as it can be.
//!
//! Every layer has every block: that is the most that a disk's own tables can be. No machine has the space
//! to write such layers, so their tables are written here, and their blocks are holes.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::Options;
use crate::contestant::{self, STORE};
use crate::fio::{self, Job, Until};
use crate::report::Report;
use crate::scale::resident;

const SIZE: u64 = 2040 << 30;
/// One base, 31 layers on it, and the volume's own.
const DEEP: usize = 33;
const DISKS: usize = 4;
/// Random requests of each kind that each disk gets.
const REQUESTS: u64 = 20_000;
/// What all disks together remember beyond what each must.
const CACHE: f64 = 64.0;
/// What one may cost at most, in MiB.
const AIM: f64 = 16.0;

const SECTOR: u64 = 512;
const PAGE: u64 = 4096;
const BLOCK: u64 = 2 << 20;

pub(crate) fn measure(options: &Options, report: &mut Report) -> Result<()> {
    if options.without_shale {
        return Ok(());
    }
    let scratch = options.scratch(&options.dir)?;
    let mut shale = contestant::shale(scratch.path())?;
    let mut layers = Layers::of(&scratch.path().join(STORE))?;
    let size = SIZE.to_string();
    let mut flat = Vec::new();
    for n in 0..DISKS {
        flat.push(format!("flat{n}"));
        shale.volume(&flat[n], STORE, &size)?;
        layers.fill_new()?;
    }
    shale.volume("base", STORE, &size)?;
    layers.fill_new()?;
    for layer in 2..DEEP {
        shale.snapshot(&format!("s{layer}"), "base")?;
        layers.fill_new()?;
        report.progress(&[format!("{layer} layers")]);
    }
    shale.snapshot("top", "base")?;
    layers.new_one()?;
    let mut deep = Vec::new();
    for n in 0..DISKS {
        deep.push(format!("deep{n}"));
        shale.cli(&["volume", "clone", "base", "--snapshot", "top", "--name", &deep[n]])?;
        layers.fill_new()?;
    }
    let mut rows = Vec::new();
    // one layer needs nothing that can be read again
    for (name, volumes, cache) in [("1 layer", flat, 0.0), ("33 layers", deep, CACHE)] {
        // each from a fresh process: freed memory is not given back by all means
        shale.down()?;
        shale.serve()?;
        shale.cli(&["volume", "list"])?;
        let node = shale.node_pid()?;
        let before = resident(node)?;
        let mut places = Vec::new();
        for volume in &volumes {
            places.push(contestant::connect(&shale, volume)?.uri);
        }
        let connected = resident(node)?;
        for (seed, uri) in places.iter().enumerate() {
            for pattern in ["randread", "randwrite"] {
                requests(pattern, uri, seed as u64)?;
            }
        }
        let used = resident(node)?;
        for volume in &volumes {
            shale.disconnect(volume)?;
        }
        let each = |memory: f64| memory / DISKS as f64;
        let own = each(used - before - cache);
        let judged = if own <= AIM { "reached" } else { "**missed**" };
        let row = vec![
            name.to_owned(),
            format!("{before:.0}"),
            format!("{:.1}", each(connected - before)),
            format!("{:.1}", each(used - before)),
            format!("{own:.1}"),
            format!("≤ {AIM}: {judged}"),
        ];
        report.progress(&row);
        rows.push(row);
    }
    report.section(
        "Memory of connected disks",
        &format!(
            "{DISKS} disks of 2040 GiB, of which every layer has every block. After {REQUESTS} random reads and as many \
             random writes of 4 KiB on each. Resident memory of the node, in MiB; the shared cache is {CACHE} MiB for \
             all disks together, full in the second row, and a disk's own is what is beyond its share.",
        ),
    );
    let head = ["", "node alone", "a disk, connected", "a disk, used", "its own", "aim"];
    report.table(&head.map(str::to_owned), &rows);
    Ok(())
}

fn requests(pattern: &'static str, uri: &str, seed: u64) -> Result<()> {
    let job = Job { pattern, block: "4k", depth: 16, size: SIZE, flush_each: 0, seed };
    let mut command = fio::command(&job, uri, Until::Done)?;
    command.arg(format!("--io_size={}", REQUESTS * 4096));
    e2e::process::run(&mut command).map(drop)
}

/// The layers' files of a datastore.
struct Layers {
    store: PathBuf,
    known: BTreeSet<PathBuf>,
}

impl Layers {
    fn of(store: &Path) -> Result<Self> {
        let mut layers = Self { store: store.to_owned(), known: BTreeSet::new() };
        layers.known = layers.all()?;
        Ok(layers)
    }

    fn all(&self) -> Result<BTreeSet<PathBuf>> {
        let (mut files, mut folders) = (BTreeSet::new(), vec![self.store.clone()]);
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder)? {
                let path = entry?.path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|is| is == "vhd") {
                    files.insert(path);
                }
            }
        }
        Ok(files)
    }

    /// The one that came to be since it was asked last.
    fn new_one(&mut self) -> Result<PathBuf> {
        let all = self.all()?;
        let new: Vec<PathBuf> = all.difference(&self.known).cloned().collect();
        self.known = all;
        ensure!(new.len() == 1, "{} new layers", new.len());
        new.into_iter().next().context("a new layer")
    }

    /// Gives the new layer a place for every block, none of which it has written.
    fn fill_new(&mut self) -> Result<()> {
        let path = self.new_one()?;
        let file = File::options().read(true).write(true).open(&path)?;
        let mut header = [0; 1024];
        file.read_exact_at(&mut header, SECTOR)?;
        ensure!(&header[..8] == b"cxsparse", "{} is no sparse VHD", path.display());
        let table = u64::from_be_bytes(header[16..24].try_into()?);
        let entries = u32::from_be_bytes(header[28..32].try_into()?);
        let first = file.metadata()?.len().next_multiple_of(PAGE);
        // a page whose last sector is the bitmap, and the data
        let place = |block: u64| first + block * (PAGE + BLOCK);
        let bat: Vec<u8> = (0..u64::from(entries))
            .map(|block| u32::try_from((place(block) + PAGE) / SECTOR - 1))
            .collect::<Result<Vec<u32>, _>>()?
            .into_iter()
            .flat_map(u32::to_be_bytes)
            .collect();
        file.write_all_at(&bat, table)?;
        file.set_len(place(u64::from(entries)))?;
        Ok(())
    }
}
