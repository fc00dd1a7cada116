//! A file system that is new for each run, for the runs that allocate: everybody starts on the same
//! empty one, and nobody pays for the removal of what the run before has left.
//!
//! The backing file is written once, in full, so that a write costs the disk below the same whether
//! the block was met in an earlier run or not.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use e2e::need;
use e2e::process::{poll_until, run, text};

/// A loop device with direct I/O. Detached when dropped.
#[derive(Debug)]
pub(crate) struct BlankDisk {
    device: String,
    dir: PathBuf,
}

/// The device with an empty ext4 file system, mounted. [`Mounted::unmount`] says what went wrong;
/// dropped, it is only tried.
#[derive(Debug)]
pub(crate) struct Mounted {
    dir: PathBuf,
    done: bool,
}

impl BlankDisk {
    /// With its backing file and its mount point in `parent`, which must outlive it.
    pub(crate) fn new(parent: &Path, bytes: u64) -> Result<Self> {
        need::root()?;
        let image = parent.join("blank.img");
        let mut file = std::fs::File::create_new(&image)?;
        let piece = vec![0; 1 << 20];
        for _ in 0..bytes >> 20 {
            file.write_all(&piece)?;
        }
        file.sync_all()?;
        let device = text(
            Command::new(need::tool("/sbin/losetup")?)
                .args(["--find", "--show", "--direct-io=on"])
                .arg(&image),
        )
        .context("the first-touch case needs a loop device")?;
        let disk = Self { device, dir: parent.join("blank") };
        std::fs::create_dir(&disk.dir)?;
        Ok(disk)
    }

    pub(crate) fn format(&self) -> Result<Mounted> {
        // Discards would give the backing file's blocks back.
        run(Command::new(need::tool("/sbin/mkfs.ext4")?)
            .args(["-q", "-F", "-m", "0", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"])
            .arg(&self.device))?;
        run(Command::new(need::tool("/bin/mount")?).arg(&self.device).arg(&self.dir))?;
        Ok(Mounted { dir: self.dir.clone(), done: false })
    }
}

impl Mounted {
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Waits for whoever is just ending and still holds a file.
    pub(crate) fn unmount(mut self) -> Result<()> {
        poll_until(
            Duration::from_secs(20),
            || Ok(run(Command::new("umount").arg(&self.dir)).ok().map(drop)),
            || format!("{} to be unmounted", self.dir.display()),
        )?;
        self.done = true;
        Ok(())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if !self.done {
            drop(run(Command::new("umount").arg("-l").arg(&self.dir)));
        }
    }
}

impl Drop for BlankDisk {
    fn drop(&mut self) {
        drop(run(Command::new("losetup").arg("--detach").arg(&self.device)));
    }
}
