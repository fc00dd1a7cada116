//! Chains of VHDs in and out: made by hand as Hyper-V, Xen's tools and VirtualBox lay them out, with
//! every layer a snapshot afterwards; exported as folders that libvhdi and our own import read; and
//! refused, by the name of the file, where they are no chain.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use e2e::process::run;
use e2e::shale::exit;
use e2e::tools::{self, Fill};
use e2e::{Shale, need, second_reader};
use image::{
    DynamicHeader, Footer, Kind, Locator, LocatorEntry, Platform, SectorCount, Timestamp, Uuid,
    WideName,
};

const MIB: u64 = 1 << 20;
const NOW: Timestamp = Timestamp(1);

/// A VHD as some other tool would write it.
struct Foreign<'a> {
    creator: &'a [u8; 4],
    id: u128,
    /// Identity of the parent; None for a disk of its own, 0 for a raw one.
    parent: Option<u128>,
    /// What the header calls the parent.
    name: &'a str,
    locators: Vec<Locator>,
    size: u64,
    block: u64,
    /// Bytes between the end of the headers and the first block.
    gap: u64,
}

impl Default for Foreign<'_> {
    fn default() -> Self {
        Self {
            creator: b"win ",
            id: 1,
            parent: None,
            name: "",
            locators: Vec::new(),
            size: 4 * MIB,
            block: 2 * MIB,
            gap: 0,
        }
    }
}

impl Foreign<'_> {
    /// Writes the file with these sectors: (first, how many, byte).
    fn write(&self, path: &Path, runs: &[(u64, u64, u8)]) -> Result<()> {
        let kind = if self.parent.is_some() { Kind::Differencing } else { Kind::Dynamic };
        let mut footer =
            Footer::new(Uuid::from_u128(self.id), kind, SectorCount(self.size / 512), NOW);
        footer.creator = *self.creator;
        let entries = self.size.div_ceil(self.block);
        let table = (entries * 4).next_multiple_of(512);
        let mut at = 1536 + table;
        let mut locators = [LocatorEntry::UNUSED; 8];
        let file = File::create(path)?;
        // from the last place on, as some tools do
        for (slot, locator) in locators.iter_mut().rev().zip(&self.locators) {
            *slot = LocatorEntry {
                platform: locator.platform,
                data_space: 1,
                data_len: u32::try_from(locator.data.len())?,
                data_offset: at,
            };
            file.write_all_at(&locator.data, at)?;
            at += (locator.data.len() as u64).next_multiple_of(512);
        }
        let header = DynamicHeader {
            next: u64::from(u32::MAX),
            table_offset: 1536,
            entries: u32::try_from(entries)?,
            block_size: u32::try_from(self.block)?,
            parent_uuid: Uuid::from_u128(self.parent.unwrap_or(0)),
            parent_time: Timestamp(0),
            parent_name: WideName::from(self.name),
            locators,
        };
        file.write_all_at(&footer.encode(), 0)?;
        file.write_all_at(&header.encode(), 512)?;
        let mut bat = vec![0xff; usize::try_from(table)?];
        let bitmap = (self.block / 512).div_ceil(8).next_multiple_of(512);
        at += self.gap;
        let sectors: Vec<(u64, u8)> = runs
            .iter()
            .flat_map(|(first, count, byte)| (*first..first + count).map(|s| (s, *byte)))
            .collect();
        let per_block = self.block / 512;
        // the last block first, as nothing says that they stand in order
        for block in (0..entries).rev() {
            let mine: Vec<_> = sectors.iter().filter(|(s, _)| s / per_block == block).collect();
            if mine.is_empty() {
                continue;
            }
            let entry = usize::try_from(block)? * 4;
            bat[entry..entry + 4].copy_from_slice(&u32::try_from(at / 512)?.to_be_bytes());
            let mut bits = vec![0_u8; usize::try_from(bitmap)?];
            for (sector, byte) in mine {
                let within = sector % per_block;
                bits[usize::try_from(within / 8)?] |= 0x80 >> (within % 8);
                file.write_all_at(&[*byte; 512], at + bitmap + within * 512)?;
            }
            file.write_all_at(&bits, at)?;
            at += bitmap + self.block;
            file.set_len(at)?;
        }
        file.write_all_at(&bat, 1536)?;
        file.write_all_at(&footer.encode(), at)?;
        Ok(())
    }
}

