//! The file device on the file system that tests run on, with both backends of the ring.

use std::fs::{self, File as StdFile};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::rc::Rc;

use futures_util::future::join;
use io::{
    BlockDevice, BlockFile, ByteCount, ByteOffset, ByteRange, Choice, Clear, Durability, Effort,
    ExtentKind, IoBuf, IoErrorKind, Request, Result, Ring,
};

use super::FileDevice;
use crate::open::{Access, Direct};

const KIB: u64 = 1024;

async fn write(file: &FileDevice, at: u64, from: IoBuf, durability: Durability) -> Result<()> {
    file.submit(Request::Write { at: ByteOffset(at), from, durability }).await
}

async fn read(file: &FileDevice, at: u64, into: &IoBuf) -> Result<()> {
    file.submit(Request::Read { at: ByteOffset(at), into: into.clone() }).await
}

async fn read_vec(file: &FileDevice, at: u64, len: usize) -> Vec<u8> {
    let into = IoBuf::zeroed(len);
    read(file, at, &into).await.unwrap();
    into.to_vec()
}

async fn clear(file: &FileDevice, range: ByteRange, how: Clear) {
    let durability = Durability::Durable;
    file.submit(Request::Clear { range, how, effort: Effort::Any, durability }).await.unwrap();
}

fn pattern(len: usize, salt: usize) -> Vec<u8> {
    (0..len).map(|i| u8::try_from((i / 3 + i / 512 + salt) % 255 + 1).unwrap()).collect()
}

/// A directory with a file `f` of `content`, opened for writing, on each backend.
fn with_file(content: &[u8], test: &impl AsyncFn(&Ring, &Path, FileDevice)) {
    for choice in [Choice::Threads, Choice::Best] {
        let (executor, ring) = Ring::start_with(choice).unwrap();
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("f"), content).unwrap();
        executor.block_on(async {
            let device = open(&ring, dir.path(), Access::Write).await.unwrap();
            test(&ring, dir.path(), device).await;
        });
    }
}

async fn open(ring: &Ring, dir: &Path, access: Access) -> Result<FileDevice> {
    FileDevice::open(ring, StdFile::open(dir).unwrap(), "f", access).await
}

#[test]
fn writes_are_read_back_whatever_the_memory() {
    with_file(&[], &async |_, dir, file| {
        let bytes = pattern(64 * 1024, 0);
        write(&file, 4096, IoBuf::copied(&bytes), Durability::Cached).await.unwrap();
        assert_eq!(file.info().size, ByteCount(4096 + 64 * KIB));
        // Memory that no direct I/O takes, and ranges of single sectors.
        let crooked = IoBuf::zeroed(4096).slice(13, 1024);
        crooked.write_at(0, &pattern(1024, 7));
        write(&file, 512, crooked, Durability::Durable).await.unwrap();
        let into = IoBuf::zeroed(8192).slice(1, 4608);
        read(&file, 512, &into).await.unwrap();
        let expected = [pattern(1024, 7), vec![0; 2560], bytes[..1024].to_vec()].concat();
        assert_eq!(into.to_vec(), expected);
        file.submit(Request::Flush).await.unwrap();
        assert_eq!(fs::read(dir.join("f")).unwrap()[4096..], bytes);
    });
}

#[test]
fn a_disk_of_large_blocks_takes_single_sectors() {
    with_file(&pattern(8192, 1), &async |_, dir, mut file| {
        let inner = Rc::get_mut(&mut file.0).unwrap();
        inner.direct = Some(Direct { memory: 4096, offset: 4096 });
        let mut expected = pattern(8192, 1);
        // Neighbours in one block at once: neither may undo the other.
        let (a, b) = join(
            write(&file, 512, IoBuf::copied(&[0xA5; 512]), Durability::Cached),
            write(&file, 1536, IoBuf::copied(&[0x5A; 512]), Durability::Cached),
        )
        .await;
        a.and(b).unwrap();
        expected[512..1024].fill(0xA5);
        expected[1536..2048].fill(0x5A);
        // A tail after the last whole block must not leave padding behind it.
        write(&file, 8192, IoBuf::copied(&[3; 512]), Durability::Durable).await.unwrap();
        expected.extend([3; 512]);
        assert_eq!(file.info().size.0, 8704);
        assert_eq!(fs::read(dir.join("f")).unwrap(), expected);
        assert_eq!(read_vec(&file, 8192 - 512, 1024).await, expected[7680..]);
    });
}

