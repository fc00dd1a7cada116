//! `dir`: a datastore in an existing directory of a local file system.
//!
//! ```text
//!   DIR/shale.json       who it is, where it was made     (identity.rs)
//!   DIR/shale.lock       flock: one process at a time      (lock.rs)
//!   DIR/shale.reserve    head-room, allocated              (headroom.rs)
//!   DIR/layer/ record/ intent/ cell/ memory/               (objects.rs)
//!   DIR/**/.shale-tmp-*  on the way to another name        (temp.rs)
//! ```
//!
//! A [`DirHandle`] is one opened datastore and may be used from all threads; a [`DirStore`] is its
//! face on one thread. System calls that stall (open, rename, unlink, fsync) run on helper threads.
//!
//! Invariants: everything is opened relative to a directory that stays open, so renaming or
//! mounting over the path moves nothing under our feet; no symbolic link is followed below the
//! datastore's directory; the directory is refused before anything in it changes.

mod driver;
mod examine;
mod files;
mod headroom;
mod identity;
mod lock;
mod objects;
mod place;
mod sizes;
mod temp;
#[cfg(test)]
mod tests;

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use io::IoErrorKind;
use rustix::fs::{AtFlags, FallocateFlags, OFlags, StatxFlags};
use rustix::io::Errno;
use uuid::Uuid;

pub use driver::DirStore;
pub use examine::{Examined, examine};

use self::headroom::HeadRoom;
use self::identity::Stored;
use self::lock::Lock;
use self::place::Place;
use self::sizes::Sizes;
use crate::error::{DatastoreError, Result};
use crate::name::{Kind, ObjectName};
use crate::store::{Capabilities, Identity};

/// An opened `dir` datastore. Clones share it; the last one to go lets another process have it.
///
/// `create`, `open` and `adopt` block: a home thread calls them through its ring's helpers.
#[derive(Clone)]
pub struct DirHandle(Arc<Inner>);

/// Locks that order the changes of one name; names share them by hash.
const STRIPES: usize = 16;

struct Inner {
    place: Place,
    identity: Identity,
    capabilities: Capabilities,
    /// One for each of `Kind::DIRECTORIES`, in that order.
    directories: [Directory; Kind::DIRECTORIES.len()],
    head_room: HeadRoom,
    changing: [Mutex<()>; STRIPES],
    /// Held while the datastore is open.
    _lock: Lock,
}

struct Directory {
    fd: Arc<OwnedFd>,
    /// Counts names that came or went.
    changes: AtomicU64,
    sizes: Arc<Sizes>,
    /// The changes that are durable. Held during a sync: who waits for it finds its own work done.
    synced: Mutex<u64>,
}

impl Directory {
    /// This name came or went, or names another file, just now.
    fn changed(&self, name: &ObjectName) {
        self.changes.fetch_add(1, Ordering::AcqRel);
        self.sizes.touch(*name);
    }

    /// Makes every change durable that was made before this call.
    fn sync(&self) -> rustix::io::Result<()> {
        let mut synced = self.synced.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.changes.load(Ordering::Acquire);
        if *synced < now {
            rustix::fs::fsync(&self.fd)?;
            *synced = now;
        }
        Ok(())
    }
}

impl fmt::Debug for DirHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DirHandle({} in {})", self.0.identity.uuid, self.0.place.path.display())
    }
}

impl DirHandle {
    /// Makes an empty directory a datastore. On an error nothing is left behind.
    pub fn create(path: &Path, identity: &Identity) -> Result<Self> {
        let place = Place::open(path)?;
        refuse_datastore(&place)?;
        refuse_foreign(&place)?;
        let lock = Lock::take(&place)?;
        let mut made = Made { place: Some(place), names: Vec::new() };
        if lock.made {
            made.names.push((lock::FILE, AtFlags::empty()));
        }
        // Someone else may have been here before the lock was ours.
        refuse_datastore(made.place())?;
        refuse_foreign(made.place())?;
        lock.sign();
        let capabilities = probe(made.place(), &lock.fd)?;
        for kind in Kind::DIRECTORIES {
            make_directory(&mut made, kind.directory())?;
        }
        made.names.push((headroom::FILE, AtFlags::empty()));
        let head_room = open_head_room(made.place(), &capabilities)?;
        if head_room.missing() > 0 && !head_room.is_counted() {
            let problem = "there is no space for the head-room of records (1 % of the file system, \
                           4 to 64 MiB); free some";
            return Err(made.place().refuse(IoErrorKind::NoSpace, problem));
        }
        let directories = open_directories(made.place())?;
        made.names.push((identity::FILE, AtFlags::empty()));
        let stored = Stored::new(identity, made.place().device.clone());
        stored
            .write(made.place())
            .map_err(|error| made.place().system("its shale.json cannot be written", error))?;
        let place = made.keep();
        Ok(Self::assemble(place, identity.clone(), capabilities, directories, head_room, lock))
    }

