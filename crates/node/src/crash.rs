//! Crash points: places at which a test lets the process die as by `kill -9`.
//!
//! `SHALE_CRASH_AT=N` dies at the N-th point passed since the start, `SHALE_CRASH_AT=NAME` at the
//! first of that name, `NAME:N` at its N-th. Unset, a point is one load. Points stand around every
//! change that the catalog makes to a datastore ([`CrashStore`]) and around every step of connect,
//! disconnect and resume, so counting N upwards visits every state that a crash can leave behind.

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use datastore::{
    Access, Capabilities, Expected, FileStore, Identity, Kind, ObjectInfo, ObjectName, Result,
    Space, Staged, Version,
};
use io::{BlockFile, ByteCount, Io};

struct Armed {
    /// None: any point counts.
    name: Option<String>,
    left: AtomicU64,
}

fn armed() -> Option<&'static Armed> {
    static ARMED: OnceLock<Option<Armed>> = OnceLock::new();
    ARMED.get_or_init(|| parse(&std::env::var("SHALE_CRASH_AT").ok()?)).as_ref()
}

fn parse(text: &str) -> Option<Armed> {
    if let Ok(n) = text.parse() {
        return Some(Armed { name: None, left: AtomicU64::new(n) });
    }
    let (name, n) = match text.rsplit_once(':') {
        Some((name, n)) if n.parse::<u64>().is_ok() => (name, n.parse().unwrap_or(1)),
        _ => (text, 1),
    };
    (!name.is_empty()).then(|| Armed { name: Some(name.into()), left: AtomicU64::new(n) })
}

/// Whether a test armed any crash.
pub(crate) fn is_armed() -> bool {
    armed().is_some()
}

/// A place where the process may be told to die.
pub(crate) fn point(name: &str) {
    let Some(armed) = armed() else { return };
    if armed.name.as_ref().is_some_and(|wanted| wanted != name) {
        return;
    }
    if armed.left.fetch_sub(1, Ordering::Relaxed) == 1 {
        tracing::warn!(name, "crash point reached");
        let died =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        // The signal may take a moment to reach this thread; nothing happens after the point.
        loop {
            debug_assert!(died.is_ok(), "a process may kill itself");
            std::thread::park();
        }
    }
}

/// A store with a crash point before and after every change.
pub(crate) struct CrashStore(pub(crate) Rc<dyn FileStore>);

impl CrashStore {
    fn around<'a, T: 'a>(
        what: &'static str,
        name: Option<ObjectName>,
        change: Io<'a, Result<T>>,
    ) -> Io<'a, Result<T>> {
        let kind = name.map_or("", |name| name.kind().directory());
        Box::pin(async move {
            point(&format!("before-{what}-{kind}"));
            let outcome = change.await;
            point(&format!("after-{what}-{kind}"));
            outcome
        })
    }
}

impl FileStore for CrashStore {
    fn identity(&self) -> Identity {
        self.0.identity()
    }

    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    fn create(&self, name: &ObjectName) -> Io<'_, Result<Rc<dyn BlockFile>>> {
        Self::around("create", Some(*name), self.0.create(name))
    }

    fn open(&self, name: &ObjectName, access: Access) -> Io<'_, Result<Rc<dyn BlockFile>>> {
        self.0.open(name, access)
    }

    fn remove(&self, name: &ObjectName) -> Io<'_, Result<()>> {
        Self::around("remove", Some(*name), self.0.remove(name))
    }

    fn list(&self, kind: Kind) -> Io<'_, Result<Vec<ObjectInfo>>> {
        self.0.list(kind)
    }

    fn used(&self, names: Vec<ObjectName>) -> Io<'_, Result<Vec<Option<ByteCount>>>> {
        self.0.used(names)
    }

    fn get(&self, name: &ObjectName) -> Io<'_, Result<Option<(Version, Vec<u8>)>>> {
        self.0.get(name)
    }

    fn stage(&self, name: &ObjectName, content: Vec<u8>) -> Io<'_, Result<Staged>> {
        self.0.stage(name, content)
    }

    fn commit(&self, staged: Staged, expected: Expected) -> Io<'_, Result<Version>> {
        let name = staged.name();
        Self::around("put", Some(name), self.0.commit(staged, expected))
    }

    fn sync_names(&self) -> Io<'_, Result<()>> {
        Self::around("sync", None, self.0.sync_names())
    }

    fn space(&self) -> Io<'_, Result<Space>> {
        self.0.space()
    }

    fn free(&self) -> Io<'_, Result<ByteCount>> {
        self.0.free()
    }

    fn kernel_path(&self, name: &ObjectName) -> Option<PathBuf> {
        self.0.kernel_path(name)
    }
}

#[cfg(test)]
mod tests {
    use super::parse;
    use std::sync::atomic::Ordering;

    #[test]
    fn what_is_armed() {
        let armed = |text: &str| {
            parse(text).map(|armed| (armed.name.clone(), armed.left.load(Ordering::Relaxed)))
        };
        assert_eq!(armed("17"), Some((None, 17)));
        assert_eq!(armed("before-put-record"), Some((Some("before-put-record".into()), 1)));
        assert_eq!(armed("before-put-record:3"), Some((Some("before-put-record".into()), 3)));
        assert_eq!(armed(""), None);
    }
}
