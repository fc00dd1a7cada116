//! What a dry run says is what then happens, and it changes nothing itself.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use e2e::Shale;
use e2e::shale::exit;
use e2e::tools::{self, Fill};
use serde_json::Value;

const MIB: u64 = 1 << 20;

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("UTF-8")
}

fn bytes(estimate: &Value, what: &str) -> Result<u64> {
    estimate[what].as_u64().with_context(|| format!("no {what} in {estimate}"))
}

/// Everything below a folder with its length.
fn files(dir: &Path) -> Result<Vec<(String, u64)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(files(&entry.path())?);
        } else {
            found.push((entry.path().display().to_string(), entry.metadata()?.len()));
        }
    }
    found.sort();
    Ok(found)
}

#[test]
fn a_snapshot_reserves_what_its_dry_run_said() -> Result<()> {
    let shale = Shale::start()?;
    let store = shale.datastore("fast")?;
    shale.cli(&[
        "volume",
        "create",
        "lazy",
        "--datastore",
        "fast",
        "--size",
        "64M",
        "--kind",
        "lazy",
    ])?;
    let before = files(&store)?;
    let create = ["snapshot", "create", "one", "--volume", "lazy"];
    let spared = shale.json(&[&create[..], &["--no-reserve", "--dry-run"]].concat())?;
    ensure!(bytes(&spared, "takes")? == 0, "{spared}");
    let tried = shale.json(&[&create[..], &["--dry-run"]].concat())?;
    ensure!(bytes(&tried, "takes")? == 64 * MIB, "{tried}");
    ensure!(tried["summary"].as_str().is_some_and(|s| s.contains("can have 31 more")), "{tried}");
    ensure!(files(&store)? == before, "a dry run wrote something");
    let used =
        || -> Result<u64> { bytes(&shale.json(&["volume", "show", "lazy"])?["space"], "used") };
    let had = used()?;
    shale.cli(&create)?;
    let took = used()? - had;
    ensure!((64 * MIB..66 * MIB).contains(&took), "64 MiB were said, {took} were taken");
    Ok(())
}

#[test]
fn an_import_is_what_its_dry_run_said_and_a_limit_holds_it_up() -> Result<()> {
    let shale = Shale::start()?;
    let store = shale.datastore("fast")?;
    shale.volume("web", "fast", "64M")?;
    tools::write(&shale.connect("web")?.uri, &[Fill { byte: 1, at: 0, len: 4 * MIB }])?;
    shale.disconnect("web")?;
    shale.snapshot("one", "web")?;
    tools::write(&shale.connect("web")?.uri, &[Fill { byte: 2, at: 8 * MIB, len: 2 * MIB }])?;
    shale.disconnect("web")?;
    let dir = shale.home().join("out");
    shale.cli(&["volume", "export", "web", "--with-snapshots", "--to", text(&dir)?])?;
    let leaf = dir.join("web.vhd");
    let before = files(&store)?;
    let import =
        ["volume", "import", "back", "--datastore", "fast", "--chain", "--from", text(&leaf)?];
    let tried = shale.json(&[&import[..], &["--dry-run"]].concat())?;
    let summary = tried["summary"].as_str().context("a summary")?;
    for part in ["the thin volume 'back' of 64 MiB", "in 2 layers with the snapshots one"] {
        ensure!(summary.contains(part), "{summary}");
    }
    ensure!((6 * MIB..8 * MIB).contains(&bytes(&tried, "takes")?), "{tried}");
    ensure!(tried["refused"].is_null(), "{tried}");
    let fixed = shale.json(&[&import[..], &["--kind", "fixed", "--dry-run"]].concat())?;
    ensure!(bytes(&fixed, "takes")? == 128 * MIB, "{fixed}");
    let missing = ["volume", "import", "x", "--datastore", "fast", "--from", "/none", "--dry-run"];
    ensure!(shale.try_cli(&missing)?.code != exit::OK, "there is no such file");
    ensure!(files(&store)? == before, "a dry run wrote something");

    // promised already: far more than the limit, whatever the file system's size
    let total = bytes(&shale.json(&["datastore", "show", "fast"])?["space"], "total")?;
    let size = (total / 50).clamp(MIB, 2000 << 30).next_multiple_of(512).to_string();
    shale.cli(&["volume", "create", "pad", "--datastore", "fast", "--size", &size])?;
    let limit = |share| shale.cli(&["datastore", "set", "fast", "--overcommit-limit", share]);
    limit("0.1%")?;
    shale.refused(&import, exit::NO_SPACE)?;
    let said = shale.refused(&[&import[..], &["--dry-run"]].concat(), exit::NO_SPACE)?;
    ensure!(said.contains("overcommit-limit"), "{said}");
    limit("none")?;
    shale.cli(&import)?;
    ensure!(shale.names(&["snapshot", "list", "--volume", "back"])? == ["one"]);
    Ok(())
}
