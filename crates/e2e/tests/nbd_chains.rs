//! What NBD tells of a chain: which snapshot holds a range, holes of a disk that is mostly holes, and
//! requests as long as the disk.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use e2e::process::{run, text};
use e2e::shale::Connection;
use e2e::tools::{self, Fill};
use e2e::{Shale, need};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use serde_json::Value;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const BLOCK: u64 = 2 * MIB;
const SIZE: u64 = 1 << 40;

fn fill(byte: u8, at: u64, len: u64) -> Fill {
    Fill { byte, at, len }
}

/// nbdinfo's map of a context: (length, value).
fn map(uri: &str, context: &str) -> Result<Vec<(u64, u64)>> {
    let nbdinfo = need::tool("/usr/bin/nbdinfo")?;
    let told = text(Command::new(nbdinfo).args(["--json", &format!("--map={context}"), uri]))?;
    let told: Value = serde_json::from_str(&told)?;
    let runs = told.as_array().context("nbdinfo printed no list")?;
    let number = |run: &Value, key: &str| run[key].as_u64().with_context(|| format!("{run}"));
    runs.iter().map(|run| Ok((number(run, "length")?, number(run, "type")?))).collect()
}

/// Lengths of the requests of a kind that a QEMU tool sent: its trace says so.
fn sent(trace: &str, kind: &str) -> Vec<u64> {
    let lines = trace.lines().filter(|line| line.contains(&format!("({kind})")));
    let lengths = lines.filter_map(|line| line.split(".len = ").nth(1)?.split(',').next());
    lengths.filter_map(|len| len.trim().parse().ok()).collect()
}

/// Runs a QEMU tool with a trace of its requests; its trace and output.
fn traced(tool: &str, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(need::tool(tool)?);
    let done = run(command.args(["-T", "nbd_send_request"]).args(arguments))?;
    Ok(String::from_utf8(done.stdout)? + &String::from_utf8(done.stderr)?)
}

/// A volume of 1 TiB with two snapshots: the base in the third layer, its leaf in the first.
fn chain(shale: &Shale) -> Result<Connection> {
    shale.datastore("fast")?;
    shale.volume("web", "fast", "1T")?;
    let connection = shale.connect("web")?;
    tools::write(&connection.uri, &[fill(1, 0, 2 * BLOCK), fill(1, 500 * GIB, BLOCK)])?;
    shale.snapshot("one", "web")?;
    tools::write(&connection.uri, &[fill(2, BLOCK, 64 * KIB), fill(2, 10 * GIB, 64 * KIB)])?;
    shale.snapshot("two", "web")?;
    tools::write(&connection.uri, &[fill(3, 64 * KIB, 4 * KIB)])?;
    Ok(connection)
}

#[test]
fn allocation_depth_names_the_snapshot_that_holds_a_range() -> Result<()> {
    let shale = Shale::start()?;
    let connection = chain(&shale)?;
    let far = [(64 * KIB, 2), (490 * GIB - 64 * KIB, 0), (BLOCK, 3), (SIZE - 500 * GIB - BLOCK, 0)];
    let near = [
        (64 * KIB, 3),
        (4 * KIB, 1),
        (BLOCK - 68 * KIB, 3),
        (64 * KIB, 2),
        (BLOCK - 64 * KIB, 3),
        (10 * GIB - 2 * BLOCK, 0),
    ];
    let live = [&near[..], &far].concat();
    ensure!(map(&connection.uri, "qemu:allocation-depth")? == live);
    let base = map(&connection.uri, "base:allocation")?;
    let data: u64 = base.iter().filter(|(_, kind)| *kind == 0).map(|(len, _)| len).sum();
    ensure!(data == 3 * BLOCK + 64 * KIB, "{base:?}");
    ensure!(tools::map(&connection.uri)?.iter().filter(|(.., data)| *data).count() == 3);

    // a snapshot is a disk of its own, whose top is what it froze
    let frozen = shale.connect_with("web", &["--snapshot", "one", "--read-only"])?;
    let want =
        [(2 * BLOCK, 1), (500 * GIB - 2 * BLOCK, 0), (BLOCK, 1), (SIZE - 500 * GIB - BLOCK, 0)];
    ensure!(map(&frozen.uri, "qemu:allocation-depth")? == want);
    Ok(())
}

