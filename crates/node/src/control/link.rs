//! Connections: connect, disconnect, and what becomes of them after a restart.
//!
//! ```text
//!   connect      catalog: generation, log ─► open on a home thread ─► connections.json ─► listen ─► told
//!   disconnect   connections.json: closing ─► drain, full flush ─► catalog ─► log gone ─► entry gone
//!   restart      open:    log matches exactly ─► replay, listen at the same place
//!                         anything else       ─► power cut: recovered, entry stopped, alarm (D4, P2)
//!                closing: recovered and closed to the end
//! ```

use std::cell::{Cell, Ref, RefCell};
use std::collections::BTreeSet;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use catalog::{Catalog, ConnectPlan, ConnectRequest, LogPlan};
use datastore::ObjectName;
use disk::{LogError, LogIdentity, LogState};
use io::{IoError, IoErrorKind, ShmFile};
use model::{
    Code, ConnectVolume, ObjectKind, ObjectRef, Operation, Problem, Protocol, Reference, Severity,
};
use serde_json::Value;
use uuid::Uuid;

use super::operations::{find_snapshot, settled_value};
use super::stores::{Opened, Store, to_value};
use super::{Control, catalog_problem};
use crate::alarms;
use crate::connections::{self, Entry, Phase};
use crate::crash;
use crate::home::{Home, LOG_LENGTHS, Log, Opening, Place};
use crate::problem::{Outcome, from_gone, from_io};
use crate::tasks::{About, Progress};
use crate::worker::Worker;

/// Bytes of a log that are looked at when the rest cannot be.
const LOG_HEAD: u64 = 4096;

/// One connection.
pub(super) struct Link {
    entry: RefCell<Entry>,
    live: Cell<Option<Live>>,
}

/// Where a connection is served.
#[derive(Clone, Copy)]
struct Live {
    home: usize,
    /// The catalog's name for it.
    connection: Uuid,
}

impl Link {
    pub(super) fn entry(&self) -> Ref<'_, Entry> {
        self.entry.borrow()
    }

    /// Whether a disk is open for it.
    pub(super) fn is_live(&self) -> bool {
        self.live.get().is_some()
    }

    fn stop(&self, reason: &str) {
        self.entry.borrow_mut().phase = Phase::Stopped { reason: reason.to_owned() };
        self.live.set(None);
    }
}

impl Control {
    pub(super) fn link(&self, id: Uuid) -> Option<Rc<Link>> {
        self.links.borrow().get(&id).cloned()
    }

    /// The volume's own connection, not one of its snapshots'.
    pub(super) fn link_of_volume(&self, volume: Uuid) -> Option<Rc<Link>> {
        self.link(volume)
    }

    /// Where the volume is open for writing.
    pub(super) fn home_of(&self, volume: Uuid) -> Option<Worker<Home>> {
        let link = self.link(volume)?;
        let live = link.live.get()?;
        if link.entry().read_only { None } else { self.homes.get(live.home).cloned() }
    }

    fn home(&self, index: usize) -> &Worker<Home> {
        self.homes.get(index).expect("a home index comes from this list")
    }

    /// The home with the fewest disks.
    fn quietest_home(&self) -> usize {
        let mut disks = vec![0_usize; self.homes.len()];
        for link in self.links.borrow().values() {
            if let Some(count) = link.live.get().and_then(|live| disks.get_mut(live.home)) {
                *count += 1;
            }
        }
        let quietest = disks.iter().enumerate().min_by_key(|(_, count)| **count);
        quietest.map_or(0, |(index, _)| index)
    }

    async fn save_links(&self) -> Outcome<()> {
        let _ordered = self.saving.lock().await;
        let entries: Vec<Entry> =
            self.links.borrow().values().map(|link| link.entry().clone()).collect();
        let shared = std::sync::Arc::clone(&self.shared);
        self.ring.run_blocking(move || connections::save(&shared.data, &entries)).await.map_err(
            |error| {
                Problem::new(Code::IoError, format!("{error}."))
                    .hint("free space in the node's data directory, then try again")
            },
        )
    }

    // --- connect ---

