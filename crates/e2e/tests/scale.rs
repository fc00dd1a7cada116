//! Many volumes cost nothing while they are idle.

use anyhow::Result;
use e2e::Shale;

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
