//! The VHD format: footers, headers, tables, bitmaps, locators, and whole files under each kind of trust.

use image::check::{CheckStep, Checker};
use image::{
    Bitmap, Content, DynamicHeader, Footer, LayerImage, LayerReader, Locator, Mapped, Opener,
    ParentRef, Platform, Sector, SectorCount, Sniffed, Step, Timestamp, Trust, Uuid, WideName,
    create,
};

use crate::input::Input;

/// A footer that decodes is written back so that it decodes to the same.
pub fn footer(bytes: &[u8]) {
    let mut bytes: [u8; 512] = Input(bytes).array();
    if let Ok(footer) = Footer::decode(&bytes) {
        assert_eq!(Footer::decode(&footer.encode()), Ok(footer));
    }
    bytes[..8].copy_from_slice(b"conectix");
    put_sum(&mut bytes, 0, 512, 64);
    if let Ok(footer) = Footer::decode(&bytes) {
        assert!(footer.size() <= image::MAX_SECTORS);
        assert_eq!(Footer::decode(&footer.encode()), Ok(footer));
    }
}

/// A dynamic header that decodes is written back so that it decodes to the same.
pub fn header(bytes: &[u8]) {
    let mut bytes: [u8; 1024] = Input(bytes).array();
    bytes[..8].copy_from_slice(b"cxsparse");
    put_sum(&mut bytes, 0, 1024, 36);
    if let Ok(header) = DynamicHeader::decode(&bytes) {
        assert!(header.block_size.is_power_of_two() && header.block_sectors() >= 1);
        assert_eq!(DynamicHeader::decode(&header.encode()), Ok(header));
    }
}

/// BAT entries: each is read as it is written, and blocks are judged without a panic.
pub fn bat(bytes: &[u8]) {
    let mut input = Input(bytes);
    let (size, file_len, bytes) = (input.u32(), input.u64(), input.0);
    let size = SectorCount(u64::from(size.max(1)).min(image::MAX_SECTORS.0));
    let new = create::dynamic(Uuid::nil(), size, Timestamp(0)).expect("a size within the limits");
    for (entry, raw) in image::bat::decode(bytes).zip(bytes.chunks_exact(4)) {
        assert_eq!(image::bat::encode_entry(entry), raw);
        let Some(entry) = entry else { continue };
        if new.image.block_fits(entry, file_len) {
            let data = new.image.data_at(entry);
            assert!(data.plus(u64::from(new.image.block_sectors)).bytes() <= file_len);
            assert!(entry >= Sector(8));
        }
    }
}

/// Bitmaps: runs tell every bit, and changes change what they say.
pub fn bitmap(bytes: &[u8]) {
    let mut input = Input(bytes);
    let mut bitmap = Bitmap::from_bytes(&input.array::<512>());
    let mut flags: Vec<bool> = (0..4096).map(|sector| bitmap.get(sector)).collect();
    while !input.is_empty() {
        let (from, len, set) = (input.u16(), input.u16(), input.u8() % 2 == 1);
        let from = u32::from(from) % 4096;
        let len = u32::from(len).min(4096 - from);
        if set {
            bitmap.set_range(from, len);
        } else {
            bitmap.clear_range(from, len);
        }
        flags[from as usize..(from + len) as usize].fill(set);
    }
    let mut told = Vec::new();
    for (from, len, set) in bitmap.runs() {
        assert_eq!(from as usize, told.len());
        told.extend(std::iter::repeat_n(set, len as usize));
    }
    assert_eq!(told, flags);
    assert_eq!(bitmap.is_full(), flags.iter().all(|flag| *flag));
    assert_eq!(bitmap.is_empty(), !flags.iter().any(|flag| *flag));
}

