//! The gate, `cargo xtask ci`: what every change must pass beside the tests. All steps run, then the
//! failed ones are named: one run tells the whole story.

use std::process::Command;
use std::time::Instant;

use anyhow::{Result, bail, ensure};

use crate::{cargo, edges, fuzz, show, text};

type Step = (&'static str, fn() -> Result<()>);

/// Cheap steps first.
const STEPS: &[Step] = &[
    ("crate edges", edges::check),
    ("unsafe code only where it may be", text::unsafe_code),
    ("no path or registry of this machine in the sources", text::machine),
    ("every safety rule has its test", text::safety_rules),
    ("links of the documents lead somewhere", text::links),
    ("formatting", || show(&mut cargo(&["fmt", "--all", "--check"]))),
    ("lints", lints),
    ("documentation", documentation),
    ("openapi.json is what the code says", openapi),
    ("committed seeds of the simulator", seeds),
    ("kept inputs of the fuzzer", corpora),
];

/// What the long form adds.
const LONG: &[Step] = &[("fuzzing, 2 minutes each target", fuzz::long)];

pub(crate) fn run(long: bool) -> Result<()> {
    let mut failed = Vec::new();
    for (name, step) in STEPS.iter().chain(if long { LONG } else { &[] }) {
        println!("== {name}");
        let begin = Instant::now();
        let result = step();
        let seconds = begin.elapsed().as_secs_f32();
        match result {
            Ok(()) => println!("   ok, {seconds:.1} s"),
            Err(error) => {
                println!("   FAILED, {seconds:.1} s: {error:#}");
                failed.push(*name);
            }
        }
    }
    if !failed.is_empty() {
        bail!("the gate is closed: {}", failed.join("; "));
    }
    println!("the gate is open");
    Ok(())
}

fn lints() -> Result<()> {
    let mut clippy = cargo(&["clippy", "--workspace", "--all-targets", "--quiet"]);
    show(clippy.args(["--", "-D", "warnings"]))
}

fn documentation() -> Result<()> {
    let mut doc: Command = cargo(&["doc", "--workspace", "--no-deps", "--quiet"]);
    show(doc.env("RUSTDOCFLAGS", "-D warnings"))
}

fn openapi() -> Result<()> {
    tests("controller", "openapi")
}

fn seeds() -> Result<()> {
    tests("sim", "committed")
}

fn corpora() -> Result<()> {
    tests("hostile", "every_")
}

/// Runs the tests of a crate whose names contain `filter`; there must be one, or a renamed test would
/// leave the gate open.
fn tests(package: &str, filter: &str) -> Result<()> {
    let output = e2e::process::text(&mut cargo(&["test", "--quiet", "-p", package, "--", filter]))?;
    let passed = |line: &str| -> Option<u32> {
        line.strip_prefix("test result: ok. ")?.split(' ').next()?.parse().ok()
    };
    let count: u32 = output.lines().filter_map(passed).sum();
    ensure!(count > 0, "{package} has no test whose name contains {filter}");
    println!("   {count} tests");
    Ok(())
}
