//! `shale.lock`: one process uses a datastore at a time. The lock is the kernel's (flock), so it ends
//! with the last thread of its holder; the file's content only says who that is.

use std::os::fd::OwnedFd;

use io::IoErrorKind;
use rustix::fs::{FlockOperation, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::files;
use super::place::Place;
use crate::error::{DatastoreError, Result};

/// Name of the lock file.
pub(super) const FILE: &str = "shale.lock";

/// Who holds the lock.
#[derive(Debug, Serialize, Deserialize)]
struct Holder {
    pid: u32,
    host: String,
}

/// The lock, held until this is dropped.
#[derive(Debug)]
pub(super) struct Lock {
    pub(super) fd: OwnedFd,
    /// Whether the file did not exist before.
    pub(super) made: bool,
}

impl Lock {
    /// Takes the lock, or says who holds it. Nothing is written yet.
    pub(super) fn take(place: &Place) -> Result<Self> {
        loop {
            let made = matches!(files::stat(&place.fd, FILE), Err(Errno::NOENT));
            let flags = OFlags::RDWR
                | OFlags::CREATE
                | OFlags::NOFOLLOW
                | OFlags::NONBLOCK
                | OFlags::CLOEXEC;
            let fd = rustix::fs::openat(&place.fd, FILE, flags, files::FILE_MODE)
                .map_err(|error| place.system("it cannot be written", error))?;
            match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => {
                    let path = place.path.clone();
                    return Err(DatastoreError::Held { path, holder: holder(place) });
                }
                Err(error) => return Err(place.system("its files cannot be locked", error)),
            }
            // A failed creation removes its lock file: then this is a lock on nothing.
            let held = rustix::fs::fstat(&fd).map_err(|error| place.system("its lock", error))?;
            match files::stat(&place.fd, FILE) {
                Ok(named) if named.st_ino == held.st_ino => {
                    if !files::is_regular(&held) {
                        let problem = "its shale.lock is not a regular file";
                        return Err(place.refuse(IoErrorKind::Corrupt, problem));
                    }
                    return Ok(Self { fd, made });
                }
                Ok(_) | Err(Errno::NOENT) => {}
                Err(error) => return Err(place.system("its lock cannot be examined", error)),
            }
        }
    }

    /// Writes down who holds the lock. A full file system may prevent that; the lock holds anyway.
    pub(super) fn sign(&self) {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let holder = Holder { pid: std::process::id(), host: host.trim().to_owned() };
        let mut text = serde_json::to_vec(&holder).expect("a holder is plain JSON");
        text.push(b'\n');
        let written = rustix::io::pwrite(&self.fd, &text, 0)
            .and_then(|len| rustix::fs::ftruncate(&self.fd, len as u64));
        if let Err(error) = written {
            tracing::warn!(%error, "cannot write the holder's name into shale.lock");
        }
    }
}

fn holder(place: &Place) -> String {
    let text = files::read(&place.fd, FILE, 4096).ok();
    match text.and_then(|text| serde_json::from_slice::<Holder>(&text).ok()) {
        Some(Holder { pid, host }) => format!("process {pid} on host {host}"),
        None => "another process".to_owned(),
    }
}