/// A block is rewritten in part and changed as a whole at once, in either order: the later of the two
/// is what counts, and neither brings old sectors back.
#[test]
fn a_rewrite_undoes_no_change_of_the_whole_block() {
    with_file(&[7; 8192], &async |_, dir, mut file| {
        let inner = Rc::get_mut(&mut file.0).unwrap();
        inner.direct = Some(Direct { memory: 4096, offset: 4096 });
        let part = || write(&file, 512, IoBuf::copied(&[0xA5; 512]), Durability::Cached);
        let whole = async |how: Option<Clear>| match how {
            None => write(&file, 0, IoBuf::zeroed(8192), Durability::Cached).await.unwrap(),
            Some(how) => clear(&file, ByteRange::new(0, 8192), how).await,
        };
        for how in [None, Some(Clear::Deallocate), Some(Clear::KeepSpace)].repeat(20) {
            for part_first in [true, false] {
                write(&file, 0, IoBuf::copied(&[7; 8192]), Durability::Cached).await.unwrap();
                let mut expected = [0; 8192];
                if part_first {
                    let (part, ()) = join(part(), whole(how)).await;
                    part.unwrap();
                } else {
                    let ((), part) = join(whole(how), part()).await;
                    part.unwrap();
                    expected[512..1024].fill(0xA5);
                }
                let seen = fs::read(dir.join("f")).unwrap();
                assert!(seen == expected, "{how:?}, part first: {part_first}");
            }
        }
    });
}

#[test]
fn a_file_whose_length_is_no_multiple_of_anything_is_read_to_its_end() {
    with_file(&pattern(5000, 2), &async |_, _, file| {
        assert_eq!(file.info().size.0, 5000);
        assert_eq!(read_vec(&file, 4608, 392).await, pattern(5000, 2)[4608..]);
        let beyond = read(&file, 4608, &IoBuf::zeroed(512)).await.unwrap_err();
        assert_eq!(beyond.kind, IoErrorKind::OutOfRange);
    });
}

#[test]
fn rule_p1_one_writer_and_its_lock_lives_with_the_io() {
    with_file(&[1; 4096], &async |ring, dir, file| {
        let busy = open(ring, dir, Access::Write).await.unwrap_err();
        assert_eq!(busy.kind, IoErrorKind::Busy);
        let me = format!("process {}", std::process::id());
        assert!(busy.to_string().contains(&me), "{busy}");
        let reader = open(ring, dir, Access::Read).await.unwrap();
        assert_eq!(read_vec(&reader, 0, 512).await, [1; 512]);
        write(&file, 4096, IoBuf::copied(&[4; 512]), Durability::Cached).await.unwrap();
        assert_eq!(read_vec(&reader, 4096, 512).await, [4; 512], "a reader sees growth");
        let refused = write(&reader, 0, IoBuf::zeroed(512), Durability::Cached).await.unwrap_err();
        assert_eq!(refused.kind, IoErrorKind::ReadOnly);

        // A write in flight that nobody waits for keeps the lock until it has landed.
        let mut writing = Box::pin(write(&file, 0, IoBuf::copied(&[2; 4096]), Durability::Durable));
        assert!(futures_util::poll!(writing.as_mut()).is_pending());
        drop(writing);
        drop(file);
        let again = loop {
            match open(ring, dir, Access::Write).await {
                Ok(file) => break file,
                Err(error) => assert_eq!(error.kind, IoErrorKind::Busy),
            }
        };
        assert_eq!(read_vec(&again, 0, 4096).await, [2; 4096]);
    });
}

