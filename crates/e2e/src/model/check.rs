//! A look at everything: what the API lists, and what every sector reads, against the ledger.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use controller::client::Method;
use model::{Code, Problem, Task, Uuid, VolumeKind};
use serde_json::{Value, json};
use sim::guest::{History, recognise};

use super::guest::{Shared, connect};
use super::ledger::{Ledger, Pending, Point, Volume, zones};
use super::rest::{Rest, number, text};
use crate::process::poll_until;

/// How long a system may take to recover.
const LIMIT: Duration = Duration::from_secs(60);

/// A volume or template as the API shows it.
#[derive(Debug)]
struct Seen {
    name: String,
    size: u64,
    kind: VolumeKind,
    template: bool,
    on: Option<Uuid>,
    snapshots: BTreeMap<Uuid, (String, u64, Option<Uuid>)>,
    /// Where guests reach it.
    uri: Option<String>,
}

impl Seen {
    /// Its snapshots where none has two children: identities and names, the oldest first.
    fn in_order(&self) -> Vec<(Uuid, String)> {
        let above = |below: Option<Uuid>| self.snapshots.iter().find(|(_, s)| s.2 == below);
        std::iter::successors(above(None), |(id, _)| above(Some(**id)))
            .take(self.snapshots.len())
            .map(|(id, (name, ..))| (*id, name.clone()))
            .collect()
    }
}

/// What died.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Died {
    /// Nothing: the look comes at the end of a life.
    Nothing,
    /// Processes.
    Processes,
    /// The machine.
    Machine,
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that map_err wants")]
fn plain(problem: Problem) -> anyhow::Error {
    anyhow::anyhow!("{} ({})", problem.detail, problem.code)
}

/// A change that must succeed once the system has settled.
fn patiently(rest: &Rest, method: &Method, path: &str, body: Option<&Value>) -> Result<Task> {
    let attempt = || match rest.change(method.clone(), path, body) {
        Ok(task) => Ok(Some(task)),
        Err(problem)
            if matches!(
                problem.code,
                Code::Busy | Code::NodeUnavailable | Code::ServerUnavailable | Code::NotConnected
            ) =>
        {
            Ok(None)
        }
        Err(problem) => Err(plain(problem).context(format!("{method} {path}"))),
    };
    poll_until(LIMIT, attempt, || format!("{method} {path}"))
}

/// Waits until the node answers and every task of before has ended.
pub(super) fn settled(rest: &Rest) -> Result<()> {
    let quiet = || {
        let Ok(stores) = rest.list("/api/v1/datastores") else { return Ok(None) };
        let open =
            stores.iter().all(|store| store["state"] == "normal" || store["state"] == "online");
        let Ok(tasks) = rest.list("/api/v1/tasks") else { return Ok(None) };
        let running = tasks.iter().any(|task| {
            !matches!(task["state"].as_str(), Some("success" | "failed" | "cancelled"))
        });
        Ok((open && !stores.is_empty() && !running).then_some(()))
    };
    poll_until(LIMIT, quiet, || {
        format!("the system to settle: {:?}", rest.list("/api/v1/datastores"))
    })
}

/// What the server has learned change by change is what the node has: a look for what there is not
/// makes it load everything, and nothing may be different then, but for space that guests take.
pub(super) fn mirrored(rest: &Rest) -> Result<()> {
    let all = || -> Result<Vec<Value>> {
        let mut all = Vec::new();
        for kind in ["datastores", "volumes", "snapshots", "templates", "alarms"] {
            for mut object in rest.list(&format!("/api/v1/{kind}")).map_err(plain)? {
                for changing in ["space", "used", "merge_bytes"] {
                    object.as_object_mut().context("an object")?.remove(changing);
                }
                all.push(object);
            }
        }
        Ok(all)
    };
    let known = all()?;
    ensure!(rest.get("/api/v1/volumes/none-of-this-name").is_err(), "a volume that nobody made");
    let loaded = all()?;
    let strange = |one: &[Value], other: &[Value]| -> Vec<String> {
        one.iter().filter(|o| !other.contains(o)).map(Value::to_string).collect()
    };
    let (had, has) = (strange(&known, &loaded), strange(&loaded, &known));
    ensure!(had.is_empty() && has.is_empty(), "the server had {had:#?}, the node has {has:#?}");
    Ok(())
}

