//! The life of volumes, snapshots, clones and templates, with data that other tools write and read.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::Shale;
use e2e::process::{Signal, poll_until, signal};
use e2e::shale::exit;
use e2e::tools::{self, Fill};

const MIB: u64 = 1 << 20;

fn fill(byte: u8, at: u64, len: u64) -> Fill {
    Fill { byte, at, len }
}

/// Connects, runs `work` on the address, disconnects.
fn connected<T>(shale: &Shale, volume: &str, work: impl FnOnce(&str) -> Result<T>) -> Result<T> {
    let connection = shale.connect(volume)?;
    let done = work(&connection.uri)?;
    shale.disconnect(volume)?;
    Ok(done)
}

#[test]
fn a_volume_grows_is_renamed_copied_and_deleted() -> Result<()> {
    let shale = Shale::start()?;
    shale.datastore("fast")?;
    shale.volume("web", "fast", "64M")?;
    let note = [fill(1, 0, MIB), fill(2, 63 * MIB, MIB)];
    connected(&shale, "web", |uri| tools::write(uri, &note))?;

    shale.cli(&["volume", "resize", "web", "--size", "96M"])?;
    shale.cli(&["volume", "rename", "web", "www"])?;
    shale.refused(&["volume", "show", "web"], exit::NOT_FOUND)?;
    let grown = [&note[..], &[fill(0, 64 * MIB, 32 * MIB)]].concat();
    connected(&shale, "www", |uri| tools::expect(uri, &grown))?;
    shale.refused(&["volume", "resize", "www", "--size", "10M"], exit::USAGE).or_else(|_| {
        shale.refused(&["volume", "resize", "www", "--size", "10M"], exit::CONFLICT)
    })?;

    shale.cli(&["volume", "clone", "www", "--name", "copy", "--full"])?;
    connected(&shale, "www", |uri| tools::write(uri, &[fill(9, 0, MIB)]))?;
    connected(&shale, "copy", |uri| tools::expect(uri, &grown))?;

    shale.delete_volume("www")?;
    connected(&shale, "copy", |uri| tools::expect(uri, &grown))?;
    ensure!(shale.names(&["volume", "list"])? == ["copy"]);
    Ok(())
}

#[test]
fn snapshots_form_a_tree_and_every_point_comes_back() -> Result<()> {
    let shale = Shale::start()?;
    shale.datastore("fast")?;
    shale.volume("web", "fast", "64M")?;
    // a ─ b ─ c, then from b: d. Each writes its own byte over a range that shrinks, across blocks.
    let states = [("a", 1, 24), ("b", 2, 16), ("c", 3, 8)];
    let connection = shale.connect("web")?;
    for (name, byte, mib) in states {
        tools::write(&connection.uri, &[fill(byte, 3 * MIB, mib * MIB)])?;
        shale.snapshot(name, "web")?;
    }
    tools::write(&connection.uri, &[fill(4, 0, 32 * MIB)])?;
    shale.refused(&["snapshot", "revert", "b", "--volume", "web", "--yes"], exit::CONFLICT)?;
    shale.disconnect("web")?;

    let at_a = vec![fill(0, 0, 3 * MIB), fill(1, 3 * MIB, 24 * MIB), fill(0, 27 * MIB, MIB)];
    let at_b = vec![fill(2, 3 * MIB, 16 * MIB), fill(1, 19 * MIB, 8 * MIB)];
    let at_c =
        vec![fill(3, 3 * MIB, 8 * MIB), fill(2, 11 * MIB, 8 * MIB), fill(1, 19 * MIB, 8 * MIB)];
    shale.revert("b", "web")?;
    connected(&shale, "web", |uri| {
        tools::expect(uri, &at_b)?;
        tools::write(uri, &[fill(5, 19 * MIB, MIB)])
    })?;
    shale.snapshot("d", "web")?;
    let at_d = vec![fill(2, 3 * MIB, 16 * MIB), fill(5, 19 * MIB, MIB), fill(1, 20 * MIB, 7 * MIB)];

    let snapshots = shale.list(&["snapshot", "list", "--volume", "web"])?;
    let id = |name: &str| snapshots.iter().find(|s| s["name"] == name).map(|s| s["id"].clone());
    for (child, parent) in [("b", "a"), ("c", "b"), ("d", "b")] {
        let found = snapshots.iter().find(|s| s["name"] == child).map(|s| s["parent"].clone());
        ensure!(found == id(parent), "{child} stands on {found:?}");
    }
    let tree = shale.cli(&["snapshot", "tree", "--volume", "web"])?;
    for name in ["a", "b", "c", "d"] {
        ensure!(tree.contains(name), "the tree lacks {name}: {tree}");
    }

    for (name, state) in [("a", &at_a), ("c", &at_c), ("d", &at_d)] {
        shale.revert(name, "web")?;
        connected(&shale, "web", |uri| tools::expect(uri, state))?;
    }
    // Every deletion leaves all other points as they were.
    for (gone, left) in [
        ("b", vec![("a", &at_a), ("c", &at_c), ("d", &at_d)]),
        ("a", vec![("c", &at_c), ("d", &at_d)]),
        ("d", vec![("c", &at_c)]),
    ] {
        shale.delete_snapshot(gone, "web")?;
        for (name, state) in left {
            shale.revert(name, "web")?;
            connected(&shale, "web", |uri| tools::expect(uri, state))?;
        }
    }
    ensure!(shale.names(&["snapshot", "list", "--volume", "web"])? == ["c"]);
    Ok(())
}

