//! The promises of the wire types.
#![expect(clippy::unwrap_used, reason = "a failing test may panic")]

use model::{
    Capabilities, Code, Exit, Name, NameError, Operation, Permission, Problem, Reference, Role,
    Size, Snapshot, SnapshotNode, SnapshotTree, StoreFeatures, Timestamp, Uuid, VolumeKind,
    support,
};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

/// Runs `check` on values of `strategy`; the seed is fixed.
fn property<S: Strategy>(strategy: &S, check: impl Fn(S::Value) -> Result<(), TestCaseError>) {
    TestRunner::deterministic().run(strategy, check).unwrap();
}

#[test]
fn codes_statuses_and_exits_never_change() {
    let table = [
        ("bad-request", 400, 2),
        ("invalid-name", 400, 2),
        ("invalid-size", 400, 2),
        ("invalid-cursor", 400, 2),
        ("unauthenticated", 401, 6),
        ("denied", 403, 6),
        ("foreign-origin", 403, 6),
        ("not-found", 404, 3),
        ("no-such-path", 404, 3),
        ("method-not-allowed", 405, 2),
        ("too-large", 413, 2),
        ("unsupported-media-type", 415, 2),
        ("name-taken", 409, 4),
        ("ambiguous-name", 409, 4),
        ("conflict", 409, 4),
        ("busy", 409, 4),
        ("connected", 409, 4),
        ("not-connected", 409, 4),
        ("has-dependents", 409, 4),
        ("snapshot-limit", 409, 4),
        ("unsupported", 409, 4),
        ("read-only", 409, 4),
        ("refused", 409, 4),
        ("unknown-format", 409, 4),
        ("idempotency-mismatch", 422, 4),
        ("cancelled", 409, 1),
        ("no-space", 507, 5),
        ("overcommit-limit", 507, 5),
        ("time-out", 504, 7),
        ("io-error", 500, 1),
        ("corrupt", 500, 1),
        ("node-unavailable", 503, 1),
        ("server-unavailable", 503, 1),
        ("internal", 500, 1),
        ("unknown", 500, 1),
    ];
    assert_eq!(Code::ALL.len(), table.len(), "a code is missing from this table");
    for ((text, status, exit), code) in table.into_iter().zip(Code::ALL) {
        assert_eq!((code.as_str(), code.status()), (text, status));
        assert_eq!(code.exit().number(), exit, "{text}");
        assert_eq!(serde_json::to_value(code).unwrap(), text);
        assert_eq!(serde_json::from_value::<Code>(text.into()).unwrap(), *code);
    }
}

#[test]
fn a_newer_servers_code_keeps_its_family() {
    for (status, exit) in [
        (400, Exit::Usage),
        (403, Exit::Denied),
        (404, Exit::NotFound),
        (409, Exit::Conflict),
        (507, Exit::NoSpace),
        (504, Exit::TimeOut),
        (500, Exit::Failed),
    ] {
        let text = format!(
            r#"{{"type":"x","title":"t","status":{status},"code":"from-the-future","detail":"d"}}"#
        );
        let problem: Problem = serde_json::from_str(&text).unwrap();
        assert_eq!((problem.code, problem.exit()), (Code::Unknown, exit), "{status}");
    }
}

#[test]
fn an_error_is_one_line() {
    let problem = Problem::new(Code::SnapshotLimit, "web has 32 snapshots, the limit.");
    assert_eq!(problem.to_string(), "web has 32 snapshots, the limit. (snapshot-limit, 4)");
    let problem = problem.hint("delete one");
    assert_eq!(
        problem.to_string(),
        "web has 32 snapshots, the limit. (snapshot-limit, 4)  delete one"
    );
    let wire = serde_json::to_value(&problem).unwrap();
    assert_eq!(wire["type"], "urn:shale:problem:snapshot-limit");
    assert_eq!(serde_json::from_value::<Problem>(wire).unwrap(), problem);
}

#[test]
fn names_follow_their_rules() {
    for good in ["a", "web-01", "A.b_c-d", "0", &"x".repeat(63)] {
        assert_eq!(Name::new(good).unwrap().as_str(), good);
    }
    let uuid = "6f2c1c58-7ad6-4bb0-9d13-2f7d3b6b4f10";
    let bad = [
        ("", NameError::Empty),
        ("-a", NameError::Start("-a".into())),
        (".", NameError::Start(".".into())),
        ("a b", NameError::Character("a b".into(), ' ')),
        ("a/b", NameError::Character("a/b".into(), '/')),
        ("ä", NameError::Character("ä".into(), 'ä')),
        ("a\n", NameError::Character("a\n".into(), '\n')),
        (uuid, NameError::Uuid(uuid.into())),
    ];
    for (text, error) in bad {
        assert_eq!(Name::new(text), Err(error));
    }
    assert_eq!(Name::new("x".repeat(64)), Err(NameError::TooLong(64)));
    property(&".{0,70}", |text| {
        if let Ok(name) = Name::new(text.clone()) {
            prop_assert!(text.len() <= 63 && text.is_ascii() && !text.contains('/'));
            prop_assert_eq!(name.to_string(), text);
        }
        Ok(())
    });
}