#[test]
fn clearing_reads_zero_and_gives_space_back() {
    with_file(&pattern(256 * 1024, 3), &async |_, _, file| {
        file.submit(Request::Flush).await.unwrap();
        let before = file.used().await.unwrap().0;
        clear(&file, ByteRange::new(60 * KIB, 128 * KIB), Clear::Deallocate).await;
        let mut expected = pattern(256 * 1024, 3);
        expected[60 * 1024..188 * 1024].fill(0);
        assert_eq!(read_vec(&file, 0, 256 * 1024).await, expected);
        assert_eq!(before - file.used().await.unwrap().0, 128 * KIB);
        let kinds: Vec<_> = file.extents(ByteRange::new(0, 256 * KIB)).await.unwrap();
        let kinds: Vec<_> = kinds.iter().map(|e| (e.range.start.0, e.kind)).collect();
        assert_eq!(
            kinds,
            [(0, ExtentKind::Data), (60 * KIB, ExtentKind::Hole), (188 * KIB, ExtentKind::Data)]
        );
        // Part of a block, and with the space kept.
        clear(&file, ByteRange::new(512, 1024), Clear::Deallocate).await;
        expected[512..1536].fill(0);
        let used = file.used().await.unwrap();
        clear(&file, ByteRange::new(200 * KIB, 16 * KIB), Clear::KeepSpace).await;
        expected[200 * 1024..216 * 1024].fill(0);
        assert_eq!(read_vec(&file, 0, 256 * 1024).await, expected);
        assert_eq!(file.used().await.unwrap(), used);
    });
}

#[test]
fn clearing_without_the_file_systems_help_writes_zeros() {
    with_file(&pattern(3 << 20, 4), &async |_, _, file| {
        file.0.can_punch.set(false);
        file.0.can_zero.set(false);
        let len = 3 * KIB * KIB - 1024;
        clear(&file, ByteRange::new(512, len), Clear::Deallocate).await;
        let mut expected = pattern(3 << 20, 4);
        expected[512..(3 << 20) - 512].fill(0);
        assert!(
            read_vec(&file, 0, 3 << 20).await == expected,
            "zeros from 512 to 512 before the end"
        );
    });
}

#[test]
fn a_quick_clear_never_writes_zeros() {
    with_file(&pattern(64 << 10, 4), &async |_, dir, file| {
        let request = |how| {
            let range = ByteRange::new(4096, 8192);
            Request::Clear { range, how, effort: Effort::Quick, durability: Durability::Cached }
        };
        file.0.can_zero.set(false);
        file.0.can_punch.set(false);
        for how in [Clear::Deallocate, Clear::KeepSpace] {
            let refused = file.submit(request(how)).await.unwrap_err();
            assert_eq!(refused.kind, IoErrorKind::Unsupported, "{how:?}: {refused}");
        }
        assert!(fs::read(dir.join("f")).unwrap() == pattern(64 << 10, 4), "nothing was changed");
        file.0.can_punch.set(true);
        assert_eq!(
            file.submit(request(Clear::KeepSpace)).await.unwrap_err().kind,
            IoErrorKind::Unsupported
        );
        file.submit(request(Clear::Deallocate)).await.unwrap();
        assert_eq!(read_vec(&file, 4096, 8192).await, [0; 8192]);
    });
}

#[test]
fn reserving_takes_space_that_reads_as_zero() {
    with_file(&pattern(4096, 5), &async |_, _, file| {
        file.reserve(ByteRange::new(0, 1024 * KIB)).await.unwrap();
        assert_eq!(file.info().size, ByteCount::mib(1));
        assert!(file.used().await.unwrap() >= ByteCount::mib(1));
        assert_eq!(read_vec(&file, 0, 4096).await, pattern(4096, 5));
        assert_eq!(read_vec(&file, 512 * KIB, 4096).await, [0; 4096]);
    });
}

