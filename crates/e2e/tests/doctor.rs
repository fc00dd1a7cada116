//! `shale doctor`: on a host without anything running, beside a running system, as another user, and
//! where something is missing. It never leaves a trace.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use e2e::shale::{Said, binary, exit, said};
use e2e::{Shale, need};
use serde_json::Value;
use tempfile::TempDir;

fn doctor(data: &Path, more: &[&str]) -> Result<Command> {
    let mut command = Command::new(binary()?);
    command.args(["doctor", "-o", "json"]).args(more).arg("--data").arg(data);
    command.env_remove("SHALE_URL").env_remove("SHALE_TOKEN").env_remove("SHALE_IO");
    Ok(command)
}

fn findings(said: &Said) -> Result<Vec<Value>> {
    let all: Value = serde_json::from_str(&said.out).with_context(|| format!("{said:?}"))?;
    all.as_array().cloned().with_context(|| format!("no list: {said:?}"))
}

fn find<'a>(all: &'a [Value], name: &str) -> Result<&'a Value> {
    all.iter()
        .find(|finding| finding["name"] == name)
        .with_context(|| format!("no {name}: {all:?}"))
}

/// Every name below `dir`.
fn names(dir: &Path) -> Result<BTreeSet<std::path::PathBuf>> {
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            names.extend(self::names(&entry.path())?);
        }
        names.insert(entry.path());
    }
    Ok(names)
}

fn home() -> Result<TempDir> {
    Ok(tempfile::Builder::new().prefix("doctor-").tempdir()?)
}

#[test]
fn a_host_without_anything_running_is_looked_at_and_left_as_it_was() -> Result<()> {
    let home = home()?;
    let store = home.path().join("store");
    std::fs::create_dir(&store)?;
    let before = names(home.path())?;
    let dir = store.display().to_string();
    let said = said(&mut doctor(&home.path().join("data"), &["--dir", &dir])?)?;
    ensure!(said.code == exit::OK, "{said:?}");
    let all = findings(&said)?;
    let expected = [
        "io_uring",
        "open-files",
        "clock",
        "data-directory",
        "logs-in-memory",
        "directory",
        "kvm",
        "qemu-img",
        "qemu-nbd",
        "qemu-storage-daemon",
        "setpriv",
        "systemd",
        "server",
        "node",
    ];
    for name in expected {
        let finding = find(&all, name)?;
        let state = finding["state"].as_str().unwrap_or_default();
        ensure!(["ok", "limited", "missing"].contains(&state), "{finding}");
        ensure!(finding["meaning"].as_str().is_some_and(|text| !text.is_empty()), "{finding}");
        // Whoever is told that something is not there is told what to do.
        ensure!(state == "ok" || finding["advice"].is_string(), "no advice: {finding}");
    }
    need::tool("/usr/bin/qemu-img")?;
    ensure!(find(&all, "qemu-img")?["state"] == "ok");
    ensure!(
        find(&all, "server")?["state"] == "missing" && find(&all, "node")?["state"] == "missing"
    );
    ensure!(names(home.path())? == before, "the doctor left something behind");
    Ok(())
}

#[test]
fn what_it_says_of_a_directory_is_what_a_datastore_there_can_do() -> Result<()> {
    let shale = Shale::start()?;
    let store = shale.datastore("fast")?;
    let before = names(&store)?;
    let dir = store.display().to_string();
    let said = said(&mut doctor(shale.data(), &["--dir", &dir])?)?;
    ensure!(said.code == exit::OK, "{said:?}");
    let all = findings(&said)?;
    let directory = find(&all, "directory")?["meaning"].as_str().unwrap_or_default().to_owned();
    let shown = shale.json(&["datastore", "show", "fast"])?;
    let file_system = shown["file_system"].as_str().context("no file system")?;
    ensure!(directory.contains(file_system), "{directory}: {shown}");
    ensure!(directory.contains("datastore fast"), "{directory}");
    if let Ok(reserve) = find(&all, "reserve") {
        let can = shale.try_cli(&[
            "volume",
            "create",
            "lazy",
            "--datastore",
            "fast",
            "--size",
            "8M",
            "--kind",
            "lazy",
        ])?;
        ensure!((reserve["state"] == "ok") == (can.code == exit::OK), "{reserve}: {can:?}");
        shale.delete_volume("lazy").ok();
    }
    ensure!(names(&store)? == before);
    // Both processes are seen, with the version they are of.
    for (name, pid) in [("server", shale.serve_pid()?), ("node", shale.node_pid()?)] {
        let finding = find(&all, name)?;
        let meaning = finding["meaning"].as_str().unwrap_or_default();
        ensure!(finding["state"] == "ok", "{finding}");
        ensure!(meaning.contains(&format!("process {pid}")) && meaning.contains("version"));
    }
    Ok(())
}

#[test]
fn what_is_required_and_not_there_is_exit_code_1() -> Result<()> {
    let home = home()?;
    let data = home.path().join("data");
    // A directory that is not there, and one that can never be a datastore.
    for dir in ["/proc", "/no/such/directory"] {
        let said = said(&mut doctor(&data, &["--dir", dir])?)?;
        ensure!(said.code == exit::FAILED, "{dir}: {said:?}");
        let all = findings(&said)?;
        let finding = find(&all, "directory")?;
        ensure!(finding["state"] == "missing" && finding["required"] == true, "{finding}");
    }
    // Threads instead of io_uring are no reason to fail; too few open files are.
    let threads = said(doctor(&data, &[])?.env("SHALE_IO", "threads"))?;
    ensure!(
        threads.code == exit::OK && find(&findings(&threads)?, "io_uring")?["state"] == "limited"
    );
    let mut few = Command::new("/bin/sh");
    few.args(["-c", "ulimit -n 100; exec \"$0\" doctor -o json --data \"$1\""]);
    let few = said(few.arg(binary()?).arg(&data))?;
    ensure!(few.code == exit::FAILED, "{few:?}");
    ensure!(find(&findings(&few)?, "open-files")?["state"] == "missing");
    // A table for people says the same, and names what is in the way in capitals.
    let mut table = Command::new(binary()?);
    let table = said(table.args(["doctor", "--dir", "/proc", "--data"]).arg(&data))?;
    ensure!(table.code == exit::FAILED && table.out.contains("MISSING"), "{table:?}");
    ensure!(!data.exists());
    Ok(())
}

#[test]
fn another_user_is_told_whose_directory_it_is() -> Result<()> {
    need::root()?;
    let home = home()?;
    std::fs::set_permissions(home.path(), PermissionsExt::from_mode(0o755))?;
    let data = home.path().join("data");
    std::fs::create_dir(&data)?;
    std::fs::set_permissions(&data, PermissionsExt::from_mode(0o700))?;
    // That user may not reach the folder that cargo builds into.
    let program = home.path().join("shale");
    std::fs::copy(binary()?, &program)?;
    let mut command = Command::new(need::tool("/usr/bin/setpriv")?);
    command.args(["--reuid", "12345", "--regid", "12345", "--clear-groups", "--"]).arg(program);
    command.args(["doctor", "-o", "json", "--data"]).arg(&data);
    let said = said(command.env_remove("SHALE_IO"))?;
    ensure!(said.code == exit::FAILED, "{said:?}");
    let all = findings(&said)?;
    let finding = find(&all, "data-directory")?;
    let meaning = finding["meaning"].as_str().unwrap_or_default();
    ensure!(finding["state"] == "missing" && meaning.contains("12345"), "{finding}");
    Ok(())
}
