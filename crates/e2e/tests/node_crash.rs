//! `kill -9` of the real `shale node`: under a verifying load over NBD, and at every step of every
//! operation. What was acknowledged is there afterwards; every operation is done whole or not at all.
//! (Invariants 6 and 7; rules D2, D4, P1, P2, R1, R4.)

#[path = "../../node/tests/node/api.rs"]
mod api;
#[path = "../../node/tests/node/nbd.rs"]
mod nbd;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use e2e::process::Owned;
use e2e::shale::binary;
use serde_json::{Value, json};
use tempfile::TempDir;

use api::{Api, id};
use nbd::Nbd;

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;
/// The same as the length of a request.
const LEN: u32 = 4096;
/// Bounds a failure; never part of what is asserted.
const LIMIT: Duration = Duration::from_secs(60);

/// A `shale node` on a directory of its own.
struct Host {
    dir: TempDir,
    node: Option<Owned>,
    api: Api,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("crash-").tempdir().expect("a directory");
        std::fs::create_dir(dir.path().join("store")).expect("a directory");
        let api = Api::new(&dir.path().join("data/node.sock"));
        let mut host = Self { dir, node: None, api };
        host.start(None::<u64>);
        host.answers();
        host
    }

    fn start(&mut self, crash_at: Option<impl ToString>) {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.path().join("node.log"))
            .expect("a log");
        let mut command = Command::new(binary().expect("the binary is built"));
        command.args(["node", "--data"]).arg(self.dir.path().join("data"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        match crash_at {
            Some(at) => command.env("SHALE_CRASH_AT", at.to_string()),
            None => command.env_remove("SHALE_CRASH_AT"),
        };
        self.node = Some(Owned::spawn(&mut command).expect("the node starts"));
    }

    /// Waits until the node has recovered and answers.
    fn answers(&self) {
        let end = Instant::now() + LIMIT;
        loop {
            match self.api.raw("GET", "/v1/volumes", b"") {
                Ok((200, _)) => return self.idle(),
                Ok((status, body)) => panic!("{status}: {body}\n{}", self.log()),
                Err(error) if Instant::now() > end => panic!("{error}\n{}", self.log()),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// Waits until merges that go on after a restart have ended.
    fn idle(&self) {
        let tasks = self.api.get("/v1/tasks");
        for task in tasks.as_array().expect("a list") {
            let ended = self.api.get(&format!("/v1/tasks/{}?wait=60", id(task)));
            assert_eq!(ended["state"], "success", "{ended}");
        }
    }

    fn kill(&mut self) {
        self.node.as_mut().expect("a node").kill().expect("it can be killed");
    }

    /// SIGTERM; whether it was alive and ended by itself.
    fn terminate(&mut self) -> bool {
        let mut node = self.node.take().expect("a node");
        node.terminate(LIMIT).is_ok_and(|status| status.success())
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("node.log")).unwrap_or_default()
    }

    fn no_findings(&self, store: &str) {
        let check = self.api.post(&format!("/v1/datastores/{store}/check"), &Value::Null);
        assert_eq!(check["findings"], json!([]), "{}", self.log());
    }
}

/// A killed node leaves the logs of its connections in the host's memory.
impl Drop for Host {
    fn drop(&mut self) {
        drop(self.node.take());
        let file = self.dir.path().join("data/node/connections.json");
        let text = std::fs::read(file).unwrap_or_default();
        let kept: Value = serde_json::from_slice(&text).unwrap_or_default();
        let user = rustix::process::geteuid().as_raw();
        for entry in kept["connections"].as_array().into_iter().flatten() {
            let volume = entry["volume"].as_str().unwrap_or_default();
            // Gone already where the connection was never opened.
            drop(std::fs::remove_file(format!("/dev/shm/shale-{user}/{volume}.log")));
        }
    }
}

/// Small and seeded: a failing run is repeated by its seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

/// What a block holds: which write of which block, so that neither a lost nor a misplaced one passes.
fn content(block: u64, write: u64) -> Vec<u8> {
    if write == 0 {
        return vec![0; 4096];
    }
    let mut bytes = Vec::with_capacity(4096);
    for word in 0..BLOCK / 16 {
        bytes.extend((block << 16 | word).to_le_bytes());
        bytes.extend(write.to_le_bytes());
    }
    bytes
}

/// A guest that knows what its disk must hold.
struct Guest {
    socket: PathBuf,
    blocks: u64,
    /// Last acknowledged write of each block.
    acked: BTreeMap<u64, u64>,
    /// A write whose outcome a crash left open, until it is read.
    open: Option<(u64, u64)>,
    writes: u64,
    dice: Dice,
}

impl Guest {
    fn new(socket: PathBuf, bytes: u64, seed: u64) -> Self {
        let blocks = bytes / BLOCK;
        let (acked, dice) = (BTreeMap::new(), Dice(seed));
        Self { socket, blocks, acked, open: None, writes: 0, dice }
    }

    /// Reconnects as QEMU does: until the node is back.
    fn connect(&self) -> Nbd {
        let end = Instant::now() + LIMIT;
        loop {
            match Nbd::connect(&self.socket) {
                Ok(nbd) => return nbd,
                Err(error) => assert!(Instant::now() < end, "the node does not come back: {error}"),
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Writes until told to stop, through any number of crashes.
    fn run(&mut self, stop: &AtomicBool, progress: &AtomicU64) {
        let mut nbd = self.connect();
        while !stop.load(Ordering::Relaxed) {
            let outcome = self.step(&mut nbd);
            match outcome {
                Ok(()) => {
                    progress.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => {
                    let refused = error.get_ref().is_some_and(|e| e.is::<nbd::Refused>());
                    assert!(!refused, "a request failed: {error}");
                    nbd = self.connect();
                    // What the crash left open settles now; a few others are looked at as well.
                    if let Some((block, _)) = self.open {
                        self.verify(&mut nbd, block);
                    }
                    for _ in 0..20 {
                        let block = self.dice.roll(self.blocks);
                        self.verify(&mut nbd, block);
                    }
                }
            }
        }
    }

    fn step(&mut self, nbd: &mut Nbd) -> std::io::Result<()> {
        match self.dice.roll(100) {
            0 => nbd.flush(),
            1..=20 => {
                let block = self.dice.roll(self.blocks);
                let bytes = nbd.read(block * BLOCK, LEN)?;
                self.judge(block, &bytes);
                Ok(())
            }
            _ => {
                let block = self.dice.roll(self.blocks);
                self.writes += 1;
                let write = self.writes;
                self.open = Some((block, write));
                nbd.write(block * BLOCK, &content(block, write))?;
                self.acked.insert(block, write);
                self.open = None;
                Ok(())
            }
        }
    }

    /// Reads a block; a crash meanwhile is no verdict.
    fn verify(&mut self, nbd: &mut Nbd, block: u64) {
        if let Ok(bytes) = nbd.read(block * BLOCK, LEN) {
            self.judge(block, &bytes);
        }
    }

    fn judge(&mut self, block: u64, bytes: &[u8]) {
        let acked = self.acked.get(&block).copied().unwrap_or(0);
        if let Some((open, write)) = self.open
            && open == block
        {
            // Each sector is old or new; then it stays so.
            let (old, new) = (content(block, acked), content(block, write));
            let mixed = bytes
                .chunks(512)
                .zip(old.chunks(512).zip(new.chunks(512)))
                .all(|(is, (old, new))| is == old || is == new);
            assert!(mixed, "block {block} is neither before nor after write {write}");
            if bytes == new {
                self.acked.insert(block, write);
                self.open = None;
            } else if bytes == old {
                self.open = None;
            }
            return;
        }
        let found = u64::from_le_bytes(bytes[8..16].try_into().expect("eight bytes"));
        assert!(
            bytes == content(block, acked),
            "block {block} holds {found}, acknowledged {acked}"
        );
    }
}

#[test]
fn fifty_kills_under_load_lose_nothing_that_was_acknowledged() {
    const SIZE: u64 = 64 * MIB;
    let mut host = Host::new();
    let store = host.api.datastore("fast", &host.dir.path().join("store"));
    let volumes = ["one", "two"].map(|name| host.api.volume(&store, name, SIZE));
    let mut guests: Vec<Guest> = volumes
        .iter()
        .zip([11, 23])
        .map(|(volume, seed)| Guest::new(host.api.connect(volume), SIZE, seed))
        .collect();
    let (stop, progress) = (AtomicBool::new(false), AtomicU64::new(0));
    let (stop, progress) = (&stop, &progress);
    let mut dice = Dice(5);
    std::thread::scope(|scope| {
        // A failed assertion here must end the guests too, else the scope waits for ever.
        struct StopAll<'a>(&'a AtomicBool);
        impl Drop for StopAll<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let _stop = StopAll(stop);
        let running: Vec<_> =
            guests.iter_mut().map(|guest| scope.spawn(move || guest.run(stop, progress))).collect();
        for round in 0..50 {
            let enough = progress.load(Ordering::Relaxed) + 20 + dice.roll(400);
            let end = Instant::now() + LIMIT;
            while progress.load(Ordering::Relaxed) < enough {
                let failed = running.iter().any(|guest| guest.is_finished());
                assert!(!failed, "round {round}: a guest failed\n{}", host.log());
                assert!(Instant::now() < end, "round {round}: no progress\n{}", host.log());
                std::thread::yield_now();
            }
            // Every fifth time a snapshot is under way.
            let api = host.api.clone();
            let body = json!({ "name": format!("s{round}"), "volumes": volumes }).to_string();
            let snapshot = (round % 5 == 4).then(|| {
                scope.spawn(move || api.raw("POST", "/v1/snapshots?wait=60", body.as_bytes()).ok())
            });
            if snapshot.is_some() {
                std::thread::yield_now();
            }
            host.kill();
            if let Some(snapshot) = snapshot {
                drop(snapshot.join());
            }
            host.start(None::<u64>);
        }
    });
    host.answers();
    assert_eq!(host.api.get("/v1/alarms"), json!([]), "all were resumed\n{}", host.log());
    for guest in &mut guests {
        let mut nbd = guest.connect();
        for block in 0..guest.blocks {
            let bytes = nbd.read(block * BLOCK, LEN).expect("a read");
            guest.judge(block, &bytes);
        }
        assert!(guest.writes > 100, "too little was written to mean anything");
    }
    for volume in &volumes {
        host.api.disconnect(volume);
    }
    host.no_findings(&store);
    assert!(host.terminate(), "{}", host.log());
}

// --- every step of every operation ---

/// What a user can see of all volumes.
fn summary(host: &Host) -> BTreeMap<String, Value> {
    let volumes = host.api.get("/v1/volumes");
    let mut seen = BTreeMap::new();
    for volume in volumes.as_array().expect("a list") {
        let volume_id = id(volume);
        let snapshots = host.api.get(&format!("/v1/volumes/{volume_id}/snapshots"));
        let mut names: Vec<&str> = snapshots
            .as_array()
            .expect("a list")
            .iter()
            .map(|snapshot| snapshot["name"].as_str().expect("a name"))
            .collect();
        names.sort_unstable();
        let connected = volume["state"] == "connected";
        let socket = if connected {
            volume["connections"][0]["socket"].as_str().expect("a socket").into()
        } else {
            host.api.connect(&volume_id)
        };
        let mut nbd = Nbd::connect(&socket).expect("it listens");
        let bytes: Vec<u8> =
            PLACES.iter().map(|at| nbd.read(*at, 512).expect("a read")[0]).collect();
        drop(nbd);
        if !connected {
            host.api.disconnect(&volume_id);
        }
        let name = volume["name"].as_str().expect("a name").to_owned();
        seen.insert(
            name,
            json!({
                "size": volume["size"], "snapshots": names, "bytes": bytes,
                "state": volume["state"], "kind": volume["kind"],
            }),
        );
    }
    for template in host.api.get("/v1/templates").as_array().expect("a list") {
        let name = template["name"].as_str().expect("a name").to_owned();
        seen.insert(name, json!("template"));
    }
    seen
}

const PLACES: [u64; 3] = [0, 9 * MIB, 33 * MIB];

fn write(api: &Api, volume: &str, bytes: [u8; 3]) {
    let mut nbd = Nbd::connect(&api.connect(volume)).expect("it listens");
    for (at, byte) in PLACES.iter().zip(bytes) {
        if byte != 0 {
            nbd.write(*at, &[byte; 4096]).expect("a write");
        }
    }
    drop(nbd);
    api.disconnect(volume);
}

/// Ids that operations use.
struct Fixture {
    store: String,
    /// The newest file of a folder of VHDs.
    chain: PathBuf,
    volumes: [String; 2],
    snapshot: String,
}

/// Two volumes with data; the first with a snapshot and other data since.
fn fixture(host: &Host, connected: bool) -> Fixture {
    let store = host.api.datastore("fast", &host.dir.path().join("store"));
    let volumes = ["one", "two"].map(|name| host.api.volume(&store, name, 64 * MIB));
    write(&host.api, &volumes[0], [1, 2, 0]);
    write(&host.api, &volumes[1], [3, 0, 4]);
    let body = json!({ "name": "old", "volumes": [volumes[0]] });
    let made = host.api.post("/v1/snapshots", &body);
    let snapshot = id(&made["snapshots"][0]);
    write(&host.api, &volumes[0], [5, 0, 6]);
    let folder = host.dir.path().join("chain");
    let body = json!({ "to": folder, "with_snapshots": true });
    host.api.post(&format!("/v1/volumes/{}/export", volumes[0]), &body);
    let chain = folder.join("one.vhd");
    if connected {
        for volume in &volumes {
            host.api.connect(volume);
        }
    }
    Fixture { store, chain, volumes, snapshot }
}

type Request = (&'static str, String, Value);

/// An operation and whether its volumes are connected.
struct Case {
    name: &'static str,
    connected: bool,
    request: fn(&Fixture) -> Request,
}

const CASES: &[Case] = &[
    Case {
        name: "create",
        connected: false,
        request: |f| {
            let body =
                json!({ "name": "new", "datastore": f.store, "size": 64 * MIB, "kind": "thin" });
            ("POST", "/v1/volumes".into(), body)
        },
    },
    Case {
        name: "rename and resize",
        connected: false,
        request: |f| {
            let body = json!({ "size": 96 * MIB });
            ("PATCH", format!("/v1/volumes/{}", f.volumes[0]), body)
        },
    },
    Case {
        name: "snapshot of two running volumes",
        connected: true,
        request: |f| {
            let body = json!({ "name": "now", "volumes": f.volumes });
            ("POST", "/v1/snapshots".into(), body)
        },
    },
    Case {
        name: "revert",
        connected: false,
        request: |f| {
            let path = format!("/v1/volumes/{}/snapshots/{}/revert", f.volumes[0], f.snapshot);
            ("POST", path, Value::Null)
        },
    },
    Case {
        name: "delete a snapshot",
        connected: false,
        request: |f| {
            let path = format!("/v1/volumes/{}/snapshots/{}", f.volumes[0], f.snapshot);
            ("DELETE", path, Value::Null)
        },
    },
    Case {
        name: "linked clones",
        connected: false,
        request: |f| {
            let body = json!({ "names": ["c1", "c2"], "linked": true, "snapshot": f.snapshot });
            ("POST", format!("/v1/volumes/{}/clone", f.volumes[0]), body)
        },
    },
    Case {
        name: "full copy",
        connected: false,
        request: |f| {
            let body = json!({ "names": ["copy"], "linked": false });
            ("POST", format!("/v1/volumes/{}/clone", f.volumes[0]), body)
        },
    },
    Case {
        name: "import of a chain",
        connected: false,
        request: |f| {
            let body = json!({
                "name": "came", "datastore": f.store, "source": f.chain, "chain": true, "kind": "thin",
            });
            ("POST", "/v1/imports".into(), body)
        },
    },
    Case {
        name: "template",
        connected: false,
        request: |f| {
            let body = json!({ "name": "base", "from": f.volumes[1] });
            ("POST", "/v1/templates".into(), body)
        },
    },
    Case {
        name: "delete a volume",
        connected: false,
        request: |f| ("DELETE", format!("/v1/volumes/{}", f.volumes[1]), Value::Null),
    },
    Case {
        name: "connect",
        connected: false,
        request: |f| ("POST", format!("/v1/volumes/{}/connect", f.volumes[0]), json!({})),
    },
    Case {
        name: "disconnect",
        connected: true,
        request: |f| ("POST", format!("/v1/volumes/{}/disconnect", f.volumes[0]), json!({})),
    },
    Case {
        name: "conversion",
        connected: false,
        request: |f| {
            let body = json!({ "kind": "fixed", "lose_snapshots": true });
            ("POST", format!("/v1/volumes/{}/convert", f.volumes[1]), body)
        },
    },
];

/// Sends the request; whether the node lived to answer that it is done.
fn attempt(api: &Api, (method, path, body): &Request, socket: &Path) -> bool {
    let end = Instant::now() + LIMIT;
    while !socket.exists() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(2));
    }
    let bytes = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
    match api.raw(method, &format!("{path}?wait=60"), &bytes) {
        Ok((_, task)) => {
            assert_eq!(task["state"], "success", "{method} {path}: {task}");
            true
        }
        Err(_) => false,
    }
}

fn every_step_of(case: &Case) {
    // What it looks like before and after, without a crash.
    let (before, after) = {
        let mut host = Host::new();
        let fixture = fixture(&host, case.connected);
        let before = summary(&host);
        let done = attempt(&host.api, &(case.request)(&fixture), &host.dir.path().join("data"));
        assert!(done, "{}: {}", case.name, host.log());
        let after = summary(&host);
        assert!(host.terminate());
        (before, after)
    };
    assert_ne!(before, after, "{}: nothing changes that could be seen", case.name);
    let (mut undone, mut finished) = (0, 0);
    for n in 1.. {
        assert!(n < 500, "{}: it never gets through", case.name);
        let mut host = Host::new();
        let fixture = fixture(&host, case.connected);
        assert!(host.terminate(), "{}", host.log());
        host.start(Some(n));
        let socket = host.dir.path().join("data/node.sock");
        let lived = attempt(&host.api, &(case.request)(&fixture), &socket);
        if host.terminate() {
            assert!(lived, "{} at {n}: it failed without a crash\n{}", case.name, host.log());
            assert!(n > 5, "{}: only {n} crash points", case.name);
            break;
        }
        host.start(None::<u64>);
        host.answers();
        let now = summary(&host);
        if now == before && !lived {
            undone += 1;
        } else if now == after {
            finished += 1;
        } else {
            panic!(
                "{} cut at point {n} (told done: {lived}):\n{now:#?}\nis neither\n{before:#?}\nnor\n{after:#?}\n{}",
                case.name,
                host.log()
            );
        }
        assert_eq!(host.api.get("/v1/alarms"), json!([]), "{} at {n}\n{}", case.name, host.log());
        host.no_findings(&fixture.store);
        // Nothing is stuck: what was undone can be done now.
        if now == before && !lived {
            let again = attempt(&host.api, &(case.request)(&fixture), &socket);
            assert!(again, "{} at {n}: not possible any more\n{}", case.name, host.log());
            assert_eq!(summary(&host), after, "{} at {n}, done again", case.name);
        }
    }
    assert!(undone > 0 && finished > 0, "{}: {undone} undone, {finished} finished", case.name);
}

macro_rules! cases {
    ($($test:ident = $index:literal;)+) => {
        $(#[test]
        fn $test() {
            every_step_of(&CASES[$index]);
        })+

        #[test]
        fn every_case_has_a_test() {
            assert_eq!(CASES.len(), [$($index),+].len());
        }
    };
}

cases! {
    every_step_of_create = 0;
    every_step_of_resize = 1;
    every_step_of_a_snapshot_of_two = 2;
    every_step_of_revert = 3;
    every_step_of_deleting_a_snapshot = 4;
    every_step_of_linked_clones = 5;
    every_step_of_a_full_copy = 6;
    every_step_of_an_import = 7;
    every_step_of_a_template = 8;
    every_step_of_deleting_a_volume = 9;
    every_step_of_connect = 10;
    every_step_of_disconnect = 11;
    every_step_of_a_conversion = 12;
}

/// A full disk under the log does not end who serves guests.
#[test]
fn a_log_that_cannot_be_written_ends_nothing() {
    let dir = tempfile::Builder::new().prefix("crash-").tempdir().expect("a directory");
    let full = std::fs::File::options().write(true).open("/dev/full").expect("a full device");
    let mut command = Command::new(binary().expect("the binary is built"));
    command.args(["node", "--data"]).arg(dir.path().join("data"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(full);
    let node = Some(Owned::spawn(&mut command).expect("the node starts"));
    let api = Api::new(&dir.path().join("data/node.sock"));
    let mut host = Host { dir, node, api };
    host.answers();
    assert!(host.terminate(), "it ended before");
}

/// An export ends whole or not at all, and what a dead node left under a temporary name goes. The points
/// are named, not counted: what a start finishes of earlier work passes points of its own.
#[test]
fn every_step_of_an_export() {
    const POINTS: [(&str, bool); 4] = [
        ("export-recorded", false),
        ("export-created", false),
        ("export-written", false),
        ("export-renamed", true),
    ];
    for (folder, to) in [(false, "out.vhd"), (true, "out")] {
        for (point, named) in POINTS {
            let mut host = Host::new();
            let fixture = fixture(&host, false);
            assert!(host.terminate(), "{}", host.log());
            host.start(Some(point));
            let files = host.dir.path().join("files");
            std::fs::create_dir(&files).expect("a directory");
            let body = json!({ "to": files.join(to), "with_snapshots": folder });
            let path = format!("/v1/volumes/{}/export", fixture.volumes[0]);
            let socket = host.dir.path().join("data/node.sock");
            let found = || -> Vec<_> {
                let entries = std::fs::read_dir(&files).expect("a directory");
                entries.map(|entry| entry.expect("an entry").file_name()).collect()
            };
            attempt(&host.api, &("POST", path.clone(), body.clone()), &socket);
            assert!(!host.terminate(), "{point} was not passed\n{}", host.log());
            host.start(None::<u64>);
            host.answers();
            let expected: &[&str] = if named { &[to] } else { &[] };
            assert_eq!(found(), expected, "cut at {point}\n{}", host.log());
            host.no_findings(&fixture.store);
            if !named {
                let again = attempt(&host.api, &("POST", path, body), &socket);
                assert!(again, "cut at {point}, done again\n{}", host.log());
                assert_eq!(found(), [to], "cut at {point}, done again\n{}", host.log());
            }
            assert!(host.terminate(), "{}", host.log());
        }
    }
}
