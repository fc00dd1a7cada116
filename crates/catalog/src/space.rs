//! Accounting: what volumes take, and what the datastore takes with them.
//!
//! ```text
//!   an operation, a guest ──touches──► volumes ──looked at──► ledger ──sum──► the datastore
//! ```
//!
//! Looking at every file of a datastore costs more the more of them there are, so the ledger keeps
//! what each volume took, and only those are looked at again that may have changed since: touched by an
//! operation (`locks`), or written by a guest now. File systems and administrators change files behind
//! our back, so once a minute all are looked at.
//!
//! What a volume reserves and uses follows from its record and its files alone; the ledger is never
//! more than a copy of that.

use std::collections::{BTreeMap, BTreeSet};

use datastore::{Kind, ObjectName};
use io::ByteCount;
use uuid::Uuid;

use crate::api::{StoreUsage, VolumeUsage};
use crate::catalog::Catalog;
use crate::error::Result;
use crate::record::VolumeRecord;

/// How long what others may have changed is taken as it was, in milliseconds.
const FRESH_MS: u64 = 60_000;

/// What layers of a datastore took at one moment.
#[derive(Clone, Debug, Default)]
pub struct Measured(BTreeMap<Uuid, ByteCount>);

impl Measured {
    /// What one layer took; nothing if it was not there.
    pub(crate) fn used(&self, layer: Uuid) -> ByteCount {
        self.0.get(&layer).copied().unwrap_or_default()
    }

    /// What `layers` took together.
    pub(crate) fn used_by(&self, layers: &[Uuid]) -> ByteCount {
        ByteCount(layers.iter().map(|layer| self.used(*layer).0).sum())
    }
}

/// What each volume took when it was looked at last, and the sum.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    volumes: BTreeMap<Uuid, VolumeUsage>,
    /// When all of them were looked at.
    at_ms: u64,
    provisioned: u128,
    reserved: u128,
    used: u128,
}

impl Ledger {
    /// Enters what a volume takes; None for one that is gone.
    fn enter(&mut self, volume: Uuid, now: Option<VolumeUsage>) {
        let before = match now {
            Some(usage) => self.volumes.insert(volume, usage),
            None => self.volumes.remove(&volume),
        };
        let (before, now) = (before.unwrap_or_default(), now.unwrap_or_default());
        let moved = |sum: &mut u128, before: ByteCount, now: ByteCount| {
            *sum = *sum + u128::from(now.0) - u128::from(before.0);
        };
        moved(&mut self.provisioned, before.provisioned, now.provisioned);
        moved(&mut self.reserved, before.reserved, now.reserved);
        moved(&mut self.used, before.used, now.used);
    }
}

impl Catalog {
    /// Space of one volume.
    ///
    /// # Errors
    /// `not-found`, or if the datastore fails.
    pub async fn usage(&self, volume: Uuid) -> Result<VolumeUsage> {
        let record = self.volume(volume)?;
        let measured = self.measure_for(&record).await?;
        Ok(usage_of(&record, &measured))
    }

    /// The same by a measurement that is there.
    ///
    /// # Errors
    /// `not-found`.
    pub fn usage_by(&self, volume: Uuid, measured: &Measured) -> Result<VolumeUsage> {
        Ok(usage_of(&self.volume(volume)?, measured))
    }

    /// Looks at every layer: for whoever asks about many volumes.
    ///
    /// # Errors
    /// If the datastore fails.
    pub async fn measure(&self) -> Result<Measured> {
        let layers = self.store().list(Kind::Layer).await?;
        let used = layers.iter().filter_map(|info| Some((info.name.id()?, info.used)));
        Ok(Measured(used.collect()))
    }

    /// Looks at the layers of one volume, and at those that stand on them.
    ///
    /// # Errors
    /// If the datastore fails.
    pub async fn measure_for(&self, record: &VolumeRecord) -> Result<Measured> {
        let layers: BTreeSet<Uuid> = self.with(|state| {
            // Of those with one child the child would move (see `snapshot_delete_cost`).
            let only_child = |layer: &Uuid| {
                let mut children = state.tree.children(*layer);
                children.next().filter(|_| children.next().is_none())
            };
            let above = record.layers.iter().filter_map(only_child);
            record.layers.iter().copied().chain(above).collect()
        });
        self.measure_layers(layers).await
    }

    /// Looks at some layers.
    pub(crate) async fn measure_layers(
        &self,
        layers: impl IntoIterator<Item = Uuid>,
    ) -> Result<Measured> {
        let layers: Vec<Uuid> = layers.into_iter().collect();
        let names = layers.iter().map(|layer| ObjectName::Layer(*layer)).collect();
        let used = self.store().used(names).await?;
        Ok(Measured(
            layers.into_iter().zip(used).filter_map(|(l, used)| Some((l, used?))).collect(),
        ))
    }

    /// Space of the datastore.
    ///
    /// # Errors
    /// If the datastore fails.
    pub async fn store_usage(&self) -> Result<StoreUsage> {
        self.bring_ledger_up().await?;
        let space = self.store().space().await?;
        Ok(self.with(|state| {
            let bytes = |sum| ByteCount(u64::try_from(sum).unwrap_or(u64::MAX));
            let used = bytes(state.ledger.used);
            let taken = space.used_by_store.0.saturating_add(space.overhead.0);
            StoreUsage {
                total: space.total,
                free: space.free,
                provisioned: bytes(state.ledger.provisioned),
                reserved: bytes(state.ledger.reserved),
                used,
                other: ByteCount(taken.saturating_sub(used.0)),
            }
        }))
    }

    /// Looks again at the volumes that may have changed since the ledger has them.
    async fn bring_ledger_up(&self) -> Result<()> {
        let _in_order = self.measuring().lock().await;
        let now = self.env().now_ms();
        let old = self.with(|state| {
            // a clock that was set back makes them old as well
            let old = now.abs_diff(state.ledger.at_ms) > FRESH_MS;
            old.then(|| state.volumes.keys().copied().collect::<Vec<Uuid>>())
        });
        let all = old.is_some();
        self.locks().touch(old.into_iter().flatten());
        let touched = self.locks().touched();
        let changing = self.with(|state| {
            let written = state.connections.values().filter(|c| c.writes).map(|c| c.volume);
            let known = touched.volumes.keys().copied();
            written.chain(known).collect::<BTreeSet<Uuid>>()
        });
        let layers: BTreeSet<Uuid> = self.with(|state| {
            let records = changing.iter().filter_map(|volume| state.volumes.get(volume));
            records.flat_map(|record| record.layers.iter().copied()).collect()
        });
        let measured = self.measure_layers(layers).await?;
        self.with_mut(|state| {
            for volume in &changing {
                let usage = state.volumes.get(volume).map(|record| usage_of(record, &measured));
                state.ledger.enter(*volume, usage);
            }
            if all {
                state.ledger.at_ms = now;
            }
        });
        // What was touched meanwhile is looked at the next time.
        self.locks().looked_at(touched);
        Ok(())
    }
}

fn usage_of(record: &VolumeRecord, measured: &Measured) -> VolumeUsage {
    let used = measured.used_by(&record.layers).0;
    let reserved = if record.reserves() { record.size.saturating_sub(used) } else { 0 };
    VolumeUsage {
        provisioned: ByteCount(record.size),
        reserved: ByteCount(reserved),
        used: ByteCount(used),
        reclaimable: None,
    }
}
