//! Which ranges of a file hold data, by SEEK_DATA and SEEK_HOLE.

use std::os::fd::OwnedFd;

use io::{ByteRange, Extent, ExtentKind};
use rustix::fs::{SeekFrom, seek};
use rustix::io::{Errno, Result};

/// Longest answer; callers go on where it ends.
const MAX_EXTENTS: usize = 1024;

/// The extents of a range inside the file. Space that is reserved but not written counts as a hole:
/// the kernel does not tell them apart here.
pub(crate) fn list(fd: &OwnedFd, range: ByteRange) -> Result<Vec<Extent>> {
    let end = range.start.0.saturating_add(range.len.0);
    let mut extents = Vec::new();
    let mut at = range.start.0;
    while at < end && extents.len() < MAX_EXTENTS {
        let data = match seek(fd, SeekFrom::Data(at)) {
            Ok(data) => data.min(end),
            // No data from here on.
            Err(Errno::NXIO) => end,
            // This file system does not know: all of it is data.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => at,
            Err(e) => return Err(e),
        };
        if data > at {
            let range = ByteRange::new(at, data - at);
            extents.push(Extent::flat(range, ExtentKind::Hole));
            at = data;
            continue;
        }
        let hole = match seek(fd, SeekFrom::Hole(at)) {
            Ok(hole) => hole.min(end),
            Err(Errno::NXIO | Errno::INVAL | Errno::OPNOTSUPP) => end,
            Err(e) => return Err(e),
        };
        // Somebody may have punched in between; at least one byte of progress is data.
        let hole = if hole > at { hole } else { end };
        let range = ByteRange::new(at, hole - at);
        extents.push(Extent::flat(range, ExtentKind::Data));
        at = hole;
    }
    Ok(extents)
}
