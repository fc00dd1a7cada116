//! The same work on Shale and on qemu-storage-daemon, over the same NBD client, and what it cost.
//!
//! ```text
//!   vhost        vhost-user-blk under a guest-like load, and what a request costs its server
//!   vhost-memory the same where no disk sets the pace
//!   throughput   fio cases in rounds: every contestant once a round, first one rotating
//!   memory       the same where no disk sets the pace
//!   depth        random reads through 1 layer and through 33
//!   pause        snapshots under load, as the client sees them
//!   create       a 1 TiB thin disk
//!   scale        10,000 volumes on one datastore: lists, start, check, the API's answers
//!        │
//!        ├── blank        an empty file system for each run that allocates
//!        ├── contestant   starts a server on an image and names its socket
//!        ├── load         a guest's queue without a guest
//!        ├── fio          one run of fio's nbd engine
//!        ├── stats        medians, ratios of pairs, and their spread
//!        └── report       docs/benchmarks.md
//! ```
//!
//! The machine is shared and noisy, so single figures mean little: contestants run in rounds, and
//! the ratio is taken inside each round.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "a command line tool for people")]

mod blank;
mod contestant;
mod create;
mod depth;
mod fio;
mod footprint;
mod kinds;
mod load;
mod pause;
mod report;
mod scale;
mod stats;
mod throughput;
mod vhost;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use e2e::process::workspace;

use report::Report;

/// Measures Shale against qemu-storage-daemon.
#[derive(Clone, Debug, Parser)]
pub(crate) struct Options {
    /// Where the images on disk go; a new folder inside is removed at the end.
    #[arg(long, default_value = "target/bench")]
    dir: PathBuf,
    /// Memory-backed file system for the parts that must not measure a disk.
    #[arg(long, default_value = "/dev/shm")]
    memory: PathBuf,
    /// Seconds of each run of fio.
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// Rounds. With 6 the range of the paired ratios covers their median with 97 %.
    #[arg(long, default_value_t = 6)]
    rounds: usize,
    /// Only these parts: vhost, vhost-memory, throughput, memory, depth, pause, create, scale.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Only the cases whose name contains this.
    #[arg(long, default_value = "")]
    case: String,
    /// Volumes of the part `scale`; at least 1000.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1000..))]
    volumes: u64,
    /// Measure the peers alone.
    #[arg(long)]
    without_shale: bool,
    /// Where the report goes; nothing is written when only a part is measured.
    #[arg(long, default_value = "docs/benchmarks.md")]
    out: PathBuf,
}

impl Options {
    fn time(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }

    fn wants(&self, part: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == part)
    }

    /// A part of the whole is for looking at, not for the committed document.
    fn whole(&self) -> bool {
        self.only.is_empty() && self.case.is_empty() && !self.without_shale
    }

    fn scratch(&self, parent: &std::path::Path) -> Result<tempfile::TempDir> {
        std::fs::create_dir_all(parent)?;
        tempfile::Builder::new()
            .prefix("shale-bench-")
            .tempdir_in(parent)
            .with_context(|| format!("cannot make a folder in {}", parent.display()))
    }
}

type Part = (&'static str, fn(&Options, &mut Report) -> Result<()>);

const PARTS: &[Part] = &[
    ("vhost", vhost::measure),
    ("vhost-memory", vhost::measure_in_memory),
    ("throughput", throughput::measure),
    ("memory", throughput::measure_in_memory),
    ("depth", depth::measure),
    ("pause", pause::measure),
    ("create", create::measure),
    ("kinds", kinds::measure),
    ("scale", scale::measure),
    ("footprint", footprint::measure),
];

fn main() -> Result<()> {
    std::env::set_current_dir(workspace())?;
    let mut options = Options::parse();
    std::fs::create_dir_all(&options.dir)?;
    options.dir = options.dir.canonicalize()?;
    ensure!(options.rounds > 0 && options.seconds > 0, "nothing to measure");
    let mut report = Report::new(&options)?;
    for (name, measure) in PARTS {
        if options.wants(name) {
            measure(&options, &mut report).with_context(|| format!("part {name}"))?;
            // After each part: what was measured is not lost to a failure of the next.
            if options.whole() {
                std::fs::write(&options.out, report.text())?;
            }
        }
    }
    println!("{}", report.text());
    Ok(())
}
