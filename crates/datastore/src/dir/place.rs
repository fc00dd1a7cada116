//! Which file system a directory lies on, and whether a `dir` datastore may use it.
//!
//! A `dir` datastore relies on what local file systems give: flock that covers every user of the
//! file, rename that is atomic over a power cut, fsync that reaches the medium. Network file systems
//! give some of it, or none, depending on server and mount options; they need drivers of their own.
//! So this is a list of what is known to be good, and everything else is refused by name.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use io::IoErrorKind;
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use rustix::io::Errno;

use crate::error::{DatastoreError, Result};

/// What a file system is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// A local file system.
    Local,
    /// A local file system in memory.
    Memory,
    /// Not usable, and why.
    Refused(&'static str),
}

const NETWORK: &str = "a network file system needs a driver of its own: its locks, renames and \
    flushes do not hold what a local directory's do. Use a local directory, or the share's own \
    datastore type";
const CLUSTER: &str = "a cluster file system is shared by several hosts, and a `dir` datastore is \
    for one. Use a local directory";
const FUSE: &str = "a file system served by a user process (FUSE) may be remote and promises neither \
    durable flushes nor locks. Use a directory of a kernel file system";
const NO_SPARSE: &str = "it has no sparse files, which thin volumes need. Use ext4, XFS or Btrfs";
const READ_ONLY: &str = "it cannot be written";
const UNKNOWN: &str = "it is unknown whether its locks and flushes hold. Use ext4, XFS or Btrfs";

/// Known file systems by the number statfs gives (`linux/magic.h` and the kernel's sources).
const KNOWN: &[(u32, &str, Verdict)] = &[
    (0x0000_ef53, "ext4", Verdict::Local),
    (0x5846_5342, "xfs", Verdict::Local),
    (0x9123_683e, "btrfs", Verdict::Local),
    (0xf2f5_2010, "f2fs", Verdict::Local),
    (0x2fc1_2fc1, "zfs", Verdict::Local),
    (0xca45_1a4e, "bcachefs", Verdict::Local),
    (0x3153_464a, "jfs", Verdict::Local),
    (0x0000_3434, "nilfs2", Verdict::Local),
    (0x794c_7630, "overlay", Verdict::Local),
    (0x0102_1994, "tmpfs", Verdict::Memory),
    (0x8584_58f6, "ramfs", Verdict::Refused("it has no limit and no flush. Use tmpfs or a disk")),
    (0x0000_6969, "nfs", Verdict::Refused(NETWORK)),
    (0xff53_4d42, "cifs", Verdict::Refused(NETWORK)),
    (0xfe53_4d42, "smb3", Verdict::Refused(NETWORK)),
    (0x0000_517b, "smb", Verdict::Refused(NETWORK)),
    (0x0102_1997, "9p", Verdict::Refused(NETWORK)),
    (0x6a65_6a63, "virtiofs", Verdict::Refused(NETWORK)),
    (0x00c3_6400, "ceph", Verdict::Refused(NETWORK)),
    (0x5346_414f, "afs", Verdict::Refused(NETWORK)),
    (0x6b41_4653, "afs", Verdict::Refused(NETWORK)),
    (0x7375_7245, "coda", Verdict::Refused(NETWORK)),
    (0x0000_564c, "ncpfs", Verdict::Refused(NETWORK)),
    (0x2003_0528, "orangefs", Verdict::Refused(NETWORK)),
    (0x1983_0326, "beegfs", Verdict::Refused(NETWORK)),
    (0x0bd0_0bd0, "lustre", Verdict::Refused(NETWORK)),
    (0x4750_4653, "gpfs", Verdict::Refused(CLUSTER)),
    (0x7461_636f, "ocfs2", Verdict::Refused(CLUSTER)),
    (0x0116_1970, "gfs2", Verdict::Refused(CLUSTER)),
    (0x786f_4256, "vboxsf", Verdict::Refused(NETWORK)),
    (0xbacb_acbc, "vmhgfs", Verdict::Refused(NETWORK)),
    (0x6573_5546, "fuse", Verdict::Refused(FUSE)),
    (0x0000_4d44, "vfat", Verdict::Refused(NO_SPARSE)),
    (0x2011_bab0, "exfat", Verdict::Refused(NO_SPARSE)),
    (0x7371_7368, "squashfs", Verdict::Refused(READ_ONLY)),
    (0xe0f5_e1e2, "erofs", Verdict::Refused(READ_ONLY)),
    (0x0000_9660, "iso9660", Verdict::Refused(READ_ONLY)),
    (0x0000_9fa0, "proc", Verdict::Refused("it holds no files")),
    (0x6265_6572, "sysfs", Verdict::Refused("it holds no files")),
];

/// The mount that a directory lies on, as `/proc/self/mountinfo` has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Mount {
    file_system: String,
    source: String,
    super_options: String,
}

