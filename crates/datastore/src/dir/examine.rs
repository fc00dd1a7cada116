//! Looks at a directory without leaving a trace in it: what the file system can do is tried out on a
//! file that never has a name.

use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::identity::Stored;
use super::place::Place;
use super::{files, probe};
use crate::error::Result;
use crate::store::{Capabilities, Identity};

/// What a directory is good for as a datastore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Examined {
    /// The directory, without symbolic links.
    pub path: PathBuf,
    /// The datastore that is in it already.
    pub identity: Option<Identity>,
    /// Name of the file system.
    pub file_system: String,
    /// Its contents survive a reboot.
    pub persistent: bool,
    /// What it can do; None where that cannot be tried without leaving something behind.
    pub capabilities: Option<Capabilities>,
    /// Bytes of the file system.
    pub total: u64,
    /// Bytes that this user may still take.
    pub free: u64,
}

/// Looks at `path`, changing nothing.
pub fn examine(path: &Path) -> Result<Examined> {
    let place = Place::open(path)?;
    let identity = Stored::read(&place)?.map(|stored| stored.identity());
    let capabilities = match nameless(&place) {
        Ok(fd) => Some(probe(&place, &fd)?),
        // Some stacked file systems have no files without names.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => None,
        Err(error) => return Err(place.system("it cannot be written", error)),
    };
    let space = rustix::fs::fstatvfs(&place.fd)
        .map_err(|error| place.system("it cannot be examined", error))?;
    Ok(Examined {
        identity,
        file_system: place.file_system,
        persistent: place.persistent,
        capabilities,
        total: space.f_blocks.saturating_mul(space.f_frsize),
        free: space.f_bavail.saturating_mul(space.f_frsize),
        path: place.path,
    })
}

fn nameless(place: &Place) -> std::result::Result<std::os::fd::OwnedFd, Errno> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    rustix::fs::openat(&place.fd, ".", flags, files::FILE_MODE)
}

#[cfg(test)]
mod tests {
    use super::examine;
    use crate::dir::DirHandle;
    use crate::store::Identity;

    #[test]
    fn nothing_is_left_behind_and_a_datastore_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let before = dir.path().metadata().unwrap().modified().unwrap();
        let empty = examine(dir.path()).unwrap();
        assert_eq!(empty.identity, None);
        assert!(empty.total >= empty.free && empty.total > 0);
        assert_eq!(dir.path().read_dir().unwrap().count(), 0, "something was left behind");
        assert_eq!(dir.path().metadata().unwrap().modified().unwrap(), before);

        let identity = Identity { uuid: uuid::Uuid::from_u128(7), name: "fast".into(), created: 1 };
        let store = DirHandle::create(dir.path(), &identity).unwrap();
        // Also while it is in use, and with the outcome that its holder has.
        let found = examine(dir.path()).unwrap();
        assert_eq!(found.identity.as_ref(), Some(store.identity()));
        if let Some(capabilities) = &found.capabilities {
            assert_eq!(capabilities, store.capabilities());
        }
        assert_eq!((found.file_system, found.persistent), {
            let known = store.capabilities();
            (known.file_system.clone(), known.persistent)
        });
    }

    #[test]
    fn what_cannot_be_one_is_refused_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let missing = examine(&dir.path().join("none")).unwrap_err().to_string();
        assert!(missing.contains("does not exist"), "{missing}");
        let file = dir.path().join("file");
        std::fs::write(&file, b"").unwrap();
        let file = examine(&file).unwrap_err().to_string();
        assert!(file.contains("not a directory"), "{file}");
        let proc = examine(std::path::Path::new("/proc")).unwrap_err().to_string();
        assert!(proc.contains("holds no files"), "{proc}");
    }
}
