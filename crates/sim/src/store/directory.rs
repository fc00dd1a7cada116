//! What lies on the simulated disk: for each name its durable file and the changes not yet synced.
//! A file's bytes stay in the space as long as a name, also only a durable or an unsynced one, or an
//! open handle leads to it.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use datastore::{Access, Identity, Kind, ObjectInfo, ObjectName, Result, Space};
use futures_util::lock::Mutex;
use io::sim::{FileId, SimSpace, SimWorld, SplitMix64};
use io::{BlockDevice as _, BlockFile as _, BootInstant, ByteCount, IoError, IoErrorKind};

use super::Countdown;
use super::gate::Gate;

/// Longest time that requests of a dead process hold a lock.
const LINGER: Duration = Duration::from_millis(200);

/// Where a name leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) file: FileId,
    /// Length of an object made by `put`; files in use know theirs themselves.
    pub(super) len: Option<u64>,
}

/// One name: where it leads durably, and the later changes with their numbers.
#[derive(Clone, Debug, Default)]
struct Slot {
    durable: Option<Entry>,
    changes: Vec<(u64, Option<Entry>)>,
}

impl Slot {
    fn now(&self) -> Option<Entry> {
        self.changes.last().map_or(self.durable, |(_, entry)| *entry)
    }

    fn files(&self) -> impl Iterator<Item = FileId> + '_ {
        let changed = self.changes.iter().filter_map(|(_, entry)| *entry);
        self.durable.into_iter().chain(changed).map(|entry| entry.file)
    }
}

type Slots = BTreeMap<ObjectName, Slot>;

/// The names that an end of the world left. Goes with the space of the [`io::sim::Survivors`].
#[derive(Clone, Debug)]
pub struct SimNames {
    slots: Slots,
    identity: Identity,
    capacity: ByteCount,
    head_room: ByteCount,
    lingering: BTreeMap<FileId, Duration>,
}

impl SimNames {
    /// The same, but every request of the dead process has ended: no file is locked any more.
    #[must_use]
    pub fn settled(mut self) -> Self {
        self.lingering.clear();
        self
    }
}

/// A datastore on a simulated disk.
#[derive(Clone, Debug)]
pub struct SimDirectory(pub(super) Rc<State>);

#[derive(Debug)]
pub(super) struct State {
    pub(super) space: SimSpace,
    pub(super) identity: Identity,
    pub(super) opened: Cell<bool>,
    pub(super) gate: Gate,
    /// Orders the changes of names.
    pub(super) changing: Mutex<()>,
    /// Number of the latest change of a name.
    pub(super) changes: Cell<u64>,
    pub(super) fail_sync: Countdown,
    slots: RefCell<Slots>,
    capacity: Cell<ByteCount>,
    head_room: ByteCount,
    /// Open handles and writers of each file.
    handles: RefCell<BTreeMap<FileId, (usize, bool)>>,
    lingering: BTreeMap<FileId, BootInstant>,
}

impl SimDirectory {
    /// A new empty datastore on `capacity` bytes of new space, 1 % of which, but 1 MiB at least, is
    /// head-room.
    #[must_use]
    pub fn create(world: &SimWorld, capacity: ByteCount, identity: &Identity) -> Self {
        let names = SimNames {
            slots: Slots::new(),
            identity: identity.clone(),
            capacity,
            head_room: ByteCount((capacity.0 / 100).max(1 << 20)),
            lingering: BTreeMap::new(),
        };
        Self::restart(&world.add_space(capacity), names)
    }

    /// The datastore in the next world: `space` is the one it lay in, by order.
    #[must_use]
    pub fn restart(space: &SimSpace, names: SimNames) -> Self {
        let now = space.world().local().now();
        let lingering = names.lingering.into_iter().map(|(file, time)| (file, now + time));
        // a power cut may bring back what was punched, though its space is used again: a file system
        // journals both in one order, and never holds more than fits
        let least = ByteCount(space.used().0 + names.head_room.0);
        let capacity = names.capacity.max(least);
        let state = State {
            space: space.clone(),
            identity: names.identity,
            opened: Cell::new(false),
            gate: Gate::default(),
            changing: Mutex::new(()),
            changes: Cell::new(
                names.slots.values().flat_map(|s| &s.changes).map(|(n, _)| *n).max().unwrap_or(0),
            ),
            fail_sync: Countdown::default(),
            slots: RefCell::new(names.slots),
            capacity: Cell::new(capacity),
            head_room: names.head_room,
            handles: RefCell::default(),
            lingering: lingering.collect(),
        };
        state.limit_guests();
        state.collect();
        Self(Rc::new(state))
    }