/// Finds a mount by its id. A line reads
/// `id parent major:minor root point options [tags…] - type source super-options`.
fn find_mount(mountinfo: &str, id: u64) -> Option<Mount> {
    mountinfo.lines().find_map(|line| {
        let (head, tail) = line.split_once(" - ")?;
        if head.split(' ').next()?.parse() != Ok(id) {
            return None;
        }
        let mut fields = tail.split(' ').map(str::to_owned);
        Some(Mount {
            file_system: fields.next()?,
            source: fields.next()?,
            super_options: fields.next().unwrap_or_default(),
        })
    })
}

/// Decides by the number statfs gave; names come from the mount where it is more exact.
fn judge(magic: u32, mount: &Mount) -> (String, Verdict) {
    let known = KNOWN.iter().find(|(number, ..)| *number == magic);
    let name = match (mount.file_system.as_str(), known) {
        ("", Some((_, name, _))) => (*name).to_owned(),
        ("", None) => format!("an unknown file system ({magic:#x})"),
        (name, _) => name.to_owned(),
    };
    let verdict = known.map_or(Verdict::Refused(UNKNOWN), |(.., verdict)| *verdict);
    let volatile = mount.super_options.split(',').any(|option| option == "volatile");
    if name == "overlay" && volatile {
        return (name, Verdict::Refused("it is mounted `volatile`, which makes flushes void"));
    }
    (name, verdict)
}

/// A directory that a datastore may lie in: open, on a file system that holds what is needed.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) path: PathBuf,
    pub(super) fd: Arc<OwnedFd>,
    pub(super) file_system: String,
    pub(super) persistent: bool,
    pub(super) device: Device,
}

/// What tells a directory from its copy.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Device {
    /// Device number; the kernel may give another one at the next boot.
    pub(super) st_dev: u64,
    /// The file system's own id, where it can be read without special rights.
    pub(super) file_system: Option<String>,
    /// Inode number of the directory.
    pub(super) inode: u64,
}

impl Device {
    /// What makes `self` (stored) another directory than `here`, in words.
    pub(super) fn difference(&self, here: &Self) -> Option<String> {
        if let (Some(was), Some(is)) = (&self.file_system, &here.file_system) {
            if was != is {
                return Some(format!("it was made on file system {was} and lies on {is}"));
            }
        } else if self.st_dev != here.st_dev {
            // Without an id of the file system the number is all there is.
            return Some(format!(
                "it was made on device {} and lies on {}",
                device_number(self.st_dev),
                device_number(here.st_dev)
            ));
        }
        (self.inode != here.inode).then(|| {
            format!("it was made in directory inode {} and lies in {}", self.inode, here.inode)
        })
    }
}

fn device_number(dev: u64) -> String {
    format!("{}:{}", rustix::fs::major(dev), rustix::fs::minor(dev))
}

impl Place {
    /// Opens the directory and judges its file system.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let path = path.canonicalize().map_err(|error| {
            let problem = match error.raw_os_error() {
                Some(number) if number == Errno::NOENT.raw_os_error() => {
                    "it does not exist; create the directory first (and mount what belongs there)"
                        .to_owned()
                }
                _ => error.to_string(),
            };
            refuse(path, io::IoError::system("", error).kind, problem)
        })?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::open(&path, flags, Mode::empty()).map_err(|error| match error {
            Errno::NOTDIR | Errno::LOOP => {
                refuse(&path, IoErrorKind::Unsupported, "it is not a directory".to_owned())
            }
            other => system(&path, "it cannot be opened", other),
        })?;
        let failed = |error| system(&path, "it cannot be examined", error);

        let magic = rustix::fs::fstatfs(&fd).map_err(failed)?.f_type;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the number has 32 bits; wider words hold it sign-extended or not"
        )]
        let magic = magic as u32;
        let mount = mount_of(fd.as_fd()).unwrap_or_default();
        let (file_system, verdict) = judge(magic, &mount);
        if let Verdict::Refused(reason) = verdict {
            return Err(DatastoreError::FileSystem { path, file_system, reason });
        }
        let stat = rustix::fs::fstat(&fd).map_err(failed)?;
        let device = Device {
            st_dev: stat.st_dev,
            file_system: file_system_id(fd.as_fd(), &file_system, &mount),
            inode: stat.st_ino,
        };
        Ok(Self {
            path,
            fd: Arc::new(fd),
            file_system,
            persistent: verdict == Verdict::Local,
            device,
        })
    }

    /// An error about this directory.
    pub(super) fn refuse(&self, kind: IoErrorKind, problem: impl Into<String>) -> DatastoreError {
        refuse(&self.path, kind, problem.into())
    }

    /// A system error met in this directory.
    pub(super) fn system(&self, doing: &str, error: Errno) -> DatastoreError {
        system(&self.path, doing, error)
    }
}

