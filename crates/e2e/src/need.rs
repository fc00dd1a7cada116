//! What a test needs from the machine. A missing thing fails the test with a sentence that says
//! what to do; tests are never skipped in silence.

use std::path::Path;

use anyhow::{Result, bail};

/// Debian packages behind the tools that tests, demo and bench call: (file, package).
pub const TOOLS: &[(&str, &str)] = &[
    ("/usr/bin/qemu-system-x86_64", "qemu-system-x86"),
    ("/usr/bin/qemu-img", "qemu-utils"),
    ("/usr/bin/qemu-io", "qemu-utils"),
    ("/usr/bin/qemu-nbd", "qemu-utils"),
    ("/usr/bin/qemu-storage-daemon", "qemu-utils"),
    ("/usr/share/doc/python3-libvhdi/copyright", "python3-libvhdi"),
    ("/usr/bin/python3", "python3"),
    ("/usr/bin/nbdinfo", "libnbd-bin"),
    ("/usr/bin/nbdcopy", "libnbd-bin"),
    ("/usr/share/doc/python3-libnbd/copyright", "python3-libnbd"),
    ("/usr/bin/fio", "fio"),
    ("/bin/busybox", "busybox-static"),
    ("/usr/bin/cpio", "cpio"),
    ("/sbin/depmod", "kmod"),
    ("/usr/bin/xz", "xz-utils"),
    ("/sbin/mkfs.ext4", "e2fsprogs"),
    ("/sbin/sfdisk", "fdisk"),
    ("/usr/bin/mformat", "mtools"),
    ("/usr/bin/syslinux", "syslinux"),
    ("/usr/lib/syslinux/mbr/mbr.bin", "syslinux-common"),
    ("/usr/bin/setpriv", "util-linux"),
    ("/bin/mount", "mount"),
    ("/usr/bin/unshare", "util-linux"),
    ("/usr/sbin/xfs_io", "xfsprogs"),
    ("/usr/bin/systemd-analyze", "systemd"),
];

/// Tests that mount a small file system or act as another user need root.
pub fn root() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!(
            "this test needs root: it mounts a small file system. Run `cargo xtask test` as root"
        );
    }
    Ok(())
}

/// `tool` is the full path of one of [`TOOLS`].
pub fn tool(tool: &str) -> Result<&str> {
    if !Path::new(tool).exists() {
        let package =
            TOOLS.iter().find(|(file, _)| *file == tool).map_or("?", |(_, package)| package);
        bail!("{tool} is missing: apt-get install {package} (`cargo xtask test` does it as root)");
    }
    Ok(tool)
}
