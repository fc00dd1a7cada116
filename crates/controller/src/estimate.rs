//! What a change would cost, for `?dry_run=true`: from the index alone, nothing is asked or changed.

use axum::response::{IntoResponse, Response};
use model::{
    Code, CreateSnapshot, CreateVolume, Datastore, Estimate, ImportSource, ImportVolume, Name,
    Operation, Problem, ScheduledRun, SetSchedule, Size, Snapshot, TaskState, Template, Volume,
    VolumeKind, VolumeState,
};

use crate::index::Known;

pub(crate) fn answer(estimate: Estimate) -> Response {
    axum::Json(estimate).into_response()
}

/// What is copied or cloned.
pub(crate) struct Source<'a> {
    pub(crate) name: &'a Name,
    pub(crate) size: Size,
    pub(crate) used: Size,
    pub(crate) kind: VolumeKind,
}

pub(crate) fn create_volume(request: &CreateVolume, on: &Datastore) -> Estimate {
    let takes = if request.kind.reserves() { request.size } else { Size::from_bytes(0) };
    Estimate {
        summary: format!(
            "makes the {} volume '{}' of {} on '{}'",
            request.kind,
            request.name,
            request.size.human(),
            on.name
        ),
        takes,
        refused: room(takes, on)
            .or_else(|| crate::policy::over_limit(on, request.size))
            .or_else(|| kind_refused(Operation::VolumeCreate, request.kind, on)),
        ..Estimate::default()
    }
}

pub(crate) fn resize(volume: &Volume, size: Option<Size>, on: &Datastore) -> Estimate {
    let new = size.unwrap_or(volume.size);
    let grows = Size::from_bytes(new.bytes().saturating_sub(volume.size.bytes()));
    let mut refused = None;
    if size.is_some() && new <= volume.size {
        refused = Some(
            Problem::new(
                Code::InvalidSize,
                format!("Volume '{}' has {} already.", volume.name, volume.size.human()),
            )
            .hint("a volume can only become larger"),
        );
    } else if size.is_some() {
        refused = connected(volume, "resized").or_else(|| crate::policy::over_limit(on, grows));
    }
    Estimate {
        summary: match size {
            Some(size) => format!("makes volume '{}' {} large", volume.name, size.human()),
            None => format!("renames volume '{}'", volume.name),
        },
        takes: if volume.kind.reserves() { grows } else { Size::from_bytes(0) },
        refused,
        ..Estimate::default()
    }
}

pub(crate) fn delete_volume(volume: &Volume, known: &Known) -> Estimate {
    let mut dependents: Vec<String> = known
        .volumes
        .values()
        .filter(|v| v.origin.as_ref().is_some_and(|o| o.id == volume.id))
        .map(|v| v.name.to_string())
        .collect();
    dependents.sort();
    Estimate {
        summary: format!(
            "deletes volume '{}' and its {} snapshots for good",
            volume.name, volume.snapshots
        ),
        frees: Size::from_bytes(
            volume.space.used.bytes().saturating_add(volume.space.reserved.bytes()),
        ),
        refused: connected(volume, "deleted")
            .or_else(|| depended(volume.name.as_str(), &dependents)),
        ..Estimate::default()
    }
}

pub(crate) fn delete_template(template: &Template, known: &Known) -> Estimate {
    let mut dependents: Vec<String> = known
        .volumes
        .values()
        .filter(|v| v.origin.as_ref().is_some_and(|o| o.id == template.id))
        .map(|v| v.name.to_string())
        .collect();
    dependents.sort();
    Estimate {
        summary: format!("deletes template '{}' for good", template.name),
        frees: template.used,
        refused: depended(template.name.as_str(), &dependents),
        ..Estimate::default()
    }
}

pub(crate) fn delete_datastore(datastore: &Datastore) -> Estimate {
    let holds = datastore.volumes.saturating_add(datastore.templates);
    Estimate {
        summary: format!("removes datastore '{}' at {}", datastore.name, datastore.path),
        refused: (holds > 0).then(|| {
            Problem::new(
                Code::HasDependents,
                format!("Datastore '{}' holds {holds} volumes and templates.", datastore.name),
            )
            .hint("delete or move them first")
        }),
        ..Estimate::default()
    }
}

pub(crate) fn delete_snapshot(snapshot: &Snapshot, known: &Known) -> Estimate {
    let moves = snapshot.merge_bytes.unwrap_or(snapshot.used);
    Estimate {
        summary: format!(
            "deletes snapshot '{}' of volume '{}'; later states keep what they need of it",
            snapshot.name, snapshot.volume_name
        ),
        moves,
        seconds: seconds(known, Operation::SnapshotDelete, moves),
        refused: known.volumes.get(&snapshot.volume).and_then(|v| connected(v, "merged")),
        ..Estimate::default()
    }
}

pub(crate) fn revert(snapshot: &Snapshot, known: &Known) -> Estimate {
    Estimate {
        summary: format!(
            "brings volume '{}' back to snapshot '{}'; what was written since is lost",
            snapshot.volume_name, snapshot.name
        ),
        refused: known.volumes.get(&snapshot.volume).and_then(|v| connected(v, "reverted")),
        ..Estimate::default()
    }
}

