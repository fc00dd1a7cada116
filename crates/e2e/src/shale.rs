//! `shale serve` on a directory of its own, and the CLI as a call.
//!
//! A [`Shale`] is what a user has after `shale serve`: nothing of it reaches into the processes. It
//! ends with `shale down`, so a failed test leaves no process and no socket behind.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::process::{Owned, lines, run, target_dir, wait_gone};
use crate::qemu::Disk;

/// Bounds a failure; a healthy start takes a fraction of a second.
const START_LIMIT: Duration = Duration::from_secs(60);

/// The same for an end.
const END_LIMIT: Duration = Duration::from_secs(60);

/// Exit codes of the CLI, as it documents them.
pub mod exit {
    pub const OK: i32 = 0;
    pub const FAILED: i32 = 1;
    pub const USAGE: i32 = 2;
    pub const NOT_FOUND: i32 = 3;
    pub const CONFLICT: i32 = 4;
    pub const NO_SPACE: i32 = 5;
    pub const DENIED: i32 = 6;
    pub const TIMEOUT: i32 = 7;
}

/// The binary under test: `SHALE_BIN`, else the one that cargo built beside this test.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("SHALE_BIN") {
        let path = PathBuf::from(path);
        ensure!(path.is_file(), "SHALE_BIN is {}, which is no file", path.display());
        return Ok(path);
    }
    let own = std::env::current_exe()?;
    let beside = own.ancestors().skip(1).take(2).map(|dir| dir.join("shale"));
    let built = ["release", "debug"].map(|profile| target_dir().join(profile).join("shale"));
    beside
        .chain(built)
        .find(|path| path.is_file())
        .context("there is no shale binary: cargo build -p shale (`cargo xtask test` does it)")
}

/// What one call of the CLI gave.
#[derive(Clone, Debug)]
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

/// Where a connected volume can be reached.
#[derive(Clone, Debug)]
pub struct Connection {
    pub uri: String,
    pub socket: PathBuf,
    pub export: String,
}

impl Connection {
    /// The same as a disk for a guest.
    pub fn disk(&self) -> Disk {
        Disk::Nbd { socket: self.socket.clone(), export: self.export.clone() }
    }

    /// Takes an `nbd+unix:///EXPORT?socket=PATH` apart.
    pub fn parse(uri: &str) -> Result<Self> {
        let rest = uri
            .strip_prefix("nbd+unix://")
            .with_context(|| format!("{uri:?} is no NBD address of a unix socket"))?;
        let (export, query) = rest.split_once('?').context("the address names no socket")?;
        let socket = query
            .split('&')
            .find_map(|pair| pair.strip_prefix("socket="))
            .context("the address names no socket")?;
        Ok(Self {
            uri: uri.to_owned(),
            socket: socket.into(),
            export: export.trim_start_matches('/').to_owned(),
        })
    }
}

/// A running system and the directory that it owns.
#[derive(Debug)]
pub struct Shale {
    /// Held for its end: it takes the whole directory away.
    home: TempDir,
    data: PathBuf,
    url: String,
    /// What runs the binary, where it is not run directly.
    wrapper: Vec<String>,
    serve: Option<Owned>,
    output: Option<Receiver<String>>,
}

impl Shale {
    /// `shale serve` on a new data directory.
    pub fn start() -> Result<Self> {
        Self::start_in(tempfile::Builder::new().prefix("shale-").tempdir()?)
    }

    /// The same, with everything in `home`, which is removed at the end.
    pub fn start_in(home: TempDir) -> Result<Self> {
        Self::start_wrapped(home, Vec::new())
    }

    /// The same as an ordinary user, who owns `home`; the caller is root.
    pub fn start_as(home: TempDir, user: u32) -> Result<Self> {
        std::os::unix::fs::chown(home.path(), Some(user), Some(user))?;
        let user = user.to_string();
        let words = ["setpriv", "--reuid", &user, "--regid", &user, "--clear-groups", "--"];
        Self::start_wrapped(home, words.map(str::to_owned).into())
    }

    fn start_wrapped(home: TempDir, wrapper: Vec<String>) -> Result<Self> {
        let data = home.path().join("data");
        let url = String::new();
        let mut shale = Self { home, data, url, wrapper, serve: None, output: None };
        shale.serve()?;
        Ok(shale)
    }

    fn program(&self) -> Result<Command> {
        let Some((first, rest)) = self.wrapper.split_first() else {
            return Ok(Command::new(binary()?));
        };
        // Another user may not reach the folder that cargo builds into.
        let copy = self.home.path().join("shale");
        if !copy.exists() {
            std::fs::copy(binary()?, &copy)?;
        }
        let mut command = Command::new(first);
        command.args(rest).arg(copy);
        Ok(command)
    }