fn apply(disk: &mut Vec<u8>, size: u64, runs: &[(u64, u64, u8)]) -> Result<()> {
    disk.resize(usize::try_from(size)?, 0);
    for (first, count, byte) in runs {
        let (from, len) = (usize::try_from(first * 512)?, usize::try_from(count * 512)?);
        disk[from..from + len].fill(*byte);
    }
    Ok(())
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().context("a path in UTF-8")
}

/// Imports a chain, which is then what the second reader sees in the files.
fn import(shale: &Shale, name: &str, from: &Path, more: &[&str]) -> Result<()> {
    let words = ["volume", "import", name, "--datastore", "fast", "--chain", "--from"];
    shale.cli(&[&words[..], &[path(from)?], more].concat())?;
    let out = shale.home().join("second.raw");
    let seen = second_reader::foreign(from, &out)?;
    ensure!(seen.fine(), "{name}: {seen:?}");
    same(&std::fs::read(&out)?, &content(shale, name, None)?, &format!("{name}: {seen:?}"))
}

fn refused(shale: &Shale, from: &Path, code: i32, says: &[&str]) -> Result<()> {
    let words = ["volume", "import", "no", "--datastore", "fast", "--chain", "--from"];
    let said = shale.refused(&[&words[..], &[path(from)?]].concat(), code)?;
    for text in says {
        ensure!(said.contains(text), "it says: {said}, not: {text}");
    }
    let seen = second_reader::foreign(from, &shale.home().join("second.raw"))?;
    ensure!(seen.refused.is_some(), "the second reader takes {}: {seen:?}", from.display());
    ensure!(!shale.names(&["volume", "list"])?.contains(&"no".to_owned()), "a volume is left");
    Ok(())
}

fn content(shale: &Shale, volume: &str, snapshot: Option<&str>) -> Result<Vec<u8>> {
    let more: Vec<&str> =
        snapshot.iter().flat_map(|s| ["--snapshot", *s]).chain(["--read-only"]).collect();
    let connection = shale.connect_with(volume, &more)?;
    let file = shale.home().join("content.raw");
    tools::copy_out(&connection.uri, &file)?;
    shale.disconnect(volume)?;
    let bytes = std::fs::read(&file)?;
    std::fs::remove_file(&file)?;
    Ok(bytes)
}

fn same(found: &[u8], wanted: &[u8], what: &str) -> Result<()> {
    ensure!(found.len() == wanted.len(), "{what}: {} bytes, not {}", found.len(), wanted.len());
    let differs = found.chunks(512).zip(wanted.chunks(512)).position(|(a, b)| a != b);
    ensure!(differs.is_none(), "{what}: sector {} differs", differs.unwrap_or(0));
    Ok(())
}

fn folder(shale: &Shale, name: &str) -> Result<PathBuf> {
    let dir = shale.home().join(name);
    std::fs::create_dir(&dir)?;
    Ok(dir)
}

/// A disk on another.
fn link(id: u128, parent: u128, name: &str) -> Foreign<'_> {
    Foreign { id, parent: Some(parent), name, ..Foreign::default() }
}

/// Each snapshot and the volume itself hold what `states` say, the oldest first.
fn holds(shale: &Shale, volume: &str, names: &[&str], states: &[Vec<u8>]) -> Result<()> {
    for (name, state) in names.iter().zip(states) {
        same(&content(shale, volume, Some(name))?, state, &format!("{volume}@{name}"))?;
    }
    same(&content(shale, volume, None)?, states.last().context("a state")?, volume)?;
    let check = shale.json(&["datastore", "check", "fast"])?;
    ensure!(check.to_string().contains("\"findings\":[]"), "{check}");
    Ok(())
}