fn look(rest: &Rest) -> Result<BTreeMap<Uuid, Seen>> {
    let mut all = BTreeMap::new();
    for (path, template) in [("/api/v1/volumes", false), ("/api/v1/templates", true)] {
        for found in rest.list(path).map_err(plain)? {
            let id: Uuid = text(&found, "id")?.parse()?;
            let mut snapshots = BTreeMap::new();
            // what a template froze is not listed
            let points = match template {
                true => Vec::new(),
                false => rest.list(&format!("/api/v1/snapshots?volume={id}")).map_err(plain)?,
            };
            for point in points {
                let parent = point["parent"].as_str().map(str::parse).transpose()?;
                let (name, size) = (text(&point, "name")?, number(&point, "size")?);
                snapshots.insert(text(&point, "id")?.parse()?, (name, size, parent));
            }
            let ways = found["connections"].as_array().into_iter().flatten();
            let uri =
                ways.filter(|way| way["snapshot"].is_null()).find_map(|way| way["uri"].as_str());
            let seen = Seen {
                uri: uri.map(str::to_owned),
                name: text(&found, "name")?,
                size: number(&found, "size")?,
                kind: serde_json::from_value(found["kind"].clone())?,
                template,
                on: found["current_snapshot"].as_str().map(str::parse).transpose()?,
                snapshots,
            };
            all.insert(id, seen);
        }
    }
    Ok(all)
}

/// Settles the deed that was interrupted: it happened wholly, or not at all.
fn reconcile(ledger: &mut Ledger, seen: &BTreeMap<Uuid, Seen>, died: Died) -> Result<()> {
    let Some(pending) = ledger.pending.take() else { return Ok(()) };
    let shown = format!("{pending:?}").chars().take(120).collect::<String>();
    match pending {
        Pending::Other => {}
        Pending::Connect { volume } => {
            let found = seen.get(&volume).context("a volume")?;
            if let Some(known) = ledger.volumes.get_mut(&volume).filter(|_| died != Died::Machine) {
                known.uri.clone_from(&found.uri);
            }
        }
        Pending::Make { names, like, points } => {
            let made: Vec<_> = seen.iter().filter(|(_, s)| names.contains(&s.name)).collect();
            ensure!(made.is_empty() || made.len() == names.len(), "half of {names:?} were made");
            for (id, found) in made {
                let mut volume = Volume { name: found.name.clone(), ..like.clone() };
                volume.bring(&points, found.in_order());
                ledger.volumes.insert(*id, volume);
            }
        }
        Pending::Delete { volume } => {
            ledger.volumes.retain(|id, _| *id != volume || seen.contains_key(id));
        }
        Pending::Rename { volume, name } => {
            if let (Some(known), Some(found)) = (ledger.volumes.get_mut(&volume), seen.get(&volume))
                && found.name == name
            {
                known.name = name;
            }
        }
        Pending::Grow { volume, blocks } => {
            if let (Some(known), Some(found)) = (ledger.volumes.get_mut(&volume), seen.get(&volume))
                && found.size == blocks * super::ledger::BLOCK
            {
                known.blocks = blocks;
            }
        }
        Pending::Convert { volume, kind } => {
            if seen.get(&volume).is_some_and(|found| found.kind == kind) {
                ledger.converted(volume, kind);
            }
        }
        Pending::Freeze { volume, name } => {
            if let (Some(known), Some(found)) = (ledger.volumes.get_mut(&volume), seen.get(&volume))
                && found.template
            {
                known.template = true;
                known.name = name;
            }
        }
        Pending::Snapshot { members, name } => {
            let wanted = members.len();
            let mut found = 0;
            for (volume, least) in members {
                let known = ledger.volumes.get_mut(&volume).context("a member")?;
                let content = known.history.taken(&least);
                let record = seen.get(&volume).context("a member is gone")?;
                if let Some((id, _)) = record.snapshots.iter().find(|(_, point)| point.0 == name) {
                    found += 1;
                    known.with(*id, &name, content);
                }
            }
            ensure!(found == 0 || found == wanted, "{found} of {wanted} volumes have {name}");
        }
        Pending::DeleteSnapshot { volume, snapshot } => {
            let known = ledger.volumes.get_mut(&volume).context("a volume")?;
            if seen.get(&volume).is_some_and(|found| !found.snapshots.contains_key(&snapshot)) {
                known.without(snapshot);
            }
        }
        Pending::Revert { volume, snapshot } => {
            let known = ledger.volumes.get_mut(&volume).context("a volume")?;
            let found = seen.get(&volume).context("a reverted volume is gone")?;
            if found.on == Some(snapshot) && known.on != Some(snapshot) {
                known.reverted(snapshot);
            } else if found.on == Some(snapshot) {
                // it stood on it before: its content tells
                let (old, point) = (known.history.content(), &known.snapshots[&snapshot]);
                let sectors: BTreeSet<u64> =
                    old.keys().chain(point.content.keys()).copied().collect();
                let of = |c: &sim::guest::Content, s: u64| c.get(&s).cloned().unwrap_or(vec![0]);
                let both = sectors
                    .into_iter()
                    .map(|s| (s, [of(&old, s), of(&point.content, s)].concat()))
                    .collect();
                known.history = History::of(&both);
                known.blocks = found.size / super::ledger::BLOCK;
            }
        }
    }
    let known: Vec<&Uuid> = ledger.volumes.keys().collect();
    let found: Vec<&Uuid> = seen.keys().collect();
    ensure!(known == found, "after {shown}: volumes {found:?} are there, known are {known:?}");
    Ok(())
}

