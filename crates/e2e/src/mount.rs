//! A small file system of its own: what a full store needs. Unmounted when dropped.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::need;
use crate::process::run;

/// An ext4 file system in a file, mounted by a loop device.
#[derive(Debug)]
pub struct SmallDisk {
    /// Held for its end, which is after the unmount.
    _home: TempDir,
    dir: PathBuf,
}

impl SmallDisk {
    pub fn new(bytes: u64) -> Result<Self> {
        need::root()?;
        let home = tempfile::Builder::new().prefix("shale-small-").tempdir()?;
        let image = home.path().join("image");
        std::fs::File::create(&image)?.set_len(bytes)?;
        run(Command::new(need::tool("/sbin/mkfs.ext4")?)
            .args(["-q", "-F", "-m", "0"])
            .arg(&image))?;
        let dir = home.path().join("mnt");
        std::fs::create_dir(&dir)?;
        run(Command::new(need::tool("/bin/mount")?).args(["-o", "loop"]).arg(&image).arg(&dir))
            .context("this test mounts a small file system by a loop device")?;
        Ok(Self { _home: home, dir })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazy: a process that is just ending may still hold it.
        drop(run(Command::new("umount").arg("-l").arg(&self.dir)));
    }
}
