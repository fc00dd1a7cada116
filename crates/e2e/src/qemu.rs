//! One running QEMU guest with the disk of `guest`, driven over its serial console.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::process::{Owned, lines_into, target_dir};
use crate::{guest, need};

/// Bounds a failure; a healthy guest under TCG on a loaded machine boots in a fraction of it.
const BOOT_LIMIT: Duration = Duration::from_secs(180);
const COMMAND_LIMIT: Duration = Duration::from_secs(300);
/// With KVM a boot takes about a second.
const KVM_LIMIT: Duration = Duration::from_secs(30);
/// Goes before every line of QEMU's own, which share a channel with the guest's.
const QEMU_SAYS: &str = "qemu: ";

/// Where the guest's disk comes from.
#[derive(Clone, Debug)]
pub enum Disk {
    /// A raw image file.
    Raw(PathBuf),
    /// An NBD export behind a unix socket.
    Nbd { socket: PathBuf, export: String },
    /// A vhost-user-blk device behind a unix socket. Its guest does not boot from it (see `guest`).
    VhostUser { socket: PathBuf },
}

/// The guest's memory.
const MEMORY: &str = "256M";

impl Disk {
    /// QEMU's arguments for it.
    fn arguments(&self) -> Result<Vec<String>> {
        // In QEMU's option syntax a comma inside a value is written twice.
        let quoted = |path: &Path| path.display().to_string().replace(',', ",,");
        let node = match self {
            Self::Raw(path) => {
                format!("driver=raw,node-name=disk,file.driver=file,file.filename={}", quoted(path))
            }
            // reconnect-delay: requests wait for the server to come back instead of failing.
            Self::Nbd { socket, export } => format!(
                "driver=nbd,node-name=disk,server.type=unix,server.path={},export={export},\
                 reconnect-delay=120,discard=unmap",
                quoted(socket)
            ),
            Self::VhostUser { socket } => {
                // reconnect: the device waits for the server to come back
                let [kernel, initrd] = guest::kernel()?;
                return Ok([
                    "-kernel".to_owned(),
                    kernel.display().to_string(),
                    "-initrd".to_owned(),
                    initrd.display().to_string(),
                    "-append".to_owned(),
                    "console=ttyS0 quiet loglevel=3 panic=-1 shale.live".to_owned(),
                    "-object".to_owned(),
                    format!("memory-backend-memfd,id=mem,share=on,size={MEMORY}"),
                    "-machine".to_owned(),
                    "memory-backend=mem".to_owned(),
                    "-chardev".to_owned(),
                    format!("socket,id=disk,path={},reconnect-ms=100", quoted(socket)),
                    "-device".to_owned(),
                    "vhost-user-blk-pci,chardev=disk,num-queues=2".to_owned(),
                ]
                .into());
            }
        };
        Ok(["-blockdev", &node, "-device", "virtio-blk-pci,drive=disk,bootindex=1"]
            .map(str::to_owned)
            .into())
    }
}

/// A guest that has booted and obeys. Ends when dropped.
#[derive(Debug)]
pub struct Guest {
    qemu: Owned,
    console: ChildStdin,
    lines: Receiver<String>,
    commands: u32,
    /// From the start of QEMU to the first word of the guest's init.
    pub boot_time: Duration,
}

impl Guest {
    /// Starts QEMU and waits until the guest's init is there.
    pub fn boot(disk: &Disk) -> Result<Self> {
        Self::boot_with(disk, accelerator(), BOOT_LIMIT)
    }

