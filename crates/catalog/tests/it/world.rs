//! What the tests share: a simulated node with a catalog, a stand-in for guests, and a view of
//! everything a user can see.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use catalog::{
    Catalog, Chunk, Env, Incoming, IncomingLayer, LeafSpace, MAX_SEGMENT, NewImport, NewVolume,
    Next, Progress, Recovered, Running, Snapshot, Tip, Unwatched, VolumeKind, VolumeRecord,
};
use datastore::{Access, FileStore, Identity, ObjectName};
use image::{
    BLOCK_SECTORS, Bitmap, ChainReader, Content, Kind, LayerImage, LayerReader, Mapped, Opener,
    PAGE, SECTOR, Sector, SectorCount, Step, Trust, bat,
};
use io::sim::SimWorld;
use io::{BlockFile, ByteCount, ByteOffset, Durability, Executor, Io, IoBuf, Request};
use sim::{SimDirectory, SimStore};
use uuid::Uuid;

pub(crate) const MIB: u64 = 1 << 20;
/// Two blocks and a half, and an odd sector.
pub(crate) const SIZE: u64 = 5 * MIB + 512;
/// Sectors that guests write and views read: block borders, the disk's end, and beyond it for growth.
pub(crate) const PROBES: [u64; 10] = [0, 1, 7, 8, 4095, 4096, 8191, 8192, 10240, 12300];

/// Deterministic surroundings.
pub(crate) struct TestEnv {
    next: Rc<Cell<u64>>,
    boot: u64,
    segment: u64,
}

impl Env for TestEnv {
    fn now_ms(&self) -> u64 {
        1_700_000_000_000 + self.next.get()
    }
    fn new_uuid(&self) -> Uuid {
        self.next.set(self.next.get() + 1);
        Uuid::from_u128(u128::from(self.boot) << 64 | u128::from(self.next.get()))
    }
    fn boot_id(&self) -> String {
        format!("boot-{}", self.boot)
    }
    fn segment_bytes(&self) -> u64 {
        self.segment
    }
}

/// Disks that would run: notes what is asked of them.
#[derive(Default)]
pub(crate) struct FakeDisks {
    pub(crate) calls: RefCell<Vec<String>>,
    pub(crate) running: RefCell<BTreeSet<Uuid>>,
    /// This call fails: `gate`, `prepare` or `switch`.
    pub(crate) fails: Cell<Option<&'static str>>,
}

impl FakeDisks {
    fn call(&self, what: &'static str) -> Io<'_, catalog::Result<()>> {
        self.calls.borrow_mut().push(what.to_owned());
        let fails = self.fails.get() == Some(what);
        Box::pin(async move {
            if fails {
                return Err(catalog::CatalogError::new(
                    catalog::Code::Io,
                    format!("{what} failed"),
                ));
            }
            Ok(())
        })
    }
}

impl Running for FakeDisks {
    fn is_connected(&self, volume: Uuid) -> bool {
        self.running.borrow().contains(&volume)
    }
    fn prepare(&self, _volume: Uuid, _leaves: Tip) -> Io<'_, catalog::Result<()>> {
        self.call("prepare")
    }
    fn gate(&self, _volume: Uuid) -> Io<'_, catalog::Result<()>> {
        self.call("gate")
    }
    fn switch(&self, _volume: Uuid, _leaves: Tip) -> Io<'_, catalog::Result<()>> {
        self.call("switch")
    }
    fn ungate(&self, _volume: Uuid) -> Io<'_, ()> {
        let done = self.call("ungate");
        Box::pin(async move { drop(done.await) })
    }
    fn abandon(&self, _volume: Uuid) -> Io<'_, ()> {
        let done = self.call("abandon");
        Box::pin(async move { drop(done.await) })
    }
}

/// Cancels after so many questions.
pub(crate) struct CancelAfter(pub(crate) Cell<u32>);

