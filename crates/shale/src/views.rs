//! The columns of every object.

use model::{
    Alarm, Datastore, Schedule, ScheduleStatus, Size, Snapshot, Task, Template, Timestamp, Token,
    Volume,
};

use crate::output::Row;

fn size(size: Size) -> String {
    size.human()
}

fn time(time: Timestamp) -> String {
    let text = time.to_string();
    text.get(..19).unwrap_or(&text).replace('T', " ")
}

fn percent(part: Size, of: Size) -> String {
    if of.bytes() == 0 {
        return "-".into();
    }
    format!("{}%", u128::from(part.bytes()) * 100 / u128::from(of.bytes()))
}

fn optional<T>(value: Option<T>, show: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| "-".into(), show)
}

impl Row for Datastore {
    const COLUMNS: (&'static [&'static str], &'static [&'static str]) = (
        &["NAME", "STATE", "KIND", "TOTAL", "FREE", "USED", "PROVISIONED", "VOLUMES"],
        &[
            "OF-TOTAL",
            "OVERCOMMIT-ALARM",
            "OVERCOMMIT-LIMIT",
            "LOW",
            "CRITICAL",
            "RESERVED",
            "RECLAIMABLE",
            "FILE-SYSTEM",
            "PATH",
            "SNAPSHOTS",
            "TEMPLATES",
            "REASON",
            "ID",
        ],
    );
    fn cells(&self) -> Vec<String> {
        vec![
            self.name.to_string(),
            self.state.to_string(),
            self.kind.to_string(),
            size(self.space.total),
            size(self.space.free),
            size(self.space.used),
            size(self.space.provisioned),
            self.volumes.to_string(),
            percent(self.space.provisioned, self.space.total),
            self.policy.overcommit_alarm.to_string(),
            self.policy.overcommit_limit.to_string(),
            self.policy.low.to_string(),
            self.policy.critical.to_string(),
            size(self.space.reserved),
            optional(self.space.reclaimable, size),
            self.file_system.clone(),
            self.path.clone(),
            self.snapshots.to_string(),
            self.templates.to_string(),
            optional(self.state_reason.clone(), |r| r),
            self.id.to_string(),
        ]
    }
    fn name(&self) -> String {
        self.name.to_string()
    }
}

impl Row for Volume {
    const COLUMNS: (&'static [&'static str], &'static [&'static str]) = (
        &["NAME", "DATASTORE", "KIND", "SIZE", "USED", "STATE", "SNAPSHOTS"],
        &[
            "RESERVED",
            "RECLAIMABLE",
            "CHAIN",
            "ORIGIN",
            "URI",
            "WAITING-MERGES",
            "SCHEDULE",
            "NEXT-SNAPSHOT",
            "CREATED",
            "ID",
        ],
    );
    fn cells(&self) -> Vec<String> {
        vec![
            self.name.to_string(),
            self.datastore_name.to_string(),
            self.kind.to_string(),
            size(self.size),
            size(self.space.used),
            self.state.to_string(),
            self.snapshots.to_string(),
            size(self.space.reserved),
            optional(self.space.reclaimable, size),
            self.chain_length.to_string(),
            optional(self.origin.as_ref(), |o| {
                o.name.as_ref().map_or_else(|| o.id.to_string(), ToString::to_string)
            }),
            optional(self.connections.first(), |c| c.place().to_owned()),
            self.waiting_merges.to_string(),
            optional(self.schedule.as_ref(), rules),
            optional(self.next_snapshot, time),
            time(self.created),
            self.id.to_string(),
        ]
    }
    fn name(&self) -> String {
        self.name.to_string()
    }
}

impl Row for Snapshot {
    const COLUMNS: (&'static [&'static str], &'static [&'static str]) = (
        &["NAME", "VOLUME", "SIZE", "USED", "CREATED"],
        &["DELETE-MOVES", "CLONES", "SET", "SCHEDULED", "PARENT", "ID"],
    );
    fn cells(&self) -> Vec<String> {
        vec![
            self.name.to_string(),
            self.volume_name.to_string(),
            size(self.size),
            size(self.used),
            time(self.created),
            optional(self.merge_bytes, size),
            self.clones.to_string(),
            optional(self.set, |set| set.to_string()),
            optional(self.scheduled.as_ref(), |made| {
                made.rules.iter().map(|rule| rule.as_str()).collect::<Vec<_>>().join(",")
            }),
            optional(self.parent, |parent| parent.to_string()),
            self.id.to_string(),
        ]
    }
    fn name(&self) -> String {
        self.name.to_string()
    }
}

