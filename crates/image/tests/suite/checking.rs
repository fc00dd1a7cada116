//! The check of whole files finds what is wrong, and nothing in what is right.

use image::check::Finding;
use image::{Bitmap, BlockIndex, Repair, Sector, Trust, bat};

use crate::support::{Layer, check};

type Damage<'a> = Box<dyn Fn(&mut Layer) + 'a>;

fn three_blocks() -> Layer {
    let mut layer = Layer::base(1, 3 * 4096);
    for block in [2, 0, 1] {
        layer.write(block * 4096, &[1; 512]);
    }
    layer
}

fn set_entry(layer: &mut Layer, block: u32, entry: u64) {
    let at = layer.image.bat_at.bytes() + bat::offset_of(BlockIndex(block));
    layer.file.write(at, &bat::encode_entry(Some(Sector(entry))));
}

#[test]
fn a_clean_file_has_no_findings() {
    let mut layer = three_blocks();
    let report = check(&layer.file, Trust::Own);
    assert_eq!((report.findings, report.allocated), (vec![], 3));
    assert_eq!(report.end.bytes(), layer.file.len);
    layer.close();
    assert_eq!(check(&layer.file, Trust::Foreign).findings, []);
}

#[test]
fn what_is_wrong_is_found() {
    let clean = three_blocks();
    let entry = |block| clean.entry(BlockIndex(block)).unwrap();
    let table: Vec<(&str, Damage<'_>, Vec<Finding>)> = vec![
        (
            "two entries of one block",
            Box::new(|layer| set_entry(layer, 0, entry(1).0)),
            vec![Finding::BlocksOverlap {
                first: BlockIndex(0),
                second: BlockIndex(1),
                at: entry(1),
            }],
        ),
        (
            "past the end",
            Box::new(|layer| set_entry(layer, 1, 1 << 24)),
            vec![Finding::BlockOutside { block: BlockIndex(1), at: Sector(1 << 24) }],
        ),
        (
            "in the headers",
            Box::new(|layer| set_entry(layer, 1, 2)),
            vec![Finding::BlockOutside { block: BlockIndex(1), at: Sector(2) }],
        ),
        (
            "in the BAT",
            Box::new(|layer| set_entry(layer, 1, layer.image.bat_at.0)),
            vec![Finding::BlockOutside { block: BlockIndex(1), at: clean.image.bat_at }],
        ),
        (
            "moved by a sector",
            Box::new(|layer| {
                layer.file.len += 4096;
                layer.file.write(entry(1).plus(1).bytes(), Bitmap::full().as_bytes());
                set_entry(layer, 1, entry(1).0 + 1);
            }),
            vec![Finding::BlockUnaligned { block: BlockIndex(1), at: entry(1).plus(1) }],
        ),
        (
            "padding of the BAT",
            Box::new(|layer| layer.file.write(layer.image.bat_at.bytes() + 12, &[0; 4])),
            vec![Finding::BatPadding],
        ),
        (
            "a bitmap with holes",
            Box::new(|layer| layer.file.flip(entry(2).bytes(), 1)),
            vec![Finding::BitmapNotFull { block: BlockIndex(2) }],
        ),
    ];
    for (name, damage, findings) in table {
        let mut layer = clean.clone();
        damage(&mut layer);
        assert_eq!(check(&layer.file, Trust::Own).findings, findings, "{name}");
    }
}

#[test]
fn an_empty_block_of_a_child_only_costs_space() {
    let base = Layer::base(1, 8192);
    let mut child = Layer::child(2, 8192, &base);
    child.write(5, &[1; 512]);
    let at = child.entry(BlockIndex(0)).unwrap();
    child.file.write(at.bytes(), Bitmap::empty().as_bytes());
    let report = check(&child.file, Trust::Own);
    assert_eq!(report.findings, [Finding::BlockEmpty { block: BlockIndex(0) }]);
    assert!(!report.findings[0].is_damage());
}

#[test]
fn repairs_and_unreadable_files_are_findings() {
    let mut layer = three_blocks();
    let open_file = check(&layer.file, Trust::Foreign);
    assert_eq!(open_file.findings, [Finding::Repaired(Repair::TailFooterMissing)]);
    layer.file.flip(600, 1);
    let report = check(&layer.file, Trust::Own);
    assert!(matches!(report.findings[..], [Finding::Unreadable(_)]), "{:?}", report.findings);
    assert!(report.findings[0].is_damage() && report.image.is_none());
}

/// A file of nothing but damage: the report stays small.
#[test]
fn findings_are_bounded() {
    let mut layer = Layer::base(1, 4096 * 3000);
    let bat = [0, 0, 0, 1].repeat(3000);
    layer.file.write(layer.image.bat_at.bytes(), &bat);
    let report = check(&layer.file, Trust::Own);
    assert_eq!((report.findings.len(), report.more, report.allocated), (1000, 2000, 3000));
}
