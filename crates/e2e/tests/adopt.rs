//! The datastore is the truth: it survives the loss of everything that `shale serve` keeps.

use anyhow::{Context, Result, ensure};
use e2e::Shale;
use e2e::shale::exit;
use e2e::tools::{self, Fill};

const MIB: u64 = 1 << 20;

#[test]
fn a_datastore_is_adopted_after_the_data_directory_was_lost() -> Result<()> {
    let store = tempfile::tempdir()?;
    let dir = store.path().to_str().context("UTF-8")?;
    let (old, new) = (Fill { byte: 1, at: 0, len: 4 * MIB }, Fill { byte: 2, at: 0, len: 4 * MIB });
    {
        let mut shale = Shale::start()?;
        shale.cli(&["datastore", "create", "fast", "--dir", dir])?;
        shale.volume("web", "fast", "32M")?;
        let connection = shale.connect("web")?;
        tools::write(&connection.uri, &[old])?;
        shale.snapshot("before", "web")?;
        tools::write(&connection.uri, &[new])?;
        shale.down()?;
    } // the data directory goes with it
    let shale = Shale::start()?;
    ensure!(shale.names(&["volume", "list"])?.is_empty(), "a new system has volumes");
    shale.cli(&["datastore", "create", "again", "--dir", dir])?;
    ensure!(shale.names(&["volume", "list"])? == ["web"]);
    ensure!(shale.names(&["snapshot", "list", "--volume", "web"])? == ["before"]);
    let connection = shale.connect("web")?;
    tools::expect(&connection.uri, &[new])?;
    shale.disconnect("web")?;
    shale.revert("before", "web")?;
    tools::expect(&shale.connect("web")?.uri, &[old])
}

#[test]
fn serve_stops_and_comes_back_while_a_client_goes_on() -> Result<()> {
    let mut shale = Shale::start()?;
    shale.datastore("fast")?;
    shale.volume("web", "fast", "512M")?;
    let connection = shale.connect("web")?;
    let node = shale.node_pid()?;
    shale.stop_serve()?;
    let all = Fill { byte: 5, at: 0, len: 64 * MIB };
    tools::write(&connection.uri, &[all])?;
    shale.serve()?;
    ensure!(shale.node_pid()? == node, "the node was started again");
    tools::expect(&connection.uri, &[all])?;
    ensure!(shale.json(&["volume", "show", "web"])?["state"] == "connected");
    shale.down()?;
    shale.serve()?;
    tools::expect(&shale.connect("web")?.uri, &[all])
}

#[test]
fn two_systems_do_not_share_a_directory() -> Result<()> {
    let first = Shale::start()?;
    let dir = first.datastore("fast")?;
    let second = Shale::start()?;
    let words = ["datastore", "create", "mine", "--dir", dir.to_str().context("UTF-8")?];
    let error = second.refused(&words, exit::CONFLICT)?;
    ensure!(error.contains(dir.to_str().context("UTF-8")?), "the directory is not named: {error}");
    ensure!(second.names(&["datastore", "list"])?.is_empty());
    Ok(())
}
