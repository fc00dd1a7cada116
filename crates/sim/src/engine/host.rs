//! One process of the host: its catalog and the disks it has open.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use catalog::{
    Catalog, CatalogError, ConnectPlan, ConnectRequest, Env, LayerRef, LogIdentity as LogName,
    LogPlan, Recovered, Running, Tip,
};
use datastore::{Access as Open, FileStore, ObjectName};
use disk::{Access, Disk, LogIdentity, LogState, NewLeaves, OpenChain, Rules, SharedCache, Volume};
use io::sim::SimWorld;
use io::{BlockFile, Io, LogMemory};
use uuid::Uuid;

use crate::SimStore;

/// Bytes of a volume's log: small, so that it often is full.
const LOG: usize = 16 << 10;

/// Clock, names and boot of the simulated host.
pub(super) struct SimEnv {
    pub(super) world: SimWorld,
    pub(super) boot: u64,
    /// Bytes of a segment of new volumes: a few blocks in some runs.
    pub(super) segment: u64,
}

impl Env for SimEnv {
    fn now_ms(&self) -> u64 {
        1_800_000_000_000 + self.world.events()
    }

    fn new_uuid(&self) -> Uuid {
        let (high, low) = self.world.random(|rng| (rng.next_u64(), rng.next_u64()));
        uuid::Builder::from_random_bytes(((u128::from(high) << 64) | u128::from(low)).to_be_bytes())
            .into_uuid()
    }

    fn boot_id(&self) -> String {
        Uuid::from_u128(u128::from(self.boot)).to_string()
    }

    fn segment_bytes(&self) -> u64 {
        self.segment
    }
}

/// A volume that is open for writing.
#[derive(Clone)]
pub(super) struct Live {
    pub(super) disk: Volume,
    pub(super) connection: Uuid,
}

/// The process.
pub(super) struct Host {
    pub(super) world: SimWorld,
    pub(super) store: Rc<SimStore>,
    pub(super) catalog: Catalog,
    pub(super) recovered: Vec<Recovered>,
    disks: Rc<Disks>,
    rules: Rules,
    /// Every other process can remember next to nothing: whatever can be forgotten is.
    cache: SharedCache,
}

struct Disks {
    store: Rc<SimStore>,
    live: RefCell<BTreeMap<Uuid, Live>>,
    /// Leaves that were prepared for a snapshot.
    next: RefCell<BTreeMap<Uuid, NewLeaves>>,
    /// How often the gate of any disk was shut.
    gates: Cell<u64>,
}

impl Host {
    /// Starts the process on a store: its catalog recovers what the last one left.
    pub(super) async fn start(
        world: &SimWorld,
        store: SimStore,
        boot: u64,
        segment: u64,
        rules: Rules,
    ) -> catalog::Result<Self> {
        let store = Rc::new(store);
        let (live, next, gates) = (RefCell::default(), RefCell::default(), Cell::new(0));
        let disks = Rc::new(Disks { store: Rc::clone(&store), live, next, gates });
        let env = Rc::new(SimEnv { world: world.clone(), boot, segment });
        let files: Rc<dyn FileStore> = Rc::<SimStore>::clone(&store);
        let running: Rc<dyn Running> = Rc::<Disks>::clone(&disks);
        let (catalog, recovered) = Catalog::open(files, env, running).await?;
        let little = world.events().is_multiple_of(2);
        let cache = if little { SharedCache::none() } else { SharedCache::new(1 << 20) };
        Ok(Self { world: world.clone(), store, catalog, recovered, disks, rules, cache })
    }

    pub(super) fn live(&self, volume: Uuid) -> Option<Live> {
        self.disks.live.borrow().get(&volume).cloned()
    }

