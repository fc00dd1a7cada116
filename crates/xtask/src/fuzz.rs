//! `cargo xtask fuzz`: the targets of fuzz/ under libFuzzer. They are a workspace of their own, because
//! only a nightly compiler can instrument; what cargo-fuzz would add is a handful of flags.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use e2e::process::text;

use crate::show;

/// Coverage for the fuzzer, and the address sanitizer.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
                     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
                     -Cllvm-args=-sanitizer-coverage-pc-table -Zsanitizer=address \
                     -Cdebug-assertions";

pub(crate) fn run(seconds: u32, only: &[String]) -> Result<()> {
    let version = nightly("rustc").arg("-vV").output();
    let version = version.ok().filter(|output| output.status.success());
    let version =
        version.context("fuzzing needs a nightly compiler: rustup toolchain install nightly")?;
    let version = String::from_utf8(version.stdout)?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    // Named, so that build scripts and macros are not instrumented.
    let host = host.context("rustc names no host")?;
    let mut targets = text(Command::new("git").args(["ls-files", "fuzz/fuzz_targets"]))?
        .lines()
        .filter_map(|path| path.rsplit('/').next()?.strip_suffix(".rs").map(str::to_owned))
        .filter(|name| only.is_empty() || only.contains(name))
        .collect::<Vec<_>>();
    targets.sort();
    ensure!(!targets.is_empty(), "there is no such target in fuzz/fuzz_targets");
    for target in targets {
        // What is found on the way is kept here; a corpus worth keeping is committed by hand.
        let found = format!("target/fuzz/{target}");
        std::fs::create_dir_all(&found)?;
        let mut fuzz = nightly("cargo");
        fuzz.args(["run", "--quiet", "--release", "--manifest-path", "fuzz/Cargo.toml"]);
        fuzz.args(["--target-dir", "target/fuzz/build", "--target", host, "--bin", &target, "--"]);
        fuzz.arg(&found);
        let corpus = format!("fuzz/corpus/{target}");
        if std::path::Path::new(&corpus).is_dir() {
            fuzz.arg(corpus);
        }
        fuzz.arg(format!("-max_total_time={seconds}"));
        fuzz.args(["-rss_limit_mb=2048", "-timeout=10", "-print_final_stats=1"]);
        fuzz.arg(format!("-artifact_prefix=target/fuzz/{target}-"));
        show(fuzz.env("RUSTFLAGS", FLAGS))?;
    }
    Ok(())
}

/// A tool of the nightly toolchain; the pinned one that runs us must not leak into it.
fn nightly(tool: &str) -> Command {
    let mut command = Command::new(tool);
    command.arg("+nightly").env_remove("RUSTUP_TOOLCHAIN").env_remove("CARGO");
    command
}