#[test]
fn references_mean_one_thing() {
    let id = Uuid::from_u128(7);
    assert_eq!(id.to_string().parse(), Ok(Reference::Id(id)));
    assert_eq!("web".parse(), Ok(Reference::Name(Name::new("web").unwrap())));
    let qualified = "fast/web".parse::<Reference>().unwrap();
    assert_eq!(qualified.to_string(), "fast/web");
    assert!(matches!(qualified, Reference::Qualified { .. }));
    for bad in ["", "/", "a/", "/b", "a/b/c", "a b"] {
        assert!(bad.parse::<Reference>().is_err(), "{bad}");
    }
}

#[test]
fn sizes_as_people_write_them() {
    const G: u64 = 1 << 30;
    let good = [
        ("0", 0),
        ("512", 512),
        ("512B", 512),
        ("1k", 1024),
        ("512M", 512 << 20),
        ("10G", 10 * G),
        ("10g", 10 * G),
        ("10GB", 10 * G),
        ("10GiB", 10 * G),
        (" 10 GiB ", 10 * G),
        ("1.5T", 3 << 39),
        ("0.5K", 512),
        ("16383P", 16383 << 50),
        ("18446744073709551615", u64::MAX),
    ];
    for (text, bytes) in good {
        assert_eq!(text.parse::<Size>().map(Size::bytes), Ok(bytes), "{text}");
    }
    for bad in
        ["", "G", "-1", "+1", "1.", ".5G", "1..5G", "1X", "1 G G", "0.3", "1e3", "16384P", "１G"]
    {
        assert!(bad.parse::<Size>().is_err(), "{bad}");
    }
    assert!("18446744073709551616".parse::<Size>().is_err());
    for (bytes, text, human) in [
        (0, "0", "0 B"),
        (1023, "1023", "1023 B"),
        (1536, "1536", "1.5 KiB"),
        (10 * G, "10G", "10 GiB"),
        (10 * G + 1, "10737418241", "10 GiB"),
        (3 * G / 2, "1536M", "1.5 GiB"),
        (150 * G + G / 2, "154112M", "151 GiB"),
    ] {
        let size = Size::from_bytes(bytes);
        assert_eq!((size.to_string(), size.human()), (text.to_owned(), human.to_owned()));
    }
}

#[test]
fn sizes_survive_their_text() {
    property(&(any::<u64>(), 0_u32..60), |(bytes, shift)| {
        let size = Size::from_bytes(bytes >> shift << (shift / 2));
        prop_assert_eq!(size.to_string().parse::<Size>(), Ok(size));
        let wire = serde_json::to_string(&size).unwrap();
        prop_assert_eq!(serde_json::from_str::<Size>(&wire).unwrap(), size);
        Ok(())
    });
    property(&".{0,12}", |text| {
        // whatever it is, it does not panic; what parses prints and parses again
        if let Ok(size) = text.parse::<Size>() {
            prop_assert_eq!(size.to_string().parse::<Size>(), Ok(size));
        }
        Ok(())
    });
    assert_eq!(serde_json::from_str::<Size>("\"10G\"").unwrap().bytes(), 10 << 30);
    for bad in ["-1", "1.5", "\"x\"", "null", "true", "[]"] {
        assert!(serde_json::from_str::<Size>(bad).is_err(), "{bad}");
    }
}

