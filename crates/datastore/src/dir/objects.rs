//! The blocking steps behind the store: each runs on a helper thread.
//!
//! `put`, in the order that makes it atomic and durable:
//!
//! ```text
//!   stage    write temp, fsync
//!   commit   lock of the name ─► compare ─► fsync directories with new names
//!                                            ─► rename (the commit) ─► fsync directory
//! ```
//!
//! The content is durable before the name points to it, and so are the files that were created
//! before: a record never outlives what it names.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, MutexGuard, PoisonError};

use io::{ByteCount, IoError, IoErrorKind};
use rustix::fs::AtFlags;
use rustix::io::Errno;

use super::sizes::Writing;
use super::temp::Temp;
use super::{Inner, STRIPES, files, identity};
use crate::error::{DatastoreError, Result};
use crate::name::{Kind, ObjectName};
use crate::store::{Expected, MAX_OBJECT, ObjectInfo, Space, Version};

impl Inner {
    /// The directory of a kind's files.
    fn directory(&self, kind: Kind) -> &OwnedFd {
        match Self::index(kind) {
            Some(index) => &self.directories[index].fd,
            None => &self.place.fd,
        }
    }

    /// The same, for a device to open its file in.
    pub(super) fn directory_handle(&self, kind: Kind) -> Arc<OwnedFd> {
        Self::index(kind).map_or_else(
            || Arc::clone(&self.place.fd),
            |index| Arc::clone(&self.directories[index].fd),
        )
    }

    fn index(kind: Kind) -> Option<usize> {
        Kind::DIRECTORIES.iter().position(|directory| *directory == kind)
    }

    /// Orders the changes of one name.
    fn changing(&self, name: &ObjectName) -> MutexGuard<'_, ()> {
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        let stripe = hasher.finish() % STRIPES as u64;
        let stripe = usize::try_from(stripe).expect("a small remainder");
        self.changing[stripe].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The path by which other programs find the object.
    pub(super) fn path_of(&self, name: &ObjectName) -> PathBuf {
        self.place.path.join(name.to_string())
    }

    /// Makes an empty file; its name is not durable yet.
    pub(super) fn make(&self, name: &ObjectName) -> Result<()> {
        refuse_identity(name, "create")?;
        let _one_at_a_time = self.changing(name);
        files::create(self.directory(name.kind()), &name.file_name())
            .map_err(|error| DatastoreError::system("create", name, error))?;
        self.changed(name);
        Ok(())
    }

    /// Takes back what `make` made, when it could not be opened.
    pub(super) fn unmake(&self, name: &ObjectName) {
        files::forget(self.directory(name.kind()), &name.file_name());
        self.changed(name);
    }

    fn changed(&self, name: &ObjectName) {
        if let Some(index) = Self::index(name.kind()) {
            self.directories[index].changed(name);
        }
    }

    /// The object is open for writing until the result is dropped.
    pub(super) fn writing(&self, name: &ObjectName) -> Option<Writing> {
        Self::index(name.kind()).map(|index| self.directories[index].sizes.writing(*name))
    }

    /// Makes what happened to names of a kind durable.
    fn sync_kind(&self, kind: Kind) -> rustix::io::Result<()> {
        match Self::index(kind) {
            Some(index) => self.directories[index].sync(),
            None => rustix::fs::fsync(&self.place.fd),
        }
    }

    /// Says whether a file is there and a plain one, before anything is opened: opening a pipe or
    /// a device that someone put there can block or have effects.
    pub(super) fn check_file(&self, name: &ObjectName) -> Result<()> {
        let stat = files::stat(self.directory(name.kind()), &name.file_name())
            .map_err(|error| DatastoreError::system("open", name, error))?;
        if files::is_regular(&stat) { Ok(()) } else { Err(not_a_file(name)) }
    }

    pub(super) fn remove(&self, name: &ObjectName) -> Result<()> {
        refuse_identity(name, "remove")?;
        let failed = |error| DatastoreError::system("remove", name, error);
        let directory = self.directory(name.kind());
        {
            let _one_at_a_time = self.changing(name);
            rustix::fs::unlinkat(directory, name.file_name(), AtFlags::empty()).map_err(failed)?;
            self.changed(name);
        }
        self.sync_kind(name.kind()).map_err(|error| unknown(name, "removed", error))?;
        self.head_room.refill();
        Ok(())
    }