#[test]
fn one_request_tells_of_the_whole_disk_and_one_zeroes_most_of_it() -> Result<()> {
    let shale = Shale::start()?;
    let connection = chain(&shale)?;
    let uri = connection.uri.as_str();
    let trace = traced("/usr/bin/qemu-img", &["map", "-f", "raw", "--output=json", uri])?;
    let asked = sent(&trace, "block status");
    ensure!(asked.iter().any(|len| *len > 4 * GIB), "no long question of {asked:?}: {trace}");

    // `-n`: not by writing, so it must be quick
    let zero = format!("write -z -n -u {} {}", GIB, 900 * GIB);
    let trace = traced("/usr/bin/qemu-io", &["-f", "raw", "-c", &zero, "-c", "flush", uri])?;
    ensure!(sent(&trace, "write zeroes") == [900 * GIB], "{trace}");
    // what lay below is hidden by zeros of the leaf's own; where nothing lay, nothing is kept
    let told = map(uri, "qemu:allocation-depth")?;
    let want = [
        (10 * GIB - 2 * BLOCK, 0),
        (BLOCK, 1),
        (490 * GIB - BLOCK, 0),
        (BLOCK, 1),
        (SIZE - 500 * GIB - BLOCK, 0),
    ];
    ensure!(told.ends_with(&want), "{told:?}");
    let holds = [fill(1, 2 * BLOCK - MIB, MIB), fill(0, 10 * GIB, MIB), fill(0, 500 * GIB, MIB)];
    tools::expect(uri, &holds)?;
    Ok(())
}

/// Whether a file system zeroes a range without writing it.
fn zeroes_ranges(dir: &Path) -> Result<bool> {
    let file = tempfile::tempfile_in(dir)?;
    file.set_len(MIB)?;
    let zero = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
    match fallocate(&file, zero, 0, MIB) {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[test]
fn quick_zeroing_fails_where_zeros_must_be_written_and_space_be_kept() -> Result<()> {
    // a tmpfs punches holes, and most kernels' do not zero ranges
    for (home, kind) in [("/dev/shm", "lazy"), ("/dev/shm", "thin"), ("/var/tmp", "lazy")] {
        let home = tempfile::Builder::new().prefix("shale-").tempdir_in(home)?;
        let quick = kind == "thin" || zeroes_ranges(home.path())?;
        let shale = Shale::start_in(home)?;
        shale.datastore("fast")?;
        let create = ["volume", "create", "web", "--datastore", "fast", "--size", "16M", "--kind"];
        shale.cli(&[&create[..], &[kind]].concat())?;
        let uri = shale.connect("web")?.uri;
        tools::write(&uri, &[fill(1, 0, 4 * MIB)])?;
        // `-n`: fail where it would be written; `-u`: space may be given back
        let tried = tools::io(&uri, &["write -z -n -u 4k 1M"]);
        let told = format!("{kind} in {}: {tried:?}", shale.home().display());
        ensure!(tried.is_ok_and(|said| said.contains("wrote")) == quick, "{told}");
        ensure!(quick || told.contains("not supported"), "{told}");
        let unchanged = if quick { 0 } else { 1 };
        tools::expect(&uri, &[fill(unchanged, 4 * KIB, MIB)])?;
        tools::io(&uri, &["write -z -u 4k 1M"])?;
        tools::expect(&uri, &[fill(1, 0, 4 * KIB), fill(0, 4 * KIB, MIB), fill(1, 2 * MIB, MIB)])?;
    }
    Ok(())
}

#[test]
fn a_sparse_disk_is_copied_without_its_holes() -> Result<()> {
    let shale = Shale::start()?;
    let connection = chain(&shale)?;
    let copy = shale.home().join("copy.raw");
    let nbdcopy = need::tool("/usr/bin/nbdcopy")?;
    run(Command::new(nbdcopy).args(["--connections=4"]).arg(&connection.uri).arg(&copy))?;
    let copied = copy.to_str().context("a path in UTF-8")?;
    tools::compare(&connection.uri, copied)?;
    // and back, into a volume of its own
    shale.volume("other", "fast", "1T")?;
    let other = shale.connect("other")?;
    run(Command::new(nbdcopy)
        .args(["--flush", "--destination-is-zero"])
        .arg(&copy)
        .arg(&other.uri))?;
    tools::compare(&connection.uri, &other.uri)?;
    let depths = map(&other.uri, "qemu:allocation-depth")?;
    let data: u64 = depths.iter().filter(|(_, depth)| *depth == 1).map(|(len, _)| len).sum();
    ensure!(data <= 8 * BLOCK, "a copy of {} takes {data}", 3 * BLOCK);
    Ok(())
}
