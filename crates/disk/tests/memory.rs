//! What an open chain remembers: bounded by the disk's size and a shared cache, whatever the chain; and
//! what was forgotten reads as it did before.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::rc::Rc;

use disk::{Access, Disk, LogIdentity, LogState, OpenChain, Rules, SharedCache};
use image::{ParentRef, SectorCount, Timestamp, Uuid, create};
use io::sim::{SimSpace, SimWorld};
use io::{
    BlockDevice as _, BlockFile, ByteCount, ByteOffset, Durability, IoBuf, IoErrorKind, Request,
    Result,
};

use common::layer;

const BLOCK: u64 = 2 << 20;
/// The largest disk of one chain.
const LARGEST: u64 = 2040 << 30;

async fn open(world: &SimWorld, files: &[Rc<dyn BlockFile>], cache: &SharedCache) -> Disk {
    let identity = LogIdentity {
        volume: Uuid::nil(),
        boot: Uuid::nil(),
        generation: 1,
        log: Uuid::from_u128(files.len() as u128),
    };
    let memory = Rc::new(world.log(&format!("log{}", files.len()), 1 << 20));
    let open = OpenChain {
        files: files.to_vec(),
        access: Access::Write { memory, identity, state: LogState::Clean },
        rules: Rules::all(),
        fixed_base: false,
        keep_space: false,
        cache: cache.clone(),
    };
    Disk::open(world.local().clone(), open).await.unwrap()
}

async fn write(disk: &Disk, at: u64, byte: u8, len: usize) {
    let (at, from) = (ByteOffset(at), IoBuf::copied(&vec![byte; len]));
    disk.submit(Request::Write { at, from, durability: Durability::Cached }).await.unwrap();
}

async fn read(disk: &Disk, at: u64, len: usize) -> Result<Vec<u8>> {
    let into = IoBuf::zeroed(len);
    disk.submit(Request::Read { at: ByteOffset(at), into: into.clone() }).await?;
    Ok(into.to_vec())
}

/// Where the table of a layer of `size` bytes stands in its file.
fn table_at(number: u128, size: u64) -> image::LayerImage {
    let (uuid, size, now) =
        (Uuid::from_u128(number), SectorCount(size / 512), Timestamp::default());
    match number {
        1 => create::dynamic(uuid, size, now),
        _ => {
            let parent = ParentRef::sibling(Uuid::from_u128(number - 1));
            create::differencing(uuid, size, now, &parent)
        }
    }
    .unwrap()
    .image
}

/// A layer of the largest size that has every block, on the one of the number before.
async fn full_layer(space: &SimSpace, number: u128) -> Rc<dyn BlockFile> {
    let image = table_at(number, LARGEST);
    let file = layer(space, number, LARGEST, (number > 1).then(|| number - 1)).await;
    let place = |block: u64| image.first_free.0 + block * 4104;
    let blocks = LARGEST / BLOCK;
    let bat: Vec<u8> = (0..blocks)
        .flat_map(|block| u32::try_from(place(block) + 7).unwrap().to_be_bytes())
        .collect();
    for (at, piece) in (image.bat_at.bytes()..).step_by(1 << 20).zip(bat.chunks(1 << 20)) {
        let (at, from) = (ByteOffset(at), IoBuf::copied(piece));
        file.submit(Request::Write { at, from, durability: Durability::Cached }).await.unwrap();
    }
    file.truncate(ByteCount(place(blocks) * 512)).await.unwrap();
    file
}

#[test]
fn full_layers_below_cost_a_disk_no_memory_of_their_own() {
    let (executor, world) = SimWorld::start(1);
    executor.block_on(async {
        let space = world.add_space(ByteCount::mib(16 << 20));
        let mut files = Vec::new();
        for number in 1..=4 {
            files.push(full_layer(&space, number).await);
        }
        let leaf = 5;
        files.push(layer(&space, leaf, LARGEST, Some(leaf - 1)).await);
        let cache = SharedCache::new(1 << 20);
        let disk = open(&world, &files, &cache).await;
        // a bit for each block, a checksum for each page of a table
        let opened = disk.stats().map_bytes;
        assert!(opened < 400 << 10, "{opened} bytes for a chain that nobody read");
        for at in (0..LARGEST).step_by(1 << 30) {
            assert_eq!(read(&disk, at, 512).await.unwrap(), [0; 512]);
        }
        // the map's words, and the pages that the cache has room for
        let read = disk.stats().map_bytes;
        let bound = opened + (8 << 20) + (1 << 20) + (64 * 4096);
        assert!(read < bound, "{read} bytes after a look at every part of the disk");
        assert!(cache.used() <= 1 << 20);
        disk.close().await.unwrap();
        drop(disk);
        assert_eq!(cache.used(), 0);
    });
}

/// Its entries were checked when the chain was opened; later only their sameness can be.
#[test]
fn a_parents_table_that_changed_is_an_error_and_no_data() {
    let (executor, world) = SimWorld::start(1);
    executor.block_on(async {
        let space = world.add_space(ByteCount::mib(64));
        let mut files = vec![layer(&space, 1, 4 * BLOCK, None).await];
        let disk = open(&world, &files, &SharedCache::none()).await;
        for block in 0..4 {
            write(&disk, block * BLOCK, 7, 4096).await;
        }
        disk.close().await.unwrap();
        files.push(layer(&space, 2, 4 * BLOCK, Some(1)).await);
        let disk = open(&world, &files, &SharedCache::none()).await;
        assert_eq!(read(&disk, 0, 4096).await.unwrap(), [7; 4096]);
        drop(disk);
        // two blocks change places: each entry by itself is a good one
        let disk = open(&world, &files, &SharedCache::none()).await;
        let at = table_at(1, 4 * BLOCK).bat_at.bytes();
        let page = IoBuf::zeroed(4096);
        let request = Request::Read { at: ByteOffset(at), into: page.clone() };
        files[0].submit(request).await.unwrap();
        let mut bytes = page.to_vec();
        bytes[..8].rotate_left(4);
        let (at, from) = (ByteOffset(at), IoBuf::copied(&bytes));
        let request = Request::Write { at, from, durability: Durability::Cached };
        files[0].submit(request).await.unwrap();
        let error = read(&disk, 0, 4096).await.unwrap_err();
        assert_eq!(error.kind, IoErrorKind::Corrupt, "{error}");
        assert!(error.to_string().contains("its block table is not what it was"), "{error}");
    });
}