    /// Opens a volume for writing, replaying its log where it survived. True: the log was lost, so
    /// that only what was flushed need be there.
    pub(super) async fn connect(&self, volume: Uuid) -> Result<bool, String> {
        let found = self.log_found(volume)?;
        let request = ConnectRequest {
            volume,
            snapshot: None,
            read_only: false,
            holder: "the simulated host".to_owned(),
            log_found: found,
        };
        let plan = self.catalog.connect(request).await.map_err(|e| format!("connect: {e}"))?;
        let identity = plan.log.clone().ok_or("a writable connection without a log")?;
        let state = match plan.log_plan {
            LogPlan::Fresh => LogState::Clean,
            LogPlan::Replay => LogState::Replay,
            LogPlan::Lost => LogState::Lost,
        };
        let identity = LogIdentity {
            volume,
            boot: Uuid::try_parse(&identity.boot_id).map_err(|e| e.to_string())?,
            generation: identity.generation,
            log: identity.log_id,
        };
        let disk = match self.open(&plan, identity, state).await {
            Ok(disk) => disk,
            Err(error) => {
                let ended = self.catalog.disconnect(plan.connection, false).await;
                return Err(format!(
                    "{error} {}",
                    ended.err().map_or(String::new(), |e| e.to_string())
                ));
            }
        };
        let live = Live { disk, connection: plan.connection };
        self.disks.live.borrow_mut().insert(volume, live);
        Ok(state == LogState::Lost)
    }

    async fn open(
        &self,
        plan: &ConnectPlan,
        identity: LogIdentity,
        state: LogState,
    ) -> Result<Volume, String> {
        let mut disks = Vec::new();
        for (segment, layers) in plan.segments.iter().enumerate() {
            let files = self.files(layers, Open::Write).await.map_err(|e| e.to_string())?;
            let log = log_name(plan.volume, segment);
            let memory: Rc<dyn LogMemory> = Rc::new(self.world.log(&log, LOG));
            let access = Access::Write { memory, identity, state };
            let open = self.chain(plan, layers, files, access);
            let disk = Disk::open(self.world.local().clone(), open).await;
            disks.push(disk.map_err(|e| format!("open: {e}"))?);
        }
        Ok(Volume::new(disks))
    }

    /// The identity in the volume's logs, as the node finds it by reading their heads: where one is
    /// gone, all that was in it is.
    fn log_found(&self, volume: Uuid) -> Result<Option<LogName>, String> {
        let segments = self.catalog.segments(volume).map_err(|e| e.to_string())?;
        let found: Vec<_> = (0..segments)
            .map(|segment| {
                let name = log_name(volume, segment);
                let memory = self.world.has_log(&name).then(|| self.world.log(&name, LOG));
                memory.and_then(|memory| disk::log_identity(&memory).ok())
            })
            .collect();
        let first = found.first().copied().flatten();
        let same = first.filter(|first| found.iter().all(|other| other.as_ref() == Some(first)));
        Ok(same.map(|found| LogName {
            volume: found.volume,
            boot_id: found.boot.to_string(),
            generation: found.generation,
            log_id: found.log,
        }))
    }

    /// Closes a volume; false: not cleanly.
    pub(super) async fn disconnect(&self, volume: Uuid) -> Result<bool, String> {
        let Some(live) = self.live(volume) else { return Ok(true) };
        let clean = live.disk.close().await.is_ok();
        self.disks.live.borrow_mut().remove(&volume);
        let ended = self.catalog.disconnect(live.connection, clean).await;
        ended.map_err(|e| format!("disconnect: {e}"))?;
        if clean {
            for segment in 0..self.catalog.segments(volume).map_err(|e| e.to_string())? {
                self.world.remove_log(&log_name(volume, segment));
            }
        }
        Ok(clean)
    }

    /// Opens a volume at rest, or one of its snapshots, for reading.
    pub(super) async fn read_only(
        &self,
        volume: Uuid,
        snapshot: Option<Uuid>,
    ) -> Result<(Volume, Uuid), String> {
        let request = ConnectRequest {
            volume,
            snapshot,
            read_only: true,
            holder: "a check".to_owned(),
            log_found: None,
        };
        let plan = self.catalog.connect(request).await.map_err(|e| format!("reading: {e}"))?;
        let mut disks = Vec::new();
        for layers in &plan.segments {
            let files = self.files(layers, Open::Read).await;
            let files = files.map_err(|e| format!("reading its files: {e}"))?;
            let open = self.chain(&plan, layers, files, Access::ReadOnly);
            let disk = Disk::open(self.world.local().clone(), open).await;
            disks.push(disk.map_err(|e| e.to_string())?);
        }
        Ok((Volume::new(disks), plan.connection))
    }

