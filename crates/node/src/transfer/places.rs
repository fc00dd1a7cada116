//! Which paths the node reads and writes for somebody, and what it leaves there: nothing, after a
//! failure, a cancel, or `kill -9`.
//!
//! Whoever names a path reads or writes with the rights of the node's user. So paths are for those who
//! manage storage; the directories of the node itself and of datastores are out of bounds for all; and
//! `SHALE_TRANSFER_DIRS`, a list of directories with colons between, confines the rest.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use blockio::{Access, FileDevice};
use io::{IoErrorKind, Ring};
use model::{Code, Problem};
use rustix::fs::{CWD, RenameFlags};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::crash;
use crate::data_dir::{DataDir, replace_file};
use crate::problem::{Outcome, from_io};
use crate::state::{self, FORMAT, StateError};

/// Confines what may be named.
const ALLOWED: &str = "SHALE_TRANSFER_DIRS";

const FILE: &str = "transfers.json";

#[derive(Serialize, Deserialize)]
struct Document {
    format: u32,
    /// Files and folders that exports make under temporary names.
    temporary: BTreeSet<PathBuf>,
}

/// What the last process left.
pub(crate) fn load(data: &DataDir) -> Result<BTreeSet<PathBuf>, StateError> {
    let document: Option<Document> =
        state::load(&data.state(FILE), "what exports left that were cut off stays where it is")?;
    Ok(document.map_or_else(BTreeSet::new, |document| document.temporary))
}

/// What is out of bounds, and what lies around.
pub(crate) struct Places {
    ring: Ring,
    /// Temporary files and folders on record.
    state: PathBuf,
    left: RefCell<BTreeSet<PathBuf>>,
    saving: futures_util::lock::Mutex<()>,
    allowed: Option<Vec<PathBuf>>,
}

/// A file's place: its folder, open, and its name there.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) folder: OwnedFd,
    pub(crate) path: PathBuf,
    pub(crate) name: String,
}

/// A file or folder that is being made under a temporary name.
#[derive(Debug)]
pub(crate) struct Making {
    /// Where it will be.
    pub(crate) target: PathBuf,
    /// Where it is.
    pub(crate) temporary: PathBuf,
}

impl Places {
    /// `left` is what a dead process left; [`Places::sweep`] removes it.
    pub(crate) fn new(ring: &Ring, data: &DataDir, left: BTreeSet<PathBuf>) -> Self {
        let allowed = std::env::var_os(ALLOWED).map(|dirs| {
            let dirs = std::env::split_paths(&dirs).filter(|dir| dir.is_absolute());
            dirs.filter_map(|dir| dir.canonicalize().ok()).collect()
        });
        Self {
            ring: ring.clone(),
            state: data.state(FILE),
            left: RefCell::new(left),
            saving: futures_util::lock::Mutex::new(()),
            allowed,
        }
    }

