//! `shale snapshot`.

use controller::client::Method;
use model::{CreateSnapshot, Problem, Reference, Size, SnapshotDiff, SnapshotTree};
use serde_json::Value;

use crate::grammar::{Format, Snapshot};
use crate::output;
use crate::session::{Session, segment};
use crate::tree;

impl Session {
    pub(crate) async fn snapshot(self, command: Snapshot) -> Result<(), Problem> {
        let at = |volume: &Reference, name: &Reference| {
            format!("/api/v1/volumes/{}/snapshots/{}", segment(volume), segment(name))
        };
        match command {
            Snapshot::Create { name, volumes, no_reserve, tried, waiting } => {
                let body = CreateSnapshot { name, volumes, unreserved: no_reserve };
                let path = "/api/v1/snapshots";
                if self.tried(&tried, Method::POST, path, Some(&body)).await? {
                    return Ok(());
                }
                let Some(task) = self.change(Method::POST, path, Some(&body), &waiting).await?
                else {
                    return Ok(());
                };
                // {"set", "snapshots", "pauseMs"}: whole for programs, the list for people
                let result = task.result.clone().unwrap_or_default();
                let made: Result<Vec<model::Snapshot>, _> =
                    serde_json::from_value(result.get("snapshots").cloned().unwrap_or_default());
                match (self.format, made) {
                    (Format::Json | Format::Yaml, _) => {
                        output::object::<Value>(self.format, &result, String::new)
                    }
                    (Format::Table | Format::Wide | Format::Name, Ok(made)) => {
                        output::list(self.format, &made)
                    }
                    (_, Err(_another_version)) => output::row(self.format, &task),
                }
            }
            Snapshot::List { volume } => {
                let filter = volume.map(|v| format!("?volume={}", segment(&v)));
                let path = format!("/api/v1/snapshots{}", filter.unwrap_or_default());
                output::list(self.format, &self.client.list::<model::Snapshot>(&path).await?)
            }
            Snapshot::Tree { volume } => {
                let path = format!("/api/v1/volumes/{}/tree", segment(&volume));
                let tree: SnapshotTree = self.client.get(&path).await?;
                output::object(self.format, &tree, || tree::render(&tree))
            }
            Snapshot::Revert { name, volume, consent, tried, waiting } => {
                let path = format!("{}/revert", at(&volume, &name));
                if self.tried(&tried, Method::POST, &path, None::<&()>).await? {
                    return Ok(());
                }
                let estimate = format!("{path}?dry_run=true");
                self.consent(consent.yes, &estimate, "POST").await?;
                let task = self.change(Method::POST, &path, None::<&()>, &waiting).await?;
                self.done(task, &format!("volume '{volume}' is back at snapshot '{name}'"))
            }
            Snapshot::Delete { name, volume, consent, tried, waiting } => {
                let path = at(&volume, &name);
                if self.tried(&tried, Method::DELETE, &path, None::<&()>).await? {
                    return Ok(());
                }
                let estimate = format!("{path}?dry_run=true");
                self.consent(consent.yes, &estimate, "DELETE").await?;
                let task = self.change(Method::DELETE, &path, None::<&()>, &waiting).await?;
                self.done(task, &format!("snapshot '{name}' of volume '{volume}' is deleted"))
            }
            Snapshot::Schedule(command) => self.schedule(command).await,
            Snapshot::Diff { volume, from, to } => {
                let point = |name, point: Option<Reference>| {
                    point.map(|point| format!("{name}={}", segment(&point)))
                };
                let query: Vec<String> =
                    [point("from", from), point("to", to)].into_iter().flatten().collect();
                let path = format!("/api/v1/volumes/{}/diff?{}", segment(&volume), query.join("&"));
                let diff: SnapshotDiff = self.client.get(&path).await?;
                output::object(self.format, &diff, || text(&diff))
            }
        }
    }
}

fn text(diff: &SnapshotDiff) -> String {
    let mut text = String::from("OFFSET  LENGTH\n");
    for extent in &diff.extents {
        let zero = if extent.zero { "  zero" } else { "" };
        text += &format!("{}  {}{zero}\n", extent.offset, Size::from_bytes(extent.length));
    }
    text + &format!("{} in {} ranges may differ\n", diff.bytes.human(), diff.extents.len())
}
