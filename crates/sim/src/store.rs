//! The simulated datastore: what `dir` promises, over simulated files, with names that a power cut
//! may lose.
//!
//! ```text
//!   SimDirectory   what lies on the disk: name -> durable file, and changes not yet synced
//!      │ open()    refused while another store has it (flock on `shale.lock`)
//!      ▼
//!   SimStore       FileStore; put = new file, flush, rename (the commit), sync of the directory
//!      │           every step is an event, so that a run can be halted at each of them
//!      ▼
//!   SimSpace       the files' bytes (`io::sim`)
//! ```
//!
//! - **Cut**: each name keeps its durable file or takes that of any later unsynced change, each for
//!   itself; which way is drawn from the world's generator.
//! - **Kill**: names stay as they are, synced or not. Files that the dead process wrote may stay
//!   locked for a while: its last requests hold the lock until they have ended (rule P1).
//! - **Head-room** (rule N1): the space's capacity is what guests may use. A put or remove that
//!   meets `NoSpace` shuts guests out of `reserve`, waits until none is inside, and has the rest.

mod directory;
mod file;
mod gate;

use std::cell::Cell;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use datastore::{
    Access, Capabilities, Content, DatastoreError, Expected, FileStore, Identity, Kind, MAX_OBJECT,
    ObjectInfo, ObjectName, Result, Space, Staged, Version,
};
use io::sim::{FileId, SimWorld};
use io::{
    BlockDevice as _, BlockFile, ByteCount, ByteOffset, ByteRange, Durability, Io, IoBuf, IoError,
    IoErrorKind, Request,
};

use self::directory::{Entry, State};
#[cfg(test)]
mod tests;

pub use self::directory::{SimDirectory, SimNames};
use self::file::{Held, OpenFile};

const SECTOR: u64 = 512;

/// One node's hold on a [`SimDirectory`]. Clones share it; the last one to go lets it go.
#[derive(Clone, Debug)]
pub struct SimStore {
    state: Rc<State>,
    _lock: Rc<DirectoryLock>,
}

#[derive(Debug)]
struct DirectoryLock(Rc<State>);

impl Drop for DirectoryLock {
    fn drop(&mut self) {
        self.0.opened.set(false);
    }
}

impl SimDirectory {
    /// Opens the datastore; refused while another store has it open.
    pub fn open(&self) -> Result<SimStore> {
        let state = Rc::clone(&self.0);
        if state.opened.replace(true) {
            return Err(DatastoreError::Held {
                path: PathBuf::from("/sim"),
                holder: "another simulated node".to_owned(),
            });
        }
        Ok(SimStore { _lock: Rc::new(DirectoryLock(Rc::clone(&state))), state })
    }
}

impl SimStore {
    /// A store on fresh space, for tests that need nothing special: 1 GiB, and a fixed identity.
    #[must_use]
    pub fn fresh(world: &SimWorld) -> Self {
        let identity = Identity { uuid: uuid::Uuid::from_u128(1), name: "sim".into(), created: 0 };
        let directory = SimDirectory::create(world, ByteCount::mib(1024), &identity);
        directory.open().expect("nobody else knows the directory")
    }

    /// What lies on the disk.
    #[must_use]
    pub fn directory(&self) -> SimDirectory {
        SimDirectory(Rc::clone(&self.state))
    }

    fn world(&self) -> &SimWorld {
        self.state.space.world()
    }

    /// A step of metadata takes a while; nothing goes on in a world that has stopped.
    async fn metadata(&self) {
        self.world().delay(Duration::from_micros(5), Duration::from_micros(100)).await;
    }

    /// Counts an event; if the world stopped with it, nothing follows.
    async fn happened(&self, what: &'static str) {
        self.world().note(what);
        if self.world().is_stopped() {
            std::future::pending::<()>().await;
        }
    }