    /// Which names a power cut leaves. Stops the world; its `cut` gives the files.
    #[must_use]
    pub fn cut(&self) -> SimNames {
        let world = self.0.space.world();
        world.stop();
        world.random(|rng| {
            let manner = rng.below(4);
            let slots = self.0.slots.borrow();
            let slots = slots.iter().filter_map(|(name, slot)| {
                let durable = survivor(slot, manner, rng)?;
                Some((*name, Slot { durable: Some(durable), changes: Vec::new() }))
            });
            self.names(slots.collect(), BTreeMap::new())
        })
    }

    /// Which names the death of the process leaves: all, synced or not. Files it was writing to may
    /// stay locked for a while. Stops the world; its `kill` gives the files.
    #[must_use]
    pub fn kill(&self) -> SimNames {
        let world = self.0.space.world();
        world.stop();
        let handles = self.0.handles.borrow();
        let written = handles.iter().filter(|(_, (_, writer))| *writer);
        let longest = u64::try_from(LINGER.as_micros()).expect("a short time");
        let lingering = world.random(|rng| {
            let lingers = written.filter_map(|(file, _)| {
                let time = Duration::from_micros(rng.between(1, longest));
                rng.chance(50).then_some((*file, time))
            });
            lingers.collect()
        });
        self.names(self.0.slots.borrow().clone(), lingering)
    }

    fn names(&self, slots: Slots, lingering: BTreeMap<FileId, Duration>) -> SimNames {
        SimNames {
            slots,
            identity: self.0.identity.clone(),
            capacity: self.0.capacity.get(),
            head_room: self.0.head_room,
            lingering,
        }
    }

    /// The space below, for its fault switches and for checks.
    #[must_use]
    pub fn space(&self) -> &SimSpace {
        &self.0.space
    }

    /// Changes the capacity, head-room included.
    pub fn set_capacity(&self, capacity: ByteCount) {
        self.0.capacity.set(capacity);
        self.0.limit_guests();
    }

    /// The `n`-th sync of names from now fails.
    pub fn fail_sync(&self, n: u64) {
        self.0.fail_sync.0.set(n);
    }
}

/// Where a name leads after a cut: 0 = nothing unsynced is kept, 1 = all is, else each for itself.
fn survivor(slot: &Slot, manner: u64, rng: &mut SplitMix64) -> Option<Entry> {
    let kept = match manner {
        0 => 0,
        1 => slot.changes.len(),
        _ => usize::try_from(rng.below(slot.changes.len() as u64 + 1)).expect("a small count"),
    };
    slot.changes[..kept].last().map_or(slot.durable, |(_, entry)| *entry)
}

/// The whole space, until this is dropped.
#[derive(Debug)]
pub(super) struct Borrowed<'a>(&'a State);

impl Drop for Borrowed<'_> {
    fn drop(&mut self) {
        if self.0.gate.give_back() {
            self.0.limit_guests();
        }
    }
}

impl State {
    fn limit_guests(&self) {
        let rest = self.capacity.get().0.saturating_sub(self.head_room.0);
        self.space.set_capacity(ByteCount(rest));
    }

