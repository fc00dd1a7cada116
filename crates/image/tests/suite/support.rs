//! Files in memory, a reader and a plain writer over the API, and numbers that look random.

use std::collections::BTreeMap;

use image::check::{CheckStep, Checker, Report};
use image::{
    Bitmap, BlockIndex, ChainReader, Content, FormatError, Kind, LayerImage, LayerReader, Mapped,
    NewImage, Opener, Sector, SectorCount, Step, Trust, Uuid, bat, create,
};

pub(crate) type SectorBytes = [u8; 512];
/// The sectors of a disk that are not zero.
pub(crate) type Disk = BTreeMap<u64, SectorBytes>;

/// A sparse file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct File {
    pub(crate) len: u64,
    pub(crate) sectors: Disk,
}

impl File {
    /// From the text form of `fixtures/make.py`.
    pub(crate) fn parse(text: &str) -> Self {
        let mut lines = text.lines();
        let len = lines.next().unwrap().strip_prefix("len ").unwrap().parse().unwrap();
        let mut file = Self { len, sectors: Disk::new() };
        for line in lines {
            let (at, runs) = line.split_once(' ').unwrap();
            let mut bytes = Vec::new();
            for run in runs.split(' ') {
                let (byte, count) = run.split_once('*').unwrap_or((run, "1"));
                let byte = u8::from_str_radix(byte, 16).unwrap();
                bytes.resize(bytes.len() + count.parse::<usize>().unwrap(), byte);
            }
            bytes.resize(512, 0);
            file.sectors.insert(at.parse().unwrap(), bytes.try_into().unwrap());
        }
        file
    }

    pub(crate) fn of(bytes: &[u8]) -> Self {
        let mut file = Self { len: bytes.len() as u64, sectors: Disk::new() };
        file.write(0, bytes);
        file
    }

    /// Reads within the file; a range outside it is the very mistake that tests look for.
    pub(crate) fn read(&self, at: u64, len: u64) -> Vec<u8> {
        assert!(
            at.checked_add(len).is_some_and(|end| end <= self.len),
            "access outside the file: {len} bytes at {at} of {}",
            self.len
        );
        let mut out = vec![0; len as usize];
        let first = at / 512;
        for (sector, bytes) in self.sectors.range(first..(at + len).div_ceil(512)) {
            for (index, byte) in bytes.iter().enumerate() {
                let place = sector * 512 + index as u64;
                if place >= at && place < at + len {
                    out[(place - at) as usize] = *byte;
                }
            }
        }
        out
    }

    pub(crate) fn write(&mut self, at: u64, bytes: &[u8]) {
        for (place, byte) in (at..).zip(bytes) {
            let sector = self.sectors.entry(place / 512).or_insert([0; 512]);
            sector[(place % 512) as usize] = *byte;
        }
        self.len = self.len.max(at + bytes.len() as u64);
        let touched = at / 512..=(at + bytes.len() as u64) / 512;
        let zeros: Vec<_> = self.sectors.range(touched).filter(|(_, b)| **b == [0; 512]).collect();
        for sector in zeros.into_iter().map(|(sector, _)| *sector).collect::<Vec<_>>() {
            self.sectors.remove(&sector);
        }
    }

    pub(crate) fn sector(&self, at: u64) -> SectorBytes {
        self.sectors.get(&at).copied().unwrap_or([0; 512])
    }

    pub(crate) fn flip(&mut self, at: u64, mask: u8) {
        let byte = self.read(at, 1)[0] ^ mask;
        self.write(at, &[byte]);
    }

    pub(crate) fn put(&mut self, pieces: &[(Sector, Vec<u8>)]) {
        for (at, bytes) in pieces {
            self.write(at.bytes(), bytes);
        }
    }
}

pub(crate) fn open(file: &File, trust: Trust) -> Result<LayerImage, FormatError> {
    let mut opener = Opener::new(file.len, trust);
    loop {
        match opener.step()? {
            Step::Read { at, len } => opener.supply(&file.read(at, len))?,
            Step::Done(image) => return Ok(image),
        }
    }
}

