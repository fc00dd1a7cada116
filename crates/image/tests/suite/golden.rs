//! Images that qemu-img and qemu-io made: read as QEMU reads them, and with every byte of their
//! metadata flipped.

use image::{Kind, Trust};

use crate::support::{Disk, File, check, open, read_disk};

struct Golden {
    name: &'static str,
    text: &'static str,
    kind: Kind,
    /// Size of the disk in bytes, as `qemu-img info` tells it.
    size: u64,
    /// Offset, length and byte of what was written.
    writes: &'static [(u64, u64, u8)],
}

const IMAGES: &[Golden] = &[
    Golden {
        name: "dynamic, 34 KiB",
        text: include_str!("fixtures/qemu-dynamic-tiny.txt"),
        kind: Kind::Dynamic,
        size: 34_816,
        writes: &[(0, 512, 0x11), (34_304, 512, 0x22)],
    },
    Golden {
        name: "dynamic, empty",
        text: include_str!("fixtures/qemu-dynamic-empty.txt"),
        kind: Kind::Dynamic,
        size: 10_514_432,
        writes: &[],
    },
    Golden {
        name: "dynamic, size by geometry",
        text: include_str!("fixtures/qemu-dynamic.txt"),
        kind: Kind::Dynamic,
        size: 10_514_432,
        writes: &[(4096, 1024, 0x31), (2_096_640, 1024, 0x32), (10_510_336, 4096, 0x33)],
    },
    Golden {
        name: "dynamic, exact size",
        text: include_str!("fixtures/qemu-dynamic-forced.txt"),
        kind: Kind::Dynamic,
        size: 3 << 20,
        writes: &[(3_145_216, 512, 0x41)],
    },
    Golden {
        name: "dynamic, 5 GiB",
        text: include_str!("fixtures/qemu-dynamic-5g.txt"),
        kind: Kind::Dynamic,
        size: 5 << 30,
        writes: &[(0, 512, 0x51), ((5 << 30) - 65_536, 512, 0x52)],
    },
    Golden {
        name: "fixed, 34 KiB",
        text: include_str!("fixtures/qemu-fixed-tiny.txt"),
        kind: Kind::Fixed,
        size: 34_816,
        writes: &[(512, 512, 0x61)],
    },
    Golden {
        name: "fixed, exact size",
        text: include_str!("fixtures/qemu-fixed-forced.txt"),
        kind: Kind::Fixed,
        size: 1 << 20,
        writes: &[(1_048_064, 512, 0x71)],
    },
];

impl Golden {
    fn content(&self) -> Disk {
        let mut disk = Disk::new();
        for (offset, len, byte) in self.writes {
            for sector in offset / 512..(offset + len) / 512 {
                disk.insert(sector, [*byte; 512]);
            }
        }
        disk
    }
}

#[test]
fn what_qemu_wrote_is_read() {
    for golden in IMAGES {
        let file = File::parse(golden.text);
        let image = open(&file, Trust::Foreign).unwrap();
        assert_eq!(image.kind, golden.kind, "{}", golden.name);
        assert_eq!(image.size.bytes(), golden.size, "{}", golden.name);
        assert_eq!(image.repairs, [], "{}", golden.name);
        assert_eq!(read_disk(&file, Trust::Foreign).unwrap(), golden.content(), "{}", golden.name);
        let report = check(&file, Trust::Foreign);
        assert_eq!((report.findings, report.more), (vec![], 0), "{}", golden.name);
    }
}

#[test]
fn what_qemu_wrote_is_not_taken_for_ours() {
    for golden in IMAGES {
        let file = File::parse(golden.text);
        assert!(open(&file, Trust::Own).is_err(), "{}", golden.name);
        assert!(open(&file, Trust::OwnFixed).is_err(), "{}", golden.name);
    }
}

/// Flips every byte of the metadata, all its bits and one of them. Checksummed structures must give
/// an error or the right content; in the others anything goes but a panic or an access outside the
/// file, which the support code turns into a panic.
#[test]
fn every_flipped_byte_is_survived() {
    for golden in IMAGES {
        let clean = File::parse(golden.text);
        let content = golden.content();
        let image = open(&clean, Trust::Foreign).unwrap();
        // (sector, whether a checksum covers it)
        let mut metadata = vec![(clean.len / 512 - 1, true)];
        if golden.kind == Kind::Dynamic {
            metadata.extend([(0, true), (1, true), (2, true)]);
            let bat_sectors = image.bat_bytes() / 512;
            metadata.extend((image.bat_at.0..image.bat_at.0 + bat_sectors).map(|at| (at, false)));
            let bat = clean.read(image.bat_at.bytes(), image.bat_bytes());
            metadata.extend(image::bat::decode(&bat).flatten().map(|bitmap| (bitmap.0, false)));
        }
        for (sector, checksummed) in metadata {
            for at in sector * 512..sector * 512 + 512 {
                for mask in [0xff, 1 << (at % 8)] {
                    let mut file = clean.clone();
                    file.flip(at, mask);
                    let read = read_disk(&file, Trust::Foreign);
                    check(&file, Trust::Foreign);
                    if checksummed && let Ok(read) = read {
                        assert!(read == content, "{}: byte {at} flipped by {mask:#x}", golden.name);
                    }
                }
            }
        }
    }
}

/// A file that ends early, anywhere: an error or what is there, never an access outside.
#[test]
fn every_truncation_is_survived() {
    for golden in IMAGES {
        let clean = File::parse(golden.text);
        let ends = (0..6144).chain(clean.len.saturating_sub(1600)..clean.len);
        for len in ends.filter(|len| *len < clean.len) {
            let mut file = clean.clone();
            file.len = len;
            file.sectors.retain(|sector, _| sector * 512 < len);
            // bytes of the last sector past the end are gone too
            if let Some(last) = file.sectors.get_mut(&(len / 512)) {
                last[(len % 512) as usize..].fill(0);
            }
            drop(read_disk(&file, Trust::Foreign));
            check(&file, Trust::Foreign);
        }
    }
}

/// The footer at the end is lost, as after a crash: the copy at the start serves.
#[test]
fn a_missing_tail_is_a_file_that_was_not_closed() {
    for golden in IMAGES.iter().filter(|golden| golden.kind == Kind::Dynamic) {
        let mut file = File::parse(golden.text);
        file.len -= 512;
        file.sectors.remove(&(file.len / 512));
        let image = open(&file, Trust::Foreign).unwrap();
        assert_eq!(image.repairs, [image::Repair::TailFooterMissing], "{}", golden.name);
        assert_eq!(read_disk(&file, Trust::Foreign).unwrap(), golden.content(), "{}", golden.name);
    }
}