    /// Starts `shale serve` (again) and waits until it prints its address.
    pub fn serve(&mut self) -> Result<()> {
        self.serve_with(&[])
    }

    /// The same with variables of the environment, which its node has too.
    pub fn serve_with(&mut self, variables: &[(&str, &str)]) -> Result<()> {
        let listen = format!("127.0.0.1:{}", free_port()?);
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.home.path().join("serve.log"))?;
        let mut serve = Owned::spawn(
            self.program()?
                .args(["serve", "--listen", &listen, "--data"])
                .arg(&self.data)
                .env_remove("SHALE_URL")
                .env_remove("SHALE_TOKEN")
                .envs(variables.iter().copied())
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(log),
        )?;
        let output = lines(serve.child().stdout.take().context("serve has no output")?);
        self.serve = Some(serve);
        self.url = format!("http://{listen}");
        let end = Instant::now() + START_LIMIT;
        loop {
            match output.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) if line.contains("http://") => break,
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => {
                    bail!("shale serve printed no address in {START_LIMIT:?}: {}", self.log())
                }
                Err(RecvTimeoutError::Disconnected) => bail!("shale serve ended: {}", self.log()),
            }
        }
        self.output = Some(output);
        Ok(())
    }

    /// The data directory of `shale serve`.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// A directory for the test's own files, on the same file system.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn token(&self) -> Result<String> {
        let path = self.data.join("admin.token");
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read the token in {}", path.display()))?;
        Ok(text.trim().to_owned())
    }

    /// What serve and node wrote to their error output; for failure texts.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.home.path().join("serve.log")).unwrap_or_default()
    }

    pub fn serve_pid(&self) -> Result<u32> {
        Ok(self.serve.as_ref().context("shale serve is not running")?.pid())
    }

    /// The node is a child of serve; found the way an operator would, in /proc.
    pub fn node_pid(&self) -> Result<u32> {
        let data = self.data.display().to_string();
        for entry in std::fs::read_dir("/proc")?.filter_map(Result::ok) {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let words: Vec<_> =
                line.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
            let has = |word: &str| words.iter().any(|of| of == word);
            if has("node") && (has(&data) || has(&format!("--data={data}"))) {
                return Ok(pid);
            }
        }
        bail!("no node process serves {data}")
    }

    /// The CLI as this system's user runs it.
    pub fn command(&self) -> Result<Command> {
        let mut command = Command::new(binary()?);
        command.env("SHALE_URL", &self.url).env("SHALE_TOKEN", self.token()?);
        Ok(command)
    }

    /// Runs the CLI, whatever comes of it.
    pub fn try_cli<S: AsRef<str>>(&self, words: &[S]) -> Result<Said> {
        said(self.command()?.args(words.iter().map(AsRef::as_ref)))
    }

    /// Runs the CLI; it must succeed. Its output.
    pub fn cli<S: AsRef<str>>(&self, words: &[S]) -> Result<String> {
        let said = self.try_cli(words)?;
        let line: Vec<_> = words.iter().map(AsRef::as_ref).collect();
        ensure!(
            said.code == exit::OK,
            "shale {} ended with {}: {}{}\nserve said: {}",
            line.join(" "),
            said.code,
            said.out,
            said.err,
            self.log()
        );
        Ok(said.out)
    }

    /// The same with `-o json`, read.
    pub fn json<S: AsRef<str>>(&self, words: &[S]) -> Result<Value> {
        let mut all: Vec<_> = words.iter().map(AsRef::as_ref).collect();
        all.extend(["-o", "json"]);
        let text = self.cli(&all)?;
        serde_json::from_str(&text)
            .with_context(|| format!("shale {} printed no JSON: {text}", all.join(" ")))
    }

    /// Runs the CLI; it must end with `code`. What it wrote as the error.
    pub fn refused<S: AsRef<str>>(&self, words: &[S], code: i32) -> Result<String> {
        let said = self.try_cli(words)?;
        let line: Vec<_> = words.iter().map(AsRef::as_ref).collect();
        ensure!(
            said.code == code,
            "shale {} ended with {}, not {code}: {}{}",
            line.join(" "),
            said.code,
            said.out,
            said.err
        );
        Ok(said.err)
    }

    /// A datastore on a new directory beside the data directory; the directory.
    pub fn datastore(&self, name: &str) -> Result<PathBuf> {
        let dir = self.home.path().join(name);
        std::fs::create_dir(&dir)?;
        self.cli(&["datastore", "create", name, "--dir", &dir.display().to_string()])?;
        Ok(dir)
    }

    /// A thin volume.
    pub fn volume(&self, name: &str, datastore: &str, size: &str) -> Result<()> {
        let words = ["volume", "create", name, "--datastore", datastore, "--size", size];
        self.cli(&[&words[..], &["--kind", "thin"]].concat()).map(drop)
    }

    pub fn connect(&self, volume: &str) -> Result<Connection> {
        self.connect_with(volume, &[])
    }

    pub fn connect_with(&self, volume: &str, more: &[&str]) -> Result<Connection> {
        let answer = self.json(&[&["volume", "connect", volume], more].concat())?;
        let uri = answer["uri"].as_str().with_context(|| format!("no uri in {answer}"))?;
        Connection::parse(uri)
    }

    /// Connects it as a vhost-user-blk device.
    pub fn connect_vhost_user(&self, volume: &str) -> Result<Disk> {
        let answer = self.json(&["volume", "connect", volume, "--protocol", "vhost-user"])?;
        let socket = answer["socket"].as_str().with_context(|| format!("no socket in {answer}"))?;
        Ok(Disk::VhostUser { socket: socket.into() })
    }

    pub fn disconnect(&self, volume: &str) -> Result<()> {
        self.cli(&["volume", "disconnect", volume]).map(drop)
    }

    pub fn snapshot(&self, name: &str, volume: &str) -> Result<()> {
        self.cli(&["snapshot", "create", name, "--volume", volume]).map(drop)
    }

    pub fn revert(&self, snapshot: &str, volume: &str) -> Result<()> {
        self.cli(&["snapshot", "revert", snapshot, "--volume", volume, "--yes"]).map(drop)
    }

    pub fn delete_snapshot(&self, snapshot: &str, volume: &str) -> Result<()> {
        self.cli(&["snapshot", "delete", snapshot, "--volume", volume, "--yes"]).map(drop)
    }

    pub fn delete_volume(&self, volume: &str) -> Result<()> {
        self.cli(&["volume", "delete", volume, "--yes"]).map(drop)
    }

    /// The objects of a list command.
    pub fn list<S: AsRef<str>>(&self, words: &[S]) -> Result<Vec<Value>> {
        let answer = self.json(words)?;
        let items = answer.as_array().or_else(|| answer["items"].as_array());
        Ok(items.with_context(|| format!("no list: {answer}"))?.clone())
    }

    /// The names of a list command.
    pub fn names<S: AsRef<str>>(&self, words: &[S]) -> Result<Vec<String>> {
        let name = |item: &Value| item["name"].as_str().unwrap_or("?").to_owned();
        Ok(self.list(words)?.iter().map(name).collect())
    }

    /// SIGTERM to `shale serve`; the node stays.
    pub fn stop_serve(&mut self) -> Result<()> {
        if let Some(mut serve) = self.serve.take() {
            serve.terminate(END_LIMIT)?;
        }
        Ok(())
    }

    /// `shale down`: the node too. Waits until both are gone.
    pub fn down(&mut self) -> Result<()> {
        let node = self.node_pid()?;
        run(&mut self.down_command()?)?;
        if let Some(mut serve) = self.serve.take() {
            serve.wait(END_LIMIT)?;
        }
        wait_gone(node, END_LIMIT)
    }

    fn down_command(&self) -> Result<Command> {
        let mut command = self.program()?;
        command.arg("down").arg("--data").arg(&self.data);
        command.env_remove("SHALE_URL").env_remove("SHALE_TOKEN");
        Ok(command)
    }
}