    /// Opens the datastore in a directory; a copy is refused.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_as(path, None)
    }

    /// Opens the datastore in a directory that may be a copy of another one. A copy becomes a
    /// datastore of its own with the UUID `new`; an original is opened as it is.
    pub fn adopt(path: &Path, new: Uuid) -> Result<Self> {
        Self::open_as(path, Some(new))
    }

    fn open_as(path: &Path, adopt: Option<Uuid>) -> Result<Self> {
        let place = Place::open(path)?;
        let absent = || {
            let problem = "there is no datastore in it (no shale.json); create one";
            place.refuse(IoErrorKind::NotFound, problem)
        };
        // Looked at twice: a directory that will be refused is not even locked.
        let before = Stored::read(&place)?.ok_or_else(absent)?;
        refuse_copy(&place, &before, adopt)?;
        let lock = Lock::take(&place)?;
        let mut stored = Stored::read(&place)?.ok_or_else(absent)?;
        refuse_copy(&place, &stored, adopt)?;
        lock.sign();
        clean(&place, &place.fd)?;
        for kind in Kind::DIRECTORIES {
            // Some backup tools leave empty directories out.
            match rustix::fs::mkdirat(&place.fd, kind.directory(), files::DIR_MODE) {
                Ok(()) => rustix::fs::fsync(&place.fd)
                    .map_err(|error| place.system("its directories cannot be kept", error))?,
                Err(Errno::EXIST) => {}
                Err(error) => return Err(place.system("a directory cannot be made in it", error)),
            }
        }
        let directories = open_directories(&place)?;
        for directory in &directories {
            clean(&place, &directory.fd)?;
        }
        let capabilities = probe(&place, &lock.fd)?;
        let head_room = open_head_room(&place, &capabilities)?;
        if let (Some(new), Some(_)) = (adopt, stored.device.difference(&place.device)) {
            let was = stored.uuid;
            stored = Stored { uuid: new, device: place.device.clone(), ..stored };
            stored
                .write(&place)
                .map_err(|error| place.system("its shale.json cannot be replaced", error))?;
            tracing::info!(%was, %new, path = %place.path.display(), "adopted a copy of a datastore");
        }
        let identity = stored.identity();
        Ok(Self::assemble(place, identity, capabilities, directories, head_room, lock))
    }

    fn assemble(
        place: Place,
        identity: Identity,
        capabilities: Capabilities,
        directories: [Directory; Kind::DIRECTORIES.len()],
        head_room: HeadRoom,
        lock: Lock,
    ) -> Self {
        let changing = std::array::from_fn(|_| Mutex::new(()));
        Self(Arc::new(Inner {
            place,
            identity,
            capabilities,
            directories,
            head_room,
            changing,
            _lock: lock,
        }))
    }

    /// Which datastore this is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.0.identity
    }

    /// What it can do.
    #[must_use]
    pub fn capabilities(&self) -> &Capabilities {
        &self.0.capabilities
    }

    /// Its directory, without symbolic links.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0.place.path
    }

    /// The store's face on the thread of `ring`.
    #[must_use]
    pub fn on(&self, ring: &io::Ring) -> DirStore {
        DirStore::new(ring.clone(), Arc::clone(&self.0))
    }
}

/// What a creation made so far: removed on drop.
struct Made {
    place: Option<Place>,
    names: Vec<(&'static str, AtFlags)>,
}

impl Made {
    fn place(&self) -> &Place {
        self.place.as_ref().expect("the place stays until it is kept")
    }

    fn keep(mut self) -> Place {
        self.place.take().expect("the place stays until it is kept")
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        let Some(place) = &self.place else { return };
        // The lock file was made first and goes last: until then nobody else comes in.
        for (name, flags) in self.names.iter().rev() {
            match rustix::fs::unlinkat(&place.fd, *name, *flags) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => tracing::warn!(name, %error, "a failed creation left a file behind"),
            }
        }
    }
}

fn make_directory(made: &mut Made, name: &'static str) -> Result<()> {
    match rustix::fs::mkdirat(&made.place().fd, name, files::DIR_MODE) {
        Ok(()) => made.names.push((name, AtFlags::REMOVEDIR)),
        Err(Errno::EXIST) => {} // left empty by a creation that died
        Err(error) => return Err(made.place().system("a directory cannot be made in it", error)),
    }
    Ok(())
}

fn refuse_datastore(place: &Place) -> Result<()> {
    match Stored::read(place)? {
        None => Ok(()),
        Some(Stored { uuid, name, .. }) => {
            Err(DatastoreError::AlreadyDatastore { path: place.path.clone(), name, uuid })
        }
    }
}

