//! Which server a command talks to, with which token, and how its answer is printed.

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use controller::Announcement;
use controller::client::Client;
use model::{Code, Estimate, Problem, Reference};

use crate::grammar::{Format, Place};
use crate::output;

/// One run of a command.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) client: Client,
    pub(crate) format: Format,
}

impl Session {
    /// `SHALE_URL` and `SHALE_TOKEN`, or those of the data directory.
    pub(crate) fn open(place: &Place) -> Result<Self, Problem> {
        let data = data_dir(place)?;
        let url = match &place.url {
            Some(url) => url.clone(),
            None => Announcement::read(&data).map(|a| a.url).ok_or_else(|| {
                Problem::new(
                    Code::ServerUnavailable,
                    format!("No `shale serve` runs on {}.", data.display()),
                )
                .hint("start it, or name another with SHALE_URL or --data")
            })?,
        };
        let token = match std::env::var("SHALE_TOKEN") {
            Ok(token) if !token.trim().is_empty() => token.trim().to_owned(),
            Ok(_) | Err(_) => local_token(&data)?,
        };
        Ok(Self { client: Client::new(&url, &token)?, format: place.output })
    }

    /// Asks before something is lost, where somebody can answer.
    pub(crate) async fn consent(
        &self,
        yes: bool,
        estimate_at: &str,
        method: &str,
    ) -> Result<(), Problem> {
        if yes || !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
            return Ok(());
        }
        let method = hyper_method(method);
        let estimate: Estimate = self.client.call(method, estimate_at, None::<&()>).await?;
        if let Some(problem) = estimate.refused {
            return Err(problem);
        }
        let mut stderr = std::io::stderr();
        write!(stderr, "This {}. Go on? [y/N] ", estimate.summary).ok();
        stderr.flush().ok();
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer).ok();
        match answer.trim().to_ascii_lowercase().as_str() {
            "y" | "yes" => Ok(()),
            _ => Err(Problem::new(Code::Cancelled, "Nothing was changed.")
                .hint("use --yes to skip the question")),
        }
    }

    pub(crate) fn estimate(&self, estimate: &Estimate) -> Result<(), Problem> {
        output::object(self.format, estimate, || estimate_text(estimate))?;
        match &estimate.refused {
            Some(problem) => Err(problem.clone()),
            None => Ok(()),
        }
    }
}

fn hyper_method(method: &str) -> controller::client::Method {
    match method {
        "POST" => controller::client::Method::POST,
        _ => controller::client::Method::DELETE,
    }
}

fn estimate_text(estimate: &Estimate) -> String {
    let mut text = format!("dry run: {}\n", estimate.summary);
    for (what, size) in
        [("takes", estimate.takes), ("frees", estimate.frees), ("moves", estimate.moves)]
    {
        text += &format!("  {what}  {}\n", size.human());
    }
    if let Some(seconds) = estimate.seconds {
        text += &format!("  about  {seconds} s\n");
    }
    text
}

/// The data directory: `--data`, or the user's, or the system's for root.
pub(crate) fn data_dir(place: &Place) -> Result<PathBuf, Problem> {
    if let Some(data) = &place.data {
        return Ok(data.clone());
    }
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/shale"));
    }
    let set = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    set("XDG_DATA_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".local/share")))
        .map(|base| base.join("shale"))
        .ok_or_else(|| {
            Problem::new(Code::BadRequest, "There is no home directory for the data.")
                .hint("give one with --data DIR")
        })
}

pub(crate) fn local_token(data: &Path) -> Result<String, Problem> {
    let path = data.join("admin.token");
    std::fs::read_to_string(&path).map(|text| text.trim().to_owned()).map_err(|e| {
        let code = match e.kind() {
            std::io::ErrorKind::PermissionDenied => Code::Denied,
            _ => Code::Unauthenticated,
        };
        Problem::new(code, format!("There is no token: {} cannot be read: {e}.", path.display()))
            .hint("give one in SHALE_TOKEN, or name the data directory with --data")
    })
}

/// A reference as one segment of a path.
pub(crate) fn segment(reference: &Reference) -> String {
    reference.to_string().replace('/', "%2F")
}
