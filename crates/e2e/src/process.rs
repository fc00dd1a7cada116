//! Child processes: run to the end with their output as the error text, or kept for as long as
//! their owner lives. Processes are only ever ended through the handle that started them.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
pub use rustix::process::Signal;

/// Runs `command` to its end. Fails with its output when it does.
pub fn run(command: &mut Command) -> Result<Output> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", command.get_program().display()))?;
    if !output.status.success() {
        bail!(
            "{command:?} ended with {}:\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(output)
}

/// Runs `command` to its end and returns what it wrote, without the white space around it.
pub fn text(command: &mut Command) -> Result<String> {
    let output = run(command)?;
    Ok(String::from_utf8(output.stdout).context("the output is not UTF-8")?.trim().to_owned())
}

/// A child that is killed when its owner drops it.
#[derive(Debug)]
pub struct Owned {
    name: String,
    child: Child,
}

impl Owned {
    pub fn spawn(command: &mut Command) -> Result<Self> {
        let name = command.get_program().display().to_string();
        let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        Ok(Self { name, child })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// SIGKILL, and wait until the process is gone.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.child.kill().with_context(|| format!("cannot kill {}", self.name))?;
        Ok(self.child.wait()?)
    }

    /// SIGTERM; waits for the end, at most `limit`.
    pub fn terminate(&mut self, limit: Duration) -> Result<ExitStatus> {
        signal(self.pid(), Signal::TERM)?;
        self.wait(limit)
    }

    /// Waits for the end, at most `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let name = self.name.clone();
        poll_until(limit, || Ok(self.child.try_wait()?), || format!("{name} to end"))
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // Already gone is what we want; there is no one to tell about anything else.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Sends one signal to one process, by its number.
pub fn signal(pid: u32, signal: Signal) -> Result<()> {
    let raw = i32::try_from(pid).context("no such process number")?;
    let pid = rustix::process::Pid::from_raw(raw).context("process number 0")?;
    rustix::process::kill_process(pid, signal)
        .with_context(|| format!("cannot signal process {raw}"))
}

/// Waits until a process that is not our child has ended.
pub fn wait_gone(pid: u32, limit: Duration) -> Result<()> {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    // A zombie has ended: its parent merely has not asked yet.
    let gone = || {
        let stat = std::fs::read_to_string(proc.join("stat")).unwrap_or_default();
        let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
        Ok((!proc.exists() || matches!(state, Some('Z' | 'X'))).then_some(()))
    };
    poll_until(limit, gone, || format!("process {pid} to end"))
}

/// Asks `question` until it has an answer. For state that offers no event; the limit only bounds
/// a failure, it is never part of what is asserted.
pub fn poll_until<T>(
    limit: Duration,
    mut question: impl FnMut() -> Result<Option<T>>,
    what: impl Fn() -> String,
) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(answer) = question()? {
            return Ok(answer);
        }
        if Instant::now() >= end {
            bail!("waited {limit:?} for {}", what());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The lines of a pipe as they come, read by a thread of its own so that the writer never blocks.
pub fn lines(pipe: impl std::io::Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    lines_into(pipe, sender, "");
    receiver
}

/// The same into a channel that has other writers; `prefix` tells them apart.
pub fn lines_into(
    pipe: impl std::io::Read + Send + 'static,
    sender: mpsc::Sender<String>,
    prefix: &'static str,
) {
    std::thread::spawn(move || {
        let mut reader = std::io::BufReader::new(pipe);
        let mut line = Vec::new();
        loop {
            line.clear();
            match std::io::BufRead::read_until(&mut reader, b'\n', &mut line) {
                Ok(0) | Err(_) => break,
                // Keep draining when nobody listens any more: a full pipe would stop the child.
                Ok(_) => {
                    let text = String::from_utf8_lossy(&line);
                    drop(sender.send(format!("{prefix}{}", text.trim_end())));
                }
            }
        }
    });
}

/// The folder that cargo builds into.
pub fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

/// The root of the source tree.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()
        .unwrap_or_else(|_| ".".into())
}
