//! Any file, under each kind of trust: opened, checked and mapped without a panic, an access outside
//! the file or an extent that is empty or outside the disk. Wrong checksums are put right first, so
//! that the fuzzer gets past them.
#![no_main]

use image::check::{CheckStep, Checker};
use image::{Content, LayerImage, LayerReader, Mapped, Opener, Sector, SectorCount, Step, Trust};
use libfuzzer_sys::fuzz_target;

fn read(file: &[u8], at: u64, len: u64) -> &[u8] {
    let end = at.checked_add(len).expect("a range within 64 bits");
    assert!(end <= file.len() as u64, "{len} bytes at {at} of {}", file.len());
    &file[at as usize..end as usize]
}

fn open(file: &[u8], trust: Trust) -> Option<LayerImage> {
    let mut opener = Opener::new(file.len() as u64, trust);
    loop {
        match opener.step().ok()? {
            Step::Read { at, len } => opener.supply(read(file, at, len)).expect("all that was asked"),
            Step::Done(image) => return Some(image),
        }
    }
}

fn check(file: &[u8], trust: Trust) {
    let mut checker = Checker::new(file.len() as u64, trust);
    loop {
        match checker.step() {
            CheckStep::Read { at, len } => {
                checker.supply(read(file, at, len)).expect("all that was asked");
            }
            CheckStep::Done(report) => {
                assert!(report.findings.len() <= 1000);
                return;
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

fuzz_target!(|bytes: &[u8]| {
    let mut file = bytes.to_vec();
    put_sum(&mut file, 0, 512, 64);
    put_sum(&mut file, 512, 1024, 36);
    for trust in [Trust::Own, Trust::OwnFixed, Trust::Foreign] {
        if let Some(image) = open(&file, trust) {
            map(&file, image);
        }
        check(&file, trust);
    }
});
