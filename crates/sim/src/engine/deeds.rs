//! What administrators and guests do.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use catalog::{CopyTarget, Deploy, LeafSpace, NewVolume, Source, Unwatched, VolumeKind};
use io::{
    BlockDevice, ByteCount, ByteOffset, ByteRange, Clear, Durability, Effort, IoBuf, Request,
};
use uuid::Uuid;

use super::host::Host;
use super::ledger::{BLOCK, HEAD, Ledger, Pending, Point, TAIL, Volume};
use crate::guest::{Content, ZERO, sector_bytes};

/// Everyone who acts during one life.
pub(super) struct Actors {
    pub(super) host: Host,
    pub(super) ledger: Rc<RefCell<Ledger>>,
    /// Ranges that guests are writing: volume, first sector, length.
    busy: RefCell<Vec<(Uuid, u64, u64)>>,
    /// Deeds that were done, by name.
    pub(super) done: RefCell<Vec<&'static str>>,
}

/// At most this many volumes at a time: what a run costs is their verification.
const MAX_VOLUMES: usize = 7;

impl Actors {
    pub(super) fn new(host: Host, ledger: Rc<RefCell<Ledger>>) -> Self {
        Self { host, ledger, busy: RefCell::default(), done: RefCell::default() }
    }

    fn dice(&self, below: u64) -> u64 {
        self.host.world.random(|rng| rng.between(0, below - 1))
    }

    fn any_volume(&self, fits: impl Fn(&Volume, bool) -> bool) -> Option<Uuid> {
        let ledger = self.ledger.borrow();
        let all: Vec<Uuid> = ledger
            .volumes
            .iter()
            .filter(|(id, v)| fits(v, self.host.live(**id).is_some()))
            .map(|(id, _)| *id)
            .collect();
        let pick = usize::try_from(self.dice(all.len().max(1) as u64)).ok()?;
        all.get(pick).copied()
    }

    fn begin(&self, pending: Pending) {
        self.ledger.borrow_mut().pending = Some(pending);
    }

    /// A deed ended. In a stopped world nobody was told.
    fn end(&self, what: &'static str) -> bool {
        if self.host.world.is_stopped() {
            return false;
        }
        self.done.borrow_mut().push(what);
        self.ledger.borrow_mut().pending = None;
        self.host.space_freed();
        true
    }

    /// Administrators act one after the other, until the world ends.
    pub(super) async fn administer(&self) {
        loop {
            self.host.world.delay(Duration::ZERO, Duration::from_micros(300)).await;
            let volumes = self.ledger.borrow().volumes.len();
            match self.dice(24) {
                0..=2 if volumes < MAX_VOLUMES => self.create().await,
                3..=6 => self.connect().await,
                7..=8 => self.disconnect().await,
                9..=13 => self.snapshot().await,
                14..=15 => self.delete_snapshot().await,
                16 => self.revert().await,
                17 if volumes < MAX_VOLUMES => self.clone_linked().await,
                18 if volumes < MAX_VOLUMES => self.copy().await,
                19 => self.grow().await,
                20 => self.delete().await,
                21 => self.rename().await,
                22 => self.freeze().await,
                23 => self.convert().await,
                _ => {}
            }
        }
    }

    async fn create(&self) {
        let name = self.ledger.borrow().name();
        let blocks = 1 + self.dice(3);
        self.begin(Pending::Make {
            names: vec![name.clone()],
            blocks,
            content: Content::new(),
            template: false,
        });
        let size = ByteCount(blocks * BLOCK * 512);
        let new = NewVolume { name: name.clone(), size, kind: self.kind() };
        let made = self.host.catalog.create_volume(new, &Unwatched).await;
        if self.end("create")
            && let Ok(record) = made
        {
            let volume = Volume::new(&name, blocks, &Content::new());
            self.ledger.borrow_mut().volumes.insert(record.uuid, volume);
        }
    }

    /// Mostly thin: the others write more than they are asked to.
    fn kind(&self) -> VolumeKind {
        match self.dice(8) {
            0 => VolumeKind::Fixed,
            1 => VolumeKind::Lazy,
            _ => VolumeKind::Thin,
        }
    }

