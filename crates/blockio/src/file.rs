//! A regular file as a [`BlockFile`].
//!
//! ```text
//!   request ─► aligned in file and memory? ─ yes ─► one operation on the ring, no copy
//!                        └ no ─► bounce buffer; a write of part of a block reads the rest first
//! ```
//!
//! Requests are in 512-byte sectors whatever the disk below wants. Only what extends the file takes a
//! lock, and what changes blocks that somebody rewrites in part waits for that; the rest runs side by
//! side.

use std::cell::Cell;
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use futures_util::lock::Mutex;
use io::{
    BlockDevice, BlockFile, ByteCount, ByteOffset, ByteRange, Clear, DeviceInfo, Durability,
    Effort, Extent, ExtentKind, Io, IoBuf, IoError, IoErrorKind, Request, Result, Ring,
};
use rustix::fs::FallocateFlags;

use crate::claims::{Claim, Claims, Touch};
use crate::extents;
use crate::open::{self, Access, Direct};

/// Unit of requests, in bytes.
const SECTOR: u32 = 512;
/// Longest single request.
const MAX_IO: u32 = 4 << 20;
/// Piece in which zeros are written where the file system cannot clear a range.
const ZEROS: usize = 1 << 20;

/// A file of a local file system. Cloning shares it.
#[derive(Clone)]
pub struct FileDevice(Rc<File>);

struct File {
    ring: Ring,
    fd: Rc<OwnedFd>,
    name: String,
    access: Access,
    direct: Option<Direct>,
    block: u32,
    /// Length in bytes, writes in flight included.
    len: Cell<u64>,
    /// Held while the length changes, so that giving back half a reservation cuts off nothing else.
    growth: Mutex<()>,
    /// What changes blocks of the disk now, where parts of a block are rewritten.
    claims: Claims,
    can_punch: Cell<bool>,
    can_zero: Cell<bool>,
}

impl fmt::Debug for FileDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileDevice")
            .field("name", &self.0.name)
            .field("access", &self.0.access)
            .field("direct", &self.0.direct)
            .field("len", &self.0.len)
            .finish_non_exhaustive()
    }
}

impl FileDevice {
    /// Opens the existing regular file `name` in `directory`. [`Access::Write`] takes its exclusive
    /// lock, on the open file description that does the I/O, and keeps it until the last request
    /// has ended.
    ///
    /// # Errors
    /// `Busy` when somebody else writes it (the message says who, if this host knows), `NotFound`,
    /// `Denied`, `Unsupported` when it is no regular file.
    pub async fn open(
        ring: &Ring,
        directory: impl AsFd,
        name: &str,
        access: Access,
    ) -> Result<Self> {
        let system = |e| IoError::system(format!("opening the directory of file {name}"), e);
        let directory = directory.as_fd().try_clone_to_owned().map_err(system)?;
        let wanted = name.to_owned();
        let opened = ring.run_blocking(move || open::open(&directory, &wanted, access)).await?;
        Ok(Self(Rc::new(File {
            ring: ring.clone(),
            fd: Rc::new(opened.fd),
            name: name.to_owned(),
            access,
            direct: opened.direct,
            block: opened.block,
            len: Cell::new(opened.len),
            growth: Mutex::new(()),
            claims: Claims::default(),
            can_punch: Cell::new(true),
            can_zero: Cell::new(true),
        })))
    }

    /// Whether I/O passes by the page cache.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.0.direct.is_some()
    }

    /// Runs steps to their end even if nobody waits any more.
    async fn to_the_end<T: 'static>(&self, steps: impl AsyncFnOnce(Rc<File>) -> T + 'static) -> T {
        let file = Rc::clone(&self.0);
        self.0.ring.local().spawn(async move { steps(file).await }).await
    }

    async fn serve(&self, request: Request) -> Result<()> {
        let file = &*self.0;
        match request {
            Request::Read { at, into } => file.read(at.0, &into).await,
            Request::Write { at, from, durability } => {
                file.check(ByteRange { start: at, len: from.count() }, Reach::MayExtend)?;
                file.check_length(from.len())?;
                if !file.rewrites() {
                    return file.write(at.0, &from, durability).await;
                }
                // to the end, so that the claim lasts as long as the I/O
                self.to_the_end(async move |file| {
                    let _claim = file.claim(at.0, from.len()).await;
                    file.write_any(at.0, &from, durability).await
                })
                .await
            }
            Request::Clear { range, how, effort, durability } => {
                file.check(range, Reach::Inside)?;
                self.to_the_end(async move |file| file.clear(range, how, effort, durability).await)
                    .await
            }
            Request::Flush => {
                file.ring.fdatasync(&file.fd).await.map_err(|e| file.system("flushing", e))
            }
        }
    }
}

