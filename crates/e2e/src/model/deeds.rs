//! What administrators do, and what must come of it.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use controller::client::Method;
use io::sim::SplitMix64;
use model::{Code, Problem, Task, Uuid, VolumeKind};
use serde_json::{Value, json};
use sim::guest::Content;

use super::check::{self, read_file};
use super::guest::Shared;
use super::ledger::{BLOCK, Ledger, Pending, Point, SEGMENT, Volume};
use super::rest::{Rest, number, text};

/// At most this many volumes at a time: what a run costs is looking at them.
const MAX_VOLUMES: usize = 6;
/// Snapshots of one volume, as far as deeds make them.
const MAX_POINTS: usize = 5;

const VOLUMES: &str = "/api/v1/volumes";

/// How a deed went.
#[derive(Debug)]
pub(super) enum Went {
    /// As it must.
    Done(&'static str),
    /// Refused, as it must be.
    Refused,
    /// It ended as only a death may end it, and the ledger has what is open: what it said.
    Open(String),
}

/// Who acts, and on what.
pub(super) struct Deeds<'a> {
    pub(super) rest: &'a Rest,
    pub(super) shared: &'a Shared,
    pub(super) rng: SplitMix64,
    /// Where exports go.
    pub(super) outside: &'a Path,
    pub(super) datastore: &'a str,
}

/// Errors that may come of a death only.
fn is_death(problem: &Problem) -> bool {
    matches!(
        problem.code,
        Code::ServerUnavailable | Code::NodeUnavailable | Code::Internal | Code::IoError
    )
}

/// The objects that a task made, as its result shows them.
fn made(task: &Task) -> Vec<Uuid> {
    let listed = task.result.as_ref().and_then(Value::as_array).map(|all| {
        all.iter().filter_map(|one| one["id"].as_str()?.parse().ok()).collect::<Vec<Uuid>>()
    });
    let single = task.result.as_ref().and_then(|one| one["id"].as_str()?.parse().ok());
    match (listed, single) {
        (Some(all), _) => all,
        (None, Some(one)) => vec![one],
        (None, None) => Vec::new(),
    }
}

