//! `shale datastore`.

use controller::client::Method;
use model::{CheckReport, CreateDatastore, Problem, Severity, UpdateDatastore};

use crate::grammar::Datastore;
use crate::output;
use crate::session::{Session, segment};

const ALL: &str = "/api/v1/datastores";

impl Session {
    pub(crate) async fn datastore(self, command: Datastore) -> Result<(), Problem> {
        match command {
            Datastore::Create { name, dir, waiting } => {
                // the server may run elsewhere in the tree: the path must not depend on ours
                let dir = std::path::absolute(&dir).unwrap_or(dir);
                let body = CreateDatastore { name, dir: dir.display().to_string() };
                let task = self.change(Method::POST, ALL, Some(&body), &waiting).await?;
                self.made::<model::Datastore>(task)
            }
            Datastore::List => {
                output::list(self.format, &self.client.list::<model::Datastore>(ALL).await?)
            }
            Datastore::Show { name } => {
                let path = format!("{ALL}/{}", segment(&name));
                output::row(self.format, &self.client.get::<model::Datastore>(&path).await?)
            }
            Datastore::Set { name, overcommit_alarm, overcommit_limit, low, critical } => {
                let body = UpdateDatastore { overcommit_alarm, overcommit_limit, low, critical };
                let path = format!("{ALL}/{}", segment(&name));
                let now: model::Datastore =
                    self.client.call(Method::PATCH, &path, Some(&body)).await?;
                output::row(self.format, &now)
            }
            Datastore::Check { name, waiting } => {
                let path = format!("{ALL}/{}/check", segment(&name));
                let Some(task) = self.change(Method::POST, &path, None::<&()>, &waiting).await?
                else {
                    return Ok(());
                };
                let result = task.result.clone().unwrap_or_default();
                let Ok(report) = serde_json::from_value::<CheckReport>(result) else {
                    return output::row(self.format, &task);
                };
                output::object(self.format, &report, || text(&report))?;
                let bad = report.findings.iter().filter(|f| f.severity > Severity::Info).count();
                if bad == 0 {
                    return Ok(());
                }
                Err(Problem::new(
                    model::Code::Corrupt,
                    format!("The check of datastore '{name}' found {bad} faults."),
                )
                .hint("nothing was changed; copy what is important before anything else"))
            }
            Datastore::Delete { name, consent, tried, waiting } => {
                let path = format!("{ALL}/{}", segment(&name));
                if self.tried(&tried, Method::DELETE, &path, None::<&()>).await? {
                    return Ok(());
                }
                self.consent(consent.yes, &format!("{path}?dry_run=true"), "DELETE").await?;
                let task: Option<model::Task> =
                    self.client.call(Method::DELETE, &path, None::<&()>).await?;
                let task = match task {
                    Some(task) => self.wait(task.clone(), &waiting).await?.or(Some(task)),
                    None => None,
                };
                match task {
                    Some(task) => self.done(Some(task), &format!("datastore '{name}' is removed")),
                    None => output::print(&format!("datastore '{name}' is forgotten\n")),
                }
            }
        }
    }
}

fn text(report: &CheckReport) -> String {
    let mut text = format!("checked {} objects, {}\n", report.objects, report.bytes.human());
    for finding in &report.findings {
        text += &format!("{}  {}  {}\n", finding.severity, finding.object, finding.message);
    }
    if report.findings.is_empty() {
        text += "nothing is wrong\n";
    }
    text
}
