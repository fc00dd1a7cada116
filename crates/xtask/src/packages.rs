//! Debian packages behind the tools that tests, demo and bench call: installed where missing.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};
use e2e::need::TOOLS;

use crate::show;

/// As root: installs what is missing and says so. Otherwise: says what to install, and fails.
pub(crate) fn install() -> Result<()> {
    let missing: BTreeSet<&str> = TOOLS
        .iter()
        .filter(|(file, _)| !Path::new(file).exists())
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = missing.into_iter().collect();
    let list = names.join(" ");
    if !rustix::process::geteuid().is_root() {
        bail!("packages are missing. Run as root: apt-get update && apt-get install {list}");
    }
    println!("installing what the tests need: {list}");
    let install = || {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command.args(["install", "--yes", "--no-install-recommends"]).args(&names);
        command
    };
    // The lists of a fresh machine are empty or old: fetch them and try again.
    if show(&mut install()).is_err() {
        show(Command::new("apt-get").arg("update"))?;
        show(&mut install())?;
    }
    Ok(())
}
