//! Directories that a node uses: its own, the logs' and those of datastores.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use model::Size;
use rustix::fs::{Access, AtFlags, CWD};

use super::Finding;
use crate::home::LOG_BYTES;

/// Room for the inventory, its history and the node's state.
const DATA_AMPLE: u64 = 256 << 20;
const DATA_NEEDED: u64 = 16 << 20;
/// Connected volumes whose logs should fit at least.
const VOLUMES_AMPLE: u64 = 64;
/// Longest name of a socket (`sun_path`), and what a guest's adds to the data directory.
const SOCKET_MAX: usize = 107;
const SOCKET_TAIL: usize = "/run/volumes/01234567-89ab-cdef-0123-456789abcdef.sock".len();
/// What statfs says of a tmpfs.
const TMPFS: u32 = 0x0102_1994;

pub(super) fn data(data: &Path) -> Finding {
    const NAME: &str = "data-directory";
    let shown = std::path::absolute(data).unwrap_or_else(|_| data.to_path_buf());
    let at = shown.display();
    if shown.as_os_str().len() + SOCKET_TAIL > SOCKET_MAX {
        let most = SOCKET_MAX - SOCKET_TAIL;
        return Finding::missing(NAME, format!("{at}: too long for the sockets of guests in it"))
            .required()
            .advice(format!("choose a path of up to {most} bytes with --data"));
    }
    let there = nearest(&shown);
    let space = match space(&there) {
        Ok(space) => space,
        Err(error) => {
            return Finding::missing(NAME, format!("{at} cannot be examined: {error}")).required();
        }
    };
    if space.free < DATA_NEEDED {
        let free = Size::from_bytes(space.free).human();
        return Finding::missing(NAME, format!("{at}: only {free} are free"))
            .required()
            .advice("free some space, or choose another directory with --data");
    }
    // The same list of file systems as for datastores: here, too, locks and flushes must hold.
    let file_system = match datastore::examine(&there) {
        Ok(examined) => examined.file_system,
        Err(error @ datastore::DatastoreError::FileSystem { .. }) => {
            return Finding::missing(NAME, error.to_string())
                .required()
                .advice("choose a directory on a local file system with --data");
        }
        Err(_not_ours_to_write) => "file system unknown".into(),
    };
    let free = Size::from_bytes(space.free).human();
    let facts = |more: &str| format!("{at}: {file_system}, {free} free{more}");
    if there != shown {
        if !is_usable(&there) {
            return Finding::missing(NAME, format!("{at} is not there, and cannot be made"))
                .required()
                .advice(format!("make it as root, or give write access to {}", there.display()));
        }
        return Finding::ok(NAME, facts("; it is made at the first start")).required();
    }
    let Ok(meta) = std::fs::symlink_metadata(&shown) else {
        return Finding::missing(NAME, format!("{at} cannot be examined")).required();
    };
    let (user, mode) = (rustix::process::geteuid().as_raw(), meta.mode() & 0o7777);
    if !meta.is_dir() {
        return Finding::missing(
            NAME,
            format!("{at} is not a directory, or a symbolic link to one"),
        )
        .required()
        .advice("name the directory itself with --data");
    }
    let facts = |more: &str| facts(&format!(", owner {}, mode {mode:04o}{more}", meta.uid()));
    if meta.uid() != user {
        return Finding::missing(NAME, facts(&format!("; user {user} cannot use it")))
            .required()
            .advice("run as its owner, or choose another directory with --data");
    }
    if !is_usable(&shown) {
        return Finding::missing(NAME, facts("; it cannot be written"))
            .required()
            .advice("mount its file system for writing, or give its owner the right to write");
    }
    if mode & 0o022 != 0 {
        return Finding::limited(NAME, facts("; others may write into it"))
            .required()
            .advice(format!("chmod 0700 {at}"));
    }
    if space.free < DATA_AMPLE {
        return Finding::limited(NAME, facts("; that is little"))
            .required()
            .advice("free some space: a full data directory refuses connects");
    }
    Finding::ok(NAME, facts("")).required()
}

