//! `cargo xtask fuzz`: the targets of crate `hostile` under libFuzzer. Their programs are a workspace of
//! their own, because only a nightly compiler can instrument; what cargo-fuzz would add is a handful of
//! flags.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use e2e::process::text;

use crate::show;

/// Coverage for the fuzzer, and the address sanitizer.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
                     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
                     -Cllvm-args=-sanitizer-coverage-pc-table -Zsanitizer=address \
                     -Cdebug-assertions";

/// Bytes of a corpus beyond which nothing is added to it: all of them are replayed with every test run.
const CORPUS: u64 = 64 << 10;
/// The longest input that is added, and how many are at a time.
const INPUT: u64 = 2 << 10;
const INPUTS: usize = 40;

/// The gate's long form.
pub(crate) fn long() -> Result<()> {
    run(120, false, &[])
}

/// Runs each target for so many seconds, `only` these if any are named; with `keep`, what reaches more
/// code than the corpus is added to it.
pub(crate) fn run(seconds: u32, keep: bool, only: &[String]) -> Result<()> {
    let host = host()?;
    let targets = text(Command::new("git").args(["ls-files", "fuzz/fuzz_targets"]))?
        .lines()
        .filter_map(|path| path.rsplit('/').next()?.strip_suffix(".rs").map(str::to_owned))
        .filter(|name| only.is_empty() || only.contains(name))
        .collect::<Vec<_>>();
    ensure!(!targets.is_empty(), "there is no such target in fuzz/fuzz_targets");
    // what state files and servers write goes to memory: durability is not what is looked for
    let memory = Some(Path::new("/dev/shm")).filter(|dir| dir.is_dir());
    let scratch = tempfile::tempdir_in(memory.unwrap_or(&std::env::temp_dir()))?;
    let program = |target: &str| {
        let mut fuzz = nightly("cargo");
        fuzz.args(["run", "--quiet", "--release", "--manifest-path", "fuzz/Cargo.toml"]);
        fuzz.args(["--target-dir", "target/fuzz/build", "--target", &host, "--bin", target, "--"]);
        fuzz.env("RUSTFLAGS", FLAGS).env("TMPDIR", scratch.path());
        fuzz.args(["-rss_limit_mb=2048", "-timeout=10"]);
        fuzz.arg(format!("-artifact_prefix=target/fuzz/{target}-"));
        fuzz
    };
    for target in targets {
        // what is found on the way stays here, and is where the next run goes on
        let (found, corpus) = (format!("target/fuzz/{target}"), format!("fuzz/corpus/{target}"));
        std::fs::create_dir_all(&found)?;
        let mut fuzz = program(&target);
        fuzz.args([&found, &corpus, &format!("-max_total_time={seconds}")]);
        show(fuzz.arg("-print_final_stats=1"))?;
        if keep {
            let chosen = scratch.path().join("chosen").join(&target);
            std::fs::create_dir_all(&chosen)?;
            let mut merge = program(&target);
            merge.arg("-set_cover_merge=1").arg(&chosen).args([&corpus, &found]);
            show(&mut merge)?;
            add(&chosen, Path::new(&corpus))?;
        }
    }
    Ok(())
}

/// Adds some of the chosen inputs that `corpus` lacks, of every size, while it stays small.
fn add(chosen: &Path, corpus: &Path) -> Result<()> {
    let inputs = |dir: &Path| -> Result<Vec<(u64, Vec<u8>)>> {
        let read = |entry: std::io::Result<std::fs::DirEntry>| {
            let bytes = std::fs::read(entry?.path())?;
            Ok((bytes.len() as u64, bytes))
        };
        std::fs::read_dir(dir)?.map(read).collect()
    };
    let known = inputs(corpus)?;
    let mut size: u64 = known.iter().map(|(len, _)| len).sum();
    let mut new = inputs(chosen)?;
    new.retain(|input| input.0 <= INPUT && !known.contains(input));
    new.sort();
    let apart = new.len().div_ceil(INPUTS).max(1);
    let free = |number: &u32| !corpus.join(format!("found-{number:03}")).exists();
    // numbers: a name that says nothing should not look as if it did
    let mut numbers = (0..).filter(free).take(INPUTS).collect::<Vec<_>>().into_iter();
    for (len, bytes) in new.into_iter().step_by(apart) {
        if size + len > CORPUS {
            break;
        }
        size += len;
        let number = numbers.next().context("more inputs than were to be added")?;
        std::fs::write(corpus.join(format!("found-{number:03}")), bytes)?;
    }
    Ok(())
}

/// The host's triple. Named to cargo, so that build scripts and macros are not instrumented.
fn host() -> Result<String> {
    let version = nightly("rustc").arg("-vV").output();
    let version = version.ok().filter(|output| output.status.success());
    let version =
        version.context("fuzzing needs a nightly compiler: rustup toolchain install nightly")?;
    let version = String::from_utf8(version.stdout)?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc names no host")?.to_owned())
}

/// A tool of the nightly toolchain; the pinned one that runs us must not leak into it.
fn nightly(tool: &str) -> Command {
    let mut command = Command::new(tool);
    command.arg("+nightly").env_remove("RUSTUP_TOOLCHAIN").env_remove("CARGO");
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_corpus_takes_what_it_lacks_and_stays_small() {
        let dir = tempfile::tempdir().expect("a directory");
        let [chosen, corpus] = ["chosen", "corpus"].map(|name| dir.path().join(name));
        for dir in [&chosen, &corpus] {
            std::fs::create_dir(dir).expect("a directory");
        }
        let write = |path: std::path::PathBuf, bytes: &[u8]| {
            std::fs::write(path, bytes).expect("a file");
        };
        write(corpus.join("seed"), &[7; 9]);
        write(corpus.join("found-000"), &[8; 9]);
        write(chosen.join("known"), &[7; 9]);
        write(chosen.join("long"), &[0; 3000]);
        write(chosen.join("new"), &[1; 10]);
        add(&chosen, &corpus).expect("added");
        assert_eq!(std::fs::read(corpus.join("found-001")).expect("a file"), [1; 10]);
        assert_eq!(std::fs::read_dir(&corpus).expect("entries").count(), 3);
        for number in 0..100_u8 {
            write(chosen.join(format!("{number}")), &[number; 2000]);
        }
        add(&chosen, &corpus).expect("added");
        let files = std::fs::read_dir(&corpus).expect("entries");
        let sizes: Vec<_> =
            files.map(|file| file.and_then(|f| f.metadata()).expect("a file").len()).collect();
        assert!(sizes.iter().sum::<u64>() <= CORPUS, "{sizes:?}");
        assert!((30..=3 + INPUTS).contains(&sizes.len()), "{sizes:?}");
    }
}
