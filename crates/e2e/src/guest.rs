//! A small bootable Linux disk, made from Debian packages without mounting anything.
//!
//! ```text
//!   sector 0      master boot record: syslinux boot code, partition table
//!   1 MiB         FAT, active: syslinux, /vmlinuz, /initrd           (mtools, syslinux)
//!   65 MiB        ext4: the root file system, busybox and /sbin/init (mkfs.ext4 -d)
//! ```
//!
//! The kernel is Debian's cloud kernel, where virtio and ext4 are modules: the initrd loads them in
//! the order that modules.dep gives and switches to the second partition. The guest's init obeys
//! the serial console (see `qemu`).
//!
//! Kernel and initrd are also kept beside the disk, for guests that live in their memory and have the second
//! partition at /data (`shale.live` on the kernel's command line). QEMU without KVM translates the guest's
//! code once, and does not notice when another process writes a page of code, as a vhost-user disk does:
//! such guests may not run what they read from the disk. The result is kept under target/guest and made again when
//! the kernel's version or this recipe changes.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::need;
use crate::process::{run, target_dir, text};

/// Raise when the recipe changes: cached images of older recipes are not used.
const RECIPE: u32 = 4;
const MIB: u64 = 1 << 20;
const BOOT_AT: u64 = MIB;
const BOOT_LEN: u64 = 64 * MIB;
const ROOT_AT: u64 = BOOT_AT + BOOT_LEN;
const ROOT_LEN: u64 = 190 * MIB;
/// Bytes of the whole image; a volume that takes it may be larger.
pub const DISK_LEN: u64 = ROOT_AT + ROOT_LEN + MIB;

/// The modules that the guest needs before its root is there; the rest follows from modules.dep.
const MODULES: &[&str] = &["virtio_pci", "virtio_blk", "crc32c_generic", "ext4"];

const INITRD_INIT: &str = r#"#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc; $b mount -t sysfs sysfs /sys; $b mount -t devtmpfs dev /dev
for m in $($b cat /modules/order); do $b insmod /modules/$m; done
until [ -b /dev/vda2 ]; do $b usleep 10000; done
if $b grep -q shale.live /proc/cmdline; then
  $b mkdir -p /data /sbin /tmp; $b ln -s busybox /bin/sh
  $b mount -t ext4 /dev/vda2 /data || { echo "guest: the disk does not mount"; $b poweroff -f; }
  exec /obey
fi
$b mount -t ext4 /dev/vda2 /new || { echo "guest: the root file system does not mount"; $b poweroff -f; }
exec $b switch_root /new /sbin/init
"#;

/// Every line that comes in is run; its output is followed by a line with its number and status.
const ROOT_INIT: &str = r#"#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /tmp /data
[ -d /proc/1 ] || /bin/busybox mount -t proc proc /proc
[ -d /sys/block ] || /bin/busybox mount -t sysfs sysfs /sys
[ -c /dev/ttyS0 ] || /bin/busybox mount -t devtmpfs dev /dev
/bin/busybox --install -s /bin
export PATH=/bin:/sbin
exec </dev/ttyS0 >/dev/ttyS0 2>&1
stty raw -echo
echo; echo "@@ready"
while read -r number line; do
  eval "$line" </dev/null
  status=$?
  echo; echo "@@done $number $status"
done
"#;

/// The path of the bootable image. Made on the first call on a machine, which needs the network.
pub fn disk_image() -> Result<PathBuf> {
    Ok(made()?.join(format!("disk-{RECIPE}.raw")))
}

/// The kernel and the initrd of that image.
pub fn kernel() -> Result<[PathBuf; 2]> {
    let cache = made()?;
    Ok(["vmlinuz", "initrd"].map(|name| cache.join(format!("{name}-{RECIPE}"))))
}

/// The folder with all of them.
fn made() -> Result<PathBuf> {
    let cache = target_dir().join("guest");
    fs::create_dir_all(&cache)?;
    // Tests run side by side in processes of their own; one of them builds.
    let lock = File::create(cache.join("lock"))?;
    lock.lock()?;
    let image = cache.join(format!("disk-{RECIPE}.raw"));
    if !image.exists() {
        let work = tempfile::tempdir_in(&cache)?;
        let made = build(work.path()).context("cannot build the guest's disk image")?;
        fs::copy(made.kernel, cache.join(format!("vmlinuz-{RECIPE}")))?;
        fs::copy(made.initrd, cache.join(format!("initrd-{RECIPE}")))?;
        fs::rename(made.disk, &image)?;
    }
    Ok(cache)
}