    /// Whatever becomes of it, guests see no difference.
    async fn convert(&self) {
        let Some(volume) = self.any_volume(|v, live| !live && !v.template) else { return };
        let (kind, lose) = (self.kind(), false);
        drop(self.host.catalog.convert(volume, kind, lose, &Unwatched).await);
        self.end("convert");
    }

    async fn connect(&self) {
        let Some(volume) = self.any_volume(|v, live| !v.template && !live) else { return };
        // a failure shows when the volume is verified
        drop(self.host.connect(volume).await);
        self.done.borrow_mut().push("connect");
    }

    async fn disconnect(&self) {
        let Some(volume) = self.any_volume(|_, live| live) else { return };
        let history = Rc::clone(&self.ledger.borrow().volumes[&volume].history);
        if self.host.disconnect(volume).await == Ok(true) && !self.host.world.is_stopped() {
            let mut history = history.borrow_mut();
            let now = history.tick();
            history.flushed(now);
            self.done.borrow_mut().push("disconnect");
        }
    }

    async fn snapshot(&self) {
        let Some(first) = self.any_volume(|v, _| !v.template && v.snapshots.len() < 6) else {
            return;
        };
        let mut volumes = vec![first];
        if self.dice(3) == 0
            && let Some(second) = self.any_volume(|v, _| !v.template && v.snapshots.len() < 6)
            && second != first
        {
            volumes.push(second);
        }
        let name = self.ledger.borrow().name();
        // what was acknowledged before is in it; what comes meanwhile may be
        let members: Vec<(Uuid, Content)> = volumes
            .iter()
            .map(|v| (*v, self.ledger.borrow().volumes[v].history.borrow_mut().take()))
            .collect();
        self.begin(Pending::Snapshot { members: members.clone(), name: name.clone() });
        let space = if self.dice(4) == 0 { LeafSpace::AsItGrows } else { LeafSpace::AsTheKind };
        let made = self.host.catalog.snapshot_create(&volumes, &name, space).await;
        if !self.end("snapshot") {
            return;
        }
        let mut ledger = self.ledger.borrow_mut();
        for (volume, least) in members {
            let entry = ledger.volumes.get_mut(&volume).expect("a member is known");
            let content = entry.history.borrow_mut().taken(&least);
            let set = made.as_ref().ok();
            let member = set.and_then(|set| set.members.iter().find(|m| m.0 == volume));
            if let Some((_, snapshot)) = member {
                entry.snapshots.insert(snapshot.uuid, Point::new(&name, snapshot.size, content));
            }
        }
    }

    async fn delete_snapshot(&self) {
        let Some(volume) = self.any_volume(|v, live| !live && !v.snapshots.is_empty()) else {
            return;
        };
        let Some(snapshot) = self.any_snapshot(volume) else { return };
        self.begin(Pending::DeleteSnapshot { volume, snapshot });
        let gone = self.host.catalog.snapshot_delete(volume, snapshot, &Unwatched).await;
        if self.end("delete-snapshot") && gone.is_ok() {
            let mut ledger = self.ledger.borrow_mut();
            ledger.volumes.get_mut(&volume).expect("known").snapshots.remove(&snapshot);
        }
    }

    fn any_snapshot(&self, volume: Uuid) -> Option<Uuid> {
        let ledger = self.ledger.borrow();
        let all: Vec<Uuid> = ledger.volumes[&volume].snapshots.keys().copied().collect();
        let pick = usize::try_from(self.dice(all.len().max(1) as u64)).ok()?;
        all.get(pick).copied()
    }

    async fn revert(&self) {
        let Some(volume) = self.any_volume(|v, live| !live && !v.snapshots.is_empty()) else {
            return;
        };
        let Some(snapshot) = self.any_snapshot(volume) else { return };
        self.begin(Pending::Revert { volume, snapshot });
        let reverted = self.host.catalog.snapshot_revert(volume, snapshot).await;
        if self.end("revert") && reverted.is_ok() {
            self.ledger.borrow_mut().reverted(volume, snapshot);
        }
    }