    /// Removes what is on record. What cannot be removed stays on record, for the next start.
    pub(crate) async fn sweep(&self) {
        let left = self.left.borrow().clone();
        for path in left {
            let at = path.clone();
            match self.ring.run_blocking(move || remove(&at)).await {
                Ok(()) => {
                    tracing::warn!(path = %path.display(), "removed what an export left");
                    self.forget(&path).await;
                }
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "what an export left stays");
                }
            }
        }
    }

    async fn save(&self) -> Outcome<()> {
        let _ordered = self.saving.lock().await;
        let document = Document { format: FORMAT, temporary: self.left.borrow().clone() };
        let bytes = serde_json::to_vec_pretty(&document).expect("paths are in UTF-8");
        let path = self.state.clone();
        let saved = self.ring.run_blocking(move || replace_file(&path, &bytes)).await;
        saved.map_err(|error| Problem::new(Code::IoError, format!("{error}.")))
    }

    async fn forget(&self, path: &Path) {
        self.left.borrow_mut().remove(path);
        if let Err(problem) = self.save().await {
            tracing::warn!(detail = %problem.detail, "a temporary file stays on record");
        }
    }

    /// Refuses what nobody may name.
    fn check(&self, path: &Path, out_of_bounds: &[PathBuf]) -> Outcome<()> {
        if let Some(own) = out_of_bounds.iter().find(|own| path.starts_with(own)) {
            return Err(Problem::new(
                Code::Refused,
                format!(
                    "{} lies in {}, which belongs to Shale itself.",
                    path.display(),
                    own.display()
                ),
            )
            .hint("name a file elsewhere; volumes are copied by `shale volume copy`"));
        }
        let Some(allowed) = &self.allowed else { return Ok(()) };
        if allowed.iter().any(|dir| path.starts_with(dir)) {
            return Ok(());
        }
        let dirs: Vec<_> = allowed.iter().map(|dir| dir.display().to_string()).collect();
        Err(Problem::new(
            Code::Refused,
            format!("{} lies outside of what this node may touch.", path.display()),
        )
        .hint(format!("{ALLOWED} of the node names: {}", dirs.join(", "))))
    }

    /// The place of an existing file. Links in the path that was named are followed first, so that what
    /// is checked is what is read.
    pub(crate) async fn source(&self, path: &str, out_of_bounds: &[PathBuf]) -> Outcome<Place> {
        let path = absolute(path)?;
        let shown = path.display().to_string();
        let real = self.ring.run_blocking(move || path.canonicalize()).await;
        let real = real.map_err(|error| system(&shown, "read", &error))?;
        self.check(&real, out_of_bounds)?;
        self.place(real).await
    }

    /// The place of a file that lies where it is said.
    pub(crate) async fn place(&self, path: PathBuf) -> Outcome<Place> {
        let shown = path.display().to_string();
        let name = path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
        let name = name.ok_or_else(|| {
            Problem::new(Code::BadRequest, format!("'{shown}' does not end in the name of a file."))
        })?;
        let folder = path.parent().unwrap_or(Path::new("/")).to_owned();
        let folder = self.ring.run_blocking(move || File::open(folder).map(OwnedFd::from)).await;
        let folder = folder.map_err(|error| system(&shown, "read", &error))?;
        Ok(Place { folder, path, name })
    }

    /// Opens a file for reading; only a regular one.
    pub(crate) async fn open(&self, place: &Place) -> Outcome<FileDevice> {
        FileDevice::open(&self.ring, &place.folder, &place.name, Access::Read)
            .await
            .map_err(|error| refused(&place.path, &error))
    }

    /// Takes a new place, under a temporary name that is on record.
    pub(crate) async fn make(
        &self,
        to: &str,
        force: bool,
        folder: bool,
        out_of_bounds: &[PathBuf],
    ) -> Outcome<Making> {
        let path = absolute(to)?;
        let shown = path.display().to_string();
        let (Some(parent), Some(name)) = (path.parent(), path.file_name().and_then(|n| n.to_str()))
        else {
            return Err(Problem::new(
                Code::BadRequest,
                format!("'{shown}' does not end in a name for the export."),
            ));
        };
        let (parent, name) = (parent.to_owned(), name.to_owned());
        let real = self.ring.run_blocking(move || parent.canonicalize()).await;
        let parent = real.map_err(|error| system(&shown, "write", &error))?;
        let target = parent.join(&name);
        self.check(&target, out_of_bounds)?;
        let at = target.clone();
        self.ring.run_blocking(move || may_replace(&at, force && !folder)).await?;
        let temporary = parent.join(format!(".{name}.{}.part", Uuid::new_v4()));
        if temporary.to_str().is_none() {
            let detail = format!("The folder of '{shown}' has a name that is not UTF-8.");
            return Err(Problem::new(Code::BadRequest, detail));
        }
        self.left.borrow_mut().insert(temporary.clone());
        self.save().await?;
        crash::point("export-recorded");
        let at = temporary.clone();
        let made = self.ring.run_blocking(move || create(&at, folder)).await;
        crash::point("export-created");
        if let Err(error) = made {
            self.forget(&temporary).await;
            return Err(system(&shown, "write", &error));
        }
        Ok(Making { target, temporary })
    }

    /// Opens a new file in a place that was taken, or in the folder that was.
    pub(crate) async fn open_new(&self, path: &Path) -> Outcome<FileDevice> {
        let place = self.place(path.to_owned()).await?;
        FileDevice::open(&self.ring, &place.folder, &place.name, Access::Write)
            .await
            .map_err(|error| refused(path, &error))
    }

    /// Makes an empty file in a folder that was taken.
    pub(crate) async fn create_in(&self, path: &Path) -> Outcome<()> {
        let at = path.to_owned();
        let made = self.ring.run_blocking(move || create(&at, false)).await;
        made.map_err(|error| system(&path.display().to_string(), "write", &error))
    }

    /// Gives what was made its name, durably; or removes it, where `made` failed.
    pub(crate) async fn conclude<T>(
        &self,
        making: Making,
        force: bool,
        made: Outcome<T>,
    ) -> Outcome<T> {
        let Making { target, temporary } = making;
        let (from, to) = (temporary.clone(), target.clone());
        let made = match made {
            Ok(value) => {
                crash::point("export-written");
                let renamed = self.ring.run_blocking(move || rename(&from, &to, force)).await;
                renamed.map(|()| value).map_err(|error| match error.kind() {
                    std::io::ErrorKind::AlreadyExists => exists(&target),
                    _ => system(&target.display().to_string(), "write", &error),
                })
            }
            Err(problem) => Err(problem),
        };
        if made.is_err() {
            let at = temporary.clone();
            if let Err(error) = self.ring.run_blocking(move || remove(&at)).await {
                tracing::warn!(path = %temporary.display(), %error, "removed at the next start");
                return made;
            }
        }
        crash::point("export-renamed");
        self.forget(&temporary).await;
        made
    }
}

