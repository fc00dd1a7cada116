//! Power cuts and killed processes over random guest workloads on one chain, in the simulated world.
//!
//! A run is a function of its seed: several lives of one volume, each ended by a cut or a kill at a
//! random device event. After each, every sector that the guest ever touched must read as its last
//! durable content or as a later write (invariant 6). `SHALE_SEEDS=N` runs N seeds instead of the
//! committed number, `SHALE_SEED=S` starts with seed S. With any one rule switched off, some seed
//! below must fail.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use disk::{Access, Disk, LogIdentity, LogState, OpenChain, OpenError, Rules, SharedCache};
use futures_util::future::{join_all, select};
use futures_util::poll;
use image::{ParentRef, SectorCount, Timestamp, Uuid, create};
use io::sim::{FileId, SimLog, SimSpace, SimWorld, SplitMix64, Survivors};
use io::{
    BlockDevice, BlockFile, ByteCount, ByteOffset, ByteRange, Clear, Durability, Effort, Executor,
    IoBuf, IoErrorKind, LogMemory, Request,
};
use sim::guest::{Content, History, ZERO, recognise, sector_bytes};

const BLOCKS: u64 = 6;
const BLOCK: u64 = 4096;
/// Sectors of a block that the workload writes: its first and its last ones.
const HEAD: u64 = 24;
const TAIL: u64 = 8;
const LOG: usize = 16 << 10;
/// A store with place for one block less than the disk has.
const SMALL: ByteCount = ByteCount((BLOCKS - 1) * (BLOCK * 512 + 4096) + (64 << 10));
const GUESTS: u64 = 4;
const LIVES: u64 = 5;

