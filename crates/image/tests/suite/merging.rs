//! Merges of layers at rest: the content stays, whatever a power cut loses and whenever it comes.

use image::merge::{Copy, Merge, MergeStep, Progress, Side, worst_case_growth};
use image::{BlockIndex, SectorCount, Timestamp, Trust, Uuid, create};

use crate::support::{Disk, File, Layer, Random, SectorBytes, check, open, read_chain, read_disk};

/// A file with a cache that a power cut loses in part.
struct Cached {
    /// What reads see.
    now: File,
    /// What is certain to be there after a cut.
    durable: File,
    /// Writes since the last barrier, sector by sector.
    open: Vec<(u64, SectorBytes)>,
}

impl Cached {
    fn new(file: &File) -> Self {
        Self { now: file.clone(), durable: file.clone(), open: Vec::new() }
    }

    fn write(&mut self, at: u64, bytes: &[u8]) {
        self.now.write(at, bytes);
        let (sectors, rest) = bytes.as_chunks::<512>();
        assert!(at.is_multiple_of(4096) || bytes.len() == 512, "a write of part of a page at {at}");
        assert!(rest.is_empty());
        self.open.extend((at / 512..).zip(sectors.iter().copied()));
    }

    fn barrier(&mut self) {
        self.durable = self.now.clone();
        self.open.clear();
    }

    /// Each sector that was written since the barrier holds its old content or any of the new ones.
    fn cut(&self, random: &mut Random) -> File {
        let mut file = self.durable.clone();
        file.len = self.now.len;
        for (sector, bytes) in &self.open {
            if random.one_in(2) {
                file.write(sector * 512, bytes);
            }
        }
        file
    }
}

struct Run {
    parent: Cached,
    child: Cached,
    merge: Merge,
}

impl Run {
    fn new(parent: &File, child: &File) -> Self {
        let trust =
            |file: &File| open(file, Trust::Own).or_else(|_| open(file, Trust::OwnFixed)).unwrap();
        let merge = Merge::new(trust(parent), parent.len, trust(child), child.len).unwrap();
        Self { parent: Cached::new(parent), child: Cached::new(child), merge }
    }

    fn side(&mut self, side: Side) -> &mut Cached {
        match side {
            Side::Parent => &mut self.parent,
            Side::Child => &mut self.child,
        }
    }

    /// One step. In the middle of its writes, `cut` may say to stop.
    fn step(&mut self, cut: &mut dyn FnMut() -> bool) -> Outcome {
        match self.merge.step().unwrap() {
            MergeStep::Read { side, at, len } => {
                let bytes = self.side(side).now.read(at, len);
                self.merge.supply(bytes);
            }
            MergeStep::Reserve(ranges) => {
                for (at, len) in ranges {
                    let end = at.bytes() + len.bytes();
                    self.parent.now.len = self.parent.now.len.max(end);
                    self.parent.durable.len = self.parent.now.len;
                }
            }
            MergeStep::Zero(ranges) => {
                for (at, len) in ranges {
                    for sector in at.0..at.0 + len.0 {
                        assert!(sector * 512 < self.parent.now.len, "zeros past what was reserved");
                        // only what is not zero already matters
                        if self.parent.now.sectors.contains_key(&sector) {
                            self.parent.write(sector * 512, &[0; 512]);
                        }
                    }
                }
            }
            MergeStep::Copy(copies) => {
                for Copy { from, to, len } in copies {
                    for offset in 0..len.0 {
                        let bytes = self.child.now.sector(from.0 + offset);
                        let at = to.0 + offset;
                        assert!(at * 512 < self.parent.now.len, "a copy past what was reserved");
                        if self.parent.now.sector(at) != bytes {
                            self.parent.write(at * 512, &bytes);
                        }
                    }
                    if cut() {
                        return Outcome::Cut;
                    }
                }
            }
            MergeStep::Write { side, pieces } => {
                for (at, bytes) in pieces {
                    self.side(side).write(at.bytes(), &bytes);
                }
            }
            MergeStep::Barrier(side) => self.side(side).barrier(),
            MergeStep::Free(ranges) => {
                for (at, len) in ranges {
                    for sector in at.0..at.0 + len.0 {
                        self.child.now.sectors.remove(&sector);
                        self.child.durable.sectors.remove(&sector);
                    }
                }
            }
            MergeStep::Moved(_) => {}
            MergeStep::Done(progress) => return Outcome::Done(progress),
        }
        if cut() { Outcome::Cut } else { Outcome::Goes }
    }
}

