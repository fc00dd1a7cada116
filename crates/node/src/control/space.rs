//! Full datastores. A disk holds the requests that find no space; here it becomes an alarm, and every
//! release of space lets them try again. Space that somebody else frees on the file system is found
//! by a slow timer. How little free space is worth an alarm is the operator's policy: the controller says it.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use model::{ObjectKind, ObjectRef, Severity};
use uuid::Uuid;

use super::Control;
use crate::alarms;
use crate::home::Report;

/// How often disks are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Looks between two tries of datastores that could not be opened.
const RETRY_EVERY: u32 = 15;

impl Control {
    /// Space of a datastore was given back: held requests of its disks try again.
    pub(super) fn space_freed(&self, datastore: Uuid) {
        for home in &self.homes {
            let told = home.send(move |home| async move { home.space_freed(datastore) });
            if told.is_err() {
                tracing::debug!("a home thread has ended");
            }
        }
    }

    /// Looks at the disks for as long as the node runs.
    pub(super) async fn watch_space(self: Rc<Self>) {
        let mut looks = 0_u32;
        loop {
            self.ring.local().sleep(LOOK_EVERY).await;
            looks = looks.wrapping_add(1);
            if looks.is_multiple_of(RETRY_EVERY) {
                self.retry_stores().await;
            }
            if self.links.borrow().values().any(|link| link.is_live()) {
                self.look_at_disks().await;
            }
        }
    }

    async fn look_at_disks(&self) {
        let mut reports: Vec<Report> = Vec::new();
        for home in &self.homes {
            if let Ok(of_home) = home.call(|home| async move { home.reports() }).await {
                reports.extend(of_home);
            }
        }
        // Datastore -> volumes that wait.
        let mut waiting: BTreeMap<Uuid, BTreeSet<Uuid>> = BTreeMap::new();
        for report in &reports {
            let Some(link) = self.link(report.id) else { continue };
            let (volume, store) = (link.entry().volume, link.entry().datastore);
            if report.held > 0 {
                waiting.entry(store).or_default().insert(volume);
            }
            if report.failed {
                self.say_failed(report.id, volume);
            }
        }
        let now: BTreeSet<Uuid> = waiting.values().flatten().copied().collect();
        let before = self.held.replace(now.clone());
        self.say_full(&waiting);
        waiting.keys().for_each(|store| self.space_freed(*store));
        for changed in before.symmetric_difference(&now) {
            self.tell_volume(*changed).await;
        }
    }

    fn say_full(&self, waiting: &BTreeMap<Uuid, BTreeSet<Uuid>>) {
        for store in self.all_stores() {
            let Some(volumes) = waiting.get(&store.id()) else {
                self.shared.alarms.clear(alarms::DATASTORE_FULL, store.id());
                continue;
            };
            let names: Vec<String> = volumes
                .iter()
                .map(|id| self.find_if(*id).map_or_else(|| id.to_string(), |(_, v)| v.name))
                .collect();
            self.shared.alarms.raise(
                alarms::DATASTORE_FULL,
                Severity::Critical,
                store.reference(),
                format!(
                    "Datastore {} is full: writes of {} wait for space.",
                    store.name(),
                    names.join(", ")
                ),
                "delete snapshots or volumes, or enlarge the file system; the writes go on by themselves",
            );
        }
    }

    fn say_failed(&self, connection: Uuid, volume: Uuid) {
        let name = self.find_if(volume).map_or_else(|| volume.to_string(), |(_, v)| v.name);
        let object = ObjectRef { kind: ObjectKind::Volume, id: connection, name: name.clone() };
        self.shared.alarms.raise(
            alarms::DISK_FAILED,
            Severity::Critical,
            object,
            format!(
                "A flush of {name} failed; every later flush fails until it is connected again."
            ),
            &format!("look at the host's storage, then: shale volume disconnect {name}"),
        );
    }
}