    fn chain(
        &self,
        plan: &ConnectPlan,
        layers: &[LayerRef],
        files: Vec<Rc<dyn BlockFile>>,
        access: Access,
    ) -> OpenChain {
        OpenChain {
            files,
            access,
            rules: self.rules,
            cache: self.cache.clone(),
            fixed_base: layers.last().is_some_and(|base| base.fixed),
            keep_space: plan.reserves,
        }
    }

    /// The chain's files, base first.
    async fn files(
        &self,
        layers: &[LayerRef],
        leaf: Open,
    ) -> datastore::Result<Vec<Rc<dyn BlockFile>>> {
        let mut files = Vec::new();
        for (depth, layer) in layers.iter().enumerate().rev() {
            let access = if depth == 0 { leaf } else { Open::Read };
            files.push(self.store.open(&ObjectName::Layer(layer.uuid), access).await?);
        }
        Ok(files)
    }

    /// Space may be there again: held requests try once more.
    pub(super) fn space_freed(&self) {
        for live in self.disks.live.borrow().values() {
            live.disk.space_freed();
        }
    }

    pub(super) fn gates(&self) -> u64 {
        self.disks.gates.get()
    }
}

fn log_name(volume: Uuid, segment: usize) -> String {
    format!("log-{volume}-{segment}")
}

impl Disks {
    fn disk(&self, volume: Uuid) -> Option<Volume> {
        self.live.borrow().get(&volume).map(|live| live.disk.clone())
    }
}

impl Running for Disks {
    fn is_connected(&self, volume: Uuid) -> bool {
        self.live.borrow().contains_key(&volume)
    }

    fn prepare(&self, volume: Uuid, leaves: Tip) -> Io<'_, catalog::Result<()>> {
        Box::pin(async move {
            let Some(disk) = self.disk(volume) else { return Ok(()) };
            let mut files = Vec::new();
            for leaf in leaves.layers() {
                files.push(self.store.open(&ObjectName::Layer(*leaf), Open::Write).await?);
            }
            let leaves = disk
                .open_leaves(files)
                .await
                .map_err(|error| CatalogError::new(catalog::Code::Corrupt, error.to_string()))?;
            self.next.borrow_mut().insert(volume, leaves);
            disk.prepare().await.map_err(CatalogError::from)
        })
    }

    fn gate(&self, volume: Uuid) -> Io<'_, catalog::Result<()>> {
        Box::pin(async move {
            self.gates.set(self.gates.get() + 1);
            match self.disk(volume) {
                Some(disk) => disk.gate().await.map_err(CatalogError::from),
                None => Ok(()),
            }
        })
    }

    fn switch(&self, volume: Uuid, leaves: Tip) -> Io<'_, catalog::Result<()>> {
        Box::pin(async move {
            let Some(disk) = self.disk(volume) else { return Ok(()) };
            let next = self.next.borrow_mut().remove(&volume).expect("prepared leaves");
            assert_eq!(next.uuids(), leaves.layers(), "the leaves that were prepared");
            disk.switch(next);
            Ok(())
        })
    }

    fn ungate(&self, volume: Uuid) -> Io<'_, ()> {
        Box::pin(async move {
            drop(self.next.borrow_mut().remove(&volume));
            if let Some(disk) = self.disk(volume) {
                disk.ungate();
            }
        })
    }

    fn abandon(&self, volume: Uuid) -> Io<'_, ()> {
        Box::pin(async move {
            drop(self.next.borrow_mut().remove(&volume));
            if let Some(disk) = self.disk(volume) {
                disk.abandon();
            }
        })
    }
}
