//! Our own files: made, opened, torn, and read as chains, against a plain list of sectors.

use image::{
    FormatError, Kind, Locator, ParentRef, Platform, Repair, Sector, SectorCount, Timestamp, Trust,
    Uuid, create,
};

use crate::support::{Disk, File, Layer, Random, open, read_chain};

#[test]
fn what_create_makes_is_what_opens() {
    for sectors in [1, 17, 4096, 4097, 4096 * 1024, 4096 * 1024 + 1, 0xff00_0000] {
        let base = Layer::base(1, sectors);
        assert_eq!(open(&base.file, Trust::Own).as_ref(), Ok(&base.image), "{sectors} sectors");
        let child = Layer::child(2, sectors, &base);
        assert_eq!(open(&child.file, Trust::Own).as_ref(), Ok(&child.image), "{sectors} sectors");
        for layer in [base, child] {
            assert!(
                layer.image.first_free.is_page_aligned() && layer.image.bat_at.is_page_aligned()
            );
            let mut closed = layer.clone();
            closed.close();
            assert_eq!(open(&closed.file, Trust::Foreign).unwrap().repairs, []);
            assert_eq!(open(&closed.file, Trust::Own).as_ref(), Ok(&layer.image));
        }
        let fixed = create::fixed(Uuid::from_u128(3), SectorCount(sectors), Timestamp(1)).unwrap();
        let fixed = Layer::new(fixed);
        assert_eq!(open(&fixed.file, Trust::OwnFixed).as_ref(), Ok(&fixed.image));
        assert_eq!(open(&fixed.file, Trust::Foreign).as_ref(), Ok(&fixed.image));
    }
}

#[test]
fn sizes_that_cannot_be_are_refused() {
    for sectors in [0, 0xff00_0001, u64::MAX] {
        let (id, size) = (Uuid::from_u128(1), SectorCount(sectors));
        assert!(create::dynamic(id, size, Timestamp(0)).is_err());
        assert!(create::fixed(id, size, Timestamp(0)).is_err());
    }
}

#[test]
fn locators_that_do_not_fit_are_refused() {
    let (id, size) = (Uuid::from_u128(1), SectorCount(8));
    let mut parent = ParentRef::sibling(Uuid::from_u128(2));
    parent.locators = vec![Locator::wide(Platform::RelativePath, "a"); 9];
    assert!(create::differencing(id, size, Timestamp(0), &parent).is_err());
    parent.locators = vec![Locator::wide(Platform::RelativePath, &"a".repeat(2049))];
    assert!(create::differencing(id, size, Timestamp(0), &parent).is_err());
    parent.locators = vec![Locator::wide(Platform::RelativePath, &"a".repeat(2048)); 8];
    assert!(create::differencing(id, size, Timestamp(0), &parent).is_ok());
}

/// A guest writes what it likes into the last sector of a file that is not closed, and into the first
/// of a fixed one. Neither may change what the file is taken for.
#[test]
fn a_guest_cannot_forge_what_its_disk_is() {
    let mut base = Layer::base(1, 8192);
    base.write(0, &[1; 512]);
    let mut forged =
        image::Footer::new(Uuid::from_u128(9), Kind::Fixed, SectorCount(8), Timestamp(0));
    forged.geometry = image::Geometry::MAX;
    base.write(4095, &forged.encode());
    assert_eq!(base.file.sector(base.file.len / 512 - 1), forged.encode(), "it stands at the end");
    assert_eq!(open(&base.file, Trust::Own), Ok(base.image));

    let new = create::fixed(Uuid::from_u128(3), SectorCount(16_384), Timestamp(1)).unwrap();
    let mut fixed = Layer::new(new);
    let inner = Layer::child(4, 4096, &Layer::base(5, 4096));
    for (sector, bytes) in &inner.file.sectors {
        fixed.write(*sector, bytes);
    }
    assert_eq!(open(&fixed.file, Trust::OwnFixed), Ok(fixed.image));
}

/// Each sector of the first page lost on its own: the copy of the footer comes back from the end, the
/// header is an error, never something else.
#[test]
fn a_torn_first_page_is_recovered_or_refused() {
    let base = Layer::base(1, 8192);
    let mut child = Layer::child(2, 8192, &base);
    child.close();
    for sector in 0..8 {
        let mut file = child.file.clone();
        file.sectors.remove(&sector);
        match (sector, open(&file, Trust::Own)) {
            (0, Ok(image)) => {
                assert_eq!(image.repairs, [Repair::FooterCopyDamaged]);
                file.put(&image::headers_for(&image));
                assert_eq!(file, child.file, "written again, the file is whole");
            }
            (1 | 2, Err(_)) => {}
            (3.., Ok(image)) => assert_eq!(image, child.image),
            (_, other) => panic!("sector {sector}: {other:?}"),
        }
        // what the intent keeps makes the file whole in each case
        file.put(&image::headers_for(&child.image));
        assert_eq!(open(&file, Trust::Own).as_ref(), Ok(&child.image));
    }
}

/// The copy is torn and the last sector is a guest's forgery: what it could change is refused.
#[test]
fn a_torn_copy_is_not_replaced_by_a_forgery() {
    let mut base = Layer::base(1, 8192);
    base.write(0, &[1; 512]);
    base.file.sectors.remove(&0);
    for (kind, size) in
        [(Kind::Fixed, 8192), (Kind::Differencing, 1 << 20), (Kind::Dynamic, 12_289)]
    {
        let forged = image::Footer::new(Uuid::from_u128(1), kind, SectorCount(size), Timestamp(0));
        base.write(4095, &forged.encode());
        assert!(open(&base.file, Trust::Own).is_err(), "{kind:?}");
    }
}

