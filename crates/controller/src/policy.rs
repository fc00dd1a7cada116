//! Policy of datastores: thresholds, their alarms, and the limit of what may be promised.
//!
//! It is kept in the inventory, not on the datastore. A datastore says what is true of its data,
//! whoever reads it; how full is too full is a wish of whoever operates this system, and another system
//! that adopts the datastore has its own. Lost with the inventory, it falls back to defaults, which
//! refuse nothing. What belongs to a volume (its snapshot schedule) is kept with the volume instead.
//!
//! The limit is a fence for operators, no rule of safety: requests that are decided at one moment each
//! see what was promised before. A stream whose size only its end tells is not held up by it.

use hyper::Method;
use model::{
    Alarm, Code, Datastore, DatastorePolicy, DatastoreState, ObjectKind, ObjectRef, Problem,
    Severity, Size, UpdateDatastore, Uuid,
};

use crate::api::App;
use crate::hub::now;
use crate::index::{Index, alarm_id};
use crate::inventory::{Expected, Inventory, Write};

pub(crate) const PREFIX: &str = "datastore-policy/";
/// A datastore with little space left.
const LOW: &str = "datastore-low";
/// A datastore that has promised more than the operator wants.
const OVERCOMMITTED: &str = "datastore-overcommitted";

/// The policy of a datastore; the default where none was set.
pub(crate) fn of(inventory: &Inventory, datastore: Uuid) -> DatastorePolicy {
    let document = inventory.get(&format!("{PREFIX}{datastore}"));
    document.and_then(|d| serde_json::from_value(d.body).ok()).unwrap_or_default()
}

/// Changes the policy of a datastore.
pub(crate) async fn change(
    inventory: &Inventory,
    datastore: Uuid,
    change: UpdateDatastore,
) -> Result<(), Problem> {
    let key = format!("{PREFIX}{datastore}");
    let known = inventory.get(&key).map(|document| document.revision);
    let new = change.applied(of(inventory, datastore))?;
    let expected = known.map_or(Expected::Absent, Expected::Revision);
    let body = Some(serde_json::to_value(new).map_err(crate::store::internal)?);
    inventory.commit(vec![Write { key, expected, body }]).await.map(drop)
}

/// Why `more` cannot be promised on this datastore.
pub(crate) fn over_limit(on: &Datastore, more: Size) -> Option<Problem> {
    let limit = on.policy.overcommit_limit.of(on.space.total)?;
    let promised = on.space.provisioned.bytes().saturating_add(more.bytes());
    if more.bytes() == 0 || promised <= limit.bytes() {
        return None;
    }
    Some(
        Problem::new(
            Code::OvercommitLimit,
            format!(
                "Datastore '{}' may promise {} to guests ({} of its size) and has promised {}; this is {} more.",
                on.name,
                limit.human(),
                on.policy.overcommit_limit,
                on.space.provisioned.human(),
                more.human()
            ),
        )
        .hint(format!(
            "delete volumes, use another datastore, or raise the limit: shale datastore set {} \
             --overcommit-limit PERCENT",
            on.name
        )),
    )
}

impl App {
    /// Refuses what would promise more than the limit; asks for what is true now only where there is one.
    pub(crate) async fn may_promise(&self, on: &Datastore, more: Size) -> Result<(), Problem> {
        if on.policy.overcommit_limit.of(on.space.total).is_none() {
            return Ok(());
        }
        let path = format!("/v1/datastores/{}", on.id);
        let mut now: Datastore = self.node.call(Method::GET, &path, None::<&()>).await?;
        now.policy = on.policy;
        over_limit(&now, more).map_or(Ok(()), Err)
    }
}

/// How bad it is, what happened, what to do.
type Said = (Severity, String, String);