/// Settles the deed under way by what is there, while nothing died. False: the server cannot be asked.
pub(super) fn settle(rest: &Rest, shared: &Shared) -> Result<bool> {
    let Ok(seen) = look(rest) else { return Ok(false) };
    reconcile(&mut shared.ledger(), &seen, Died::Nothing)?;
    Ok(true)
}

fn compare(ledger: &Ledger, seen: &BTreeMap<Uuid, Seen>, died: Died) -> Result<()> {
    let names = |all: &mut dyn Iterator<Item = String>| all.collect::<BTreeSet<_>>();
    let found = names(&mut seen.values().map(|s| s.name.clone()));
    let known = names(&mut ledger.volumes.values().map(|v| v.name.clone()));
    ensure!(found == known, "volumes {found:?} are there, known are {known:?}");
    for (id, volume) in &ledger.volumes {
        let found = seen.get(id).with_context(|| format!("{} has another UUID", volume.name))?;
        let same = found.name == volume.name
            && found.size == volume.size()
            && found.kind == volume.kind
            && found.template == volume.template
            && (found.on == volume.on || volume.template)
            && (found.uri == volume.uri || died == Died::Machine);
        ensure!(same, "{found:?} is there, known is {}", shape(volume));
        let points: BTreeMap<Uuid, (String, u64, Option<Uuid>)> = volume
            .snapshots
            .iter()
            .map(|(id, p)| (*id, (p.name.clone(), p.blocks * super::ledger::BLOCK, p.parent)))
            .collect();
        ensure!(
            found.snapshots == points || volume.template,
            "{found:?} is there, known is {}",
            shape(volume)
        );
    }
    Ok(())
}

fn shape(volume: &Volume) -> String {
    let Volume { name, blocks, kind, template, on, origin, uri, .. } = volume;
    let points: Vec<_> =
        volume.snapshots.iter().map(|(id, p)| (id, &p.name, p.blocks, p.parent)).collect();
    format!(
        "{name}: {blocks} blocks, {kind}, template {template}, on {on:?}, of {origin:?}, {points:?}, {uri:?}"
    )
}

/// Reads the zones of a disk: sector and bytes.
fn read_zones(uri: &str, blocks: u64) -> Result<Vec<(u64, Vec<u8>)>> {
    let attempt = || Ok(connect(uri).ok());
    let mut client = poll_until(LIMIT, attempt, || format!("{uri} to be served"))?;
    // what is read below is durable: a guest may have written after its process came back
    client.flush()?;
    let mut sectors = Vec::new();
    for (first, len) in zones(blocks) {
        let mut bytes = vec![0; usize::try_from(len * 512)?];
        client.read(first * 512, &mut bytes).with_context(|| format!("reading {uri}"))?;
        sectors.extend((first..).zip(bytes.chunks(512).map(<[u8]>::to_vec)));
    }
    client.close()?;
    Ok(sectors)
}

