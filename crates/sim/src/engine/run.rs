//! Lives of one datastore, and what is checked between them.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use datastore::{FileStore, Identity, Kind};
use disk::Rules;
use futures_util::future::{join, join_all};
use io::sim::{SimWorld, SplitMix64, Survivors};
use io::{BlockDevice, ByteCount, ByteOffset, Executor, IoBuf, Request};
use uuid::Uuid;

use super::deeds::Actors;
use super::host::Host;
use super::ledger::{Ledger, Pending, Point, Volume, zones};
use crate::guest::{Content, History, recognise};
use crate::{SimDirectory, SimNames};

const GUESTS: usize = 3;

/// What a run came to.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Lives that ended in a power cut.
    pub cuts: u64,
    /// Lives that ended in the death of the process.
    pub kills: u64,
    /// Device events over all lives.
    pub events: u64,
    /// How often each deed was tried and answered, refusals included.
    pub deeds: BTreeMap<&'static str, u64>,
    /// Interrupted operations that recovery finished.
    pub finished: u64,
    /// Interrupted operations that recovery undid.
    pub undone: u64,
    /// How often a disk's gate was shut.
    pub gates: u64,
}

impl Outcome {
    /// Adds another run's figures.
    pub fn add(&mut self, other: &Self) {
        self.cuts += other.cuts;
        self.kills += other.kills;
        self.events += other.events;
        self.finished += other.finished;
        self.undone += other.undone;
        self.gates += other.gates;
        for (deed, count) in &other.deeds {
            *self.deeds.entry(deed).or_default() += count;
        }
    }
}

/// Runs one seed: `lives` lives of one datastore.
///
/// # Errors
/// A sentence that names the life and the violation.
pub fn run(seed: u64, lives: u64, rules: Rules) -> Result<Outcome, String> {
    let mut rng = SplitMix64::new(seed ^ 0xE061_4E00);
    let mut outcome = Outcome::default();
    let mut left: Option<(Survivors, SimNames)> = None;
    let ledger = Rc::new(RefCell::new(Ledger::default()));
    let mut boot = 1;
    // a small store is full sooner or later: its guests are held, its operations refused
    let capacity = ByteCount::mib(if rng.between(0, 3) == 0 { 24 } else { 400 });
    // volumes of several segments do everything that others do
    let segment = match seed % 3 {
        0 => catalog::MAX_SEGMENT,
        blocks => blocks * image::BLOCK_BYTES,
    };
    for life in 0..lives {
        let fail = |what: String| format!("life {life}: {what}");
        let (executor, world, directory) = match left.take() {
            None => {
                let (executor, world) = SimWorld::start(rng.next_u64());
                let uuid = Uuid::from_u128(u128::from(seed) + 1);
                let identity = Identity { uuid, name: "sim".to_owned(), created: 1 };
                let directory = SimDirectory::create(&world, capacity, &identity);
                (executor, world, directory)
            }
            Some((survivors, names)) => {
                let (executor, world) = SimWorld::restart(rng.next_u64(), survivors);
                let directory = SimDirectory::restart(&world.spaces()[0], names);
                (executor, world, directory)
            }
        };
        let store = directory.open().map_err(|e| fail(e.to_string()))?;
        let host = executor
            .block_on(Host::start(&world, store, boot, segment, rules))
            .map_err(|e| fail(format!("catalog does not open: {e}")))?;
        for recovered in &host.recovered {
            *(if recovered.finished { &mut outcome.finished } else { &mut outcome.undone }) += 1;
        }
        reconcile(&host, &mut ledger.borrow_mut()).map_err(fail)?;
        verify(&executor, &host, &ledger).map_err(fail)?;
        let actors = Rc::new(Actors::new(host, Rc::clone(&ledger)));
        let until = world.events() + rng.between(1, 3000);
        world.halt_at(until);
        let everyone = join(actors.administer(), join_all((0..GUESTS).map(|_| actors.guest())));
        let ended = executor.run_until_halt(everyone);
        assert!(ended.is_none(), "only the end of the world ends a life");
        outcome.events += world.events();
        outcome.gates += actors.host.gates();
        for deed in actors.done.borrow().iter() {
            *outcome.deeds.entry(deed).or_default() += 1;
        }
        left = Some(if rng.between(0, 1) == 0 {
            outcome.cuts += 1;
            boot += 1;
            let names = directory.cut();
            (world.cut(), names)
        } else {
            outcome.kills += 1;
            let names = directory.kill();
            (world.kill(), names)
        });
        drop((actors, executor));
    }
    Ok(outcome)
}

