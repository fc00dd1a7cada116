//! Hand-made files with what each tool in the wild does differently.

use image::{
    Content, DynamicHeader, Footer, FormatError, Geometry, Kind, LayerReader, Locator,
    LocatorEntry, Mapped, Platform, Repair, Sector, SectorCount, Timestamp, Trust, Uuid, WideName,
};

use crate::support::{File, open, read_disk};

const ID: Uuid = Uuid::from_u128(0xfeed);

/// A file as some other tool would lay it out.
struct Foreign {
    footer: Footer,
    header: DynamicHeader,
    /// Byte offset of each block that is there, by block, with its bitmap and data.
    blocks: Vec<(u32, u64, Vec<u8>, Vec<u8>)>,
    /// Other bytes at their places.
    extra: Vec<(u64, Vec<u8>)>,
    tail: Tail,
}

#[derive(PartialEq)]
enum Tail {
    Full,
    Short,
    None,
}

impl Foreign {
    fn new(creator: [u8; 4], kind: Kind, size: u64, block_size: u32) -> Self {
        let mut footer = Footer::new(ID, kind, SectorCount(size / 512), Timestamp(1));
        footer.creator = creator;
        footer.current_size = size;
        Self {
            footer,
            header: DynamicHeader {
                next: u64::MAX,
                table_offset: 1536,
                entries: u32::try_from(size.div_ceil(u64::from(block_size))).unwrap(),
                block_size,
                parent_uuid: Uuid::nil(),
                parent_time: Timestamp(0),
                parent_name: WideName::default(),
                locators: [LocatorEntry::UNUSED; 8],
            },
            blocks: Vec::new(),
            extra: Vec::new(),
            tail: Tail::Full,
        }
    }

    fn file(&self) -> File {
        let footer = self.footer.encode();
        let mut file = File::of(&footer);
        file.write(self.footer.data_offset, &self.header.encode());
        let mut bat = vec![0xff; (self.header.entries as usize * 4).next_multiple_of(512)];
        for (block, at, _, _) in &self.blocks {
            let entry = u32::try_from(at / 512).unwrap().to_be_bytes();
            bat[*block as usize * 4..][..4].copy_from_slice(&entry);
        }
        file.write(self.header.table_offset, &bat);
        for (_, at, bitmap, data) in &self.blocks {
            file.write(*at, bitmap);
            file.write(at + bitmap.len() as u64, data);
            let end = at + bitmap.len() as u64 + u64::from(self.header.block_size);
            file.len = file.len.max(end);
        }
        for (at, bytes) in &self.extra {
            file.write(*at, bytes);
        }
        file.len = file.len.next_multiple_of(512);
        match self.tail {
            Tail::Full => file.write(file.len, &footer),
            Tail::Short => file.write(file.len, &footer[..511]),
            Tail::None => {}
        }
        file
    }
}

fn dynamic(creator: &[u8; 4]) -> Foreign {
    Foreign::new(*creator, Kind::Dynamic, 4 << 20, 2 << 20)
}

/// Which creators mean the geometry, and which the exact size.
#[test]
fn the_size_depends_on_the_creator() {
    let by_geometry = Geometry { cylinders: 100, heads: 4, sectors: 17 };
    let exact = SectorCount(8192);
    for (creator, geometry, size) in [
        (b"vpc ", by_geometry, SectorCount(6800)),
        (b"qemu", by_geometry, SectorCount(6800)),
        (b"vpc ", Geometry::MAX, exact),
        (b"qemu", Geometry::MAX, exact),
        (b"qem2", by_geometry, exact),
        (b"win ", by_geometry, exact),
        (b"tap\0", by_geometry, exact),
        (b"vbox", by_geometry, exact),
        (b"d2v ", by_geometry, exact),
        (b"shal", by_geometry, exact),
        (b"????", by_geometry, exact),
    ] {
        let mut foreign = dynamic(creator);
        foreign.footer.geometry = geometry;
        let image = open(&foreign.file(), Trust::Foreign).unwrap();
        assert_eq!(image.size, size, "{} {geometry:?}", creator.escape_ascii());
        assert_eq!(image.creator, *creator);
    }
}

#[test]
fn footers_are_found_wherever_tools_put_them() {
    let mut short = dynamic(b"vpc ");
    short.tail = Tail::Short;
    let image = open(&short.file(), Trust::Foreign).unwrap();
    assert_eq!(image.repairs, [Repair::TailFooterShort]);

    let mut open_file = dynamic(b"win ");
    open_file.tail = Tail::None;
    let image = open(&open_file.file(), Trust::Foreign).unwrap();
    assert_eq!(image.repairs, [Repair::TailFooterMissing]);

    let mut file = dynamic(b"win ").file();
    file.flip(100, 0xff);
    let image = open(&file, Trust::Foreign).unwrap();
    assert_eq!(image.repairs, [Repair::FooterCopyDamaged]);

    let mut renamed = dynamic(b"win ");
    renamed.footer.uuid = Uuid::from_u128(1);
    let mut file = dynamic(b"win ").file();
    file.write(0, &renamed.footer.encode());
    let image = open(&file, Trust::Foreign).unwrap();
    assert_eq!((image.uuid, image.repairs), (ID, vec![Repair::FooterCopyDiffers]));
}

