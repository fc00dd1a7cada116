//! Codecs: what is written is read again, and a bit more or less is noticed.

use image::{
    Bitmap, DynamicHeader, Footer, Geometry, Kind, LocatorEntry, Platform, SectorCount, Timestamp,
    Uuid, WideName, bat, bit_runs,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed};

fn fixed(cases: u32) -> Config {
    Config { cases, rng_seed: RngSeed::Fixed(20), failure_persistence: None, ..Config::default() }
}

prop_compose! {
    fn footers()(
        words in any::<(u32, u64, u32, u32, u64)>(),
        creator in prop_oneof![Just(*b"shal"), Just(*b"vpc "), Just(*b"win "), any::<[u8; 4]>()],
        os in any::<[u8; 4]>(),
        sectors in 0..=0xff00_0000u64,
        chs in (0..=16_000u16, 0..=16u8, 0..=255u8),
        kind in prop_oneof![Just(Kind::Fixed), Just(Kind::Dynamic), Just(Kind::Differencing)],
        id in any::<u128>(),
        rest in any::<(bool, u8)>(),
    ) -> Footer {
        Footer {
            features: words.0,
            data_offset: words.1,
            timestamp: Timestamp(words.2),
            creator,
            creator_version: words.3,
            creator_os: os,
            original_size: words.4,
            current_size: sectors * 512,
            geometry: Geometry { cylinders: chs.0, heads: chs.1, sectors: chs.2 },
            kind,
            uuid: Uuid::from_u128(id),
            saved_state: rest.0,
            hidden: rest.1,
        }
    }
}

prop_compose! {
    fn locators()(code in any::<[u8; 4]>(), space: u32, len: u32, offset: u64) -> LocatorEntry {
        let platform = match code[0] % 4 {
            0 => Platform::RelativePath,
            1 => Platform::AbsolutePath,
            2 => Platform::FileUrl,
            _ => Platform::Other(*b"Wi2k"),
        };
        LocatorEntry { platform, data_space: space, data_len: len, data_offset: offset }
    }
}

prop_compose! {
    fn headers()(
        words in any::<(u64, u64, u32, u32)>(),
        block_power in 9..32u32,
        id in any::<u128>(),
        // unpaired surrogates included
        name in proptest::collection::vec(1..=u16::MAX, 0..=256),
        locators in proptest::array::uniform8(locators()),
    ) -> DynamicHeader {
        DynamicHeader {
            next: words.0,
            table_offset: words.1,
            entries: words.2,
            block_size: 1 << block_power,
            parent_uuid: Uuid::from_u128(id),
            parent_time: Timestamp(words.3),
            parent_name: WideName(name),
            locators,
        }
    }
}

proptest! {
    #![proptest_config(fixed(200))]

    #[test]
    fn footers_survive(footer in footers()) {
        prop_assert_eq!(Footer::decode(&footer.encode()), Ok(footer));
    }

    #[test]
    fn headers_survive(header in headers()) {
        prop_assert_eq!(DynamicHeader::decode(&header.encode()), Ok(header));
    }

    #[test]
    fn a_flipped_bit_in_a_footer_is_an_error(footer in footers(), at in 0..512usize, bit in 0..8u32) {
        let mut bytes = footer.encode();
        bytes[at] ^= 1u8 << bit;
        prop_assert!(Footer::decode(&bytes).is_err());
    }

    #[test]
    fn a_flipped_bit_in_a_header_is_an_error(header in headers(), at in 0..1024usize, bit in 0..8u32) {
        let mut bytes = header.encode();
        bytes[at] ^= 1u8 << bit;
        prop_assert!(DynamicHeader::decode(&bytes).is_err());
    }

    #[test]
    fn bitmaps_agree_with_a_list_of_flags(
        changes in proptest::collection::vec((0..4096u32, 0..4096u32, any::<bool>()), 0..20),
        window in (0..4096u32, 0..4096u32),
    ) {
        let mut flags = vec![false; 4096];
        let mut bitmap = Bitmap::empty();
        for (from, len, set) in changes {
            let len = len.min(4096 - from);
            if set { bitmap.set_range(from, len) } else { bitmap.clear_range(from, len) }
            flags[from as usize..(from + len) as usize].fill(set);
        }
        let from_window = window.0;
        let len = window.1.min(4096 - from_window);
        let mut rebuilt = Vec::new();
        let mut last = None;
        for (from, run, set) in bitmap.runs_in(from_window, len) {
            prop_assert_eq!(from as usize, from_window as usize + rebuilt.len());
            prop_assert!(run > 0 && last != Some(set), "runs are as long as they can be");
            last = Some(set);
            rebuilt.extend(vec![set; run as usize]);
        }
        prop_assert_eq!(&rebuilt, &flags[from_window as usize..(from_window + len) as usize]);
        for (sector, flag) in (0..).zip(&flags) {
            prop_assert_eq!(bitmap.get(sector), *flag);
        }
        prop_assert_eq!(bitmap.is_full(), flags.iter().all(|flag| *flag));
        prop_assert_eq!(bitmap.is_empty(), !flags.iter().any(|flag| *flag));
        prop_assert_eq!(bitmap.count() as usize, flags.iter().filter(|flag| **flag).count());
        prop_assert_eq!(&Bitmap::from_bytes(bitmap.as_bytes()), &bitmap);
    }

    #[test]
    fn bits_past_the_bytes_count_as_clear(bits in proptest::collection::vec(any::<u8>(), 0..20)) {
        let set: u32 = bit_runs(&bits, 0, 400).filter(|run| run.2).map(|run| run.1).sum();
        prop_assert_eq!(set, bits.iter().map(|byte| byte.count_ones()).sum::<u32>());
        prop_assert_eq!(bit_runs(&bits, 0, 400).map(|run| run.1).sum::<u32>(), 400);
    }

    #[test]
    fn bat_entries_survive(sector in proptest::option::of(0..u64::from(u32::MAX))) {
        let sector = sector.map(image::Sector);
        prop_assert_eq!(bat::decode_entry(bat::encode_entry(sector)), sector);
    }
}

/// The first bit is the most significant one of the first byte.
#[test]
fn the_order_of_bits_is_that_of_the_format() {
    let mut bitmap = Bitmap::empty();
    bitmap.set_range(0, 1);
    bitmap.set_range(15, 1);
    assert_eq!(bitmap.as_bytes()[..3], [0x80, 0x01, 0x00]);
    assert_eq!(
        bitmap.runs().collect::<Vec<_>>(),
        [(0, 1, true), (1, 14, false), (15, 1, true), (16, 4080, false)]
    );
}

/// The bytes of a new layer, as they have always been: files written once are read for ever.
#[test]
fn golden_bytes_of_our_own_headers() {
    let footer = Footer::new(
        Uuid::from_u128(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff),
        Kind::Dynamic,
        SectorCount(20_480),
        Timestamp(0x2a2b_2c2d),
    );
    let bytes = footer.encode();
    assert_eq!(
        bytes[..86].escape_ascii().to_string(),
        "conectix\\x00\\x00\\x00\\x02\\x00\\x01\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x02\\x00\
         *+,-shal\\x00\\x01\\x00\\x00Wi2k\
         \\x00\\x00\\x00\\x00\\x00\\xa0\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\xa0\\x00\\x00\
         \\xff\\xff\\x10\\xff\\x00\\x00\\x00\\x03\\xff\\xff\\xec\\xa1\
         \\x00\\x11\\\"3DUfw\\x88\\x99\\xaa\\xbb\\xcc\\xdd\\xee\\xff\\x00\\x00"
    );
    assert!(bytes[86..].iter().all(|byte| *byte == 0));
}