impl Progress for CancelAfter {
    fn phase(&self, _name: &'static str, _total_bytes: u64) {}
    fn advance(&self, _done_bytes: u64) {}
    fn cancelled(&self) -> bool {
        let left = self.0.get();
        self.0.set(left.saturating_sub(1));
        left == 0
    }
}

/// A layer to import: its size, its snapshot, and sectors with their byte.
pub(crate) type FakeLayer = (u64, Option<&'static str>, Vec<(u64, u8)>);

/// Layers to import; the source fails after so many chunks.
pub(crate) struct FakeLayers {
    pub(crate) layers: Vec<FakeLayer>,
    pub(crate) fails_after: usize,
    next: Vec<usize>,
}

impl FakeLayers {
    pub(crate) fn new(layers: Vec<FakeLayer>) -> Self {
        let next = vec![0; layers.len()];
        Self { layers, fails_after: usize::MAX, next }
    }

    pub(crate) fn import(&self, name: &str, kind: VolumeKind, sized: bool) -> NewImport {
        let layer = |(size, snapshot, _): &FakeLayer| {
            let size = sized.then_some(ByteCount(*size));
            IncomingLayer { size, snapshot: snapshot.map(str::to_owned) }
        };
        let layers = self.layers.iter().map(layer).collect();
        NewImport { name: name.into(), kind, layers, stored: ByteCount(MIB) }
    }
}

impl Incoming for FakeLayers {
    fn next(&mut self, layer: usize) -> Io<'_, catalog::Result<Next>> {
        let at = self.next[layer];
        self.next[layer] += 1;
        let sector = self.layers[layer].2.get(at).copied();
        let fails = self.next.iter().sum::<usize>() > self.fails_after;
        Box::pin(async move {
            if fails {
                return Err(catalog::CatalogError::new(catalog::Code::Io, "the source failed"));
            }
            let Some((sector, byte)) = sector else { return Ok(Next::End) };
            // one sector a chunk: blocks come in parts
            let within = sector % u64::from(BLOCK_SECTORS);
            let mut bytes = vec![0; usize::try_from(2 * MIB).unwrap()];
            let from = usize::try_from(within * SECTOR).unwrap();
            bytes[from..from + 512].fill(byte);
            let mut owned = Bitmap::empty();
            owned.set_range(u32::try_from(within).unwrap(), 1);
            let block = u32::try_from(sector / u64::from(BLOCK_SECTORS)).unwrap();
            Ok(Next::Chunk(Chunk { block, bytes, owned }))
        })
    }

    fn done(&self, layer: usize) -> u64 {
        self.next[layer] as u64
    }

    fn size(&self, layer: usize) -> u64 {
        self.layers[layer].0
    }
}

/// A node on simulated storage.
pub(crate) struct Lab {
    pub(crate) executor: Executor,
    pub(crate) world: SimWorld,
    pub(crate) directory: SimDirectory,
    pub(crate) boot: u64,
    /// Bytes of the segments of new volumes.
    pub(crate) segment: u64,
    /// UUIDs given out since the boot.
    given: Rc<Cell<u64>>,
}

/// What a crash is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Crash {
    Cut,
    /// The process died, and so did its requests.
    Kill,
    /// The process died, and its requests hold its files for a while.
    KillWithRequests,
}

impl Lab {
    pub(crate) fn new(seed: u64, capacity: ByteCount) -> Self {
        Self::segmented(seed, capacity, MAX_SEGMENT)
    }

    /// One whose volumes divide into segments of this many bytes.
    pub(crate) fn segmented(seed: u64, capacity: ByteCount, segment: u64) -> Self {
        let (executor, world) = SimWorld::start(seed);
        let identity = Identity { uuid: Uuid::from_u128(1), name: "fast1".into(), created: 0 };
        let directory = SimDirectory::create(&world, capacity, &identity);
        Self { executor, world, directory, boot: 1, segment, given: Rc::default() }
    }

    /// The node after a crash.
    pub(crate) fn crashed(self, seed: u64, crash: Crash) -> Self {
        let (names, survivors) = match crash {
            Crash::Cut => (self.directory.cut(), self.world.cut()),
            Crash::Kill => (self.directory.kill().settled(), self.world.kill()),
            Crash::KillWithRequests => (self.directory.kill(), self.world.kill()),
        };
        let (executor, world) = SimWorld::restart(seed, survivors);
        let directory = SimDirectory::restart(&world.spaces()[0], names);
        let (boot, segment) = (self.boot + 1, self.segment);
        Self { executor, world, directory, boot, segment, given: Rc::default() }
    }

    /// Lets time go by.
    pub(crate) fn pass(&self, ms: u64) {
        self.given.set(self.given.get() + ms);
    }

    pub(crate) async fn open(&self) -> Node {
        self.open_with(Rc::new(FakeDisks::default())).await
    }

    pub(crate) async fn open_with(&self, disks: Rc<FakeDisks>) -> Node {
        let store = Rc::new(self.directory.open().unwrap());
        let (next, boot, segment) = (Rc::clone(&self.given), self.boot, self.segment);
        let env = Rc::new(TestEnv { next, boot, segment });
        let running: Rc<dyn Running> = disks;
        let files: Rc<dyn FileStore> = Rc::clone(&store) as _;
        let (catalog, recovered) = Catalog::open(files, env, running).await.unwrap();
        Node { catalog, store, recovered }
    }
}

/// An open catalog, and the store below it.
pub(crate) struct Node {
    pub(crate) catalog: Catalog,
    pub(crate) store: Rc<SimStore>,
    pub(crate) recovered: Vec<Recovered>,
}

