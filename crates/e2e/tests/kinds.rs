//! Volumes of every kind: how they take space, and how they become another kind.

use anyhow::{Context, Result, ensure};
use e2e::Shale;
use e2e::mount::SmallDisk;
use e2e::process::run;
use e2e::shale::exit;
use e2e::tools::{self, Fill};
use serde_json::Value;

const MIB: u64 = 1 << 20;

fn kind_of(shale: &Shale, volume: &str) -> Result<String> {
    let shown = shale.json(&["volume", "show", volume])?;
    Ok(shown["kind"].as_str().context("no kind")?.to_owned())
}

fn used(shale: &Shale, volume: &str) -> Result<u64> {
    let shown: Value = shale.json(&["volume", "show", volume])?;
    shown["space"]["used"].as_u64().context("no used space")
}

fn in_use(shale: &Shale, volume: &str, with: impl FnOnce(&str) -> Result<()>) -> Result<()> {
    let connection = shale.connect(volume)?;
    with(&connection.uri)?;
    shale.disconnect(volume)
}

/// Others take the store to its last byte: a lazy volume has its space, also above a snapshot.
#[test]
fn n2_lazy_writes_never_fail_on_a_store_that_others_filled() -> Result<()> {
    let small = SmallDisk::new(512 * MIB)?;
    let shale = Shale::start()?;
    let dir = small.dir().join("store");
    std::fs::create_dir(&dir)?;
    shale.cli(&["datastore", "create", "small", "--dir", dir.to_str().context("UTF-8")?])?;
    shale.cli(&[
        "volume",
        "create",
        "web",
        "--datastore",
        "small",
        "--size",
        "64M",
        "--kind",
        "lazy",
    ])?;
    let first = Fill { byte: 1, at: 0, len: 16 * MIB };
    in_use(&shale, "web", |uri| tools::write(uri, &[first]))?;
    shale.snapshot("one", "web")?;

    // Not through Shale, which keeps head-room: by root, to the last block.
    let ballast = small.dir().join("ballast");
    let filled = run(std::process::Command::new("dd")
        .args(["if=/dev/zero", "bs=1M", "oflag=direct"])
        .arg(format!("of={}", ballast.display())));
    ensure!(filled.is_err(), "the file system was not filled");
    let rest = run(std::process::Command::new("dd")
        .args(["if=/dev/zero", "bs=4k", "oflag=direct"])
        .arg(format!("of={}.rest", ballast.display())));
    ensure!(rest.is_err(), "the file system was not filled");

    let whole = Fill { byte: 2, at: 0, len: 64 * MIB };
    in_use(&shale, "web", |uri| {
        tools::write(uri, &[whole])?;
        tools::expect(uri, &[whole])
    })?;
    ensure!(shale.list(&["alarm", "list"])?.iter().all(|a| a["code"] != "write-held"), "held");
    std::fs::remove_file(&ballast)?;
    shale.delete_snapshot("one", "web")?;
    in_use(&shale, "web", |uri| tools::expect(uri, &[whole]))
}

#[test]
fn a_volume_becomes_lazy_fixed_and_thin_again() -> Result<()> {
    let shale = Shale::start()?;
    shale.datastore("fast")?;
    shale.volume("web", "fast", "96M")?;
    let (old, new) =
        (Fill { byte: 1, at: 0, len: 8 * MIB }, Fill { byte: 2, at: 8 * MIB, len: 8 * MIB });
    in_use(&shale, "web", |uri| tools::write(uri, &[old]))?;
    shale.snapshot("one", "web")?;
    in_use(&shale, "web", |uri| tools::write(uri, &[new]))?;
    let check = |shale: &Shale| in_use(shale, "web", |uri| tools::expect(uri, &[old, new]));

    let convert = ["volume", "convert", "web", "--kind"];
    let to = |kind: &'static str| [&convert[..], &[kind]].concat();
    let tried = shale.json(&[&to("lazy")[..], &["--dry-run"]].concat())?;
    ensure!(tried["takes"].as_u64().is_some_and(|t| t > 80 * MIB), "{tried}");
    ensure!(
        tried["summary"].as_str().is_some_and(|s| s.contains("1 snapshots are kept")),
        "{tried}"
    );
    shale.cli(&to("lazy"))?;
    ensure!(kind_of(&shale, "web")? == "lazy" && used(&shale, "web")? >= 96 * MIB, "not lazy");
    check(&shale)?;

    // A fixed volume cannot keep snapshots: said, refused, and done when agreed to.
    let tried = shale.json(&[&to("fixed")[..], &["--dry-run"]].concat())?;
    ensure!(
        tried["summary"].as_str().is_some_and(|s| s.contains("1 snapshots are lost")),
        "{tried}"
    );
    shale.refused(&to("fixed"), exit::CONFLICT)?;
    check(&shale)?;
    let connection = shale.connect("web")?;
    shale.refused(&[&to("fixed")[..], &["--lose-snapshots"]].concat(), exit::CONFLICT)?;
    drop(connection);
    shale.disconnect("web")?;
    shale.cli(&[&to("fixed")[..], &["--lose-snapshots"]].concat())?;
    ensure!(kind_of(&shale, "web")? == "fixed" && used(&shale, "web")? >= 96 * MIB, "not fixed");
    ensure!(shale.names(&["snapshot", "list", "--volume", "web"])?.is_empty(), "snapshots stayed");
    check(&shale)?;

    shale.cli(&to("thin"))?;
    ensure!(kind_of(&shale, "web")? == "thin", "not thin");
    let thin = used(&shale, "web")?;
    ensure!(thin < 18 * MIB, "a thin volume with 16 MiB of data takes {thin} bytes");
    check(&shale)?;
    shale.cli(&["datastore", "check", "fast"]).map(drop)
}

#[test]
fn a_thin_template_is_deployed_as_fixed() -> Result<()> {
    let shale = Shale::start()?;
    shale.datastore("fast")?;
    shale.volume("gold", "fast", "32M")?;
    let data = Fill { byte: 3, at: 2 * MIB, len: 4 * MIB };
    in_use(&shale, "gold", |uri| tools::write(uri, &[data]))?;
    shale.cli(&["template", "create", "gold", "--from", "gold"])?;
    shale.cli(&["template", "deploy", "gold", "--name", "web", "--full", "--kind", "fixed"])?;
    ensure!(kind_of(&shale, "web")? == "fixed" && used(&shale, "web")? >= 32 * MIB, "not fixed");
    let more = Fill { byte: 4, at: 10 * MIB + 512, len: 20 * MIB };
    in_use(&shale, "web", |uri| {
        tools::expect(uri, &[data])?;
        tools::write(uri, &[more])?;
        tools::expect(uri, &[data, more])
    })?;
    in_use(&shale, "web", |uri| tools::expect(uri, &[data, more]))
}
