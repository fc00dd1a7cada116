//! A machine of its own for one system: a disk whose power can be cut, memory that goes with it, and a
//! boot id; all of them seen by the system alone, in a mount namespace.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::need;
use crate::process::{Owned, Signal, lines, poll_until, run, signal, text, wait_gone};
use crate::shale::{binary, free_port};

const LIMIT: Duration = Duration::from_secs(60);
/// What the system is started with, in its namespace.
const START: &str = "mount --bind \"$1\" /proc/sys/kernel/random/boot_id && \
                     mount --bind \"$2\" /dev/shm && shift 2 && exec \"$@\"";

/// The machine; everything of it goes when it is dropped.
#[derive(Debug)]
pub(super) struct Machine {
    home: TempDir,
    /// Where the disk's image is: in memory where there is room for it.
    image: TempDir,
    /// Memory that outlives processes.
    shm: TempDir,
    boots: u64,
    url: String,
    serve: Option<Owned>,
    output: Option<Receiver<String>>,
    mounted: bool,
}

impl Machine {
    pub(super) fn new(disk: u64) -> Result<Self> {
        need::root()?;
        let home = tempfile::Builder::new().prefix("shale-model-").tempdir()?;
        let shm = tempfile::Builder::new().prefix("shale-model-").tempdir_in("/dev/shm")?;
        let image = image_dir(disk)?;
        let file = image.path().join("disk");
        File::create(&file)?.set_len(disk)?;
        run(Command::new(need::tool("/sbin/mkfs.ext4")?).args(["-q", "-F", "-m", "0"]).arg(&file))?;
        std::fs::create_dir(home.path().join("mnt"))?;
        let mut machine = Self {
            home,
            image,
            shm,
            boots: 0,
            url: String::new(),
            serve: None,
            output: None,
            mounted: false,
        };
        machine.mount()?;
        std::fs::create_dir(machine.store())?;
        machine.boot()?;
        machine.serve()?;
        Ok(machine)
    }

    /// Where the datastore is.
    pub(super) fn store(&self) -> PathBuf {
        self.home.path().join("mnt/store")
    }

    /// How many errors of its disk the file system noted; a cut is none.
    pub(super) fn disk_errors(&self) -> Result<u64> {
        let loops =
            text(Command::new("losetup").args(["-n", "-O", "NAME", "-j"]).arg(self.disk()))?;
        let Some(name) = loops.trim().strip_prefix("/dev/") else { return Ok(0) };
        let noted = std::fs::read_to_string(format!("/sys/fs/ext4/{name}/errors_count"))?;
        Ok(noted.trim().parse()?)
    }

    /// A place for files that no crash touches.
    pub(super) fn outside(&self) -> &Path {
        self.home.path()
    }

    fn disk(&self) -> PathBuf {
        self.image.path().join("disk")
    }

    fn data(&self) -> PathBuf {
        self.home.path().join("mnt/data")
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    pub(super) fn token(&self) -> Result<String> {
        let text = std::fs::read_to_string(self.data().join("admin.token"))?;
        Ok(text.trim().to_owned())
    }

    /// The last lines that server and node wrote; for failure texts.
    pub(super) fn log(&self) -> String {
        let all = std::fs::read_to_string(self.home.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = all.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    /// Takes disk and log out of what goes with this, for whoever looks for the cause of a difference.
    pub(super) fn keep_in(&mut self, dir: &Path) -> Result<()> {
        self.kill_all()?;
        if self.mounted {
            self.unmount()?;
        }
        std::fs::create_dir_all(dir)?;
        for path in [self.disk(), self.home.path().join("log")] {
            let copied =
                Command::new("cp").args(["--sparse=always"]).arg(&path).arg(dir).status()?;
            ensure!(copied.success(), "{} is not kept", path.display());
        }
        Ok(())
    }

    fn mount(&mut self) -> Result<()> {
        let (image, mnt) = (self.disk(), self.home.path().join("mnt"));
        run(Command::new(need::tool("/bin/mount")?).args(["-o", "loop"]).arg(image).arg(mnt))
            .context("the model mounts a file system by a loop device")?;
        self.mounted = true;
        Ok(())
    }

    fn boot(&mut self) -> Result<()> {
        self.boots += 1;
        let id = format!("00000000-0000-4000-8000-{:012}\n", self.boots);
        Ok(std::fs::write(self.home.path().join("boot"), id)?)
    }

    /// Starts the server, which starts a node where none runs, and waits until it answers.
    pub(super) fn serve(&mut self) -> Result<()> {
        let listen = format!("127.0.0.1:{}", free_port()?);
        let log = File::options().create(true).append(true).open(self.home.path().join("log"))?;
        let mut command = Command::new(need::tool("/usr/bin/unshare")?);
        command
            .args(["--mount", "--propagation", "private", "--", "/bin/sh", "-c", START, "sh"])
            .arg(self.home.path().join("boot"))
            .arg(self.shm.path())
            .arg(binary()?)
            .args(["serve", "--listen", &listen, "--data"])
            .arg(self.data())
            .env_remove("SHALE_URL")
            .env_remove("SHALE_TOKEN")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log);
        let mut serve = Owned::spawn(&mut command)?;
        let output = lines(serve.child().stdout.take().context("serve has no output")?);
        self.serve = Some(serve);
        self.url = format!("http://{listen}");
        let end = Instant::now() + LIMIT;
        loop {
            match output.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) if line.contains("http://") => break,
                Ok(_) => {}
                Err(why) => bail!("shale serve does not come up ({why}): {}", self.log()),
            }
        }
        self.output = Some(output);
        Ok(())
    }