/// What is built.
struct Made {
    disk: PathBuf,
    kernel: PathBuf,
    initrd: PathBuf,
}

fn build(work: &Path) -> Result<Made> {
    for (tool, _) in need::TOOLS {
        if ["busybox", "cpio", "depmod", "xz", "mkfs", "sfdisk", "mformat", "syslinux", "mbr"]
            .iter()
            .any(|name| tool.contains(name))
        {
            need::tool(tool)?;
        }
    }
    let kernel = unpack_kernel(work)?;
    let initrd = initrd(work, &kernel)?;
    let root = root_partition(work)?;

    let image = work.join("disk.raw");
    let disk = File::create(&image)?;
    disk.set_len(DISK_LEN)?;
    partition(&image)?;
    copy_into(&disk, &root, ROOT_AT)?;
    boot_partition(work, &image, &kernel.image, &initrd)?;
    // The boot code is the first 440 bytes; the table behind it is already there.
    let code = fs::read(need::tool("/usr/lib/syslinux/mbr/mbr.bin")?)?;
    disk.write_all_at(&code[..code.len().min(440)], 0)?;
    Ok(Made { disk: image, kernel: kernel.image, initrd })
}

struct Kernel {
    image: PathBuf,
    modules: PathBuf,
}

fn unpack_kernel(work: &Path) -> Result<Kernel> {
    let depends = text(Command::new("apt-cache").args(["depends", "linux-image-cloud-amd64"]))
        .context("apt knows no linux-image-cloud-amd64: run `apt-get update` as root")?;
    let package = depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with("linux-image-"))
        .context("linux-image-cloud-amd64 depends on no kernel: run `apt-get update` as root")?;
    run(Command::new("apt-get").args(["download", "--quiet", package]).current_dir(work))
        .with_context(|| format!("cannot download {package}: the first guest needs the network"))?;
    let archive = fs::read_dir(work)?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .with_context(|| format!("apt-get download left no file for {package}"))?;
    let tree = work.join("kernel");
    run(Command::new("dpkg").arg("-x").arg(archive).arg(&tree))?;
    // Debian 13 keeps modules under usr/lib, Debian 12 under lib.
    let modules = ["lib/modules", "usr/lib/modules"]
        .iter()
        .map(|sub| tree.join(sub))
        .find(|path| path.is_dir())
        .context("the kernel package has no modules")?;
    let version = only_entry(&modules)?;
    let base = modules.ancestors().nth(2).context("no folder above lib/modules")?;
    run(Command::new("depmod").env("PATH", SBIN).arg("-b").arg(base).arg(&version))?;
    Ok(Kernel {
        image: tree.join("boot").join(format!("vmlinuz-{version}")),
        modules: modules.join(version),
    })
}

/// Debian keeps some of the tools out of an ordinary user's PATH.
const SBIN: &str = "/usr/sbin:/sbin:/usr/bin:/bin";

fn only_entry(dir: &Path) -> Result<String> {
    let mut names = fs::read_dir(dir)?.filter_map(Result::ok).map(|entry| entry.file_name());
    let name = names.next().with_context(|| format!("{} is empty", dir.display()))?;
    Ok(name.to_string_lossy().into_owned())
}

fn initrd(work: &Path, kernel: &Kernel) -> Result<PathBuf> {
    let tree = work.join("initrd");
    for dir in ["bin", "proc", "sys", "dev", "new", "modules"] {
        fs::create_dir_all(tree.join(dir))?;
    }
    fs::copy("/bin/busybox", tree.join("bin/busybox"))?;
    script(&tree.join("init"), INITRD_INIT)?;
    script(&tree.join("obey"), ROOT_INIT)?;
    let mut names = Vec::new();
    for path in load_order(kernel)? {
        let name = path.file_name().context("a module without a name")?.to_string_lossy();
        let plain = name.strip_suffix(".xz").unwrap_or(&name).to_owned();
        let to = tree.join("modules").join(&plain);
        if name.ends_with(".xz") {
            let out = run(Command::new("xz").args(["-d", "-c"]).arg(&path))?;
            fs::write(to, out.stdout)?;
        } else {
            fs::copy(&path, to)?;
        }
        names.push(plain);
    }
    fs::write(tree.join("modules/order"), names.join("\n"))?;
    let packed = work.join("initrd.img");
    run(Command::new("sh")
        .args(["-c", "find . | cpio --quiet -o -H newc -R 0:0 | gzip -1 > ../initrd.img"])
        .current_dir(&tree))?;
    Ok(packed)
}

