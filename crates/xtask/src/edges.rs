//! Which crate may use which: the table of ARCHITECTURE.md against `cargo metadata`.
//! Dev-dependencies are exempt: tests may look at anything.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::cargo;

/// The table stands between these two lines.
const BEGIN: &str = "<!-- crate edges: begin -->";
const END: &str = "<!-- crate edges: end -->";

type Edges = BTreeMap<String, BTreeSet<String>>;

pub(crate) fn check() -> Result<()> {
    let allowed = allowed(&std::fs::read_to_string("ARCHITECTURE.md")?)?;
    let output = e2e::process::text(&mut cargo(&[
        "metadata",
        "--format-version",
        "1",
        "--no-deps",
        "--locked",
    ]))?;
    let wrong = violations(&allowed, &actual(&serde_json::from_str(&output)?)?);
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// Reads rows `| crate | what | may use |`; `any` and `–` mean what they say.
fn allowed(document: &str) -> Result<Edges> {
    let (_, rest) = document.split_once(BEGIN).context("ARCHITECTURE.md has no table of edges")?;
    let (table, _) = rest.split_once(END).context("the table of edges has no end")?;
    let mut edges = Edges::new();
    for row in table.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [names, _, uses] = cells[..] else {
            anyhow::bail!("a row of the table of edges has not three cells: {row}");
        };
        let words = |cell: &str| -> BTreeSet<String> {
            cell.split([',', ' ']).map(|word| word.trim_matches('`').to_owned()).collect()
        };
        let uses = words(uses);
        for name in words(names).into_iter().filter(|name| !name.is_empty()) {
            edges.insert(name, uses.clone());
        }
    }
    Ok(edges)
}

fn actual(metadata: &Value) -> Result<Edges> {
    let packages = metadata["packages"].as_array().context("cargo metadata has no packages")?;
    let name = |value: &Value| value["name"].as_str().unwrap_or_default().to_owned();
    let members: BTreeSet<_> = packages.iter().map(name).collect();
    Ok(packages
        .iter()
        .map(|package| {
            let none = Vec::new();
            let uses = package["dependencies"].as_array().unwrap_or(&none);
            let uses = uses
                .iter()
                .filter(|dependency| dependency["kind"] != "dev" && dependency["path"].is_string())
                .map(name)
                .filter(|used| members.contains(used));
            (name(package), uses.collect())
        })
        .collect())
}

fn violations(allowed: &Edges, actual: &Edges) -> Vec<String> {
    let mut wrong = Vec::new();
    for (name, uses) in actual {
        let Some(may) = allowed.get(name) else {
            wrong.push(format!("{name} has no row in the table of ARCHITECTURE.md"));
            continue;
        };
        for used in uses.iter().filter(|used| !may.contains("any") && !may.contains(*used)) {
            wrong.push(format!("{name} uses {used}, which its row does not allow"));
        }
    }
    for name in allowed.keys().filter(|name| !actual.contains_key(*name)) {
        wrong.push(format!("the table of ARCHITECTURE.md names {name}, which is no crate"));
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "x\n<!-- crate edges: begin -->\n| crate | owns | may use |\n|---|---|---|\n\
        | `a` | it | – |\n| `b` | it | `a` |\n| `t`, `u` | it | any |\n<!-- crate edges: end -->\n";

    fn graph(edges: &[(&str, &[&str])]) -> Edges {
        let set = |uses: &[&str]| uses.iter().map(|used| (*used).to_owned()).collect();
        edges.iter().map(|(name, uses)| ((*name).to_owned(), set(uses))).collect()
    }

    #[test]
    fn an_edge_needs_its_row() {
        let allowed = allowed(TABLE).expect("a table");
        let fine = graph(&[("a", &[]), ("b", &["a"]), ("t", &["a", "b"]), ("u", &[])]);
        assert_eq!(violations(&allowed, &fine), Vec::<String>::new());
        let upwards = graph(&[("a", &["b"]), ("b", &["a"]), ("t", &[]), ("u", &[])]);
        assert_eq!(violations(&allowed, &upwards).len(), 1);
        let unknown = graph(&[("a", &[]), ("b", &[]), ("t", &[]), ("u", &[]), ("new", &[])]);
        assert_eq!(violations(&allowed, &unknown).len(), 1);
        let gone = graph(&[("a", &[]), ("b", &[]), ("t", &[])]);
        assert_eq!(violations(&allowed, &gone).len(), 1);
    }

    #[test]
    fn dev_dependencies_are_exempt() {
        let metadata = serde_json::json!({"packages": [
            {"name": "a", "dependencies": [{"name": "b", "kind": "dev", "path": "/b"}]},
            {"name": "b", "dependencies": [{"name": "a", "kind": null, "path": "/a"}, {"name": "serde", "kind": null}]},
        ]});
        let edges = actual(&metadata).expect("edges");
        assert_eq!(edges, graph(&[("a", &[]), ("b", &["a"])]));
    }
}