/// Where a changing request may reach.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reach {
    Inside,
    MayExtend,
}

impl File {
    fn system(&self, what: &str, source: std::io::Error) -> IoError {
        IoError::system(format!("{what} file {}", self.name), source)
    }

    fn refuse(&self, kind: IoErrorKind, what: impl fmt::Display) -> IoError {
        IoError::new(kind, format!("file {}: {what}", self.name))
    }

    /// Checks a request that changes the file.
    fn check(&self, range: ByteRange, reach: Reach) -> Result<()> {
        if self.access == Access::Read {
            return Err(self.refuse(IoErrorKind::ReadOnly, "it is open for reading only"));
        }
        if !range.start.is_aligned(SECTOR) || !range.len.0.is_multiple_of(u64::from(SECTOR)) {
            let what = format!("{range:?} is not in whole sectors");
            return Err(self.refuse(IoErrorKind::Misaligned, what));
        }
        let limit = match reach {
            Reach::Inside => self.len.get(),
            Reach::MayExtend => i64::MAX.cast_unsigned(),
        };
        self.check_inside(range, limit)
    }

    fn check_inside(&self, range: ByteRange, limit: u64) -> Result<()> {
        if range.is_within(ByteCount(limit)) {
            return Ok(());
        }
        let what = format!("{range:?} lies outside its {} bytes", self.len.get());
        Err(self.refuse(IoErrorKind::OutOfRange, what))
    }

    fn check_length(&self, len: usize) -> Result<()> {
        if len as u64 <= u64::from(MAX_IO) {
            return Ok(());
        }
        let what = format!("a request of {len} bytes is longer than {MAX_IO}");
        Err(self.refuse(IoErrorKind::Misaligned, what))
    }

    /// Whether the range in the file suits direct I/O (anything does without).
    fn is_aligned(&self, at: u64, len: usize) -> bool {
        self.direct.is_none_or(|direct| {
            let offset = u64::from(direct.offset);
            at.is_multiple_of(offset) && (len as u64).is_multiple_of(offset)
        })
    }

    /// Whether there are requests that cover blocks of the disk in part, and so rewrite them.
    fn rewrites(&self) -> bool {
        self.direct.is_some_and(|direct| direct.offset > SECTOR)
    }