#[test]
fn a_chain_of_hyper_v() -> Result<()> {
    let shale = Shale::start()?;
    shale.datastore("fast")?;
    let dir = folder(&shale, "Virtual Hard Disks")?;
    let wide = |platform, path: &str| Locator::wide(platform, path);
    let states = [
        vec![(0, 8, 1), (63, 1000, 2), (4095, 2, 3)],
        vec![(0, 1, 4), (64, 8, 5)],
        // the disk grew
        vec![(4096, 1, 6), (8192, 3, 7)],
    ];
    let base = Foreign { id: 1, size: 4 * MIB, gap: 512, ..Foreign::default() };
    base.write(&dir.join("web.vhd"), &states[0])?;
    let first = Foreign {
        id: 2,
        parent: Some(1),
        name: "C:\\VMs\\web.vhd",
        locators: vec![
            wide(Platform::AbsolutePath, "C:\\VMs\\elsewhere.vhd"),
            wide(Platform::RelativePath, "..\\x\\web.vhd"),
        ],
        ..Foreign::default()
    };
    first.write(&dir.join("web_A1.avhd"), &states[1])?;
    let second = Foreign {
        id: 3,
        parent: Some(2),
        name: "web_A1.avhd",
        size: 6 * MIB,
        ..Foreign::default()
    };
    second.write(&dir.join("web_B2.avhd"), &states[2])?;
    import(&shale, "web", &dir.join("web_B2.avhd"), &[])?;
    let (mut disk, mut seen) = (Vec::new(), Vec::new());
    for (size, runs) in [4 * MIB, 4 * MIB, 6 * MIB].into_iter().zip(&states) {
        apply(&mut disk, size, runs)?;
        seen.push(disk.clone());
    }
    holds(&shale, "web", &["web", "web_A1"], &seen)?;
    // it is a chain as any other: merged, and reverted to
    shale.delete_snapshot("web_A1", "web")?;
    same(&content(&shale, "web", None)?, &seen[2], "after the merge")?;
    shale.revert("web", "web")?;
    same(&content(&shale, "web", None)?, &seen[0], "after going back")?;
    // the base alone, of another kind
    let words = ["volume", "import", "flat", "--datastore", "fast", "--kind", "fixed", "--from"];
    shale.cli(&[&words[..], &[path(&dir.join("web.vhd"))?]].concat())?;
    same(&content(&shale, "flat", None)?, &seen[0], "the base")
}

#[test]
fn chains_of_xen_and_virtualbox() -> Result<()> {
    let shale = Shale::start()?;
    shale.datastore("fast")?;
    let dir = folder(&shale, "sr")?;
    // a raw parent without an identity; a relative path where Windows has absolute ones, and a URL
    let size = 3 * MIB;
    let raw = [(0, 5, 1), (3000, 100, 2)];
    let (mut disk, mut seen) = (Vec::new(), Vec::new());
    apply(&mut disk, size, &raw)?;
    seen.push(disk.clone());
    std::fs::write(dir.join("base one.raw"), &disk)?;
    let url = b"file://./base%20one.raw".to_vec();
    let runs = vec![(4, 2, 3), (6000, 100, 4)];
    let child = Foreign {
        creator: b"tap\0",
        id: 11,
        parent: Some(0),
        size,
        locators: vec![Locator { platform: Platform::FileUrl, data: url }],
        ..Foreign::default()
    };
    child.write(&dir.join("b.vhd"), &runs)?;
    apply(&mut disk, size, &runs)?;
    seen.push(disk.clone());
    let runs = vec![(3050, 1, 5)];
    let leaf = Foreign {
        creator: b"vbox",
        id: 12,
        parent: Some(11),
        name: "/home/user/VirtualBox VMs/vm/b.vhd",
        size,
        block: 64 << 10,
        gap: 1024,
        locators: vec![Locator::wide(Platform::AbsolutePath, ".\\b.vhd")],
    };
    leaf.write(&dir.join("{c}.vhd"), &runs)?;
    apply(&mut disk, size, &runs)?;
    seen.push(disk.clone());
    import(&shale, "vm", &dir.join("{c}.vhd"), &["--kind", "lazy"])?;
    holds(&shale, "vm", &["base-one", "b"], &seen)?;

    // blocks of every size that tools write, and the smallest there can be
    for (number, block) in [512, 4096, 512 << 10, 4 * MIB, 32 * MIB].into_iter().enumerate() {
        let runs = [(1, 1, 7), (4097, 9, 8), (size / 512 - 1, 1, 9)];
        let id = 100 + number as u128;
        let file = dir.join(format!("block-{block}.vhd"));
        Foreign { id, size, block, ..Foreign::default() }.write(&file, &runs)?;
        let name = format!("of-{block}");
        import(&shale, &name, &file, &[])?;
        let mut wanted = Vec::new();
        apply(&mut wanted, size, &runs)?;
        same(&content(&shale, &name, None)?, &wanted, &name)?;
    }
    Ok(())
}