    pub(crate) async fn connect(
        self: Rc<Self>,
        volume: Uuid,
        request: ConnectVolume,
        progress: Rc<Progress>,
    ) -> Outcome<Value> {
        let (store, record) = self.find(volume)?;
        let opened = store.opened()?;
        if request.protocol == Protocol::VhostUser && request.tcp {
            let detail = "vhost-user shares the guest's memory, so it has a unix socket only.";
            return Err(Problem::new(Code::BadRequest, detail).hint("leave out --tcp"));
        }
        let snapshot =
            request.snapshot.as_ref().map(|wanted| find_snapshot(&record, wanted)).transpose()?;
        if snapshot.is_some() && !request.read_only {
            return Err(Problem::new(
                Code::ReadOnly,
                format!("A snapshot of {} can only be connected read-only.", record.name),
            )
            .hint("add --read-only, or make a linked clone of it"));
        }
        let _working = self.work_on(&[volume], progress.id())?;
        let id = snapshot.unwrap_or(volume);
        if self.link(id).is_some_and(|link| link.is_live()) {
            return Err(Problem::new(
                Code::Connected,
                format!("{} is connected already.", record.name),
            )
            .hint("disconnect it first, or use its connection"));
        }
        progress.running("connecting");
        // Before the old connection is forgotten: one whose log is another version's stays on record
        // for that version.
        let found = self.found_log(&opened.catalog, volume).await?;
        self.drop_link(id).await?;
        let plan = opened
            .catalog
            .connect(ConnectRequest {
                volume,
                snapshot,
                read_only: request.read_only,
                holder: format!("node on {} (process {})", self.shared.host, std::process::id()),
                log_found: found,
            })
            .await
            .map_err(catalog_problem)?;
        crash::point("connect-planned");
        let place = if request.tcp {
            Place::Tcp(0)
        } else {
            Place::Socket(self.shared.data.guest_socket(id))
        };
        let entry = Entry {
            volume,
            datastore: store.id(),
            snapshot,
            read_only: plan.read_only,
            protocol: request.protocol,
            socket: match &place {
                Place::Socket(path) => Some(path.clone()),
                Place::Tcp(_) => None,
            },
            tcp_port: None,
            generation: plan.log.as_ref().map_or(0, |log| log.generation),
            log_id: plan.log.as_ref().map(|log| log.log_id),
            boot_id: self.shared.boot,
            export: Some(record.name.clone()),
            witness: self.witness(&opened, volume, &plan).await,
            phase: Phase::Open,
        };
        let link = self.serve(&opened, &plan, entry, &record.name, &place).await?;
        let view = self.connection_view(&link);
        self.tell_volume(volume).await;
        to_value(&view)
    }

    /// Opens the chain, keeps the entry durably, and only then lets clients in.
    async fn serve(
        &self,
        opened: &Opened,
        plan: &ConnectPlan,
        entry: Entry,
        name: &str,
        place: &Place,
    ) -> Outcome<Rc<Link>> {
        let id = entry.id();
        let home = self.quietest_home();
        if let Err(problem) = self.open_chain(opened, plan, id, (name, entry.protocol), home).await
        {
            self.release(&opened.catalog, plan).await;
            return Err(problem);
        }
        crash::point("connect-opened");
        let live = Some(Live { home, connection: plan.connection });
        let link = Rc::new(Link { entry: RefCell::new(entry), live: Cell::new(live) });
        self.links.borrow_mut().insert(id, Rc::clone(&link));
        let listening = self.listen(&link, place, home).await;
        if let Err(problem) = listening {
            // Nothing was told to anybody: back to where it was.
            if let Err(second) = self.finish_link(id).await {
                tracing::error!(%id, detail = %second.detail, "undoing a failed connect");
            }
            return Err(problem);
        }
        crash::point("connect-listening");
        Ok(link)
    }

    async fn listen(&self, link: &Rc<Link>, place: &Place, home: usize) -> Outcome<()> {
        let id = link.entry().id();
        self.save_links().await?;
        crash::point("connect-kept");
        let where_to = place.clone();
        let port = self
            .home(home)
            .call(move |home| async move { home.listen(id, &where_to) })
            .await
            .map_err(from_gone)??;
        if let Some(port) = port
            && link.entry().tcp_port != Some(port)
        {
            link.entry.borrow_mut().tcp_port = Some(port);
            self.save_links().await?;
        }
        Ok(())
    }