/// A snapshot of all these volumes.
pub(crate) fn create_snapshot(
    request: &CreateSnapshot,
    volumes: &[Volume],
    on: &Datastore,
    known: &Known,
) -> Estimate {
    let reserving = |v: &&Volume| v.kind.reserves() && !request.unreserved;
    let bytes = |sum: u64, v: &Volume| sum.saturating_add(v.size.bytes());
    let takes = Size::from_bytes(volumes.iter().filter(reserving).fold(0, bytes));
    let mut refused = None;
    let mut said = Vec::new();
    for volume in volumes {
        let used = volume.snapshots.saturating_add(volume.waiting_merges);
        let left = model::MAX_SNAPSHOTS.saturating_sub(used);
        let taken =
            known.snapshots.values().any(|s| s.volume == volume.id && s.name == request.name);
        if volume.datastore != on.id {
            let detail = format!(
                "Volume '{}' is on datastore '{}', others are on '{}'.",
                volume.name, volume.datastore_name, on.name
            );
            let problem = Problem::new(Code::Unsupported, detail);
            refused = refused.or(Some(problem.hint("take one snapshot per datastore")));
        } else if taken {
            let detail = format!("Volume '{}' has a snapshot '{}'.", volume.name, request.name);
            let problem = Problem::new(Code::NameTaken, detail);
            refused = refused.or(Some(problem.hint("choose another name")));
        } else if left == 0 {
            let detail = format!(
                "Volume '{}' has {} snapshots, the limit; {} of them are deleted and wait for their merge.",
                volume.name,
                model::MAX_SNAPSHOTS,
                volume.waiting_merges
            );
            let problem = Problem::new(Code::SnapshotLimit, detail);
            let hint = "delete some, or disconnect the volume so that deleted ones are merged";
            refused = refused.or(Some(problem.hint(hint)));
        }
        let how = match (volume.kind.reserves(), reserving(&volume)) {
            (_, true) => format!("reserves its {} once more", volume.size.human()),
            (true, false) => "takes space as it grows from now on, whatever its kind".to_owned(),
            (false, false) => "takes next to nothing now".to_owned(),
        };
        let then = left.saturating_sub(1);
        said.push(format!(
            "{} volume '{}' {how}, and can have {then} more",
            volume.kind, volume.name
        ));
    }
    Estimate {
        summary: format!("makes snapshot '{}': {}", request.name, said.join("; ")),
        takes,
        refused: refused.or_else(|| {
            room(takes, on).map(|problem| {
                problem
                    .hint("free space, or let what is written take space as it grows: --no-reserve")
            })
        }),
        ..Estimate::default()
    }
}

/// An import; of a stream nothing is known beforehand.
pub(crate) fn import(
    request: &ImportVolume,
    source: Option<&ImportSource>,
    on: &Datastore,
    known: &Known,
) -> Estimate {
    let taken = {
        let same = |name: &Name, store: model::Uuid| *name == request.name && store == on.id;
        known.volumes.values().any(|v| same(&v.name, v.datastore))
            || known.templates.values().any(|t| same(&t.name, t.datastore))
    };
    let taken = taken.then(|| {
        let detail = format!("Datastore '{}' has a '{}' already.", on.name, request.name);
        Problem::new(Code::NameTaken, detail).hint("choose another name")
    });
    let refused = taken.or_else(|| kind_refused(Operation::VolumeImport, request.kind, on));
    let (kind, name) = (request.kind, &request.name);
    let Some(source) = source else {
        return Estimate {
            summary: format!(
                "imports a stream as the {kind} volume '{name}' on '{}'; how large it is, only its end tells",
                on.name
            ),
            refused,
            ..Estimate::default()
        };
    };
    let takes =
        if kind.reserves() { source.layers_size } else { source.stored.min(source.layers_size) };
    let snapshots = match source.snapshots.as_slice() {
        [] => String::new(),
        names => format!(", in {} layers with the snapshots {}", names.len() + 1, names.join(", ")),
    };
    Estimate {
        summary: format!(
            "imports {} as the {kind} volume '{name}' of {} on '{}'{snapshots}",
            request.source,
            source.size.human(),
            on.name
        ),
        takes,
        moves: source.stored,
        seconds: seconds(known, Operation::VolumeImport, source.stored),
        refused: refused
            .or_else(|| room(takes, on))
            .or_else(|| crate::policy::over_limit(on, source.size)),
        ..Estimate::default()
    }
}

