//! Every kept input of every target once more, without a fuzzer.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use hostile::TARGETS;

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz")
}

fn names(dir: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    entries
        .map(|entry| {
            let path = entry.expect("an entry").path();
            path.file_stem().expect("a name").to_string_lossy().into_owned()
        })
        .collect()
}

#[test]
fn every_target_has_its_program_and_its_corpus() {
    let known: BTreeSet<_> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(known.len(), TARGETS.len(), "a name stands twice");
    assert_eq!(names(&fuzz().join("fuzz_targets")), known);
    assert_eq!(names(&fuzz().join("corpus")), known);
    let manifest = std::fs::read_to_string(fuzz().join("Cargo.toml")).expect("a manifest");
    for name in known {
        assert!(manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")), "{name}");
        let program = fuzz().join(format!("fuzz_targets/{name}.rs"));
        let program = std::fs::read_to_string(program).expect("a program");
        assert!(program.contains(&format!("hostile::{name}(bytes)")), "{name}");
    }
}

#[test]
fn every_kept_input_is_taken() {
    for (name, target) in TARGETS {
        let dir = fuzz().join("corpus").join(name);
        let (mut files, mut size) = (0, 0);
        for entry in std::fs::read_dir(&dir).expect("a corpus") {
            let path = entry.expect("an entry").path();
            let bytes = std::fs::read(&path).expect("a file");
            (files, size) = (files + 1, size + bytes.len());
            if let Err(panic) = std::panic::catch_unwind(|| target(&bytes)) {
                eprintln!("the input is {}", path.display());
                std::panic::resume_unwind(panic);
            }
        }
        assert!(files > 0, "{name} has no corpus");
        assert!(size <= 100 << 10, "the corpus of {name} has {size} bytes: keep what matters");
        // an empty input, and one of nothing but ones
        target(&[]);
        target(&[0xff; 600]);
    }
    hostile::end();
}