    async fn open_chain(
        &self,
        opened: &Opened,
        plan: &ConnectPlan,
        id: Uuid,
        (name, protocol): (&str, Protocol),
        home: usize,
    ) -> Outcome<()> {
        let path = |segment| self.shared.data.log(plan.volume, segment);
        let log = plan.log.as_ref().map(|identity| Log {
            paths: (0..plan.segments.len()).map(path).collect(),
            identity: LogIdentity {
                volume: identity.volume,
                boot: self.shared.boot,
                generation: identity.generation,
                log: identity.log_id,
            },
            state: match plan.log_plan {
                LogPlan::Fresh => LogState::Clean,
                LogPlan::Replay => LogState::Replay,
                LogPlan::Lost => LogState::Lost,
            },
        });
        let opening = Opening {
            id,
            datastore: opened.handle.clone(),
            segments: plan.segments.clone(),
            keep_space: plan.reserves,
            log,
            name: name.to_owned(),
            protocol,
        };
        self.home(home)
            .call(move |home| async move { home.open(opening).await })
            .await
            .map_err(from_gone)?
    }

    /// Takes back a catalog connection whose chain did not open. What the plan found is as it was:
    /// only a volume that was clean before is clean now.
    async fn release(&self, catalog: &Catalog, plan: &ConnectPlan) {
        let clean = plan.log_plan == LogPlan::Fresh;
        if let Err(error) = catalog.disconnect(plan.connection, clean).await {
            tracing::error!(volume = %plan.volume, %error, "releasing a failed connection");
        }
    }

    /// For connections without a log: what the volume's cell says. Whoever connects the volume for
    /// writing changes it, so that a resume can tell (rule P2).
    async fn witness(&self, opened: &Opened, volume: Uuid, plan: &ConnectPlan) -> Option<String> {
        if plan.log.is_some() {
            return None;
        }
        let cell = opened.files.get(&ObjectName::Cell(volume)).await.ok()?;
        Some(cell.map_or_else(String::new, |(version, _)| format!("{version:?}")))
    }

    /// The identity in the volume's logs, where all of them survived. A log of another version, and one
    /// that cannot be read, is nothing to guess about: it may hold acknowledged writes (rule D2).
    async fn found_log(
        &self,
        catalog: &Catalog,
        volume: Uuid,
    ) -> Outcome<Option<catalog::LogIdentity>> {
        let segments = catalog.segments(volume).map_err(catalog_problem)?;
        let paths: Vec<PathBuf> =
            (0..segments).map(|segment| self.shared.data.log(volume, segment)).collect();
        self.ring.run_blocking(move || look_at_logs(&paths)).await
    }

    // --- disconnect ---

    pub(crate) async fn disconnect(
        self: Rc<Self>,
        volume: Uuid,
        snapshot: Option<Reference>,
        progress: Rc<Progress>,
    ) -> Outcome<Value> {
        let ids: Vec<Uuid> = match snapshot {
            Some(Reference::Id(id)) => vec![id],
            Some(wanted) => vec![find_snapshot(&self.find(volume)?.1, &wanted)?],
            None => self
                .links
                .borrow()
                .values()
                .map(|link| (link.entry().volume, link.entry().id()))
                .filter(|(of, _)| *of == volume)
                .map(|(_, id)| id)
                .collect(),
        };
        let known = ids.iter().any(|id| self.link(*id).is_some());
        if !known {
            let name =
                self.find_if(volume).map_or_else(|| volume.to_string(), |(_, record)| record.name);
            return Err(Problem::new(Code::NotConnected, format!("{name} is not connected.")));
        }
        let working = self.work_on(&[volume], progress.id())?;
        progress.running("disconnecting");
        let mut closed = Ok(());
        for id in ids {
            let outcome = self.close_link(id).await;
            closed = closed.and(outcome);
        }
        drop(working);
        closed?;
        self.settle_volume(volume);
        Ok(Value::Null)
    }

