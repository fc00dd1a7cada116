//! Who takes part: Shale, and qemu-storage-daemon with three image formats. Each serves one disk on a
//! unix socket; the client sees no difference. And the bare file, for what the storage itself gives.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use e2e::process::{Owned, poll_until, run};
use e2e::{Shale, need};

use crate::fio;

/// An image format of qemu-storage-daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Raw,
    Vpc,
    Qcow2,
}

impl Format {
    pub(crate) const ALL: [Self; 3] = [Self::Raw, Self::Vpc, Self::Qcow2];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Vpc => "vpc",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// Whether the image's file system takes direct I/O; tmpfs is measured through the page cache that
/// it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cache {
    Direct,
    Buffered,
}

/// A running server with one disk.
#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) uri: String,
    keep: Keep,
}

#[derive(Debug)]
enum Keep {
    Daemon {
        _process: Owned,
    },
    /// The volume's name; the system belongs to the caller.
    Volume(String),
    /// A file that fio opens itself.
    File,
}

/// No server at all: what the storage below gives. Its whole range is written first, or a file of holes
/// would be measured.
pub(crate) fn bare_file(dir: &Path) -> Result<Served> {
    let path = dir.join("disk.file");
    std::fs::File::create_new(&path)?;
    Ok(Served { uri: format!("{}{}", fio::BARE, path.display()), keep: Keep::File })
}

/// qemu-storage-daemon on a new image.
pub(crate) fn daemon(format: Format, dir: &Path, size: u64, cache: Cache) -> Result<Served> {
    let image = dir.join(format!("disk.{}", format.name()));
    create_image(format, &image, size, None)?;
    serve_image(format, &image, cache)
}

/// qemu-storage-daemon with an image as its node `disk`.
fn storage_daemon(format: Format, image: &Path, cache: Cache, exports: &[&str]) -> Result<Owned> {
    let direct = match cache {
        Cache::Direct => "on",
        Cache::Buffered => "off",
    };
    let file = format!(
        "driver=file,node-name=file,filename={},cache.direct={direct},aio=io_uring,discard=unmap",
        image.display()
    );
    let disk = format!(
        "driver={},node-name=disk,file=file,cache.direct={direct},discard=unmap",
        format.name()
    );
    Owned::spawn(
        Command::new(need::tool("/usr/bin/qemu-storage-daemon")?)
            .args(["--blockdev", &file, "--blockdev", &disk])
            .args(exports)
            .stdin(Stdio::null())
            // It says so whenever a client just closes its socket, as fio does.
            .stderr(Stdio::null()),
    )
}

pub(crate) fn create_image(
    format: Format,
    image: &Path,
    size: u64,
    backing: Option<&Path>,
) -> Result<()> {
    let mut create = Command::new(need::tool("/usr/bin/qemu-img")?);
    create.args(["create", "-q", "-f", format.name()]);
    if let Some(backing) = backing {
        create.args(["-F", format.name(), "-b"]).arg(backing);
    }
    run(create.arg(image).arg(size.to_string())).map(drop)
}

/// qemu-storage-daemon on an image that is there.
pub(crate) fn serve_image(format: Format, image: &Path, cache: Cache) -> Result<Served> {
    let socket = image.with_extension(format!("{}.sock", format.name()));
    drop(std::fs::remove_file(&socket));
    let server = format!("addr.type=unix,addr.path={}", socket.display());
    let export = "type=nbd,id=export,node-name=disk,name=disk,writable=on";
    let arguments = ["--nbd-server", &server, "--export", export];
    let process = storage_daemon(format, image, cache, &arguments)?;
    poll_until(
        Duration::from_secs(10),
        || Ok(std::os::unix::net::UnixStream::connect(&socket).ok().map(drop)),
        || format!("qemu-storage-daemon to serve {}", image.display()),
    )?;
    let uri = format!("nbd+unix:///disk?socket={}", socket.display());
    Ok(Served { uri, keep: Keep::Daemon { _process: process } })
}

/// A disk behind a vhost-user socket.
#[derive(Debug)]
pub(crate) struct Vhost {
    pub(crate) socket: PathBuf,
    /// The process that serves it.
    pub(crate) server: u32,
    _process: Option<Owned>,
}

/// qemu-storage-daemon with a vhost-user-blk device on a new raw image.
pub(crate) fn vhost_daemon(dir: &Path, size: u64, cache: Cache) -> Result<Vhost> {
    let image = dir.join("disk.raw");
    create_image(Format::Raw, &image, size, None)?;
    let socket = dir.join("raw.vhost");
    let export = format!(
        "type=vhost-user-blk,id=export,node-name=disk,addr.type=unix,addr.path={},writable=on,num-queues=1",
        socket.display()
    );
    let process = storage_daemon(Format::Raw, &image, cache, &["--export", &export])?;
    poll_until(
        Duration::from_secs(10),
        // it takes one connection at a time, and a look would be one
        || Ok(socket.exists().then_some(())),
        || "qemu-storage-daemon to listen".to_owned(),
    )?;
    Ok(Vhost { socket, server: process.pid(), _process: Some(process) })
}

/// Connects a volume over vhost-user.
pub(crate) fn vhost_volume(shale: &Shale, name: &str) -> Result<Vhost> {
    let e2e::qemu::Disk::VhostUser { socket } = shale.connect_vhost_user(name)? else {
        anyhow::bail!("{name} is not connected over vhost-user");
    };
    Ok(Vhost { socket, server: shale.node_pid()?, _process: None })
}

/// Shale with a datastore inside `dir`; sockets stay in the short path of its own directory.
pub(crate) fn shale(dir: &Path) -> Result<Shale> {
    let shale = Shale::start()?;
    let store = dir.join(STORE);
    std::fs::create_dir(&store)?;
    shale.cli(&["datastore", "create", STORE, "--dir", &store.display().to_string()])?;
    Ok(shale)
}

pub(crate) const STORE: &str = "bench";

/// A new connected thin volume.
pub(crate) fn volume(shale: &Shale, name: &str, size: u64) -> Result<Served> {
    shale.volume(name, STORE, &size.to_string())?;
    connect(shale, name)
}

pub(crate) fn connect(shale: &Shale, name: &str) -> Result<Served> {
    let uri = shale.connect(name)?.uri;
    Ok(Served { uri, keep: Keep::Volume(name.to_owned()) })
}

impl Served {
    /// Ends the server; of Shale, disconnects and deletes the volume.
    pub(crate) fn remove(self, shale: Option<&Shale>) -> Result<()> {
        if let Keep::Volume(name) = &self.keep {
            let shale = shale.context("a volume needs its system")?;
            shale.disconnect(name)?;
            shale.cli(&["volume", "delete", name, "--yes"])?;
        }
        Ok(())
    }
}

/// The bytes that a folder takes on its file system.
pub(crate) fn taken(dir: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let mut sum = 0;
    let mut folders: Vec<PathBuf> = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            let meta = entry.metadata()?;
            if meta.is_dir() {
                folders.push(entry.path());
            }
            sum += meta.blocks() * 512;
        }
    }
    Ok(sum)
}
