//! `shale template`.

use controller::client::Method;
use model::{CreateTemplate, DeployTemplate, Problem};

use super::names;
use crate::grammar::{Copies, Template};
use crate::output;
use crate::session::{Session, segment};

const ALL: &str = "/api/v1/templates";

impl Session {
    pub(crate) async fn template(self, command: Template) -> Result<(), Problem> {
        match command {
            Template::Create { name, from, snapshot, waiting } => {
                let body = CreateTemplate { name, from, snapshot };
                let task = self.change(Method::POST, ALL, Some(&body), &waiting).await?;
                self.made::<model::Template>(task)
            }
            Template::List { datastore } => {
                let filter = datastore.map(|d| format!("?datastore={}", segment(&d)));
                let path = format!("{ALL}{}", filter.unwrap_or_default());
                output::list(self.format, &self.client.list::<model::Template>(&path).await?)
            }
            Template::Deploy { name, copies, tried, waiting } => {
                let Copies { full, is_full, linked: _ } = copies;
                let names = names(&full)?;
                let body = DeployTemplate {
                    names,
                    linked: !is_full,
                    kind: full.kind,
                    datastore: full.datastore,
                };
                let path = format!("{ALL}/{}/deploy", segment(&name));
                if self.tried(&tried, Method::POST, &path, Some(&body)).await? {
                    return Ok(());
                }
                let task = self.change(Method::POST, &path, Some(&body), &waiting).await?;
                self.made::<model::Volume>(task)
            }
            Template::Delete { name, consent, tried, waiting } => {
                let path = format!("{ALL}/{}", segment(&name));
                if self.tried(&tried, Method::DELETE, &path, None::<&()>).await? {
                    return Ok(());
                }
                self.consent(consent.yes, &format!("{path}?dry_run=true"), "DELETE").await?;
                let task = self.change(Method::DELETE, &path, None::<&()>, &waiting).await?;
                self.done(task, &format!("template '{name}' is deleted"))
            }
        }
    }
}