#[test]
fn what_is_no_chain_is_refused_by_the_name_of_the_file() -> Result<()> {
    let shale = Shale::start()?;
    shale.datastore("fast")?;
    let dir = folder(&shale, "files")?;
    let at = |name: &str| dir.join(name);
    link(2, 1, "gone.vhd").write(&at("orphan.vhd"), &[(0, 1, 1)])?;
    refused(&shale, &at("orphan.vhd"), exit::NOT_FOUND, &["orphan.vhd", "gone.vhd"])?;
    // the right name, and another disk
    Foreign { id: 9, ..Foreign::default() }.write(&at("gone.vhd"), &[])?;
    let other = Uuid::from_u128(9).to_string();
    refused(&shale, &at("orphan.vhd"), exit::NOT_FOUND, &["orphan.vhd", &other])?;
    // a circle
    link(21, 22, "b.vhd").write(&at("a.vhd"), &[(0, 1, 1)])?;
    link(22, 21, "a.vhd").write(&at("b.vhd"), &[(0, 1, 1)])?;
    refused(&shale, &at("a.vhd"), exit::FAILED, &["a.vhd", "come back"])?;
    // a child that is smaller
    Foreign { id: 31, size: 8 * MIB, ..Foreign::default() }.write(&at("large.vhd"), &[])?;
    link(32, 31, "large.vhd").write(&at("small.vhd"), &[(0, 1, 1)])?;
    refused(&shale, &at("small.vhd"), exit::USAGE, &["small.vhd", "large.vhd"])?;
    // too long; 32 are taken
    let name = |number: u128| format!("long-{number}.vhd");
    Foreign { id: 1000, ..Foreign::default() }.write(&at(&name(0)), &[(0, 1, 1)])?;
    for number in 1..=32 {
        let below = name(number - 1);
        let layer = link(1000 + number, 999 + number, below.as_str());
        layer.write(&at(&name(number)), &[(u64::try_from(number)?, 1, 2)])?;
    }
    refused(&shale, &at(&name(32)), exit::CONFLICT, &["long-0.vhd", "32 files"])?;
    import(&shale, "long", &at(&name(31)), &[])?;
    ensure!(shale.names(&["snapshot", "list", "--volume", "long"])?.len() == 31);
    // a guest that names the host's files gets none of them: only the folder is looked in
    let secret = shale.home().join("secret.vhd");
    Foreign { id: 41, ..Foreign::default() }.write(&secret, &[(0, 1, 1)])?;
    let outside = link(42, 41, path(&secret)?);
    outside.write(&at("outside.vhd"), &[(0, 1, 1)])?;
    refused(&shale, &at("outside.vhd"), exit::NOT_FOUND, &["outside.vhd", "secret.vhd"])?;
    std::os::unix::fs::symlink(&secret, at("secret.vhd"))?;
    refused(&shale, &at("outside.vhd"), exit::NOT_FOUND, &["outside.vhd", "secret.vhd"])?;
    // and without --chain no parent is looked for at all
    let words = ["volume", "import", "no", "--datastore", "fast", "--from"];
    let said = shale.refused(&[&words[..], &[path(&at(&name(3)))?]].concat(), exit::USAGE)?;
    ensure!(said.contains("--chain"), "{said}");
    Ok(())
}

const READ_BY_LIBVHDI: &str = "
import pyvhdi, sys, os
out, leaf, folder = sys.argv[1:4]
def opened(path):
    disk = pyvhdi.file()
    disk.open(path)
    kept.append(disk)
    name = disk.get_parent_filename() if disk.get_disk_type() == 4 else None
    if name:
        disk.set_parent(opened(os.path.join(folder, os.path.basename(name.replace('\\\\', '/')))))
    return disk
kept = []
disk = opened(leaf)
size = disk.get_media_size()
with open(out, 'wb') as to:
    at = 0
    while at < size:
        data = disk.read_buffer_at_offset(min(1 << 20, size - at), at)
        assert data, 'libvhdi read nothing'
        to.write(data)
        at += len(data)
