//! Bad input: a clear error, the documented exit code, and nothing left behind.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use e2e::shale::{Said, exit, said};
use e2e::tools::{self, Fill};
use e2e::{Shale, need};

const MIB: u64 = 1 << 20;
const NOBODY: u32 = 65534;

/// Every file below `dir` with its length.
fn files(dir: &Path) -> Result<Vec<(String, u64)>> {
    let mut found = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if entry.metadata()?.is_dir() {
                folders.push(entry.path());
            } else {
                found.push((entry.path().display().to_string(), entry.metadata()?.len()));
            }
        }
    }
    found.sort();
    Ok(found)
}

fn complain(words: &[&str], codes: &[i32], said: &Said, hint: &str) -> Option<String> {
    let says = said.err.starts_with("error: ") && !said.err.contains("panicked");
    let fine = codes.contains(&said.code) && says && said.err.contains(hint);
    (!fine).then(|| {
        format!("{words:?}: wanted {codes:?} and {hint:?}, got {}: {}", said.code, said.err)
    })
}

#[test]
fn words_that_make_no_sense() -> Result<()> {
    let shale = Shale::start()?;
    let store = shale.datastore("fast")?;
    shale.volume("web", "fast", "8M")?;
    shale.snapshot("s1", "web")?;
    let before = files(&store)?;
    let file = shale.home().join("file");
    fs::write(&file, "not a directory")?;
    let file = file.to_str().context("UTF-8")?;
    let long = "x".repeat(64);
    let create = |name: &'static str, size: &'static str| {
        vec!["volume", "create", name, "--datastore", "fast", "--size", size, "--kind", "thin"]
    };
    let (usage, missing, refused) =
        (&[exit::USAGE][..], &[exit::NOT_FOUND][..], &[exit::CONFLICT][..]);
    let no_use = &[exit::USAGE, exit::CONFLICT][..];
    let table: Vec<(Vec<&str>, &[i32], &str)> = vec![
        (create("../escape", "8M"), usage, ""),
        (create("a/b", "8M"), usage, ""),
        (create("a\nb", "8M"), usage, ""),
        (create("a\u{1b}[31mred", "8M"), usage, ""),
        (create("", "8M"), usage, ""),
        (create(".hidden", "8M"), usage, ""),
        (create("ünï", "8M"), usage, ""),
        (vec!["volume", "rename", "web", &long], usage, ""),
        (vec!["volume", "rename", "web", "../web"], usage, ""),
        (vec!["snapshot", "create", "../s", "--volume", "web"], usage, ""),
        (vec!["datastore", "create", "../d", "--dir", "/tmp"], usage, ""),
        (create("new", "0"), no_use, ""),
        (create("new", "1"), no_use, ""),
        (create("new", "-5"), usage, ""),
        (create("new", "ten"), usage, ""),
        (create("new", "10Q"), usage, ""),
        (create("new", "65T"), no_use, ""),
        (create("new", "99999999999999999999T"), usage, ""),
        (create("web", "8M"), refused, "web"),
        (
            vec![
                "volume",
                "create",
                "new",
                "--datastore",
                "none",
                "--size",
                "8M",
                "--kind",
                "thin",
            ],
            missing,
            "none",
        ),
        (
            vec!["volume", "create", "new", "--datastore", "fast", "--size", "8M", "--kind", "fat"],
            usage,
            "",
        ),
        (vec!["volume", "show", "none"], missing, "none"),
        (vec!["volume", "connect", "none"], missing, "none"),
        (vec!["volume", "connect", "web", "--protocol", "telepathy"], usage, ""),
        (vec!["snapshot", "revert", "none", "--volume", "web", "--yes"], missing, "none"),
        (vec!["snapshot", "create", "s1", "--volume", "web"], refused, "s1"),
        (vec!["snapshot", "create", "s2", "--volume", "none"], missing, "none"),
        (vec!["template", "deploy", "none", "--name", "x", "--linked"], missing, "none"),
        (vec!["volume", "resize", "web", "--size", "4M"], no_use, ""),
        (
            vec!["datastore", "create", "other", "--dir", "/does/not/exist"],
            &[exit::NOT_FOUND, exit::CONFLICT, exit::USAGE],
            "/does/not/exist",
        ),
        (vec!["datastore", "create", "other", "--dir", file], no_use, file),
        (
            vec!["datastore", "create", "other", "--dir", "/proc"],
            &[exit::FAILED, exit::CONFLICT, exit::DENIED],
            "/proc",
        ),
        (vec!["datastore", "create", "fast", "--dir", "/tmp"], refused, "fast"),
        (vec!["datastore", "delete", "fast", "--yes"], refused, "web"),
        (vec!["task", "cancel", "00000000-0000-0000-0000-000000000000"], missing, ""),
        (vec!["nonsense"], usage, ""),
    ];
    let mut wrong = Vec::new();
    for (words, codes, hint) in &table {
        wrong.extend(complain(words, codes, &shale.try_cli(words)?, hint));
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    ensure!(files(&store)? == before, "something was left behind: {:?}", files(&store)?);
    ensure!(shale.names(&["volume", "list"])? == ["web"]);
    ensure!(shale.names(&["datastore", "list"])? == ["fast"]);
    Ok(())
}

#[test]
fn wrong_tokens() -> Result<()> {
    let shale = Shale::start()?;
    let right = shale.token()?;
    let mut other = right.clone().into_bytes();
    if let Some(last) = other.last_mut() {
        *last = if *last == b'0' { b'1' } else { b'0' };
    }
    for wrong in ["", "wrong", &String::from_utf8(other)?, &"x".repeat(10_000)] {
        let mut command = shale.command()?;
        let said = said(command.args(["volume", "list"]).env("SHALE_TOKEN", wrong))?;
        // An empty token is none given: the data directory's own is not at hand either.
        ensure!(said.code == exit::DENIED, "{wrong:.20}: {} {}", said.code, said.err);
        ensure!(!said.err.contains(&right), "the error shows the token");
    }
    Ok(())
}

#[test]
fn a_second_serve_on_the_same_data_directory() -> Result<()> {
    let shale = Shale::start()?;
    let mut second = shale.command()?;
    let listen = format!("127.0.0.1:{}", e2e::shale::free_port()?);
    let said = said(second.args(["serve", "--listen", &listen, "--data"]).arg(shale.data()))?;
    ensure!(said.code == exit::CONFLICT, "{} {}", said.code, said.err);
    ensure!(said.err.contains(&shale.data().display().to_string()), "{}", said.err);
    ensure!(shale.cli(&["volume", "list"]).is_ok(), "the first one was disturbed");
    Ok(())
}

#[test]
fn a_directory_that_is_not_writable() -> Result<()> {
    need::root()?;
    let home = tempfile::Builder::new().prefix("shale-").tempdir()?;
    let shale = Shale::start_as(home, NOBODY)?;
    let dir = tempfile::tempdir()?;
    fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let path = dir.path().to_str().context("UTF-8")?;
    let said = shale.try_cli(&["datastore", "create", "fast", "--dir", path])?;
    ensure!([exit::DENIED, exit::CONFLICT].contains(&said.code), "{} {}", said.code, said.err);
    ensure!(said.err.contains(path), "the directory is not named: {}", said.err);
    ensure!(files(dir.path())?.is_empty(), "something was left behind");
    // The same user has a whole system where the directory is its own.
    let own = shale.home().join("own");
    fs::create_dir(&own)?;
    std::os::unix::fs::chown(&own, Some(NOBODY), Some(NOBODY))?;
    shale.cli(&["datastore", "create", "own", "--dir", own.to_str().context("UTF-8")?])?;
    shale.volume("web", "own", "8M")?;
    let fill = Fill { byte: 1, at: 0, len: MIB };
    let connection = shale.connect("web")?;
    tools::write(&connection.uri, &[fill])?;
    tools::expect(&connection.uri, &[fill])
}

/// What somebody or something did to a layer while the system was down.
type Damage = fn(&Path) -> Result<()>;

#[test]
fn damaged_files_harm_nobody_else() -> Result<()> {
    let truncate: Damage =
        |path| Ok(fs::OpenOptions::new().write(true).open(path)?.set_len(700)?);
    let empty: Damage = |path| Ok(fs::OpenOptions::new().write(true).open(path)?.set_len(0)?);
    let noise: Damage = |path| {
        let scramble = |i: u32| i.wrapping_mul(2_654_435_761).to_le_bytes()[2];
        let noise: Vec<u8> = (0..65_536).map(scramble).collect();
        Ok(fs::write(path, noise)?)
    };
    let gone: Damage = |path| Ok(fs::remove_file(path)?);
    for (name, damage) in
        [("truncate", truncate), ("empty", empty), ("noise", noise), ("gone", gone)]
    {
        let mut shale = Shale::start()?;
        let store = shale.datastore("fast")?;
        shale.volume("good", "fast", "8M")?;
        let layers = || -> Result<Vec<_>> {
            let entries = fs::read_dir(store.join("layer"))?;
            Ok(entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?)
        };
        let before = layers()?;
        shale.volume("bad", "fast", "8M")?;
        let fill = Fill { byte: 1, at: 0, len: MIB };
        for volume in ["good", "bad"] {
            tools::write(&shale.connect(volume)?.uri, &[fill])?;
        }
        shale.down()?;
        let victim =
            layers()?.into_iter().find(|path| !before.contains(path)).context("a layer")?;
        damage(&victim)?;
        shale.serve()?;
        let said = shale.try_cli(&["volume", "connect", "bad"])?;
        ensure!(said.code != exit::OK, "{name}: a damaged volume was connected");
        ensure!(
            said.err.starts_with("error: ") && !said.err.contains("panicked"),
            "{name}: {}",
            said.err
        );
        tools::expect(&shale.connect("good")?.uri, &[fill]).context(name)?;
        let check = shale.try_cli(&["datastore", "check", "fast", "-o", "json"])?;
        let id = victim.file_stem().context("a name")?.to_string_lossy().into_owned();
        ensure!(
            format!("{}{}", check.out, check.err).contains(&id),
            "{name}: the check does not name {id}: {check:?}"
        );
    }
    Ok(())
}

#[test]
fn a_record_that_does_not_parse_stops_sweeping_and_nothing_else() -> Result<()> {
    let mut shale = Shale::start()?;
    let store = shale.datastore("fast")?;
    shale.volume("good", "fast", "8M")?;
    let records = || -> Result<Vec<_>> {
        let entries = fs::read_dir(store.join("record"))?;
        Ok(entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?)
    };
    let before = records()?;
    shale.volume("bad", "fast", "8M")?;
    shale.down()?;
    let victim = records()?.into_iter().find(|path| !before.contains(path)).context("a record")?;
    let text = fs::read(&victim)?;
    fs::write(&victim, &text[..text.len() / 2])?;
    let layers = files(&store.join("layer"))?;
    shale.serve()?;
    let fill = Fill { byte: 1, at: 0, len: MIB };
    tools::write(&shale.connect("good")?.uri, &[fill])?;
    ensure!(files(&store.join("layer"))?.len() == layers.len(), "a layer was swept");
    let check = shale.try_cli(&["datastore", "check", "fast", "-o", "json"])?;
    let id = victim.file_stem().context("a name")?.to_string_lossy().into_owned();
    ensure!(
        format!("{}{}", check.out, check.err).contains(&id),
        "the check does not name {id}: {check:?}"
    );
    Ok(())
}
