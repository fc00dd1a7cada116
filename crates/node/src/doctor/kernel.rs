//! What the kernel gives, and what watches over processes.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use io::{Choice, Ring};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use super::Finding;

/// Open files of a chain of the greatest depth, with its connections.
const FILES_A_DISK: u64 = 40;
/// Fewer are not enough for a node with a few disks.
const FILES_NEEDED: u64 = 512;
/// What the systemd unit's limit is meant for: some hundred deep disks.
const FILES_AMPLE: u64 = 16_384;

pub(super) fn io_uring() -> Finding {
    const NAME: &str = "io_uring";
    if std::env::var_os("SHALE_IO").is_some_and(|choice| choice == "threads") {
        return Finding::limited(NAME, "threads do the I/O, because SHALE_IO=threads says so")
            .advice("unset SHALE_IO");
    }
    match Ring::start_with(Choice::Uring) {
        Ok(_) => Finding::ok(NAME, "disks do their I/O through io_uring"),
        Err(error) => {
            let setting = |name: &str| {
                let text = std::fs::read_to_string(format!("/proc/sys/kernel/{name}")).ok()?;
                text.trim().parse().ok()
            };
            let (why, advice) = why_no_uring(&error, setting("io_uring_disabled"), is_filtered());
            Finding::limited(NAME, format!("threads do the I/O, which costs more: {why}"))
                .advice(advice)
        }
    }
}

/// Why io_uring is not to be had, and what to change. `disabled` is kernel.io_uring_disabled, where
/// the kernel has that setting.
fn why_no_uring(error: &std::io::Error, disabled: Option<u32>, filtered: bool) -> (String, String) {
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    match (errno, disabled) {
        (Some(Errno::PERM), Some(2)) => (
            "kernel.io_uring_disabled=2 forbids it to everybody".into(),
            "sysctl -w kernel.io_uring_disabled=0, and the same line in /etc/sysctl.d".into(),
        ),
        (Some(Errno::PERM), Some(1)) => (
            "kernel.io_uring_disabled=1 forbids it to this user".into(),
            "put the user into the group that kernel.io_uring_group names, or sysctl -w \
             kernel.io_uring_disabled=0"
                .into(),
        ),
        (Some(Errno::PERM | Errno::ACCESS | Errno::NOSYS), _) if filtered => (
            format!("a seccomp filter forbids it ({error})"),
            "allow io_uring_setup, io_uring_enter and io_uring_register in the container's seccomp \
             profile"
                .into(),
        ),
        (Some(Errno::NOSYS), _) => (
            "this kernel has no io_uring".into(),
            "use a kernel of 5.11 or later that is built with CONFIG_IO_URING".into(),
        ),
        (Some(Errno::NOMEM), _) => (
            format!("its rings do not fit into the limit of locked memory ({error})"),
            "raise it: `ulimit -l unlimited`, or LimitMEMLOCK=infinity in the unit".into(),
        ),
        (Some(Errno::MFILE), _) => (
            format!("no file can be opened any more ({error})"),
            "raise the limit of open files: `ulimit -n 65536`".into(),
        ),
        _ => (error.to_string(), "use a kernel of 5.11 or later".into()),
    }
}

/// Whether a seccomp filter stands over this process.
fn is_filtered() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().any(|line| line.strip_prefix("Seccomp:").is_some_and(|mode| mode.trim() == "2"))
}

pub(super) fn open_files() -> Finding {
    judge_open_files(getrlimit(Resource::Nofile).current)
}

fn judge_open_files(limit: Option<u64>) -> Finding {
    const NAME: &str = "open-files";
    const ADVICE: &str = "`ulimit -n 65536` before the start, or LimitNOFILE=262144 in the unit";
    let Some(limit) = limit else { return Finding::ok(NAME, "no limit") };
    let room = format!(
        "up to {limit}: about {} connected disks with 32 snapshots each",
        limit / FILES_A_DISK
    );
    match limit {
        ..FILES_NEEDED => Finding::missing(NAME, room).required().advice(ADVICE),
        FILES_NEEDED..FILES_AMPLE => Finding::limited(NAME, room).required().advice(ADVICE),
        FILES_AMPLE.. => Finding::ok(NAME, room).required(),
    }
}

pub(super) fn kvm() -> Finding {
    const NAME: &str = "kvm";
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    match rustix::fs::open("/dev/kvm", flags, Mode::empty()) {
        Ok(_) => Finding::ok(NAME, "/dev/kvm can be opened: guests run at full speed"),
        Err(Errno::ACCESS | Errno::PERM) => {
            Finding::limited(NAME, "/dev/kvm is there, but not for this user")
                .advice("usermod -aG kvm USER, for the user that QEMU runs as")
        }
        Err(Errno::NOENT) => Finding::missing(
            NAME,
            "there is no /dev/kvm: guests of this host are emulated; disks work all the same",
        )
        .advice("modprobe kvm_intel or kvm_amd; in a VM, allow nested virtualization"),
        Err(error) => Finding::missing(NAME, format!("/dev/kvm cannot be opened: {error}"))
            .advice("modprobe kvm_intel or kvm_amd; see dmesg"),
    }
}

