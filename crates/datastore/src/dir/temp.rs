//! Names of files on their way to another name. Whatever has this prefix when a datastore is opened
//! was left by a process that died, and is removed; nothing else ever is.

use std::os::fd::OwnedFd;
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

/// Removes what an earlier process left. Needs the datastore's lock.
pub(super) fn clean(dir: &OwnedFd) -> Result<u32, Errno> {
    let mut removed = 0;
    for name in files::names(dir)? {
        if name.starts_with(PREFIX) {
            rustix::fs::unlinkat(dir, &name, rustix::fs::AtFlags::empty())?;
            removed += 1;
        }
    }
    Ok(removed)
}
