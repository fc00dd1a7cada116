//! A volume as its guest sees it: one disk, or several in a row where it is larger than a VHD can be.
//!
//! A request that lies in one segment costs what it costs the disk; one over a boundary is two. Gate,
//! switch and end concern all segments together: a snapshot is one moment of the whole volume.

use std::rc::Rc;

use futures_util::future::{join_all, try_join_all};
use io::{
    BlockDevice, BlockFile, ByteCount, ByteOffset, ByteRange, DeviceInfo, Extent, Io, Request,
    Result,
};
use uuid::Uuid;

use crate::disk::{Disk, Stats};
use crate::error::OpenError;
use crate::gate::NewLeaf;

/// An open volume as a block device. Clones share it.
#[derive(Clone, Debug)]
pub struct Volume {
    segments: Rc<[Segment]>,
}

#[derive(Debug)]
struct Segment {
    disk: Disk,
    /// Its first byte in the volume.
    start: u64,
}

/// The layers in which a volume goes on, one for each segment, read and checked.
#[derive(Debug)]
pub struct NewLeaves(Vec<NewLeaf>);

impl NewLeaves {
    /// The layers.
    #[must_use]
    pub fn uuids(&self) -> Vec<Uuid> {
        self.0.iter().map(NewLeaf::uuid).collect()
    }
}

impl Volume {
    /// Of these disks, in their order.
    ///
    /// # Panics
    /// If there are none.
    #[must_use]
    pub fn new(disks: Vec<Disk>) -> Self {
        assert!(!disks.is_empty(), "a volume has at least one segment");
        let mut start = 0;
        let segments = disks.into_iter().map(|disk| {
            let segment = Segment { start, disk };
            start += segment.disk.info().size.0;
            segment
        });
        Self { segments: segments.collect() }
    }

    fn disks(&self) -> impl Iterator<Item = &Disk> {
        self.segments.iter().map(|segment| &segment.disk)
    }

    /// The segment that holds the byte at `at`; the last one for whatever lies beyond the end, which it
    /// refuses.
    fn segment_at(&self, at: u64) -> &Segment {
        let behind = self.segments.partition_point(|segment| segment.start <= at);
        &self.segments[behind.saturating_sub(1)]
    }

    /// Bytes from `at` to the end of its segment; no end for the last one.
    fn room_at(&self, at: u64) -> u64 {
        let behind = self.segments.partition_point(|segment| segment.start <= at);
        self.segments.get(behind).map_or(u64::MAX, |next| next.start - at)
    }

    fn can_serve(&self, range: ByteRange) -> bool {
        let info = self.info();
        let whole = |n: u64| n.is_multiple_of(u64::from(info.logical_block));
        whole(range.start.0)
            && whole(range.len.0)
            && range.end().is_some_and(|end| end.0 <= info.size.0)
    }

    /// Splits a range at the segments' boundaries: the segment, the range within it, and how far into
    /// the whole it starts.
    fn parts(&self, range: ByteRange) -> Vec<(&Segment, ByteRange, u64)> {
        let (mut parts, mut done) = (Vec::new(), 0);
        while done < range.len.0 {
            let at = range.start.0.saturating_add(done);
            let segment = self.segment_at(at);
            let len = (range.len.0 - done).min(self.room_at(at));
            parts.push((segment, ByteRange::new(at - segment.start, len), done));
            done += len;
        }
        parts
    }