print(len(kept))
";

/// libvhdi follows the names in the files, and sees this.
fn libvhdi_agrees(shale: &Shale, leaf: &Path, wanted: &[u8]) -> Result<()> {
    need::tool("/usr/share/doc/python3-libvhdi/copyright")?;
    let out = shale.home().join("libvhdi.raw");
    let mut python = Command::new(need::tool("/usr/bin/python3")?);
    python.args(["-c", READ_BY_LIBVHDI]).arg(&out).arg(leaf);
    run(python.arg(leaf.parent().context("a folder")?))?;
    same(&std::fs::read(&out)?, wanted, &format!("libvhdi on {}", leaf.display()))
}

#[test]
fn snapshots_are_exported_as_a_chain_that_others_follow() -> Result<()> {
    let shale = Shale::start()?;
    shale.datastore("fast")?;
    let size = 7 * MIB + 512;
    shale.volume("web", "fast", &size.to_string())?;
    let mut disk = vec![0; usize::try_from(size)?];
    let mut write = |fills: &[Fill]| -> Result<Vec<u8>> {
        tools::write(&shale.connect("web")?.uri, fills)?;
        shale.disconnect("web")?;
        for fill in fills {
            let from = usize::try_from(fill.at)?;
            disk[from..from + usize::try_from(fill.len)?].fill(fill.byte);
        }
        Ok(disk.clone())
    };
    let one =
        write(&[Fill { byte: 1, at: 0, len: MIB }, Fill { byte: 2, at: 5 * MIB, len: 4096 }])?;
    shale.snapshot("one", "web")?;
    // single sectors: libvhdi does not tell them apart within eight
    let two = write(&[
        Fill { byte: 3, at: 512, len: 512 },
        Fill { byte: 4, at: 2 * MIB - 512, len: 1024 },
        Fill { byte: 5, at: size - 512, len: 512 },
    ])?;
    shale.snapshot("two", "web")?;
    let now =
        write(&[Fill { byte: 0, at: 0, len: 8192 }, Fill { byte: 6, at: 3 * MIB, len: 512 }])?;
    let dir = shale.home().join("out");
    let export = |dir: &Path, more: &[&str]| {
        let words = ["volume", "export", "web", "--with-snapshots", "--to", path(dir)?];
        shale.cli(&[&words[..], more].concat())
    };
    export(&dir, &[])?;
    let words = ["volume", "export", "web", "--with-snapshots", "--force", "--to", path(&dir)?];
    shale.refused(&words, exit::CONFLICT)?;
    libvhdi_agrees(&shale, &dir.join("web@one.vhd"), &one)?;
    libvhdi_agrees(&shale, &dir.join("web@two.vhd"), &two)?;
    libvhdi_agrees(&shale, &dir.join("web.vhd"), &now)?;
    import(&shale, "back", &dir.join("web.vhd"), &[])?;
    holds(&shale, "back", &["one", "two"], &[one.clone(), two.clone(), now])?;

    // another branch from `one`
    shale.revert("one", "web")?;
    tools::write(&shale.connect("web")?.uri, &[Fill { byte: 8, at: MIB, len: 4096 }])?;
    shale.disconnect("web")?;
    let mut branch = one.clone();
    let from = usize::try_from(MIB)?;
    branch[from..from + 4096].fill(8);
    let own = shale.home().join("own");
    export(&own, &[])?;
    ensure!(!own.join("web@two.vhd").exists(), "the other branch was not asked for");
    libvhdi_agrees(&shale, &own.join("web.vhd"), &branch)?;
    let all = shale.home().join("all");
    export(&all, &["--all-branches"])?;
    libvhdi_agrees(&shale, &all.join("web.vhd"), &branch)?;
    libvhdi_agrees(&shale, &all.join("web@two.vhd"), &two)?;
    // of a snapshot while its volume is connected
    shale.connect("web")?;
    let live = shale.home().join("live");
    let said = shale.refused(
        &["volume", "export", "web", "--with-snapshots", "--to", path(&live)?],
        exit::CONFLICT,
    )?;
    ensure!(said.contains("snapshot"), "{said}");
    export(&live, &["--snapshot", "two"])?;
    libvhdi_agrees(&shale, &live.join("web.vhd"), &two)
}
