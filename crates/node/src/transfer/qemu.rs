//! Formats that QEMU knows: its tools serve such a file over NBD, on a private socket, to this node
//! alone. So a hostile image is parsed in a process of its own, holes and progress are seen as with
//! any other source, and nothing but blocks is copied through here.
//!
//! The file is handed over open, as the tool's standard input: the tool opens no path that could have
//! been changed since it was checked. Its driver is named, never probed, and backing files are cut off.
//! The tool ends with our connection, also after `kill -9`; `setpriv` covers the time before it.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use catalog::{CatalogError, Code, Result};
use image::{Qcow2, Sniffed, Vmdk};
use io::Ring;

use super::about;

/// How long a tool may take to open a file, or to close one.
const LIMIT: Duration = Duration::from_secs(120);
/// The tool offers no event for its socket that could be awaited.
const POLL: Duration = Duration::from_millis(5);
/// Longest message of a tool that is passed on.
const MAX_WORDS: u64 = 2000;

/// A format that is left to QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Driver {
    Qcow2,
    Vmdk,
    Vhdx,
    Vdi,
}

impl Driver {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
            Self::Vhdx => "vhdx",
            Self::Vdi => "vdi",
        }
    }

    /// The driver of a format that was told by the file's bytes; refuses what would read other files,
    /// or what cannot be read.
    pub(crate) fn of(path: &Path, sniffed: &Sniffed, allow_backing: bool) -> Result<Option<Self>> {
        let refused = |problem: &str, hint: &str| {
            Err(about(path.display(), Code::Unsupported, problem).hint(hint))
        };
        match sniffed {
            Sniffed::Qcow2(Qcow2 { data_file: true, .. }) => refused(
                "its data stands in another file, which the image names",
                "convert it with qemu-img into an image that holds its data, then import that",
            ),
            Sniffed::Qcow2(Qcow2 { encrypted: true, .. }) => {
                refused("it is encrypted", "convert it with qemu-img, which asks for the secret")
            }
            Sniffed::Qcow2(Qcow2 { backing: true, .. }) if !allow_backing => {
                let problem = "it stands on a backing file, which the image names; that may be any \
                               file of this host";
                refused(
                    problem,
                    "flatten it with `qemu-img convert`, or allow it with --allow-backing if you trust \
                     who made it",
                )
            }
            Sniffed::Qcow2(_) => Ok(Some(Self::Qcow2)),
            Sniffed::Vmdk(Vmdk::Whole) => Ok(Some(Self::Vmdk)),
            Sniffed::Vmdk(Vmdk::Extents) => refused(
                "it is a descriptor that names other files as its extents",
                "convert it with `qemu-img convert -O vmdk -o subformat=monolithicSparse` first",
            ),
            Sniffed::Vmdk(Vmdk::Child) => refused(
                "it stands on another VMDK",
                "consolidate it where it was made, then import the result",
            ),
            Sniffed::Vhdx => Ok(Some(Self::Vhdx)),
            Sniffed::Vdi => Ok(Some(Self::Vdi)),
            Sniffed::Vhd { .. } | Sniffed::Ambiguous | Sniffed::Other(_) | Sniffed::Unknown => {
                Ok(None)
            }
        }
    }
}

/// A tool that serves one file to us. Dropped, it is killed.
#[derive(Debug)]
pub(crate) struct Served {
    child: Child,
    pub(crate) socket: PathBuf,
    what: String,
}

/// How a file is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Serving {
    pub(crate) driver: Driver,
    pub(crate) write: bool,
    pub(crate) backing: bool,
}