    /// Runs an operation to its end even if the returned future is dropped.
    fn to_the_end<T: 'static, F: Future<Output = T> + 'static>(
        &self,
        operation: impl FnOnce(Self) -> F + 'static,
    ) -> Io<'static, T> {
        let store = self.clone();
        Box::pin(async move { store.world().local().spawn(operation(store.clone())).await })
    }

    fn open_file(&self, id: FileId, access: Access) -> Result<Rc<dyn BlockFile>> {
        let file = self.state.space.open(id, access == Access::Read)?;
        let held = Held::new(&self.state, id, access);
        Ok(Rc::new(OpenFile::new(file, held)))
    }

    /// Makes the names of a kind that were changed before this call durable.
    async fn sync_directory(&self, kind: Kind) -> Result<()> {
        let covers = self.state.changes.get();
        self.world().delay(Duration::from_micros(100), Duration::from_micros(2000)).await;
        if self.state.fail_sync.strikes() {
            let what = format!("sync of {}/ failed, as the harness wished", kind.directory());
            return Err(IoError::new(IoErrorKind::Device, what).into());
        }
        self.state.synced(kind, covers);
        self.happened("names synced").await;
        Ok(())
    }

    async fn sync_changed(&self) -> Result<()> {
        for kind in Kind::DIRECTORIES {
            if self.state.has_changes(kind) {
                self.sync_directory(kind).await?;
            }
        }
        Ok(())
    }

    /// A new file with `content`, durable, without a name; gone with its hold.
    async fn write_unnamed(&self, content: &[u8]) -> Result<Held> {
        let file = self.state.space.create();
        let held = Held::new(&self.state, file.id(), Access::Write);
        let len = (content.len() as u64).next_multiple_of(SECTOR);
        let mut bytes = content.to_vec();
        bytes.resize(ByteCount(len).as_len(), 0);
        let step = usize::try_from(file.info().max_io).expect("a limit within the address space");
        for (index, part) in bytes.chunks(step).enumerate() {
            let at = ByteOffset((index * step) as u64);
            let from = IoBuf::copied(part);
            file.submit(Request::Write { at, from, durability: Durability::Cached }).await?;
        }
        file.submit(Request::Flush).await?;
        Ok(held)
    }

    async fn commit_steps(
        &self,
        name: ObjectName,
        expected: Expected,
        unnamed: &Unnamed,
    ) -> Result<()> {
        let _one_at_a_time = self.state.changing.lock().await;
        if expected != Expected::Any {
            let found = self.read(name).await?.map(|(version, _)| version);
            if let Some(found) = expected.mismatch(found) {
                return Err(DatastoreError::Conflict { object: name, found });
            }
        }
        self.sync_changed().await?;
        self.metadata().await;
        let entry = Entry { file: unnamed.held.file(), len: Some(unnamed.len) };
        self.state.change(name, Some(entry));
        self.happened("name replaced").await;
        self.sync_directory(name.kind()).await?;
        self.state.collect();
        Ok(())
    }

    async fn remove_steps(&self, name: ObjectName) -> Result<()> {
        let _one_at_a_time = self.state.changing.lock().await;
        self.metadata().await;
        self.state.find(name)?;
        self.state.change(name, None);
        self.happened("name removed").await;
        self.sync_directory(name.kind()).await?;
        self.state.collect();
        Ok(())
    }

    async fn read(&self, name: ObjectName) -> Result<Option<Content>> {
        self.metadata().await;
        if name == ObjectName::Identity {
            let content = self.state.identity_object();
            return Ok(Some((Version::of(&content), content)));
        }
        let Ok(entry) = self.state.find(name) else { return Ok(None) };
        let len = self.state.len(&entry)?;
        if len > MAX_OBJECT {
            let (len, limit) = (len.0, MAX_OBJECT.0);
            return Err(DatastoreError::TooLarge { object: name, len, limit });
        }
        let file = self.state.space.open(entry.file, true)?;
        let content = file.peek(ByteRange { start: ByteOffset(0), len });
        Ok(Some((Version::of(&content), content)))
    }
}

/// A staged content.
struct Unnamed {
    held: Held,
    len: u64,
}

/// Whether the first try of a step met a full store.
fn is_full<T>(result: &Result<T>) -> bool {
    matches!(result, Err(error) if error.kind() == IoErrorKind::NoSpace)
}

fn refuse_identity(name: ObjectName) -> Result<()> {
    if name != ObjectName::Identity {
        return Ok(());
    }
    let what = "a datastore's identity does not change";
    Err(IoError::new(IoErrorKind::Denied, what).into())
}