enum Outcome {
    Goes,
    Cut,
    Done(Progress),
}

/// A chain of base, parent and child with random content, and what the child shows.
fn chain(random: &mut Random, parent_kind: u64) -> (Vec<Layer>, Disk) {
    let size = 1 + random.below(40 * 4096);
    let mut layers = match parent_kind {
        0 => vec![Layer::base(1, size)],
        1 => {
            let fixed = create::fixed(Uuid::from_u128(1), SectorCount(size), Timestamp(0));
            vec![Layer::new(fixed.unwrap())]
        }
        _ => {
            let base = Layer::base(1, size);
            let parent = Layer::child(2, size, &base);
            vec![base, parent]
        }
    };
    let child = Layer::child(9, size, layers.last().unwrap());
    layers.push(child);
    let mut plain = Disk::new();
    for layer in &mut layers {
        for _ in 0..random.below(60) {
            let sector = random.below(size);
            let byte = if random.one_in(4) { 0 } else { random.next() as u8 };
            layer.write(sector, &[byte; 512]);
            if byte == 0 {
                plain.remove(&sector);
            } else {
                plain.insert(sector, [byte; 512]);
            }
        }
    }
    (layers, plain)
}

fn content(base: Option<&File>, parent: &File, child: &File) -> Disk {
    let mut files = vec![child, parent];
    files.extend(base);
    match read_chain(&files, Trust::Own) {
        Ok(disk) => disk,
        // a chain on a fixed layer: its file ends in its footer, so it can be read as a foreign one
        Err(_) => read_chain(&files, Trust::Foreign).unwrap(),
    }
}

/// Rules L3 and L4: cut at every event, with any part of the open writes lost, then merge on.
#[test]
fn a_power_cut_at_any_moment_loses_nothing() {
    for seed in 0..60 {
        let mut random = Random(seed);
        let (mut layers, plain) = chain(&mut random, seed % 3);
        let child = layers.pop().unwrap().file;
        let parent = layers.pop().unwrap().file;
        let base = layers.pop().map(|layer| layer.file);
        let (mut parent, mut child) = (parent, child);
        let mut cuts = 0;
        let done = loop {
            let mut run = Run::new(&parent, &child);
            let mut left = if cuts < 8 { random.below(50) } else { u64::MAX };
            let outcome = loop {
                let mut cut = || {
                    left = left.saturating_sub(1);
                    left == 0
                };
                match run.step(&mut cut) {
                    Outcome::Goes => {}
                    other => break other,
                }
            };
            match outcome {
                Outcome::Done(progress) => break (run, progress),
                Outcome::Cut | Outcome::Goes => {
                    cuts += 1;
                    parent = run.parent.cut(&mut random);
                    child = run.child.cut(&mut random);
                    let read = content(base.as_ref(), &parent, &child);
                    assert!(read == plain, "seed {seed}, cut {cuts}: the content changed");
                }
            }
        };
        let (run, progress) = done;
        assert_eq!(progress.blocks, progress.of, "seed {seed}");
        assert_eq!(run.parent.open.len() + run.child.open.len(), 0, "the end is durable");
        let emptied = check(&run.child.now, Trust::Own);
        assert_eq!((emptied.allocated, emptied.findings), (0, vec![]), "seed {seed}");
        let merged = match &base {
            Some(base) => read_chain(&[&run.parent.now, base], Trust::Own),
            None => read_disk(&run.parent.now, Trust::Own)
                .or_else(|_| read_disk(&run.parent.now, Trust::OwnFixed)),
        };
        assert!(merged.unwrap() == plain, "seed {seed}: the merged disk differs");
        if open(&run.parent.now, Trust::Own).is_ok() {
            let findings = check(&run.parent.now, Trust::Own).findings;
            assert!(findings.iter().all(|finding| !finding.is_damage()), "{findings:?}");
        }
    }
}