    pub(super) async fn borrow_head_room(&self) -> Borrowed<'_> {
        self.gate.borrow().await;
        self.space.set_capacity(self.capacity.get());
        Borrowed(self)
    }

    pub(super) fn find(&self, name: ObjectName) -> Result<Entry> {
        self.slots.borrow().get(&name).and_then(Slot::now).ok_or_else(|| {
            IoError::new(IoErrorKind::NotFound, format!("{name} is not there")).into()
        })
    }

    /// Changes where a name leads; not durable yet.
    pub(super) fn change(&self, name: ObjectName, entry: Option<Entry>) {
        let number = self.changes.get() + 1;
        self.changes.set(number);
        self.slots.borrow_mut().entry(name).or_default().changes.push((number, entry));
    }

    pub(super) fn has_changes(&self, kind: Kind) -> bool {
        self.slots
            .borrow()
            .iter()
            .any(|(name, slot)| name.kind() == kind && !slot.changes.is_empty())
    }

    /// Changes of names of a kind up to number `covers` are durable.
    pub(super) fn synced(&self, kind: Kind, covers: u64) {
        self.slots.borrow_mut().retain(|name, slot| {
            if name.kind() == kind {
                let covered = slot.changes.partition_point(|(number, _)| *number <= covers);
                if let Some((_, entry)) = slot.changes.drain(..covered).next_back() {
                    slot.durable = entry;
                }
            }
            slot.durable.is_some() || !slot.changes.is_empty()
        });
    }

    pub(super) fn len(&self, entry: &Entry) -> Result<ByteCount> {
        match entry.len {
            Some(len) => Ok(ByteCount(len)),
            None => Ok(self.space.open(entry.file, true)?.info().size),
        }
    }

    pub(super) async fn list(&self, kind: Kind) -> Result<Vec<ObjectInfo>> {
        if kind == Kind::Identity {
            let len = ByteCount::of(self.identity_object().len());
            let used = ByteCount::ZERO;
            return Ok(vec![ObjectInfo { name: ObjectName::Identity, len, used }]);
        }
        let found: Vec<(ObjectName, Entry)> = {
            let slots = self.slots.borrow();
            let slots = slots.iter().filter(|(name, _)| name.kind() == kind);
            slots.filter_map(|(name, slot)| Some((*name, slot.now()?))).collect()
        };
        let mut objects = Vec::new();
        for (name, entry) in found {
            // Removed while the list went on.
            let Ok(file) = self.space.open(entry.file, true) else { continue };
            let used = file.used().await?;
            objects.push(ObjectInfo { name, len: self.len(&entry)?, used });
        }
        Ok(objects)
    }

    pub(super) async fn used(&self, name: ObjectName) -> Result<Option<ByteCount>> {
        let Ok(entry) = self.find(name) else { return Ok(None) };
        let file = self.space.open(entry.file, true)?;
        Ok(Some(file.used().await?))
    }

    pub(super) async fn measure(&self) -> Result<Space> {
        let mut used = 0;
        for kind in Kind::DIRECTORIES {
            used += self.list(kind).await?.iter().map(|object| object.used.0).sum::<u64>();
        }
        let (total, taken) = (self.capacity.get(), self.space.used().0);
        Ok(Space {
            total,
            free: ByteCount(total.0.saturating_sub(self.head_room.0).saturating_sub(taken)),
            used_by_store: ByteCount(used),
            overhead: ByteCount(taken.saturating_sub(used)),
        })
    }

    pub(super) fn identity_object(&self) -> Vec<u8> {
        let Identity { uuid, name, created } = &self.identity;
        let json = serde_json::json!({"format": 1, "uuid": uuid, "name": name, "created": created});
        json.to_string().into_bytes()
    }

    pub(super) fn hold(&self, file: FileId, access: Access) {
        let mut handles = self.handles.borrow_mut();
        let (count, writer) = handles.entry(file).or_default();
        assert!(access == Access::Read || !*writer, "{file:?} got a second writer");
        *count += 1;
        *writer |= access == Access::Write;
    }

    pub(super) fn release(&self, file: FileId, access: Access) {
        let mut handles = self.handles.borrow_mut();
        let (count, writer) = handles.get_mut(&file).expect("a hold that was taken");
        *count -= 1;
        *writer &= access == Access::Read;
        if *count == 0 {
            handles.remove(&file);
        }
    }

    /// Whether someone holds the file for writing, be it a dead process.
    pub(super) fn is_locked(&self, file: FileId) -> bool {
        let now = self.space.world().local().now();
        self.handles.borrow().get(&file).is_some_and(|(_, writer)| *writer)
            || self.lingering.get(&file).is_some_and(|until| now < *until)
    }

    /// Frees what no name and no handle leads to.
    pub(super) fn collect(&self) {
        let named: BTreeSet<FileId> = self
            .slots
            .borrow()
            .values()
            .flat_map(|slot| slot.files().collect::<Vec<_>>())
            .collect();
        let handles = self.handles.borrow();
        for file in self.space.files() {
            if !named.contains(&file) && !handles.contains_key(&file) {
                self.space.remove(file);
            }
        }
    }

    /// The same for one file.
    pub(super) fn collect_one(&self, file: FileId) {
        let named = self.slots.borrow().values().any(|slot| slot.files().any(|id| id == file));
        if !named && !self.handles.borrow().contains_key(&file) {
            self.space.remove(file);
        }
    }
}