/// Parent locators: paths of any bytes are shown, and those of our own files come back as they were.
pub fn locators(bytes: &[u8]) {
    let mut input = Input(bytes);
    let units = input.u8();
    let name = (0..units).map(|_| input.u16()).filter(|unit| *unit != 0).collect();
    let mut locators = Vec::new();
    while !input.is_empty() && locators.len() < 16 {
        let (platform, len) = (input.u8(), input.u16());
        let platform = match platform % 4 {
            0 => Platform::RelativePath,
            1 => Platform::AbsolutePath,
            2 => Platform::FileUrl,
            _ => Platform::Other(*b"Wi2k"),
        };
        let locator = Locator { platform, data: input.up_to(len.into()).to_vec() };
        let _shown = locator.path();
        locators.push(locator);
    }
    let parent = ParentRef { uuid: Uuid::from_u128(5), name: WideName(name), locators };
    let new = create::differencing(Uuid::nil(), SectorCount(8192), Timestamp(0), &parent);
    let Ok(new) = new else {
        let long = |locator: &Locator| locator.data.len() > 4096;
        assert!(parent.locators.len() > 8 || parent.locators.iter().any(long));
        return;
    };
    let mut file = vec![0; usize::try_from(new.len).expect("a short file")];
    for (at, bytes) in &new.pieces {
        let at = usize::try_from(at.bytes()).expect("a short file");
        file[at..][..bytes.len()].copy_from_slice(bytes);
    }
    assert_eq!(open(&file, Trust::Own), Some(new.image));
}

/// What a file is taken for: a file that opens as a VHD by its end is told as one, or as ambiguous.
pub fn sniff(bytes: &[u8]) {
    let mut input = Input(bytes);
    let len = input.u16();
    let (head, tail) = (input.up_to(len.into()), input.0);
    let told = image::sniff(head, tail);
    if tail.first_chunk().is_some_and(|tail| Footer::decode(tail).is_ok()) {
        assert!(matches!(told, Sniffed::Vhd { .. } | Sniffed::Ambiguous), "{told:?}");
    }
}

/// Any file, under each kind of trust: opened, checked and mapped without an access outside the file
/// or an extent that is empty or outside the disk.
pub fn opener(bytes: &[u8]) {
    let mut file = bytes.to_vec();
    put_sum(&mut file, 0, 512, 64);
    put_sum(&mut file, 512, 1024, 36);
    for trust in [Trust::Own, Trust::OwnFixed, Trust::Foreign] {
        if let Some(image) = open(&file, trust) {
            map(&file, image);
        }
        check(&file, trust);
    }
}

fn read(file: &[u8], at: u64, len: u64) -> &[u8] {
    let end = at.checked_add(len).expect("a range within 64 bits");
    assert!(end <= file.len() as u64, "{len} bytes at {at} of {}", file.len());
    let place = |at| usize::try_from(at).expect("within the file");
    &file[place(at)..place(end)]
}

fn open(file: &[u8], trust: Trust) -> Option<LayerImage> {
    let mut opener = Opener::new(file.len() as u64, trust);
    loop {
        match opener.step().ok()? {
            Step::Read { at, len } => {
                opener.supply(read(file, at, len)).expect("all that was asked");
            }
            Step::Done(image) => return Some(image),
        }
    }
}

/// What the checker finds in a file.
pub(crate) fn check(file: &[u8], trust: Trust) -> Vec<image::check::Finding> {
    let mut checker = Checker::new(file.len() as u64, trust);
    loop {
        match checker.step() {
            CheckStep::Read { at, len } => {
                checker.supply(read(file, at, len)).expect("all that was asked");
            }
            CheckStep::Done(report) => {
                assert!(report.findings.len() <= 1000);
                return report.findings;
            }
        }
    }
}

fn map(file: &[u8], image: LayerImage) {
    let size = image.size;
    let mut reader = LayerReader::new(image, file.len() as u64);
    let mut at = Sector(0);
    // a disk is larger than its file by as much as it likes: its first extents are enough
    for _ in 0..1000 {
        if at.0 >= size.0 {
            return;
        }
        let left = SectorCount(size.0 - at.0);
        match reader.map(at, left) {
            Ok(Mapped::Read { at, len, .. }) => {
                reader.supply(read(file, at, len)).expect("all that was asked");
            }
            Ok(Mapped::Extent { len, content }) => {
                assert!(len.0 > 0 && len <= left);
                if let Content::Data { at, .. } = content {
                    read(file, at.bytes(), len.bytes());
                }
                at = at.plus(len.0);
            }
            Err(_) => at = at.plus(1),
        }
    }
}

fn put_sum(file: &mut [u8], at: usize, len: usize, field: usize) {
    let Some(structure) = file.get_mut(at..at + len) else { return };
    structure[field..field + 4].fill(0);
    let sum = structure.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    structure[field..field + 4].copy_from_slice(&(!sum).to_be_bytes());
}
