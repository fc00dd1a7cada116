//! Checks that read the tracked files as text.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use e2e::process::{text, workspace};

/// The crates that talk to the kernel and may hold unsafe code, each block with its reason.
const MAY_BE_UNSAFE: &[&str] = &["io", "blockio", "export"];

/// Files under version control, as text; binary files are left out.
fn tracked() -> Result<Vec<(PathBuf, String)>> {
    let names = text(Command::new("git").args(["ls-files", "-z"])).context("needs a git tree")?;
    let mut files = Vec::new();
    for name in names.split('\0').filter(|name| !name.is_empty()) {
        // A file that is deleted but not yet committed is listed too.
        if let Ok(Ok(text)) = std::fs::read(name).map(String::from_utf8) {
            files.push((PathBuf::from(name), text));
        }
    }
    Ok(files)
}

/// The compiler's `unsafe_code = "deny"` stands in the workspace; here: that no other crate
/// switches it off, and that every crate takes the workspace's lints.
pub(crate) fn unsafe_code() -> Result<()> {
    let mut wrong = Vec::new();
    for (path, text) in tracked()? {
        let mut parts = path.iter().filter_map(|part| part.to_str());
        let (Some("crates"), Some(name)) = (parts.next(), parts.next()) else { continue };
        if path.ends_with("Cargo.toml") && !text.contains("[lints]\nworkspace = true") {
            wrong.push(format!("{} does not take the workspace's lints", path.display()));
        }
        if path.extension().is_none_or(|extension| extension != "rs")
            || MAY_BE_UNSAFE.contains(&name)
        {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            if switches_off(line) {
                wrong.push(format!("{}:{}: {}", path.display(), number + 1, line.trim()));
            }
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

fn switches_off(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    ["allow", "expect", "warn"].iter().any(|level| code.contains(&format!("{level}(unsafe_code")))
}

/// A clone elsewhere must work: nothing of this machine's folders or package mirrors may stand in
/// the tracked files.
pub(crate) fn machine() -> Result<()> {
    let mut needles = BTreeSet::new();
    let root = workspace();
    for folder in root.parent().into_iter().chain([root.as_path()]) {
        // a checkout in a folder that every machine has says nothing about this one
        let everywhere = ["/", "/tmp", "/var/tmp", "/root", "/home"].map(Path::new);
        if !everywhere.contains(&folder) {
            needles.insert(format!("{}/", folder.display()));
        }
    }
    needles.extend(mirrors());
    let mut wrong = Vec::new();
    for (path, text) in tracked()? {
        for (number, line) in text.lines().enumerate() {
            for needle in needles.iter().filter(|needle| names(line, needle)) {
                wrong.push(format!("{}:{} names {needle}", path.display(), number + 1));
            }
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// `needle` as a word of its own: `/a/` is not in `/var/a/`.
fn names(line: &str, needle: &str) -> bool {
    line.match_indices(needle).any(|(at, _)| {
        !line[..at].ends_with(|before: char| before.is_alphanumeric() || "._-".contains(before))
    })
}

/// The hosts that this machine is set up to fetch packages from.
fn mirrors() -> BTreeSet<String> {
    let home = PathBuf::from(std::env::var_os("HOME").unwrap_or_default());
    let cargo = std::env::var_os("CARGO_HOME").map_or_else(|| home.join(".cargo"), PathBuf::from);
    let mut files = vec![
        cargo.join("config.toml"),
        home.join(".npmrc"),
        home.join(".config/pip/pip.conf"),
        "/etc/pip.conf".into(),
        "/etc/apt/sources.list".into(),
    ];
    let sources = std::fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten();
    files.extend(sources.filter_map(Result::ok).map(|entry| entry.path()));
    let texts = files.iter().filter_map(|file| std::fs::read_to_string(file).ok());
    texts.flat_map(|text| hosts(&text)).collect()
}

fn hosts(text: &str) -> Vec<String> {
    let after = text.split("://").skip(1);
    after
        .filter_map(|rest| rest.split(['/', ' ', '"', '\n', '\'']).next())
        .map(|host| host.rsplit('@').next().unwrap_or(host).to_owned())
        .filter(|host| host.contains('.'))
        .collect()
}

/// Relative links of the documents must lead to a file.
pub(crate) fn links() -> Result<()> {
    let mut wrong = Vec::new();
    for (path, text) in tracked()? {
        if path.extension().is_none_or(|extension| extension != "md") {
            continue;
        }
        let folder = path.parent().unwrap_or_else(|| Path::new("."));
        for target in targets(&text) {
            if !target.contains(':') && !folder.join(target).exists() {
                wrong.push(format!("{}: {target} does not exist", path.display()));
            }
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// Every safety rule names the tests that show it, as `crate::test`; they must be there.
pub(crate) fn safety_rules() -> Result<()> {
    let files = tracked()?;
    let document = "docs/safety.md";
    let (_, rules) = files
        .iter()
        .find(|(path, _)| path.as_path() == Path::new(document))
        .with_context(|| format!("{document} is not there"))?;
    let exists = |name: &str, test: &str| {
        let folder = Path::new("crates").join(name);
        files.iter().any(|(path, text)| path.starts_with(&folder) && has_word(text, test))
    };
    let mut wrong = Vec::new();
    let mut rows = 0;
    for row in rules.lines().filter(|line| line.starts_with("| **")) {
        rows += 1;
        let cell = row.trim_end_matches([' ', '|']).rsplit('|').next().unwrap_or_default();
        let tests: Vec<_> = cell.split('`').filter_map(|word| word.split_once("::")).collect();
        if tests.is_empty() {
            wrong.push(format!("no test is named: {row}"));
        }
        for (name, test) in tests.into_iter().filter(|(name, test)| !exists(name, test)) {
            wrong.push(format!("{name} has no test {test}"));
        }
    }
    ensure!(rows > 0, "{document} has no rules");
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

fn has_word(text: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word)
        .any(|(at, _)| !text[..at].ends_with(part) && !text[at + word.len()..].starts_with(part))
}

/// What `](...)` points to, without the part behind `#`.
fn targets(text: &str) -> impl Iterator<Item = &str> {
    text.split("](")
        .skip(1)
        .filter_map(|rest| rest.split_once(')'))
        .filter_map(|(target, _)| target.split('#').next())
        .filter(|target| !target.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_needle_is_a_word_of_its_own() {
        assert!(names("cd /build/shale", "/build/"));
        assert!(names("mirror.example.org/x", "mirror.example.org"));
        assert!(!names("/var/build/shale", "/build/"));
        assert!(!names("a.mirror.example.org", "mirror.example.org"));
    }

    #[test]
    fn hosts_of_a_source_list() {
        let text = "URIs: http://one.example.org/debian\nindex = \"sparse+https://u:p@two.example.org/x/\"\n";
        assert_eq!(hosts(text), ["one.example.org", "two.example.org"]);
    }

    #[test]
    fn only_switching_the_lint_off_counts() {
        // In two parts, or this line would be found.
        assert!(switches_off(concat!("#![expect(", "unsafe_code, reason = \"ring\")]")));
        assert!(!switches_off("#![forbid(unsafe_code)]"));
        assert!(!switches_off("// allow(unsafe_code) is not for us"));
    }

    #[test]
    fn a_test_is_found_by_its_whole_name() {
        assert!(has_word("fn d1_holds() {", "d1_holds"));
        assert!(!has_word("fn d1_holds_too() {", "d1_holds"));
    }

    #[test]
    fn targets_of_links() {
        let found: Vec<_> = targets("[a](b.md) and [c](d.md#e), [f](#g)").collect();
        assert_eq!(found, ["b.md", "d.md"]);
    }
}
