//! An open file: a simulated file and the hold on it, which lasts until its last request has ended.

use std::rc::Rc;

use datastore::Access;
use io::sim::{FileId, SimFile};
use io::{BlockDevice, BlockFile, ByteCount, ByteRange, DeviceInfo, Extent, Io, Request, Result};

use super::directory::State;

/// A hold on a file, as an open file description with or without flock.
#[derive(Debug)]
pub(super) struct Held {
    state: Rc<State>,
    file: FileId,
    access: Access,
}

impl Held {
    pub(super) fn new(state: &Rc<State>, file: FileId, access: Access) -> Self {
        state.hold(file, access);
        Self { state: Rc::clone(state), file, access }
    }

    pub(super) fn file(&self) -> FileId {
        self.file
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.state.release(self.file, self.access);
        self.state.collect_one(self.file);
    }
}

/// A file handle of a store.
pub(super) struct OpenFile {
    file: Rc<SimFile>,
    held: Rc<Held>,
}

impl OpenFile {
    pub(super) fn new(file: Rc<SimFile>, held: Held) -> Self {
        Self { file, held: Rc::new(held) }
    }

    /// Runs a request that keeps the hold until it has ended, also when nobody waits for it.
    fn keeping<T: 'static, F: Future<Output = T> + 'static>(
        &self,
        operation: impl FnOnce(Rc<SimFile>, Rc<State>) -> F + 'static,
    ) -> Io<'static, T> {
        let (file, held) = (Rc::clone(&self.file), Rc::clone(&self.held));
        let local = held.state.space.world().local().clone();
        Box::pin(async move {
            let task = async move {
                let output = operation(file, Rc::clone(&held.state)).await;
                drop(held);
                output
            };
            local.spawn(task).await
        })
    }
}

impl BlockDevice for OpenFile {
    fn info(&self) -> DeviceInfo {
        self.file.info()
    }

    fn submit(&self, request: Request) -> Io<'_, Result<()>> {
        if matches!(request, Request::Read { .. }) {
            return self.file.submit(request);
        }
        self.keeping(async move |file, _| file.submit(request).await)
    }

    fn extents(&self, range: ByteRange) -> Io<'_, Result<Vec<Extent>>> {
        self.file.extents(range)
    }
}

impl BlockFile for OpenFile {
    fn reserve(&self, range: ByteRange) -> Io<'_, Result<()>> {
        self.keeping(async move |file, state| {
            state.gate.enter().await;
            let result = file.reserve(range).await;
            state.gate.leave();
            result
        })
    }

    fn truncate(&self, len: ByteCount) -> Io<'_, Result<()>> {
        self.keeping(async move |file, _| file.truncate(len).await)
    }

    fn used(&self) -> Io<'_, Result<ByteCount>> {
        self.file.used()
    }
}
