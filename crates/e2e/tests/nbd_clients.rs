//! Other people's NBD clients against the server alone, in front of a device in memory: what they
//! negotiate, write, read, map and measure.

use std::path::PathBuf;
use std::process::Command;
use std::rc::Rc;
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow, ensure};
use e2e::need;
use e2e::process::{run, text};
use export::{Counters, Export, NbdServer, tcp_uri, unix_uri};
use io::{BlockDevice, ByteCount, Ring};
use serde_json::Value;

#[path = "../../export/tests/ram/mod.rs"]
#[expect(dead_code, unreachable_pub, reason = "the server's own tests use the rest")]
mod ram;

const MIB: usize = 1 << 20;

/// A server on a thread of its own.
struct Server {
    dir: tempfile::TempDir,
    unix: String,
    tcp: String,
    end: Option<std::sync::mpsc::Sender<()>>,
    thread: JoinHandle<Result<Counters>>,
}

impl Server {
    fn start(size: usize, read_only: bool) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let socket = dir.path().join("run/disk.sock");
        let unix = unix_uri("disk", &socket);
        let (tell, told) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || -> Result<Counters> {
            let (executor, ring) = Ring::start()?;
            let device: Rc<dyn BlockDevice> = ram::RamDevice::new(size);
            let (name, description) = ("disk".to_owned(), "a disk in memory".to_owned());
            let server = NbdServer::new(&ring, Export { name, description, device, read_only });
            server.listen_unix(&socket)?;
            let address = server.listen_tcp("127.0.0.1:0".parse()?)?;
            tell.send(address)?;
            executor.block_on(async {
                // the sender's drop is the sign to close
                let _disconnected = ring.run_blocking(move || ended.recv()).await;
                server.close().await;
                ensure!(server.counters().connections == 0, "closed, but not alone");
                Ok(server.counters())
            })
        });
        let address = told.recv().context("the server did not start")?;
        Ok(Self { dir, unix, tcp: tcp_uri("disk", address), end: Some(end), thread })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Closes the server; what it counted.
    fn close(mut self) -> Result<Counters> {
        drop(self.end.take());
        let counters = self.thread.join().map_err(|_panic| anyhow!("the server panicked"))??;
        ensure!(counters.protocol_errors == 0, "a client was taken for a broken one: {counters:?}");
        ensure!(!self.dir.path().join("run/disk.sock").exists(), "the socket's file stays");
        Ok(counters)
    }
}

/// A file of `len` bytes, part noise, part zeroes.
fn image(server: &Server, len: usize) -> Result<PathBuf> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = vec![0; len];
    for part in bytes[len / 8..len / 2].chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        part.copy_from_slice(&state.to_le_bytes()[..part.len()]);
    }
    let path = server.file("image");
    std::fs::write(&path, bytes)?;
    Ok(path)
}

fn json(command: &mut Command) -> Result<Value> {
    Ok(serde_json::from_str(&text(command)?)?)
}

#[test]
fn nbdinfo_reads_what_is_offered() -> Result<()> {
    let nbdinfo = need::tool("/usr/bin/nbdinfo")?;
    let server = Server::start(8 * MIB, false)?;
    for uri in [&server.unix, &server.tcp] {
        // its guess at the content is made by another program, which may not be there
        let told = json(Command::new(nbdinfo).args(["--json", "--no-content", uri]))?;
        let export = &told["exports"][0];
        ensure!(told["structured"] == true && told["protocol"] == "newstyle-fixed", "{told}");
        ensure!(export["export-size"] == 8 * MIB && export["description"] == "a disk in memory");
        let contexts = serde_json::json!(["base:allocation", "qemu:allocation-depth"]);
        ensure!(export["contexts"] == contexts, "{export}");
        for yes in ["flush", "fua", "trim", "zero", "multi_conn", "df", "cache", "fast_zero"] {
            ensure!(export[format!("can_{yes}")] == true, "{yes}: {export}");
        }
        ensure!(export["is_read_only"] == false && export["block_size_minimum"] == 512);
    }
    let listed =
        json(Command::new(nbdinfo).args(["--json", "--no-content", "--list", &server.unix]))?;
    ensure!(listed["exports"][0]["export-name"] == "disk", "{listed}");
    ensure!(server.close()?.accepted >= 3);
    let server = Server::start(MIB, true)?;
    run(Command::new(nbdinfo).args(["--is", "read-only", &server.unix]))?;
    ensure!(run(Command::new(nbdinfo).args(["--can", "trim", &server.unix])).is_err());
    server.close().map(drop)
}

#[test]
fn nbdcopy_brings_an_image_in_and_out_over_several_connections() -> Result<()> {
    let nbdcopy = need::tool("/usr/bin/nbdcopy")?;
    let server = Server::start(64 * MIB, false)?;
    let source = image(&server, 64 * MIB)?;
    for (uri, out) in [(&server.unix, "unix"), (&server.tcp, "tcp")] {
        let copied = server.file(out);
        run(Command::new(nbdcopy).args(["--connections=4", "--flush"]).arg(&source).arg(uri))?;
        run(Command::new(nbdcopy).arg("--connections=4").arg(uri).arg(&copied))?;
        ensure!(std::fs::read(&copied)? == std::fs::read(&source)?, "{out}: another content");
    }
    let counters = server.close()?;
    ensure!(counters.flushes > 0 && counters.failures == 0, "{counters:?}");
    Ok(())
}

