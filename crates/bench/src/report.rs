//! docs/benchmarks.md: what was measured, on what, and how to do it again.

use std::fmt::Write as _;
use std::process::Command;

use anyhow::Result;
use e2e::process::text;

use crate::Options;

#[derive(Debug)]
pub(crate) struct Report {
    text: String,
}

impl Report {
    pub(crate) fn new(options: &Options) -> Result<Self> {
        let mut report = Self { text: String::new() };
        report.text.push_str(
            "# Benchmarks\n\nWritten by `cargo xtask bench`; do not edit. Absolute figures belong to this machine and hour; \
             the ratios are what to look at.\n",
        );
        report.section("Machine", "");
        for (name, fact) in machine(options)? {
            writeln!(report.text, "- {name}: {fact}")?;
        }
        writeln!(
            report.text,
            "- each run {} s after half a second of warming up, {} rounds",
            options.seconds, options.rounds
        )?;
        Ok(report)
    }

    pub(crate) fn section(&mut self, title: &str, text: &str) {
        self.text.push_str(&format!("\n## {title}\n\n"));
        if !text.is_empty() {
            self.text.push_str(&format!("{text}\n\n"));
        }
    }

    pub(crate) fn table(&mut self, head: &[String], rows: &[Vec<String>]) {
        let mut line =
            |cells: &[String]| self.text.push_str(&format!("| {} |\n", cells.join(" | ")));
        line(head);
        line(&vec!["---".to_owned(); head.len()]);
        for row in rows {
            line(row);
        }
    }

    /// Something for whoever waits; not part of the document.
    pub(crate) fn progress(&self, row: &[String]) {
        println!("{}", row.join("  "));
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }
}

/// What the figures depend on; never the machine's name.
fn machine(options: &Options) -> Result<Vec<(&'static str, String)>> {
    let cpu = std::fs::read_to_string("/proc/cpuinfo")?;
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("unknown", |rest| rest.trim_start_matches([' ', '\t', ':']));
    let cores = cpu.lines().filter(|line| line.starts_with("processor")).count();
    let memory = std::fs::read_to_string("/proc/meminfo")?;
    let memory: u64 = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or(0);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    // The third part and what follows name somebody's build.
    let kernel = kernel.trim().split('-').next().unwrap_or("").to_owned();
    let file_system = |dir: &std::path::Path| -> Result<String> {
        text(Command::new("findmnt").args(["-n", "-o", "FSTYPE", "-T"]).arg(dir))
    };
    let first = |program: &str| -> Result<String> {
        Ok(text(Command::new(program).arg("--version"))?.lines().next().unwrap_or("").to_owned())
    };
    Ok(vec![
        ("processor", format!("{model}, {cores} cores")),
        ("memory", format!("{} GiB", memory >> 20)),
        ("kernel", format!("Linux {kernel}")),
        ("file system of the images", file_system(&options.dir)?),
        ("peer", first("qemu-storage-daemon")?),
        ("client", first("fio")?),
    ])
}