/// Serves `file`. The control thread starts the tool itself: `setpriv` ends it with that thread.
pub(crate) async fn serve(
    ring: &Ring,
    what: &Path,
    file: File,
    how: Serving,
    socket: PathBuf,
) -> Result<Served> {
    let mut command = command("qemu-nbd")?;
    // A new image counts for nothing before we have made it durable as a whole, so the tool need not
    // order its writes: some formats would flush three times for each of their blocks.
    command.arg(if how.write { "--cache=unsafe" } else { "--read-only" });
    let backing = if how.backing { "" } else { r#","backing":null"# };
    // Where the image may name others, what it names is relative to its own path.
    let (input, name) = match how.backing {
        true => (Stdio::null(), serde_json::Value::from(what.to_string_lossy()).to_string()),
        false => (Stdio::from(file), r#""/dev/fd/0""#.to_owned()),
    };
    let driver = how.driver.name();
    command.arg("--socket").arg(&socket).arg(format!(
        r#"json:{{"driver":"{driver}","file":{{"driver":"file","filename":{name}}}{backing}}}"#
    ));
    let child = command.stdin(input).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let child = child.map_err(|error| cannot_run("qemu-nbd", &error))?;
    let what = what.display().to_string();
    let mut served = Served { child, socket, what };
    let until = Instant::now() + LIMIT;
    loop {
        // Only bound when it listens: a connection that is made is one that is served, so the socket
        // is only looked at.
        if listens(&served.socket) {
            return Ok(served);
        }
        if let Ok(Some(_)) = served.child.try_wait() {
            return Err(served.failed("cannot read it"));
        }
        if Instant::now() > until {
            return Err(about(&served.what, Code::Io, "qemu-nbd does not open it"));
        }
        ring.local().sleep(POLL).await;
    }
}

/// Whether somebody listens at a socket, by the kernel's list: a connection that is tried would be the
/// one that the tool serves.
fn listens(socket: &Path) -> bool {
    let path = socket.to_string_lossy();
    let listed = std::fs::read_to_string("/proc/net/unix").unwrap_or_default();
    // flags 00010000: it accepts connections
    let line = |line: &str| line.ends_with(&*path) && line.contains(" 00010000 ");
    listed.lines().any(line)
}

impl Served {
    /// Waits until the tool has closed the file, after our connection has ended.
    pub(crate) async fn ended(mut self, ring: &Ring) -> Result<()> {
        let until = Instant::now() + LIMIT;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(None) if Instant::now() < until => ring.local().sleep(POLL).await,
                Ok(_) | Err(_) => return Err(self.failed("cannot write it")),
            }
        }
    }

    /// Why the tool gave up on a connection, where it says so: it may listen before it has looked at the
    /// file.
    pub(crate) async fn explain(mut self, ring: &Ring, error: CatalogError) -> CatalogError {
        let until = Instant::now() + LIMIT;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) if !status.success() => return self.failed("cannot use it"),
                Ok(None) if Instant::now() < until => ring.local().sleep(POLL).await,
                Ok(_) | Err(_) => return error,
            }
        }
    }

    fn failed(&mut self, doing: &str) -> CatalogError {
        drop(self.child.kill());
        let words = self.child.stderr.take().map(words).unwrap_or_default();
        let code = if words.contains("No space left") { Code::NoSpace } else { Code::Corrupt };
        about(&self.what, code, &format!("qemu-nbd {doing}: {words}"))
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // Gone already is what we want.
        drop(self.child.kill());
        drop(self.child.wait());
        drop(std::fs::remove_file(&self.socket));
    }
}

fn words(from: impl std::io::Read) -> String {
    let mut text = String::new();
    drop(from.take(MAX_WORDS).read_to_string(&mut text));
    let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.join("; ")
}

/// The block size of a new VHDX: the smallest, as each block is stored whole, but so that its table,
/// which QEMU holds in memory and writes whole, stays under 32 MiB.
fn vhdx_block(size: u64) -> u64 {
    const MOST_BLOCKS: u64 = 4 << 20;
    const SMALLEST: u64 = 1 << 20;
    size.div_ceil(MOST_BLOCKS).next_power_of_two().max(SMALLEST)
}