/// Gaps that earlier discards left in the parent are used before its file grows.
#[test]
fn gaps_in_the_parent_are_filled_first() {
    let mut base = Layer::base(1, 10 * 4096);
    for block in 0..4 {
        base.write(block * 4096, &[1; 512]);
    }
    // what the block that goes leaves behind
    base.write(4096 + 5, &[1; 512]);
    let gap = base.entry(BlockIndex(1)).unwrap();
    let at = base.image.bat_at.bytes();
    base.file.write(at + 4, &[0xff; 4]);
    let mut child = Layer::child(2, 10 * 4096, &base);
    child.write(8 * 4096, &[2; 512]);
    let mut run = Run::new(&base.file, &child.file);
    while !matches!(run.step(&mut || false), Outcome::Done(_)) {}
    assert_eq!(run.parent.now.len, base.file.len, "the file did not grow");
    let merged = Layer { file: run.parent.now, image: base.image };
    assert_eq!(merged.entry(BlockIndex(8)), Some(gap));
    assert_eq!(
        read_disk(&merged.file, Trust::Own).unwrap().len(),
        4,
        "and what stood there is zero"
    );
}

#[test]
fn what_does_not_belong_together_is_not_merged() {
    let base = Layer::base(1, 8192);
    let child = Layer::child(2, 8192, &base);
    let stranger = Layer::base(3, 8192);
    let merge = |parent: &Layer, child: &Layer| {
        let (parent_len, child_len) = (parent.file.len, child.file.len);
        Merge::new(parent.image.clone(), parent_len, child.image.clone(), child_len)
    };
    assert!(merge(&base, &child).is_ok());
    assert!(merge(&stranger, &child).is_err());
    assert!(merge(&base, &stranger).is_err());
    // rule L5: a shorter parent is grown first
    let longer = Layer::child(4, 8193, &base);
    assert!(merge(&base, &longer).is_err());
    assert_eq!(worst_case_growth(image::Kind::Fixed, 3), 0);
    assert_eq!(worst_case_growth(image::Kind::Dynamic, 3), 3 * (2 << 20) + 3 * 4096);
}

/// A damaged BAT stops the merge before it changes anything.
#[test]
fn a_damaged_table_stops_the_merge() {
    let mut base = Layer::base(1, 8192);
    base.write(0, &[1; 512]);
    let mut child = Layer::child(2, 8192, &base);
    child.write(0, &[2; 512]);
    for entry in [8u32, 15, 1 << 30] {
        for victim in [true, false] {
            let (mut parent, mut child) = (base.clone(), child.clone());
            let layer = if victim { &mut parent } else { &mut child };
            layer.file.write(layer.image.bat_at.bytes(), &entry.to_be_bytes());
            let lens = (parent.file.len, child.file.len);
            let mut merge = Merge::new(parent.image, lens.0, child.image, lens.1).unwrap();
            let stopped = loop {
                match merge.step() {
                    Ok(MergeStep::Read { side, at, len }) => merge.supply(match side {
                        Side::Parent => parent.file.read(at, len),
                        Side::Child => child.file.read(at, len),
                    }),
                    Ok(step) => panic!("entry {entry}: {step:?}"),
                    Err(error) => break error,
                }
            };
            assert!(stopped.to_string().contains("BAT"), "{stopped}");
        }
    }
}
