//! Random 4 KiB reads or writes of a file at a queue depth, through `BlockDevice` as the engine
//! does it: `randread FILE [read|write] [queue depth] [seconds]`. Compare with
//! `fio --ioengine=io_uring --direct=1 --rw=randread --bs=4k --iodepth=32`.

use std::cell::Cell;
use std::fs::File;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use blockio::{Access, FileDevice};
use io::sim::SplitMix64;
use io::{BlockDevice, ByteOffset, Durability, IoBuf, Request, Ring};

const BLOCK: usize = 4096;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let arg = |n: usize, default: &str| args.get(n).cloned().unwrap_or_else(|| default.into());
    let path = PathBuf::from(arg(0, "test.img"));
    let writes = arg(1, "read") == "write";
    let depth: u64 = arg(2, "32").parse().expect("a queue depth");
    let seconds: u64 = arg(3, "5").parse().expect("a number of seconds");

    let (executor, ring) = Ring::start().expect("a ring");
    executor.block_on(async {
        let directory = File::open(path.parent().expect("a file in a directory"));
        let name = path.file_name().and_then(|name| name.to_str()).expect("a file name");
        let access = if writes { Access::Write } else { Access::Read };
        let directory = directory.expect("the directory");
        let device = FileDevice::open(&ring, directory, name, access).await.expect("the file");
        let direct = device.is_direct();
        let device: Rc<dyn BlockDevice> = Rc::new(device);
        let blocks = device.info().size.0 / BLOCK as u64;
        let (end, done) =
            (ring.local().now() + Duration::from_secs(seconds), Rc::new(Cell::new(0)));
        let tasks: Vec<_> = (0..depth)
            .map(|seed| {
                let (device, done) = (Rc::clone(&device), Rc::clone(&done));
                let local = ring.local().clone();
                ring.local().spawn(async move {
                    let (mut rng, buf) = (SplitMix64::new(seed), IoBuf::zeroed(BLOCK));
                    while local.now() < end {
                        let at = ByteOffset(rng.below(blocks) * BLOCK as u64);
                        let (into, durability) = (buf.clone(), Durability::Cached);
                        let request = if writes {
                            Request::Write { at, from: into, durability }
                        } else {
                            Request::Read { at, into }
                        };
                        device.submit(request).await.expect("I/O");
                        done.set(done.get() + 1_u64);
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await;
        }
        #[expect(clippy::print_stdout, reason = "the result of a measurement")]
        {
            let (rate, backend) = (done.get() / seconds, ring.backend());
            println!("{backend}, direct {direct}: {rate} IOPS at queue depth {depth}");
        }
    });
}
