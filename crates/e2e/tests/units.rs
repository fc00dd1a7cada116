//! The systemd units of a real installation, run as systemd would run them: the processes are those of
//! their `ExecStart` lines, each is restarted while a client checks its data, and only the one that is
//! restarted goes away.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use e2e::need;
use e2e::process::{Owned, Signal, lines, poll_until, run, signal, workspace};
use e2e::shale::{Connection, Said, binary, exit, free_port, said};
use serde_json::Value;
use tempfile::TempDir;

/// Bounds a failure; never part of what is asserted.
const LIMIT: Duration = Duration::from_secs(60);
const NODE: &str = "shale-node.service";
const SERVE: &str = "shale.service";

/// A unit file's settings; a key may have several values.
type Unit = BTreeMap<String, Vec<String>>;

fn unit_path(name: &str) -> PathBuf {
    workspace().join("packaging/systemd").join(name)
}

fn unit(name: &str) -> Result<Unit> {
    let text = std::fs::read_to_string(unit_path(name)).with_context(|| name.to_owned())?;
    let mut unit = Unit::new();
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with(['#', '[']) {
            continue;
        }
        let (key, value) = line.split_once('=').with_context(|| format!("{name}: {line}"))?;
        unit.entry(key.to_owned()).or_default().push(value.to_owned());
    }
    Ok(unit)
}

fn only<'a>(unit: &'a Unit, key: &str) -> Result<&'a str> {
    match unit.get(key).map(Vec::as_slice) {
        Some([value]) => Ok(value),
        other => bail!("{key} has the values {other:?}"),
    }
}

/// A host with both units, without systemd.
struct Host {
    home: TempDir,
    listen: String,
    running: BTreeMap<&'static str, Owned>,
}

impl Host {
    fn new() -> Result<Self> {
        let home = tempfile::Builder::new().prefix("units-").tempdir()?;
        let listen = format!("127.0.0.1:{}", free_port()?);
        Ok(Self { home, listen, running: BTreeMap::new() })
    }

    fn data(&self) -> PathBuf {
        self.home.path().join("data")
    }

    /// What a unit would run, on this test's binary, directory and port.
    fn exec_start(&self, name: &str) -> Result<Vec<String>> {
        let unit = unit(name)?;
        let line = only(&unit, "ExecStart")?;
        ensure!(line.starts_with("/usr/bin/shale "), "{name} runs {line}");
        ensure!(line.contains(" --data /var/lib/shale"), "{name} works elsewhere: {line}");
        ensure!(only(&unit, "StateDirectory")? == "shale");
        line.split_whitespace()
            .map(|word| match word {
                "/usr/bin/shale" => binary().map(|path| path.display().to_string()),
                "/var/lib/shale" => Ok(self.data().display().to_string()),
                "127.0.0.1:7070" => Ok(self.listen.clone()),
                word => Ok(word.to_owned()),
            })
            .collect()
    }

    fn start(&mut self, name: &'static str) -> Result<()> {
        let words = self.exec_start(name)?;
        let log = std::fs::File::options().create(true).append(true).open(self.log_path(name))?;
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).env_remove("SHALE_URL").env_remove("SHALE_TOKEN");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.running.insert(name, Owned::spawn(&mut command)?);
        Ok(())
    }

    fn log_path(&self, name: &str) -> PathBuf {
        self.home.path().join(format!("{name}.log"))
    }

    fn unit_process(&mut self, name: &str) -> Result<&mut Owned> {
        self.running.get_mut(name).with_context(|| format!("{name} does not run"))
    }

    /// `systemctl stop`: SIGTERM to the main process. It must end well: `Restart=on-failure` would
    /// start it again otherwise.
    fn stop(&mut self, name: &str) -> Result<()> {
        let status = self.unit_process(name)?.terminate(LIMIT)?;
        ensure!(status.success(), "{name} ended with {status}: {}", self.log(name));
        Ok(())
    }

    fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.log_path(name)).unwrap_or_default()
    }

    /// Nothing that was done to another unit may end this one.
    fn still_runs(&mut self, name: &str) -> Result<()> {
        let ended = self.unit_process(name)?.child().try_wait()?;
        ensure!(ended.is_none(), "{name} ended with {ended:?}: {}", self.log(name));
        Ok(())
    }

    fn try_cli(&self, words: &[&str]) -> Result<Said> {
        let mut command = Command::new(binary()?);
        command.args(words).arg("--data").arg(self.data());
        said(command.env_remove("SHALE_URL").env_remove("SHALE_TOKEN"))
    }

    fn cli(&self, words: &[&str]) -> Result<String> {
        let said = self.try_cli(words)?;
        ensure!(
            said.code == exit::OK,
            "{words:?}: {said:?}\n{}\n{}",
            self.log(NODE),
            self.log(SERVE)
        );
        Ok(said.out)
    }

    fn json(&self, words: &[&str]) -> Result<Value> {
        let text = self.cli(&[words, &["-o", "json"]].concat())?;
        serde_json::from_str(&text).with_context(|| text)
    }

    /// Waits until the controller has listed what the node has.
    fn answers(&self) -> Result<()> {
        let question = || {
            let said = self.try_cli(&["datastore", "list"])?;
            Ok((said.code == exit::OK).then_some(()))
        };
        poll_until(LIMIT, question, || format!("an answer: {}", self.log(SERVE)))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // The clean way first: a killed node leaves its logs in the host's memory.
        drop(self.try_cli(&["down"]));
    }
}

