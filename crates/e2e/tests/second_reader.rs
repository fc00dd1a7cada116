//! `docs/format-vhd.md` is enough to read a datastore without Shale: a reader in Python that was
//! written from it sees the same disks, and refuses the same files.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use e2e::tools::{self, Fill};
use e2e::{Shale, second_reader};
use image::{DynamicHeader, Footer, Sector, bat};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const SECTOR: u64 = 512;

/// Numbers from a seed: the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }

    fn of<'a, T>(&mut self, items: &'a [T]) -> Result<&'a T> {
        let index = self.below(items.len().max(1) as u64);
        items.get(usize::try_from(index)?).context("nothing to choose from")
    }
}

/// The second reader's raw file holds what Shale's export of the same does, to the byte.
fn agree(shale: &Shale, store: &Path, volume: &str, snapshot: Option<&str>) -> Result<()> {
    let name = snapshot.map_or(volume.to_owned(), |snapshot| format!("{volume}@{snapshot}"));
    let (ours, theirs) = (shale.home().join("ours.raw"), shale.home().join("theirs.raw"));
    let to = ours.to_str().context("a path in UTF-8")?;
    let mut words = vec!["volume", "export", volume, "--format", "raw", "--force", "--to", to];
    words.extend(snapshot.iter().flat_map(|name| ["--snapshot", *name]));
    shale.cli(&words)?;
    let seen = second_reader::volume(store, &name, &theirs)?;
    ensure!(seen.fine(), "{name}: {seen:?}");
    same(&ours, &theirs).with_context(|| format!("{name}: {seen:?}"))
}

fn same(one: &Path, other: &Path) -> Result<()> {
    let sizes = (std::fs::metadata(one)?.len(), std::fs::metadata(other)?.len());
    ensure!(sizes.0 == sizes.1, "{} bytes and {}", sizes.0, sizes.1);
    tools::compare(one.to_str().context("UTF-8")?, other.to_str().context("UTF-8")?)
}

fn snapshots(shale: &Shale, volume: &str) -> Result<Vec<String>> {
    shale.names(&["snapshot", "list", "--volume", volume])
}

/// A volume's guest writes and discards here and there; what it flushed stands in the files while it
/// is still connected, whose tails are not.
fn guest(shale: &Shale, store: &Path, volume: &str, random: &mut Random) -> Result<()> {
    let shown = shale.json(&["volume", "show", volume])?;
    let sectors = shown["size"].as_u64().context("a size")? / SECTOR;
    let connection = shale.connect(volume)?;
    let mut lines = Vec::new();
    for _ in 0..=random.below(12) {
        // small ones, and some that reach over blocks; the disk's ends oftener than by chance
        let most = *random.of(&[1, 8, 100, 9000])?;
        let len = (1 + random.below(most)).min(sectors);
        let at = *random.of(&[0, sectors - len, random.0 % (sectors - len + 1)])?;
        let (at, len, byte) = (at * SECTOR, len * SECTOR, 1 + random.below(255));
        lines.push(match random.below(4) {
            0 => format!("discard {at} {len}"),
            1 => format!("write -z {at} {len}"),
            _ => format!("write -P {byte} {at} {len}"),
        });
    }
    lines.push("flush".to_owned());
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let said = tools::io(&connection.uri, &lines)?;
    ensure!(!said.contains("failed"), "{said}");
    let (read, live) = (shale.home().join("read.raw"), shale.home().join("live.raw"));
    tools::copy_out(&connection.uri, &read)?;
    let seen = second_reader::volume(store, volume, &live)?;
    ensure!(seen.fine(), "{volume}, connected: {seen:?}");
    same(&read, &live).with_context(|| format!("{volume}, connected: {seen:?}"))?;
    shale.disconnect(volume)
}

#[test]
fn it_sees_what_random_lives_leave() -> Result<()> {
    for seed in 1..=2 {
        live(seed).with_context(|| format!("seed {seed}"))?;
    }
    Ok(())
}