    /// Closes one connection to the end: drained, durable, its entry gone.
    pub(super) async fn close_link(&self, id: Uuid) -> Outcome<()> {
        let Some(link) = self.link(id) else { return Ok(()) };
        let volume = link.entry().volume;
        if link.is_live() {
            link.entry.borrow_mut().phase = Phase::Closing;
            if let Err(problem) = self.save_links().await {
                link.entry.borrow_mut().phase = Phase::Open;
                return Err(problem);
            }
            crash::point("disconnect-begun");
            self.finish_link(id).await?;
        } else {
            self.drop_link(id).await?;
        }
        self.held.borrow_mut().remove(&volume);
        self.tell_volume(volume).await;
        Ok(())
    }

    async fn finish_link(&self, id: Uuid) -> Outcome<()> {
        let Some(link) = self.link(id) else { return Ok(()) };
        let (volume, store) = (link.entry().volume, link.entry().datastore);
        let mut flushed = Ok(());
        if let Some(live) = link.live.take() {
            let closed = self
                .home(live.home)
                .call(move |home| async move { home.close(id).await })
                .await
                .map_err(from_gone)?;
            crash::point("disconnect-closed");
            let catalog = self.store(store)?.catalog()?;
            catalog.disconnect(live.connection, closed.is_ok()).await.map_err(catalog_problem)?;
            crash::point("disconnect-released");
            if closed.is_ok() && !link.entry().read_only {
                self.remove_log(&catalog, volume).await;
            }
            flushed = closed;
        }
        self.drop_link(id).await?;
        flushed.map_err(|error| {
            let problem = from_io(&error);
            Problem::new(
                problem.code,
                format!(
                    "The volume is disconnected, but its last flush failed: {}",
                    problem.detail
                ),
            )
            .hint(
                "look at the host's storage; the next connect makes the rest durable from the log",
            )
        })
    }

    /// Forgets a connection that is not served.
    pub(super) async fn drop_link(&self, id: Uuid) -> Outcome<()> {
        let removed = self.links.borrow_mut().remove(&id);
        let Some(link) = removed else { return Ok(()) };
        self.shared.alarms.clear(alarms::CONNECTION_STOPPED, id);
        self.shared.alarms.clear(alarms::DISK_FAILED, id);
        if let Err(problem) = self.save_links().await {
            self.links.borrow_mut().insert(id, link);
            return Err(problem);
        }
        Ok(())
    }

    async fn remove_log(&self, catalog: &Catalog, volume: Uuid) {
        let segments = catalog.segments(volume).unwrap_or(1);
        let paths: Vec<PathBuf> =
            (0..segments).map(|segment| self.shared.data.log(volume, segment)).collect();
        let removed = self.ring.run_blocking(move || {
            paths.into_iter().filter_map(|path| std::fs::remove_file(path).err()).collect()
        });
        let failed: Vec<std::io::Error> = removed.await;
        for error in failed.iter().filter(|e| e.kind() != std::io::ErrorKind::NotFound) {
            // A log that no generation names is never replayed.
            tracing::warn!(%volume, %error, "a metadata log is left over");
        }
    }

    /// Ends a connection whose disk must not be written any more.
    pub(super) async fn abandon(&self, volume: Uuid, why: String) {
        let Some(link) = self.link(volume) else { return };
        let Some(live) = link.live.take() else { return };
        let ended =
            self.home(live.home).call(move |home| async move { home.abandon(volume).await }).await;
        if ended.is_err() {
            tracing::error!(%volume, "the home thread ended");
        }
        let store = link.entry().datastore;
        if let Ok(catalog) = self.store(store).and_then(|store| store.catalog())
            && let Err(error) = catalog.disconnect(live.connection, false).await
        {
            tracing::error!(%volume, %error, "releasing an abandoned connection");
        }
        self.stopped(&link, &why).await;
    }

    /// Keeps a connection on record as stopped, and says so.
    async fn stopped(&self, link: &Link, why: &str) {
        link.stop(why);
        self.say_stopped(link, why);
        if let Err(problem) = self.save_links().await {
            tracing::error!(detail = %problem.detail, "a stopped connection is not on record");
        }
        let volume = link.entry().volume;
        self.tell_volume(volume).await;
    }

