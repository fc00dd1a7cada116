//! A `dir` datastore on one thread: blocking steps go to helper threads, and where the file system
//! is full, the head-room is lent to what may have it.

use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use io::{
    BlockDevice, BlockFile, ByteCount, ByteRange, DeviceInfo, Extent, Io, IoError, IoErrorKind,
    Request, Ring,
};

use super::Inner;
use super::headroom::Door;
use super::sizes::Writing;
use super::temp::Temp;
use crate::error::Result;
use crate::name::{Kind, ObjectName};
use crate::store::{
    Access, Capabilities, Content, Expected, FileStore, Identity, ObjectInfo, Space, Staged,
    Version,
};

/// The face of a [`super::DirHandle`] on one thread.
#[derive(Clone)]
pub struct DirStore {
    ring: Ring,
    inner: Arc<Inner>,
}

impl fmt::Debug for DirStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DirStore({})", self.inner.identity.uuid)
    }
}

impl DirStore {
    pub(super) fn new(ring: Ring, inner: Arc<Inner>) -> Self {
        Self { ring, inner }
    }

    /// Runs a blocking step on a helper thread.
    async fn blocking<T: Send + 'static>(
        &self,
        step: impl FnOnce(&Inner) -> T + Send + 'static,
    ) -> T {
        let inner = Arc::clone(&self.inner);
        self.ring.run_blocking(move || step(&inner)).await
    }

    /// Runs an operation to its end even if the returned future is dropped: what it holds (a place
    /// at the head-room's door) must not be given up while its system call still runs.
    fn to_the_end<T: 'static, F: Future<Output = T> + 'static>(
        &self,
        operation: impl FnOnce(Self) -> F,
    ) -> Io<'static, T> {
        Box::pin(self.ring.local().spawn(operation(self.clone())))
    }

    /// Runs a step that may use the head-room, slice by slice, until it has what it needs.
    pub(super) async fn with_head_room<T: Send + 'static>(
        &self,
        step: impl Fn(&Inner) -> Result<T> + Send + Clone + 'static,
    ) -> Result<T> {
        let first = step.clone();
        match self.blocking(move |inner| first(inner)).await {
            Err(error) if error.kind() == IoErrorKind::NoSpace => {}
            done => return done,
        }
        self.inner.head_room.borrow().await;
        self.blocking(move |inner| {
            let result = loop {
                match step(inner) {
                    Err(error) if error.kind() == IoErrorKind::NoSpace => {
                        match inner.head_room.release_slice() {
                            Ok(true) => {}
                            Ok(false) => break Err(error),
                            Err(system) => {
                                tracing::warn!(error = %system, "cannot lend head-room");
                                break Err(error);
                            }
                        }
                    }
                    done => break done,
                }
            };
            inner.head_room.settle();
            result
        })
        .await
    }

    /// Runs a taking of `len` bytes by guest data, unless it would touch the head-room.
    async fn outside_head_room<T>(
        &self,
        len: ByteCount,
        taking: impl Future<Output = io::Result<T>>,
    ) -> io::Result<T> {
        let full = || {
            let why = "the datastore is full: what is left is kept for records and deletes";
            IoError::new(IoErrorKind::NoSpace, why)
        };
        if self.inner.head_room.enter().await == Door::NotWhole {
            self.blocking(|inner| inner.head_room.refill()).await;
            if self.inner.head_room.enter().await == Door::NotWhole {
                return Err(full());
            }
        }
        let result = match self.counted(len).await {
            Ok(true) => taking.await,
            Ok(false) => Err(full()),
            Err(error) => Err(error.into()),
        };
        self.inner.head_room.leave();
        result
    }

    async fn counted(&self, len: ByteCount) -> Result<bool> {
        if !self.inner.head_room.is_counted() {
            return Ok(true);
        }
        self.blocking(move |inner| inner.has_counted_space(len)).await
    }

    async fn open_file(&self, name: ObjectName, access: Access) -> Result<Rc<dyn BlockFile>> {
        let directory = self.inner.directory_handle(name.kind());
        let device = blockio::FileDevice::open(&self.ring, directory, &name.file_name(), access)
            .await
            .map_err(|error| error.during(format!("cannot open {name}")))?;
        let writes = access == Access::Write;
        let writing = if writes { self.inner.writing(&name).map(Rc::new) } else { None };
        let store = name.kind().is_guest_data().then(|| self.clone());
        Ok(Rc::new(StoreFile { file: Rc::new(device), store, writing }))
    }
}

impl FileStore for DirStore {
    fn identity(&self) -> Identity {
        self.inner.identity.clone()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities.clone()
    }