    /// Processes of this system, by what their command line names.
    fn processes(&self) -> Result<Vec<(u32, String)>> {
        let home = self.home.path().display().to_string();
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc")?.filter_map(Result::ok) {
            let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
            let Some(pid) = pid else { continue };
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if line.contains(&home) && pid != std::process::id() {
                found.push((pid, line));
            }
        }
        Ok(found)
    }

    fn node_pid(&self) -> Result<Option<u32>> {
        let all = self.processes()?;
        Ok(all.iter().find(|(_, line)| line.contains(" node ")).map(|(pid, _)| *pid))
    }

    /// Kills the node; the server starts another.
    pub(super) fn kill_node(&self) -> Result<()> {
        if let Some(pid) = self.node_pid()? {
            // it may have ended by itself
            drop(signal(pid, Signal::KILL));
            wait_gone(pid, LIMIT)?;
        }
        Ok(())
    }

    /// Kills the server; the node and its guests go on.
    pub(super) fn kill_serve(&mut self) -> Result<()> {
        if let Some(mut serve) = self.serve.take() {
            serve.kill()?;
        }
        Ok(())
    }

    /// Kills every process of the system.
    pub(super) fn kill_all(&mut self) -> Result<()> {
        self.kill_serve()?;
        loop {
            let all = self.processes()?;
            let Some((pid, _)) = all.first() else { return Ok(()) };
            drop(signal(*pid, Signal::KILL));
            wait_gone(*pid, LIMIT)?;
        }
    }

    /// Cuts the power: what the file system has not written is gone, and memory is empty. The machine
    /// is booted again; the system is not started. `now` is called right before the moment.
    ///
    /// For the processes it is an error of the disk, and they live on for a moment. A machine without
    /// power answers nobody, so what they answer then is no promise; and it need not be true: ext4 tells
    /// a caller of `fdatasync` who comes late that the transaction it threw away is not open any more.
    pub(super) fn cut(&mut self, now: impl FnOnce()) -> Result<()> {
        // waits for its command, so that little time is between it and `now`
        let mut shutdown = Command::new(need::tool("/usr/sbin/xfs_io")?)
            .arg("-x")
            .arg(self.home.path().join("mnt"))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()?;
        let mut commands = shutdown.stdin.take().context("xfs_io has no input")?;
        now();
        // at once, and without writing its journal
        commands.write_all(b"shutdown\n")?;
        drop(commands);
        ensure!(shutdown.wait()?.success(), "the file system does not shut down");
        self.kill_all()?;
        self.unmount()?;
        for entry in std::fs::read_dir(self.shm.path())? {
            let path = entry?.path();
            if path.is_dir() { std::fs::remove_dir_all(path)? } else { std::fs::remove_file(path)? }
        }
        self.mount()?;
        self.boot()
    }

    fn unmount(&mut self) -> Result<()> {
        let mnt = self.home.path().join("mnt");
        run(Command::new("umount").arg(&mnt))?;
        self.mounted = false;
        // namespaces of the dead processes may hold it for a moment: two mounts of one image would
        // be the end of it
        let image = self.disk();
        let free = || {
            let held = text(Command::new("losetup").arg("-j").arg(&image))?;
            Ok(held.is_empty().then_some(()))
        };
        poll_until(LIMIT, free, || "the loop device to be free".to_owned())
    }

    /// Ends the system in good order; nothing of it may be left.
    pub(super) fn down(&mut self) -> Result<()> {
        let mut down = Command::new(binary()?);
        run(down.arg("down").arg("--data").arg(self.data()))?;
        if let Some(mut serve) = self.serve.take() {
            serve.wait(LIMIT)?;
        }
        let left = self.processes()?;
        ensure!(left.is_empty(), "processes are left: {left:?}");
        let transfers = std::fs::read_dir(self.data().join("run/transfers"))?.count();
        ensure!(transfers == 0, "{transfers} sockets of transfers are left");
        Ok(())
    }
}

/// A folder for the image of a disk of `size` bytes.
fn image_dir(size: u64) -> Result<TempDir> {
    let memory = Path::new("/dev/shm");
    let free = text(Command::new("df").args(["--output=avail", "-B1"]).arg(memory))?;
    let free: u64 = free.lines().last().unwrap_or("").trim().parse().unwrap_or(0);
    let parent = if free > size { memory.to_owned() } else { std::env::temp_dir() };
    Ok(tempfile::Builder::new().prefix("shale-model-").tempdir_in(parent)?)
}

impl Drop for Machine {
    fn drop(&mut self) {
        drop(self.kill_all());
        if self.mounted {
            drop(self.unmount());
        }
    }
}