    fn say_stopped(&self, link: &Link, why: &str) {
        let name = self.name_of(link.entry().volume);
        let hint = format!(
            "restart its guest (its disk is as after a power cut), then: shale volume connect {name}"
        );
        self.say_not_served(link, why, &hint);
    }

    fn say_not_served(&self, link: &Link, why: &str, hint: &str) {
        let entry = link.entry();
        let name = self.name_of(entry.volume);
        // A snapshot's connection and its volume's own are different conditions.
        let kind = if entry.snapshot.is_some() { ObjectKind::Snapshot } else { ObjectKind::Volume };
        let object = ObjectRef { kind, id: entry.id(), name: name.clone() };
        self.shared.alarms.raise(
            alarms::CONNECTION_STOPPED,
            Severity::Critical,
            object,
            format!("The connection of {name} was stopped: {why}"),
            hint,
        );
    }

    fn name_of(&self, volume: Uuid) -> String {
        self.find_if(volume).map_or_else(|| volume.to_string(), |(_, record)| record.name)
    }

    // --- after a restart ---

    /// Brings every connection of the last process back, or says why not.
    pub(super) async fn resume_all(self: &Rc<Self>, entries: Vec<Entry>) {
        {
            let mut links = self.links.borrow_mut();
            for entry in entries {
                let link = Link { entry: RefCell::new(entry), live: Cell::new(None) };
                let id = link.entry().id();
                links.insert(id, Rc::new(link));
            }
        }
        for store in self.all_stores() {
            self.resume_store(store.id()).await;
        }
    }

    /// Resumes the connections of one datastore; those that run are left alone.
    pub(super) async fn resume_store(self: &Rc<Self>, id: Uuid) {
        let Ok(store) = self.store(id) else { return };
        let Ok(opened) = store.opened() else { return };
        let links: Vec<_> = self
            .links
            .borrow()
            .values()
            .filter(|link| link.entry().datastore == id && !link.is_live())
            .cloned()
            .collect();
        for link in links {
            let phase = link.entry().phase.clone();
            let (connection, volume) = (link.entry().id(), link.entry().volume);
            match phase {
                Phase::Stopped { reason } => self.say_stopped(&link, &reason),
                Phase::Closing => {
                    // Without a log there is nothing to recover, and the volume's own connection,
                    // which has one, is none of this one's business.
                    let outcome = if link.entry().read_only {
                        Ok(())
                    } else {
                        self.recover(&opened, volume).await
                    };
                    if let Err(problem) = outcome.and(self.drop_link(connection).await) {
                        self.stopped(&link, &problem.detail).await;
                    }
                }
                Phase::Open => match self.resume(&opened, &link).await {
                    Ok(()) => tracing::info!(%volume, "connection resumed"),
                    // Nothing was touched, and it stays on record: the version that knows the log
                    // resumes it.
                    Err(problem) if problem.code == Code::UnknownFormat => {
                        let hint =
                            "start the version of Shale that wrote it: it goes on from there";
                        self.say_not_served(&link, &problem.detail, hint);
                    }
                    Err(problem) => self.stopped(&link, &problem.detail).await,
                },
            }
        }
    }

