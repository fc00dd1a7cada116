//! Parent locators: paths of any bytes are shown, and those of our own files come back as they were.
#![no_main]

use image::{
    Locator, Opener, ParentRef, Platform, SectorCount, Step, Timestamp, Trust, Uuid, WideName, create,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (Vec<u16>, Vec<(u8, Vec<u8>)>)| {
    let (name, paths) = input;
    let name: Vec<u16> = name.into_iter().filter(|unit| *unit != 0).take(256).collect();
    let locators: Vec<Locator> = paths
        .into_iter()
        .map(|(platform, data)| {
            let platform = match platform % 4 {
                0 => Platform::RelativePath,
                1 => Platform::AbsolutePath,
                2 => Platform::FileUrl,
                _ => Platform::Other(*b"Wi2k"),
            };
            let locator = Locator { platform, data };
            let _shown = locator.path();
            locator
        })
        .collect();
    let parent = ParentRef { uuid: Uuid::from_u128(5), name: WideName(name), locators };
    let new = create::differencing(Uuid::nil(), SectorCount(8192), Timestamp(0), &parent);
    let Ok(new) = new else {
        assert!(
            parent.locators.len() > 8 || parent.locators.iter().any(|one| one.data.len() > 4096)
        );
        return;
    };
    let mut file = vec![0; new.len as usize];
    for (at, bytes) in &new.pieces {
        file[at.bytes() as usize..][..bytes.len()].copy_from_slice(bytes);
    }
    let mut opener = Opener::new(new.len, Trust::Own);
    let image = loop {
        match opener.step().expect("our own file") {
            Step::Read { at, len } => {
                opener.supply(&file[at as usize..][..len as usize]).expect("all that was asked");
            }
            Step::Done(image) => break image,
        }
    };
    assert_eq!(image, new.image);
});