#[test]
fn every_flipped_byte_of_our_headers_is_an_error_or_right() {
    let base = Layer::base(1, 8192);
    let mut child = Layer::child(2, 8192, &base);
    child.close();
    for at in (0..1536).chain(child.file.len - 512..child.file.len) {
        let mut file = child.file.clone();
        file.flip(at, 1 << (at % 8));
        if let Ok(mut image) = open(&file, Trust::Own) {
            image.repairs.clear();
            assert_eq!(image, child.image, "byte {at}");
        }
    }
}

#[test]
fn files_laid_out_otherwise_are_not_ours() {
    let layer = Layer::child(2, 8192, &Layer::base(1, 8192));
    let header = image::DynamicHeader::decode(layer.file.read(512, 1024)[..].try_into().unwrap());
    let header = header.unwrap();
    let change = |change: &dyn Fn(&mut image::DynamicHeader)| {
        let mut header = header.clone();
        change(&mut header);
        let mut file = layer.file.clone();
        file.write(512, &header.encode());
        open(&file, Trust::Own)
    };
    assert!(change(&|_| {}).is_ok());
    assert!(matches!(change(&|h| h.block_size = 512), Err(FormatError::NotOurs { .. })));
    assert!(matches!(change(&|h| h.entries = 3), Err(FormatError::NotOurs { .. })));
    assert!(matches!(change(&|h| h.table_offset = 512), Err(FormatError::NotOurs { .. })));
    assert!(matches!(change(&|h| h.table_offset = 4096), Err(FormatError::NotOurs { .. })));
    assert!(change(&|h| h.table_offset = 1 << 40).is_err());
    assert!(change(&|h| h.table_offset = !4095).is_err());
    assert!(change(&|h| h.locators[0].data_offset = 1 << 20).is_err());
    assert!(change(&|h| h.locators[1].data_offset = 4096).is_err());
    assert!(change(&|h| h.locators[1].data_len = 4097).is_err());
}

/// Growth in place, and growth that moves the BAT.
#[test]
fn a_grown_layer_keeps_its_content() {
    for (from, to, moves) in
        [(4096, 4096 * 1024, false), (4096 * 1024, 4096 * 1024 + 1, true), (1, 4096 * 5000, true)]
    {
        let mut layer = Layer::base(1, from);
        layer.write(0, &[5; 512]);
        let free = Sector::at_or_after(layer.file.len).page_up();
        let grown = create::grow(&layer.image, SectorCount(to), free).unwrap();
        assert_eq!(grown.bat_moved, moves);
        if grown.bat_moved {
            let old = layer.file.read(layer.image.bat_at.bytes(), layer.image.bat_bytes());
            let pages = (grown.image.first_free.0 - grown.image.bat_at.0) * 512;
            layer.file.write(grown.image.bat_at.bytes(), &vec![0xff; pages as usize]);
            layer.file.write(grown.image.bat_at.bytes(), &old);
        }
        layer.file.put(&image::headers_for(&grown.image));
        assert_eq!(open(&layer.file, Trust::Own).as_ref(), Ok(&grown.image));
        layer.image = grown.image;
        layer.write(to - 1, &[6; 512]);
        let disk = read_chain(&[&layer.file], Trust::Own).unwrap();
        let mut expected = Disk::from([(0, [5; 512])]);
        expected.insert(to - 1, [6; 512]);
        assert_eq!(disk, expected);
        let report = crate::support::check(&layer.file, Trust::Own);
        assert_eq!(report.findings, []);
    }
    let layer = Layer::base(1, 4096);
    assert!(create::grow(&layer.image, SectorCount(4095), Sector(1 << 20)).is_err());
}

/// Chains of 1 to 33 layers, of growing size, written at random: read as the plain list says.
#[test]
fn chains_read_as_a_plain_disk_would() {
    for seed in 0..30 {
        let mut random = Random(seed);
        let depth = [1u64, 2, 3, 8, 33][random.below(5) as usize];
        let mut size = 1 + random.below(10_000);
        let mut plain = Disk::new();
        let mut layers: Vec<Layer> = Vec::new();
        for id in 0..depth {
            let mut layer = match layers.last() {
                None => Layer::base(1, size),
                Some(parent) => Layer::child(u128::from(id) + 1, size, parent),
            };
            for _ in 0..random.below(40) {
                let sector = random.below(size);
                // zeros are content too: they hide what is below
                let byte = if random.one_in(4) { 0 } else { random.next() as u8 };
                layer.write(sector, &[byte; 512]);
                if byte == 0 {
                    plain.remove(&sector);
                } else {
                    plain.insert(sector, [byte; 512]);
                }
            }
            layers.push(layer);
            size += if random.one_in(3) { random.below(9000) } else { 0 };
        }
        let files: Vec<&File> = layers.iter().rev().map(|layer| &layer.file).collect();
        for trust in [Trust::Own, Trust::Foreign] {
            assert_eq!(read_chain(&files, trust).unwrap(), plain, "seed {seed}, {trust:?}");
        }
    }
}

#[test]
fn chains_that_do_not_fit_together_are_refused() {
    let base = Layer::base(1, 8192);
    let other = Layer::base(7, 8192);
    let child = Layer::child(2, 8192, &base);
    assert!(read_chain(&[&child.file, &base.file], Trust::Own).is_ok());
    for wrong in [
        vec![&child.file],
        vec![&child.file, &other.file],
        vec![&base.file, &child.file],
        vec![&child.file, &base.file, &other.file],
        vec![],
    ] {
        let error = read_chain(&wrong, Trust::Own).unwrap_err();
        assert!(matches!(error, FormatError::Unsupported(_)), "{error}");
    }
}