    async fn resume(&self, opened: &Opened, link: &Rc<Link>) -> Outcome<()> {
        let entry = link.entry().clone();
        let record = opened.catalog.volume(entry.volume).map_err(catalog_problem)?;
        let cell_before = opened.files.get(&ObjectName::Cell(entry.volume)).await;
        let found = if entry.read_only {
            None
        } else {
            self.found_log(&opened.catalog, entry.volume).await?
        };
        let plan = opened
            .catalog
            .connect(ConnectRequest {
                volume: entry.volume,
                snapshot: entry.snapshot,
                read_only: entry.read_only,
                holder: format!("node on {} (process {})", self.shared.host, std::process::id()),
                log_found: found,
            })
            .await
            .map_err(catalog_problem)?;
        crash::point("resume-planned");
        let refusal = if entry.boot_id == self.shared.boot {
            match (&plan.log, entry.snapshot) {
                // A snapshot never changes: nothing can have happened to it.
                (None, Some(_)) => None,
                (None, None) => {
                    let cell = cell_before.ok().flatten();
                    let now = cell.map(|(version, _)| format!("{version:?}")).unwrap_or_default();
                    let same = entry.witness.as_deref() == Some(now.as_str());
                    (!same).then_some("the volume was connected elsewhere meanwhile")
                }
                (Some(log), _) => {
                    let same = plan.log_plan == LogPlan::Replay
                        && log.generation == entry.generation
                        && Some(log.log_id) == entry.log_id;
                    (!same).then_some(
                        "its metadata log is gone or belongs to another connection, so writes that were not flushed may be lost",
                    )
                }
            }
        } else {
            Some("the host was restarted, so writes that were not flushed may be lost")
        };
        if let Some(why) = refusal {
            // Recovered as after a power cut, so that the volume can be worked with offline.
            self.recover_planned(opened, &plan, entry.id()).await?;
            return Err(Problem::new(Code::Refused, format!("{why}.")));
        }
        let place = match (&entry.socket, entry.tcp_port) {
            (Some(path), _) => Place::Socket(path.clone()),
            (None, port) => Place::Tcp(port.unwrap_or_default()),
        };
        let home = self.quietest_home();
        let export = entry.export.as_ref().unwrap_or(&record.name);
        if let Err(problem) =
            self.open_chain(opened, &plan, entry.id(), (export, entry.protocol), home).await
        {
            self.release(&opened.catalog, &plan).await;
            return Err(problem);
        }
        crash::point("resume-opened");
        link.live.set(Some(Live { home, connection: plan.connection }));
        if let Err(problem) = self.listen(link, &place, home).await {
            link.live.set(None);
            self.close_quietly(opened, &plan, entry.id(), home).await?;
            return Err(problem);
        }
        Ok(())
    }

    /// Connects, recovers and disconnects a volume, so that it is clean and nobody notices.
    async fn recover(&self, opened: &Opened, volume: Uuid) -> Outcome<()> {
        if !opened.catalog.needs_recovery(volume) {
            // It died between the release and the removal of the log, which nobody needs any more.
            self.remove_log(&opened.catalog, volume).await;
            return Ok(());
        }
        let plan = opened
            .catalog
            .connect(ConnectRequest {
                volume,
                snapshot: None,
                read_only: false,
                holder: format!("recovery on {}", self.shared.host),
                log_found: self.found_log(&opened.catalog, volume).await?,
            })
            .await
            .map_err(catalog_problem)?;
        self.recover_planned(opened, &plan, volume).await
    }

    async fn recover_planned(&self, opened: &Opened, plan: &ConnectPlan, id: Uuid) -> Outcome<()> {
        if plan.log.is_none() {
            self.release(&opened.catalog, plan).await;
            return Ok(());
        }
        let home = self.quietest_home();
        if let Err(problem) =
            self.open_chain(opened, plan, id, ("recovery", Protocol::Nbd), home).await
        {
            self.release(&opened.catalog, plan).await;
            return Err(problem);
        }
        self.close_quietly(opened, plan, id, home).await
    }

    async fn close_quietly(
        &self,
        opened: &Opened,
        plan: &ConnectPlan,
        id: Uuid,
        home: usize,
    ) -> Outcome<()> {
        let closed = self
            .home(home)
            .call(move |home| async move { home.close(id).await })
            .await
            .map_err(from_gone)?;
        opened
            .catalog
            .disconnect(plan.connection, closed.is_ok())
            .await
            .map_err(catalog_problem)?;
        closed.map_err(|error| from_io(&error))?;
        if plan.log.is_some() {
            self.remove_log(&opened.catalog, plan.volume).await;
        }
        Ok(())
    }

    // --- what waits for a disconnect ---

    /// Recovers volumes that a crash left unclean without a connection, then goes on with merges.
    pub(super) async fn settle_leftovers(self: &Rc<Self>) {
        for store in self.all_stores() {
            self.settle_store(&store).await;
        }
    }

