//! Connections: how a volume is opened, and the durable fact of its open session (rule D4).
//!
//! ```text
//!   clean ──connect──► open {generation + 1, log, boot} ──clean disconnect──► clean
//!                        │ connect, log found with this very identity: replay, same session
//!                        └ connect, anything else: a power cut; generation + 1, lost until clean
//! ```

use datastore::ObjectName;
use uuid::Uuid;

use crate::api::{ConnectPlan, ConnectRequest, LayerRef, LogPlan, Source};
use crate::catalog::{Catalog, refuse_template};
use crate::cell::{Cell, VolumeCell};
use crate::error::{CatalogError, Code, Result};
use crate::locks::{Pace, Pinned};
use crate::record::VolumeRecord;
use crate::tree::Node;
use crate::txn::session;

/// An open connection.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) volume: Uuid,
    /// Whether it is the one that writes.
    pub(crate) writes: bool,
    /// What a reader keeps from changing; a writer's leaf is its own.
    _pinned: Option<Pinned>,
}

impl Catalog {
    /// Says how to open a volume, and registers the session durably before it does.
    ///
    /// # Errors
    /// `volume-connected` if someone writes it already (or, for writing, reads it), `is-template`,
    /// `not-clean` for reading what an unclean session left, `busy`, `corrupt` for a broken chain.
    pub async fn connect(&self, request: ConnectRequest) -> Result<ConnectPlan> {
        let record = self.volume(request.volume)?;
        let what = format!("connecting {}", record.name);
        let held = self.hold(&[request.volume], &what, Pace::Short).await?;
        let source = Source { volume: request.volume, snapshot: request.snapshot };
        let (record, tip, size) = self.source_tip(source)?;
        let chains = self.chains(&tip)?;
        let segments = chains
            .iter()
            .map(|chain| {
                let layer = |(uuid, node): &(Uuid, Node)| LayerRef {
                    uuid: *uuid,
                    size: node.size,
                    fixed: node.fixed,
                };
                chain.iter().map(layer).collect()
            })
            .collect();
        let read_only = request.read_only || request.snapshot.is_some();
        let mut plan = ConnectPlan {
            connection: self.env().new_uuid(),
            volume: record.uuid,
            read_only,
            size,
            reserves: record.reserves(),
            segments,
            log: None,
            log_plan: LogPlan::Fresh,
            clean: true,
        };
        let pinned = if read_only {
            if request.snapshot.is_none() {
                self.at_rest(&record, "read")?;
            }
            let layers: Vec<Uuid> = chains.iter().flatten().map(|(uuid, _)| *uuid).collect();
            Some(
                self.locks()
                    .pin(&layers, &format!("reading of {} by {}", record.name, request.holder)),
            )
        } else {
            self.open_session(&record, &request, &mut plan).await?;
            None
        };
        let connection = Connection { volume: record.uuid, writes: !read_only, _pinned: pinned };
        self.with_mut(|state| state.connections.insert(plan.connection, connection));
        drop(held);
        Ok(plan)
    }

    async fn open_session(
        &self,
        record: &VolumeRecord,
        request: &ConnectRequest,
        plan: &mut ConnectPlan,
    ) -> Result<()> {
        refuse_template(record, "write")?;
        if self.is_connected(record.uuid) {
            let holder = self.with(|state| {
                state.sessions.get(&record.uuid).map_or(String::new(), |s| s.holder.clone())
            });
            let message = format!("{} is connected already, by {holder}", record.name);
            return Err(CatalogError::new(Code::VolumeConnected, message)
                .hint("disconnect it there first, or connect a snapshot of it read-only"));
        }
        if let Some(reader) = self.locks().reader_of(record.current.tip.layers().iter().copied()) {
            return Err(CatalogError::busy(&record.name, &reader));
        }
        let (expected, old) = session(self.store(), record.uuid).await?;
        let boot_id = self.env().boot_id();
        let survived = old.identity().filter(|identity| {
            identity.boot_id == boot_id && request.log_found.as_ref() == Some(identity)
        });
        let (log_plan, cell) = match (&old.log, survived) {
            (_, Some(_)) => {
                (LogPlan::Replay, VolumeCell { holder: request.holder.clone(), ..old.clone() })
            }
            (log, None) => {
                let lost = log.is_some();
                let cell = VolumeCell {
                    volume: record.uuid,
                    generation: old.generation + 1,
                    log: Some(self.env().new_uuid()),
                    boot_id,
                    holder: request.holder.clone(),
                    lost: old.lost || lost,
                };
                (if lost { LogPlan::Lost } else { LogPlan::Fresh }, cell)
            }
        };
        let content = Cell::Volume(cell.clone()).encode();
        self.store().put(&ObjectName::Cell(record.uuid), expected, content).await?;
        plan.log = cell.identity();
        plan.log_plan = log_plan;
        plan.clean = !cell.lost;
        self.with_mut(|state| state.sessions.insert(record.uuid, cell));
        Ok(())
    }

    /// Ends a connection. `clean`: the disk was closed with a full flush, and its log is empty.
    /// Otherwise the next connect replays the log, or finds it lost.
    ///
    /// # Errors
    /// `not-found` for a connection that is over; or if the datastore fails: then the connection is
    /// over all the same, and the volume counts as not cleanly closed.
    pub async fn disconnect(&self, connection: Uuid, clean: bool) -> Result<()> {
        let Some(found) =
            self.with(|state| state.connections.get(&connection).map(|c| (c.volume, c.writes)))
        else {
            return Err(CatalogError::new(
                Code::NotFound,
                format!("there is no connection {connection}"),
            ));
        };
        let (volume, writes) = found;
        // A connection may end beside a long operation, which reads only what does not change.
        let result = match writes && clean {
            true => self.close_session(volume).await,
            false => Ok(()),
        };
        self.locks().touch(writes.then_some(volume));
        let over = self.with_mut(|state| state.connections.remove(&connection));
        drop(over);
        result
    }

    async fn close_session(&self, volume: Uuid) -> Result<()> {
        let (expected, old) = session(self.store(), volume).await?;
        let cell = VolumeCell { generation: old.generation, ..VolumeCell::new(volume) };
        let content = Cell::Volume(cell.clone()).encode();
        self.store().put(&ObjectName::Cell(volume), expected, content).await?;
        self.with_mut(|state| state.sessions.insert(volume, cell));
        Ok(())
    }
}
