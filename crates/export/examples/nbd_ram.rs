//! Serves a device in memory, to measure the server alone: `nbd_ram SOCKET MEBIBYTES`.

use std::path::Path;
use std::rc::Rc;

use export::{Export, NbdServer};
use io::{BlockDevice, Ring};

#[path = "../tests/ram/mod.rs"]
#[expect(dead_code, unreachable_pub, reason = "tests use the rest")]
mod ram;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(socket), Some(size)) = (arguments.next(), arguments.next()) else {
        return Err("usage: nbd_ram SOCKET MEBIBYTES".into());
    };
    let (executor, ring) = Ring::start()?;
    let device: Rc<dyn BlockDevice> = ram::RamDevice::new(size.parse::<usize>()? << 20);
    let server = NbdServer::new(
        &ring,
        Export { name: "ram".into(), description: "memory".into(), device, read_only: false },
    );
    server.listen_unix(Path::new(&socket))?;
    let (read, _write) = std::os::unix::net::UnixStream::pair()?;
    // nobody writes to it: runs until it is killed
    executor.block_on(ring.poll_readable(&Rc::new(read.into())))?;
    Ok(())
}