    /// Recovery ends before this returns, merges go on as tasks.
    pub(super) async fn settle_store(self: &Rc<Self>, store: &Rc<Store>) {
        let Ok(opened) = store.opened() else { return };
        for record in opened.catalog.volumes() {
            let free = self.link_of_volume(record.uuid).is_none_or(|link| !link.is_live());
            if free
                && opened.catalog.needs_recovery(record.uuid)
                && let Err(problem) = self.recover_alone(&opened, record.uuid).await
            {
                let object = super::reference(&record);
                let text = format!("{} could not be recovered: {}", record.name, problem.detail);
                let hint = "put right what it says, then connect the volume";
                self.shared.alarms.raise(alarms::RECOVERY, Severity::Warning, object, text, hint);
            }
        }
        opened.catalog.drop_all_unused().await;
        let waiting: BTreeSet<Uuid> =
            opened.catalog.pending_merges().into_iter().map(|merge| merge.volume).collect();
        for volume in waiting {
            self.settle_volume(volume);
        }
    }

    async fn recover_alone(self: &Rc<Self>, opened: &Opened, volume: Uuid) -> Outcome<()> {
        let _working = self.work_on(&[volume], Uuid::nil())?;
        self.recover(opened, volume).await
    }

    /// Merges what waited for the volume to be disconnected, as a task of its own.
    pub(super) fn settle_volume(self: &Rc<Self>, volume: Uuid) {
        let Some((store, _)) = self.find_if(volume) else { return };
        let Ok(catalog) = store.catalog() else { return };
        if catalog.pending_merge(volume).is_none() {
            return;
        }
        let begun = self.begin(
            |control| -> Outcome<About> { control.about(Operation::SnapshotDelete, volume) },
            |control, progress| async move {
                let _working = control.work_on(&[volume], progress.id())?;
                progress.running("merging");
                let settled = catalog.settle(volume, &*progress).await.map_err(catalog_problem)?;
                control.tell_volume(volume).await;
                control.space_freed(store.id());
                Ok(settled_value(&settled))
            },
        );
        if let Err(problem) = begun {
            tracing::debug!(%volume, detail = %problem.detail, "merging waits");
        }
    }
}

/// The identity that all logs of a volume carry: where one is gone, all that was in it is.
/// Blocks, so it is for a helper thread.
fn look_at_logs(paths: &[PathBuf]) -> Outcome<Option<catalog::LogIdentity>> {
    let found = paths.iter().map(|path| look_at_log(path)).collect::<Outcome<Vec<_>>>()?;
    let first = found.first().cloned().flatten();
    Ok(first.filter(|first| found.iter().all(|other| other.as_ref() == Some(first))))
}

fn look_at_log(path: &Path) -> Outcome<Option<catalog::LogIdentity>> {
    let unknown = |why: String| {
        let detail = format!("Its metadata log {} cannot be used: {why}.", path.display());
        let hint = "start the version that wrote it and stop it with: shale down";
        Err(Problem::new(Code::UnknownFormat, detail).hint(hint))
    };
    let memory = match ShmFile::open(path, LOG_LENGTHS) {
        Ok(memory) => memory,
        Err(error) if error.kind == IoErrorKind::NotFound => return Ok(None),
        // Of such a length: another version's, or one that was begun and never told to anybody.
        Err(error) if error.kind == IoErrorKind::Corrupt => {
            return match disk::log_version(&log_head(path)?) {
                Some(version) => unknown(format!("{error}, and it is of version {version}")),
                None => Ok(None),
            };
        }
        Err(error) => return Err(from_io(&error)),
    };
    match disk::log_identity(&memory) {
        Ok(found) => Ok(Some(catalog::LogIdentity {
            volume: found.volume,
            boot_id: found.boot.to_string(),
            generation: found.generation,
            log_id: found.log,
        })),
        Err(error @ LogError::Version(_)) => unknown(error.to_string()),
        Err(LogError::Mismatch | LogError::Leaf { .. } | LogError::TooSmall(_)) => Ok(None),
    }
}

/// Where a log of whatever version says what it is.
fn log_head(path: &Path) -> Outcome<Vec<u8>> {
    let mut head = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(LOG_HEAD).read_to_end(&mut head))
        .map_err(|e| from_io(&IoError::system(format!("reading {}", path.display()), e)))?;
    Ok(head)
}
