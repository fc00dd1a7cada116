//! Many volumes: they cost nothing while they are idle, and what the server says of one follows what
//! happens to another.

use anyhow::Result;
use e2e::Shale;
use serde_json::Value;

const CLONES: usize = 300;

/// Threads and descriptors of the node.
fn held(shale: &Shale) -> Result<(usize, usize)> {
    let node = shale.node_pid()?;
    let count = |what: &str| -> Result<usize> {
        Ok(std::fs::read_dir(format!("/proc/{node}/{what}"))?.count())
    };
    Ok((count("task")?, count("fd")?))
}

#[test]
fn idle_volumes_hold_no_thread_and_no_descriptor() -> Result<()> {
    let shale = Shale::start()?;
    shale.datastore("fast")?;
    shale.volume("base", "fast", "64M")?;
    shale.snapshot("golden", "base")?;
    let clone = |names: &[String]| -> Result<()> {
        let mut words = vec!["volume", "clone", "base", "--snapshot", "golden"];
        words.extend(names.iter().flat_map(|name| ["--name", name]));
        shale.cli(&words).map(drop)
    };
    // the helpers that work needs are there after the first
    clone(&(0..10).map(|n| format!("first{n}")).collect::<Vec<_>>())?;
    shale.cli(&["volume", "list"])?;
    let (threads, descriptors) = held(&shale)?;
    clone(&(0..CLONES).map(|n| format!("v{n}")).collect::<Vec<_>>())?;
    assert_eq!(shale.names(&["volume", "list"])?.len(), CLONES + 11);
    let (more_threads, more_descriptors) = held(&shale)?;
    // not for each volume: helpers and calls come and go
    assert!(more_threads < threads + 20, "{threads} threads became {more_threads}");
    assert!(more_descriptors < descriptors + 50, "{descriptors} became {more_descriptors}");
    Ok(())
}

#[test]
fn clones_name_their_origin_as_it_is_named_now() -> Result<()> {
    let shale = Shale::start()?;
    shale.datastore("fast")?;
    shale.volume("base", "fast", "64M")?;
    shale.snapshot("golden", "base")?;
    shale.cli(&["volume", "clone", "base", "--snapshot", "golden", "--name", "clone"])?;
    let origin = || -> Result<Option<String>> {
        let all = shale.list(&["volume", "list"])?;
        let clone = all.iter().find(|volume| volume["name"] == "clone");
        Ok(clone.and_then(|clone| clone["origin"]["name"].as_str()).map(str::to_owned))
    };
    assert_eq!(origin()?.as_deref(), Some("base"));
    shale.cli(&["volume", "rename", "base", "root"])?;
    assert_eq!(origin()?.as_deref(), Some("root"));
    shale.cli(&["template", "create", "gold", "--from", "root"])?;
    assert_eq!(origin()?.as_deref(), Some("gold"));
    Ok(())
}

#[test]
fn a_clone_that_stands_alone_is_counted_no_more() -> Result<()> {
    let shale = Shale::start()?;
    shale.datastore("fast")?;
    shale.volume("base", "fast", "8M")?;
    shale.snapshot("golden", "base")?;
    let clones = || -> Result<Vec<Value>> {
        let points = shale.list(&["snapshot", "list", "--volume", "base"])?;
        Ok(points.iter().map(|point| point["clones"].clone()).collect())
    };
    shale.cli(&["volume", "clone", "base", "--snapshot", "golden", "--name", "clone"])?;
    assert_eq!(clones()?, [1]);
    shale.cli(&["volume", "convert", "clone", "--kind", "fixed"])?;
    assert_eq!(clones()?, [0]);
    Ok(())
}