/// Logs of metadata stand in memory that outlives the process (rule D2).
pub(super) fn logs(logs: &Path) -> Finding {
    const NAME: &str = "logs-in-memory";
    const MOUNT: &str = "mount -t tmpfs -o mode=1777 tmpfs /dev/shm, and the same in /etc/fstab; for a \
                         container, give it a larger /dev/shm";
    let at = logs.display();
    let there = nearest(logs);
    let space = match space(&there) {
        Ok(space) => space,
        Err(error) => {
            return Finding::missing(NAME, format!("{at} cannot be examined: {error}"))
                .required()
                .advice(MOUNT);
        }
    };
    let user = rustix::process::geteuid().as_raw();
    if let Ok(meta) = std::fs::symlink_metadata(logs)
        && (!meta.is_dir() || meta.uid() != user)
    {
        let problem = format!("{at} belongs to user {}, not to user {user}", meta.uid());
        return Finding::missing(NAME, problem)
            .required()
            .advice(format!("remove {at}, or run as its owner"));
    }
    if !is_usable(&there) {
        return Finding::missing(NAME, format!("{} cannot be written", there.display()))
            .required()
            .advice(MOUNT);
    }
    let volumes = space.free / LOG_BYTES as u64;
    let facts = format!(
        "{at}: {} of {} free, room for the logs of {volumes} more connected volumes",
        Size::from_bytes(space.free).human(),
        Size::from_bytes(space.total).human(),
    );
    if volumes == 0 {
        return Finding::missing(NAME, facts).required().advice(MOUNT);
    }
    if space.magic != TMPFS {
        let problem = format!("{facts}; it is no tmpfs: every guest's write waits for a disk");
        return Finding::limited(NAME, problem).required().advice(MOUNT);
    }
    if loses_logs_at_logout(user) {
        let problem =
            format!("{facts}; systemd empties it when user {user} has logged out everywhere");
        return Finding::limited(NAME, problem)
            .required()
            .advice("loginctl enable-linger, or run the node as root or as a system user");
    }
    if volumes < VOLUMES_AMPLE {
        return Finding::limited(NAME, facts).required().advice(MOUNT);
    }
    Finding::ok(NAME, facts).required()
}

/// logind's `RemoveIPC=yes`, the default, spares system users only (`SYS_UID_MAX` is 999).
fn loses_logs_at_logout(user: u32) -> bool {
    let lingers = || {
        let name = std::env::var("USER").unwrap_or_default();
        !name.is_empty() && Path::new("/var/lib/systemd/linger").join(name).exists()
    };
    user >= 1000 && Path::new("/run/systemd/system").is_dir() && !lingers()
}

/// What a datastore in `dir` could do.
pub(super) fn datastore(dir: &Path) -> Vec<Finding> {
    let at = dir.display();
    let found = match datastore::examine(dir) {
        Ok(found) => found,
        Err(error) => {
            let finding = Finding::missing("directory", error.to_string()).required();
            return vec![finding.advice("choose another directory with --dir")];
        }
    };
    let mut facts = format!(
        "{at}: {}, {} of {} free",
        found.file_system,
        Size::from_bytes(found.free).human(),
        Size::from_bytes(found.total).human(),
    );
    if let Some(identity) = &found.identity {
        facts += &format!("; it is datastore {}", identity.name);
    }
    let mut findings = vec![if found.persistent {
        Finding::ok("directory", facts).required()
    } else {
        Finding::limited("directory", format!("{facts}; it is lost when the host goes down"))
            .required()
            .advice("use a directory on a disk for what is to stay")
    }];
    let Some(can) = found.capabilities else {
        let meaning = format!(
            "{at}: whether it reserves space, punches holes and takes direct I/O shows only when a \
             datastore is made: {} has no files without names",
            found.file_system
        );
        findings.push(Finding::limited("abilities", meaning).advice("use ext4, XFS or Btrfs"));
        return findings;
    };
    findings.push(match can.direct_io {
        Some(align) => Finding::ok(
            "direct-io",
            format!("{at}: data goes past the page cache, in {align} bytes"),
        ),
        None => Finding::limited(
            "direct-io",
            format!("{at}: data goes through the page cache, which costs memory and time"),
        )
        .advice("use ext4, XFS or Btrfs, and a kernel of 6.1 or later"),
    });
    findings.push(if can.reserve {
        Finding::ok("reserve", format!("{at}: lazy and fixed volumes have their space for sure"))
    } else {
        let meaning = format!("{at}: space cannot be reserved: only thin volumes are possible");
        Finding::missing("reserve", meaning).advice("use ext4, XFS or Btrfs")
    });
    findings.push(if can.punch_hole {
        Finding::ok("punch-hole", format!("{at}: what guests discard inside a block is given back"))
    } else {
        let meaning = format!("{at}: what guests discard is given back in whole blocks only");
        Finding::missing("punch-hole", meaning).advice("use ext4, XFS or Btrfs")
    });
    findings
}

