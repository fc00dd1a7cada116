//! vhost-user-blk with a guest's side that is no guest: real sockets, eventfds and shared memory, and a
//! device in memory.

mod ram;

use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

use export::driver::Driver;
use export::{Export, VhostServer};
use futures_channel::mpsc::{UnboundedSender, unbounded};
use futures_util::StreamExt as _;
use io::Ring;
use ram::RamDevice;

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
                    device: device.clone(),
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