#[test]
fn a_fixed_disk_of_an_old_tool_ends_in_511_bytes() {
    let mut footer = Footer::new(ID, Kind::Fixed, SectorCount(4), Timestamp(1));
    footer.creator = *b"vpc ";
    footer.geometry = Geometry::MAX;
    let mut file = File::of(&[0x5a; 2048]);
    file.write(2048, &footer.encode()[..511]);
    assert_eq!(file.len % 512, 511);
    let image = open(&file, Trust::Foreign).unwrap();
    assert_eq!((image.kind, image.size), (Kind::Fixed, SectorCount(4)));
    assert_eq!(image.repairs, [Repair::TailFooterShort]);
    assert_eq!(read_disk(&file, Trust::Foreign).unwrap().len(), 4);
}

/// A footer of a *fixed* disk at the start of a file is what a guest wrote there, nothing else.
#[test]
fn a_fixed_footer_at_the_start_is_not_believed() {
    let footer = Footer::new(ID, Kind::Fixed, SectorCount(4), Timestamp(1));
    let mut file = File::of(&footer.encode());
    file.len = 8192;
    assert_eq!(open(&file, Trust::Foreign), Err(FormatError::NotVhd { file_len: 8192 }));
}

#[test]
fn block_sizes_from_a_sector_to_gibibytes() {
    for power in [9, 10, 12, 16, 19, 20, 21, 22, 25, 30] {
        let block = 1u64 << power;
        let size = (block * 2).max(4096) + 512;
        let mut foreign = Foreign::new(*b"win ", Kind::Dynamic, size, 1 << power);
        let at = 1 << 16;
        let sectors = block / 512;
        let bitmap_len = sectors.div_ceil(8).next_multiple_of(512) as usize;
        let mut bitmap = vec![0; bitmap_len];
        bitmap[0] = 0x80;
        let last = sectors as usize - 1;
        bitmap[last / 8] |= 0x80 >> (last % 8);
        foreign.blocks.push((1, at, bitmap, vec![7; 512]));
        let mut file = foreign.file();
        let last_at = at + bitmap_len as u64 + block - 512;
        file.write(last_at, &[9; 512]);
        let disk = read_disk(&file, Trust::Foreign).unwrap();
        let expected = if sectors == 1 {
            vec![(1, [9; 512])]
        } else {
            vec![(sectors, [7; 512]), (2 * sectors - 1, [9; 512])]
        };
        assert_eq!(disk.into_iter().collect::<Vec<_>>(), expected, "blocks of {block} bytes");
    }
    for bad in [0, 256, 511, 3 << 20] {
        let mut foreign = dynamic(b"win ");
        foreign.header.block_size = bad;
        foreign.header.entries = 4096;
        assert!(open(&foreign.file(), Trust::Foreign).is_err(), "blocks of {bad} bytes");
    }
}

#[test]
fn headers_unused_next_field_may_follow_the_misprint() {
    for next in [u64::MAX, u64::from(u32::MAX), 0] {
        let mut foreign = dynamic(b"win ");
        foreign.header.next = next;
        assert!(open(&foreign.file(), Trust::Foreign).is_ok(), "{next:#x}");
    }
}

#[test]
fn the_header_may_stand_elsewhere_but_in_the_file() {
    let mut foreign = dynamic(b"win ");
    foreign.footer.data_offset = 8192;
    assert!(open(&foreign.file(), Trust::Foreign).is_ok());
    for outside in [1 << 40, u64::MAX - 511, u64::MAX] {
        let mut file = foreign.file();
        let mut footer = foreign.footer.clone();
        footer.data_offset = outside;
        file.write(0, &footer.encode());
        file.write(file.len - 512, &footer.encode());
        let error = open(&file, Trust::Foreign).unwrap_err();
        assert!(matches!(error, FormatError::OutsideFile { .. }), "{error}");
    }
}