impl Deeds<'_> {
    fn dice(&mut self, below: u64) -> u64 {
        self.rng.between(0, below.max(1) - 1)
    }

    fn any(&mut self, fits: impl Fn(&Volume) -> bool) -> Option<Uuid> {
        let all: Vec<Uuid> = {
            let ledger = self.shared.ledger();
            ledger.volumes.iter().filter(|(_, v)| fits(v)).map(|(id, _)| *id).collect()
        };
        let pick = self.dice(all.len() as u64);
        all.get(usize::try_from(pick).ok()?).copied()
    }

    fn volume(&self, id: Uuid) -> Volume {
        self.shared.ledger().volumes[&id].clone()
    }

    fn any_point(&mut self, fits: impl Fn(&Volume) -> bool) -> Option<(Uuid, Uuid)> {
        let volume = self.any(|v| !v.snapshots.is_empty() && !v.template && fits(v))?;
        let points: Vec<Uuid> = self.volume(volume).snapshots.keys().copied().collect();
        let pick = self.dice(points.len() as u64);
        Some((volume, *points.get(usize::try_from(pick).ok()?)?))
    }

    fn begin(&self, pending: Pending) {
        self.shared.ledger().pending = Some(pending);
    }

    /// A change; now and then it is cancelled as soon as it has begun.
    fn change(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Task, Problem> {
        let cancel = self.rng.chance(12);
        let task = self.rest.begin(method, path, body)?;
        if cancel && task.cancellable {
            let path = format!("/api/v1/tasks/{}/cancel", task.id);
            // it may have ended by now
            drop(self.rest.begin(Method::POST, &path, None));
        }
        self.rest.ended(task)
    }

    /// Settles what came of a change: `refusals` are the codes with which it must be refused, if any.
    fn settle(
        &self,
        what: &'static str,
        outcome: Result<Task, Problem>,
        refusals: &[Code],
        done: impl FnOnce(&mut Ledger, &Task),
    ) -> Result<Went> {
        if matches!(&outcome, Err(problem) if problem.code == Code::Cancelled) {
            // wholly done, or not at all
            return Ok(match check::settle(self.rest, self.shared).with_context(|| what)? {
                true => Went::Refused,
                false => Went::Open(format!("{what}: cancelled, and the server cannot be asked")),
            });
        }
        let mut ledger = self.shared.ledger();
        match outcome {
            Ok(_) if refusals.is_empty() && self.shared.is_dark() => {
                Ok(Went::Open(format!("{what}: done while the power went")))
            }
            Ok(task) if refusals.is_empty() => {
                ledger.pending = None;
                done(&mut ledger, &task);
                Ok(Went::Done(what))
            }
            Ok(_) => bail!("{what}: done, and it must be refused with one of {refusals:?}"),
            Err(problem) if is_death(&problem) => {
                Ok(Went::Open(format!("{what}: {} ({})", problem.detail, problem.code)))
            }
            // merges after a disconnect hold a volume for a moment
            Err(problem) if problem.code == Code::Busy || refusals.contains(&problem.code) => {
                ledger.pending = None;
                Ok(Went::Refused)
            }
            Err(problem) => bail!(
                "{what}: {} ({}), and it must {}",
                problem.detail,
                problem.code,
                if refusals.is_empty() {
                    "succeed".to_owned()
                } else {
                    format!("say {refusals:?}")
                }
            ),
        }
    }

    /// One deed, whatever the dice say.
    pub(super) fn act(&mut self) -> Result<Option<Went>> {
        let volumes = self.shared.ledger().volumes.len();
        let room = volumes < MAX_VOLUMES;
        match self.dice(31) {
            0..=3 if room => self.create().map(Some),
            4..=7 => self.connect(),
            8 | 9 => self.disconnect(),
            10..=14 => self.snapshot(),
            15..=17 => self.delete_snapshot(),
            18 | 19 => self.revert(),
            20 if room => self.clone_linked(),
            21 if room => self.copy(),
            22 => self.grow(),
            23 => self.delete(),
            24 => self.rename(),
            25 => self.convert(),
            26 => self.freeze(),
            27 if room => self.deploy(),
            28 => self.export(),
            29 if room => self.import(),
            30 if room => self.import_chain(),
            _ => Ok(None),
        }
    }

    fn kind(&mut self) -> VolumeKind {
        match self.dice(5) {
            0 => VolumeKind::Fixed,
            1 => VolumeKind::Lazy,
            _ => VolumeKind::Thin,
        }
    }

    fn create(&mut self) -> Result<Went> {
        let name = self.shared.ledger().name('v');
        let far = self.dice(6) == 0;
        let (kind, blocks) = match far {
            // over the boundary of its segments
            true => (VolumeKind::Thin, SEGMENT + self.dice(3)),
            false => (self.kind(), 1 + self.dice(4)),
        };
        let like = Volume::new(&name, blocks, kind, &Content::new());
        let names = vec![name.clone()];
        self.begin(Pending::Make { names, like: like.clone(), points: Vec::new() });
        let body = json!({"name": name, "datastore": self.datastore, "size": blocks * BLOCK, "kind": kind});
        let outcome = self.change(Method::POST, VOLUMES, Some(&body));
        let mut ids = Vec::new();
        let went = self.settle("create", outcome, &[], |_, task| ids = made(task))?;
        if let Some(id) = ids.first() {
            self.shared.ledger().volumes.insert(*id, like);
        }
        Ok(went)
    }

    fn connect(&mut self) -> Result<Option<Went>> {
        let Some(id) = self.any(|v| !v.template) else { return Ok(None) };
        let connected = self.volume(id).uri.is_some();
        let refusals: &[Code] = if connected { &[Code::Connected] } else { &[] };
        self.begin(Pending::Connect { volume: id });
        let path = format!("{VOLUMES}/{id}/connect");
        let outcome = self.change(Method::POST, &path, Some(&json!({})));
        let mut uri = None;
        let went = self.settle("connect", outcome, refusals, |_, task| {
            uri = task.result.as_ref().and_then(|r| Some(r["uri"].as_str()?.to_owned()));
        })?;
        if matches!(went, Went::Done(_)) {
            let uri = uri.context("a connection without a uri")?;
            let mut ledger = self.shared.ledger();
            ledger.volumes.get_mut(&id).context("a volume")?.uri = Some(uri);
        }
        Ok(Some(went))
    }

    fn disconnect(&mut self) -> Result<Option<Went>> {
        let Some(id) = self.any(|v| !v.template) else { return Ok(None) };
        let was = {
            // guests stop before their disk goes
            let mut ledger = self.shared.ledger();
            let volume = ledger.volumes.get_mut(&id).context("a volume")?;
            volume.uri.take()
        };
        let refusals: &[Code] = if was.is_none() { &[Code::NotConnected] } else { &[] };
        self.begin(Pending::Connect { volume: id });
        let path = format!("{VOLUMES}/{id}/disconnect");
        let outcome = self.change(Method::POST, &path, None);
        let busy = matches!(&outcome, Err(problem) if problem.code == Code::Busy);
        let went = self.settle("disconnect", outcome, refusals, |_, _| {})?;
        if busy {
            let mut ledger = self.shared.ledger();
            ledger.volumes.get_mut(&id).context("a volume")?.uri = was;
        }
        Ok(Some(went))
    }

    fn snapshot(&mut self) -> Result<Option<Went>> {
        let Some(first) = self.any(|v| v.snapshots.len() < MAX_POINTS) else { return Ok(None) };
        let mut members = vec![first];
        let second = self.any(|v| !v.template && v.snapshots.len() < MAX_POINTS);
        if let Some(second) = second.filter(|s| *s != first && self.rng.chance(40)) {
            members.push(second);
        }
        let template = members.iter().any(|id| self.volume(*id).template);
        let refusals: &[Code] = if template { &[Code::NotFound] } else { &[] };
        let (name, least) = {
            let mut ledger = self.shared.ledger();
            let name = ledger.name('s');
            let mut least = Vec::new();
            for id in &members {
                let volume = ledger.volumes.get_mut(id).context("a volume")?;
                least.push((*id, volume.history.take()));
            }
            ledger.pending = Some(Pending::Snapshot { members: least.clone(), name: name.clone() });
            (name, least)
        };
        let ids: Vec<String> = members.iter().map(Uuid::to_string).collect();
        let body = json!({"name": name, "volumes": ids});
        let outcome = self.change(Method::POST, "/api/v1/snapshots", Some(&body));
        let went = self.settle("snapshot", outcome, refusals, |_, _| {})?;
        match went {
            Went::Done(_) => {
                let mut unseen = Vec::new();
                for (id, least) in &least {
                    let snapshot = self.snapshot_id(*id, &name)?;
                    let mut ledger = self.shared.ledger();
                    let volume = ledger.volumes.get_mut(id).context("a volume")?;
                    match snapshot {
                        Some(snapshot) => {
                            let content = volume.history.taken(least);
                            volume.with(snapshot, &name, content);
                        }
                        None => unseen.push((*id, least.clone())),
                    }
                }
                if !unseen.is_empty() {
                    // the server died in between; a look at everything follows
                    self.begin(Pending::Snapshot { members: unseen, name });
                    return Ok(Some(Went::Open("the server cannot be asked".to_owned())));
                }
            }
            Went::Refused => {
                for (id, least) in &least {
                    if let Some(volume) = self.shared.ledger().volumes.get_mut(id) {
                        drop(volume.history.taken(least));
                    }
                }
            }
            Went::Open(_) => {}
        }
        Ok(Some(went))
    }

    /// The identity of a snapshot, by its name; None: the server cannot be asked now.
    fn snapshot_id(&self, volume: Uuid, name: &str) -> Result<Option<Uuid>> {
        match self.rest.get(&format!("{VOLUMES}/{volume}/snapshots/{name}")) {
            Ok(found) => Ok(Some(text(&found, "id")?.parse()?)),
            Err(problem) if is_death(&problem) => Ok(None),
            Err(problem) => bail!("snapshot {name} was made and is not there: {}", problem.detail),
        }
    }

    fn delete_snapshot(&mut self) -> Result<Option<Went>> {
        let Some((volume, snapshot)) = self.any_point(|_| true) else { return Ok(None) };
        self.begin(Pending::DeleteSnapshot { volume, snapshot });
        let path = format!("{VOLUMES}/{volume}/snapshots/{snapshot}");
        let outcome = self.change(Method::DELETE, &path, None);
        let went = self.settle("delete-snapshot", outcome, &[], |ledger, _| {
            if let Some(volume) = ledger.volumes.get_mut(&volume) {
                volume.without(snapshot);
            }
        })?;
        Ok(Some(went))
    }

    fn revert(&mut self) -> Result<Option<Went>> {
        let Some((volume, snapshot)) = self.any_point(|_| true) else { return Ok(None) };
        let known = self.volume(volume);
        let refusals: &[Code] = match (known.template, known.uri.is_some()) {
            (true, _) => &[Code::NotFound],
            (false, true) => &[Code::Connected],
            (false, false) => &[],
        };
        self.begin(Pending::Revert { volume, snapshot });
        let path = format!("{VOLUMES}/{volume}/snapshots/{snapshot}/revert");
        let outcome = self.change(Method::POST, &path, None);
        let went = self.settle("revert", outcome, refusals, |ledger, _| {
            if let Some(volume) = ledger.volumes.get_mut(&volume) {
                volume.reverted(snapshot);
            }
        })?;
        Ok(Some(went))
    }

    /// Volumes of new names with the content of a point in time.
    fn make(
        &mut self,
        what: &'static str,
        path: &str,
        mut body: Value,
        names: Vec<String>,
        like: &Volume,
        refusals: &[Code],
    ) -> Result<Went> {
        self.begin(Pending::Make { names: names.clone(), like: like.clone(), points: Vec::new() });
        body["names"] = json!(names);
        let outcome = self.change(Method::POST, path, Some(&body));
        let mut ids = Vec::new();
        let went = self.settle(what, outcome, refusals, |_, task| ids = made(task))?;
        if matches!(went, Went::Done(_)) {
            ensure!(ids.len() == names.len(), "{what}: {names:?} were made as {ids:?}");
            let mut ledger = self.shared.ledger();
            for (id, name) in ids.into_iter().zip(names) {
                ledger.volumes.insert(id, Volume { name, ..like.clone() });
            }
        }
        Ok(went)
    }

    fn names(&self, count: u64) -> Vec<String> {
        let mut ledger = self.shared.ledger();
        (0..count).map(|_| ledger.name('v')).collect()
    }

    fn clone_linked(&mut self) -> Result<Option<Went>> {
        let Some((volume, snapshot)) = self.any_point(|_| true) else { return Ok(None) };
        let point = self.volume(volume).snapshots[&snapshot].clone();
        let mut like = Volume::new("", point.blocks, VolumeKind::Thin, &point.content);
        like.origin = Some(volume);
        let count = 1 + self.dice(2);
        let (names, path) = (self.names(count), format!("{VOLUMES}/{volume}/clone"));
        let body = json!({"linked": true, "snapshot": snapshot});
        self.make("clone", &path, body, names, &like, &[]).map(Some)
    }

    fn copy(&mut self) -> Result<Option<Went>> {
        let Some(volume) = self.any(|v| !v.template && v.blocks < 64) else { return Ok(None) };
        let known = self.volume(volume);
        let kind = self.kind();
        let refusals: &[Code] = if known.uri.is_some() { &[Code::Connected] } else { &[] };
        let like = Volume::new("", known.blocks, kind, &known.history.content());
        let (names, path) = (self.names(1), format!("{VOLUMES}/{volume}/clone"));
        let body = json!({"linked": false, "kind": kind});
        self.make("copy", &path, body, names, &like, refusals).map(Some)
    }

    fn deploy(&mut self) -> Result<Option<Went>> {
        let Some(volume) = self.any(|v| v.template) else { return Ok(None) };
        let known = self.volume(volume);
        let linked = self.rng.chance(50);
        let mut like = Volume::new("", known.blocks, VolumeKind::Thin, &known.history.content());
        like.origin = linked.then_some(volume);
        let (names, path) = (self.names(1), format!("/api/v1/templates/{volume}/deploy"));
        let body = match linked {
            true => json!({"linked": true}),
            false => json!({"linked": false, "kind": "thin"}),
        };
        self.make("deploy", &path, body, names, &like, &[]).map(Some)
    }

    fn grow(&mut self) -> Result<Option<Went>> {
        let Some(volume) = self.any(|v| v.blocks < 64 || v.blocks < SEGMENT + 6) else {
            return Ok(None);
        };
        let known = self.volume(volume);
        let shrinks = self.rng.chance(15) && known.blocks > 1;
        let blocks = if shrinks { known.blocks - 1 } else { known.blocks + 1 + self.dice(2) };
        let refusals: &[Code] = match (known.template, known.uri.is_some(), shrinks) {
            (true, ..) => &[Code::NotFound],
            (_, true, _) => &[Code::Connected, Code::InvalidSize],
            (_, _, true) => &[Code::InvalidSize],
            _ => &[],
        };
        self.begin(Pending::Grow { volume, blocks });
        let path = format!("{VOLUMES}/{volume}");
        let body = json!({"size": blocks * BLOCK});
        let outcome = self.change(Method::PATCH, &path, Some(&body));
        let went = self.settle("grow", outcome, refusals, |ledger, _| {
            if let Some(volume) = ledger.volumes.get_mut(&volume) {
                volume.blocks = blocks;
            }
        })?;
        Ok(Some(went))
    }

    fn delete(&mut self) -> Result<Option<Went>> {
        let Some(volume) = self.any(|_| true) else { return Ok(None) };
        let known = self.volume(volume);
        let clones = self.shared.ledger().has_clones(volume);
        let refusals: &[Code] = match (clones, known.uri.is_some()) {
            (true, true) => &[Code::HasDependents, Code::Connected],
            (true, false) => &[Code::HasDependents],
            (false, true) => &[Code::Connected],
            (false, false) => &[],
        };
        self.begin(Pending::Delete { volume });
        let all = if known.template { "/api/v1/templates" } else { VOLUMES };
        let outcome = self.change(Method::DELETE, &format!("{all}/{volume}"), None);
        let went = self.settle("delete", outcome, refusals, |ledger, _| {
            ledger.volumes.remove(&volume);
        })?;
        Ok(Some(went))
    }

    fn rename(&mut self) -> Result<Option<Went>> {
        let Some(volume) = self.any(|v| !v.template) else { return Ok(None) };
        let taken = self.rng.chance(20).then(|| self.any(|_| true)).flatten();
        let taken = taken.filter(|other| *other != volume).map(|other| self.volume(other).name);
        let refusals: &[Code] = if taken.is_some() { &[Code::NameTaken] } else { &[] };
        let name = taken.unwrap_or_else(|| self.shared.ledger().name('v'));
        self.begin(Pending::Rename { volume, name: name.clone() });
        let body = json!({"name": name});
        let outcome = self.change(Method::PATCH, &format!("{VOLUMES}/{volume}"), Some(&body));
        let went = self.settle("rename", outcome, refusals, |ledger, _| {
            if let Some(volume) = ledger.volumes.get_mut(&volume) {
                volume.name.clone_from(&name);
            }
        })?;
        Ok(Some(went))
    }

    fn convert(&mut self) -> Result<Option<Went>> {
        let Some(volume) = self.any(|v| !v.template && v.blocks < 64) else { return Ok(None) };
        let (known, kind) = (self.volume(volume), self.kind());
        let loses = kind == VolumeKind::Fixed && known.kind != kind && !known.snapshots.is_empty();
        let (lose, clones) = (self.rng.chance(30), self.shared.ledger().has_clones(volume));
        let refusals: &[Code] = match (known.uri.is_some(), loses && (!lose || clones)) {
            (true, true) => &[Code::Connected, Code::HasDependents],
            (true, false) => &[Code::Connected],
            (false, true) => &[Code::HasDependents],
            (false, false) => &[],
        };
        self.begin(Pending::Convert { volume, kind });
        let path = format!("{VOLUMES}/{volume}/convert");
        let body = json!({"kind": kind, "lose_snapshots": lose});
        let outcome = self.change(Method::POST, &path, Some(&body));
        // clones of a deleted snapshot may still stand on an old fixed layer
        if matches!(&outcome, Err(p) if p.code == Code::HasDependents)
            && kind == VolumeKind::Fixed
            && self.shared.ledger().has_clones(volume)
        {
            self.shared.ledger().pending = None;
            return Ok(Some(Went::Refused));
        }
        let done = |ledger: &mut Ledger, _: &Task| ledger.converted(volume, kind);
        let went = self.settle("convert", outcome, refusals, done)?;
        Ok(Some(went))
    }

    fn freeze(&mut self) -> Result<Option<Went>> {
        let Some(volume) = self.any(|v| !v.template) else { return Ok(None) };
        let known = self.volume(volume);
        let refusals: &[Code] = if known.uri.is_some() { &[Code::Connected] } else { &[] };
        let name = self.shared.ledger().name('t');
        self.begin(Pending::Freeze { volume, name: name.clone() });
        let body = json!({"name": name, "from": volume});
        let outcome = self.change(Method::POST, "/api/v1/templates", Some(&body));
        let went = self.settle("freeze", outcome, refusals, |ledger, _| {
            if let Some(volume) = ledger.volumes.get_mut(&volume) {
                volume.template = true;
                volume.name.clone_from(&name);
            }
        })?;
        Ok(Some(went))
    }

    /// A snapshot's content, as a raw file that is read here.
    fn export(&mut self) -> Result<Option<Went>> {
        let Some((volume, snapshot)) = self.any_point(|_| true) else { return Ok(None) };
        let point = self.volume(volume).snapshots[&snapshot].clone();
        self.begin(Pending::Other);
        let file = self.outside.join("out.raw");
        let (path, to) = (format!("{VOLUMES}/{volume}/export"), file.display().to_string());
        let body = json!({"to": to, "format": "raw", "snapshot": snapshot, "force": true});
        let outcome = self.change(Method::POST, &path, Some(&body));
        let went = self.settle("export", outcome, &[], |_, _| {})?;
        if matches!(went, Went::Done(_)) {
            read_file(&file, &point).with_context(|| format!("export of {}", point.name))?;
        }
        Ok(Some(went))
    }

    /// A file whose content is known comes in as a volume.
    fn import(&mut self) -> Result<Option<Went>> {
        let file = self.outside.join("out.raw");
        let Some((volume, snapshot)) = self.any_point(|v| v.blocks < 64) else { return Ok(None) };
        let point = self.volume(volume).snapshots[&snapshot].clone();
        let (path, to) = (format!("{VOLUMES}/{volume}/export"), file.display().to_string());
        let format = ["raw", "vhd", "qcow2"][usize::try_from(self.dice(3))?];
        let body = json!({"to": to, "format": format, "snapshot": snapshot, "force": true});
        self.begin(Pending::Other);
        let exported = self.change(Method::POST, &path, Some(&body));
        let went = self.settle("export", exported, &[], |_, _| {})?;
        if !matches!(went, Went::Done(_)) {
            return Ok(Some(went));
        }
        let (name, kind) = (self.shared.ledger().name('v'), self.kind());
        let like = Volume::new(&name, point.blocks, kind, &point.content);
        let names = vec![name.clone()];
        self.begin(Pending::Make { names, like: like.clone(), points: Vec::new() });
        let body = json!({
            "name": name, "datastore": self.datastore, "source": to, "kind": kind, "format": format
        });
        let outcome = self.change(Method::POST, "/api/v1/imports", Some(&body));
        let mut ids = Vec::new();
        let went = self.settle("import", outcome, &[], |_, task| ids = made(task))?;
        if matches!(went, Went::Done(_)) {
            let id = *ids.first().context("an import makes a volume")?;
            self.shared.ledger().volumes.insert(id, like);
        }
        Ok(Some(went))
    }

    /// A volume's layers go out as a folder of VHDs, and come in as another volume with its snapshots.
    fn import_chain(&mut self) -> Result<Option<Went>> {
        let fits = |v: &Volume| v.blocks < 64 && v.path().len() > 1;
        let Some((volume, _)) = self.any_point(fits) else { return Ok(None) };
        let known = self.volume(volume);
        let mut path = known.path();
        // every layer of it must be known: none of a deleted snapshot, or of an origin
        let shown = match self.rest.get(&format!("{VOLUMES}/{volume}")) {
            Ok(shown) => shown,
            Err(problem) if is_death(&problem) => {
                self.begin(Pending::Other);
                return Ok(Some(Went::Open("the server cannot be asked".to_owned())));
            }
            Err(problem) => bail!("{} is not shown: {}", known.name, problem.detail),
        };
        if number(&shown, "chain_length")? != path.len() as u64 + 1 {
            return Ok(None);
        }
        path.truncate(1 + usize::try_from(self.dice(path.len() as u64))?);
        let mut points: Vec<Point> = path.iter().map(|id| known.snapshots[id].clone()).collect();
        let dir = tempfile::tempdir_in(self.outside)?;
        let folder = dir.path().join("chain");
        self.begin(Pending::Other);
        let body = json!({
            "to": folder.display().to_string(), "format": "vhd", "snapshot": path.last(),
            "with_snapshots": true
        });
        let exported =
            self.change(Method::POST, &format!("{VOLUMES}/{volume}/export"), Some(&body));
        let went = self.settle("export-chain", exported, &[], |_, _| {})?;
        let (true, Some(top)) = (matches!(went, Went::Done(_)), points.pop()) else {
            return Ok(Some(went));
        };
        let name = self.shared.ledger().name('v');
        let like = Volume::new(&name, top.blocks, VolumeKind::Thin, &top.content);
        let names = vec![name.clone()];
        self.begin(Pending::Make { names, like, points });
        let source = folder.join(format!("{}.vhd", known.name)).display().to_string();
        let body = json!({
            "name": name, "datastore": self.datastore, "source": source, "kind": "thin", "chain": true
        });
        let outcome = self.change(Method::POST, "/api/v1/imports", Some(&body));
        if outcome.is_err() || self.shared.is_dark() {
            return self.settle("import-chain", outcome, &[], |_, _| {}).map(Some);
        }
        // the snapshots have names and identities that only a look tells
        Ok(Some(match check::settle(self.rest, self.shared)? {
            true => Went::Done("import-chain"),
            false => Went::Open("the server cannot be asked".to_owned()),
        }))
    }
}