pub(crate) fn check(file: &File, trust: Trust) -> Report {
    let mut checker = Checker::new(file.len, trust);
    loop {
        match checker.step() {
            CheckStep::Read { at, len } => checker.supply(&file.read(at, len)).unwrap(),
            CheckStep::Done(report) => return report,
        }
    }
}

/// The content of a chain of files, the leaf first.
pub(crate) fn read_chain(files: &[&File], trust: Trust) -> Result<Disk, FormatError> {
    let layers: Result<Vec<_>, FormatError> =
        files.iter().map(|file| Ok(LayerReader::new(open(file, trust)?, file.len))).collect();
    let mut chain = ChainReader::new(layers?)?;
    let mut disk = Disk::new();
    let mut at = 0;
    while at < chain.size().0 {
        match chain.map(Sector(at), SectorCount(chain.size().0 - at))? {
            Mapped::Read { layer, at, len } => chain.supply(layer, &files[layer].read(at, len))?,
            Mapped::Extent { len, content } => {
                assert!(len.0 > 0, "an empty extent");
                if let Content::Data { layer, at: place } = content {
                    let file = files[layer];
                    assert!(place.bytes() + len.bytes() <= file.len, "data outside the file");
                    for (sector, bytes) in file.sectors.range(place.0..place.0 + len.0) {
                        disk.insert(at + (sector - place.0), *bytes);
                    }
                }
                at += len.0;
            }
        }
    }
    Ok(disk)
}

pub(crate) fn read_disk(file: &File, trust: Trust) -> Result<Disk, FormatError> {
    read_chain(&[file], trust)
}

/// A layer of ours that is written in the plainest way.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    pub(crate) file: File,
    pub(crate) image: LayerImage,
}

impl Layer {
    pub(crate) fn new(new: NewImage) -> Self {
        let mut file = File::default();
        file.put(&new.pieces);
        file.len = new.len;
        Self { file, image: new.image }
    }

    pub(crate) fn base(id: u128, size: u64) -> Self {
        let new = create::dynamic(Uuid::from_u128(id), SectorCount(size), image::Timestamp(7));
        Self::new(new.unwrap())
    }

    pub(crate) fn child(id: u128, size: u64, parent: &Self) -> Self {
        let parent = image::ParentRef::sibling(parent.image.uuid);
        let new = create::differencing(
            Uuid::from_u128(id),
            SectorCount(size),
            image::Timestamp(8),
            &parent,
        );
        Self::new(new.unwrap())
    }

    pub(crate) fn entry(&self, block: BlockIndex) -> Option<Sector> {
        let at = self.image.bat_at.bytes() + bat::offset_of(block);
        bat::decode_entry(self.file.read(at, 4).try_into().unwrap())
    }

    pub(crate) fn write(&mut self, sector: u64, bytes: &SectorBytes) {
        if self.image.kind == Kind::Fixed {
            return self.file.write(sector * 512, bytes);
        }
        let (block, within) = self.image.locate(Sector(sector));
        let entry = self.entry(block).unwrap_or_else(|| self.allocate(block));
        let mut bits = Bitmap::from_bytes(&self.file.sector(entry.0));
        bits.set_range(within, 1);
        self.file.write(entry.bytes(), bits.as_bytes());
        let at = self.image.data_at(entry).plus(u64::from(within));
        self.file.write(at.bytes(), bytes);
    }

    fn allocate(&mut self, block: BlockIndex) -> Sector {
        let start = Sector::at_or_after(self.file.len).page_up();
        let entry = start.plus(7);
        self.file.len = start.plus(image::BLOCK_STRIDE_SECTORS).bytes();
        if self.image.kind == Kind::Dynamic {
            self.file.write(entry.bytes(), Bitmap::full().as_bytes());
        }
        let at = self.image.bat_at.bytes() + bat::offset_of(block);
        self.file.write(at, &bat::encode_entry(Some(entry)));
        entry
    }

    pub(crate) fn close(&mut self) {
        let (at, footer) = create::tail_for(&self.image, Sector::at_or_after(self.file.len));
        self.file.write(at.bytes(), &footer);
    }
}

/// Numbers from a seed: the same in every run.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}