#[test]
fn truncating_cuts_and_extends_with_zeros() {
    with_file(&pattern(16 * 1024, 6), &async |_, dir, file| {
        file.truncate(ByteCount(512)).await.unwrap();
        file.truncate(ByteCount::kib(8)).await.unwrap();
        let mut expected = pattern(16 * 1024, 6);
        expected.truncate(512);
        expected.resize(8192, 0);
        assert_eq!(read_vec(&file, 0, 8192).await, expected);
        let mut seen = vec![0; 8192];
        StdFile::open(dir.join("f")).unwrap().read_exact_at(&mut seen, 0).unwrap();
        assert_eq!(seen, expected);
    });
}

#[test]
fn what_is_no_plain_file_is_refused() {
    with_file(&[], &async |ring, dir, file| {
        drop(file);
        fs::remove_file(dir.join("f")).unwrap();
        let missing = open(ring, dir, Access::Read).await.unwrap_err();
        assert_eq!(missing.kind, IoErrorKind::NotFound);
        fs::create_dir(dir.join("f")).unwrap();
        let no_file = open(ring, dir, Access::Read).await.unwrap_err();
        assert_eq!(no_file.kind, IoErrorKind::Unsupported);
        fs::remove_dir(dir.join("f")).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", dir.join("f")).unwrap();
        assert!(open(ring, dir, Access::Read).await.is_err(), "no way out by a symbolic link");
    });
}

#[test]
fn crooked_requests_are_refused() {
    with_file(&[0; 4096], &async |_, _, file| {
        for (at, len, kind) in [
            (1, 512, IoErrorKind::Misaligned),
            (0, 100, IoErrorKind::Misaligned),
            (0, (4 << 20) + 512, IoErrorKind::Misaligned),
            (u64::MAX - 511, 512, IoErrorKind::OutOfRange),
        ] {
            let refused = write(&file, at, IoBuf::zeroed(len), Durability::Cached).await;
            assert_eq!(refused.unwrap_err().kind, kind, "{len} bytes at {at}");
        }
        let range = ByteRange::new(4096, 512);
        let request = Request::Clear {
            range,
            how: Clear::KeepSpace,
            effort: Effort::Any,
            durability: Durability::Cached,
        };
        let refused = file.submit(request).await.unwrap_err();
        assert_eq!(refused.kind, IoErrorKind::OutOfRange);
    });
}

#[test]
fn a_reservation_that_fails_takes_nothing() {
    let shm = Path::new("/dev/shm");
    let tmpfs = rustix::fs::statfs(shm).is_ok_and(|fs| fs.f_type == libc::TMPFS_MAGIC);
    let dir = tempfile::tempdir_in(shm);
    let (true, Ok(dir)) = (tmpfs, dir) else {
        println!("no tmpfs at /dev/shm here");
        return;
    };
    let (executor, ring) = Ring::start().unwrap();
    executor.block_on(async {
        fs::write(dir.path().join("f"), [7; 8192]).unwrap();
        let file = open(&ring, dir.path(), Access::Write).await.unwrap();
        // More than memory: a tmpfs refuses that before it takes anything.
        let full = file.reserve(ByteRange::new(4096, 1 << 50)).await.unwrap_err();
        assert_eq!(full.kind, IoErrorKind::NoSpace, "{full}");
        assert_eq!(file.info().size.0, 8192);
        assert_eq!(fs::read(dir.path().join("f")).unwrap(), [7; 8192]);
        write(&file, 8192, IoBuf::copied(&[8; 512]), Durability::Cached).await.unwrap();
        assert_eq!(read_vec(&file, 8192, 512).await, [8; 512]);
    });
}