struct Room {
    total: u64,
    free: u64,
    magic: u32,
}

fn space(path: &Path) -> rustix::io::Result<Room> {
    let space = rustix::fs::statvfs(path)?;
    let magic = rustix::fs::statfs(path)?.f_type;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the number has 32 bits; wider words hold it sign-extended or not"
    )]
    let magic = magic as u32;
    Ok(Room {
        total: space.f_blocks.saturating_mul(space.f_frsize),
        free: space.f_bavail.saturating_mul(space.f_frsize),
        magic,
    })
}

/// The path itself, or the nearest directory above it that is there.
fn nearest(path: &Path) -> PathBuf {
    let found = path.ancestors().find(|path| std::fs::symlink_metadata(path).is_ok());
    found.filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new("/")).to_path_buf()
}

/// Whether names can be made in it, with the rights that this process acts with.
fn is_usable(dir: &Path) -> bool {
    let rights = Access::WRITE_OK | Access::EXEC_OK;
    rustix::fs::accessat(CWD, dir, rights, AtFlags::EACCESS).is_ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::doctor::State;

    #[test]
    fn a_data_directory_in_every_state() {
        let home = tempfile::tempdir().unwrap();
        let new = home.path().join("a/b");
        let found = data(&new);
        assert!(found.state != State::Missing && found.meaning.contains("made"), "{found:?}");
        assert!(!home.path().join("a").exists(), "the doctor made a directory");

        let own = home.path().join("own");
        std::fs::create_dir(&own).unwrap();
        let mode = |bits| std::fs::set_permissions(&own, PermissionsExt::from_mode(bits)).unwrap();
        mode(0o700);
        let found = data(&own);
        assert!(found.meaning.contains("mode 0700") && !found.prevents(), "{found:?}");
        mode(0o777);
        let found = data(&own);
        assert_eq!(found.state, State::Limited);
        assert!(found.advice.is_some_and(|advice| advice.contains("chmod")));

        let file = home.path().join("file");
        std::fs::write(&file, b"").unwrap();
        assert!(data(&file).prevents());
        let link = home.path().join("link");
        std::os::unix::fs::symlink(&own, &link).unwrap();
        assert!(data(&link).prevents(), "the node refuses a link, so the doctor does");
        assert!(data(&home.path().join("x".repeat(100))).prevents(), "no socket fits in there");
        assert!(data(Path::new("/proc/shale")).prevents());
    }

    #[test]
    fn logs_belong_into_memory() {
        let found = logs(&crate::data_dir::default_log_dir());
        assert!(found.required, "{found:?}");
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("file");
        std::fs::write(&file, b"").unwrap();
        assert!(logs(&file).prevents());
        assert!(logs(Path::new("/proc/shale")).prevents());
    }

    #[test]
    fn a_directory_for_a_datastore() {
        let home = tempfile::tempdir().unwrap();
        let found = datastore(home.path());
        assert!(found.iter().all(|finding| !finding.prevents()), "{found:?}");
        assert!(found.len() > 1 && found[0].name == "directory", "{found:?}");
        assert_eq!(home.path().read_dir().unwrap().count(), 0);
        assert!(datastore(&home.path().join("none")).iter().any(Finding::prevents));
        assert!(datastore(Path::new("/proc")).iter().any(Finding::prevents));
    }
}
