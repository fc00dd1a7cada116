//! Alarms: conditions that need a person, for as long as they last. Each is identified by its code
//! and object, so raising it again changes it instead of adding another.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use model::{Alarm, Change, ObjectRef, Severity};
use uuid::Uuid;

use crate::events::{Events, now};

/// A full datastore; its text names the volumes that wait.
pub(crate) const DATASTORE_FULL: &str = "datastore-full";
/// A datastore that could not be opened.
pub(crate) const DATASTORE_UNAVAILABLE: &str = "datastore-unavailable";
/// A connection that was not resumed.
pub(crate) const CONNECTION_STOPPED: &str = "connection-stopped";
/// A disk whose flush failed (rule D7).
pub(crate) const DISK_FAILED: &str = "disk-failed";
/// What recovery found that needs a look.
pub(crate) const RECOVERY: &str = "recovery";

/// The alarms that stand. Shared by all threads.
pub(crate) struct Alarms {
    standing: Mutex<BTreeMap<(&'static str, Uuid), Alarm>>,
    events: Events,
}

impl Alarms {
    pub(crate) fn new(events: Events) -> Self {
        Self { standing: Mutex::default(), events }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(&'static str, Uuid), Alarm>> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Raises an alarm, or changes its text.
    pub(crate) fn raise(
        &self,
        code: &'static str,
        severity: Severity,
        object: ObjectRef,
        message: String,
        hint: &str,
    ) {
        let mut standing = self.lock();
        let before = standing.get(&(code, object.id));
        if before.is_some_and(|alarm| alarm.message == message && alarm.severity == severity) {
            return;
        }
        let (id, since) =
            before.map_or_else(|| (Uuid::now_v7(), now()), |alarm| (alarm.id, alarm.since));
        tracing::warn!(code, object = %object.name, message, "alarm");
        let key = (code, object.id);
        let hint = (!hint.is_empty()).then(|| hint.to_owned());
        let alarm = Alarm { id, severity, code: code.into(), object, message, hint, since };
        standing.insert(key, alarm.clone());
        drop(standing);
        self.events.tell(Change::Alarm(alarm));
    }

    /// The condition is over.
    pub(crate) fn clear(&self, code: &'static str, object: Uuid) {
        let cleared = self.lock().remove(&(code, object));
        if let Some(alarm) = cleared {
            tracing::info!(code, object = %alarm.object.name, "alarm cleared");
            self.events.tell(Change::AlarmCleared(alarm));
        }
    }

    /// Ends every alarm about an object that is gone.
    pub(crate) fn forget(&self, object: Uuid) {
        let codes: Vec<_> =
            self.lock().keys().filter(|(_, id)| *id == object).map(|(code, _)| *code).collect();
        codes.into_iter().for_each(|code| self.clear(code, object));
    }

    /// All that stand, oldest first.
    pub(crate) fn list(&self) -> Vec<Alarm> {
        let mut all: Vec<_> = self.lock().values().cloned().collect();
        all.sort_by_key(|alarm| (alarm.since, alarm.id));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::{Alarms, DATASTORE_FULL, DISK_FAILED};
    use crate::events::Events;
    use model::{ObjectKind, ObjectRef, Severity, Uuid};

    #[test]
    fn one_alarm_per_code_and_object() {
        let alarms = Alarms::new(Events::new());
        let object = ObjectRef { kind: ObjectKind::Volume, id: Uuid::nil(), name: "v".into() };
        let raise = |code, text: &str| {
            alarms.raise(code, Severity::Warning, object.clone(), text.into(), "");
        };
        raise(DATASTORE_FULL, "a waits");
        let first = alarms.list();
        raise(DATASTORE_FULL, "a and b wait");
        raise(DISK_FAILED, "x");
        let now = alarms.list();
        assert_eq!(now.len(), 2);
        let full = now.iter().find(|a| a.code == DATASTORE_FULL).unwrap();
        assert_eq!((full.id, full.message.as_str()), (first[0].id, "a and b wait"));
        alarms.clear(DATASTORE_FULL, Uuid::nil());
        alarms.forget(Uuid::nil());
        assert!(alarms.list().is_empty());
    }
}