#[test]
fn a_snapshot_can_be_read_while_the_volume_is_written() -> Result<()> {
    let shale = Shale::start()?;
    shale.datastore("fast")?;
    shale.volume("web", "fast", "16M")?;
    let live = shale.connect("web")?;
    tools::write(&live.uri, &[fill(1, 0, 8 * MIB)])?;
    shale.snapshot("before", "web")?;
    let frozen = shale.connect_with("web", &["--snapshot", "before", "--read-only"])?;
    tools::write(&live.uri, &[fill(2, 4 * MIB, 8 * MIB)])?;
    tools::expect(&frozen.uri, &[fill(1, 0, 8 * MIB), fill(0, 8 * MIB, 8 * MIB)])?;
    tools::expect(&live.uri, &[fill(1, 0, 4 * MIB), fill(2, 4 * MIB, 8 * MIB)])?;
    ensure!(tools::write(&frozen.uri, &[fill(3, 0, MIB)]).is_err(), "a snapshot took a write");
    // whoever read the snapshot goes, and the guest of the volume does not notice
    shale.cli(&["volume", "disconnect", "web", "--snapshot", "before"])?;
    ensure!(tools::expect(&frozen.uri, &[fill(1, 0, MIB)]).is_err(), "the snapshot is still there");
    tools::write(&live.uri, &[fill(4, 0, MIB)])
}

#[test]
fn a_guest_finds_its_volume_again_also_under_another_name() -> Result<()> {
    let shale = Shale::start()?;
    shale.datastore("fast")?;
    shale.volume("web", "fast", "16M")?;
    let connection = shale.connect("web")?;
    tools::write(&connection.uri, &[fill(1, 0, MIB)])?;
    shale.cli(&["volume", "rename", "web", "shop"])?;
    signal(shale.node_pid()?, Signal::KILL)?;
    // as a guest does: the address that it was given
    let seen = || Ok(tools::expect(&connection.uri, &[fill(1, 0, MIB)]).ok());
    poll_until(Duration::from_secs(20), seen, || "the volume to be back".to_owned())?;
    let shown = shale.json(&["volume", "show", "shop"])?;
    ensure!(shown["connections"][0]["uri"] == connection.uri.as_str(), "{shown}");
    Ok(())
}

#[test]
fn one_snapshot_over_several_volumes() -> Result<()> {
    let shale = Shale::start()?;
    shale.datastore("fast")?;
    for name in ["data", "log"] {
        shale.volume(name, "fast", "8M")?;
        connected(&shale, name, |uri| tools::write(uri, &[fill(7, 0, MIB)]))?;
    }
    shale.cli(&["snapshot", "create", "both", "--volume", "data", "--volume", "log"])?;
    let mut sets = Vec::new();
    for name in ["data", "log"] {
        connected(&shale, name, |uri| tools::write(uri, &[fill(8, 0, MIB)]))?;
        shale.revert("both", name)?;
        connected(&shale, name, |uri| tools::expect(uri, &[fill(7, 0, MIB)]))?;
        sets.push(shale.list(&["snapshot", "list", "--volume", name])?[0]["set"].clone());
    }
    ensure!(sets[0].is_string() && sets[0] == sets[1], "not one point in time: {sets:?}");
    Ok(())
}