    fn boot_with(disk: &Disk, accelerator: &str, limit: Duration) -> Result<Self> {
        let begin = Instant::now();
        let mut qemu = Owned::spawn(
            Command::new(need::tool("/usr/bin/qemu-system-x86_64")?)
                .args(["-machine", "pc", "-accel", accelerator, "-m", MEMORY, "-smp", "1"])
                .args(["-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"])
                .args(disk.arguments()?)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped()),
        )?;
        let (sender, lines) = mpsc::channel();
        let console = qemu.child().stdin.take().context("QEMU has no input")?;
        let errors = qemu.child().stderr.take().context("QEMU has no error output")?;
        lines_into(errors, sender.clone(), QEMU_SAYS);
        lines_into(qemu.child().stdout.take().context("QEMU has no output")?, sender, "");
        let mut guest = Self { qemu, console, lines, commands: 0, boot_time: Duration::ZERO };
        guest.until("@@ready", limit).context("the guest did not boot")?;
        guest.boot_time = begin.elapsed();
        Ok(guest)
    }

    pub fn pid(&self) -> u32 {
        self.qemu.pid()
    }

    /// Runs a shell command line in the guest; fails when its status is not 0.
    pub fn run(&mut self, line: &str) -> Result<String> {
        let number = self.start(line)?;
        self.finish(number).with_context(|| format!("in the guest: {line}"))
    }

    /// Sends a command line and returns at once; [`Guest::finish`] waits for it.
    pub fn start(&mut self, line: &str) -> Result<u32> {
        assert!(!line.contains('\n'), "one line at a time: {line:?}");
        self.commands += 1;
        writeln!(self.console, "{} {line}", self.commands)
            .context("the guest's console is closed")?;
        self.console.flush()?;
        Ok(self.commands)
    }

    /// Waits for a started command; its output, when its status is 0.
    pub fn finish(&mut self, number: u32) -> Result<String> {
        let mark = format!("@@done {number} ");
        let (output, last) = self.until(&mark, COMMAND_LIMIT)?;
        let status = last.rsplit(' ').next().unwrap_or("?");
        if status != "0" {
            bail!("status {status}: {output}");
        }
        Ok(output)
    }

    /// Turns the guest off the clean way and waits for QEMU to end.
    pub fn power_off(mut self) -> Result<()> {
        self.start("sync; umount /data; umount -r / ; poweroff -f")?;
        let status = self.qemu.wait(Duration::from_secs(60))?;
        if !status.success() {
            bail!("QEMU ended with {status}");
        }
        Ok(())
    }

    /// Pulls the plug.
    pub fn kill(mut self) -> Result<()> {
        self.qemu.kill().map(drop)
    }

    /// Reads the console up to a line that starts with `mark`: (what came before, that line).
    fn until(&mut self, mark: &str, limit: Duration) -> Result<(String, String)> {
        let end = Instant::now() + limit;
        let mut text = String::new();
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) if line.starts_with(mark) => return Ok((text.trim().to_owned(), line)),
                // QEMU stops such a guest and stays: nothing more would come.
                Ok(line) if line.starts_with(QEMU_SAYS) && line.contains("internal error") => {
                    bail!("{line}; console: {text}")
                }
                Ok(line) => writeln!(text, "{line}")?,
                Err(RecvTimeoutError::Timeout) => {
                    bail!("no {mark:?} in {limit:?}; console: {text}")
                }
                Err(RecvTimeoutError::Disconnected) => bail!("QEMU ended; console: {text}"),
            }
        }
    }
}

/// QEMU's accelerator here: `kvm` where a guest really runs with it, else `tcg`.
/// `SHALE_ACCEL` forces one.
pub fn accelerator() -> &'static str {
    static ACCELERATOR: OnceLock<&str> = OnceLock::new();
    ACCELERATOR.get_or_init(|| match std::env::var("SHALE_ACCEL").as_deref() {
        Ok("kvm") => "kvm",
        Ok("tcg") => "tcg",
        _ if kvm_works().unwrap_or(false) => "kvm",
        _ => "tcg",
    })
}

/// /dev/kvm may open and run a few instructions and still fail in a kernel (nested virtualization),
/// so a whole guest is booted once. The answer is kept until the machine boots again.
fn kvm_works() -> Result<bool> {
    if !Path::new("/dev/kvm").exists() {
        return Ok(false);
    }
    let image = guest::disk_image()?;
    let lock = File::create(target_dir().join("guest/accelerator.lock"))?;
    lock.lock()?;
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let kept = target_dir().join("guest/accelerator");
    if let Some((of, answer)) = fs::read_to_string(&kept).unwrap_or_default().split_once(' ')
        && of == boot.trim()
    {
        return Ok(answer == "kvm");
    }
    let disk = tempfile::NamedTempFile::new()?;
    fs::copy(image, disk.path())?;
    let works = Guest::boot_with(&Disk::Raw(disk.path().into()), "kvm", KVM_LIMIT).is_ok();
    fs::write(kept, format!("{} {}", boot.trim(), if works { "kvm" } else { "tcg" }))?;
    Ok(works)
}
