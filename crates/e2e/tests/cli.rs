//! The lines of the grammar, as written; output formats, exit codes, completion.

use anyhow::{Context, Result, ensure};
use e2e::Shale;
use e2e::shale::{exit, said};

#[test]
fn the_grammar_works_as_written() -> Result<()> {
    let mut shale = Shale::start()?;
    let dir = shale.home().join("store");
    std::fs::create_dir(&dir)?;
    let dir = dir.to_str().context("UTF-8")?.to_owned();
    let lines = [
        format!("datastore create fast --dir {dir}"),
        "volume create web --datastore fast --size 10G --kind thin".into(),
        "volume connect web --protocol nbd -o json".into(),
        "snapshot create before --volume web".into(),
        "snapshot list --volume web".into(),
        "snapshot tree --volume web".into(),
        "volume connect web --snapshot before --read-only -o json".into(),
        "volume disconnect web".into(),
        "volume resize web --size 12G".into(),
        "snapshot revert before --volume web --yes".into(),
        "snapshot delete before --volume web --yes".into(),
        "volume rename web www".into(),
        "template create golden --from www".into(),
        "template list".into(),
        "template deploy golden --name one --linked".into(),
        "template deploy golden --name many --linked --count 3".into(),
        "template deploy golden --name copy --full --kind thin".into(),
        "volume list".into(),
        "volume delete one --yes".into(),
        "datastore list".into(),
        "datastore show fast".into(),
        "datastore check fast".into(),
        "task list".into(),
        "alarm list".into(),
        "token list".into(),
    ];
    for line in &lines {
        let words: Vec<_> = line.split(' ').collect();
        shale.cli(&words)?;
    }
    shale.down()
}

#[test]
fn a_connection_is_told_as_documented() -> Result<()> {
    let shale = Shale::start()?;
    shale.datastore("fast")?;
    shale.volume("web", "fast", "8M")?;
    let answer = shale.json(&["volume", "connect", "web"])?;
    ensure!(answer["protocol"] == "nbd", "{answer}");
    let uri = answer["uri"].as_str().context("no uri")?;
    let socket = e2e::Connection::parse(uri)?.socket;
    use std::os::unix::fs::PermissionsExt as _;
    let mode = |path: &std::path::Path| -> Result<u32> {
        Ok(path.metadata()?.permissions().mode() & 0o777)
    };
    ensure!(mode(&socket)? == 0o600, "the socket is open to others");
    let folder = socket.parent().context("a folder")?;
    ensure!(mode(folder)? == 0o700, "the socket's folder is open to others");
    shale.disconnect("web")?;
    ensure!(shale.connect("web")?.socket == socket, "the path changed");
    Ok(())
}

#[test]
fn every_output_format() -> Result<()> {
    let shale = Shale::start()?;
    shale.datastore("fast")?;
    shale.volume("web", "fast", "8M")?;
    let list = |format| shale.cli(&["volume", "list", "-o", format]);
    ensure!(list("name")?.trim() == "web");
    ensure!(list("table")?.contains("web") && list("wide")?.len() > list("table")?.len());
    ensure!(list("yaml")?.contains("name: web"));
    ensure!(
        list("json")?.contains("\"name\": \"web\"") || list("json")?.contains("\"name\":\"web\"")
    );
    let show = shale.json(&["volume", "show", "web"])?;
    ensure!(show["size"] == 8 << 20, "sizes are bytes in JSON: {show}");
    Ok(())
}

#[test]
fn used_and_provisioned_are_told_apart() -> Result<()> {
    let shale = Shale::start()?;
    shale.datastore("fast")?;
    shale.volume("web", "fast", "20G")?;
    let space = shale.json(&["volume", "show", "web"])?["space"].clone();
    ensure!(space["provisioned"] == 20_u64 << 30, "{space}");
    ensure!(space["used"].as_u64().is_some_and(|used| used < 1 << 20), "{space}");
    Ok(())
}

#[test]
fn tokens_give_what_their_role_allows() -> Result<()> {
    let shale = Shale::start()?;
    shale.datastore("fast")?;
    let answer = shale.json(&["token", "create", "dash", "--role", "reader"])?;
    let secret = answer["secret"].as_str().context("no secret")?.to_owned();
    let with = |words: &[&str]| said(shale.command()?.args(words).env("SHALE_TOKEN", &secret));
    ensure!(with(&["volume", "list"])?.code == exit::OK);
    let create = ["volume", "create", "x", "--datastore", "fast", "--size", "8M", "--kind", "thin"];
    ensure!(with(&create)?.code == exit::DENIED);
    shale.cli(&["token", "delete", "dash", "--yes"])?;
    ensure!(with(&["volume", "list"])?.code == exit::DENIED, "a deleted token still works");
    Ok(())
}

#[test]
fn without_a_system_the_error_says_so() -> Result<()> {
    let shale = Shale::start()?;
    let mut command = shale.command()?;
    let said = said(command.args(["volume", "list"]).env("SHALE_URL", "http://127.0.0.1:1"))?;
    ensure!(said.code == exit::FAILED && said.err.contains("127.0.0.1:1"), "{said:?}");
    Ok(())
}

#[test]
fn completion_is_generated() -> Result<()> {
    for shell in ["bash", "zsh", "fish"] {
        let mut command = std::process::Command::new(e2e::shale::binary()?);
        let said = said(command.args(["completion", shell]))?;
        ensure!(said.code == exit::OK && said.out.contains("datastore"), "{shell}: {said:?}");
    }
    Ok(())
}
