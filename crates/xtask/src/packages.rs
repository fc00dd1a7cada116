//! Debian packages behind the tools that tests, demo and bench call: installed where missing.
//!
//! QEMU's packages depend on each other's exact version, so they are installed together, and on Debian
//! 12 from its backports suite (QEMU 10, what today's hosts run). One installed alone from another suite
//! would make apt remove the others: `--no-remove` turns that into an error.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use e2e::need::TOOLS;
use e2e::process::text;

use crate::show;

/// What we add to apt's sources on Debian 12, and say so.
const BACKPORTS: &str = "/etc/apt/sources.list.d/shale-backports.sources";
const SUITE: &str = "bookworm-backports";

/// As root: installs what is missing and says so. Otherwise: says what to install, and fails.
pub(crate) fn install() -> Result<()> {
    let mut missing: BTreeSet<&str> = missing().map(|(_, package)| package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if missing.iter().any(|package| is_qemu(package)) {
        missing.extend(TOOLS.iter().map(|(_, package)| *package).filter(|name| is_qemu(name)));
    }
    let names: Vec<_> = missing.into_iter().collect();
    let list = names.join(" ");
    if !rustix::process::geteuid().is_root() {
        bail!("packages are missing. Run as root: apt-get update && apt-get install {list}");
    }
    println!("installing what the tests need: {list}");
    let (qemu, others): (Vec<&str>, Vec<&str>) = names.iter().partition(|name| is_qemu(name));
    // The lists of a fresh machine are empty or old: fetch them and try again.
    if !others.is_empty() && apt_install(&others, None).is_err() {
        update()?;
        apt_install(&others, None)?;
    }
    if !qemu.is_empty() {
        let suite = debian_12()?.then_some(SUITE);
        if suite.is_some() {
            add_backports()?;
        }
        if apt_install(&qemu, suite).is_err() {
            update()?;
            apt_install(&qemu, suite)?;
        }
    }
    if let Some((file, package)) = self::missing().next() {
        bail!("{package} is installed, but {file} is not there: is this a Debian of 12 or later?");
    }
    Ok(())
}

fn missing() -> impl Iterator<Item = (&'static str, &'static str)> {
    TOOLS.iter().copied().filter(|(file, _)| !Path::new(file).exists())
}

fn apt_install(names: &[&str], suite: Option<&str>) -> Result<()> {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command.args(["install", "--yes", "--no-install-recommends", "--no-remove", "--quiet=2"]);
    if let Some(suite) = suite {
        command.args(["--target-release", suite]);
    }
    show(command.args(names))
}

fn update() -> Result<()> {
    show(Command::new("apt-get").args(["update", "--quiet=2"]))
}

fn debian_12() -> Result<bool> {
    let release = fs::read_to_string("/etc/os-release").context("what system is this?")?;
    let has = |line: &str| release.lines().any(|other| other.replace('"', "") == line);
    Ok(has("ID=debian") && has("VERSION_ID=12"))
}

/// Whether the package is one of QEMU's, which are of one version.
fn is_qemu(package: &str) -> bool {
    package.starts_with("qemu-")
}

/// Adds the backports suite beside the machine's own source of `bookworm`: the same place, the same
/// key, another suite.
fn add_backports() -> Result<()> {
    let known = text(Command::new("apt-cache").arg("policy"))?;
    if known.contains(&format!("n={SUITE}")) || Path::new(BACKPORTS).exists() {
        return Ok(());
    }
    let own = own_source()?.context(
        "apt knows no source of Debian bookworm: enable bookworm-backports by hand, QEMU comes from it",
    )?;
    println!("adding {SUITE} to apt's sources, for QEMU 10: {BACKPORTS}");
    fs::write(BACKPORTS, own).with_context(|| format!("cannot write {BACKPORTS}"))?;
    update()
}

/// The machine's own source of bookworm as a stanza for the backports suite.
fn own_source() -> Result<Option<String>> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(dir) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(dir.filter_map(Result::ok).map(|entry| entry.path()));
    }
    files.sort();
    for file in files {
        let Ok(text) = fs::read_to_string(&file) else { continue };
        let found = match file.extension().and_then(|extension| extension.to_str()) {
            Some("sources") => text.split("\n\n").find_map(stanza_for_backports),
            Some("list") => text.lines().find_map(line_for_backports),
            _ => None,
        };
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

fn stanza_for_backports(stanza: &str) -> Option<String> {
    let lines = || stanza.lines().filter(|line| !line.starts_with('#'));
    let suites = lines().find_map(|line| line.strip_prefix("Suites:"))?;
    let deb = lines().any(|line| line.starts_with("Types:") && line.contains("deb"));
    if !deb || !suites.split_whitespace().any(|suite| suite == "bookworm") {
        return None;
    }
    let kept = lines().filter(|line| !line.starts_with("Suites:") && !line.trim().is_empty());
    let kept: Vec<_> = kept.collect();
    Some(format!("{}\nSuites: {SUITE}\n", kept.join("\n")))
}

/// `deb [options] URI bookworm main ...` of the old format.
fn line_for_backports(line: &str) -> Option<String> {
    let rest = line.trim().strip_prefix("deb ")?.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => ("", rest),
    };
    let mut words = rest.split_whitespace();
    let (uri, suite) = (words.next()?, words.next()?);
    if suite != "bookworm" {
        return None;
    }
    let mut stanza = format!("Types: deb\nURIs: {uri}\nSuites: {SUITE}\nComponents: main\n");
    for option in options.split_whitespace() {
        if let Some(key) = option.strip_prefix("signed-by=") {
            stanza.push_str(&format!("Signed-By: {key}\n"));
        }
        if option == "trusted=yes" {
            stanza.push_str("Trusted: yes\n");
        }
    }
    Some(stanza)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stanza_keeps_its_place_and_key() {
        let own = "Types: deb\n# a note\nURIs: http://mirror/debian\nSuites: bookworm bookworm-updates\n\
                   Components: main\nSigned-By: /key.gpg";
        let stanza = stanza_for_backports(own).expect("a source of bookworm");
        assert_eq!(
            stanza,
            "Types: deb\nURIs: http://mirror/debian\nComponents: main\nSigned-By: /key.gpg\n\
             Suites: bookworm-backports\n"
        );
        assert_eq!(stanza_for_backports(&own.replace("Suites: bookworm ", "Suites: ")), None);
    }

    #[test]
    fn a_line_becomes_a_stanza() {
        let line = "deb [arch=amd64 signed-by=/key.gpg] http://mirror/debian bookworm main contrib";
        assert_eq!(
            line_for_backports(line).expect("a source of bookworm"),
            "Types: deb\nURIs: http://mirror/debian\nSuites: bookworm-backports\nComponents: main\n\
             Signed-By: /key.gpg\n"
        );
        for other in
            ["deb http://mirror/debian bookworm-updates main", "# deb http://m bookworm main", ""]
        {
            assert_eq!(line_for_backports(other), None, "{other}");
        }
    }
}