/// Settles the deed that was interrupted: it happened wholly, or not at all.
fn reconcile(host: &Host, ledger: &mut Ledger) -> Result<(), String> {
    let records: BTreeMap<Uuid, catalog::VolumeRecord> =
        host.catalog.volumes().into_iter().map(|v| (v.uuid, v)).collect();
    match ledger.pending.take() {
        None => return compare(&records, ledger),
        Some(Pending::Make { names, blocks, content, template }) => {
            let made: Vec<_> = records.values().filter(|r| names.contains(&r.name)).collect();
            if !made.is_empty() && made.len() != names.len() {
                return Err(format!("{} of {names:?} were made", made.len()));
            }
            for record in made {
                let mut volume = Volume::new(&record.name, blocks, &content);
                volume.template = template;
                ledger.volumes.insert(record.uuid, volume);
            }
        }
        Some(Pending::Delete { volume }) => {
            ledger.volumes.retain(|id, _| *id != volume || records.contains_key(id));
        }
        Some(Pending::Rename { volume, name }) => {
            let known = ledger.volumes.get_mut(&volume).ok_or("renamed")?;
            if records.get(&volume).is_some_and(|r| r.name == name) {
                known.name = name;
            }
        }
        Some(Pending::Grow { volume, blocks }) => {
            let known = ledger.volumes.get_mut(&volume).ok_or("grown")?;
            if records.get(&volume).is_some_and(|r| r.size / 512 / 4096 == blocks) {
                known.blocks = blocks;
            }
        }
        Some(Pending::Freeze { volume, name }) => {
            let known = ledger.volumes.get_mut(&volume).ok_or("frozen")?;
            if records.get(&volume).is_some_and(|r| r.template) {
                known.template = true;
                known.name = name;
            }
        }
        Some(Pending::DeleteSnapshot { volume, snapshot }) => {
            let gone = |r: &catalog::VolumeRecord| r.snapshots.iter().all(|s| s.uuid != snapshot);
            let known = ledger.volumes.get_mut(&volume).ok_or("thinned")?;
            if records.get(&volume).is_some_and(gone) {
                known.snapshots.remove(&snapshot);
            }
        }
        Some(Pending::Snapshot { members, name }) => {
            let mut found = 0;
            let wanted = members.len();
            for (volume, least) in members {
                let known = ledger.volumes.get_mut(&volume).ok_or("snapshotted")?;
                let content = known.history.borrow_mut().taken(&least);
                let record = records.get(&volume).ok_or("a member is gone")?;
                if let Some(snapshot) = record.snapshots.iter().find(|s| s.name == name) {
                    found += 1;
                    let point = Point::new(&name, snapshot.size, content);
                    known.snapshots.insert(snapshot.uuid, point);
                }
            }
            if found != 0 && found != wanted {
                return Err(format!("{found} of {wanted} volumes have the snapshot {name}"));
            }
        }
        Some(Pending::Revert { volume, snapshot }) => {
            let record = records.get(&volume).ok_or("reverted")?;
            let known = &ledger.volumes[&volume];
            let point = &known.snapshots[&snapshot];
            // a reverted leaf is new and empty: its content tells
            let same_size = record.size / 512 / 4096 == known.blocks;
            if record.current.parent == Some(snapshot) {
                let old = known.history.borrow().content();
                let both = if same_size {
                    merged(&old, &point.content.borrow())
                } else {
                    point.content.borrow().clone()
                };
                let (history, blocks) = (History::of(&both), record.size / 512 / 4096);
                let known = ledger.volumes.get_mut(&volume).ok_or("reverted")?;
                known.history = Rc::new(RefCell::new(history));
                known.blocks = blocks;
            }
        }
    }
    compare(&records, ledger)
}

/// Either content; which one it is shows sector by sector.
fn merged(a: &Content, b: &Content) -> Content {
    let sectors: BTreeSet<u64> = a.keys().chain(b.keys()).copied().collect();
    let of = |c: &Content, s: u64| c.get(&s).cloned().unwrap_or_else(|| vec![0]);
    sectors.into_iter().map(|s| (s, [of(a, s), of(b, s)].concat())).collect()
}

fn compare(records: &BTreeMap<Uuid, catalog::VolumeRecord>, ledger: &Ledger) -> Result<(), String> {
    let found: Vec<&str> = records.values().map(|r| r.name.as_str()).collect();
    if !records.keys().eq(ledger.volumes.keys()) {
        let known: Vec<&str> = ledger.volumes.values().map(|v| v.name.as_str()).collect();
        return Err(format!("volumes found: {found:?}, known: {known:?}"));
    }
    for (id, record) in records {
        let known = &ledger.volumes[id];
        let snapshots: BTreeSet<Uuid> = record.snapshots.iter().map(|s| s.uuid).collect();
        if record.name != known.name
            || record.template != known.template
            || record.size != known.blocks * 4096 * 512
            || !snapshots.iter().eq(known.snapshots.keys())
        {
            return Err(format!("record {record:?} does not fit {known:?}"));
        }
    }
    Ok(())
}

