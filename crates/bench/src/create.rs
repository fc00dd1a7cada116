//! Making a 1 TiB thin disk: the time of the command, and what it takes.

use std::time::Instant;

use anyhow::Result;

use crate::Options;
use crate::contestant::{self, STORE, taken};
use crate::report::Report;
use crate::stats::{median, percentile};

pub(crate) fn measure(options: &Options, report: &mut Report) -> Result<()> {
    if options.without_shale {
        return Ok(());
    }
    let scratch = options.scratch(&options.dir)?;
    let shale = contestant::shale(scratch.path())?;
    let store = scratch.path().join(STORE);
    let (mut seconds, mut bytes) = (Vec::new(), Vec::new());
    for round in 0..options.rounds {
        let name = format!("big{round}");
        let before = taken(&store)?;
        let begin = Instant::now();
        shale.volume(&name, STORE, "1T")?;
        seconds.push(begin.elapsed().as_secs_f64());
        bytes.push((taken(&store)? - before) as f64);
    }
    report.section(
        "A new disk of 1 TiB",
        "The whole command `shale volume create`, and the blocks that its files take.",
    );
    let mib = |bytes: f64| bytes / f64::from(1 << 20);
    let reached = if percentile(&seconds, 1.0) < 1.0 && mib(percentile(&bytes, 1.0)) < 8.0 {
        "reached"
    } else {
        "**missed**"
    };
    report.table(
        &["", "median", "highest", "aim"].map(str::to_owned),
        &[
            vec![
                "seconds".into(),
                format!("{:.3}", median(&seconds)),
                format!("{:.3}", percentile(&seconds, 1.0)),
                format!("< 1: {reached}"),
            ],
            vec![
                "MiB".into(),
                format!("{:.2}", mib(median(&bytes))),
                format!("{:.2}", mib(percentile(&bytes, 1.0))),
                format!("< 8: {reached}"),
            ],
        ],
    );
    Ok(())
}