    /// Content and size of what is cloned or copied.
    fn source(&self, volume: Uuid, snapshot: Option<Uuid>) -> (Content, u64) {
        let ledger = self.ledger.borrow();
        let volume = &ledger.volumes[&volume];
        match snapshot {
            Some(id) => {
                let point = &volume.snapshots[&id];
                (point.content.borrow().clone(), point.blocks)
            }
            None => (volume.history.borrow().content(), volume.blocks),
        }
    }

    async fn clone_linked(&self) {
        let Some(volume) = self.any_volume(|v, _| v.template || !v.snapshots.is_empty()) else {
            return;
        };
        let template = self.ledger.borrow().volumes[&volume].template;
        let snapshot = if template { None } else { self.any_snapshot(volume) };
        let names: Vec<String> =
            (0..1 + self.dice(2)).map(|_| self.ledger.borrow().name()).collect();
        let (content, blocks) = self.source(volume, snapshot);
        self.begin(Pending::Make {
            names: names.clone(),
            blocks,
            content: content.clone(),
            template: false,
        });
        let made = if template {
            let linked = Deploy::Linked;
            self.host.catalog.template_deploy(volume, names, linked, &Unwatched).await
        } else {
            self.host.catalog.clone_linked(Source { volume, snapshot }, names).await
        };
        if self.end("clone")
            && let Ok(records) = made
        {
            for record in records {
                let volume = Volume::new(&record.name, blocks, &content);
                self.ledger.borrow_mut().volumes.insert(record.uuid, volume);
            }
        }
    }

    async fn copy(&self) {
        let Some(volume) = self.any_volume(|v, live| !live || !v.snapshots.is_empty()) else {
            return;
        };
        let live = self.host.live(volume).is_some();
        let snapshot = if live { self.any_snapshot(volume) } else { None };
        let name = self.ledger.borrow().name();
        let (content, blocks) = self.source(volume, snapshot);
        self.begin(Pending::Make {
            names: vec![name.clone()],
            blocks,
            content: content.clone(),
            template: false,
        });
        let target = CopyTarget { name: name.clone(), kind: None, template: false };
        let source = Source { volume, snapshot };
        let made = self.host.catalog.copy_full(source, target, &Unwatched).await;
        if self.end("copy")
            && let Ok(record) = made
        {
            let volume = Volume::new(&name, blocks, &content);
            self.ledger.borrow_mut().volumes.insert(record.uuid, volume);
        }
    }

    async fn grow(&self) {
        let Some(volume) = self.any_volume(|v, live| !live && !v.template && v.blocks < 5) else {
            return;
        };
        let blocks = self.ledger.borrow().volumes[&volume].blocks + 1;
        self.begin(Pending::Grow { volume, blocks });
        let grown = self.host.catalog.resize(volume, ByteCount(blocks * BLOCK * 512)).await;
        if self.end("grow") && grown.is_ok() {
            self.ledger.borrow_mut().volumes.get_mut(&volume).expect("known").blocks = blocks;
        }
    }

    async fn delete(&self) {
        let Some(volume) = self.any_volume(|_, live| !live) else { return };
        self.begin(Pending::Delete { volume });
        let gone = self.host.catalog.delete_volume(volume).await;
        if self.end("delete") && gone.is_ok() {
            self.ledger.borrow_mut().volumes.remove(&volume);
        }
    }

    async fn rename(&self) {
        let Some(volume) = self.any_volume(|_, _| true) else { return };
        let name = self.ledger.borrow().name();
        self.begin(Pending::Rename { volume, name: name.clone() });
        let renamed = self.host.catalog.rename(volume, &name).await;
        if self.end("rename") && renamed.is_ok() {
            self.ledger.borrow_mut().volumes.get_mut(&volume).expect("known").name = name;
        }
    }

    async fn freeze(&self) {
        let Some(volume) = self.any_volume(|v, live| !live && !v.template) else { return };
        let name = self.ledger.borrow().name();
        self.begin(Pending::Freeze { volume, name: name.clone() });
        let source = Source { volume, snapshot: None };
        let frozen = self.host.catalog.template_create(source, &name, &Unwatched).await;
        if self.end("freeze") && frozen.is_ok() {
            let mut ledger = self.ledger.borrow_mut();
            let volume = ledger.volumes.get_mut(&volume).expect("known");
            volume.name = name;
            volume.template = true;
        }
    }