/// Reads everything, and checks the datastore's own structures.
fn verify(executor: &Executor, host: &Host, ledger: &Rc<RefCell<Ledger>>) -> Result<(), String> {
    executor.block_on(async {
        // the shallow copy shares histories and contents with the ledger
        let volumes = ledger.borrow().volumes.clone();
        for (id, volume) in &volumes {
            let name = &volume.name;
            verify_volume(host, *id, volume).await.map_err(|e| format!("volume {name}: {e}"))?;
            for (snapshot, point) in &volume.snapshots {
                let (disk, connection) = host
                    .read_only(*id, Some(*snapshot))
                    .await
                    .map_err(|e| format!("snapshot {} of {name}: {e}", point.name))?;
                let zones = read_zones(&disk, point.blocks).await?;
                end_reading(host, &disk, connection).await?;
                let mut content = point.content.borrow_mut();
                for (sector, bytes) in zones {
                    let allowed = content.get(&sector).cloned().unwrap_or_else(|| vec![0]);
                    let value = recognise(&bytes, sector, &allowed)
                        .map_err(|e| format!("snapshot {} of {name}: {e}", point.name))?;
                    content.insert(sector, vec![value]);
                }
            }
        }
        let mut broken = host.catalog.audit().await.map_err(|e| e.to_string())?;
        broken.extend(host.catalog.audit_accounts().await.map_err(|e| e.to_string())?);
        if !broken.is_empty() {
            return Err(format!("audit: {broken:?}"));
        }
        let intents = host.store.list(Kind::Intent).await.map_err(|e| e.to_string())?;
        if !intents.is_empty() {
            return Err(format!("intents are left: {intents:?}"));
        }
        Ok(())
    })
}

async fn verify_volume(host: &Host, id: Uuid, volume: &Volume) -> Result<(), String> {
    let (disk, lost) = if volume.template {
        let (disk, connection) = read_patiently(host, id).await?;
        host.catalog.disconnect(connection, true).await.map_err(|e| e.to_string())?;
        (disk, false)
    } else {
        let lost = connect_patiently(host, id).await?;
        (host.live(id).ok_or("connected and not there")?.disk, lost)
    };
    let zones = read_zones(&disk, volume.blocks).await?;
    let settle = |history: &mut History| {
        for (sector, bytes) in zones {
            let allowed = if lost { history.after_cut(sector) } else { history.after_kill(sector) };
            let value =
                recognise(&bytes, sector, &allowed).map_err(|e| format!("{e}, lost {lost}"))?;
            history.settle(sector, value);
        }
        Ok::<(), String>(())
    };
    settle(&mut volume.history.borrow_mut())?;
    let leave = volume.template || host.world.random(|rng| rng.chance(50));
    if !leave && !host.disconnect(id).await? {
        return Err("it could not be closed cleanly".to_owned());
    }
    Ok(())
}

/// The last requests of a dead process hold its files for a while (rule P1).
async fn connect_patiently(host: &Host, id: Uuid) -> Result<bool, String> {
    patiently(host, async || host.connect(id).await).await
}

/// The same of a template that an operation of that process concerned.
async fn read_patiently(host: &Host, id: Uuid) -> Result<(disk::Volume, Uuid), String> {
    patiently(host, async || host.read_only(id, None).await).await
}

async fn patiently<T>(
    host: &Host,
    attempt: impl AsyncFn() -> Result<T, String>,
) -> Result<T, String> {
    for _ in 0..200 {
        match attempt().await {
            Err(error)
                if error.contains("lock") || error.contains("holds") || error.contains("held") =>
            {
                let wait = Duration::from_millis(1);
                host.world.delay(wait, wait).await;
            }
            other => return other,
        }
    }
    Err("its files stay locked".to_owned())
}

async fn end_reading(host: &Host, disk: &disk::Volume, connection: Uuid) -> Result<(), String> {
    disk.close().await.map_err(|e| e.to_string())?;
    host.catalog.disconnect(connection, true).await.map_err(|e| e.to_string())
}

async fn read_zones(disk: &disk::Volume, blocks: u64) -> Result<Vec<(u64, Vec<u8>)>, String> {
    let mut sectors = Vec::new();
    for (first, len) in zones(blocks) {
        let into = IoBuf::zeroed(usize::try_from(len * 512).map_err(|e| e.to_string())?);
        let request = Request::Read { at: ByteOffset(first * 512), into: into.clone() };
        disk.submit(request).await.map_err(|e| e.to_string())?;
        let bytes = into.to_vec();
        sectors.extend((first..).zip(bytes.chunks(512).map(<[u8]>::to_vec)));
    }
    Ok(sectors)
}