fn absolute(path: &str) -> Outcome<PathBuf> {
    let path = Path::new(path);
    if path.is_absolute() {
        return Ok(path.to_owned());
    }
    Err(Problem::new(
        Code::BadRequest,
        format!("'{}' is not an absolute path on the node's host.", path.display()),
    ))
}

fn exists(path: &Path) -> Problem {
    Problem::new(Code::Conflict, format!("There is a file {} already.", path.display()))
        .hint("name another, or replace it with --force (a folder is never replaced)")
}

fn may_replace(path: &Path, force: bool) -> Outcome<()> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Ok(found) if force && found.is_file() => Ok(()),
        Ok(_) | Err(_) => Err(exists(path)),
    }
}

/// A file is for the node's user only: it holds a guest's data.
fn create(path: &Path, folder: bool) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    if folder {
        return std::fs::DirBuilder::new().mode(0o700).create(path);
    }
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map(drop)
}

fn remove(path: &Path) -> std::io::Result<()> {
    let removed = match std::fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

/// Without `force`, the one step that nobody can come between.
fn rename(from: &Path, to: &Path, force: bool) -> std::io::Result<()> {
    if from.is_dir() {
        File::open(from)?.sync_all()?;
    }
    if force {
        std::fs::rename(from, to)?;
    } else {
        match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            // a file system that does not know the flag: look first, which is nearly as good
            Err(rustix::io::Errno::INVAL) => {
                if to.symlink_metadata().is_ok() {
                    return Err(std::io::ErrorKind::AlreadyExists.into());
                }
                std::fs::rename(from, to)?;
            }
            outcome => outcome?,
        }
    }
    File::open(to.parent().unwrap_or(Path::new("/")))?.sync_all()
}

fn system(path: &str, doing: &str, error: &std::io::Error) -> Problem {
    let code = match error.kind() {
        std::io::ErrorKind::NotFound => Code::NotFound,
        std::io::ErrorKind::PermissionDenied => Code::Refused,
        std::io::ErrorKind::StorageFull => Code::NoSpace,
        _ => Code::IoError,
    };
    let problem = Problem::new(code, format!("The node cannot {doing} {path}: {error}."));
    match code {
        Code::NotFound => problem.hint("paths are those of the node's host"),
        Code::Refused => problem.hint("give the node's user the right, or name another path"),
        _ => problem,
    }
}

fn refused(path: &Path, error: &io::IoError) -> Problem {
    let mut problem = from_io(error);
    problem.detail = format!("{}: {}", path.display(), problem.detail);
    if error.kind == IoErrorKind::Unsupported {
        problem = problem.hint("only regular files are read and written");
    }
    problem
}