/// The needed modules, each after everything that it depends on.
fn load_order(kernel: &Kernel) -> Result<Vec<PathBuf>> {
    let table = fs::read_to_string(kernel.modules.join("modules.dep"))?;
    let builtin = fs::read_to_string(kernel.modules.join("modules.builtin")).unwrap_or_default();
    let mut order = Vec::new();
    let mut seen = BTreeSet::new();
    for name in MODULES {
        let is = |path: &str| module_name(path) == *name;
        let Some((path, needs)) =
            table.lines().filter_map(|line| line.split_once(':')).find(|(path, _)| is(path))
        else {
            if builtin.lines().any(is) {
                continue;
            }
            bail!("the kernel has no module {name}");
        };
        // depmod lists all dependencies, the deepest last.
        for path in needs.split_whitespace().rev().chain([path]) {
            if seen.insert(path.to_owned()) {
                order.push(kernel.modules.join(path));
            }
        }
    }
    Ok(order)
}

fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split('.').next().unwrap_or(file).replace('-', "_")
}

fn root_partition(work: &Path) -> Result<PathBuf> {
    let tree = work.join("root");
    for dir in ["bin", "sbin", "proc", "sys", "dev", "tmp", "data"] {
        fs::create_dir_all(tree.join(dir))?;
    }
    fs::copy("/bin/busybox", tree.join("bin/busybox"))?;
    symlink("busybox", tree.join("bin/sh"))?;
    script(&tree.join("sbin/init"), ROOT_INIT)?;
    let image = work.join("root.ext4");
    File::create(&image)?.set_len(ROOT_LEN)?;
    // -d fills the file system from a folder: no mount, and so no root.
    run(Command::new("mkfs.ext4")
        .env("PATH", SBIN)
        .args(["-q", "-F", "-L", "root", "-E", "root_owner=0:0", "-d"])
        .arg(&tree)
        .arg(&image))?;
    Ok(image)
}

fn partition(image: &Path) -> Result<()> {
    let sectors = |bytes: u64| bytes / 512;
    let table = format!(
        "label: dos\nlabel-id: 0x5348414c\nstart={}, size={}, type=c, bootable\nstart={}, size={}, type=83\n",
        sectors(BOOT_AT),
        sectors(BOOT_LEN),
        sectors(ROOT_AT),
        sectors(ROOT_LEN)
    );
    let mut sfdisk = Command::new("sfdisk")
        .env("PATH", SBIN)
        .args(["--quiet", "--no-reread", "--no-tell-kernel"])
        .arg(image)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .context("cannot start sfdisk")?;
    std::io::Write::write_all(
        &mut sfdisk.stdin.take().context("sfdisk has no input")?,
        table.as_bytes(),
    )?;
    let status = sfdisk.wait()?;
    if !status.success() {
        bail!("sfdisk ended with {status}");
    }
    Ok(())
}

fn boot_partition(work: &Path, image: &Path, kernel: &Path, initrd: &Path) -> Result<()> {
    let config = work.join("syslinux.cfg");
    fs::write(
        &config,
        "DEFAULT linux\nPROMPT 0\nLABEL linux\n  KERNEL /vmlinuz\n  INITRD /initrd\n  \
         APPEND console=ttyS0 quiet loglevel=3 panic=-1\n",
    )?;
    let at = format!("{}@@{BOOT_AT}", image.display());
    let sectors = (BOOT_LEN / 512).to_string();
    run(Command::new("mformat")
        .args(["-i", &at, "-T", &sectors, "-h", "64", "-s", "32", "-H"])
        .arg((BOOT_AT / 512).to_string())
        .args(["-v", "BOOT", "::"]))?;
    for (file, name) in [(kernel, "::vmlinuz"), (initrd, "::initrd"), (&config, "::syslinux.cfg")] {
        run(Command::new("mcopy").args(["-i", &at]).arg(file).arg(name))?;
    }
    run(Command::new("syslinux").args(["--install", "--offset", &BOOT_AT.to_string()]).arg(image))?;
    Ok(())
}

fn script(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// Copies the parts of `from` that are not zero, so that the image stays sparse.
fn copy_into(disk: &File, from: &Path, at: u64) -> Result<()> {
    let bytes = fs::read(from)?;
    for (index, chunk) in bytes.chunks(64 << 10).enumerate() {
        if chunk.iter().any(|byte| *byte != 0) {
            disk.write_all_at(chunk, at + (index as u64) * (64 << 10))?;
        }
    }
    Ok(())
}
