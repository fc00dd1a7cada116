//! `shale volume`.

use controller::client::Method;
use model::{
    CloneVolume, ConnectVolume, Connection, ConvertVolume, CreateVolume, ExportVolume,
    ImportVolume, Problem, Reference, UpdateVolume,
};

use super::names;
use crate::grammar::{Copies, FullCopies, Try, Volume, Waiting};
use crate::output;
use crate::session::{Session, segment};

const ALL: &str = "/api/v1/volumes";

impl Session {
    pub(crate) async fn volume(self, command: Volume) -> Result<(), Problem> {
        let at = |name: &Reference| format!("{ALL}/{}", segment(name));
        match command {
            Volume::Create { name, datastore, size, kind, tried, waiting } => {
                let body = CreateVolume { name, datastore, size, kind };
                if self.tried(&tried, Method::POST, ALL, Some(&body)).await? {
                    return Ok(());
                }
                let task = self.change(Method::POST, ALL, Some(&body), &waiting).await?;
                self.made::<model::Volume>(task)
            }
            Volume::List { datastore } => {
                let filter = datastore.map(|d| format!("?datastore={}", segment(&d)));
                let path = format!("{ALL}{}", filter.unwrap_or_default());
                output::list(self.format, &self.client.list::<model::Volume>(&path).await?)
            }
            Volume::Show { name } => {
                output::row(self.format, &self.client.get::<model::Volume>(&at(&name)).await?)
            }
            Volume::Rename { name, new_name, waiting } => {
                let body = UpdateVolume { name: Some(new_name), size: None };
                let task = self.change(Method::PATCH, &at(&name), Some(&body), &waiting).await?;
                self.made::<model::Volume>(task)
            }
            Volume::Resize { name, size, tried, waiting } => {
                let body = UpdateVolume { name: None, size: Some(size) };
                if self.tried(&tried, Method::PATCH, &at(&name), Some(&body)).await? {
                    return Ok(());
                }
                let task = self.change(Method::PATCH, &at(&name), Some(&body), &waiting).await?;
                self.made::<model::Volume>(task)
            }
            Volume::Convert { name, kind, lose_snapshots, tried, waiting } => {
                let body = ConvertVolume { kind, lose_snapshots };
                let path = format!("{}/convert", at(&name));
                if self.tried(&tried, Method::POST, &path, Some(&body)).await? {
                    return Ok(());
                }
                let task = self.change(Method::POST, &path, Some(&body), &waiting).await?;
                self.made::<model::Volume>(task)
            }
            Volume::Delete { name, consent, tried, waiting } => {
                if self.tried(&tried, Method::DELETE, &at(&name), None::<&()>).await? {
                    return Ok(());
                }
                let estimate = format!("{}?dry_run=true", at(&name));
                self.consent(consent.yes, &estimate, "DELETE").await?;
                let task = self.change(Method::DELETE, &at(&name), None::<&()>, &waiting).await?;
                self.done(task, &format!("volume '{name}' is deleted"))
            }
            Volume::Connect { name, protocol, tcp, snapshot, read_only, waiting } => {
                let body = ConnectVolume { protocol, tcp, snapshot, read_only };
                let path = format!("{}/connect", at(&name));
                let Some(task) = self.change(Method::POST, &path, Some(&body), &waiting).await?
                else {
                    return Ok(());
                };
                let result = task.result.clone().unwrap_or_default();
                match serde_json::from_value::<Connection>(result) {
                    Ok(connection) => output::object(self.format, &connection, || {
                        connection.place().to_owned() + "\n"
                    }),
                    Err(_another_version) => output::row(self.format, &task),
                }
            }
            Volume::Disconnect { name, snapshot, waiting } => {
                let mut path = format!("{}/disconnect", at(&name));
                let mut what = format!("volume '{name}'");
                if let Some(snapshot) = &snapshot {
                    path.push_str(&format!("?snapshot={}", segment(snapshot)));
                    what = format!("snapshot '{snapshot}' of {what}");
                }
                let task = self.change(Method::POST, &path, None::<&()>, &waiting).await?;
                self.done(task, &format!("{what} is disconnected"))
            }
            Volume::Clone { name, copies, snapshot, tried, waiting } => {
                let Copies { full, is_full, linked: _ } = copies;
                self.copies(&name, full, !is_full, snapshot, &tried, &waiting).await
            }
            Volume::Import {
                name,
                datastore,
                from,
                format,
                kind,
                chain,
                allow_backing,
                tried,
                waiting,
            } => {
                let source = from;
                let body =
                    ImportVolume { name, datastore, source, format, kind, chain, allow_backing };
                self.import(body, &tried, &waiting).await
            }
            Volume::Export {
                name,
                to,
                format,
                snapshot,
                with_snapshots,
                all_branches,
                force,
                waiting,
            } => {
                let body =
                    ExportVolume { to, format, snapshot, with_snapshots, all_branches, force };
                self.export(&name, body, &waiting).await
            }
            Volume::Copy { name, copies, snapshot, tried, waiting } => {
                self.copies(&name, copies, false, snapshot, &tried, &waiting).await
            }
        }
    }

    async fn copies(
        &self,
        name: &Reference,
        copies: FullCopies,
        linked: bool,
        snapshot: Option<Reference>,
        tried: &Try,
        waiting: &Waiting,
    ) -> Result<(), Problem> {
        let names = names(&copies)?;
        let FullCopies { kind, datastore, .. } = copies;
        let body = CloneVolume { names, linked, snapshot, datastore, kind };
        let path = format!("{ALL}/{}/clone", segment(name));
        if self.tried(tried, Method::POST, &path, Some(&body)).await? {
            return Ok(());
        }
        let task = self.change(Method::POST, &path, Some(&body), waiting).await?;
        self.made::<model::Volume>(task)
    }
}
