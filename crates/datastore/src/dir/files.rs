//! Small steps on files of one open directory: nothing here follows a symbolic link, leaves the
//! directory or waits for the other end of a pipe.

use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

/// Mode of all files: guest data is nobody else's.
pub(super) const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);
/// Mode of the kinds' directories.
pub(super) const DIR_MODE: Mode = Mode::RWXU;

/// Why a file was not read.
#[derive(Debug)]
pub(super) enum ReadError {
    System(Errno),
    NotAFile,
    TooLarge(u64),
}

/// The whole content of a regular file of up to `limit` bytes.
pub(super) fn read(dir: &OwnedFd, name: &str, limit: u64) -> Result<Vec<u8>, ReadError> {
    // Without NONBLOCK, opening a pipe that someone put there would never end.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(dir, name, flags, Mode::empty()).map_err(|error| match error {
        Errno::LOOP | Errno::NXIO => ReadError::NotAFile,
        other => ReadError::System(other),
    })?;
    let stat = rustix::fs::fstat(&fd).map_err(ReadError::System)?;
    if !is_regular(&stat) {
        return Err(ReadError::NotAFile);
    }
    let mut bytes = Vec::new();
    let mut file = std::fs::File::from(fd).take(limit + 1);
    file.read_to_end(&mut bytes).map_err(|error| ReadError::System(errno(&error)))?;
    if bytes.len() as u64 > limit {
        return Err(ReadError::TooLarge(len(&stat).max(bytes.len() as u64)));
    }
    Ok(bytes)
}

/// Writes a new file and makes its content durable; on an error there is no file.
pub(super) fn write_new(dir: &OwnedFd, name: &str, content: &[u8]) -> Result<(), Errno> {
    let fd = create(dir, name)?;
    let mut file = std::fs::File::from(fd);
    file.write_all(content)
        .and_then(|()| file.sync_all())
        .map_err(|error| errno(&error))
        .inspect_err(|_| forget(dir, name))
}

/// Creates an empty file that did not exist.
pub(super) fn create(dir: &OwnedFd, name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, FILE_MODE)
}

/// Removes a file of which nobody knows yet; if that fails, the next open cleans it up.
pub(super) fn forget(dir: &OwnedFd, name: &str) {
    if let Err(error) = rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        tracing::warn!(name, %error, "a temporary file stays until the datastore is opened again");
    }
}

/// The names in a directory, without `.` and `..`. Names that are not UTF-8 are shown as well as
/// they can be: none of ours is among them.
pub(super) fn names(dir: &OwnedFd) -> Result<Vec<String>, Errno> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(dir)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name != "." && name != ".." {
            names.push(name);
        }
    }
    Ok(names)
}

/// What stands under a name, itself and not what it may point to.
pub(super) fn stat(dir: &OwnedFd, name: &str) -> Result<Stat, Errno> {
    rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
}

/// Opens a directory below, which must be one itself.
pub(super) fn open_dir(dir: impl AsFd, name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}

pub(super) fn is_regular(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
}

pub(super) fn len(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}

/// Storage taken, as `du` counts it.
pub(super) fn used(stat: &Stat) -> u64 {
    u64::try_from(stat.st_blocks).unwrap_or(0) * 512
}

/// The number of an error that came from a system call.
pub(super) fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}