fn live(seed: u64) -> Result<()> {
    let shale = Shale::start()?;
    let store = shale.datastore("fast")?;
    let mut random = Random(seed);
    let mut volumes = Vec::new();
    for (kind, size) in [("thin", 7 * MIB + 512), ("lazy", 4 * MIB), ("fixed", 5 * MIB + 1024)] {
        let size = size.to_string();
        let words = ["volume", "create", kind, "--datastore", "fast", "--kind", kind, "--size"];
        shale.cli(&[&words[..], &[&size]].concat())?;
        volumes.push(kind.to_owned());
    }
    for number in 0..30 {
        let volume = random.of(&volumes)?.clone();
        let points = snapshots(&shale, &volume)?;
        let name = format!("n{number}");
        match random.below(8) {
            0 | 1 => shale.snapshot(&name, &volume)?,
            2 if !points.is_empty() => shale.revert(random.of(&points)?, &volume)?,
            3 if !points.is_empty() && volumes.len() < 6 => {
                let point = random.of(&points)?;
                let words = ["volume", "clone", &volume, "--snapshot", point, "--name", &name];
                let linked: &[&str] = if random.below(2) == 0 { &["--linked"] } else { &[] };
                shale.cli(&[&words[..], linked].concat())?;
                volumes.push(name);
            }
            4 if !points.is_empty() => {
                let point = random.of(&points)?;
                // linked clones keep what they stand on
                let said =
                    shale.try_cli(&["snapshot", "delete", point, "--volume", &volume, "--yes"])?;
                ensure!(said.code == 0 || said.err.contains("clone"), "{}", said.err);
            }
            5 => {
                let shown = shale.json(&["volume", "show", &volume])?;
                let size = shown["size"].as_u64().context("a size")?;
                // a sector, a block with a rest, nothing whole
                let more = *random.of(&[SECTOR, 2 * MIB + 512, MIB / 2])?;
                let size = (size + more).to_string();
                shale.cli(&["volume", "resize", &volume, "--size", &size])?;
            }
            _ => guest(&shale, &store, &volume, &mut random)?,
        }
        agree(&shale, &store, &volume, None)?;
    }
    for volume in &volumes {
        agree(&shale, &store, volume, None)?;
        for point in snapshots(&shale, volume)? {
            agree(&shale, &store, volume, Some(&point))?;
        }
    }
    Ok(())
}

/// The table of a layer moves when the disk grows over what its pages hold; a disk larger than one
/// VHD is a row of chains.
#[test]
fn it_sees_disks_that_grew_large() -> Result<()> {
    let shale = Shale::start()?;
    let store = shale.datastore("fast")?;
    shale.volume("web", "fast", "2G")?;
    let write = |fills: &[Fill]| -> Result<()> {
        tools::write(&shale.connect("web")?.uri, fills)?;
        shale.disconnect("web")
    };
    write(&[Fill { byte: 1, at: 0, len: MIB }, Fill { byte: 2, at: 2 * GIB - 512, len: 512 }])?;
    shale.snapshot("small", "web")?;
    for (size, at, len) in [("3G", 3 * GIB - MIB, MIB), ("2041G", 2040 * GIB - MIB, 2 * MIB)] {
        shale.cli(&["volume", "resize", "web", "--size", size])?;
        write(&[Fill { byte: 3, at: 2 * GIB - MIB, len: 2 * MIB - 512 }])?;
        shale.snapshot(size, "web")?;
        write(&[Fill { byte: 4, at, len }])?;
    }
    for point in [None, Some("small"), Some("3G"), Some("2041G")] {
        agree(&shale, &store, "web", point)?;
    }
    Ok(())
}

/// A change of a layer's file, and whether the disk can still be read afterwards.
struct Harm {
    what: &'static str,
    readable: bool,
    edit: fn(&File) -> Result<()>,
}

fn copy_of(file: &File) -> Result<Footer> {
    let mut bytes = [0; Footer::LEN];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(Footer::decode(&bytes)?)
}

fn edit_copy(file: &File, edit: impl FnOnce(&mut Footer)) -> Result<()> {
    let mut footer = copy_of(file)?;
    edit(&mut footer);
    Ok(file.write_all_at(&footer.encode(), 0)?)
}

fn header_of(file: &File) -> Result<DynamicHeader> {
    let mut bytes = [0; DynamicHeader::LEN];
    file.read_exact_at(&mut bytes, SECTOR)?;
    Ok(DynamicHeader::decode(&bytes)?)
}

fn edit_header(file: &File, edit: impl FnOnce(&mut DynamicHeader)) -> Result<()> {
    let mut header = header_of(file)?;
    edit(&mut header);
    Ok(file.write_all_at(&header.encode(), SECTOR)?)
}

/// The first block's entry, which is in use in every layer of the test.
fn edit_entry(file: &File, edit: impl FnOnce(u64) -> u64) -> Result<()> {
    let at = header_of(file)?.table_offset;
    let mut entry = [0; 4];
    file.read_exact_at(&mut entry, at)?;
    let entry = bat::decode_entry(entry).context("the first block is not there")?;
    Ok(file.write_all_at(&bat::encode_entry(Some(Sector(edit(entry.0)))), at)?)
}

fn tear(file: &File, at: u64) -> Result<()> {
    Ok(file.write_all_at(&[0xa5; 16], at)?)
}

