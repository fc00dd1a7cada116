//! Writes the valid inputs that every corpus begins with, made by Shale's own encoders:
//! `cargo run -p hostile --example seeds`. What fuzzing found stands beside them and stays.

use std::path::Path;

use catalog::{
    Cell, CellStep, CellValue, Commit, Current, CutBack, Every, Intent, LayerCell, LayerState,
    NewLayer, Origin, Piece, Record, Rewrite, Schedule, ScheduleRule, Scheduled, Scratch,
    SetRecord, Snapshot, Tip, VolumeCell, VolumeKind, VolumeRecord,
};
use image::{ParentRef, SectorCount, Timestamp, create};
use uuid::Uuid;

fn main() -> std::io::Result<()> {
    for (target, name, bytes) in
        [vhd(), records(), log(), state(), nbd(), rings(), texts(), rest()].into_iter().flatten()
    {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
        std::fs::create_dir_all(&dir)?;
        std::fs::write(dir.join(name), bytes)?;
    }
    Ok(())
}

type Seed = (&'static str, &'static str, Vec<u8>);

const fn id(number: u128) -> Uuid {
    Uuid::from_u128(0x7e57_0000_0000_4000_8000_0000_0000_0000 | number)
}

fn vhd() -> Vec<Seed> {
    let size = SectorCount(5 << 20);
    let parent = ParentRef::sibling(id(1));
    let dynamic = create::dynamic(id(1), size, Timestamp(1)).expect("an image");
    let differencing = create::differencing(id(2), size, Timestamp(1), &parent).expect("an image");
    let file = |new: &create::NewImage| {
        let mut file = vec![0; usize::try_from(new.len).expect("a short file")];
        for (at, bytes) in &new.pieces {
            let at = usize::try_from(at.bytes()).expect("a short file");
            file[at..][..bytes.len()].copy_from_slice(bytes);
        }
        file
    };
    let [dynamic, differencing] = [file(&dynamic), file(&differencing)];
    let bat = |entries: &[u32]| {
        let mut bytes = [&(5_u32 << 20).to_le_bytes()[..], &(16_u64 << 20).to_le_bytes()].concat();
        bytes.extend(entries.iter().flat_map(|entry| entry.to_be_bytes()));
        bytes
    };
    let mut bitmap = vec![0xf0; 512];
    for (from, len, set) in [(0_u16, 8_u16, 1_u8), (4000, 400, 0), (63, 2, 1)] {
        bitmap.extend([&from.to_le_bytes()[..], &len.to_le_bytes(), &[set]].concat());
    }
    let path: Vec<u8> = "./base.vhd".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let mut locators = vec![4];
    locators.extend("base".encode_utf16().flat_map(u16::to_le_bytes));
    for platform in 0..4_u8 {
        locators.push(platform);
        locators.extend(u16::try_from(path.len()).expect("short").to_le_bytes());
        locators.extend(&path);
    }
    let sniffed = |head: &[u8], tail: &[u8]| {
        let len = u16::try_from(head.len()).expect("short");
        [&len.to_le_bytes()[..], head, tail].concat()
    };
    let footer = &dynamic[..512];
    vec![
        ("footer", "dynamic", footer.to_vec()),
        ("footer", "differencing", differencing[..512].to_vec()),
        ("header", "dynamic", dynamic[512..1536].to_vec()),
        ("header", "differencing", differencing[512..1536].to_vec()),
        ("bat", "blocks", bat(&[15, u32::MAX, 4119, 0, 1 << 31])),
        ("bitmap", "runs", bitmap),
        ("locators", "each", locators),
        ("sniff", "vhd", sniffed(&dynamic[..4096.min(dynamic.len())], footer)),
        ("sniff", "qcow2", sniffed(b"QFI\xfb\0\0\0\x03", &[0; 512])),
        ("sniff", "vmdk", sniffed(b"KDMV\x01\0\0\0", &[0; 512])),
        ("sniff", "vhdx-and-vhd", sniffed(b"vhdxfile", footer)),
    ]
}

