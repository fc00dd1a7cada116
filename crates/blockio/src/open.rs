//! Opening a file: flags, lock, and what direct I/O it takes.

use std::fs;
use std::io::Error;
use std::os::fd::{AsFd, OwnedFd};

use io::{IoError, IoErrorKind, Result};
use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, StatxFlags};

/// What a file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading, beside whoever writes.
    Read,
    /// Reading and writing, with everybody else's writing excluded.
    Write,
}

/// Alignments that direct I/O wants, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Direct {
    pub(crate) memory: u32,
    pub(crate) offset: u32,
}

/// An open file and what it is like.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) fd: OwnedFd,
    pub(crate) len: u64,
    pub(crate) block: u32,
    /// None: through the page cache.
    pub(crate) direct: Option<Direct>,
}

/// Opens `name` in `directory`; may stall.
pub(crate) fn open(directory: &OwnedFd, name: &str, access: Access) -> Result<Opened> {
    let system = |what: &str, e: rustix::io::Errno| {
        IoError::system(format!("{what} file {name}"), Error::from(e))
    };
    // NONBLOCK only so that a FIFO in the file's place cannot hold us; it is taken back below.
    let mut flags = OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    flags |= if access == Access::Write { OFlags::RDWR } else { OFlags::RDONLY };
    let fd = rustix::fs::openat(directory, name, flags, Mode::empty())
        .map_err(|e| system("opening", e))?;
    let stat = rustix::fs::fstat(&fd).map_err(|e| system("examining", e))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        let message = format!("opening file {name}: it is not a regular file");
        return Err(IoError::new(IoErrorKind::Unsupported, message));
    }
    if access == Access::Write {
        lock(&fd, name)?;
    }
    // After the lock: the former holder may have changed the length up to then.
    let stat = rustix::fs::fstat(&fd).map_err(|e| system("examining", e))?;
    let direct = direct_alignment(&fd);
    let mode = if direct.is_some() { OFlags::DIRECT } else { OFlags::empty() };
    let direct = match rustix::fs::fcntl_setfl(&fd, mode) {
        Ok(()) => direct,
        // Some file systems announce what they then refuse.
        Err(rustix::io::Errno::INVAL) => {
            rustix::fs::fcntl_setfl(&fd, OFlags::empty()).map_err(|e| system("opening", e))?;
            None
        }
        Err(e) => return Err(system("opening", e)),
    };
    let len = u64::try_from(stat.st_size).unwrap_or(0);
    let block = u32::try_from(stat.st_blksize).unwrap_or(4096).clamp(512, 1 << 20);
    Ok(Opened { fd, len, block, direct })
}

/// Looks at who is in the way before a lock is refused. The kernel lets go of a file that we closed only
/// after its last request, a moment after it told us that the request has ended.
const LOOKS: usize = 64;

/// Who holds a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Holder {
    /// Nobody any more, or nobody whom this host knows.
    Unknown,
    /// This process: another handle, or what the kernel has not let go of yet.
    Own,
    /// Another process, in words.
    Other(String),
}

/// Takes the exclusive lock, on this very open file description (rule P1).
fn lock(fd: &OwnedFd, name: &str) -> Result<()> {
    let attempt = || match rustix::fs::flock(fd, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(e) => Err(IoError::system(format!("locking file {name}"), e.into())),
    };
    let Some(why) = refused(attempt, || holder(fd))? else { return Ok(()) };
    Err(IoError::new(IoErrorKind::Busy, format!("opening file {name} for writing: {why}")))
}

/// Tries until the lock is taken, another process is seen to hold it, or it was looked at often enough;
/// why it was not taken.
fn refused(
    attempt: impl Fn() -> Result<bool>,
    holder: impl Fn() -> Holder,
) -> Result<Option<String>> {
    let mut why = String::new();
    for _ in 0..LOOKS {
        if attempt()? {
            return Ok(None);
        }
        why = match holder() {
            Holder::Other(who) => return Ok(Some(who)),
            Holder::Own => format!("process {} (this one) holds its lock", std::process::id()),
            Holder::Unknown => "another process holds its lock".to_owned(),
        };
        std::thread::yield_now();
    }
    Ok(Some(why))
}

/// Who holds the lock, as far as this host knows.
fn holder(fd: &OwnedFd) -> Holder {
    let Ok(stat) = rustix::fs::fstat(fd) else { return Holder::Unknown };
    let Ok(locks) = fs::read_to_string("/proc/locks") else { return Holder::Unknown };
    let (major, minor) = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
    let object = format!("{major:02x}:{minor:02x}:{}", stat.st_ino);
    let pid = locks.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let position = fields.iter().position(|field| *field == object)?;
        let is_flock = fields.contains(&"FLOCK") && !fields.contains(&"->");
        is_flock.then(|| fields.get(position.checked_sub(1)?).copied()).flatten()
    });
    let Some(pid) = pid else { return Holder::Unknown };
    if pid == std::process::id().to_string() {
        return Holder::Own;
    }
    Holder::Other(match fs::read_to_string(format!("/proc/{pid}/comm")) {
        Ok(name) => format!("process {pid} ({}) holds its lock", name.trim()),
        // The lock outlives the process until its last requests have landed.
        Err(_gone) => format!(
            "process {pid} held its lock and has ended, but its last requests are still under \
             way; try again in a moment"
        ),
    })
}

fn direct_alignment(fd: &OwnedFd) -> Option<Direct> {
    let asked = StatxFlags::DIOALIGN;
    let found = rustix::fs::statx(fd.as_fd(), "", AtFlags::EMPTY_PATH, asked).ok()?;
    let told = found.stx_mask & asked.bits() != 0;
    let (memory, offset) = (found.stx_dio_mem_align, found.stx_dio_offset_align);
    (told && memory > 0 && offset > 0 && offset <= 1 << 20).then_some(Direct { memory, offset })
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::{Holder, LOOKS, refused};

    /// How a lock that is free at the `free`-th attempt goes, and how often it was tried.
    fn tried(free: usize, holder: &Holder) -> (bool, usize) {
        let attempts = Cell::new(0);
        let attempt = || {
            attempts.set(attempts.get() + 1);
            Ok(attempts.get() >= free)
        };
        let why = refused(attempt, || holder.clone()).expect("no failure");
        (why.is_none(), attempts.get())
    }

    #[test]
    fn what_the_kernel_is_about_to_let_go_of_is_waited_for() {
        for ours in [Holder::Unknown, Holder::Own] {
            assert_eq!(tried(1, &ours), (true, 1));
            assert_eq!(tried(3, &ours), (true, 3), "{ours:?}");
            assert_eq!(tried(usize::MAX, &ours), (false, LOOKS), "{ours:?}");
        }
        assert_eq!(tried(2, &Holder::Other("process 1".into())), (false, 1));
    }
}