/// All eight places count, `data_space` may be bytes or sectors, names may be no valid Unicode.
#[test]
fn parent_locators_of_every_kind() {
    let mut foreign = Foreign::new(*b"vbox", Kind::Differencing, 4 << 20, 2 << 20);
    foreign.header.parent_uuid = Uuid::from_u128(0xbeef);
    foreign.header.parent_name = WideName(vec![0x0041, 0xd800, 0x0042]);
    let texts: [(Platform, &[u8], u32); 4] = [
        (Platform::RelativePath, b".\0\\\0a\0", 512),
        // an unpaired surrogate; its space is told in sectors
        (Platform::AbsolutePath, b"C\0\x00\xd8\\\0", 1),
        (Platform::FileUrl, b"file:///Users/x/a.vhd", 1),
        (Platform::Other(*b"Wi2k"), b"old", 512),
    ];
    for (slot, (platform, data, data_space)) in [0, 3, 6, 7].into_iter().zip(texts) {
        let at = 4096 + slot * 512;
        foreign.header.locators[slot] = LocatorEntry {
            platform,
            data_space,
            data_len: u32::try_from(data.len()).unwrap(),
            data_offset: at as u64,
        };
        foreign.extra.push((at as u64, data.to_vec()));
    }
    // one that points nowhere does not keep the disk from being opened
    foreign.header.locators[5] = LocatorEntry {
        platform: Platform::RelativePath,
        data_space: 512,
        data_len: 10,
        data_offset: u64::MAX - 3,
    };
    let image = open(&foreign.file(), Trust::Foreign).unwrap();
    assert_eq!(image.repairs, [Repair::LocatorUnreadable { slot: 5 }]);
    // the last locator's whole sector counts
    assert_eq!(image.first_free, Sector(16));
    let parent = image.parent.unwrap();
    assert_eq!(parent.uuid, Uuid::from_u128(0xbeef));
    assert_eq!(parent.name.0, [0x0041, 0xd800, 0x0042]);
    assert_eq!(parent.name.to_string(), "A\u{fffd}B");
    let paths: Vec<_> = parent.locators.iter().map(Locator::path).collect();
    assert_eq!(
        paths,
        [".\\a", "C:\u{fffd}\\".replace(':', "").as_str(), "file:///Users/x/a.vhd", "old"]
    );
}

#[test]
fn a_nil_parent_is_a_raw_file() {
    let foreign = Foreign::new(*b"tap\0", Kind::Differencing, 4 << 20, 2 << 20);
    let image = open(&foreign.file(), Trust::Foreign).unwrap();
    assert!(image.parent.unwrap().is_raw());
}

/// Xen's block map stands after the BAT; new blocks must not overwrite it.
#[test]
fn free_space_starts_after_the_block_map() {
    let mut foreign = dynamic(b"tap\0");
    foreign.footer.creator_version = 0x0001_0003;
    let mut map = b"tdbatmap".to_vec();
    map.extend(4096u64.to_be_bytes());
    map.extend(3u32.to_be_bytes());
    foreign.extra.push((2048, map));
    foreign.extra.push((4096, vec![0xff; 1536]));
    assert_eq!(open(&foreign.file(), Trust::Foreign).unwrap().first_free, Sector(11));
    foreign.footer.creator_version = 0x0001_0001;
    assert_eq!(open(&foreign.file(), Trust::Foreign).unwrap().first_free, Sector(4));
}

/// In a dynamic disk a clear bit means zeros, whatever the sector holds.
#[test]
fn a_clear_bit_hides_what_stands_on_disk() {
    let mut foreign = dynamic(b"win ");
    let mut bitmap = vec![0; 512];
    bitmap[0] = 0b0100_0000;
    foreign.blocks.push((0, 1 << 16, bitmap, vec![3; 2048]));
    let disk = read_disk(&foreign.file(), Trust::Foreign).unwrap();
    assert_eq!(disk.into_iter().collect::<Vec<_>>(), [(1, [3; 512])]);
}

#[test]
fn a_bat_too_short_for_the_disk_is_refused() {
    let mut foreign = dynamic(b"win ");
    foreign.header.entries = 1;
    let error = open(&foreign.file(), Trust::Foreign).unwrap_err();
    assert!(error.to_string().contains("number of BAT entries is 1"), "{error}");
}

/// A huge BAT is promised by a tiny file: refused before anything of that size is asked for.
#[test]
fn a_bat_larger_than_the_file_is_refused() {
    let mut foreign = dynamic(b"win ");
    let mut file = foreign.file();
    foreign.header.entries = u32::MAX;
    file.write(512, &foreign.header.encode());
    let error = open(&file, Trust::Foreign).unwrap_err();
    assert!(matches!(error, FormatError::OutsideFile { structure: "the BAT", .. }), "{error}");
}

#[test]
fn a_size_that_is_no_multiple_of_a_sector_is_rounded_and_told() {
    let mut foreign = dynamic(b"win ");
    foreign.footer.current_size -= 100;
    let image = open(&foreign.file(), Trust::Foreign).unwrap();
    assert_eq!(image.size, SectorCount(8191));
    assert_eq!(image.repairs, [Repair::SizeRounded { dropped: 412 }]);
}

#[test]
fn blocks_outside_the_file_are_errors_when_they_are_read() {
    for entry in [0u32, 1, 2, 3, 1 << 30, u32::MAX - 1] {
        let mut file = dynamic(b"win ").file();
        file.write(1536, &entry.to_be_bytes());
        let image = open(&file, Trust::Foreign).unwrap();
        let mut reader = LayerReader::new(image, file.len);
        let read = reader.map(Sector(0), SectorCount(1)).unwrap();
        assert_eq!(read, Mapped::Read { layer: (), at: 1536, len: 512 });
        reader.supply(&file.read(1536, 512)).unwrap();
        assert!(reader.map(Sector(0), SectorCount(1)).is_err(), "entry {entry}");
        // the other block is not harmed
        let other = reader.map(Sector(4096), SectorCount(4096)).unwrap();
        assert_eq!(other, Mapped::Extent { len: SectorCount(4096), content: Content::Zero });
    }
}
