//! Both backends against real files and sockets.

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::{join, join_all};
use rustix::fs::FallocateFlags;

use super::{Choice, Ring};
use crate::buffer::IoBuf;
use crate::units::ByteRange;
use crate::{Executor, Io};

/// Runs `test` on each backend that this machine has; the threads are always there.
fn on_each_backend(test: impl Fn(&Executor, Ring)) {
    let (executor, ring) = Ring::start_with(Choice::Threads).unwrap();
    assert_eq!(ring.backend(), "threads");
    test(&executor, ring);
    match Ring::start_with(Choice::Uring) {
        Ok((executor, ring)) => {
            assert_eq!(ring.backend(), "io_uring");
            test(&executor, ring);
        }
        Err(error) => println!("no io_uring here: {error}"),
    }
}

fn temp_file() -> (tempfile::TempDir, Rc<OwnedFd>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(path).unwrap();
    (dir, Rc::new(file.into()))
}

fn socket_pair() -> (Rc<OwnedFd>, Rc<OwnedFd>) {
    let (a, b) = UnixStream::pair().unwrap();
    (Rc::new(a.into()), Rc::new(b.into()))
}

fn pattern(len: usize, salt: usize) -> Vec<u8> {
    (0..len).map(|i| u8::try_from((i * 7 + i / 251 + salt) % 256).unwrap()).collect()
}

#[test]
fn files_take_and_give_what_was_written() {
    on_each_backend(|executor, ring| {
        let (_dir, fd) = temp_file();
        executor.block_on(async {
            let bytes = pattern(100_000, 1);
            ring.write(&fd, 5_000, &IoBuf::copied(&bytes), false).await.unwrap();
            ring.write(&fd, 105_000, &IoBuf::copied(&bytes[..512]), true).await.unwrap();
            ring.fdatasync(&fd).await.unwrap();
            let into = IoBuf::zeroed(100_512);
            ring.read(&fd, 5_000, &into).await.unwrap();
            assert_eq!(into.to_vec(), [&bytes[..], &bytes[..512]].concat());

            let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            ring.fallocate(&fd, hole, ByteRange::new(8_192, 4_096)).await.unwrap();
            let into = IoBuf::copied(&[1; 4_096]);
            ring.read(&fd, 8_192, &into).await.unwrap();
            assert_eq!(into.to_vec(), vec![0; 4_096]);

            ring.ftruncate(&fd, 6_000).await.unwrap();
            let beyond = ring.read(&fd, 5_500, &IoBuf::zeroed(1_000)).await.unwrap_err();
            assert_eq!(beyond.kind(), ErrorKind::UnexpectedEof);
        });
    });
}

