//! Names of files on their way to another name. Whatever has this prefix when a datastore is opened
//! was left by a process that died, and is removed; nothing else ever is.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;

use super::files;

/// What all temporary names begin with.
pub(super) const PREFIX: &str = ".shale-tmp-";

static NEXT: AtomicU64 = AtomicU64::new(0);

/// A name that no other thread uses. Other processes do not use the directory at the same time.
pub(super) fn unique() -> String {
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{PREFIX}{}-{number}", rustix::process::getpid().as_raw_nonzero())
}

/// A file under a temporary name: removed on drop unless it got another name.
#[derive(Debug)]
pub(super) struct Temp {
    dir: Arc<OwnedFd>,
    /// None once it is not there, or not ours any more.
    name: Option<String>,
}

impl Temp {
    /// A new file with `content`, durable, under a name that no other has.
    pub(super) fn write(dir: Arc<OwnedFd>, content: &[u8]) -> Result<Self, Errno> {
        let name = unique();
        files::write_new(&dir, &name, content)?;
        Ok(Self { dir, name: Some(name) })
    }

    /// Gives the file its name, in the same directory.
    pub(super) fn rename_to(&mut self, name: &str) -> Result<(), Errno> {
        let temp = self.name.as_deref().unwrap_or_default();
        rustix::fs::renameat(&self.dir, temp, &self.dir, name)?;
        self.name = None;
        Ok(())
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            files::forget(&self.dir, name);
        }
    }
}

/// Removes what an earlier process left. Needs the datastore's lock.
pub(super) fn clean(dir: &OwnedFd) -> Result<u32, Errno> {
    let mut removed = 0;
    for name in files::names(dir)? {
        if !name.starts_with(PREFIX) {
            continue;
        }
        match rustix::fs::unlinkat(dir, &name, rustix::fs::AtFlags::empty()) {
            Ok(()) => removed += 1,
            // Somebody else's directory, or a name that is no text: in nobody's way.
            Err(error) => tracing::warn!(name, %error, "a temporary name cannot be removed"),
        }
    }
    Ok(removed)
}