impl FileStore for SimStore {
    fn identity(&self) -> Identity {
        self.state.identity.clone()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            file_system: "sim".to_owned(),
            reserve: true,
            punch_hole: true,
            direct_io: Some(512),
            shared: false,
            persistent: true,
        }
    }

    fn create(&self, name: &ObjectName) -> Io<'_, Result<Rc<dyn BlockFile>>> {
        let name = *name;
        self.to_the_end(async move |store| {
            refuse_identity(name)?;
            let _one_at_a_time = store.state.changing.lock().await;
            store.metadata().await;
            if store.state.find(name).is_ok() {
                let what = format!("cannot create {name}: it exists");
                return Err(IoError::new(IoErrorKind::Exists, what).into());
            }
            let id = store.state.space.create().id();
            let file = store.open_file(id, Access::Write)?;
            store.state.change(name, Some(Entry { file: id, len: None }));
            store.happened("name created").await;
            Ok(file)
        })
    }

    fn open(&self, name: &ObjectName, access: Access) -> Io<'_, Result<Rc<dyn BlockFile>>> {
        let name = *name;
        Box::pin(async move {
            self.metadata().await;
            let entry = self.state.find(name)?;
            if access == Access::Write && self.state.is_locked(entry.file) {
                let what = format!(
                    "cannot open {name}: another handle, or a request of a process \
                     that died, holds it"
                );
                return Err(IoError::new(IoErrorKind::Busy, what).into());
            }
            self.open_file(entry.file, access)
        })
    }

    fn remove(&self, name: &ObjectName) -> Io<'_, Result<()>> {
        let name = *name;
        self.to_the_end(async move |store| {
            refuse_identity(name)?;
            store.remove_steps(name).await
        })
    }

    fn list(&self, kind: Kind) -> Io<'_, Result<Vec<ObjectInfo>>> {
        Box::pin(async move {
            self.metadata().await;
            self.state.list(kind).await
        })
    }

    fn used(&self, names: Vec<ObjectName>) -> Io<'_, Result<Vec<Option<ByteCount>>>> {
        Box::pin(async move {
            self.metadata().await;
            let mut all = Vec::new();
            for name in names {
                all.push(self.state.used(name).await?);
            }
            Ok(all)
        })
    }

    fn get(&self, name: &ObjectName) -> Io<'_, Result<Option<Content>>> {
        Box::pin(self.read(*name))
    }

    fn stage(&self, name: &ObjectName, content: Vec<u8>) -> Io<'_, Result<Staged>> {
        let name = *name;
        self.to_the_end(async move |store| {
            refuse_identity(name)?;
            let len = content.len() as u64;
            if len > MAX_OBJECT.0 {
                return Err(DatastoreError::TooLarge { object: name, len, limit: MAX_OBJECT.0 });
            }
            let mut written = store.write_unnamed(&content).await;
            if is_full(&written) && !name.kind().is_guest_data() {
                let _borrowed = store.state.borrow_head_room().await;
                written = store.write_unnamed(&content).await;
            }
            let unnamed = Unnamed { held: written?, len };
            Ok(Staged::new(name, Version::of(&content), Box::new(unnamed)))
        })
    }

    fn commit(&self, staged: Staged, expected: Expected) -> Io<'_, Result<Version>> {
        self.to_the_end(async move |store| {
            let (name, version) = (staged.name(), staged.version());
            let unnamed: Unnamed = staged.into_content();
            store.commit_steps(name, expected, &unnamed).await?;
            Ok(version)
        })
    }

    fn sync_names(&self) -> Io<'_, Result<()>> {
        Box::pin(self.sync_changed())
    }

    fn space(&self) -> Io<'_, Result<Space>> {
        Box::pin(async move {
            self.metadata().await;
            self.state.measure().await
        })
    }

    fn free(&self) -> Io<'_, Result<ByteCount>> {
        Box::pin(async move { Ok(self.space().await?.free) })
    }

    fn kernel_path(&self, _name: &ObjectName) -> Option<PathBuf> {
        None
    }
}

/// Counts down to a fault; 0 is off.
#[derive(Debug, Default)]
struct Countdown(Cell<u64>);

impl Countdown {
    fn strikes(&self) -> bool {
        let left = self.0.get();
        self.0.set(left.saturating_sub(1));
        left == 1
    }
}
