//! The model-based test as a program: `cargo xtask model --minutes 60`.
#![expect(clippy::print_stdout, reason = "it tells what it does")]

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use e2e::model::{Outcome, run};

struct Wanted {
    first: u64,
    seeds: u64,
    minutes: Option<u64>,
    lives: u64,
    quiet: bool,
}

fn main() -> Result<()> {
    let wanted = wanted()?;
    let (begin, mut sum, mut seeds) = (Instant::now(), Outcome::default(), 0);
    let limit = wanted.minutes.map(|minutes| Duration::from_secs(60 * minutes));
    let mut tell = |line: &str| {
        if !wanted.quiet {
            println!("{line}");
        }
    };
    for seed in wanted.first.. {
        let over = match limit {
            Some(limit) => begin.elapsed() >= limit,
            None => seeds >= wanted.seeds,
        };
        if over {
            break;
        }
        sum.add(&run(seed, wanted.lives, &mut tell)?);
        seeds += 1;
    }
    println!(
        "{seeds} seeds of {} lives from {}: 0 differences; {sum:#?}",
        wanted.lives, wanted.first
    );
    println!("{:.0} s", begin.elapsed().as_secs_f64());
    Ok(())
}

fn wanted() -> Result<Wanted> {
    let mut wanted = Wanted { first: 0, seeds: 1, minutes: None, lives: 8, quiet: false };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut number = || -> Result<u64> {
            let value = words.next().with_context(|| format!("{word} wants a number"))?;
            value.parse().with_context(|| format!("{word} {value}"))
        };
        match word.as_str() {
            "--first" => wanted.first = number()?,
            "--seeds" => wanted.seeds = number()?,
            "--minutes" => wanted.minutes = Some(number()?),
            "--lives" => wanted.lives = number()?,
            "--quiet" => wanted.quiet = true,
            _ => {
                bail!("usage: model [--first SEED] [--seeds N | --minutes M] [--lives N] [--quiet]")
            }
        }
    }
    Ok(wanted)
}