/// Makes an empty image over the file at `path`.
pub(crate) async fn create(ring: &Ring, path: &Path, driver: Driver, size: u64) -> Result<()> {
    let mut command = command("qemu-img")?;
    command.args(["create", "-q", "-f", driver.name()]);
    match driver {
        Driver::Vmdk => drop(command.args(["-o", "subformat=monolithicSparse"])),
        Driver::Vhdx => drop(command.arg("-o").arg(format!("block_size={}", vhdx_block(size)))),
        // neither has a grain to choose that matters: 64 KiB, and always 1 MiB
        Driver::Qcow2 | Driver::Vdi => {}
    }
    command.arg(path).arg(size.to_string());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let output = ring.run_blocking(move || command.output()).await;
    let output = output.map_err(|error| cannot_run("qemu-img", &error))?;
    if output.status.success() {
        return Ok(());
    }
    let words = words(&*output.stderr);
    let code = if words.contains("No space left") { Code::NoSpace } else { Code::Unsupported };
    Err(about(path.display(), code, &format!("qemu-img cannot make it: {words}")))
}

/// A tool, which ends with the thread that starts it where the system has `setpriv`.
fn command(tool: &str) -> Result<Command> {
    let Some(path) = find(tool) else {
        return Err(CatalogError::new(Code::Unsupported, format!("{tool} is not installed"))
            .hint("this format is left to QEMU: apt-get install qemu-utils"));
    };
    let mut command = match find("setpriv") {
        Some(setpriv) => {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", "KILL", "--"]).arg(path);
            command
        }
        None => Command::new(path),
    };
    command.env("LC_ALL", "C");
    Ok(command)
}

/// The program `tool` in PATH.
pub(crate) fn find(tool: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| OsString::from("/usr/bin:/bin"));
    std::env::split_paths(&path).map(|dir| dir.join(tool)).find(|file| file.is_file())
}

fn cannot_run(tool: &str, error: &std::io::Error) -> CatalogError {
    CatalogError::new(Code::Io, format!("{tool} cannot be started: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_to_other_files_are_refused() {
        let path = Path::new("/x");
        let of = |sniffed| Driver::of(path, &sniffed, false).map_err(|error| error.code);
        let qcow2 =
            |backing, data_file, encrypted| Sniffed::Qcow2(Qcow2 { backing, data_file, encrypted });
        assert_eq!(of(qcow2(false, false, false)), Ok(Some(Driver::Qcow2)));
        for refused in [
            qcow2(true, false, false),
            qcow2(false, true, false),
            qcow2(false, false, true),
            Sniffed::Vmdk(Vmdk::Extents),
            Sniffed::Vmdk(Vmdk::Child),
        ] {
            assert_eq!(of(refused), Err(Code::Unsupported));
        }
        let allowed = Driver::of(path, &qcow2(true, false, false), true).expect("it is allowed");
        assert_eq!(allowed, Some(Driver::Qcow2));
        assert!(Driver::of(path, &qcow2(true, true, false), true).is_err(), "never a data file");
    }

    #[test]
    fn the_blocks_of_a_vhdx_are_small_and_not_too_many() {
        assert_eq!(vhdx_block(1), 1 << 20);
        assert_eq!(vhdx_block(4 << 40), 1 << 20);
        assert_eq!(vhdx_block((4 << 40) + 1), 2 << 20);
        assert_eq!(vhdx_block(64 << 40), 16 << 20);
    }

    #[test]
    fn a_socket_is_seen_to_listen() {
        let dir = tempfile::tempdir().expect("a directory");
        let socket = dir.path().join("x.sock");
        assert!(!listens(&socket));
        let listener = std::os::unix::net::UnixListener::bind(&socket).expect("it binds");
        assert!(listens(&socket));
        drop((listener, std::os::unix::net::UnixStream::connect(&socket)));
        assert!(!listens(&socket));
    }
}