#[test]
fn scattered_buffers_and_many_at_once() {
    on_each_backend(|executor, ring| {
        let (_dir, fd) = temp_file();
        executor.block_on(async {
            // More requests than the submission queue holds.
            let writes = (0..1_000_usize).map(|n| {
                let (ring, fd) = (ring.clone(), Rc::clone(&fd));
                ring.local().clone().spawn(async move {
                    ring.write(&fd, n as u64 * 512, &IoBuf::copied(&pattern(512, n)), false).await
                })
            });
            for result in join_all(writes.collect::<Vec<_>>()).await {
                result.unwrap();
            }
            let into = IoBuf::zeroed(512_000);
            ring.read(&fd, 0, &into).await.unwrap();
            for (n, sector) in into.to_vec().chunks(512).enumerate() {
                assert_eq!(sector, pattern(512, n), "sector {n}");
            }
            // One buffer of several pieces, not in the order of memory.
            let whole = IoBuf::zeroed(3_000);
            let pieces: Vec<_> = [2_000, 0, 1_000]
                .into_iter()
                .flat_map(|at| whole.slice(at, 1_000).iovecs().collect::<Vec<_>>())
                .collect();
            struct Keep(#[expect(dead_code, reason = "keeps the memory")] IoBuf);
            #[expect(unsafe_code, reason = "lends out the pieces of a buffer")]
            // SAFETY: the buffer inside keeps its memory at one address.
            unsafe impl crate::Memory for Keep {}
            let scattered = IoBuf::from_parts(Rc::new(Keep(whole.clone())), pieces.into());
            ring.read(&fd, 512, &scattered).await.unwrap();
            let expected = &into.to_vec()[512..3_512];
            assert_eq!(scattered.to_vec(), expected);
            assert_eq!(whole.slice(2_000, 1_000).to_vec(), expected[..1_000]);
        });
    });
}

#[test]
fn sockets_accept_send_and_receive() {
    on_each_backend(|executor, ring| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener: Rc<OwnedFd> = Rc::new(UnixListener::bind(&path).unwrap().into());
        executor.block_on(async {
            let server = async {
                let peer = Rc::new(ring.accept(&listener).await.unwrap());
                let head = IoBuf::zeroed(100);
                ring.recv_exact(&peer, &head).await.unwrap();
                // Larger than any socket buffer: the other side must drain meanwhile.
                let (a, b) = (pattern(3 << 20, 3), pattern(70_001, 4));
                let bufs = [head.clone(), IoBuf::copied(&a), IoBuf::copied(&b)];
                let total: usize = bufs.iter().map(IoBuf::len).sum();
                let mut sent = 0;
                while sent < total {
                    let mut skip = sent;
                    let rest: Vec<IoBuf> = bufs
                        .iter()
                        .filter_map(|buf| {
                            let cut = skip.min(buf.len());
                            skip -= cut;
                            (cut < buf.len()).then(|| buf.slice(cut, buf.len() - cut))
                        })
                        .collect();
                    sent += ring.send(&peer, &rest).await.unwrap();
                }
                [head.to_vec(), a, b].concat()
            };
            let client = async {
                let connect = move || UnixStream::connect(path);
                let stream = ring.run_blocking(connect).await.unwrap();
                let stream: Rc<OwnedFd> = Rc::new(stream.into());
                assert_eq!(ring.send(&stream, &[IoBuf::copied(&[9; 100])]).await.unwrap(), 100);
                let mut seen = Vec::new();
                loop {
                    let into = IoBuf::zeroed(65_536);
                    match ring.recv(&stream, &into).await.unwrap() {
                        0 => return seen,
                        n => seen.extend(into.slice(0, n).to_vec()),
                    }
                }
            };
            let (sent, seen) = join(server, client).await;
            assert_eq!(sent, seen);
        });
    });
}

#[test]
fn a_closed_peer_is_an_error_not_a_signal() {
    on_each_backend(|executor, ring| {
        let (a, b) = socket_pair();
        executor.block_on(async {
            drop(b);
            let broken = ring.send(&a, &[IoBuf::zeroed(10)]).await.unwrap_err();
            assert_eq!(broken.kind(), ErrorKind::BrokenPipe);
            let ended = ring.recv_exact(&a, &IoBuf::zeroed(10)).await.unwrap_err();
            assert_eq!(ended.kind(), ErrorKind::UnexpectedEof);
        });
    });
}

#[test]
fn non_blocking_sockets_wait_as_others_do() {
    on_each_backend(|executor, ring| {
        let (a, b) = socket_pair();
        rustix::io::ioctl_fionbio(a.as_fd(), true).unwrap();
        executor.block_on(async {
            let into = IoBuf::zeroed(5);
            let (received, sent) = join(ring.recv_exact(&a, &into), async {
                ring.local().sleep(Duration::from_millis(1)).await;
                ring.send(&b, &[IoBuf::copied(b"hello")]).await
            })
            .await;
            received.unwrap();
            assert_eq!((sent.unwrap(), into.to_vec()), (5, b"hello".to_vec()));
        });
    });
}