/// Everything a user can see of a volume; a snapshot's name stands with the name it stands on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) size: u64,
    pub(crate) kind: VolumeKind,
    pub(crate) template: bool,
    pub(crate) on: Option<String>,
    pub(crate) content: Vec<u8>,
    pub(crate) snapshots: BTreeMap<String, (Option<String>, u64, Vec<u8>)>,
    pub(crate) schedule: Option<catalog::Schedule>,
    /// What each snapshot was made for, oldest first.
    pub(crate) scheduled: Vec<Option<catalog::Scheduled>>,
}

pub(crate) type View = BTreeMap<String, Seen>;

impl Node {
    pub(crate) async fn create(&self, name: &str, size: u64, kind: VolumeKind) -> VolumeRecord {
        let new = NewVolume { name: name.into(), size: ByteCount(size), kind };
        self.catalog.create_volume(new, &Unwatched).await.unwrap()
    }

    pub(crate) async fn snapshot(&self, volume: &str, name: &str) -> Snapshot {
        let volume = self.catalog.find(volume).unwrap().uuid;
        let set =
            self.catalog.snapshot_create(&[volume], name, LeafSpace::AsTheKind).await.unwrap();
        set.members[0].1.clone()
    }

    pub(crate) fn id(&self, volume: &str) -> Uuid {
        self.catalog.find(volume).unwrap().uuid
    }

    pub(crate) fn snap_id(&self, volume: &str, snapshot: &str) -> Uuid {
        let record = self.catalog.find(volume).unwrap();
        record.snapshots.iter().find(|s| s.name == snapshot).unwrap().uuid
    }

    /// What a guest would do: writes a sector of `byte`s and flushes, through the leaf's own format.
    pub(crate) async fn write(&self, volume: &str, sector: u64, byte: u8) {
        let record = self.catalog.find(volume).unwrap();
        assert!(!record.template && sector < record.size / SECTOR, "no guest could");
        let each = record.segment / SECTOR;
        let leaf = record.current.tip.layers()[usize::try_from(sector / each).unwrap()];
        let sector = sector % each;
        let fixed = record.is_fixed(leaf);
        let name = ObjectName::Layer(leaf);
        let file = self.store.open(&name, Access::Write).await.unwrap();
        let image = open_image(&*file, fixed).await;
        let data = [byte; 512];
        if fixed {
            put(&*file, sector * SECTOR, &data).await;
            return flush(&*file).await;
        }
        let block = sector / u64::from(BLOCK_SECTORS);
        let within = u32::try_from(sector % u64::from(BLOCK_SECTORS)).unwrap();
        let table = get(&*file, image.bat_at.bytes(), image.bat_bytes()).await;
        let entries: Vec<Option<Sector>> =
            bat::decode(&table).take(image.bat_entries as usize).collect();
        let (entry, mut owned) = match entries[usize::try_from(block).unwrap()] {
            Some(entry) => {
                let bits = get(&*file, entry.bytes(), SECTOR).await;
                (entry, Bitmap::from_bytes(bits.as_slice().try_into().unwrap()))
            }
            None => {
                let ends = entries.iter().flatten().map(|e| image.data_at(*e).plus(4096));
                let end = ends.max().unwrap_or_default().max(image.first_free).page_up();
                // The block lies within the file, and is zero whatever stood there.
                let range = io::ByteRange::new(end.bytes(), PAGE + 2 * MIB);
                file.reserve(range).await.unwrap();
                let clear = Request::Clear {
                    range,
                    how: io::Clear::KeepSpace,
                    effort: io::Effort::Any,
                    durability: Durability::Cached,
                };
                file.submit(clear).await.unwrap();
                (end.plus(7), Bitmap::empty())
            }
        };
        put(&*file, image.data_at(entry).plus(u64::from(within)).bytes(), &data).await;
        flush(&*file).await;
        match image.kind {
            Kind::Dynamic => owned = Bitmap::full(),
            Kind::Fixed | Kind::Differencing => owned.set_range(within, 1),
        }
        put(&*file, entry.bytes(), owned.as_bytes()).await;
        flush(&*file).await;
        put(&*file, image.bat_at.bytes() + block * 4, &bat::encode_entry(Some(entry))).await;
        flush(&*file).await;
    }

    /// The first bytes of each probe sector within `size`, read through the layers' own links.
    pub(crate) async fn content(&self, record: &VolumeRecord, tip: &Tip, size: u64) -> Vec<u8> {
        let mut seen = Vec::new();
        for (start, layer) in
            (0..).step_by(usize::try_from(record.segment).unwrap()).zip(tip.layers())
        {
            let len = record.segment.min(size - start);
            seen.extend(self.segment_content(*layer, start / SECTOR, len).await);
        }
        seen
    }