impl Drop for Shale {
    fn drop(&mut self) {
        // The clean way first: a killed node leaves the logs of its volumes in memory for a successor
        // that never comes.
        let asked = self.down_command().and_then(|mut command| {
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            Owned::spawn(&mut command)?.wait(END_LIMIT)
        });
        // serve before the node, or it starts the node again.
        drop(self.serve.take());
        if let Ok(node) = self.node_pid() {
            if asked.is_ok_and(|status| status.success()) && wait_gone(node, END_LIMIT).is_ok() {
                return;
            }
            drop(crate::process::signal(node, crate::process::Signal::KILL));
            drop(wait_gone(node, END_LIMIT));
        }
    }
}

/// How long a snapshot held its guests' requests, as its task tells it; milliseconds.
pub fn pause_ms(answer: &Value) -> Option<f64> {
    let inside = || answer.as_object()?.values().find_map(pause_ms);
    answer.get("pauseMs").and_then(Value::as_f64).or_else(inside)
}

/// Runs a command to its end, whatever comes of it.
pub fn said(command: &mut Command) -> Result<Said> {
    let output = command.stdin(Stdio::null()).output()?;
    Ok(Said {
        code: output.status.code().context("the CLI was ended by a signal")?,
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// A loopback port that was free a moment ago.
pub fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