fn volume() -> VolumeRecord {
    VolumeRecord {
        uuid: id(1),
        name: "web".into(),
        revision: 3,
        operation: id(9),
        size: 64 << 20,
        kind: VolumeKind::Thin,
        created: 1_700_000_000_000,
        template: false,
        origin: Some(Origin { volume: id(2), snapshot: Some(id(3)), linked: true }),
        snapshots: vec![Snapshot {
            uuid: id(4),
            name: "one".into(),
            created: 1_700_000_000_001,
            parent: None,
            tip: Tip::from(id(5)),
            size: 64 << 20,
            set: None,
            scheduled: None,
        }],
        current: Current { tip: Tip::from(id(6)), parent: Some(id(4)), unreserved: false },
        layers: vec![id(5), id(6), id(7)],
        fixed_layers: Vec::new(),
        segment: catalog::MAX_SEGMENT,
        schedule: None,
    }
}

/// Two segments, lazy, with a schedule and a snapshot of it.
fn segments() -> VolumeRecord {
    let mut record = volume();
    let rule = |every, keep| ScheduleRule { every, keep, last: 1_700_000_000_000 };
    let size = catalog::MAX_SEGMENT + (1 << 30);
    record.kind = VolumeKind::Lazy;
    record.size = size;
    record.origin = None;
    let one = &mut record.snapshots[0];
    one.tip = Tip::new(vec![id(5), id(7)]);
    one.size = size;
    one.set = Some(id(9));
    one.scheduled = Some(Scheduled { rules: vec![Every::Hour, Every::Week], run: 7 });
    let tip = Tip::new(vec![id(6), id(8)]);
    record.current = Current { tip, parent: Some(id(4)), unreserved: true };
    record.layers = vec![id(5), id(6), id(7), id(8)];
    record.schedule = Some(Schedule {
        rules: vec![rule(Every::Hour, 3), rule(Every::Day, 2), rule(Every::Week, 1)],
        minute: 125,
        weekday: 6,
        unreserved: true,
    });
    record
}

fn fixed() -> VolumeRecord {
    let mut record = volume();
    record.kind = VolumeKind::Fixed;
    record.fixed_layers = vec![id(5)];
    record.template = true;
    record
}

fn records() -> Vec<Seed> {
    let set = SetRecord { uuid: id(9), volumes: vec![volume(), segments()] };
    let layer = |state| {
        let ops = vec![id(9)];
        Cell::Layer(LayerCell { layer: id(5), state, generation: 2, leaves: 2, ops }).encode()
    };
    let (boot_id, holder) = (id(8).to_string(), "node".to_owned());
    let open =
        VolumeCell { volume: id(1), generation: 4, log: Some(id(6)), boot_id, holder, lost: true };
    let value = |state, leaves| Some(CellValue { state, leaves });
    let intent = Intent {
        uuid: id(9),
        title: "snapshot one of web".into(),
        created: 1_700_000_000_000,
        volumes: vec![id(1)],
        commit: Commit::Record(id(1)),
        creates: vec![NewLayer {
            layer: id(6),
            parent: Some(id(5)),
            size: 64 << 20,
            fixed: false,
            owner: id(1),
        }],
        drops: vec![id(7)],
        rewrites: vec![Rewrite {
            layer: id(6),
            pieces: vec![Piece { at: 512, bytes: b"cxsparse".to_vec() }],
            len: 4096,
            parent: Some(id(5)),
            size: 64 << 20,
        }],
        cut_back: vec![CutBack {
            layer: id(5),
            len: 8192,
            scratch: Some(Scratch { at: 4096, len: 512 }),
        }],
        cells: vec![
            CellStep {
                layer: id(5),
                before: value(LayerState::Live, 1),
                after: value(LayerState::Merging { volume: id(1), generation: 3 }, 2),
            },
            CellStep { layer: id(6), before: None, after: value(LayerState::Doomed, 1) },
        ],
        void_sessions: vec![id(1)],
        drop_cells: vec![id(2)],
    };
    let with = |commit| Intent { commit, ..intent.clone() }.encode();
    for record in [volume(), segments(), fixed()] {
        Record::decode(record.uuid, &Record::Volume(record).encode()).expect("a sound record");
    }
    vec![
        ("record", "volume", Record::Volume(volume()).encode()),
        ("record", "segments-and-schedule", Record::Volume(segments()).encode()),
        ("record", "fixed-template", Record::Volume(fixed()).encode()),
        ("record", "set", Record::Set(set).encode()),
        ("cell", "frozen", layer(LayerState::Frozen)),
        ("cell", "merging", layer(LayerState::Merging { volume: id(1), generation: 3 })),
        ("cell", "volume", Cell::Volume(open).encode()),
        ("intent", "record", intent.encode()),
        ("intent", "set", with(Commit::Set(id(1)))),
        ("intent", "removed", with(Commit::Removed(id(1)))),
        ("intent", "forward", with(Commit::Forward)),
    ]
}

