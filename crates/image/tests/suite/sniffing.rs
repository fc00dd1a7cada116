//! What a file is taken for, and which names of a parent are followed.

use image::{
    Footer, Kind, Locator, ParentRef, Platform, Qcow2, SectorCount, Sniffed, Timestamp, Uuid, Vmdk,
    WideName, sniff,
};

fn footer(kind: Kind) -> Vec<u8> {
    Footer::new(Uuid::from_u128(1), kind, SectorCount(8), Timestamp(1)).encode().to_vec()
}

fn qcow2(version: u8, at: &[(usize, u8)]) -> Vec<u8> {
    let mut head = b"QFI\xfb\0\0\0".to_vec();
    head.push(version);
    head.resize(512, 0);
    at.iter().for_each(|(at, byte)| head[*at] = *byte);
    head
}

#[test]
fn files_are_told_by_both_ends() {
    let zeros = vec![0; 512];
    let plain =
        |backing, data_file, encrypted| Sniffed::Qcow2(Qcow2 { backing, data_file, encrypted });
    let vhd = |differencing| Sniffed::Vhd { differencing };
    let mut damaged = footer(Kind::Fixed);
    damaged[100] ^= 1;
    let mut short = vec![0];
    short.extend_from_slice(&footer(Kind::Fixed)[..511]);
    let mut vdi = vec![0; 512];
    vdi[64..68].copy_from_slice(&[0x7f, 0x10, 0xda, 0xbe]);
    let vmdk = |capacity: u8, text: &[u8]| {
        let mut head = b"KDMV\x01\0\0\0\x03\0\0\0".to_vec();
        head.push(capacity);
        head.resize(512, 0);
        head.extend_from_slice(text);
        head
    };
    let cases = [
        (vec![], vec![], Sniffed::Unknown),
        (zeros.clone(), zeros.clone(), Sniffed::Unknown),
        (b"conect".to_vec(), zeros.clone(), Sniffed::Unknown),
        (qcow2(3, &[]), zeros.clone(), plain(false, false, false)),
        (qcow2(2, &[(15, 1)]), zeros.clone(), plain(true, false, false)),
        (qcow2(3, &[(8, 1)]), zeros.clone(), plain(true, false, false)),
        (qcow2(3, &[(79, 4)]), zeros.clone(), plain(false, true, false)),
        // version 2 has no features there
        (qcow2(2, &[(79, 4)]), zeros.clone(), plain(false, false, false)),
        (qcow2(3, &[(35, 2)]), zeros.clone(), plain(false, false, true)),
        (b"QFI\xfb".to_vec(), b"QFI\xfb".to_vec(), Sniffed::Other("the start of a qcow2 image")),
        (zeros.clone(), footer(Kind::Fixed), vhd(false)),
        (zeros.clone(), short, vhd(false)),
        (zeros.clone(), damaged.clone(), vhd(false)),
        (damaged, zeros.clone(), vhd(false)),
        (footer(Kind::Differencing), zeros.clone(), vhd(true)),
        (footer(Kind::Dynamic), footer(Kind::Dynamic), vhd(false)),
        // the end decides, as it does when the file is opened
        (footer(Kind::Dynamic), footer(Kind::Differencing), vhd(true)),
        (qcow2(3, &[]), footer(Kind::Fixed), Sniffed::Ambiguous),
        (b"\x1f\x8b\x08".to_vec(), zeros.clone(), Sniffed::Other("a gzip file")),
        (b"vhdxfile".to_vec(), zeros.clone(), Sniffed::Vhdx),
        (vdi, zeros.clone(), Sniffed::Vdi),
        (vmdk(1, b"# Disk DescriptorFile"), zeros.clone(), Sniffed::Vmdk(Vmdk::Whole)),
        (vmdk(0, b"RW 8 FLAT \"/etc/passwd\""), zeros.clone(), Sniffed::Vmdk(Vmdk::Extents)),
        (vmdk(1, b"parentFileNameHint=\"x\""), zeros.clone(), Sniffed::Vmdk(Vmdk::Child)),
        (b"# Disk DescriptorFile".to_vec(), zeros, Sniffed::Vmdk(Vmdk::Extents)),
    ];
    for (number, (head, tail, wanted)) in cases.into_iter().enumerate() {
        assert_eq!(sniff(&head, &tail), wanted, "case {number}");
    }
}

#[test]
fn a_parent_is_looked_for_by_the_last_parts_of_its_paths() {
    let names = |name: &str, locators: Vec<Locator>| {
        let name = WideName::from(name);
        ParentRef { uuid: Uuid::from_u128(1), name, locators }.file_names()
    };
    let wide = Locator::wide;
    let url = |text: &str| Locator { platform: Platform::FileUrl, data: text.as_bytes().to_vec() };
    assert_eq!(names("", vec![]), Vec::<String>::new());
    assert_eq!(names("C:\\VMs\\a b.vhd", vec![]), ["a b.vhd"]);
    assert_eq!(
        names(
            "header.vhd",
            vec![
                url("file:///x/a%20b.vhd"),
                wide(Platform::AbsolutePath, "D:\\abs.vhd"),
                wide(Platform::RelativePath, ".\\..\\rel.vhd"),
                wide(Platform::AbsolutePath, "rel.vhd"),
                Locator { platform: Platform::Other(*b"Mac "), data: b"alias".to_vec() },
            ]
        ),
        ["rel.vhd", "abs.vhd", "a b.vhd", "header.vhd"]
    );
    for evil in ["..", "a/..", "/", ".", "x\\", "%2e%2e", "a\0b"] {
        let found = names("", vec![url(evil), wide(Platform::RelativePath, evil)]);
        let safe = |name: &String| {
            !name.contains(['/', '\\', '\0']) && name != ".." && name != "." && !name.is_empty()
        };
        assert!(found.iter().all(safe), "{evil:?}: {found:?}");
    }
    // an escape that makes a separator is one
    assert_eq!(names("", vec![url("file://a%2fb.vhd")]), ["b.vhd"]);
}