/// `hourly 12, daily 7`.
fn rules(schedule: &Schedule) -> String {
    let rules = schedule.rules.iter().map(|rule| format!("{} {}", rule.rule, rule.keep));
    rules.collect::<Vec<_>>().join(", ")
}

impl Row for ScheduleStatus {
    const COLUMNS: (&'static [&'static str], &'static [&'static str]) = (
        &["VOLUME", "KEEPS", "AT", "KEPT", "NEXT", "TROUBLE"],
        &["WEEKDAY", "UNRESERVED", "DATASTORE", "VOLUME-ID"],
    );
    fn cells(&self) -> Vec<String> {
        vec![
            self.volume_name.to_string(),
            rules(&self.schedule),
            self.schedule.at.to_string(),
            self.kept.to_string(),
            optional(self.next.first(), |run| run.local.clone()),
            optional(self.trouble.clone(), |trouble| trouble),
            self.schedule.weekday.to_string(),
            self.schedule.unreserved.to_string(),
            self.datastore_name.to_string(),
            self.volume.to_string(),
        ]
    }
    fn name(&self) -> String {
        self.volume_name.to_string()
    }
}

impl Row for Template {
    const COLUMNS: (&'static [&'static str], &'static [&'static str]) =
        (&["NAME", "DATASTORE", "KIND", "SIZE", "USED", "CLONES"], &["CREATED", "ID"]);
    fn cells(&self) -> Vec<String> {
        vec![
            self.name.to_string(),
            self.datastore_name.to_string(),
            self.kind.to_string(),
            size(self.size),
            size(self.used),
            self.clones.to_string(),
            time(self.created),
            self.id.to_string(),
        ]
    }
    fn name(&self) -> String {
        self.name.to_string()
    }
}

impl Row for Task {
    const COLUMNS: (&'static [&'static str], &'static [&'static str]) = (
        &["ID", "OPERATION", "OBJECT", "STATE", "PERCENT", "PHASE", "CREATED"],
        &["BYTES", "OF", "RATE", "FINISHED", "ORIGIN", "ERROR"],
    );
    fn cells(&self) -> Vec<String> {
        vec![
            self.id.to_string(),
            self.operation.to_string(),
            self.object.name.clone(),
            self.state.to_string(),
            format!("{}%", self.percent),
            optional(self.phase.clone(), |phase| phase),
            time(self.created),
            size(self.bytes_done),
            size(self.bytes_total),
            format!("{}/s", self.rate.human()),
            optional(self.finished, time),
            optional(self.origin, |origin| origin.to_string()),
            optional(self.error.as_ref(), |e| format!("{} ({})", e.detail, e.code)),
        ]
    }
    fn name(&self) -> String {
        self.id.to_string()
    }
}

impl Row for Alarm {
    const COLUMNS: (&'static [&'static str], &'static [&'static str]) =
        (&["SEVERITY", "OBJECT", "CODE", "SINCE", "MESSAGE"], &["HINT", "ID"]);
    fn cells(&self) -> Vec<String> {
        vec![
            self.severity.to_string(),
            format!("{} {}", self.object.kind, self.object.name),
            self.code.clone(),
            time(self.since),
            self.message.clone(),
            optional(self.hint.clone(), |hint| hint),
            self.id.to_string(),
        ]
    }
    fn name(&self) -> String {
        self.code.clone()
    }
}

impl Row for Token {
    const COLUMNS: (&'static [&'static str], &'static [&'static str]) =
        (&["NAME", "ROLE", "CREATED"], &["ID"]);
    fn cells(&self) -> Vec<String> {
        vec![self.name.to_string(), self.role.to_string(), time(self.created), self.id.to_string()]
    }
    fn name(&self) -> String {
        self.name.to_string()
    }
}