/// A log as `hostile`'s target composes it: a mode, two epochs, and records.
fn log() -> Vec<Seed> {
    let log = |mode: u8, epochs: [u8; 2], records: &[(u8, [u32; 3])]| {
        let mut bytes = vec![mode, epochs[0], epochs[1]];
        for (tag, numbers) in records {
            bytes.push(*tag);
            bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        }
        bytes
    };
    // a dynamic file of ours has its first place at the third page, a differencing one further on
    let places = |first: u32| [0, 1, 2].map(|place| first + 7 + place * 4104);
    let mut seeds = vec![
        ("log", "empty", log(1, [1, 0], &[])),
        ("log", "unmap", log(1, [1, 2], &[(3, [0, 0, 0]), (0x13, [1, 0, 0])])),
        ("log", "own-without-place", log(3, [2, 1], &[(2, [1, 8, 8])])),
        ("log", "raw", [&[0][..], b"SHALELOG"].concat()),
    ];
    for (mode, name, first) in [(1, "map", 8), (3, "map-differencing", 16)] {
        let [_, b, c] = places(first);
        let records = [
            (1, [1, b, 0]),
            (2, [1, 0, 4096]),
            (0x11, [2, c, 0]),
            (0x12, [2, 8, 16]),
            (0x13, [1, 0, 0]),
        ];
        seeds.push(("log", name, log(mode, [1, 2], &records)));
    }
    seeds
}

