//! Other people's tools on a connected volume: what they read and write is what a guest would.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::need;
use crate::process::{Owned, run, text};

/// A range that holds one byte all over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fill {
    pub byte: u8,
    pub at: u64,
    pub len: u64,
}

fn qemu_io(uri: &str, commands: &[String]) -> Result<Command> {
    let mut command = Command::new(need::tool("/usr/bin/qemu-io")?);
    command.args(["-f", "raw"]);
    for line in commands {
        command.args(["-c", line]);
    }
    command.arg(uri);
    Ok(command)
}

fn write_commands(fills: &[Fill]) -> Vec<String> {
    let write = |fill: &Fill| format!("write -P {} {} {}", fill.byte, fill.at, fill.len);
    fills.iter().map(write).chain(["flush".to_owned()]).collect()
}

/// Writes the ranges in order, then flushes.
pub fn write(uri: &str, fills: &[Fill]) -> Result<()> {
    run(&mut qemu_io(uri, &write_commands(fills))?).map(drop)
}

/// The same without waiting for it.
pub fn start_write(uri: &str, fills: &[Fill]) -> Result<Owned> {
    let mut command = qemu_io(uri, &write_commands(fills))?;
    Owned::spawn(command.stdin(Stdio::null()).stdout(Stdio::null()))
}

/// Reads the ranges; every byte must be as it says.
pub fn expect(uri: &str, fills: &[Fill]) -> Result<()> {
    let read = |fill: &Fill| format!("read -P {} {} {}", fill.byte, fill.at, fill.len);
    let commands: Vec<_> = fills.iter().map(read).collect();
    let output = text(qemu_io(uri, &commands)?.arg("-r"))?;
    ensure!(!output.contains("verification failed"), "{uri} holds something else: {output}");
    let read = output.lines().filter(|line| line.starts_with("read ")).count();
    ensure!(read == fills.len(), "qemu-io read {read} of {} ranges: {output}", fills.len());
    Ok(())
}

/// qemu-io on its own words; its output.
pub fn io(uri: &str, commands: &[&str]) -> Result<String> {
    let commands: Vec<_> = commands.iter().map(|line| (*line).to_owned()).collect();
    text(&mut qemu_io(uri, &commands)?)
}

/// Copies a raw image file over the start of a volume.
pub fn copy_in(image: &Path, uri: &str) -> Result<()> {
    let mut convert = Command::new(need::tool("/usr/bin/qemu-img")?);
    convert.args(["convert", "-n", "-f", "raw", "-O", "raw"]).arg(image).arg(uri);
    run(&mut convert).map(drop)
}

/// Copies a whole volume into a new raw image file.
pub fn copy_out(uri: &str, image: &Path) -> Result<()> {
    let mut convert = Command::new(need::tool("/usr/bin/qemu-img")?);
    convert.args(["convert", "-f", "raw", "-O", "raw", uri]).arg(image);
    run(&mut convert).map(drop)
}

/// The contents are equal, both as raw disks; a longer one must end in zeroes.
pub fn compare(one: &str, other: &str) -> Result<()> {
    let mut compare = Command::new(need::tool("/usr/bin/qemu-img")?);
    run(compare.args(["compare", "-f", "raw", "-F", "raw", one, other])).map(drop)
}

/// What block status says: (start, length, data).
pub fn map(uri: &str) -> Result<Vec<(u64, u64, bool)>> {
    let mut map = Command::new(need::tool("/usr/bin/qemu-img")?);
    let output = text(map.args(["map", "-f", "raw", "--output=json", uri]))?;
    let json: Value = serde_json::from_str(&output)?;
    let number = |item: &Value, field: &str| -> Result<u64> {
        item[field].as_u64().with_context(|| format!("no {field} in {item}"))
    };
    let items = json.as_array().context("qemu-img map printed no list")?;
    items
        .iter()
        .map(|item| {
            let data = item["data"].as_bool().unwrap_or(true);
            Ok((number(item, "start")?, number(item, "length")?, data))
        })
        .collect()
}