fn refuse(path: &Path, kind: IoErrorKind, problem: String) -> DatastoreError {
    DatastoreError::Directory { path: path.to_owned(), kind, problem }
}

fn system(path: &Path, doing: &str, error: Errno) -> DatastoreError {
    let kind = io::IoError::system("", error.into()).kind;
    let problem = match error {
        Errno::ROFS => "its file system is mounted read-only".to_owned(),
        Errno::ACCESS | Errno::PERM => {
            format!("{doing}: permission denied; give this user read and write access to it")
        }
        other => format!("{doing}: {other}"),
    };
    refuse(path, kind, problem)
}

fn mount_of(fd: BorrowedFd<'_>) -> Option<Mount> {
    let statx = rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).ok()?;
    let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    find_mount(&mountinfo, statx.stx_mnt_id)
}

/// The file system's UUID by the links that udev keeps, else the id statvfs gives where that is
/// made from the UUID (others make it from the device number, which changes).
fn file_system_id(fd: BorrowedFd<'_>, name: &str, mount: &Mount) -> Option<String> {
    let by_uuid = || {
        let source = std::fs::canonicalize(&mount.source).ok()?;
        std::fs::read_dir("/dev/disk/by-uuid").ok()?.flatten().find_map(|entry| {
            let target = std::fs::canonicalize(entry.path()).ok()?;
            (target == source).then(|| format!("uuid:{}", entry.file_name().to_string_lossy()))
        })
    };
    let by_fsid = || {
        let fsid = rustix::fs::fstatvfs(fd).ok()?.f_fsid;
        (fsid != 0).then(|| format!("fsid:{fsid:016x}"))
    };
    // One source for each file system: an id must not change its form when udev is absent.
    match name {
        "ext2" | "ext3" | "ext4" | "btrfs" => by_fsid(),
        _ => by_uuid(),
    }
}

#[cfg(test)]
mod tests {
    use super::{Device, Mount, Verdict, find_mount, judge};

    const MOUNTINFO: &str = "\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw,errors=remount-ro
31 22 0:28 / /mnt/share rw shared:7 master:1 - nfs4 server:/export rw,vers=4.2
32 22 0:29 / /mnt/with\\040space rw - fuse.sshfs user@host:/ rw,user_id=0
40 22 0:40 / /var rw - overlay overlay rw,lowerdir=/a,upperdir=/b,workdir=/c,volatile
";

    #[test]
    fn mounts_are_found_by_id() {
        let nfs = find_mount(MOUNTINFO, 31).unwrap();
        assert_eq!((nfs.file_system.as_str(), nfs.source.as_str()), ("nfs4", "server:/export"));
        assert_eq!(find_mount(MOUNTINFO, 2), None);
        assert_eq!(find_mount("31 garbage", 31), None);
    }

    #[test]
    fn only_known_local_file_systems_pass() {
        let cases: &[(u32, u64, &str, bool)] = &[
            (0xef53, 22, "ext4", true),
            (0x6969, 31, "nfs4", false),
            (0x6573_5546, 32, "fuse.sshfs", false),
            (0x794c_7630, 40, "overlay", false),
            (0x794c_7630, 0, "overlay", true),
            (0x5846_5342, 0, "xfs", true),
            (0x00c3_6400, 0, "ceph", false),
            (0x7461_636f, 0, "ocfs2", false),
            (0x0116_1970, 0, "gfs2", false),
            (0xff53_4d42, 0, "cifs", false),
            (0x0102_1997, 0, "9p", false),
            (0x1234_5678, 0, "an unknown file system (0x12345678)", false),
        ];
        for (magic, id, name, good) in cases {
            let mount = find_mount(MOUNTINFO, *id).unwrap_or_default();
            let (found, verdict) = judge(*magic, &mount);
            assert_eq!(&found, name);
            assert_eq!(!matches!(verdict, Verdict::Refused(_)), *good, "{name}");
        }
        assert_eq!(judge(0x0102_1994, &Mount::default()).1, Verdict::Memory);
    }

    #[test]
    fn a_copy_differs_and_a_reboot_does_not() {
        let id = |text: &str| Some(text.to_owned());
        let was = Device { st_dev: 1, file_system: id("fsid:1"), inode: 7 };
        let cases = [
            (Device { st_dev: 1, file_system: id("fsid:1"), inode: 7 }, false),
            (Device { st_dev: 2, file_system: id("fsid:1"), inode: 7 }, false),
            (Device { st_dev: 1, file_system: id("fsid:1"), inode: 8 }, true),
            (Device { st_dev: 1, file_system: id("fsid:2"), inode: 7 }, true),
            (Device { st_dev: 1, file_system: None, inode: 7 }, false),
            (Device { st_dev: 2, file_system: None, inode: 7 }, true),
        ];
        for (here, copied) in cases {
            assert_eq!(was.difference(&here).is_some(), copied, "{here:?}");
        }
    }
}