/// What is stored says when it was made: a clock that is far off makes that wrong, and TLS and tokens
/// with it.
pub(super) fn clock(data: &Path) -> Finding {
    let newest = ["node/connections.json", "node/datastores.json", "controller.db", "serve.json"]
        .iter()
        .filter_map(|name| std::fs::metadata(data.join(name)).ok()?.modified().ok())
        .max();
    let synchronized = Path::new("/run/systemd/timesync/synchronized").exists();
    judge_clock(SystemTime::now(), newest, synchronized)
}

fn judge_clock(now: SystemTime, newest: Option<SystemTime>, synchronized: bool) -> Finding {
    const NAME: &str = "clock";
    const ADVICE: &str = "apt-get install systemd-timesyncd (or chrony), then see timedatectl";
    /// The first of January 2025: no host that runs this lives before.
    const RELEASED: Duration = Duration::from_secs(1_735_689_600);
    const TOLERANCE: Duration = Duration::from_secs(300);
    if now < UNIX_EPOCH + RELEASED {
        return Finding::limited(
            NAME,
            "the clock stands before 2025: times of snapshots are wrong",
        )
        .advice(ADVICE);
    }
    if newest.is_some_and(|newest| newest > now + TOLERANCE) {
        let meaning = "files of the data directory are from the future: the clock was set back, and \
                       times of snapshots and tasks are out of order";
        return Finding::limited(NAME, meaning).advice(ADVICE);
    }
    let how = if synchronized { "synchronized" } else { "plausible" };
    Finding::ok(NAME, format!("{how}; only what is shown depends on it, never data"))
}

pub(super) fn systemd() -> Finding {
    const NAME: &str = "systemd";
    if !Path::new("/run/systemd/system").is_dir() {
        return Finding::missing(
            NAME,
            "it does not run this host: `shale serve` keeps the node up, something else must keep \
             `shale serve` up",
        )
        .advice("apt-get install systemd-sysv, or use another supervisor");
    }
    let installed = ["/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"]
        .iter()
        .any(|dir| Path::new(dir).join("shale-node.service").exists());
    if installed {
        return Finding::ok(NAME, "shale-node.service and shale.service keep both processes up");
    }
    Finding::limited(NAME, "it runs this host, but the units of Shale are not installed")
        .advice("copy packaging/systemd/*.service to /etc/systemd/system; see docs/operating.md")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::State;

    #[test]
    fn every_way_to_have_no_io_uring_has_its_own_advice() {
        let cases = [
            (Errno::PERM, Some(2), false, "=2 forbids", "sysctl"),
            (Errno::PERM, Some(1), true, "=1 forbids", "io_uring_group"),
            (Errno::PERM, Some(0), true, "seccomp", "profile"),
            (Errno::PERM, None, true, "seccomp", "profile"),
            (Errno::NOSYS, None, true, "seccomp", "profile"),
            (Errno::NOSYS, None, false, "no io_uring", "5.11"),
            (Errno::NOMEM, Some(0), false, "locked memory", "LimitMEMLOCK"),
            (Errno::MFILE, Some(0), false, "no file", "ulimit -n"),
            (Errno::INVAL, Some(0), false, "Invalid argument", "5.11"),
        ];
        for (errno, disabled, filtered, why, advice) in cases {
            let found = why_no_uring(&errno.into(), disabled, filtered);
            assert!(found.0.contains(why) && found.1.contains(advice), "{errno:?}: {found:?}");
        }
    }

    #[test]
    fn limits_of_open_files() {
        let cases = [
            (Some(256), State::Missing, true),
            (Some(1024), State::Limited, false),
            (Some(262_144), State::Ok, false),
            (None, State::Ok, false),
        ];
        for (limit, state, prevents) in cases {
            let found = judge_open_files(limit);
            assert_eq!((found.state, found.prevents()), (state, prevents), "{limit:?}");
        }
    }

    #[test]
    fn a_clock_before_its_own_files_is_told() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let now = at(1_800_000_000);
        let cases = [
            (at(1000), None, State::Limited),
            (now, None, State::Ok),
            (now, Some(at(1_800_000_010)), State::Ok),
            (now, Some(at(1_800_009_000)), State::Limited),
            (now, Some(at(1_700_000_000)), State::Ok),
        ];
        for (now, newest, state) in cases {
            assert_eq!(judge_clock(now, newest, false).state, state, "{now:?} {newest:?}");
        }
    }
}