    /// Counters since the volume was opened, over all its segments.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.disks().fold(Stats::default(), |sum, disk| sum.plus(&disk.stats()))
    }

    /// Space may be there again: held requests try once more.
    pub fn space_freed(&self) {
        self.disks().for_each(Disk::space_freed);
    }

    /// Reads new, empty leaves on the present ones; see [`Disk::open_leaf`].
    ///
    /// # Errors
    /// If there is not one for each segment, or as [`Disk::open_leaf`].
    pub async fn open_leaves(
        &self,
        files: Vec<Rc<dyn BlockFile>>,
    ) -> std::result::Result<NewLeaves, OpenError> {
        if files.len() != self.segments.len() {
            return Err(OpenError::Empty);
        }
        let mut leaves = Vec::with_capacity(files.len());
        for (disk, file) in self.disks().zip(files) {
            leaves.push(disk.open_leaf(file).await?);
        }
        Ok(NewLeaves(leaves))
    }

    /// Brings most dirty metadata to the disks; see [`Disk::prepare`].
    ///
    /// # Errors
    /// As a flush.
    pub async fn prepare(&self) -> Result<()> {
        try_join_all(self.disks().map(Disk::prepare)).await.map(drop)
    }

    /// Shuts the gates of all segments at one moment; see [`Disk::gate`].
    ///
    /// # Errors
    /// As [`Disk::gate`]; no gate that this call shut is shut then.
    pub async fn gate(&self) -> Result<()> {
        let gated = join_all(self.disks().map(Disk::gate)).await;
        if gated.iter().all(Result::is_ok) {
            return Ok(());
        }
        for (disk, outcome) in self.disks().zip(&gated) {
            if outcome.is_ok() {
                disk.ungate();
            }
        }
        gated.into_iter().collect()
    }

    /// Opens the gates again.
    pub fn ungate(&self) {
        self.disks().for_each(Disk::ungate);
    }

    /// Goes on in `leaves`; see [`Disk::switch`].
    ///
    /// # Panics
    /// If a gate is open.
    pub fn switch(&self, leaves: NewLeaves) {
        for (disk, leaf) in self.disks().zip(leaves.0) {
            disk.switch(leaf);
        }
    }

    /// Ends the volume; see [`Disk::close`].
    ///
    /// # Errors
    /// As [`Disk::close`], of the first segment that has one; all are closed in any case.
    pub async fn close(&self) -> Result<()> {
        join_all(self.disks().map(Disk::close)).await.into_iter().collect()
    }

    /// Ends the volume as it is; see [`Disk::abandon`].
    pub fn abandon(&self) {
        self.disks().for_each(Disk::abandon);
    }

    /// A request over a boundary, or one for all segments.
    async fn submit_parts(&self, request: Request) -> Result<()> {
        let requests: Vec<(&Segment, Request)> = match request {
            Request::Flush => self.segments.iter().map(|s| (s, Request::Flush)).collect(),
            Request::Read { at, into } => {
                let parts = self.parts(ByteRange { start: at, len: into.count() });
                let part = |(segment, range, done): (_, ByteRange, u64)| {
                    let into = into.slice(ByteCount(done).as_len(), range.len.as_len());
                    (segment, Request::Read { at: range.start, into })
                };
                parts.into_iter().map(part).collect()
            }
            Request::Write { at, from, durability } => {
                let parts = self.parts(ByteRange { start: at, len: from.count() });
                let part = |(segment, range, done): (_, ByteRange, u64)| {
                    let from = from.slice(ByteCount(done).as_len(), range.len.as_len());
                    (segment, Request::Write { at: range.start, from, durability })
                };
                parts.into_iter().map(part).collect()
            }
            Request::Clear { range, how, effort, durability } => {
                let part = |(segment, range, _): (_, ByteRange, u64)| {
                    (segment, Request::Clear { range, how, effort, durability })
                };
                self.parts(range).into_iter().map(part).collect()
            }
        };
        let submitted = requests.into_iter().map(|(segment, part)| segment.disk.submit(part));
        join_all(submitted).await.into_iter().collect()
    }
}

/// Where a request is within the segment that starts at `start`.
fn within(request: Request, start: u64) -> Request {
    let moved = |at: ByteOffset| ByteOffset(at.0.saturating_sub(start));
    match request {
        Request::Read { at, into } => Request::Read { at: moved(at), into },
        Request::Write { at, from, durability } => {
            Request::Write { at: moved(at), from, durability }
        }
        Request::Clear { range, how, effort, durability } => {
            let range = ByteRange { start: moved(range.start), len: range.len };
            Request::Clear { range, how, effort, durability }
        }
        Request::Flush => Request::Flush,
    }
}

impl BlockDevice for Volume {
    fn info(&self) -> DeviceInfo {
        let last = &self.segments[self.segments.len() - 1];
        let info = last.disk.info();
        DeviceInfo { size: ByteCount(last.start + info.size.0), ..info }
    }

    fn submit(&self, request: Request) -> Io<'_, Result<()>> {
        if let [only] = &self.segments[..] {
            return only.disk.submit(request);
        }
        let range = match &request {
            Request::Read { at, into } => ByteRange { start: *at, len: into.count() },
            Request::Write { at, from, .. } => ByteRange { start: *at, len: from.count() },
            Request::Clear { range, .. } => *range,
            Request::Flush => return Box::pin(self.submit_parts(request)),
        };
        // One that the volume as a whole cannot serve goes to a single disk, which refuses it: no part of
        // it may be done.
        if range.len.0 > self.room_at(range.start.0) && self.can_serve(range) {
            return Box::pin(self.submit_parts(request));
        }
        let segment = self.segment_at(range.start.0);
        segment.disk.submit(within(request, segment.start))
    }

    fn extents(&self, range: ByteRange) -> Io<'_, Result<Vec<Extent>>> {
        let segment = self.segment_at(range.start.0);
        let len = ByteCount(range.len.0.min(self.room_at(range.start.0)));
        let inside = ByteRange::new(range.start.0.saturating_sub(segment.start), len.0);
        Box::pin(async move {
            let mut extents = segment.disk.extents(inside).await?;
            for extent in &mut extents {
                extent.range.start.0 += segment.start;
            }
            Ok(extents)
        })
    }
}
