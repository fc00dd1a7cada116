//! Memory that outlives the process but not the host: a fallocated, mapped file on a tmpfs.
//!
//! All space is taken at creation, so that a full tmpfs is an error there and never a SIGBUS later.

use std::fmt;
use std::fs::File;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FallocateFlags, Mode, OFlags};
use rustix::mm::{MapFlags, ProtFlags};

use crate::error::{IoError, IoErrorKind, Result};

/// Memory for a log: written in place, survives the death of the process.
pub trait LogMemory {
    /// Length in bytes.
    fn len(&self) -> usize;

    /// Whether there are no bytes at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Stores `bytes` from `at` on.
    ///
    /// # Panics
    /// If they do not fit.
    fn write(&self, at: usize, bytes: &[u8]);

    /// Fills `bytes` from `at` on.
    ///
    /// # Panics
    /// If the memory ends before.
    fn read(&self, at: usize, bytes: &mut [u8]);
}

/// A mapped file on a tmpfs.
pub struct ShmFile {
    base: *mut u8,
    len: usize,
    /// Keeps the file open, so that whoever looks can tell that it is in use.
    _fd: OwnedFd,
}

impl fmt::Debug for ShmFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShmFile").field("len", &self.len).finish_non_exhaustive()
    }
}

impl ShmFile {
    /// Creates the file, zeroed, with all its space taken. Fails with `Exists` where there is one.
    ///
    /// # Errors
    /// `NoSpace` when the tmpfs is full: nothing is left behind then.
    pub fn create(path: &Path, len: usize) -> Result<Self> {
        let context = |what: &str| format!("{what} log memory {}", path.display());
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|e| IoError::system(context("creating"), e.into()))?;
        let made = take_space(&fd, len)
            .map_err(|e| IoError::system(context("taking space for"), e.into()))
            .and_then(|()| Self::map(fd, len, path));
        if made.is_err() {
            // Half a log would only confuse the next open; its name was ours (EXCL).
            let _gone = std::fs::remove_file(path);
        }
        made
    }

    /// Opens an existing file whose length in bytes is one of `lens`.
    ///
    /// # Errors
    /// `NotFound`, or `Corrupt` when it has another length or part of the space is missing.
    pub fn open(path: &Path, lens: RangeInclusive<usize>) -> Result<Self> {
        let context = |what: &str| format!("{what} log memory {}", path.display());
        let fd = rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .map_err(|e| IoError::system(context("opening"), e.into()))?;
        let file = File::from(fd);
        let found = file.metadata().map_err(|e| IoError::system(context("examining"), e))?.len();
        let Some(len) = usize::try_from(found).ok().filter(|len| lens.contains(len)) else {
            let (least, most) = (lens.start(), lens.end());
            let message =
                format!("{}: {found} bytes instead of {least} to {most}", context("opening"));
            return Err(IoError::new(IoErrorKind::Corrupt, message));
        };
        // A hole in a file that we fallocated means somebody else made it; fill it before mapping.
        take_space(&file, len)
            .map_err(|e| IoError::system(context("taking space for"), e.into()))?;
        Self::map(file.into(), len, path)
    }

    #[expect(unsafe_code, reason = "maps the file")]
    fn map(fd: OwnedFd, len: usize, path: &Path) -> Result<Self> {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address the kernel chooses overlaps nothing of ours.
        let mapped =
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, prot, MapFlags::SHARED, &fd, 0) };
        match mapped {
            Ok(base) => Ok(Self { base: base.cast(), len, _fd: fd }),
            Err(e) => {
                Err(IoError::system(format!("mapping log memory {}", path.display()), e.into()))
            }
        }
    }
}

/// A tmpfs gives up on any signal; that is no reason to fail.
fn take_space(fd: impl AsFd, len: usize) -> rustix::io::Result<()> {
    let flags = FallocateFlags::empty();
    rustix::io::retry_on_intr(|| rustix::fs::fallocate(&fd, flags, 0, len as u64))
}

impl Drop for ShmFile {
    #[expect(unsafe_code, reason = "unmaps what `map` mapped")]
    fn drop(&mut self) {
        // SAFETY: base and len are those of our own mapping, and nobody else holds its address.
        let unmapped = unsafe { rustix::mm::munmap(self.base.cast(), self.len) };
        debug_assert!(unmapped.is_ok(), "munmap of our own mapping: {unmapped:?}");
    }
}

impl LogMemory for ShmFile {
    fn len(&self) -> usize {
        self.len
    }

    #[expect(unsafe_code, reason = "raw copy into the mapping")]
    fn write(&self, at: usize, bytes: &[u8]) {
        assert!(at <= self.len && bytes.len() <= self.len - at, "log write {at}+{}", bytes.len());
        // SAFETY: within the mapping (asserted); no Rust reference to the mapping exists.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.base.add(at), bytes.len()) }
        // A killed process must leave records in the order they were written: keep the compiler
        // from moving a later store (a commit word) before this one.
        std::sync::atomic::fence(std::sync::atomic::Ordering::Release);
    }

    #[expect(unsafe_code, reason = "raw copy out of the mapping")]
    fn read(&self, at: usize, bytes: &mut [u8]) {
        assert!(at <= self.len && bytes.len() <= self.len - at, "log read {at}+{}", bytes.len());
        // SAFETY: within the mapping (asserted); no Rust reference to the mapping exists.
        unsafe {
            std::ptr::copy_nonoverlapping(self.base.add(at), bytes.as_mut_ptr(), bytes.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{LogMemory, ShmFile};
    use crate::error::IoErrorKind;

    #[test]
    fn content_outlives_the_mapping() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        ShmFile::create(&path, 8192)
            .unwrap()
            .write(4000, b"across a page boundary".repeat(9).as_slice());
        let again = ShmFile::open(&path, 4096..=8192).unwrap();
        assert_eq!(again.len(), 8192);
        let mut seen = [0; 22];
        again.read(4022, &mut seen);
        assert_eq!(&seen, b"across a page boundary");
        assert_eq!(ShmFile::create(&path, 8192).unwrap_err().kind, IoErrorKind::Exists);
        for lens in [0..=8191, 8193..=usize::MAX] {
            assert_eq!(ShmFile::open(&path, lens).unwrap_err().kind, IoErrorKind::Corrupt);
        }
        assert_eq!(
            ShmFile::open(&dir.path().join("none"), 1..=1).unwrap_err().kind,
            IoErrorKind::NotFound
        );
    }

    #[test]
    fn a_tmpfs_without_space_says_so_at_creation() {
        let shm = std::path::Path::new("/dev/shm");
        let Ok(dir) = tempfile::tempdir_in(shm) else {
            println!("no /dev/shm here");
            return;
        };
        if rustix::fs::statfs(shm).unwrap().f_type != libc::TMPFS_MAGIC {
            println!("/dev/shm is no tmpfs here");
            return;
        }
        let path = dir.path().join("log");
        // More than memory: a tmpfs refuses that before it takes anything.
        let full = ShmFile::create(&path, 1 << 50).unwrap_err();
        assert_eq!(full.kind, IoErrorKind::NoSpace);
        assert!(!path.exists(), "half a log is left behind");
    }
}
