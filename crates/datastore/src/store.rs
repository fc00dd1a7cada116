//! The trait that all drivers serve, and its types.

use std::any::Any;
use std::fmt;
use std::path::PathBuf;
use std::rc::Rc;

pub use blockio::Access;
use io::{BlockFile, ByteCount, Io};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::error::Result;
use crate::name::{Kind, ObjectName};

/// Longest object that `get` and `put` carry.
pub const MAX_OBJECT: ByteCount = ByteCount::mib(16);

/// A content's version: its SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Version([u8; 32]);

impl Version {
    /// The version of `content`.
    #[must_use]
    pub fn of(content: &[u8]) -> Self {
        Self(Sha256::digest(content).into())
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Version(")?;
        self.0.iter().take(6).try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str("…)")
    }
}

/// A small object: its version and its bytes.
pub type Content = (Version, Vec<u8>);

/// What a `put` expects to replace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// There is no such object.
    Absent,
    /// The object has this content.
    Version(Version),
    /// Whatever is there.
    Any,
}

impl Expected {
    /// None if `found` is what was expected, else what is there instead, in words.
    #[must_use]
    pub fn mismatch(self, found: Option<Version>) -> Option<&'static str> {
        match (self, found) {
            (Self::Any, _) | (Self::Absent, None) => None,
            (Self::Version(want), Some(is)) if want == is => None,
            (Self::Absent, Some(_)) => Some("exists already"),
            (Self::Version(_), None) => Some("does not exist any more"),
            (Self::Version(_), Some(_)) => Some("has another content"),
        }
    }
}

/// The content of a later [`FileStore::commit`]: durable already, under no name yet. Dropped
/// uncommitted, it leaves nothing behind.
pub struct Staged {
    name: ObjectName,
    version: Version,
    content: Box<dyn Any>,
}

impl Staged {
    /// For drivers: `content` is what their own `commit` takes.
    #[must_use]
    pub fn new(name: ObjectName, version: Version, content: Box<dyn Any>) -> Self {
        Self { name, version, content }
    }

    /// The object that it will be.
    #[must_use]
    pub fn name(&self) -> ObjectName {
        self.name
    }

    /// The version that the object will have.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// The driver's own part.
    ///
    /// # Panics
    /// If another driver staged it.
    #[must_use]
    pub fn into_content<T: 'static>(self) -> T {
        *self.content.downcast().expect("what one store staged is committed to the same")
    }
}

impl fmt::Debug for Staged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Staged")
            .field("name", &self.name)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

/// An object as `list` sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Its name.
    pub name: ObjectName,
    /// Its length.
    pub len: ByteCount,
    /// The storage it really takes.
    pub used: ByteCount,
}

/// Space of a datastore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Size of the file system.
    pub total: ByteCount,
    /// What guest data may still take: the head-room is not part of it.
    pub free: ByteCount,
    /// What the objects of this datastore really take. Together with `overhead` it is what `du`
    /// says of the directory.
    pub used_by_store: ByteCount,
    /// What the datastore takes for itself: head-room held, lock, directories.
    pub overhead: ByteCount,
}

/// What a datastore can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Name of the file system that was found, such as `ext4`.
    pub file_system: String,
    /// Space can be taken ahead (`lazy` volumes).
    pub reserve: bool,
    /// Parts of a file can be given back.
    pub punch_hole: bool,
    /// Alignment of unbuffered I/O, where the file system has it.
    pub direct_io: Option<u32>,
    /// Several hosts may use it at once.
    pub shared: bool,
    /// Its contents survive a reboot.
    pub persistent: bool,
}

/// Which datastore this is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its UUID, new for each copy that was adopted.
    pub uuid: Uuid,
    /// The name it was created with.
    pub name: String,
    /// When it was created, Unix time in milliseconds.
    pub created: u64,
}

/// A datastore of named files. Futures are local: a store belongs to one thread. Each future may be
/// dropped: what it began still ends by itself.
pub trait FileStore {
    /// Which datastore this is.
    fn identity(&self) -> Identity;

    /// What it can do.
    fn capabilities(&self) -> Capabilities;

    /// Creates an empty file and opens it for writing; `Exists` if there is one. The name survives
    /// a power cut after `sync_names` only.
    fn create(&self, name: &ObjectName) -> Io<'_, Result<Rc<dyn BlockFile>>>;

    /// Opens a file; `NotFound` if there is none.
    fn open(&self, name: &ObjectName, access: Access) -> Io<'_, Result<Rc<dyn BlockFile>>>;

    /// Removes an object, durably on return; `NotFound` if there is none. Whoever has it open keeps
    /// it, and its space, until they close it.
    fn remove(&self, name: &ObjectName) -> Io<'_, Result<()>>;

    /// The objects of a kind, ordered by name. What is not an object of ours is left out.
    fn list(&self, kind: Kind) -> Io<'_, Result<Vec<ObjectInfo>>>;

    /// The storage that each of some objects really takes; None for one that is not there.
    fn used(&self, names: Vec<ObjectName>) -> Io<'_, Result<Vec<Option<ByteCount>>>>;

    /// A small object (up to [`MAX_OBJECT`]) and its version.
    fn get(&self, name: &ObjectName) -> Io<'_, Result<Option<Content>>>;

    /// Makes the content of a small object durable, so that little is left for [`Self::commit`].
    /// Changes nothing that can be seen. May use the head-room.
    fn stage(&self, name: &ObjectName, content: Vec<u8>) -> Io<'_, Result<Staged>>;

    /// Replaces or creates the object in one step, durably on return; `Conflict` if what is there is
    /// not what was expected. After another error it is unknown which of the two is there, but it is
    /// one of them, whole. May use the head-room.
    fn commit(&self, staged: Staged, expected: Expected) -> Io<'_, Result<Version>>;

    /// Both at once.
    fn put(
        &self,
        name: &ObjectName,
        expected: Expected,
        content: Vec<u8>,
    ) -> Io<'_, Result<Version>> {
        let name = *name;
        Box::pin(async move {
            let staged = self.stage(&name, content).await?;
            self.commit(staged, expected).await
        })
    }

    /// Makes all names created so far durable.
    fn sync_names(&self) -> Io<'_, Result<()>>;

    /// Space as it is now. Objects that nobody here changed since the last look may be taken as they
    /// were then, for a minute at most.
    fn space(&self) -> Io<'_, Result<Space>>;

    /// [`Space::free`] alone, which costs the same however many objects there are.
    fn free(&self) -> Io<'_, Result<ByteCount>>;

    /// The path at which the kernel (a loop device, a tool) can open the file.
    fn kernel_path(&self, name: &ObjectName) -> Option<PathBuf>;
}