/// The next runs of a schedule, and what all it keeps comes to.
pub(crate) fn schedule(
    volume: &Volume,
    asked: &SetSchedule,
    runs: &[ScheduledRun],
    known: &Known,
) -> Estimate {
    let keeps = asked.keeps();
    let of_schedule = crate::schedule::made_for(&known.snapshots, volume.id);
    let made = u32::try_from(of_schedule.len()).unwrap_or(0);
    let others = volume.snapshots.saturating_sub(made).saturating_add(volume.waiting_merges);
    let rules: Vec<String> = asked.rules().map(|(rule, keep)| format!("{keep} {rule}")).collect();
    let next: Vec<String> = runs
        .iter()
        .map(|run| {
            let rules: Vec<&str> = run.rules.iter().map(|rule| rule.as_str()).collect();
            format!("{} ({})", run.local, rules.join(", "))
        })
        .collect();
    let reserving = volume.kind.reserves() && !asked.unreserved;
    let each = if reserving {
        Some(volume.size)
    } else {
        // what earlier ones hold on average; nothing is known of the first
        let held = of_schedule.iter().fold(0_u64, |sum, s| sum.saturating_add(s.used.bytes()));
        held.checked_div(of_schedule.len() as u64).map(Size::from_bytes)
    };
    let all = each.map(|each| Size::from_bytes(each.bytes().saturating_mul(u64::from(keeps))));
    let kept = match all {
        Some(all) if reserving => {
            format!(
                "each reserves the volume's {} once more, up to {}",
                volume.size.human(),
                all.human()
            )
        }
        Some(all) => {
            format!("like the snapshots that a schedule made so far, about {}", all.human())
        }
        None => "each keeps what the guest overwrites until the next".into(),
    };
    let mut crowded = String::new();
    if keeps.saturating_add(others) >= model::MAX_SNAPSHOTS {
        crowded = format!(
            "; {others} others, deleted ones that wait for their merge included, leave too few places, so runs will fail"
        );
    }
    Estimate {
        summary: format!(
            "keeps {} snapshots of volume '{}', at most {keeps} of the {} that it can have{crowded}; \
             {kept}; next runs: {}",
            rules.join(", "),
            volume.name,
            model::MAX_SNAPSHOTS,
            next.join(", ")
        ),
        takes: all.unwrap_or_default(),
        refused: asked.refusal(),
        ..Estimate::default()
    }
}

pub(crate) fn copies(
    source: &Source<'_>,
    count: usize,
    linked: bool,
    on: &Datastore,
    known: &Known,
) -> Estimate {
    let times = |size: Size| {
        Size::from_bytes(size.bytes().saturating_mul(u64::try_from(count).unwrap_or(u64::MAX)))
    };
    if linked {
        return Estimate {
            summary: format!("makes {count} linked clones of '{}' on '{}'", source.name, on.name),
            refused: crate::policy::over_limit(on, times(source.size)),
            ..Estimate::default()
        };
    }
    let takes = times(if source.kind.reserves() { source.size } else { source.used });
    let moves = times(source.used);
    Estimate {
        summary: format!("makes {count} full copies of '{}' on '{}'", source.name, on.name),
        takes,
        moves,
        seconds: seconds(known, Operation::VolumeCopy, moves),
        refused: room(takes, on)
            .or_else(|| crate::policy::over_limit(on, times(source.size)))
            .or_else(|| kind_refused(Operation::VolumeCopy, source.kind, on)),
        ..Estimate::default()
    }
}

/// From the rate of earlier tasks of this kind; none if there were none.
pub(crate) fn seconds(known: &Known, operation: Operation, bytes: Size) -> Option<u64> {
    let (mut moved, mut took) = (0_u64, 0_u64);
    for task in known.tasks.values() {
        let counts = task.operation == operation && task.state == TaskState::Success;
        if let Some(finished) = task.finished.filter(|_| counts && task.bytes_done.bytes() > 0) {
            moved = moved.saturating_add(task.bytes_done.bytes());
            let ms = finished.unix_ms().saturating_sub(task.created.unix_ms());
            took = took.saturating_add(ms.max(1));
        }
    }
    if moved == 0 {
        return None;
    }
    let ms = u128::from(bytes.bytes()) * u128::from(took) / u128::from(moved);
    u64::try_from(ms.div_ceil(1000)).ok()
}

fn room(takes: Size, on: &Datastore) -> Option<Problem> {
    (takes > on.space.free).then(|| {
        Problem::new(
            Code::NoSpace,
            format!(
                "Datastore '{}' has {} free; this takes {}.",
                on.name,
                on.space.free.human(),
                takes.human()
            ),
        )
        .hint("make it thin, delete something, or use another datastore")
    })
}

fn kind_refused(operation: Operation, kind: VolumeKind, on: &Datastore) -> Option<Problem> {
    let reason = model::support(operation, kind, false, on.features).err()?;
    Some(
        Problem::new(Code::Unsupported, format!("A {kind} volume on '{}': {reason}.", on.name))
            .hint("use --kind thin"),
    )
}

fn connected(volume: &Volume, what: &str) -> Option<Problem> {
    (volume.state != VolumeState::Disconnected).then(|| {
        Problem::new(
            Code::Connected,
            format!("Volume '{}' is {} and cannot be {what}.", volume.name, volume.state),
        )
        .hint(format!("shale volume disconnect {}", volume.name))
    })
}

fn depended(name: &str, dependents: &[String]) -> Option<Problem> {
    (!dependents.is_empty()).then(|| {
        Problem::new(
            Code::HasDependents,
            format!("{} linked clones depend on '{name}'.", dependents.len()),
        )
        .hint(format!("delete them first: {}", dependents.join(", ")))
        .with("dependents", dependents.to_vec())
    })
}