/// What the volume's record would say: survives everything, changes in one step.
#[derive(Clone, Debug)]
struct Record {
    files: Vec<FileId>,
    uuids: Vec<u128>,
    generation: u64,
    /// Content of each frozen layer's snapshot, once it was seen.
    snapshots: Vec<(usize, Rc<RefCell<Content>>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Crash {
    Cut,
    Kill,
    Closed,
}

fn identity(generation: u64) -> LogIdentity {
    LogIdentity {
        volume: Uuid::from_u128(77),
        boot: Uuid::from_u128(1),
        generation,
        log: Uuid::from_u128(u128::from(generation)),
    }
}

async fn write_new(space: &SimSpace, new: create::NewImage) -> io::Result<FileId> {
    let file = space.create();
    for (at, bytes) in new.pieces {
        let from = IoBuf::copied(&bytes);
        let at = ByteOffset(at.bytes());
        file.submit(Request::Write { at, from, durability: Durability::Cached }).await?;
    }
    file.truncate(ByteCount(new.len)).await?;
    file.submit(Request::Flush).await?;
    Ok(file.id())
}

fn open_files(space: &SimSpace, files: &[FileId]) -> Vec<Rc<dyn BlockFile>> {
    files.iter().map(|id| space.open(*id, false).unwrap() as Rc<dyn BlockFile>).collect()
}

/// One life: a process that has the volume open until the world ends.
struct Life {
    world: SimWorld,
    space: SimSpace,
    disk: Disk,
    model: Rc<RefCell<History>>,
    record: Rc<RefCell<Record>>,
    next_value: Rc<Cell<u64>>,
    busy: RefCell<Vec<(u64, u64)>>,
    snapshots: bool,
    /// Requests of guests that have ended.
    ended: Cell<u64>,
    /// What a guest saw and must not have seen.
    violation: RefCell<Option<String>>,
}

impl Life {
    fn dice(&self, below: u64) -> u64 {
        self.world.random(|rng: &mut SplitMix64| rng.between(0, below - 1))
    }

    /// A range that no other request is in: its head, its tail, or the whole block.
    fn pick(&self, whole: bool) -> Option<(u64, u64)> {
        let start = self.dice(BLOCKS) * BLOCK;
        let range = if whole {
            (start, BLOCK)
        } else if self.dice(4) == 0 {
            let from = self.dice(TAIL);
            (start + BLOCK - TAIL + from, 1 + self.dice(TAIL - from))
        } else {
            let from = self.dice(HEAD);
            (start + from, 1 + self.dice(HEAD - from))
        };
        self.claim(range)
    }

    /// The range, if no other request is in it.
    fn claim(&self, range: (u64, u64)) -> Option<(u64, u64)> {
        let clash =
            self.busy.borrow().iter().any(|b| b.0 < range.0 + range.1 && range.0 < b.0 + b.1);
        (!clash).then(|| {
            self.busy.borrow_mut().push(range);
            range
        })
    }

    fn done(&self, range: (u64, u64)) {
        self.busy.borrow_mut().retain(|b| *b != range);
        self.ended.set(self.ended.get() + 1);
    }

    async fn guest(&self) {
        for _ in 0..30 {
            match self.dice(20) {
                0..=9 => self.write().await,
                10..=11 => self.clear(false).await,
                12..=14 => self.clear(true).await,
                15..=16 => self.flush().await,
                17 if self.snapshots => self.snapshot().await,
                18 => self.go_away().await,
                _ => self.world.delay(Duration::ZERO, Duration::from_micros(400)).await,
            }
        }
    }

    /// A write that the model knows of, and its value.
    fn writing(&self, at: u64, len: u64) -> (u64, Request) {
        let value = self.next_value.get();
        self.next_value.set(value + 1);
        let from = IoBuf::zeroed(usize::try_from(len * 512).unwrap());
        for sector in 0..len {
            let offset = usize::try_from(sector * 512).unwrap();
            from.write_at(offset, &sector_bytes(value, at + sector));
        }
        let durable = self.dice(8) == 0;
        let durability = if durable { Durability::Durable } else { Durability::Cached };
        self.model.borrow_mut().submit(at, len, value);
        (value, Request::Write { at: ByteOffset(at * 512), from, durability })
    }

    async fn write(&self) {
        let Some((at, len)) = self.pick(false) else { return };
        let (value, request) = self.writing(at, len);
        if self.disk.submit(request).await.is_ok() && !self.world.is_stopped() {
            self.model.borrow_mut().acknowledge(at, len, value);
        }
        self.done((at, len));
    }

    /// A client goes away in the middle of a write. Its successor reads what is there now, and finds
    /// the same later, whatever the device still had under way.
    async fn go_away(&self) {
        let Some((at, len)) = self.pick(false) else { return };
        let (value, request) = self.writing(at, len);
        let mut left_behind = self.disk.submit(request);
        drop(poll!(&mut left_behind));
        self.world.delay(Duration::ZERO, Duration::from_micros(300)).await;
        let ended = poll!(&mut left_behind);
        if matches!(ended, Poll::Ready(Ok(()))) && !self.world.is_stopped() {
            self.model.borrow_mut().acknowledge(at, len, value);
        }
        drop(left_behind);
        let into = IoBuf::zeroed(usize::try_from(len * 512).unwrap());
        let read = || Request::Read { at: ByteOffset(at * 512), into: into.clone() };
        if self.disk.submit(read()).await.is_ok() {
            let first = into.to_vec();
            self.world.delay(Duration::ZERO, Duration::from_micros(600)).await;
            if self.disk.submit(read()).await.is_ok() && into.to_vec() != first {
                *self.violation.borrow_mut() =
                    Some(format!("sectors {at}+{len} changed after a successor had read them"));
            }
        }
        self.done((at, len));
    }

    /// Discards what it can while requests wait for space, and never flushes: they must go on by that.
    /// Ends only if they do not.
    async fn make_space(&self) {
        let (mut waited, mut ended) = (0, 0);
        while waited < 50 {
            self.world.delay(Duration::from_millis(1), Duration::from_millis(1)).await;
            if self.disk.stats().held == 0 || self.ended.get() != ended {
                (waited, ended) = (0, self.ended.get());
                continue;
            }
            waited += 1;
            for block in 0..BLOCKS {
                if let Some(range) = self.claim((block * BLOCK, BLOCK)) {
                    self.clear_range(range, Clear::Deallocate).await;
                    self.busy.borrow_mut().retain(|b| *b != range);
                }
            }
        }
        *self.violation.borrow_mut() =
            Some("requests wait for space though all was discarded".to_owned());
    }

    async fn clear(&self, whole: bool) {
        let Some(range) = self.pick(whole) else { return };
        let how = if self.dice(3) == 0 { Clear::KeepSpace } else { Clear::Deallocate };
        self.clear_range(range, how).await;
        self.done(range);
    }

    async fn clear_range(&self, (at, len): (u64, u64), how: Clear) {
        let whole = len == BLOCK;
        // a clear is a write of zeros: it shares value 0, told apart by its own stamp
        let touched: Vec<(u64, u64)> =
            if whole { vec![(at, HEAD), (at + BLOCK - TAIL, TAIL)] } else { vec![(at, len)] };
        let stamp = ZERO | self.next_value.get();
        self.next_value.set(self.next_value.get() + 1);
        for (at, len) in &touched {
            self.model.borrow_mut().submit(*at, *len, stamp);
        }
        let range = ByteRange::new(at * 512, len * 512);
        let (effort, durability) = (Effort::Any, Durability::Cached);
        let request = Request::Clear { range, how, effort, durability };
        if self.disk.submit(request).await.is_ok() && !self.world.is_stopped() {
            for (at, len) in &touched {
                self.model.borrow_mut().acknowledge(*at, *len, stamp);
            }
        }
    }

    async fn flush(&self) {
        let began = self.model.borrow_mut().tick();
        if self.disk.submit(Request::Flush).await.is_ok() && !self.world.is_stopped() {
            self.model.borrow_mut().flushed(began);
        }
    }

    async fn snapshot(&self) {
        let number = self.record.borrow().uuids.len() as u128
            + 1
            + (u128::from(self.next_value.get()) << 32);
        let parent = Uuid::from_u128(*self.record.borrow().uuids.last().unwrap());
        let size = SectorCount(BLOCKS * BLOCK);
        let new = create::differencing(
            Uuid::from_u128(number),
            size,
            Timestamp::default(),
            &ParentRef::sibling(parent),
        )
        .unwrap();
        let Ok(file) = write_new(&self.space, new).await else { return };
        // another snapshot may have come first
        let Ok(leaf) = self.disk.open_leaf(self.space.open(file, false).unwrap()).await else {
            return;
        };
        if self.disk.prepare().await.is_err() || self.disk.gate().await.is_err() {
            return;
        }
        if self.record.borrow().uuids.last() != Some(&parent.as_u128()) {
            self.disk.ungate();
            return;
        }
        if self.world.is_stopped() {
            return;
        }
        {
            // the commit: everything acknowledged is durable, and stays readable for ever
            let mut model = self.model.borrow_mut();
            let now = model.tick();
            model.flushed(now);
            let content = model.content();
            let mut record = self.record.borrow_mut();
            let depth = record.files.len();
            record.snapshots.push((depth, Rc::new(RefCell::new(content))));
            record.files.push(file);
            record.uuids.push(number);
        }
        self.disk.switch(leaf);
        self.disk.ungate();
    }
}

/// The sectors that the workload touches, as runs: (first, length).
fn zones() -> impl Iterator<Item = (u64, u64)> {
    (0..BLOCKS).flat_map(|b| [(b * BLOCK, HEAD), (b * BLOCK + BLOCK - TAIL, TAIL)])
}

/// The content of every sector of the zones.
async fn read_zones(disk: &Disk) -> BTreeMap<u64, Vec<u8>> {
    let mut content = BTreeMap::new();
    for (first, len) in zones() {
        let into = IoBuf::zeroed(usize::try_from(len * 512).unwrap());
        let at = ByteOffset(first * 512);
        disk.submit(Request::Read { at, into: into.clone() }).await.unwrap();
        let bytes = into.to_vec();
        content.extend((first..).zip(bytes.chunks(512).map(<[u8]>::to_vec)));
    }
    content
}

/// Every sector reads as one of the allowed values; the value found becomes the durable one.
async fn verify(disk: &Disk, model: &mut History, kill: bool) -> Result<(), String> {
    for (sector, found) in read_zones(disk).await {
        let allowed = if kill { model.after_kill(sector) } else { model.after_cut(sector) };
        let value = recognise(&found, sector, &allowed).map_err(|e| format!("{e}, kill {kill}"))?;
        model.settle(sector, value);
    }
    Ok(())
}

/// D9: where a dynamic layer's bit is clear, its data is zero on disk, for readers that ignore bits.
fn verify_base_bitmaps(space: &SimSpace, base: FileId) -> Result<(), String> {
    let file = space.open(base, true).unwrap();
    let bat = file.peek(ByteRange::new(4096, BLOCKS * 4));
    for (block, entry) in image::bat::decode(&bat).enumerate() {
        let Some(bitmap) = entry else { continue };
        let bits = file.peek(ByteRange::new(bitmap.bytes(), 512));
        let bits = image::Bitmap::from_bytes(bits.as_slice().try_into().unwrap());
        for (from, len, set) in bits.runs() {
            let at = bitmap.plus(1 + u64::from(from)).bytes();
            let data = file.peek(ByteRange::new(at, u64::from(len) * 512));
            if !set && data.iter().any(|b| *b != 0) {
                return Err(format!("block {block}: data under clear bits from {from}"));
            }
        }
    }
    Ok(())
}

async fn verify_snapshots(
    world: &SimWorld,
    space: &SimSpace,
    record: &Record,
) -> Result<(), String> {
    for (depth, content) in &record.snapshots {
        let open = OpenChain {
            files: open_files(space, &record.files[..*depth]),
            fixed_base: false,
            keep_space: false,
            access: Access::ReadOnly,
            rules: Rules::all(),
            cache: SharedCache::none(),
        };
        let disk = Disk::open(world.local().clone(), open).await.map_err(|e| e.to_string())?;
        let expected = content.borrow().clone();
        let zones = read_zones(&disk).await;
        for (sector, allowed) in expected {
            let found = &zones[&sector];
            let value = recognise(found, sector, &allowed)
                .map_err(|e| format!("snapshot of depth {depth}: {e}"))?;
            content.borrow_mut().insert(sector, vec![value]);
        }
    }
    Ok(())
}

fn run(seed: u64, rules: Rules) -> Result<(), String> {
    let mut rng = SplitMix64::new(seed ^ 0x5A1E);
    let mut survivors = Survivors::default();
    let mut crash = Crash::Closed;
    let model = Rc::new(RefCell::new(History::default()));
    let next_value = Rc::new(Cell::new(1));
    let mut record: Option<Rc<RefCell<Record>>> = None;
    // the logs that the last life and the one before left
    let (mut last_log, mut stale_log) = (None, None::<Vec<u8>>);
    let snapshots = rng.between(0, 1) == 0;
    let capacity = if snapshots || rng.between(0, 1) == 0 { ByteCount::mib(400) } else { SMALL };
    for life in 0..LIVES {
        let (executor, world) = SimWorld::restart(rng.next_u64(), survivors);
        let space = world.spaces().into_iter().next().unwrap_or_else(|| world.add_space(capacity));
        if record.is_none() {
            let new = create::dynamic(
                Uuid::from_u128(1),
                SectorCount(BLOCKS * BLOCK),
                Timestamp::default(),
            )
            .unwrap();
            let file = executor.block_on(write_new(&space, new)).unwrap();
            record = Some(Rc::new(RefCell::new(Record {
                files: vec![file],
                uuids: vec![1],
                generation: 0,
                snapshots: Vec::new(),
            })));
        }
        let record = record.clone().expect("made above");
        let memory = Rc::new(world.log("volume", LOG));
        let old_generation = record.borrow().generation;
        let mut state = match crash {
            Crash::Closed => LogState::Clean,
            Crash::Kill => LogState::Replay,
            Crash::Cut => LogState::Lost,
        };
        // sometimes the log of another life lies there: it must be refused (D4)
        let mut generation = old_generation;
        if state == LogState::Replay && rng.between(0, 3) == 0 {
            if let Some(bytes) = &stale_log {
                memory.write(0, bytes);
            }
            generation += 1;
        }
        let stale = generation != old_generation;
        if state != LogState::Replay {
            generation += 1;
        }
        // sometimes the world ends while the volume is being recovered
        if crash != Crash::Closed && !stale && rng.between(0, 2) == 0 {
            world.halt_at(world.events() + rng.between(1, 40));
        }
        let opening =
            open(&world, &space, &record, Rc::<SimLog>::clone(&memory), generation, state, rules);
        let opened = executor.run_until_halt(opening).filter(|_| !world.is_stopped());
        let Some(opened) = opened else {
            let kill = rng.between(0, 1) == 0;
            if !kill {
                crash = Crash::Cut;
            }
            survivors = if kill { world.kill() } else { world.cut() };
            continue;
        };
        world.halt_at(u64::MAX);
        let disk = match opened {
            Ok(disk) => disk,
            Err(OpenError::Log(disk::LogError::Mismatch)) if stale => {
                state = LogState::Lost;
                executor
                    .block_on(open(
                        &world,
                        &space,
                        &record,
                        Rc::<SimLog>::clone(&memory),
                        generation,
                        state,
                        rules,
                    ))
                    .map_err(|e| format!("life {life}: {e}"))?
            }
            Err(error) => return Err(format!("life {life}: {error}")),
        };
        record.borrow_mut().generation = generation;
        let base = record.borrow().files[0];
        verify_base_bitmaps(&space, base).map_err(|e| format!("life {life}: {e}"))?;
        {
            let mut model = model.borrow_mut();
            let kill = state != LogState::Lost;
            executor
                .block_on(verify(&disk, &mut model, kill))
                .map_err(|e| format!("life {life} after {crash:?}: {e}"))?;
            let frozen = record.borrow().clone();
            executor
                .block_on(verify_snapshots(&world, &space, &frozen))
                .map_err(|e| format!("life {life}: {e}"))?;
        }
        // what was found is durable only once it was flushed; a recovered page cache is
        executor.block_on(disk.submit(Request::Flush)).map_err(|e| e.to_string())?;
        let flush_fails = rng.between(0, 5) == 0;
        if flush_fails {
            space.faults().fail_flush(rng.between(2, 12));
        }
        let write_fails = rng.between(0, 5) == 0;
        if write_fails {
            space.faults().fail_write(rng.between(1, 40));
        }
        let life_state = Rc::new(Life {
            world: world.clone(),
            space: space.clone(),
            disk: disk.clone(),
            model: Rc::clone(&model),
            record: Rc::clone(&record),
            next_value: Rc::clone(&next_value),
            busy: RefCell::default(),
            snapshots,
            ended: Cell::new(0),
            violation: RefCell::default(),
        });
        world.halt_at(world.events() + rng.between(1, 700));
        let guests = async {
            let all = pin!(join_all((0..GUESTS).map(|_| life_state.guest())));
            drop(select(all, pin!(life_state.make_space())).await);
            disk.close().await
        };
        let ended = executor.run_until_halt(guests);
        if let Some(violation) = life_state.violation.take() {
            return Err(format!("life {life}: {violation}"));
        }
        let mut bytes = vec![0; LOG];
        memory.read(0, &mut bytes);
        stale_log = last_log.replace(bytes);
        crash = match ended {
            Some(Ok(())) => {
                let mut model = model.borrow_mut();
                let now = model.tick();
                model.flushed(now);
                Crash::Closed
            }
            Some(Err(error))
                if error.kind == IoErrorKind::Poisoned || error.kind == IoErrorKind::Device =>
            {
                Crash::Cut
            }
            Some(Err(error)) => return Err(format!("life {life}: close: {error}")),
            // what a failed flush covered may be seen by the next process and yet be lost later:
            // nothing can be promised about it; a failed write may have been one of a flush
            None if flush_fails || write_fails || rng.between(0, 1) == 0 => Crash::Cut,
            None => Crash::Kill,
        };
        // a volume that was closed keeps its content over a cut as well
        survivors = if crash == Crash::Kill { world.kill() } else { world.cut() };
        drop_world(executor, life_state, disk);
    }
    Ok(())
}

fn drop_world(executor: Executor, life: Rc<Life>, disk: Disk) {
    drop((life, disk));
    drop(executor);
}

async fn open(
    world: &SimWorld,
    space: &SimSpace,
    record: &Rc<RefCell<Record>>,
    memory: Rc<dyn LogMemory>,
    generation: u64,
    state: LogState,
    rules: Rules,
) -> Result<Disk, OpenError> {
    let files = open_files(space, &record.borrow().files);
    let access = Access::Write { memory, identity: identity(generation), state };
    // every other process can remember next to nothing
    let little = generation.is_multiple_of(2);
    let cache = if little { SharedCache::none() } else { SharedCache::new(1 << 20) };
    Disk::open(
        world.local().clone(),
        OpenChain { files, access, rules, fixed_base: false, keep_space: false, cache },
    )
    .await
}

fn seeds(committed: u64) -> u64 {
    std::env::var("SHALE_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(committed)
}

fn first_seed() -> u64 {
    std::env::var("SHALE_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(0)
}

#[test]
fn no_seed_violates_an_invariant() {
    for seed in first_seed()..first_seed() + seeds(60) {
        if let Err(error) = run(seed, Rules::all()) {
            panic!("SHALE_SEED={seed} SHALE_SEEDS=1: {error}");
        }
    }
}

/// The first committed seed that fails with a rule switched off.
fn first_violation(rules: Rules) -> Option<(u64, String)> {
    (0..400).find_map(|seed| {
        let error = match std::panic::catch_unwind(|| run(seed, rules)) {
            Ok(outcome) => outcome.err()?,
            Err(_) => "our own assertions caught it".to_owned(),
        };
        run(seed, Rules::all()).expect("the seed holds with every rule kept");
        Some((seed, error))
    })
}

macro_rules! rule_matters {
    ($name:ident, $field:ident) => {
        #[test]
        fn $name() {
            let rules = Rules { $field: false, ..Rules::all() };
            let found = first_violation(rules);
            let (seed, error) = found.expect("some committed seed shows why the rule is needed");
            println!("{}: seed {seed}: {error}", stringify!($field));
        }
    };
}

rule_matters!(d1_eligible_only_after_the_data, d1_eligible_after_data);
rule_matters!(d2_logged_before_told, d2_log_before_completion);
rule_matters!(d3_removals_are_logged, d3_log_removals);
rule_matters!(d4_only_the_exact_log_is_replayed, d4_exact_log_match);
rule_matters!(d5_unowned_ranges_are_zeroed, d5_zero_unowned);
rule_matters!(d6_space_is_reused_late, d6_reuse_after_durable);
rule_matters!(d7_a_failed_flush_poisons, d7_poison);
rule_matters!(d9_bitmaps_before_the_table, d9_bitmap_before_bat);
rule_matters!(p4_what_was_left_behind_ends_first, p4_left_behind_first);