#[test]
fn a_dropped_write_still_lands_and_a_dropped_receive_lets_go() {
    on_each_backend(|executor, ring| {
        let (_dir, fd) = temp_file();
        let (a, b) = socket_pair();
        executor.block_on(async {
            {
                let buf = IoBuf::copied(&[7; 4_096]);
                let mut write = Box::pin(ring.write(&fd, 0, &buf, false));
                assert!(futures_util::poll!(write.as_mut()).is_pending());
            }
            let mut found = IoBuf::zeroed(4_096);
            while let Err(error) = ring.read(&fd, 0, &found).await {
                assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
                found = IoBuf::zeroed(4_096);
            }
            assert_eq!(found.to_vec(), vec![7; 4_096]);
            {
                let buf = IoBuf::zeroed(10);
                let mut receive = Box::pin(ring.recv(&a, &buf));
                assert!(futures_util::poll!(receive.as_mut()).is_pending());
            }
            // The request held the other descriptor of `a`; once it lets go, b sees the end.
            drop(a);
            assert_eq!(ring.recv(&b, &IoBuf::zeroed(1)).await.unwrap(), 0);
        });
    });
}

#[test]
fn a_ring_goes_while_requests_are_in_flight() {
    on_each_backend(|executor, ring| {
        let (_dir, fd) = temp_file();
        let (a, _b) = socket_pair();
        let task_ring = ring.clone();
        let task = ring.local().spawn(async move {
            let buf = IoBuf::zeroed(1 << 20);
            let (read, written) =
                join(task_ring.recv(&a, &buf), task_ring.write(&fd, 0, &buf, false)).await;
            drop((read, written));
        });
        executor.block_on(async { ring.local().sleep(Duration::ZERO).await });
        drop(task);
    });
}

#[test]
fn other_threads_wake_and_spawn() {
    on_each_backend(|executor, ring| {
        let remote = ring.local().remote();
        let (tell, told) = futures_channel::oneshot::channel();
        let thread = std::thread::spawn(move || {
            for n in 0..100_u32 {
                let (tell, told) = std::sync::mpsc::channel();
                remote.spawn(move |local| -> Io<'static, ()> {
                    Box::pin(async move {
                        local.sleep(Duration::from_micros(10)).await;
                        tell.send(n).unwrap();
                    })
                });
                assert_eq!(told.recv().unwrap(), n);
            }
            tell.send("done").unwrap();
        });
        assert_eq!(executor.block_on(told).unwrap(), "done");
        thread.join().unwrap();
        let answer = executor.block_on(ring.run_blocking(|| 6 * 7));
        assert_eq!(answer, 42);
    });
}

#[test]
fn errors_carry_the_systems_number() {
    on_each_backend(|executor, ring| {
        let (_dir, fd) = temp_file();
        let read_only: Rc<OwnedFd> = Rc::new(std::fs::File::open("/dev/null").unwrap().into());
        executor.block_on(async {
            let refused = ring.write(&read_only, 0, &IoBuf::zeroed(1), false).await.unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::EBADF));
            let kept = FallocateFlags::PUNCH_HOLE;
            let refused = ring.fallocate(&fd, kept, ByteRange::new(0, 1)).await.unwrap_err();
            assert!(matches!(refused.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)));
            let (a, b) = socket_pair();
            drop(b);
            ring.poll_readable(&a).await.unwrap();
        });
    });
}

#[test]
fn a_held_file_stays_locked_as_long_as_the_ring_has_requests() {
    use rustix::fs::{FlockOperation, flock};
    let Ok((executor, ring)) = Ring::start_with(Choice::Uring) else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lock");
    let open = || -> OwnedFd {
        let mut how = OpenOptions::new();
        how.read(true).write(true).create(true).truncate(false).open(&path).unwrap().into()
    };
    let lock = open();
    flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
    ring.hold(&lock).unwrap();
    drop(lock);
    let other = open();
    assert!(flock(&other, FlockOperation::NonBlockingLockExclusive).is_err());
    drop((ring, executor));
    // the kernel takes rings apart behind our back; this waits for it
    flock(&other, FlockOperation::LockExclusive).unwrap();
}