    async fn segment_content(&self, tip: Uuid, start: u64, size: u64) -> Vec<u8> {
        let (mut files, mut readers, mut next) = (Vec::new(), Vec::new(), Some(tip));
        while let Some(layer) = next {
            let fixed = self.catalog.volumes().iter().any(|v| v.is_fixed(layer));
            let file = self.store.open(&ObjectName::Layer(layer), Access::Read).await.unwrap();
            let image = open_image(&*file, fixed).await;
            next = image.parent.as_ref().map(|parent| parent.uuid);
            readers.push(LayerReader::new(image, file.info().size.0));
            files.push(file);
        }
        let mut reader = ChainReader::new(readers).unwrap();
        assert_eq!(reader.size().bytes(), size, "size of layer {tip}");
        let mut seen = Vec::new();
        let inside = PROBES.into_iter().filter_map(|probe| probe.checked_sub(start));
        for probe in inside.filter(|probe| *probe < size / SECTOR) {
            let place = loop {
                match reader.map(Sector(probe), SectorCount(1)).unwrap() {
                    Mapped::Read { layer, at, len } => {
                        let bytes = get(&*files[layer], at, len).await;
                        reader.supply(layer, &bytes).unwrap();
                    }
                    Mapped::Extent { content, .. } => break content,
                }
            };
            seen.push(match place {
                Content::Zero | Content::Parent => 0,
                Content::Data { layer, at } => {
                    let bytes = get(&*files[layer], at.bytes(), SECTOR).await;
                    assert!(bytes.iter().all(|b| *b == bytes[0]), "a torn sector {probe}");
                    bytes[0]
                }
            });
        }
        seen
    }

    pub(crate) async fn view(&self) -> View {
        let mut view = View::new();
        for record in self.catalog.volumes() {
            let name = |id: Option<Uuid>| id.map(|id| record.snapshot(id).unwrap().name.clone());
            let mut snapshots = BTreeMap::new();
            for snapshot in &record.snapshots {
                let content = self.content(&record, &snapshot.tip, snapshot.size).await;
                let seen = (name(snapshot.parent), snapshot.size, content);
                snapshots.insert(snapshot.name.clone(), seen);
            }
            let seen = Seen {
                size: record.size,
                kind: record.kind,
                template: record.template,
                on: name(record.current.parent),
                content: self.content(&record, &record.current.tip, record.size).await,
                snapshots,
                schedule: record.schedule.clone(),
                scheduled: record.snapshots.iter().map(|s| s.scheduled.clone()).collect(),
            };
            view.insert(record.name.clone(), seen);
        }
        view
    }

    /// The audit, and no finding of the check that means damage.
    pub(crate) async fn assert_sound(&self, when: &str) {
        assert_eq!(self.catalog.audit().await.unwrap(), Vec::<String>::new(), "{when}");
        let report = self.catalog.check().await.unwrap();
        assert_eq!(report.findings, [], "{when}");
    }

    /// Runs every merge that waits.
    pub(crate) async fn settle_all(&self) {
        while let Some(pending) = self.catalog.pending_merges().first() {
            self.catalog.settle(pending.volume, &Unwatched).await.unwrap();
        }
    }
}

async fn open_image(file: &dyn BlockFile, fixed: bool) -> LayerImage {
    let trust = if fixed { Trust::OwnFixed } else { Trust::Own };
    let mut opener = Opener::new(file.info().size.0, trust);
    loop {
        match opener.step().unwrap() {
            Step::Read { at, len } => opener.supply(&get(file, at, len).await).unwrap(),
            Step::Done(image) => return image,
        }
    }
}

pub(crate) async fn get(file: &dyn BlockFile, at: u64, len: u64) -> Vec<u8> {
    // Whole sectors, as devices have it.
    let (from, to) = (at / SECTOR * SECTOR, (at + len).next_multiple_of(SECTOR));
    let into = IoBuf::zeroed(usize::try_from(to - from).unwrap());
    file.submit(Request::Read { at: ByteOffset(from), into: into.clone() }).await.unwrap();
    let skip = usize::try_from(at - from).unwrap();
    into.to_vec()[skip..skip + usize::try_from(len).unwrap()].to_vec()
}

pub(crate) async fn put(file: &dyn BlockFile, at: u64, bytes: &[u8]) {
    let from = at / SECTOR * SECTOR;
    let mut whole =
        get(file, from, (at - from + bytes.len() as u64).next_multiple_of(SECTOR)).await;
    let skip = usize::try_from(at - from).unwrap();
    whole[skip..skip + bytes.len()].copy_from_slice(bytes);
    let request = Request::Write {
        at: ByteOffset(from),
        from: IoBuf::copied(&whole),
        durability: Durability::Cached,
    };
    file.submit(request).await.unwrap();
}

pub(crate) async fn flush(file: &dyn BlockFile) {
    file.submit(Request::Flush).await.unwrap();
}