#[test]
fn times_are_rfc_3339() {
    for (ms, text) in [
        (0, "1970-01-01T00:00:00.000Z"),
        (951_782_400_000, "2000-02-29T00:00:00.000Z"),
        (1_795_322_437_123, "2026-11-22T04:40:37.123Z"),
        (253_402_300_799_999, "9999-12-31T23:59:59.999Z"),
    ] {
        let time = Timestamp::from_unix_ms(ms);
        assert_eq!(time.to_string(), text);
        assert_eq!(text.parse(), Ok(time));
    }
    assert_eq!("2026-11-22T04:40:37Z".parse::<Timestamp>().unwrap().unix_ms(), 1_795_322_437_000);
    for bad in [
        "",
        "2026-02-29T00:00:00Z",
        "2026-13-01T00:00:00Z",
        "2026-00-01T00:00:00Z",
        "1969-12-31T23:59:59Z",
        "2026-01-01T24:00:00Z",
        "2026-01-01T00:00:00",
        "2026-01-01T00:00:00+01:00",
        "2026-01-01 00:00:00Z",
        "２026-01-01T00:00:00Z",
    ] {
        assert!(bad.parse::<Timestamp>().is_err(), "{bad}");
    }
    property(&any::<u64>(), |ms| {
        let time = Timestamp::from_unix_ms(ms % 253_402_300_800_000);
        prop_assert_eq!(time.to_string().parse::<Timestamp>().ok(), Some(time));
        Ok(())
    });
}

#[test]
fn roles_are_a_ladder() {
    let permissions =
        [Permission::Read, Permission::Operate, Permission::ManageStorage, Permission::Administer];
    for (step, role) in Role::ALL.into_iter().enumerate() {
        for (needs, permission) in permissions.into_iter().enumerate() {
            assert_eq!(role.allows(permission), step >= needs, "{role} {permission:?}");
        }
        assert_eq!(role.as_str().parse(), Ok(role));
        assert_eq!(serde_json::to_value(role).unwrap(), role.as_str());
    }
    assert!("root".parse::<Role>().is_err());
}

#[test]
fn every_cell_of_the_capabilities() {
    use Operation as Op;
    let table = Capabilities::all().table;
    assert_eq!(table.len(), Op::ALL.len() * 3 * 2 * 2);
    for cell in table {
        let reserving = cell.kind != VolumeKind::Thin;
        let makes = [
            Op::VolumeCreate,
            Op::VolumeCopy,
            Op::VolumeConvert,
            Op::VolumeImport,
            Op::TemplateDeploy,
        ];
        let offline = [
            Op::VolumeResize,
            Op::VolumeConvert,
            Op::VolumeDelete,
            Op::VolumeExport,
            Op::SnapshotDelete,
            Op::SnapshotRevert,
            Op::TemplateCreate,
            Op::VolumeConnect,
        ];
        let refused = (makes.contains(&cell.operation) && reserving && !cell.reserve)
            || (offline.contains(&cell.operation) && cell.connected)
            || (cell.operation == Op::VolumeDisconnect && !cell.connected);
        assert_eq!(cell.supported, !refused, "{cell:?}");
        assert_eq!(cell.reason.is_some(), refused, "{cell:?}");
        let features = StoreFeatures { reserve: cell.reserve, ..StoreFeatures::default() };
        let asked = support(cell.operation, cell.kind, cell.connected, features);
        assert_eq!(asked.is_ok(), cell.supported);
    }
}

fn snapshot(n: u64, parent: Option<u64>) -> Snapshot {
    Snapshot {
        id: Uuid::from_u128(n.into()),
        name: Name::new(format!("s{n}")).unwrap(),
        volume: Uuid::nil(),
        volume_name: Name::new("v").unwrap(),
        parent: parent.map(|p| Uuid::from_u128(p.into())),
        size: Size::default(),
        used: Size::default(),
        merge_bytes: None,
        set: None,
        scheduled: None,
        clones: 0,
        created: Timestamp::from_unix_ms(n),
    }
}

#[test]
fn every_snapshot_stands_in_the_tree_once() {
    fn collect(nodes: &[SnapshotNode], parent: Option<Uuid>, seen: &mut Vec<Uuid>) {
        for node in nodes {
            seen.push(node.snapshot.id);
            if parent.is_some() {
                assert_eq!(node.snapshot.parent, parent);
            }
            collect(&node.children, Some(node.snapshot.id), seen);
        }
    }
    // any parents at all: unknown ones, itself, cycles
    let parents = proptest::collection::vec(proptest::option::of(0_u64..40), 0..32);
    property(&parents, |parents| {
        let all: Vec<Snapshot> =
            parents.iter().enumerate().map(|(n, p)| snapshot(n as u64, *p)).collect();
        let mut expected: Vec<Uuid> = all.iter().map(|s| s.id).collect();
        let name = Name::new("v").unwrap();
        let tree = SnapshotTree::build(Uuid::nil(), name, expected.last().copied(), all);
        let mut seen = Vec::new();
        collect(&tree.roots, None, &mut seen);
        seen.sort();
        expected.sort();
        prop_assert_eq!(seen, expected);
        Ok(())
    });
}