    fn create(&self, name: &ObjectName) -> Io<'_, Result<Rc<dyn BlockFile>>> {
        let name = *name;
        self.to_the_end(async move |store| {
            if name.kind().is_guest_data() {
                store.blocking(move |inner| inner.make(&name)).await?;
            } else {
                store.with_head_room(move |inner| inner.make(&name)).await?;
            }
            match store.open_file(name, Access::Write).await {
                Ok(file) => Ok(file),
                Err(error) => {
                    store.blocking(move |inner| inner.unmake(&name)).await;
                    Err(error)
                }
            }
        })
    }

    fn open(&self, name: &ObjectName, access: Access) -> Io<'_, Result<Rc<dyn BlockFile>>> {
        let name = *name;
        Box::pin(async move {
            self.blocking(move |inner| inner.check_file(&name)).await?;
            self.open_file(name, access).await
        })
    }

    fn remove(&self, name: &ObjectName) -> Io<'_, Result<()>> {
        let name = *name;
        self.to_the_end(async move |store| {
            store.with_head_room(move |inner| inner.remove(&name)).await
        })
    }

    fn list(&self, kind: Kind) -> Io<'_, Result<Vec<ObjectInfo>>> {
        Box::pin(self.blocking(move |inner| inner.list(kind)))
    }

    fn used(&self, names: Vec<ObjectName>) -> Io<'_, Result<Vec<Option<ByteCount>>>> {
        Box::pin(self.blocking(move |inner| names.iter().map(|name| inner.used(name)).collect()))
    }

    fn get(&self, name: &ObjectName) -> Io<'_, Result<Option<Content>>> {
        let name = *name;
        Box::pin(self.blocking(move |inner| inner.get(&name)))
    }

    fn stage(&self, name: &ObjectName, content: Vec<u8>) -> Io<'_, Result<Staged>> {
        let name = *name;
        let content: Arc<[u8]> = content.into();
        self.to_the_end(async move |store| {
            let version = Version::of(&content);
            let step = move |inner: &Inner| inner.stage(&name, &content);
            let temp = if name.kind().is_guest_data() {
                store.blocking(step).await
            } else {
                store.with_head_room(step).await
            }?;
            Ok(Staged::new(name, version, Box::new(temp)))
        })
    }

    fn commit(&self, staged: Staged, expected: Expected) -> Io<'_, Result<Version>> {
        let (name, version) = (staged.name(), staged.version());
        // with the head-room a step may be done again: the content waits outside
        let temp = Arc::new(Mutex::new(staged.into_content::<Temp>()));
        self.to_the_end(async move |store| {
            let step = move |inner: &Inner| {
                let mut temp = temp.lock().unwrap_or_else(PoisonError::into_inner);
                inner.commit(&name, expected, &mut temp)
            };
            if name.kind().is_guest_data() {
                store.blocking(step).await?;
            } else {
                store.with_head_room(step).await?;
            }
            Ok(version)
        })
    }

    fn sync_names(&self) -> Io<'_, Result<()>> {
        Box::pin(self.blocking(Inner::sync_names))
    }

    fn space(&self) -> Io<'_, Result<Space>> {
        Box::pin(self.blocking(Inner::space))
    }

    fn free(&self) -> Io<'_, Result<ByteCount>> {
        Box::pin(self.blocking(Inner::free))
    }

    fn kernel_path(&self, name: &ObjectName) -> Option<PathBuf> {
        Some(self.inner.path_of(name))
    }
}

/// A file of the datastore: one of guest data takes space only outside the head-room.
struct StoreFile {
    file: Rc<dyn BlockFile>,
    /// Of guest data.
    store: Option<DirStore>,
    /// What it takes may change as long as it is open.
    writing: Option<Rc<Writing>>,
}

impl BlockDevice for StoreFile {
    fn info(&self) -> DeviceInfo {
        self.file.info()
    }

    fn submit(&self, request: Request) -> Io<'_, io::Result<()>> {
        self.file.submit(request)
    }

    fn extents(&self, range: ByteRange) -> Io<'_, io::Result<Vec<Extent>>> {
        self.file.extents(range)
    }
}

impl BlockFile for StoreFile {
    fn reserve(&self, range: ByteRange) -> Io<'_, io::Result<()>> {
        let Some(store) = &self.store else { return self.file.reserve(range) };
        let (file, writing) = (Rc::clone(&self.file), self.writing.clone());
        store.to_the_end(async move |store| {
            let taking = async move { file.reserve(range).await };
            let taken = store.outside_head_room(range.len, taking).await;
            drop(writing);
            taken
        })
    }

    fn truncate(&self, len: ByteCount) -> Io<'_, io::Result<()>> {
        self.file.truncate(len)
    }

    fn used(&self) -> Io<'_, io::Result<ByteCount>> {
        self.file.used()
    }
}