fn state() -> Vec<Seed> {
    let connections = format!(
        r#"{{"format":1,"connections":[{{"volume":"{0}","datastore":"{1}","read_only":false,"protocol":"nbd","socket":"/run/x.sock","generation":3,"log_id":"{2}","boot_id":"{3}","export":"web","state":"open"}},{{"volume":"{0}","datastore":"{1}","snapshot":"{4}","read_only":true,"protocol":"nbd","tcp_port":10809,"generation":3,"boot_id":"{3}","witness":"w","state":"stopped","reason":"its log is lost"}}]}}"#,
        id(1),
        id(2),
        id(3),
        id(4),
        id(5)
    );
    let datastores = format!(
        r#"{{"format":1,"datastores":[{{"id":"{}","name":"fast","dir":"/srv/fast"}}]}}"#,
        id(1)
    );
    let transfers = r#"{"format":1,"temporary":["/srv/out/.disk.vhd.part"]}"#;
    let file = |which: u8, text: &str| [&[which][..], text.as_bytes()].concat();
    let token = format!(
        r#"token/{0} {{"id":"{0}","name":"local-admin","role":"admin","created":"2026-01-02T03:04:05.000Z","sha256":"00"}}"#,
        id(1)
    );
    let policy = format!(
        r#"datastore-policy/{} {{"overcommit_alarm":"150%","overcommit_limit":"none","low":"10%","critical":"3.3%"}}"#,
        id(2)
    );
    let task = format!(
        r#"task {{"id":"{}","operation":"volume-create","object":{{"kind":"volume","id":"{}","name":"web"}},"state":"success","created":"2026-01-02T03:04:05.000Z"}}"#,
        id(3),
        id(1)
    );
    vec![
        ("node_state", "connections", file(0, &connections)),
        ("node_state", "datastores", file(1, &datastores)),
        ("node_state", "transfers", file(2, transfers)),
        ("node_state", "later-format", file(1, r#"{"format":2}"#)),
        ("controller_state", "documents", [token, policy, task].join("\n").into_bytes()),
        ("controller_state", "no-database", b"SQLite format 3\0\x10\0".to_vec()),
    ]
}

fn nbd() -> Vec<Seed> {
    let option = |number: u32, data: &[u8]| {
        let len = u32::try_from(data.len()).expect("short").to_be_bytes();
        [&b"IHAVEOPT"[..], &number.to_be_bytes(), &len, data].concat()
    };
    let context = b"\0\0\0\x04disk\0\0\0\x01\0\0\0\x0fbase:allocation";
    let go = option(7, b"\0\0\0\x04disk\0\0");
    let hello = [&[3][..], &3_u32.to_be_bytes()].concat();
    let ask = |kind: u16, at: u64, len: u32| {
        let head = [&0x2560_9513_u32.to_be_bytes()[..], &[0, 0], &kind.to_be_bytes(), &[0; 8]];
        let mut bytes = [&head.concat()[..], &at.to_be_bytes(), &len.to_be_bytes()].concat();
        bytes.resize(48, 0);
        bytes
    };
    let requests = |settings: u8| {
        let mut bytes = [&[settings][..], &(1_u64 << 20).to_le_bytes()].concat();
        for (kind, at, len) in [(0, 0, 4096), (1, 512, 512), (3, 0, 0), (4, 0, 65536), (7, 0, 4096)]
        {
            bytes.extend(ask(kind, at, len));
        }
        bytes
    };
    let mut extended = [&[2 | 4 | 8][..], &(1_u64 << 20).to_le_bytes()].concat();
    for (flags, kind, at, len) in
        [(0_u16, 0_u16, 0_u64, 4096_u64), (0, 6, 0, 1 << 20), (32, 7, 0, 16)]
    {
        let head = [&0x21e4_1c71_u32.to_be_bytes()[..], &flags.to_be_bytes(), &kind.to_be_bytes()];
        extended
            .extend([&head.concat()[..], &[0; 8], &at.to_be_bytes(), &len.to_be_bytes()].concat());
        extended.extend([&4096_u64.to_be_bytes()[..], &1_u32.to_be_bytes(), &[0; 4]].concat());
    }
    let reply = |option: u32, kind: u32, data: &[u8]| {
        let len = u32::try_from(data.len()).expect("short").to_be_bytes();
        let magic = 0x0003_e889_0455_65a9_u64.to_be_bytes();
        [&magic[..], &option.to_be_bytes(), &kind.to_be_bytes(), &len, data].concat()
    };
    let greeting = [&b"NBDMAGICIHAVEOPT"[..], &3_u16.to_be_bytes()].concat();
    let export = [&[0, 0][..], &4096_u64.to_be_bytes(), &0x6d_u16.to_be_bytes()].concat();
    let told = [reply(7, 3, &export), reply(7, 1, b"")].concat();
    let chunk = |cookie: u64, kind: u16, data: &[u8]| {
        let len = u32::try_from(data.len()).expect("short").to_be_bytes();
        let head = [&0x668e_33ef_u32.to_be_bytes()[..], &[0, 1], &kind.to_be_bytes()];
        [&head.concat()[..], &cookie.to_be_bytes(), &len, data].concat()
    };
    let hole = [&0_u64.to_be_bytes()[..], &4096_u32.to_be_bytes()].concat();
    let blocks =
        [7_u32, 4096, 3].iter().flat_map(|number| number.to_be_bytes()).collect::<Vec<_>>();
    let structured = [
        vec![0, 4, 1, 3],
        greeting.clone(),
        reply(8, 1, b""),
        reply(10, 4, b"\0\0\0\x07base:allocation"),
        reply(10, 1, b""),
        told.clone(),
        chunk(1, 2, &hole),
        chunk(2, 5, &blocks),
        chunk(3, 0, b""),
        chunk(4, 0x8001, b"\0\0\0\x05\0\x02no"),
    ]
    .concat();
    let simple =
        |cookie: u64| [&0x6744_6698_u32.to_be_bytes()[..], &[0; 4], &cookie.to_be_bytes()].concat();
    let plain = [
        vec![1, 2, 3, 0],
        greeting,
        reply(8, 0x8000_0001, b""),
        told,
        simple(1),
        simple(2),
        simple(3),
        simple(4),
        vec![9; 4096],
    ]
    .concat();
    vec![
        ("nbd_handshake", "go", [&hello[..], &go].concat()),
        (
            "nbd_handshake",
            "structured",
            [&hello[..], &option(8, b""), &option(10, context), &go].concat(),
        ),
        (
            "nbd_handshake",
            "extended",
            [&hello[..], &option(11, b""), &option(3, b""), &go].concat(),
        ),
        ("nbd_handshake", "export-name", [&hello[..], &option(1, b"disk")].concat()),
        ("nbd_handshake", "abort", [&hello[..], &option(6, b"disk"), &option(2, b"")].concat()),
        ("nbd_requests", "simple", requests(0)),
        ("nbd_requests", "structured", requests(1 | 4)),
        ("nbd_requests", "read-only", requests(1 | 16)),
        ("nbd_requests", "extended", extended),
        ("nbd_client", "structured", structured),
        ("nbd_client", "simple", plain),
    ]
}

/// Rings that offer one good request each, of every kind, and all of them in a table of their own.
fn rings() -> Vec<Seed> {
    const NEXT: u16 = 1;
    const WRITE: u16 = 2;
    const INDIRECT: u16 = 4;
    let kinds = [("read", 0_u32), ("write", 1), ("flush", 4), ("identify", 8), ("discard", 11)];
    let seed = |(name, kind): (&'static str, u32), indirect: bool| {
        let mut memory = vec![0; 0x428];
        let mut put = |at: usize, bytes: &[u8]| memory[at..at + bytes.len()].copy_from_slice(bytes);
        let data = if kind == 0 || kind == 8 { WRITE } else { 0 };
        let rows = [
            (0x100_u64, 16_u32, NEXT),
            (0x200, if kind == 11 { 16 } else { 512 }, NEXT | data),
            (0x120, 1, WRITE),
        ];
        let table = if indirect { 0x300 } else { 0 };
        for (index, (addr, len, flags)) in (0_u16..).zip(rows) {
            let at = table + 16 * usize::from(index);
            put(at, &addr.to_le_bytes());
            put(at + 8, &len.to_le_bytes());
            put(at + 12, &flags.to_le_bytes());
            put(at + 14, &(index + 1).to_le_bytes());
        }
        if indirect {
            put(0, &0x300_u64.to_le_bytes());
            put(8, &48_u32.to_le_bytes());
            put(12, &INDIRECT.to_le_bytes());
        }
        put(0x100, &kind.to_le_bytes());
        put(0x208, &8_u32.to_le_bytes());
        put(0x402, &1_u16.to_le_bytes());
        let choices = if indirect { 4 } else { 2 };
        ("vhost_ring", name, [&[choices][..], &memory, &memory].concat())
    };
    let direct = kinds.map(|kind| seed(kind, false));
    direct.into_iter().chain([seed(("indirect", 0), true)]).collect()
}

fn texts() -> Vec<Seed> {
    let texts = [
        ("name", "web-1"),
        ("qualified", "fast/web@one"),
        ("uuid", "7e570000-0000-4000-8000-000000000001"),
        ("size", "1.5GiB"),
        ("time", "2026-01-02T03:04:05.678Z"),
        ("time-of-day", "23:59"),
        ("threshold", "12.5%"),
        ("kind", "lazy"),
        ("nbd-tcp", "nbd://[::1]:10809/disk%20one"),
        ("nbd-unix", "nbd+unix:///disk?socket=/run/x.sock"),
    ];
    texts.map(|(name, text)| ("texts", name, text.as_bytes().to_vec())).to_vec()
}

fn rest() -> Vec<Seed> {
    let bodies = [
        ("create-datastore", r#"{"name":"fast","dir":"/srv/fast"}"#),
        ("update-datastore", r#"{"low":"20%","critical":"5%","overcommit_limit":"none"}"#),
        ("create-volume", r#"{"name":"web","datastore":"fast","size":"10GiB","kind":"thin"}"#),
        ("update-volume", r#"{"name":"www","size":21474836480}"#),
        ("convert-volume", r#"{"kind":"fixed","lose_snapshots":true}"#),
        ("connect-volume", r#"{"protocol":"nbd","tcp":true,"snapshot":"one","read_only":true}"#),
        ("clone-volume", r#"{"names":["a","b"],"linked":false,"datastore":"fast","kind":"lazy"}"#),
        (
            "import-volume",
            r#"{"name":"web","datastore":"fast","source":"-","format":"vhd","kind":"thin","chain":false}"#,
        ),
        ("export-volume", r#"{"to":"/srv/out","format":"raw","with_snapshots":true,"force":true}"#),
        ("create-snapshot", r#"{"name":"one","volumes":["web","fast/db"],"unreserved":true}"#),
        ("create-template", r#"{"name":"base","from":"web","snapshot":"one"}"#),
        ("deploy-template", r#"{"names":["a"],"linked":true}"#),
        ("create-token", r#"{"name":"ci","role":"operator"}"#),
        ("set-schedule", r#"{"hourly":3,"daily":2,"weekly":1,"at":"02:00","weekday":"monday"}"#),
        (
            "put-schedule",
            r#"{"schedule":{"hourly":3,"at":"02:30"},"since":"2026-01-02T03:04:05.678Z"}"#,
        ),
        (
            "run-schedule",
            r#"{"name":"s","rules":["hourly","daily"],"at":"2026-01-02T03:04:05.678Z"}"#,
        ),
    ];
    let mut seeds: Vec<_> =
        bodies.map(|(name, body)| ("rest_bodies", name, body.as_bytes().to_vec())).to_vec();
    let volume = id(1);
    let mut ask = |target, prefix: &str, name, head: &str, body: &str| {
        let (method, path) = head.split_once(' ').expect("a method and a path");
        let path = path.replace("ID", &volume.to_string());
        let headers = if target == "rest_controller" { "\nidempotency-key: k" } else { "" };
        let headers = if name == "create-volume" { headers } else { "" };
        seeds.push((
            target,
            name,
            format!("{method} {prefix}{path}{headers}\n\n{body}").into_bytes(),
        ));
    };
    for (target, prefix) in [("rest_node", "/v1"), ("rest_controller", "/api/v1")] {
        for (name, head, body) in [
            ("lists", "GET /volumes?limit=1&cursor=x", ""),
            ("one", "GET /volumes/ID", ""),
            ("events", "GET /events", ""),
            ("tasks", "GET /tasks/ID?wait=0", ""),
            ("diff", "GET /volumes/ID/diff?from=ID&to=ID", ""),
            ("download", "GET /volumes/ID/data?format=raw", ""),
            ("create-volume", "POST /volumes?wait=1", bodies[2].1),
            ("update-volume", "PATCH /volumes/ID", bodies[3].1),
            ("convert", "POST /volumes/ID/convert", bodies[4].1),
            ("connect", "POST /volumes/ID/connect", bodies[5].1),
            ("clone", "POST /volumes/ID/clone", bodies[6].1),
            ("snapshot", "POST /snapshots", bodies[9].1),
            ("template", "POST /templates", bodies[10].1),
            ("deploy", "POST /templates/ID/deploy", bodies[11].1),
            ("upload", "PUT /tasks/ID/data", "data"),
            ("revert", "POST /volumes/ID/snapshots/ID/revert", ""),
            ("delete", "DELETE /volumes/ID/snapshots/ID?dry_run=true", ""),
        ] {
            ask(target, prefix, name, head, body);
        }
    }
    ask("rest_node", "/v1", "put-schedule", "PUT /volumes/ID/schedule", bodies[14].1);
    ask("rest_node", "/v1", "run-schedule", "POST /volumes/ID/schedule/run", bodies[15].1);
    ask("rest_controller", "/api/v1", "set-schedule", "PUT /volumes/web/schedule", bodies[13].1);
    ask("rest_controller", "/api/v1", "policy", "PATCH /datastores/fast", bodies[1].1);
    ask("rest_controller", "/api/v1", "by-name", "POST /volumes/fast%2Fweb/connect", "{}");
    ask("rest_controller", "/api/v1", "dry-run", "POST /snapshots?dry_run=true", bodies[9].1);
    ask("rest_controller", "/api/v1", "tree", "GET /volumes/web/tree", "");
    ask("rest_controller", "", "metrics", "GET /metrics", "");
    ask("rest_controller", "", "console", "GET /", "");
    seeds
}