/// A client that stays connected the way a guest does, by QEMU's own reconnecting.
struct Client {
    process: Owned,
    input: ChildStdin,
    output: Receiver<String>,
}

impl Client {
    fn start(connection: &Connection) -> Result<Self> {
        let options = format!(
            "driver=nbd,server.type=unix,server.path={},export={},reconnect-delay=60",
            connection.socket.display(),
            connection.export
        );
        let mut command = Command::new(need::tool("/usr/bin/qemu-io")?);
        command.args(["--image-opts", &options]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Owned::spawn(&mut command)?;
        let input = process.child().stdin.take().context("no input")?;
        let output = lines(process.child().stdout.take().context("no output")?);
        Ok(Self { process, input, output })
    }

    fn ask(&mut self, command: &str) -> Result<()> {
        writeln!(self.input, "{command}")?;
        Ok(self.input.flush()?)
    }

    /// Waits for the outcome of the oldest command that was asked.
    fn done(&mut self, word: &str) -> Result<()> {
        loop {
            let line = self.output.recv_timeout(LIMIT).context("the client says nothing")?;
            ensure!(!line.contains("failed"), "the client says: {line}");
            // the prompt stands before the first word of an answer
            if line.trim_start_matches("qemu-io> ").starts_with(word) {
                return Ok(());
            }
        }
    }

    fn write(&mut self, byte: u8) -> Result<()> {
        self.ask(&format!("write -P {byte} {byte}M 1M"))?;
        self.done("wrote 1048576/1048576")
    }

    /// Every range that was written must read as written.
    fn check(&mut self, bytes: std::ops::RangeInclusive<u8>) -> Result<()> {
        for byte in bytes {
            self.ask(&format!("read -P {byte} {byte}M 1M"))?;
            self.done("read 1048576/1048576")?;
        }
        Ok(())
    }
}

#[test]
fn each_process_is_restarted_alone_and_the_client_goes_on() -> Result<()> {
    let mut host = Host::new()?;
    host.start(NODE)?;
    host.start(SERVE)?;
    host.answers()?;
    let store = host.home.path().join("store");
    std::fs::create_dir(&store)?;
    host.cli(&["datastore", "create", "fast", "--dir", &store.display().to_string()])?;
    host.cli(&["volume", "create", "web", "--datastore", "fast", "--size", "64M"])?;
    let connect = host.json(&["volume", "connect", "web"])?;
    let uri = connect["uri"].as_str().context("no uri")?.to_owned();
    let mut client = Client::start(&Connection::parse(&uri)?)?;
    client.write(1)?;

    // The controller is away: the client does not even notice.
    host.stop(SERVE)?;
    client.write(2)?;
    client.check(1..=2)?;
    host.still_runs(NODE)?;
    host.start(SERVE)?;
    host.answers()?;
    host.still_runs(NODE)?;
    ensure!(host.json(&["volume", "show", "web"])?["connections"][0]["uri"] == uri.as_str());

    // Killed, the same: systemd starts it again.
    host.unit_process(SERVE)?.kill()?;
    client.write(3)?;
    host.start(SERVE)?;
    host.answers()?;
    host.still_runs(NODE)?;

    // The node is restarted under a client that has not flushed: what it asks meanwhile waits.
    host.stop(NODE)?;
    client.ask("write -P 4 4M 1M")?;
    host.still_runs(SERVE)?;
    host.start(NODE)?;
    client.done("wrote 1048576/1048576")?;
    client.check(1..=4)?;
    host.still_runs(SERVE)?;
    host.answers()?;

    // Killed, it recovers from its logs in the host's memory.
    host.unit_process(NODE)?.kill()?;
    client.ask("write -P 5 5M 1M")?;
    host.still_runs(SERVE)?;
    host.start(NODE)?;
    client.done("wrote 1048576/1048576")?;
    client.check(1..=5)?;
    host.still_runs(SERVE)?;

    // A client that comes anew finds the same at the same place.
    ensure!(client.process.child().try_wait()?.is_none(), "the client gave up");
    drop(client);
    host.answers()?;
    ensure!(host.json(&["volume", "show", "web"])?["connections"][0]["uri"] == uri.as_str());
    e2e::tools::expect(&uri, &[e2e::tools::Fill { byte: 5, at: 5 << 20, len: 1 << 20 }])?;

    // `shale down` ends both for good: neither end is a failure that systemd would answer.
    host.cli(&["down"])?;
    for name in [SERVE, NODE] {
        let status = host.unit_process(name)?.wait(LIMIT)?;
        ensure!(status.success(), "{name} ended with {status}: {}", host.log(name));
    }
    Ok(())
}

#[test]
fn what_no_repetition_heals_is_not_repeated() -> Result<()> {
    let mut host = Host::new()?;
    host.start(NODE)?;
    host.start(SERVE)?;
    host.answers()?;
    let prevented = |name: &str, code: Option<i32>| -> Result<()> {
        let unit = unit(name)?;
        let listed: Vec<_> = only(&unit, "RestartPreventExitStatus")?.split(' ').collect();
        let code = code.context("it was ended by a signal")?.to_string();
        ensure!(listed.contains(&code.as_str()), "{name} would be started again after {code}");
        Ok(())
    };
    // A second node, a second controller.
    for name in [NODE, SERVE] {
        let words = host.exec_start(name)?;
        let second = said(Command::new(&words[0]).args(&words[1..]))?;
        ensure!(second.code == exit::CONFLICT, "{name}: {second:?}");
        prevented(name, Some(second.code))?;
    }
    host.cli(&["down"])?;
    // State of a later version.
    let file = host.data().join("node/connections.json");
    std::fs::write(&file, br#"{"format": 99}"#)?;
    let words = host.exec_start(NODE)?;
    let newer = said(Command::new(&words[0]).args(&words[1..]))?;
    ensure!(newer.err.contains("format 99") && newer.err.contains("unknown-format"), "{newer:?}");
    prevented(NODE, Some(newer.code))?;
    std::fs::remove_file(&file)?;
    // A crash is answered by a start.
    host.start(NODE)?;
    let pid = host.unit_process(NODE)?.pid();
    signal(pid, Signal::KILL)?;
    let status = host.unit_process(NODE)?.wait(LIMIT)?;
    ensure!(status.signal().is_some() && only(&unit(NODE)?, "Restart")? == "on-failure");
    Ok(())
}

#[test]
fn systemd_understands_the_units() -> Result<()> {
    let analyze = need::tool("/usr/bin/systemd-analyze")?;
    let host = Host::new()?;
    // It wants to see the programs that units name.
    let rewritten = |name: &str| -> Result<PathBuf> {
        let text = std::fs::read_to_string(unit_path(name))?;
        let path = host.home.path().join(name);
        let program = binary()?.display().to_string();
        std::fs::write(&path, text.replace("/usr/bin/shale", &program))?;
        Ok(path)
    };
    let units: Vec<PathBuf> = [NODE, SERVE].into_iter().map(rewritten).collect::<Result<_>>()?;
    let verify = |units: &[PathBuf]| -> Result<String> {
        let mut command = Command::new(analyze);
        command.args(["verify", "--man=no", "--recursive-errors=no"]).args(units);
        let output = run(&mut command)?;
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let findings = verify(&units)?;
    let ours = |text: &str| text.lines().any(|line| line.contains("shale"));
    ensure!(!ours(&findings), "{findings}");
    // It would have found a mistake.
    let wrong = host.home.path().join("shale-wrong.service");
    let text = std::fs::read_to_string(&units[0])?;
    std::fs::write(&wrong, text.replace("KillMode=mixed", "KillMode=gently"))?;
    let found = verify(&[wrong]).unwrap_or_else(|error| error.to_string());
    ensure!(ours(&found), "nothing is verified: {found}");
    Ok(())
}

#[test]
fn units_promise_what_the_manual_says() -> Result<()> {
    let (node, serve) = (unit(NODE)?, unit(SERVE)?);
    for unit in [&node, &serve] {
        ensure!(only(unit, "StateDirectoryMode")? == "0700");
        ensure!(only(unit, "KillMode")? == "mixed");
    }
    // A restart of one is not the other's.
    for tie in ["Requires", "BindsTo", "PartOf", "PropagatesStopTo", "Requisite"] {
        ensure!(!node.contains_key(tie) && !serve.contains_key(tie), "{tie} ties the units");
    }
    ensure!(only(&serve, "ExecStart")?.contains(" --no-node "));
    // What would take /dev/disk, the logs' place or the datastores from the node.
    for hides in ["PrivateDevices", "PrivateTmp", "ProtectHome", "ProtectProc", "RemoveIPC"] {
        ensure!(!node.contains_key(hides), "{hides} would break the node");
    }
    ensure!(only(&node, "ProtectSystem")? == "full");
    ensure!(Path::new(only(&node, "ExecStart")?.split(' ').next().unwrap_or("")).is_absolute());
    Ok(())
}
