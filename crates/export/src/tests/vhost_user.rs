//! vhost-user-blk with a guest's side that is no guest: real sockets, eventfds and shared memory, and a
//! device in memory.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::thread::JoinHandle;
use std::time::Duration;

use futures_channel::mpsc::{UnboundedSender, unbounded};
use futures_util::StreamExt as _;
use io::{BlockDevice, Ring};

use super::ram::RamDevice;
use crate::driver::Driver;
use crate::{Export, VhostServer};

const LIMIT: Duration = Duration::from_secs(20);
const SIZE: usize = 4 << 20;

type Job = Box<dyn FnOnce(&RamDevice) + Send>;

/// A server on a thread of its own.
struct Served {
    dir: tempfile::TempDir,
    jobs: UnboundedSender<Job>,
    thread: JoinHandle<()>,
}

impl Served {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("disk.sock");
        let (jobs, mut todo) = unbounded::<Job>();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let (executor, ring) = Ring::start().unwrap();
            executor.block_on(async move {
                let device = RamDevice::new(SIZE);
                let export = Export {
                    name: "disk".into(),
                    description: String::new(),
                    device: Rc::<RamDevice>::clone(&device) as Rc<dyn BlockDevice>,
                    read_only: false,
                };
                let server = VhostServer::new(&ring, export, "0123456789abcdef0123456789".into());
                server.listen_unix(&socket).unwrap();
                ready.send(()).unwrap();
                while let Some(job) = todo.next().await {
                    job(&device);
                }
                server.close().await;
            });
        });
        is_ready.recv().unwrap();
        Self { dir, jobs, thread }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("disk.sock")
    }

    /// Does something with the device, on its thread.
    fn device<T: Send + 'static>(&self, job: impl FnOnce(&RamDevice) -> T + Send + 'static) -> T {
        let (answer, answered) = std::sync::mpsc::channel();
        let job: Job = Box::new(move |device| answer.send(job(device)).unwrap());
        self.jobs.unbounded_send(job).unwrap();
        answered.recv().unwrap()
    }

    /// Closes the server.
    fn stop(self) {
        drop(self.jobs);
        self.thread.join().unwrap();
    }
}

fn connect(socket: &Path) -> Driver {
    Driver::connect(socket, 64 << 10, 8).unwrap()
}

/// Kicks and waits for one request.
fn one(driver: &mut Driver) -> bool {
    driver.kick().unwrap();
    let ended = driver.wait(LIMIT).unwrap();
    assert_eq!(ended.len(), 1, "one request, one answer");
    ended[0].ok
}

#[test]
fn what_was_written_is_read_again() {
    let served = Served::start();
    let mut driver = connect(&served.socket());
    assert_eq!(driver.capacity().unwrap(), SIZE as u64);
    driver.put(0, &[7; 8192]);
    driver.write(0, 4096, 8192).unwrap();
    assert!(one(&mut driver));
    driver.flush(0).unwrap();
    assert!(one(&mut driver));
    driver.zero(0, 8192, 4096).unwrap();
    assert!(one(&mut driver));
    driver.read(1, 0, 16384).unwrap();
    assert!(one(&mut driver));
    let expected = [vec![0; 4096], vec![7; 4096], vec![0; 8192]].concat();
    assert!(driver.get(1, 16384) == expected);
    driver.read(1, SIZE as u64 - 4096, 8192).unwrap();
    assert!(!one(&mut driver), "beyond the end");
    drop(driver);
    served.stop();
}

/// A request that waits keeps its place, and others go on.
#[test]
fn answers_come_as_requests_end_not_as_they_began() {
    let served = Served::start();
    let mut driver = connect(&served.socket());
    served.device(|device| device.hold(0));
    driver.write(0, 0, 4096).unwrap();
    driver.write(1, 4096, 4096).unwrap();
    driver.kick().unwrap();
    assert_eq!(driver.wait(LIMIT).unwrap().iter().map(|e| e.buffer).collect::<Vec<_>>(), [1]);
    served.device(|device| device.release(0));
    assert_eq!(driver.wait(LIMIT).unwrap().iter().map(|e| e.buffer).collect::<Vec<_>>(), [0]);
    drop(driver);
    served.stop();
}

/// Two front ends on one disk: the second one's requests begin when the first has gone and nothing is read
/// into its memory any more.
#[test]
fn one_connection_is_served_at_a_time() {
    let served = Served::start();
    let mut first = connect(&served.socket());
    first.put(0, &[1; 4096]);
    first.write(0, 0, 4096).unwrap();
    assert!(one(&mut first));
    let mut second = connect(&served.socket());
    second.read(0, 0, 4096).unwrap();
    second.kick().unwrap();
    served.device(|device| device.hold(8192));
    first.read(0, 8192, 4096).unwrap();
    first.kick().unwrap();
    // the first is still served, the second is not
    first.read(1, 0, 4096).unwrap();
    assert!(one(&mut first));
    assert!(second.ended().is_empty());
    let socket = served.socket();
    drop(first);
    // what the first had under way is still under way
    let mut third = connect(&socket);
    assert_eq!(third.capacity().unwrap(), SIZE as u64);
    assert!(second.ended().is_empty());
    served.device(|device| device.release(8192));
    let ended = second.wait(LIMIT).unwrap();
    assert!(ended[0].ok && second.get(0, 4096) == [1; 4096]);
    third.read(0, 0, 4096).unwrap();
    third.kick().unwrap();
    drop(second);
    assert!(third.wait(LIMIT).unwrap()[0].ok);
    drop(third);
    served.stop();
}

/// Closing answers what is under way, so that nobody has to do it again.
#[test]
fn closing_answers_what_is_under_way() {
    let served = Served::start();
    let mut driver = connect(&served.socket());
    served.device(|device| device.hold(0));
    driver.put(0, &[9; 4096]);
    driver.write(0, 0, 4096).unwrap();
    driver.kick().unwrap();
    // a request behind it has been answered, so that one has begun
    driver.read(1, 4096, 4096).unwrap();
    assert!(one(&mut driver));
    let jobs = served.jobs.clone();
    let thread = std::thread::spawn(move || served.stop());
    jobs.unbounded_send(Box::new(|device| device.release(0))).unwrap();
    drop(jobs);
    let ended = driver.wait(LIMIT).unwrap();
    assert!(ended[0].ok, "the write was answered before the server went");
    thread.join().unwrap();
}