    /// Claims the blocks that a change of `len` bytes at `at` touches.
    async fn claim(&self, at: u64, len: usize) -> Option<Claim<'_>> {
        if !self.rewrites() {
            return None;
        }
        let touch = if self.is_aligned(at, len) { Touch::Whole } else { Touch::Part };
        let (start, len) = self.around(at, len);
        Some(self.claims.claim(start..start + len as u64, touch).await)
    }

    /// Whether the memory suits direct I/O.
    fn suits(&self, buf: &IoBuf) -> bool {
        self.direct.is_none_or(|direct| {
            buf.iovecs().all(|piece| {
                (piece.base as usize).is_multiple_of(direct.memory as usize)
                    && piece.len.is_multiple_of(direct.offset as usize)
            })
        })
    }

    /// The smallest aligned range around `len` bytes at `at`.
    fn around(&self, at: u64, len: usize) -> (u64, usize) {
        let unit = self.direct.map_or(1, |direct| u64::from(direct.offset));
        let start = at - at % unit;
        let end = (at + len as u64).next_multiple_of(unit);
        (start, ByteCount(end - start).as_len())
    }

    /// Whoever writes the file may have extended it since we opened it for reading.
    fn look_at_length(&self) -> Result<()> {
        let stat = rustix::fs::fstat(&self.fd).map_err(|e| self.system("examining", e.into()))?;
        self.len.set(u64::try_from(stat.st_size).unwrap_or(0));
        Ok(())
    }

    async fn read(&self, at: u64, into: &IoBuf) -> Result<()> {
        let range = ByteRange { start: ByteOffset(at), len: into.count() };
        if self.access == Access::Read && !range.is_within(ByteCount(self.len.get())) {
            self.look_at_length()?;
        }
        self.check_inside(range, self.len.get())?;
        self.check_length(into.len())?;
        if self.is_aligned(at, into.len()) && self.suits(into) {
            let read = self.ring.read(&self.fd, at, into).await;
            return read.map_err(|e| self.system("reading", e));
        }
        let (start, len) = self.around(at, into.len());
        let bounce = IoBuf::zeroed(len);
        let skip = ByteCount(at - start).as_len();
        let got = self.ring.read_up_to(&self.fd, start, &bounce).await;
        let got = got.map_err(|e| self.system("reading", e))?;
        if got < skip + into.len() {
            let what = format!("it ends before {range:?}: somebody cut it short");
            return Err(self.refuse(IoErrorKind::OutOfRange, what));
        }
        into.write_at(0, &bounce.slice(skip, into.len()).to_vec());
        Ok(())
    }

    /// Writes any range, whose blocks are claimed.
    async fn write_any(&self, at: u64, from: &IoBuf, durability: Durability) -> Result<()> {
        if self.is_aligned(at, from.len()) {
            self.write(at, from, durability).await
        } else {
            self.rewrite(at, from, durability).await
        }
    }

    /// Writes an aligned range; memory may need a bounce.
    async fn write(&self, at: u64, from: &IoBuf, durability: Durability) -> Result<()> {
        let end = at + from.len() as u64;
        if end > self.len.get() {
            // Wait out a reservation that may be rolled back; from then on our end counts.
            let _growing = self.growth.lock().await;
            self.len.set(self.len.get().max(end));
        }
        let dsync = durability == Durability::Durable;
        let written = if self.suits(from) {
            self.ring.write(&self.fd, at, from, dsync).await
        } else {
            self.ring.write(&self.fd, at, &IoBuf::copied(&from.to_vec()), dsync).await
        };
        written.map_err(|e| self.system("writing", e))
    }

    /// Writes a range that covers some blocks of the disk in part.
    async fn rewrite(&self, at: u64, from: &IoBuf, durability: Durability) -> Result<()> {
        let (start, len) = self.around(at, from.len());
        let whole = IoBuf::zeroed(len);
        // What lies beyond the end reads as zero, as `whole` already is.
        let read = self.ring.read_up_to(&self.fd, start, &whole).await;
        read.map_err(|e| self.system("reading", e))?;
        whole.write_at(ByteCount(at - start).as_len(), &from.to_vec());
        let wanted = self.len.get().max(at + from.len() as u64);
        self.write(start, &whole, durability).await?;
        self.cut_padding(start + len as u64, wanted).await
    }

    /// Takes back what rounding up to whole blocks added to the file.
    async fn cut_padding(&self, end: u64, wanted: u64) -> Result<()> {
        let _growing = self.growth.lock().await;
        if end <= wanted || self.len.get() != end {
            return Ok(());
        }
        let cut = self.ring.ftruncate(&self.fd, wanted).await;
        cut.map_err(|e| self.system("setting the length of", e))?;
        self.len.set(wanted);
        Ok(())
    }

    async fn clear(
        &self,
        range: ByteRange,
        how: Clear,
        effort: Effort,
        durability: Durability,
    ) -> Result<()> {
        if range.len.0 == 0 {
            return Ok(());
        }
        let claim = self.claim(range.start.0, range.len.as_len()).await;
        let punched = how == Clear::Deallocate
            && self.try_clear(range, FallocateFlags::PUNCH_HOLE, &self.can_punch).await?;
        let cleared =
            punched || self.try_clear(range, FallocateFlags::ZERO_RANGE, &self.can_zero).await?;
        if !cleared {
            if effort == Effort::Quick {
                let what = "its file system zeroes a range only by writing it";
                return Err(self.refuse(IoErrorKind::Unsupported, what));
            }
            self.write_zeros(range).await?;
        }
        drop(claim);
        if durability == Durability::Durable {
            let synced = self.ring.fdatasync(&self.fd).await;
            synced.map_err(|e| self.system("flushing", e))?;
        }
        Ok(())
    }

    /// False where the file system does not offer this way.
    async fn try_clear(
        &self,
        range: ByteRange,
        mode: FallocateFlags,
        offered: &Cell<bool>,
    ) -> Result<bool> {
        if !offered.get() {
            return Ok(false);
        }
        match self.ring.fallocate(&self.fd, mode | FallocateFlags::KEEP_SIZE, range).await {
            Ok(()) => Ok(true),
            Err(e) if is_unsupported(&e) => {
                offered.set(false);
                Ok(false)
            }
            Err(e) => Err(self.system("clearing part of", e)),
        }
    }

    async fn write_zeros(&self, range: ByteRange) -> Result<()> {
        let zeros = IoBuf::zeroed(ZEROS.min(range.len.as_len()));
        let (mut at, mut left) = (range.start.0, range.len.as_len());
        while left > 0 {
            let piece = zeros.slice(0, left.min(zeros.len()));
            self.write_any(at, &piece, Durability::Cached).await?;
            at += piece.len() as u64;
            left -= piece.len();
        }
        Ok(())
    }

    async fn reserve(&self, range: ByteRange) -> Result<()> {
        if range.len.0 == 0 {
            return Ok(());
        }
        let end = range.start.0 + range.len.0;
        let _growing = self.growth.lock().await;
        let before = self.len.get();
        match self.ring.fallocate(&self.fd, FallocateFlags::empty(), range).await {
            Ok(()) => {
                self.len.set(before.max(end));
                Ok(())
            }
            Err(error) => {
                // A full file system keeps what it got so far, and lengthens the file by it. What
                // it put into holes before the old end stays: it reads as zero, and is ours.
                if end > before
                    && let Err(error) = self.ring.ftruncate(&self.fd, before).await
                {
                    tracing::warn!(file = self.name, %error, "half a reservation stays");
                }
                Err(self.system("reserving space in", error))
            }
        }
    }

    async fn truncate(&self, len: u64) -> Result<()> {
        let _growing = self.growth.lock().await;
        let cut = self.ring.ftruncate(&self.fd, len).await;
        cut.map_err(|e| self.system("setting the length of", e))?;
        self.len.set(len);
        Ok(())
    }

    async fn extents(&self, range: ByteRange) -> Result<Vec<Extent>> {
        self.check_inside(range, self.len.get())?;
        let clone = || self.fd.try_clone().map_err(|e| self.system("examining", e));
        let fd = clone()?;
        let listed = self.ring.run_blocking(move || extents::list(&fd, range)).await;
        let listed = listed.map_err(|e| self.system("examining", e.into()))?;
        debug_assert!(listed.iter().all(|e| e.kind != ExtentKind::Zero));
        Ok(listed)
    }
}

