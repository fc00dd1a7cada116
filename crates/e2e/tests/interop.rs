//! qemu-img over NBD: what it writes we hold, what it reads is right, block status is honest.

use anyhow::{Context, Result, ensure};
use e2e::tools::{self, Fill};
use e2e::{Shale, guest};

const MIB: u64 = 1 << 20;

#[test]
fn a_real_disk_goes_in_and_comes_out_the_same() -> Result<()> {
    let shale = Shale::start()?;
    let store = shale.datastore("fast")?;
    shale.volume("web", "fast", &guest::DISK_LEN.to_string())?;
    let image = guest::disk_image()?;
    let connection = shale.connect("web")?;
    tools::copy_in(&image, &connection.uri)?;
    let image = image.to_str().context("a path in UTF-8")?;
    tools::compare(image, &connection.uri)?;
    let out = shale.home().join("out.raw");
    tools::copy_out(&connection.uri, &out)?;
    tools::compare(image, out.to_str().context("a path in UTF-8")?)?;

    // Disconnected, the layer itself is an image that qemu-img reads.
    shale.disconnect("web")?;
    let layers: Vec<_> = std::fs::read_dir(store.join("layer"))?.collect::<Result<_, _>>()?;
    ensure!(layers.len() == 1, "one layer, not {}", layers.len());
    let mut compare = std::process::Command::new("qemu-img");
    compare.args(["compare", "-f", "raw", "-F", "vpc", image]).arg(layers[0].path());
    e2e::process::run(&mut compare).map(drop)
}

#[test]
fn block_status_knows_what_was_written_discarded_and_zeroed() -> Result<()> {
    let shale = Shale::start()?;
    shale.datastore("fast")?;
    shale.volume("web", "fast", "64M")?;
    let connection = shale.connect("web")?;
    ensure!(tools::map(&connection.uri)?.iter().all(|(_, _, data)| !data), "a new disk has data");
    tools::write(&connection.uri, &[Fill { byte: 1, at: 8 * MIB, len: 16 * MIB }])?;
    tools::io(&connection.uri, &["discard 12M 4M", "write -z 20M 2M", "flush"])?;
    let map = tools::map(&connection.uri)?;
    let data =
        |at: u64| map.iter().any(|(start, len, data)| *data && (*start..start + len).contains(&at));
    for at in [8 * MIB, 12 * MIB - 4096, 16 * MIB, 20 * MIB - 4096, 22 * MIB] {
        ensure!(data(at), "{at} holds data: {map:?}");
    }
    for at in [0, 12 * MIB, 16 * MIB - 4096, 24 * MIB, 60 * MIB] {
        ensure!(!data(at), "{at} holds no data: {map:?}");
    }
    tools::expect(
        &connection.uri,
        &[
            Fill { byte: 1, at: 8 * MIB, len: 4 * MIB },
            Fill { byte: 0, at: 12 * MIB, len: 4 * MIB },
            Fill { byte: 1, at: 16 * MIB, len: 4 * MIB },
            Fill { byte: 0, at: 20 * MIB, len: 2 * MIB },
            Fill { byte: 1, at: 22 * MIB, len: 2 * MIB },
        ],
    )
}
