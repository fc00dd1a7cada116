//! Volumes larger than one VHD can be: every operation over the boundary of their segments.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::Shale;
use e2e::process::{Signal, poll_until, signal};
use e2e::shale::exit;
use e2e::tools::{self, Fill};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// Where the first segment ends.
const BOUNDARY: u64 = 2040 * GIB;

fn fill(byte: u8, at: u64, len: u64) -> Fill {
    Fill { byte, at, len }
}

fn in_use(shale: &Shale, volume: &str, with: impl FnOnce(&str) -> Result<()>) -> Result<()> {
    let connection = shale.connect(volume)?;
    with(&connection.uri)?;
    shale.disconnect(volume)
}

fn expect(shale: &Shale, volume: &str, fills: &[Fill]) -> Result<()> {
    in_use(shale, volume, |uri| tools::expect(uri, fills))
}

#[test]
fn a_volume_grows_over_the_boundary_and_keeps_every_point_in_time() -> Result<()> {
    let shale = Shale::start()?;
    let store = shale.datastore("fast")?;
    shale.volume("web", "fast", "2000G")?;
    let old = fill(1, 0, MIB);
    in_use(&shale, "web", |uri| tools::write(uri, &[old]))?;
    shale.snapshot("small", "web")?;

    shale.cli(&["volume", "resize", "web", "--size", "64T"])?;
    ensure!(shale.json(&["volume", "show", "web"])?["size"] == 64_u64 << 40, "size");
    let over = fill(2, BOUNDARY - MIB, 2 * MIB);
    let last = fill(3, (64 << 40) - MIB, MIB);
    let connection = shale.connect("web")?;
    tools::write(&connection.uri, &[over, last])?;
    // one moment of all segments, while it is connected
    shale.snapshot("large", "web")?;
    let newer = fill(4, BOUNDARY - 4096, 8192);
    tools::write(&connection.uri, &[newer])?;
    signal(shale.node_pid()?, Signal::KILL)?;
    let head = fill(2, BOUNDARY - MIB, MIB - 4096);
    let seen = || Ok(tools::expect(&connection.uri, &[old, head, newer, last]).ok());
    poll_until(Duration::from_secs(20), seen, || "the volume to be back".to_owned())?;
    shale.disconnect("web")?;

    shale.revert("large", "web")?;
    expect(&shale, "web", &[old, over, last])?;
    let clone = ["volume", "clone", "web", "--snapshot", "large", "--name", "clone"];
    shale.cli(&clone)?;
    in_use(&shale, "clone", |uri| tools::write(uri, &[newer]))?;
    shale.revert("small", "web")?;
    ensure!(shale.json(&["volume", "show", "web"])?["size"] == 2000 * GIB, "size of then");
    expect(&shale, "web", &[old, fill(0, 1000 * GIB, MIB)])?;
    expect(&shale, "clone", &[old, head, newer, last])?;

    // it grows again, and sees nothing of what others have there
    shale.cli(&["volume", "resize", "web", "--size", "2041G"])?;
    let zeros = fill(0, BOUNDARY - MIB, 2 * MIB);
    expect(&shale, "web", &[old, zeros])?;
    shale.delete_volume("clone")?;
    shale.delete_snapshot("large", "web")?;
    shale.delete_snapshot("small", "web")?;
    expect(&shale, "web", &[old, zeros])?;
    shale.cli(&["datastore", "check", "fast"])?;
    let layers = std::fs::read_dir(store.join("layer"))?.count();
    ensure!(layers == 2, "{layers} layers are left of a volume of two segments");
    shale.refused(&["volume", "resize", "web", "--size", "65T"], exit::USAGE).map(drop)
}

#[test]
fn large_volumes_come_and_go_in_formats_that_can_hold_them() -> Result<()> {
    let shale = Shale::start()?;
    shale.datastore("fast")?;
    shale.volume("web", "fast", "3T")?;
    let first = fill(1, 7 * MIB, MIB);
    let over = fill(2, BOUNDARY - MIB, 2 * MIB);
    in_use(&shale, "web", |uri| tools::write(uri, &[first, over]))?;
    shale.snapshot("one", "web")?;
    let newer = fill(3, BOUNDARY, 4096);
    in_use(&shale, "web", |uri| tools::write(uri, &[newer]))?;
    let now = [first, fill(2, BOUNDARY - MIB, MIB), newer, fill(2, BOUNDARY + 4096, MIB - 4096)];

    for format in ["raw", "qcow2", "vmdk"] {
        let file = shale.home().join(format!("web.{format}"));
        let path = file.to_str().context("UTF-8")?;
        shale.cli(&["volume", "export", "web", "--to", path, "--format", format])?;
        let import = ["volume", "import", format, "--datastore", "fast", "--from", path];
        shale.cli(&import)?;
        expect(&shale, format, &now)?;
        shale.delete_volume(format)?;
        std::fs::remove_file(&file)?;
    }

    // One VHD cannot hold it: refused with what can; a folder has one for each segment and layer.
    let file = shale.home().join("web.vhd");
    let said = shale.refused(
        &["volume", "export", "web", "--to", file.to_str().context("UTF-8")?],
        exit::USAGE,
    )?;
    ensure!(said.contains("2040 GiB") && !file.exists(), "{said}");
    let folder = shale.home().join("chain");
    let path = folder.to_str().context("UTF-8")?;
    shale.cli(&["volume", "export", "web", "--to", path, "--with-snapshots"])?;
    let mut files: Vec<String> = std::fs::read_dir(&folder)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    files.sort();
    ensure!(files == ["web.2.vhd", "web.vhd", "web@one.2.vhd", "web@one.vhd"], "{files:?}");

    // Its second segment's chain is a disk of its own for whoever reads it.
    let part = folder.join("web.2.vhd");
    let part = part.to_str().context("UTF-8")?;
    shale.cli(&["volume", "import", "part", "--datastore", "fast", "--from", part, "--chain"])?;
    expect(&shale, "part", &[fill(3, 0, 4096), fill(2, 4096, MIB - 4096)])?;

    // Copies, and another kind of the same content.
    shale.cli(&["volume", "copy", "web", "--name", "copy"])?;
    expect(&shale, "copy", &now)?;
    let tried = shale.refused(&["volume", "convert", "copy", "--kind", "lazy"], exit::NO_SPACE)?;
    ensure!(tried.contains("free"), "{tried}");
    shale.cli(&["datastore", "check", "fast"]).map(drop)
}
