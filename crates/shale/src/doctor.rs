//! `shale doctor`: what this host has of what the system needs. It asks nobody's leave and changes
//! nothing; a server is asked where one runs.

use controller::Announcement;
use controller::client::{Client, Method};
use model::{Exit, Problem};
use node::doctor::{Finding, State};

use crate::grammar::{Doctor, Place};
use crate::local::is_alive;
use crate::output::{self, Row};
use crate::session::{data_dir, local_token};

pub(crate) fn doctor(place: &Place, command: &Doctor) -> Result<Exit, Problem> {
    let data = data_dir(place)?;
    let mut findings = node::doctor::examine(&data, &command.dirs);
    findings.extend(crate::runtime()?.block_on(processes(&data)));
    output::list(place.output, &findings)?;
    Ok(if findings.iter().any(Finding::prevents) { Exit::Failed } else { Exit::Ok })
}

/// Whether server and node of this data directory run, and of which version.
async fn processes(data: &std::path::Path) -> [Finding; 2] {
    const START: &str = "systemctl start shale, or `shale serve`";
    let own = env!("CARGO_PKG_VERSION");
    let judge = |name: &str, version: &str, facts: String| {
        if version == own {
            return Finding::ok(name, format!("{facts}, version {version}"));
        }
        Finding::limited(name, format!("{facts}, version {version}; this program is {own}"))
            .advice("finish the upgrade: restart it; see docs/operating.md")
    };
    let server = match Announcement::read(data).filter(is_alive) {
        None => {
            Finding::missing("server", "no `shale serve` runs on this data directory").advice(START)
        }
        Some(at) => {
            let facts = format!("process {} at {}", at.pid, at.url);
            match server_version(data, &at.url).await {
                Ok(version) => judge("server", &version, facts),
                Err(problem) => Finding::limited("server", format!("{facts}: {}", problem.detail))
                    .advice("run this as the user that the server runs as"),
            }
        }
    };
    let node = match controller::node_info(data).await {
        Ok(info) => {
            let facts = format!("process {}, I/O by {}", info.pid, info.io_backend);
            judge("node", &info.version, facts)
        }
        Err(problem) => Finding::missing("node", problem.detail)
            .advice("systemctl start shale-node, or `shale serve`"),
    };
    [server, node]
}

async fn server_version(data: &std::path::Path, url: &str) -> Result<String, Problem> {
    let client = Client::new(url, &local_token(data)?)?;
    let system: controller::System =
        client.call(Method::GET, "/api/v1/system", None::<&()>).await?;
    Ok(system.version)
}

impl Row for Finding {
    const COLUMNS: (&'static [&'static str], &'static [&'static str]) =
        (&["NAME", "STATE", "MEANING", "ADVICE"], &["REQUIRED"]);
    fn cells(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            shout(self),
            self.meaning.clone(),
            self.advice.clone().unwrap_or_else(|| "-".into()),
            if self.required { "yes" } else { "no" }.into(),
        ]
    }
    fn name(&self) -> String {
        self.name.clone()
    }
}

/// What prevents the system from working stands out.
fn shout(finding: &Finding) -> String {
    match finding.state {
        State::Missing if finding.required => "MISSING".into(),
        State::Ok | State::Limited | State::Missing => finding.state.name().into(),
    }
}
