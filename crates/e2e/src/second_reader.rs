//! The second implementation of the layer format: a reader in Python, written from
//! `docs/format-vhd.md` alone. Where it and Shale differ, one of the three is wrong.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::need;

const SCRIPT: &str = include_str!("second_reader.py");

/// What it made of a disk.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Why it cannot be read, if it cannot.
    pub refused: Option<String>,
    /// Damage of its layers, each with the file's name.
    pub damage: Vec<String>,
    /// The files of its chains, leaves first.
    pub layers: Vec<String>,
}

impl Seen {
    /// Whether there is nothing wrong with it.
    pub fn fine(&self) -> bool {
        self.refused.is_none() && self.damage.is_empty()
    }
}

/// Reads `NAME` or `NAME@SNAPSHOT` of the datastore in `store` into the raw file `out`.
pub fn volume(store: &Path, name: &str, out: &Path) -> Result<Seen> {
    read("volume", &[store, Path::new(name)], out)
}

/// Reads a chain of somebody else's, whose parents stand beside `leaf`.
pub fn foreign(leaf: &Path, out: &Path) -> Result<Seen> {
    read("foreign", &[leaf], out)
}

fn read(what: &str, from: &[&Path], out: &Path) -> Result<Seen> {
    let mut python = Command::new(need::tool("/usr/bin/python3")?);
    python.args(["-c", SCRIPT, what]).args(from).arg(out).stdin(Stdio::null());
    let output = python.output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    // A bug of its own ends without an answer: that is no refusal.
    let answer: Value = serde_json::from_str(&said).with_context(|| {
        format!("the second reader broke: {said}{}", String::from_utf8_lossy(&output.stderr))
    })?;
    let refused = answer["refused"].as_str().map(str::to_owned);
    ensure!(output.status.success() == refused.is_none(), "{}: {answer}", output.status);
    let words = |field: &str| -> Vec<String> {
        let items = answer[field].as_array().into_iter().flatten();
        items.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    Ok(Seen { refused, damage: words("damage"), layers: words("layers") })
}