#[test]
fn qemu_img_and_qemu_io_find_what_they_wrote() -> Result<()> {
    let qemu_img = need::tool("/usr/bin/qemu-img")?;
    let qemu_io = need::tool("/usr/bin/qemu-io")?;
    let server = Server::start(64 * MIB, false)?;
    let source = image(&server, 64 * MIB)?;
    let source = source.to_str().context("a path in UTF-8")?;
    let uri = server.unix.as_str();
    run(Command::new(qemu_img).args(["convert", "-n", "-f", "raw", "-O", "raw", source, uri]))?;
    run(Command::new(qemu_img).args(["compare", "-f", "raw", "-F", "raw", source, uri]))?;
    let io = |script: &[&str]| {
        let commands = script.iter().flat_map(|c| ["-c", c]);
        let out = text(Command::new(qemu_io).args(["-f", "raw"]).args(commands).arg(uri))?;
        ensure!(!out.contains("failed"), "{script:?}: {out}");
        Ok(out)
    };
    // more than one message of the largest size, at an odd place
    io(&["write -P 7 512 40M", "read -P 7 512 40M", "flush"])?;
    io(&["write -f -P 9 1M 64k", "discard 2M 1M", "write -z 4M 1M", "write -z -u 6M 1M"])?;
    io(&["read -P 9 1M 64k", "read -P 0 4M 1M", "read -P 0 6M 1M", "read -P 7 7M 1M"])?;
    let map = json(Command::new(qemu_img).args(["map", "--output=json", "-f", "raw", uri]))?;
    let data = |at: usize| {
        let runs = map.as_array().into_iter().flatten();
        let mut holding = runs.filter(|r| {
            let start = r["start"].as_u64().unwrap_or(u64::MAX);
            let end = start.saturating_add(r["length"].as_u64().unwrap_or(0));
            (start..end).contains(&ByteCount::of(at).0)
        });
        holding.next().map(|r| r["data"] == true)
    };
    ensure!(data(MIB) == Some(true) && data(2 * MIB) == Some(false), "{map}");
    ensure!(data(6 * MIB) == Some(false) && data(7 * MIB) == Some(true), "{map}");
    server.close().map(drop)
}

/// What libnbd's shell says to `h`, a connection to the server; prints nothing when all is as it
/// should be.
const SHELL: &str = r#"
h.set_strict_mode(0)
assert h.can_meta_context("base:allocation") and h.can_meta_context("qemu:allocation-depth")
MIB = 1 << 20
h.pwrite(b"d" * 65536, MIB)

# both contexts in one answer
told = {}
h.block_status(4 * MIB, 0, lambda name, at, runs, error: told.__setitem__(name, runs) or 0)
assert told == {
    "base:allocation": [MIB, 3, 65536, 0, 3 * MIB - 65536, 3],
    "qemu:allocation-depth": [MIB, 0, 65536, 1, 3 * MIB - 65536, 0],
}, told

# a long read names its holes, one that must be whole does not
def chunks(flags):
    seen = []
    data = h.pread_structured(4 * MIB, 0, lambda b, at, kind, e: seen.append((kind, at)) or 0, flags)
    assert data == bytes(MIB) + b"d" * 65536 + bytes(3 * MIB - 65536)
    return seen
hole, data = nbd.READ_HOLE, nbd.READ_DATA
assert chunks(0) == [(hole, 0), (data, MIB), (hole, MIB + 65536)], chunks(0)
assert chunks(nbd.CMD_FLAG_DF) == [(data, 0)]

# quick zeroing, caching, and what is refused with a reason
h.zero(65536, MIB, nbd.CMD_FLAG_FAST_ZERO)
assert h.pread(65536, MIB) == bytes(65536)
h.cache(8 * MIB, 0)
def refused(number, call):
    try:
        call()
    except nbd.Error as error:
        assert error.errnum == number, error
    else:
        raise AssertionError("it was not refused")
refused(errno.EINVAL, lambda: h.cache(8 * MIB, MIB))
refused(errno.EINVAL, lambda: h.trim(512, 8 * MIB))
refused(errno.ENOSPC, lambda: h.zero(512, 8 * MIB))
refused(errno.EINVAL, lambda: h.pread(512, 1))
"#;

#[test]
fn libnbds_shell_finds_contexts_holes_and_refusals_as_specified() -> Result<()> {
    need::tool("/usr/share/doc/python3-libnbd/copyright")?;
    let server = Server::start(8 * MIB, false)?;
    let connect = format!(
        "import errno, nbd\nh = nbd.NBD()\n\
         for name in nbd.CONTEXT_BASE_ALLOCATION, 'qemu:allocation-depth': h.add_meta_context(name)\n\
         h.connect_uri({:?})\n",
        server.unix
    );
    let python = need::tool("/usr/bin/python3")?;
    let said = text(Command::new(python).args(["-c", &format!("{connect}{SHELL}")]))?;
    ensure!(said.is_empty(), "{said}");
    server.close().map(drop)
}

#[test]
fn fio_verifies_its_own_random_writes() -> Result<()> {
    let fio = need::tool("/usr/bin/fio")?;
    let server = Server::start(16 * MIB, false)?;
    let uri = format!("--uri={}", server.unix);
    // it leaves a file of its state where it stands
    run(Command::new(fio)
        .current_dir(server.dir.path())
        .args(["--name=t", "--ioengine=nbd", &uri, "--rw=randwrite"])
        .args([
            "--bsrange=4k-64k",
            "--bs_unaligned=0",
            "--iodepth=32",
            "--size=16m",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--randseed=1",
        ]))?;
    let counters = server.close()?;
    ensure!(counters.writes > 0 && counters.reads > 0 && counters.failures == 0, "{counters:?}");
    Ok(())
}
