//! The developer's entry point: `cargo xtask run | demo | test | bench | ci | fuzz | sim`.
//!
//! It only starts other programs and reads the source tree; everything it does can be done by hand,
//! and it prints the commands so that it can be.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "a command line tool for people")]

mod edges;
mod fuzz;
mod gate;
mod packages;
mod text;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use e2e::process::{target_dir, workspace};

/// Shale's developer tool.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Build the release binary and serve; what follows goes to `shale serve`.
    Run {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        serve: Vec<OsString>,
    },
    /// Show the main job on a real guest, step by step, with figures.
    Demo,
    /// Install the Debian packages that the tests need, then run every test.
    Test {
        /// Passed on to the test runner, for example a part of a test's name.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        runner: Vec<OsString>,
    },
    /// Measure against qemu-storage-daemon and write docs/benchmarks.md.
    Bench {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        bench: Vec<OsString>,
    },
    /// The gate: everything but the tests that a change must pass.
    Ci {
        /// Then every reader of hostile bytes under libFuzzer, 2 minutes each; needs a nightly compiler.
        #[arg(long)]
        long: bool,
    },
    /// Every reader of hostile bytes under libFuzzer, one after the other; needs a nightly compiler.
    Fuzz {
        /// Seconds for each target.
        #[arg(long, default_value_t = 60)]
        seconds: u32,
        /// Add to the corpora what reaches more code than they do.
        #[arg(long)]
        keep: bool,
        /// Only these targets.
        targets: Vec<String>,
    },
    /// Simulated crashes of the whole engine, from random seeds.
    Sim {
        /// How many worlds to run.
        #[arg(long, default_value_t = 10_000)]
        seeds: u64,
        /// Passed on to the simulator, for example one seed to replay.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        sim: Vec<OsString>,
    },
    /// Random lives of a real system, killed and cut off its power, against a model; as root.
    Model {
        /// How long; an hour, unless the seeds are named.
        #[arg(long)]
        minutes: Option<u32>,
        /// Passed on to the model, for example one seed to run again: --first 7 --seeds 1.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        model: Vec<OsString>,
    },
}

fn main() -> Result<()> {
    std::env::set_current_dir(workspace())?;
    match Args::parse().task {
        Task::Run { serve } => {
            let binary = build("release")?;
            show(Command::new(binary).arg("serve").args(serve))
        }
        Task::Demo => {
            packages::install()?;
            let binary = build("release")?;
            let mut demo = cargo(&["run", "--quiet", "-p", "e2e", "--bin", "demo"]);
            show(demo.env("SHALE_BIN", binary))
        }
        Task::Test { runner } => {
            packages::install()?;
            let binary = build("dev")?;
            let mut tests = if Command::new("cargo-nextest").arg("--version").output().is_ok() {
                cargo(&["nextest", "run", "--workspace", "--no-fail-fast"])
            } else {
                cargo(&["test", "--workspace", "--no-fail-fast"])
            };
            show(tests.args(runner).env("SHALE_BIN", binary))
        }
        Task::Bench { bench } => {
            packages::install()?;
            let binary = build("release")?;
            let mut run = cargo(&["run", "--quiet", "--release", "-p", "bench", "--"]);
            show(run.args(bench).env("SHALE_BIN", binary))
        }
        Task::Ci { long } => gate::run(long),
        Task::Fuzz { seconds, keep, targets } => fuzz::run(seconds, keep, &targets),
        Task::Model { minutes, model } => {
            packages::install()?;
            let binary = build("release")?;
            let mut run =
                cargo(&["run", "--quiet", "--release", "-p", "e2e", "--bin", "model", "--"]);
            let named = model.iter().any(|word| word == "--seeds");
            if let Some(minutes) = minutes.or((!named).then_some(60)) {
                run.args(["--minutes", &minutes.to_string()]);
            }
            run.args(model);
            show(run.env("SHALE_BIN", binary))
        }
        Task::Sim { seeds, sim } => show(
            cargo(&["run", "--quiet", "--release", "-p", "sim", "--"])
                .args(["--seeds", &seeds.to_string()])
                .args(sim),
        ),
    }
}

/// Builds the `shale` binary; its path.
fn build(profile: &str) -> Result<PathBuf> {
    show(&mut cargo(&["build", "-p", "shale", "--profile", profile]))?;
    let dir = if profile == "dev" { "debug" } else { profile };
    Ok(target_dir().join(dir).join("shale"))
}

fn cargo(words: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(words);
    command
}

/// Prints a command, runs it on our own terminal, and fails when it does.
fn show(command: &mut Command) -> Result<()> {
    let words: Vec<_> =
        command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
    let program = PathBuf::from(command.get_program());
    let name = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned();
    println!("$ {name} {}", words.join(" "));
    let status = command.status().with_context(|| format!("cannot start {name}"))?;
    if !status.success() {
        bail!("{name} {} ended with {status}", words.join(" "));
    }
    Ok(())
}
