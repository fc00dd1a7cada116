//! What this host has of what a node needs. Nothing here changes anything, asks for rights or starts
//! a node: every finding is made of what the kernel tells, of files that are only read, and of a file
//! without a name.
//!
//! ```text
//!   kernel   io_uring, open files, /dev/kvm, clock, systemd
//!   places   data directory, logs in memory, directories for datastores
//!   tools    QEMU's, for foreign formats
//! ```

mod kernel;
mod places;
mod tools;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It is there.
    Ok,
    /// It is there in part: everything works, but not as well or not everywhere.
    Limited,
    /// It is not there.
    Missing,
}

impl State {
    /// As it is shown.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Limited => "limited",
            Self::Missing => "missing",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Its stable name.
    pub name: String,
    /// How it is.
    pub state: State,
    /// Whether nothing works without it.
    pub required: bool,
    /// What was found, and what that means.
    pub meaning: String,
    /// What to do; absent where nothing is to be done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Finding {
    fn new(name: &str, state: State, meaning: impl Into<String>) -> Self {
        let (name, meaning) = (name.to_owned(), meaning.into());
        Self { name, state, required: false, meaning, advice: None }
    }

    /// It is there.
    #[must_use]
    pub fn ok(name: &str, meaning: impl Into<String>) -> Self {
        Self::new(name, State::Ok, meaning)
    }

    /// It is there in part.
    #[must_use]
    pub fn limited(name: &str, meaning: impl Into<String>) -> Self {
        Self::new(name, State::Limited, meaning)
    }

    /// It is not there.
    #[must_use]
    pub fn missing(name: &str, meaning: impl Into<String>) -> Self {
        Self::new(name, State::Missing, meaning)
    }

    /// Nothing works without it.
    #[must_use]
    pub fn required(self) -> Self {
        Self { required: true, ..self }
    }

    /// What to do about it.
    #[must_use]
    pub fn advice(self, advice: impl Into<String>) -> Self {
        Self { advice: Some(advice.into()), ..self }
    }

    /// Whether a node cannot work on this host because of it.
    #[must_use]
    pub fn prevents(&self) -> bool {
        self.required && self.state == State::Missing
    }
}

/// Looks at this host as the calling user sees it: for a node on the data directory `data`, and for
/// datastores in `dirs`.
#[must_use]
pub fn examine(data: &Path, dirs: &[PathBuf]) -> Vec<Finding> {
    let mut findings = vec![kernel::io_uring(), kernel::open_files(), kernel::clock(data)];
    findings.push(places::data(data));
    findings.push(places::logs(&crate::data_dir::default_log_dir()));
    for dir in dirs {
        findings.extend(places::datastore(dir));
    }
    findings.push(kernel::kvm());
    findings.extend(tools::all());
    findings.push(kernel::systemd());
    findings
}