/// Refuses what is not empty, but for `lost+found` and what a creation that died left.
fn refuse_foreign(place: &Place) -> Result<()> {
    let examine = |error| place.system("it cannot be read", error);
    let mut foreign = Vec::new();
    for name in files::names(&place.fd).map_err(examine)? {
        let ours = name == "lost+found"
            || name == lock::FILE
            || name == headroom::FILE
            || name.starts_with(temp::PREFIX);
        let directory = Kind::DIRECTORIES.iter().any(|kind| kind.directory() == name);
        let empty = || files::open_dir(&place.fd, &name).and_then(|fd| files::names(&fd));
        let ours = ours || (directory && empty().is_ok_and(|names| names.is_empty()));
        if !ours {
            foreign.push(name);
        }
    }
    foreign.sort();
    let Some(first) = foreign.first() else { return Ok(()) };
    let others = match foreign.len() {
        1 => String::new(),
        more => format!(" and {} more", more - 1),
    };
    let problem = format!("it is not empty: it holds {first:?}{others}. Use an empty directory");
    Err(place.refuse(IoErrorKind::Exists, problem))
}

fn refuse_copy(place: &Place, stored: &Stored, adopt: Option<Uuid>) -> Result<()> {
    match stored.device.difference(&place.device) {
        Some(difference) if adopt.is_none() => Err(DatastoreError::Copied {
            path: place.path.clone(),
            name: stored.name.clone(),
            uuid: stored.uuid,
            difference,
        }),
        _ => Ok(()),
    }
}

fn clean(place: &Place, directory: &OwnedFd) -> Result<()> {
    let removed = temp::clean(directory)
        .map_err(|error| place.system("leftovers cannot be removed from it", error))?;
    if removed > 0 {
        tracing::info!(removed, path = %place.path.display(), "removed temporary files");
    }
    Ok(())
}

fn open_directories(place: &Place) -> Result<[Directory; Kind::DIRECTORIES.len()]> {
    let mut directories = Vec::new();
    for kind in Kind::DIRECTORIES {
        let name = kind.directory();
        let fd = files::open_dir(&place.fd, name).map_err(|error| match error {
            Errno::NOTDIR | Errno::LOOP => {
                let problem = format!("its {name:?} is not a directory");
                place.refuse(IoErrorKind::Corrupt, problem)
            }
            other => place.system("a directory in it cannot be opened", other),
        })?;
        // One change: names that a dead process created are not known to be durable.
        let (changes, synced) = (AtomicU64::new(1), Mutex::new(0));
        directories.push(Directory { fd: Arc::new(fd), changes, sizes: Arc::default(), synced });
    }
    Ok(directories.try_into().unwrap_or_else(|_| unreachable!("one directory for each kind")))
}

/// Tries out what the file system can do, far behind the content of `file`. Of an open datastore that
/// is the lock file, which is there anyway, also when the file system is full.
fn probe(place: &Place, file: &OwnedFd) -> Result<Capabilities> {
    const AT: u64 = 64 << 10;
    let supported = |result: std::result::Result<(), Errno>| match result {
        Ok(()) | Err(Errno::NOSPC | Errno::DQUOT) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(false),
        Err(error) => Err(place.system("its abilities cannot be tried out", error)),
    };
    let keep = FallocateFlags::KEEP_SIZE;
    let punch = keep | FallocateFlags::PUNCH_HOLE;
    let reserve = supported(rustix::fs::fallocate(file, keep, AT, AT))?;
    let punch_hole = supported(rustix::fs::fallocate(file, punch, AT, AT))?;
    let statx = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN);
    let direct_io = statx
        .ok()
        .filter(|statx| statx.stx_mask & StatxFlags::DIOALIGN.bits() != 0)
        .map(|statx| statx.stx_dio_offset_align)
        .filter(|align| *align > 0);
    Ok(Capabilities {
        file_system: place.file_system.clone(),
        reserve,
        punch_hole,
        direct_io,
        shared: false,
        persistent: place.persistent,
    })
}

fn open_head_room(place: &Place, capabilities: &Capabilities) -> Result<HeadRoom> {
    let failed = |error| place.system("its head-room cannot be taken", error);
    let total = rustix::fs::fstatvfs(&place.fd).map_err(failed)?;
    let want = headroom::size_for(total.f_blocks.saturating_mul(total.f_frsize));
    if !capabilities.reserve {
        return Ok(HeadRoom::new(None, want, 0));
    }
    let flags =
        OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file =
        rustix::fs::openat(&place.fd, headroom::FILE, flags, files::FILE_MODE).map_err(failed)?;
    let stat = rustix::fs::fstat(&file).map_err(failed)?;
    if !files::is_regular(&stat) {
        return Err(place.refuse(IoErrorKind::Corrupt, "its shale.reserve is not a regular file"));
    }
    // From the start: a file that was restored from a backup is all holes, and asking for what is
    // allocated already costs nothing.
    let held = headroom::fill(&file, 0, want);
    // A file system that was made smaller needs less.
    rustix::fs::ftruncate(&file, held).map_err(failed)?;
    Ok(HeadRoom::new(Some(file), want, held))
}