/// The file is the disk of a point in time.
pub(super) fn read_file(path: &Path, point: &Point) -> Result<()> {
    let mut file = std::fs::File::open(path)?;
    for (first, len) in zones(point.blocks) {
        let mut bytes = vec![0; usize::try_from(len * 512)?];
        file.seek(SeekFrom::Start(first * 512))?;
        file.read_exact(&mut bytes)?;
        for (sector, found) in (first..).zip(bytes.chunks(512)) {
            let allowed = point.content.get(&sector).cloned().unwrap_or(vec![0]);
            recognise(found, sector, &allowed).map_err(|what| anyhow::anyhow!(what))?;
        }
    }
    Ok(())
}

/// The address of a new connection.
fn open(rest: &Rest, id: Uuid, body: &Value) -> Result<String> {
    let task =
        patiently(rest, &Method::POST, &format!("/api/v1/volumes/{id}/connect"), Some(body))?;
    let uri = task.result.as_ref().and_then(|result| Some(result["uri"].as_str()?.to_owned()));
    uri.context("a connection without a uri")
}

/// Looks at everything. The guest is paused, and nothing runs.
pub(super) fn everything(rest: &Rest, shared: &Shared, died: Died) -> Result<()> {
    settled(rest)?;
    mirrored(rest)?;
    {
        let seen = look(rest)?;
        let mut ledger = shared.ledger();
        reconcile(&mut ledger, &seen, died)?;
        compare(&ledger, &seen, died)?;
    }
    let volumes = shared.ledger().volumes.clone();
    // a template cannot be connected: what is deployed of it tells
    for (id, volume) in volumes.iter().filter(|(_, volume)| !volume.template) {
        let uri = content(rest, *id, volume, died, shared)
            .with_context(|| format!("volume {}", volume.name))?;
        if let Some(known) = shared.ledger().volumes.get_mut(id) {
            known.uri = uri;
        }
        for (snapshot, point) in &volume.snapshots {
            let body = json!({"snapshot": snapshot, "read_only": true});
            let uri = open(rest, *id, &body)?;
            let zones = read_zones(&uri, point.blocks)?;
            let path = format!("/api/v1/volumes/{id}/disconnect?snapshot={snapshot}");
            patiently(rest, &Method::POST, &path, None)?;
            let mut ledger = shared.ledger();
            let known = ledger.volumes.get_mut(id).and_then(|v| v.snapshots.get_mut(snapshot));
            let known = known.context("a snapshot")?;
            for (sector, bytes) in zones {
                let allowed = known.content.get(&sector).cloned().unwrap_or(vec![0]);
                let value = recognise(&bytes, sector, &allowed).map_err(|what| {
                    anyhow::anyhow!("snapshot {} of {}: {what}", point.name, volume.name)
                })?;
                known.content.insert(sector, vec![value]);
            }
        }
    }
    sound(rest)
}

/// What a volume reads, settled; where guests reach it afterwards.
fn content(
    rest: &Rest,
    id: Uuid,
    volume: &Volume,
    died: Died,
    shared: &Shared,
) -> Result<Option<String>> {
    let (uri, stays) = match &volume.uri {
        // its guest found it again by itself
        Some(uri) if died != Died::Machine => (uri.clone(), true),
        Some(_) => (open(rest, id, &json!({}))?, true),
        None => (open(rest, id, &json!({}))?, false),
    };
    let zones = read_zones(&uri, volume.blocks)?;
    if !stays {
        patiently(rest, &Method::POST, &format!("/api/v1/volumes/{id}/disconnect"), None)?;
    }
    let mut ledger = shared.ledger();
    let history = &mut ledger.volumes.get_mut(&id).context("a volume")?.history;
    for (sector, bytes) in zones {
        let allowed = match died {
            Died::Machine => history.after_cut(sector),
            Died::Nothing | Died::Processes => history.after_kill(sector),
        };
        let value = recognise(&bytes, sector, &allowed).map_err(|what| anyhow::anyhow!(what))?;
        history.settle(sector, value);
    }
    Ok(stays.then_some(uri))
}

/// The datastore's own check.
fn sound(rest: &Rest) -> Result<()> {
    let stores = rest.list("/api/v1/datastores").map_err(plain)?;
    for store in stores {
        let path = format!("/api/v1/datastores/{}/check", text(&store, "id")?);
        let task = patiently(rest, &Method::POST, &path, None)?;
        let report = task.result.context("a check has a result")?;
        let findings = report["findings"].as_array().context("a check has findings")?;
        if !findings.is_empty() {
            bail!("the check found: {findings:?}");
        }
    }
    Ok(())
}
