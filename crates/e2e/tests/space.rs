//! The numbers that Shale tells add up, and are those of the file system.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use e2e::Shale;
use e2e::tools::{self, Fill};
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// What a folder takes, as `du` counts.
fn taken(dir: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        sum += meta.blocks() * 512;
        if meta.is_dir() {
            sum += taken(&entry.path())?;
        }
    }
    Ok(sum)
}

fn number(of: &Value, field: &str) -> Result<u64> {
    of["space"][field].as_u64().with_context(|| format!("no {field} in {of}"))
}

fn in_use(shale: &Shale, volume: &str, fills: &[Fill]) -> Result<()> {
    let connection = shale.connect(volume)?;
    tools::write(&connection.uri, fills)?;
    shale.disconnect(volume)
}

#[test]
fn volumes_and_datastore_take_what_du_counts() -> Result<()> {
    let shale = Shale::start()?;
    let dir = shale.datastore("fast")?;
    let data = |byte, at| Fill { byte, at: at * MIB, len: 12 * MIB };
    for (name, kind) in [("thin", "thin"), ("lazy", "lazy"), ("full", "fixed")] {
        let make =
            ["volume", "create", name, "--datastore", "fast", "--size", "64M", "--kind", kind];
        shale.cli(&make)?;
        in_use(&shale, name, &[data(1, 0)])?;
        shale.snapshot("one", name)?;
        in_use(&shale, name, &[data(2, 24)])?;
    }
    shale.cli(&["volume", "clone", "thin", "--name", "linked", "--snapshot", "one"])?;
    in_use(&shale, "linked", &[data(3, 8)])?;
    shale.cli(&["volume", "clone", "thin", "--name", "copy", "--full", "--snapshot", "one"])?;

    let mut sum = 0;
    for volume in shale.list(&["volume", "list"])? {
        let name = volume["name"].as_str().context("no name")?.to_owned();
        let shown = shale.json(&["volume", "show", &name])?;
        sum += number(&shown, "used")?;
        let (provisioned, used) = (number(&shown, "provisioned")?, number(&shown, "used")?);
        ensure!(provisioned == 64 * MIB, "{name}: {shown}");
        if shown["kind"] != "thin" {
            // its own bytes, and those of the layer over its snapshot
            ensure!(used + number(&shown, "reserved")? >= 128 * MIB, "{name}: {shown}");
        }
    }
    let layers = taken(&dir.join("layer"))?;
    ensure!(sum.abs_diff(layers) * 100 <= layers, "volumes take {sum}, du counts {layers}");

    let store = shale.json(&["datastore", "show", "fast"])?;
    let all = taken(&dir)?;
    let used = number(&store, "used")?;
    ensure!(used.abs_diff(all) * 100 <= all, "the datastore tells {used}, du counts {all}");
    ensure!(number(&store, "provisioned")? == 5 * 64 * MIB, "{store}");
    ensure!(number(&store, "free")? <= number(&store, "total")?, "{store}");

    // and what a deletion said it gives back comes back
    let tried = shale.json(&["volume", "delete", "full", "--dry-run"])?;
    let frees = tried["frees"].as_u64().context("no estimate")?;
    shale.delete_snapshot("one", "full")?;
    shale.delete_volume("full")?;
    let after = taken(&dir)?;
    ensure!(
        (all - after).abs_diff(frees) < 2 * MIB,
        "{frees} were said, {} came back",
        all - after
    );
    Ok(())
}