#[test]
fn the_thirty_third_snapshot_is_refused_with_advice() -> Result<()> {
    let shale = Shale::start()?;
    shale.datastore("fast")?;
    shale.volume("web", "fast", "8M")?;
    for number in 1..=32 {
        shale.snapshot(&format!("s{number}"), "web")?;
    }
    let words = ["snapshot", "create", "s33", "--volume", "web"];
    let error = shale.refused(&words, exit::CONFLICT)?;
    ensure!(error.contains("snapshot-limit"), "no stable code: {error}");
    ensure!(error.contains("snapshot delete"), "no advice: {error}");
    Ok(())
}

#[test]
fn ten_linked_clones_are_one_operation_and_cost_almost_nothing() -> Result<()> {
    let shale = Shale::start()?;
    let store = shale.datastore("fast")?;
    shale.volume("web", "fast", "1G")?;
    connected(&shale, "web", |uri| tools::write(uri, &[fill(1, 0, 64 * MIB)]))?;
    shale.snapshot("before", "web")?;
    shale.cli(&["template", "create", "golden", "--from", "web"])?;
    let files = || -> Result<u64> {
        use std::os::unix::fs::MetadataExt as _;
        let mut sum = 0;
        for entry in std::fs::read_dir(store.join("layer"))? {
            sum += entry?.metadata()?.blocks() * 512;
        }
        Ok(sum)
    };
    let before = files()?;
    let deploy = ["template", "deploy", "golden", "--name", "desk", "--linked", "--count", "10"];
    shale.cli(&deploy)?;
    let each = (files()? - before) / 10;
    ensure!(each < MIB, "a clone takes {each} bytes");
    let clones: Vec<_> = shale
        .names(&["volume", "list"])?
        .into_iter()
        .filter(|name| name.starts_with("desk"))
        .collect();
    ensure!(clones.len() == 10, "{clones:?}");

    // They share, and do not see each other.
    connected(&shale, &clones[0], |uri| tools::write(uri, &[fill(2, MIB, MIB)]))?;
    connected(&shale, &clones[1], |uri| tools::expect(uri, &[fill(1, 0, 64 * MIB)]))?;
    let error = shale.refused(&["template", "delete", "golden", "--yes"], exit::CONFLICT)?;
    ensure!(error.contains(&clones[0]), "the dependents are not named: {error}");
    // None or all: one name of the second batch is taken.
    shale.refused(&deploy, exit::CONFLICT)?;
    for clone in &clones {
        shale.delete_volume(clone)?;
    }
    shale.cli(&["template", "delete", "golden", "--yes"])?;
    ensure!(shale.names(&["volume", "list"])?.is_empty());
    let snapshots = shale.names(&["snapshot", "list"])?;
    ensure!(snapshots.is_empty(), "what the template froze is still listed: {snapshots:?}");
    ensure!(std::fs::read_dir(store.join("layer"))?.count() == 0, "layers were left behind");
    Ok(())
}

#[test]
fn a_diff_covers_what_changed() -> Result<()> {
    let shale = Shale::start()?;
    shale.datastore("fast")?;
    shale.volume("web", "fast", "32M")?;
    let connection = shale.connect("web")?;
    tools::write(&connection.uri, &[fill(1, 0, 16 * MIB)])?;
    shale.snapshot("one", "web")?;
    tools::write(&connection.uri, &[fill(2, 5 * MIB, MIB), fill(2, 20 * MIB, MIB)])?;
    shale.snapshot("two", "web")?;
    let diff =
        shale.json(&["snapshot", "diff", "--volume", "web", "--from", "one", "--to", "two"])?;
    let extents = diff["extents"].as_array().cloned().unwrap_or_default();
    let covered = |at: u64| {
        extents.iter().any(|extent| {
            let offset = extent["offset"].as_u64().unwrap_or(u64::MAX);
            let length = extent["length"].as_u64().unwrap_or(0);
            (offset..offset + length).contains(&at)
        })
    };
    for changed in [5 * MIB, 6 * MIB - 512, 20 * MIB, 21 * MIB - 512] {
        ensure!(covered(changed), "{changed} is missing in {diff}");
    }
    for same in [0, 5 * MIB - 512, 6 * MIB, 10 * MIB, 30 * MIB] {
        ensure!(!covered(same), "{same} did not change: {diff}");
    }
    Ok(())
}
