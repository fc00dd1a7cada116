//! What tests of disks share: layers made by hand in the simulated world.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::rc::Rc;

use image::{ParentRef, SectorCount, Timestamp, Uuid, create};
use io::sim::SimSpace;
use io::{BlockDevice as _, BlockFile, ByteCount, ByteOffset, Durability, IoBuf, Request};

/// A new sparse layer of `size` bytes, on the one of number `parent`.
pub(crate) async fn layer(
    space: &SimSpace,
    number: u128,
    size: u64,
    parent: Option<u128>,
) -> Rc<dyn BlockFile> {
    let (uuid, size) = (Uuid::from_u128(number), SectorCount(size / 512));
    let now = Timestamp::default();
    let new = match parent {
        None => create::dynamic(uuid, size, now),
        Some(p) => create::differencing(uuid, size, now, &ParentRef::sibling(Uuid::from_u128(p))),
    }
    .unwrap();
    let file = space.create();
    for (at, bytes) in new.pieces {
        let (at, from) = (ByteOffset(at.bytes()), IoBuf::copied(&bytes));
        file.submit(Request::Write { at, from, durability: Durability::Cached }).await.unwrap();
    }
    file.truncate(ByteCount(new.len)).await.unwrap();
    file
}
