//! Snapshot schedules with the real binary. An hour is not waited for: the datastore is told that it has
//! passed, as it has when a system was away for one.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::Shale;
use e2e::process::poll_until;
use e2e::shale::exit;
use serde_json::Value;

/// Bounds a failure: a run that is due is made as soon as the volumes are known.
const LIMIT: Duration = Duration::from_secs(60);

fn snapshots(shale: &Shale) -> Result<Vec<Value>> {
    shale.list(&["snapshot", "list", "--volume", "web"])
}

#[test]
fn a_missed_run_is_made_up_for_once_and_the_oldest_goes() -> Result<()> {
    let mut shale = Shale::start()?;
    let store = shale.datastore("fast")?;
    shale.volume("web", "fast", "64M")?;
    let set = ["snapshot", "schedule", "set", "--volume", "web"];
    shale.refused(
        &[&set[..], &["--hourly", "24", "--daily", "7", "--weekly", "4"]].concat(),
        exit::CONFLICT,
    )?;
    let policy = [&set[..], &["--hourly", "1", "--daily", "1", "--at", "02:30"]].concat();
    let tried = shale.cli(&[&policy[..], &["--dry-run"]].concat())?;
    ensure!(tried.contains("1 hourly, 1 daily") && tried.contains("next runs: "), "{tried}");
    shale.cli(&policy)?;
    shale.snapshot("mine", "web")?;
    ensure!(shale.json(&["volume", "show", "web"])?["next_snapshot"].is_string());

    // Twice a system that was down for some days: each time one run, which both rules share.
    let mut made = Vec::new();
    for round in 1..=2_u64 {
        shale.down()?;
        let mut edited = 0;
        for entry in fs::read_dir(store.join("record"))? {
            let path = entry?.path();
            let mut record: Value = serde_json::from_slice(&fs::read(&path)?)?;
            for rule in record["schedule"]["rules"].as_array_mut().context("no schedule")? {
                rule["last"] = (round * 1_000_000_000_000).into();
                edited += 1;
            }
            fs::write(&path, serde_json::to_vec_pretty(&record)?)?;
        }
        ensure!(edited == 2, "{edited} rules in the record");
        shale.serve()?;
        let new = poll_until(
            LIMIT,
            || {
                let all = snapshots(&shale)?;
                let new = |s: &&Value| !s["scheduled"].is_null() && !made.contains(&s["id"]);
                Ok(all.iter().find(new).cloned())
            },
            || "a run that was missed".into(),
        )?;
        ensure!(new["scheduled"]["rules"] == serde_json::json!(["hourly", "daily"]), "{new}");
        ensure!(new["name"].as_str().is_some_and(|name| name.starts_with("daily-20")), "{new}");
        made.push(new["id"].clone());
    }
    // the first of them goes, merged away; what a user made stays
    let left = poll_until(
        LIMIT,
        || {
            let all = snapshots(&shale)?;
            Ok((!all.iter().any(|s| s["id"] == made[0])).then_some(all))
        },
        || "the first run's snapshot to go".into(),
    )?;
    ensure!(left.len() == 2 && left.iter().any(|s| s["name"] == "mine"), "{left:?}");
    let tasks = shale.list(&["task", "list"])?;
    let of_schedule = |operation: &str| {
        let of = tasks.iter().filter(|t| t["origin"] == "schedule" && t["operation"] == operation);
        of.count()
    };
    ensure!(of_schedule("snapshot-create") == 2, "each missed run is made up for once: {tasks:?}");
    ensure!(of_schedule("snapshot-delete") == 1, "{tasks:?}");
    ensure!(shale.list(&["alarm", "list"])?.is_empty());

    shale.cli(&["snapshot", "schedule", "clear", "--volume", "web"])?;
    shale.refused(&["snapshot", "schedule", "show", "--volume", "web"], exit::NOT_FOUND)?;
    ensure!(snapshots(&shale)?.len() == 2, "clearing a schedule deletes nothing");
    Ok(())
}