fn is_unsupported(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS))
}

impl BlockDevice for FileDevice {
    fn info(&self) -> DeviceInfo {
        let file = &*self.0;
        DeviceInfo {
            size: ByteCount(file.len.get()),
            logical_block: SECTOR,
            physical_block: file.block.max(file.direct.map_or(0, |direct| direct.offset)),
            memory_align: file.direct.map_or(1, |direct| direct.memory),
            max_io: MAX_IO,
            clear_granularity: file.block,
            read_only: file.access == Access::Read,
        }
    }

    fn submit(&self, request: Request) -> Io<'_, Result<()>> {
        Box::pin(self.serve(request))
    }

    fn extents(&self, range: ByteRange) -> Io<'_, Result<Vec<Extent>>> {
        Box::pin(self.0.extents(range))
    }
}

impl BlockFile for FileDevice {
    fn reserve(&self, range: ByteRange) -> Io<'_, Result<()>> {
        Box::pin(async move {
            self.0.check(range, Reach::MayExtend)?;
            self.to_the_end(async move |file| file.reserve(range).await).await
        })
    }

    fn truncate(&self, len: ByteCount) -> Io<'_, Result<()>> {
        Box::pin(async move {
            self.0.check(ByteRange { start: ByteOffset(0), len }, Reach::MayExtend)?;
            self.to_the_end(async move |file| file.truncate(len.0).await).await
        })
    }

    fn used(&self) -> Io<'_, Result<ByteCount>> {
        Box::pin(async move {
            let stat = rustix::fs::fstat(&self.0.fd);
            let stat = stat.map_err(|e| self.0.system("examining", e.into()))?;
            Ok(ByteCount(u64::try_from(stat.st_blocks).unwrap_or(0) * 512))
        })
    }
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