    pub(super) fn list(&self, kind: Kind) -> Result<Vec<ObjectInfo>> {
        let failed = |error: Errno| {
            let doing = format!("cannot list {}/", kind.directory());
            DatastoreError::Io(IoError::system(doing, error.into()))
        };
        let directory = self.directory(kind);
        let mut objects = Vec::new();
        for file in files::names(directory).map_err(failed)? {
            let Some(name) = ObjectName::from_file_name(kind, &file) else { continue };
            let stat = match files::stat(directory, &file) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => continue, // removed meanwhile
                Err(error) => return Err(failed(error)),
            };
            if files::is_regular(&stat) {
                objects.push(ObjectInfo {
                    name,
                    len: ByteCount(files::len(&stat)),
                    used: ByteCount(files::used(&stat)),
                });
            }
        }
        objects.sort_unstable_by_key(|object| object.name);
        Ok(objects)
    }

    pub(super) fn used(&self, name: &ObjectName) -> Result<Option<ByteCount>> {
        match files::stat(self.directory(name.kind()), &name.file_name()) {
            Ok(stat) if files::is_regular(&stat) => Ok(Some(ByteCount(files::used(&stat)))),
            Ok(_) | Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(DatastoreError::system("look at", name, error)),
        }
    }

    pub(super) fn get(&self, name: &ObjectName) -> Result<Option<(Version, Vec<u8>)>> {
        match files::read(self.directory(name.kind()), &name.file_name(), MAX_OBJECT.0) {
            Ok(content) => Ok(Some((Version::of(&content), content))),
            Err(files::ReadError::System(Errno::NOENT)) => Ok(None),
            Err(files::ReadError::System(error)) => {
                Err(DatastoreError::system("read", name, error))
            }
            Err(files::ReadError::NotAFile) => Err(not_a_file(name)),
            Err(files::ReadError::TooLarge(len)) => {
                Err(DatastoreError::TooLarge { object: *name, len, limit: MAX_OBJECT.0 })
            }
        }
    }

    /// Writes the content of a later `commit` under a temporary name, and makes it durable.
    pub(super) fn stage(&self, name: &ObjectName, content: &[u8]) -> Result<Temp> {
        refuse_identity(name, "replace")?;
        let len = content.len() as u64;
        if len > MAX_OBJECT.0 {
            return Err(DatastoreError::TooLarge { object: *name, len, limit: MAX_OBJECT.0 });
        }
        Temp::write(self.directory_handle(name.kind()), content)
            .map_err(|error| DatastoreError::system("write", name, error))
    }

    /// Gives staged content its name. Until the rename `temp` removes itself when it is dropped.
    pub(super) fn commit(
        &self,
        name: &ObjectName,
        expected: Expected,
        temp: &mut Temp,
    ) -> Result<()> {
        let _one_at_a_time = self.changing(name);
        if expected != Expected::Any {
            let found = self.get(name)?.map(|(version, _)| version);
            if let Some(found) = expected.mismatch(found) {
                return Err(DatastoreError::Conflict { object: *name, found });
            }
        }
        self.sync_names()?;
        temp.rename_to(&name.file_name())
            .map_err(|error| DatastoreError::system("write", name, error))?;
        self.changed(name);
        self.sync_kind(name.kind()).map_err(|error| unknown(name, "replaced", error))
    }

    pub(super) fn sync_names(&self) -> Result<()> {
        for (directory, kind) in self.directories.iter().zip(Kind::DIRECTORIES) {
            directory.sync().map_err(|error| {
                let doing = format!("cannot make the names in {}/ durable", kind.directory());
                DatastoreError::Io(IoError::system(doing, error.into()))
            })?;
        }
        Ok(())
    }

    pub(super) fn space(&self) -> Result<Space> {
        let failed = |error: Errno| {
            let doing = format!("cannot measure the space of {}", self.place.path.display());
            DatastoreError::Io(IoError::system(doing, error.into()))
        };
        let mut used = 0;
        let mut overhead = files::used(&rustix::fs::fstat(&self.place.fd).map_err(failed)?);
        let own = [identity::FILE, super::lock::FILE, super::headroom::FILE];
        for name in own {
            overhead += files::stat(&self.place.fd, name).map_or(0, |stat| files::used(&stat));
        }
        for kind in Kind::DIRECTORIES {
            let stat = rustix::fs::fstat(self.directory(kind)).map_err(failed)?;
            overhead += files::used(&stat);
            let index = Self::index(kind).expect("a kind with a directory");
            let look = |name: &ObjectName| self.used(name).map(|used| used.map(|used| used.0));
            used += self.directories[index].sizes.sum(look, || self.list(kind))?;
        }
        let (total, free) = self.system_space()?;
        let (used_by_store, overhead) = (ByteCount(used), ByteCount(overhead));
        Ok(Space { total, free, used_by_store, overhead })
    }

    pub(super) fn free(&self) -> Result<ByteCount> {
        Ok(self.system_space()?.1)
    }

    /// What the file system has in all, and what of it guests may still take.
    fn system_space(&self) -> Result<(ByteCount, ByteCount)> {
        let system = rustix::fs::fstatvfs(&self.place.fd).map_err(|error| {
            let doing = format!("cannot measure the space of {}", self.place.path.display());
            DatastoreError::Io(IoError::system(doing, error.into()))
        })?;
        let bytes = |blocks: u64| blocks.saturating_mul(system.f_frsize);
        let free = bytes(system.f_bavail).saturating_sub(self.head_room.missing());
        Ok((ByteCount(bytes(system.f_blocks)), ByteCount(free)))
    }

    /// Whether `len` more bytes would leave the head-room alone, where no file holds it.
    pub(super) fn has_counted_space(&self, len: ByteCount) -> Result<bool> {
        if !self.head_room.is_counted() {
            return Ok(true);
        }
        Ok(self.free()? >= len)
    }
}

fn refuse_identity(name: &ObjectName, doing: &str) -> Result<()> {
    if *name != ObjectName::Identity {
        return Ok(());
    }
    let problem = format!("cannot {doing} {name}: a datastore's identity does not change");
    Err(DatastoreError::Io(IoError::new(IoErrorKind::Denied, problem)))
}

/// The step is done but not known to be durable. Never `NoSpace`: trying again would meet a changed
/// object.
fn unknown(name: &ObjectName, done: &str, error: Errno) -> DatastoreError {
    let problem = format!("{name} was {done}, but it is unknown whether that survives a power cut");
    let source = Some(error.into());
    DatastoreError::Io(IoError { kind: IoErrorKind::Device, context: problem.into(), source })
}

fn not_a_file(name: &ObjectName) -> DatastoreError {
    let problem = format!("{name} is not a regular file; something else was put in its place");
    DatastoreError::Io(IoError::new(IoErrorKind::Corrupt, problem))
}
