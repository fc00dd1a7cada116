//! Runs seeds of the whole-engine proof: `--seeds N [--first S] [--lives L]`. Prints what was covered;
//! a violation is printed with its seed, and ends in exit code 1.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Instant;

use disk::Rules;

fn main() -> ExitCode {
    let mut options = BTreeMap::from([("--seeds", 1000), ("--first", 0), ("--lives", 10)]);
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().and_then(|v| v.parse::<u64>().ok());
        match (options.get_mut(word.as_str()), value) {
            (Some(place), Some(value)) => *place = value,
            _ => {
                say("usage: shale-sim [--seeds N] [--first S] [--lives L]");
                return ExitCode::from(2);
            }
        }
    }
    let (first, seeds, lives) = (options["--first"], options["--seeds"], options["--lives"]);
    let start = Instant::now();
    let mut sum = sim::engine::Outcome::default();
    let mut violations = 0;
    for seed in first..first + seeds {
        match sim::engine::run(seed, lives, Rules::all()) {
            Ok(outcome) => sum.add(&outcome),
            Err(violation) => {
                violations += 1;
                say(&format!("seed {seed}: {violation}"));
            }
        }
    }
    say(&format!(
        "{seeds} seeds of {lives} lives: {violations} violations; {sum:#?}\n{:.1} s",
        start.elapsed().as_secs_f64()
    ));
    if violations == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[expect(clippy::print_stdout, reason = "a command's answer")]
fn say(line: &str) {
    println!("{line}");
}