/// What a datastore is an alarm for.
fn alarms(datastore: &Datastore) -> [(&'static str, Option<Said>); 2] {
    let (space, policy) = (datastore.space, datastore.policy);
    let known = datastore.state != DatastoreState::Abnormal && space.total.bytes() > 0;
    let percent = |part: Size| {
        let hundreds = u128::from(part.bytes()).saturating_mul(100);
        hundreds.checked_div(u128::from(space.total.bytes())).unwrap_or(0)
    };
    let below = |share: model::Threshold| share.of(space.total).is_some_and(|s| space.free < s);
    let severity = match (below(policy.critical), below(policy.low)) {
        (true, _) => Some(Severity::Critical),
        (false, true) => Some(Severity::Warning),
        (false, false) => None,
    };
    // whole percents: else the alarm would change with every write
    let low = severity.filter(|_| known).map(|severity| {
        let text = format!(
            "Datastore {} has {} % of its space left; its volumes were promised {} %.",
            datastore.name,
            percent(space.free),
            percent(space.provisioned)
        );
        let hint = "delete snapshots or volumes, discard in the guests, or enlarge the file system: writes \
                    that need space wait once there is none";
        (severity, text, hint.to_owned())
    });
    let more = policy.overcommit_alarm.of(space.total).is_some_and(|s| space.provisioned > s);
    let over = (known && more).then(|| {
        let text = format!(
            "Datastore {} has promised {} % of its size to guests; the alarm stands at {}.",
            datastore.name,
            percent(space.provisioned),
            policy.overcommit_alarm
        );
        let hint = format!(
            "enlarge the file system or delete volumes, or change the alarm: shale datastore set {} \
             --overcommit-alarm PERCENT",
            datastore.name
        );
        (Severity::Warning, text, hint)
    });
    [(LOW, low), (OVERCOMMITTED, over)]
}

/// Raises and ends the alarms of all datastores as they are now.
pub(crate) fn watch(index: &Index, datastores: &[Datastore]) {
    let before: Vec<Datastore> = index.read().datastores.values().cloned().collect();
    for gone in before.iter().filter(|old| !datastores.iter().any(|new| new.id == old.id)) {
        for code in [LOW, OVERCOMMITTED] {
            index.clear_own(alarm_id(code, gone.id));
        }
    }
    datastores.iter().for_each(|datastore| watch_one(index, datastore));
}

/// Raises and ends the alarms of one datastore as it is now.
pub(crate) fn watch_one(index: &Index, datastore: &Datastore) {
    for (code, alarm) in alarms(datastore) {
        let id = alarm_id(code, datastore.id);
        let Some((severity, message, hint)) = alarm else {
            index.clear_own(id);
            continue;
        };
        let object = ObjectRef {
            kind: ObjectKind::Datastore,
            id: datastore.id,
            name: datastore.name.to_string(),
        };
        let (code, hint, since) = (code.into(), Some(hint), now());
        index.raise_own(Alarm { id, severity, code, object, message, hint, since });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{DatastoreKind, Name, Space, StoreFeatures, Threshold, Timestamp};

    fn store(free: u64, provisioned: u64) -> Datastore {
        let bytes = Size::from_bytes;
        Datastore {
            id: Uuid::nil(),
            name: Name::new("fast").expect("a name"),
            kind: DatastoreKind::Dir,
            path: String::new(),
            file_system: String::new(),
            state: DatastoreState::Normal,
            state_reason: None,
            space: Space {
                total: bytes(3000),
                free: bytes(free),
                provisioned: bytes(provisioned),
                ..Space::default()
            },
            volumes: 0,
            templates: 0,
            snapshots: 0,
            features: StoreFeatures::default(),
            policy: DatastorePolicy::default(),
            created: Timestamp::default(),
        }
    }

    fn share(text: &str) -> Threshold {
        text.parse().expect("a share")
    }

    #[test]
    fn little_space_is_told_in_two_steps_that_can_be_moved_and_switched_off() {
        let severity = |store: &Datastore| alarms(store)[0].1.as_ref().map(|alarm| alarm.0);
        let (warning, critical) = (Some(Severity::Warning), Some(Severity::Critical));
        for (free, expected) in [
            (3000, None),
            (300, None),
            (299, warning),
            (99, warning),
            (98, critical),
            (0, critical),
        ] {
            assert_eq!(severity(&store(free, 0)), expected, "{free} of 3000");
        }
        let mut moved = store(299, 0);
        moved.policy.low = share("5%");
        assert_eq!(severity(&moved), None);
        moved.policy.critical = share("50.5%");
        assert_eq!(severity(&moved), critical);
        (moved.policy.low, moved.policy.critical) = (Threshold::NONE, Threshold::NONE);
        assert_eq!(severity(&moved), None);
        let mut lost = store(0, 0);
        lost.state = DatastoreState::Abnormal;
        assert_eq!(severity(&lost), None, "nothing is known of it");
    }

    #[test]
    fn promises_are_told_and_refused_from_where_the_operator_says() {
        let mut on = store(3000, 4500);
        assert_eq!(alarms(&on)[1].1, None, "no alarm unless asked for");
        assert_eq!(over_limit(&on, Size::from_bytes(u64::MAX)), None, "no limit unless asked for");
        on.policy.overcommit_alarm = share("150%");
        assert_eq!(alarms(&on)[1].1, None, "exactly the share");
        on.space.provisioned = Size::from_bytes(4501);
        let (_, text, _) = alarms(&on)[1].1.clone().expect("an alarm");
        assert!(text.contains("150 %"), "{text}");
        on.policy.overcommit_limit = share("200%");
        assert_eq!(over_limit(&on, Size::from_bytes(1499)), None);
        let refused = over_limit(&on, Size::from_bytes(1500)).expect("one byte too many");
        assert_eq!((refused.code, refused.exit()), (Code::OvercommitLimit, model::Exit::NoSpace));
        on.space.provisioned = Size::from_bytes(9000);
        assert_eq!(
            over_limit(&on, Size::from_bytes(0)),
            None,
            "what promises nothing is not refused"
        );
    }
}