    /// A guest of whatever volume is connected, until the world ends.
    pub(super) async fn guest(&self) {
        loop {
            self.host.world.delay(Duration::ZERO, Duration::from_micros(200)).await;
            let Some(volume) = self.any_volume(|_, live| live) else { continue };
            match self.dice(10) {
                0..=5 => self.write(volume).await,
                6 => self.clear(volume, false).await,
                7 => self.clear(volume, true).await,
                _ => self.flush(volume).await,
            }
        }
    }

    /// A range that no other request is in.
    fn pick(&self, volume: Uuid, whole: bool) -> Option<(u64, u64)> {
        let blocks = self.ledger.borrow().volumes.get(&volume)?.blocks;
        let start = self.dice(blocks) * BLOCK;
        let range = if whole {
            (start, BLOCK)
        } else if self.dice(4) == 0 {
            let from = self.dice(TAIL);
            (start + BLOCK - TAIL + from, 1 + self.dice(TAIL - from))
        } else {
            let from = self.dice(HEAD);
            (start + from, 1 + self.dice(HEAD - from))
        };
        let clash =
            |b: &(Uuid, u64, u64)| b.0 == volume && b.1 < range.0 + range.1 && range.0 < b.1 + b.2;
        if self.busy.borrow().iter().any(clash) {
            return None;
        }
        self.busy.borrow_mut().push((volume, range.0, range.1));
        Some(range)
    }

    async fn write(&self, volume: Uuid) {
        let Some(live) = self.host.live(volume) else { return };
        let Some((at, len)) = self.pick(volume, false) else { return };
        let value = self.ledger.borrow().value();
        let bytes: Vec<u8> = (at..at + len).flat_map(|s| sector_bytes(value, s)).collect();
        let durable = self.dice(8) == 0;
        let durability = if durable { Durability::Durable } else { Durability::Cached };
        let request =
            Request::Write { at: ByteOffset(at * 512), from: IoBuf::copied(&bytes), durability };
        self.change(volume, &live.disk, &[(at, len)], value, request).await;
        self.busy.borrow_mut().retain(|b| *b != (volume, at, len));
    }

    async fn clear(&self, volume: Uuid, whole: bool) {
        let Some(live) = self.host.live(volume) else { return };
        let Some((at, len)) = self.pick(volume, whole) else { return };
        let how = if self.dice(3) == 0 { Clear::KeepSpace } else { Clear::Deallocate };
        let value = ZERO | self.ledger.borrow().value();
        let touched = match whole {
            true => vec![(at, HEAD), (at + BLOCK - TAIL, TAIL)],
            false => vec![(at, len)],
        };
        let range = ByteRange::new(at * 512, len * 512);
        let (effort, durability) = (Effort::Any, Durability::Cached);
        let request = Request::Clear { range, how, effort, durability };
        self.change(volume, &live.disk, &touched, value, request).await;
        self.busy.borrow_mut().retain(|b| *b != (volume, at, len));
    }

    async fn change(
        &self,
        volume: Uuid,
        disk: &disk::Volume,
        touched: &[(u64, u64)],
        value: u64,
        request: Request,
    ) {
        let Some(history) = self.history(volume) else { return };
        for (at, len) in touched {
            history.borrow_mut().submit(*at, *len, value);
        }
        if disk.submit(request).await.is_ok() && !self.host.world.is_stopped() {
            for (at, len) in touched {
                history.borrow_mut().acknowledge(*at, *len, value);
            }
        }
    }

    async fn flush(&self, volume: Uuid) {
        let Some(live) = self.host.live(volume) else { return };
        let Some(history) = self.history(volume) else { return };
        let began = history.borrow_mut().tick();
        if live.disk.submit(Request::Flush).await.is_ok() && !self.host.world.is_stopped() {
            history.borrow_mut().flushed(began);
        }
    }

    fn history(&self, volume: Uuid) -> Option<Rc<RefCell<crate::guest::History>>> {
        self.ledger.borrow().volumes.get(&volume).map(|v| Rc::clone(&v.history))
    }
}