const HARMS: &[Harm] = &[
    Harm { what: "nothing", readable: true, edit: |_| Ok(()) },
    Harm { what: "the copy is torn", readable: true, edit: |file| tear(file, 100) },
    Harm { what: "the header is torn", readable: false, edit: |file| tear(file, 600) },
    Harm {
        what: "copy and tail are torn",
        readable: false,
        edit: |file| tear(file, 100).and(tear(file, file.metadata()?.len() - 100)),
    },
    Harm {
        what: "the tail is gone",
        readable: true,
        edit: |file| Ok(file.set_len(file.metadata()?.len() - SECTOR)?),
    },
    Harm {
        what: "the copy is torn, and the file ends within a sector",
        readable: false,
        edit: |file| tear(file, 100).and(Ok(file.set_len(file.metadata()?.len() - 1)?)),
    },
    Harm {
        what: "the tail is another disk's",
        readable: true,
        edit: |file| {
            let mut footer = copy_of(file)?;
            footer.uuid = image::Uuid::from_u128(9);
            Ok(file.write_all_at(&footer.encode(), file.metadata()?.len() - SECTOR)?)
        },
    },
    Harm {
        what: "another creator",
        readable: false,
        edit: |file| edit_copy(file, |footer| footer.creator = *b"win "),
    },
    Harm {
        what: "another disk",
        readable: false,
        edit: |file| edit_copy(file, |footer| footer.uuid = image::Uuid::from_u128(9)),
    },
    Harm {
        what: "a size with a rest",
        readable: false,
        edit: |file| edit_copy(file, |footer| footer.current_size += 1),
    },
    Harm {
        what: "a disk of more blocks",
        readable: false,
        edit: |file| edit_copy(file, |footer| footer.current_size += 2 * MIB),
    },
    Harm {
        what: "another header",
        readable: false,
        edit: |file| edit_copy(file, |footer| footer.data_offset = 1536),
    },
    Harm {
        what: "another block size",
        readable: false,
        edit: |file| edit_header(file, |header| header.block_size = 1 << 20),
    },
    Harm {
        what: "the table is not on a page",
        readable: false,
        edit: |file| edit_header(file, |header| header.table_offset += SECTOR),
    },
    Harm {
        what: "the table is outside the file",
        readable: false,
        edit: |file| edit_header(file, |header| header.table_offset = 1 << 40),
    },
    Harm {
        what: "the table is in the headers",
        readable: false,
        edit: |file| edit_header(file, |header| header.table_offset = 0),
    },
    Harm {
        what: "a locator is elsewhere",
        readable: false,
        edit: |file| {
            let at = header_of(file)?.table_offset;
            edit_header(file, |header| {
                header.locators[0].data_offset = at;
                header.locators[0].platform = image::Platform::RelativePath;
            })
        },
    },
    Harm {
        what: "another parent",
        readable: false,
        edit: |file| edit_header(file, |header| header.parent_uuid = image::Uuid::from_u128(9)),
    },
    Harm {
        what: "a block past the end",
        readable: false,
        edit: |file| edit_entry(file, |entry| entry + (1 << 24)),
    },
    Harm { what: "a block in the headers", readable: false, edit: |file| edit_entry(file, |_| 7) },
    Harm {
        what: "a block in the table",
        readable: false,
        edit: |file| {
            let table = header_of(file)?.table_offset / SECTOR;
            edit_entry(file, |_| table + 7)
        },
    },
];

#[test]
fn it_refuses_what_shale_refuses() -> Result<()> {
    let shale = Shale::start()?;
    let store = shale.datastore("fast")?;
    shale.volume("web", "fast", &(5 * MIB + 512).to_string())?;
    let write = |byte, at| -> Result<()> {
        tools::write(&shale.connect("web")?.uri, &[Fill { byte, at, len: 8192 }])?;
        shale.disconnect("web")
    };
    write(1, 4096)?;
    shale.snapshot("base", "web")?;
    write(2, 8192)?;
    let out = shale.home().join("theirs.raw");
    let layers = second_reader::volume(&store, "web", &out)?.layers;
    ensure!(layers.len() == 2, "{layers:?}");
    for layer in &layers {
        let path = store.join("layer").join(layer);
        let good = std::fs::read(&path)?;
        for harm in HARMS {
            let what = format!("{} of {layer}", harm.what);
            (harm.edit)(&File::options().read(true).write(true).open(&path)?)
                .with_context(|| what.clone())?;
            let seen = second_reader::volume(&store, "web", &out)?;
            ensure!(seen.refused.is_none() == harm.readable, "{what}: {seen:?}");
            if harm.readable {
                agree(&shale, &store, "web", None).with_context(|| what.clone())?;
            } else {
                let to = shale.home().join("ours.raw");
                let to = to.to_str().context("a path in UTF-8")?;
                let words = ["volume", "export", "web", "--format", "raw", "--force", "--to", to];
                let said = shale.try_cli(&words)?;
                ensure!(said.code != 0, "{what}: Shale reads it, the second reader: {seen:?}");
            }
            std::fs::write(&path, &good)?;
        }
    }
    // damage that does not keep the disk from being read is told by both
    let base = store.join("layer").join(&layers[1]);
    let file = File::options().read(true).write(true).open(&base)?;
    let entry = {
        let mut entry = [0; 4];
        file.read_exact_at(&mut entry, header_of(&file)?.table_offset)?;
        bat::decode_entry(entry).context("the first block")?
    };
    file.write_all_at(&[0xfe], entry.bytes() + 511)?;
    let seen = second_reader::volume(&store, "web", &out)?;
    ensure!(seen.refused.is_none() && seen.damage.len() == 1, "{seen:?}");
    let check = shale.try_cli(&["datastore", "check", "fast", "-o", "json"])?;
    ensure!(check.out.contains("not all ones"), "{} {}", check.out, check.err);
    Ok(())
}
