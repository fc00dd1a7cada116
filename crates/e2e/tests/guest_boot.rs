//! A real guest: the builder's disk boots, from a file and from a Shale volume.

use anyhow::{Result, ensure};
use e2e::qemu::{Disk, Guest};
use e2e::{Shale, guest, tools};

/// The disk itself is good: what fails afterwards is Shale's.
#[test]
fn guest_boots_from_a_plain_file() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let disk = dir.path().join("disk.raw");
    std::fs::copy(guest::disk_image()?, &disk)?;
    let mut guest = Guest::boot(&Disk::Raw(disk.clone()))?;
    guest.run("echo kept > /data/note && sync")?;
    guest.power_off()?;
    let mut guest = Guest::boot(&Disk::Raw(disk))?;
    let note = guest.run("cat /data/note")?;
    ensure!(note == "kept", "the file holds {note:?}");
    guest.power_off()
}

/// The main job, once: boot, write, snapshot while it runs, destroy, revert, boot a clone.
#[test]
fn guest_boots_from_a_volume_and_from_its_past() -> Result<()> {
    let shale = Shale::start()?;
    shale.datastore("fast")?;
    shale.volume("web", "fast", "20G")?;
    let connection = shale.connect("web")?;
    tools::copy_in(&guest::disk_image()?, &connection.uri)?;

    let mut guest = Guest::boot(&connection.disk())?;
    guest.run(
        "dd if=/dev/urandom of=/data/file bs=1M count=20 && md5sum /data/file > /data/sum && sync",
    )?;
    shale.snapshot("good", "web")?;
    guest.run("rm -rf /data/* && dd if=/dev/urandom of=/data/junk bs=1M count=30 && sync")?;
    guest.power_off()?;
    shale.disconnect("web")?;
    shale.revert("good", "web")?;

    let mut guest = Guest::boot(&shale.connect("web")?.disk())?;
    guest.run("md5sum -c /data/sum && [ ! -e /data/junk ]")?;
    guest.power_off()?;
    shale.disconnect("web")?;

    shale.cli(&["template", "create", "golden", "--from", "web"])?;
    shale.cli(&["template", "deploy", "golden", "--name", "desk", "--linked"])?;
    let mut guest = Guest::boot(&shale.connect("desk")?.disk())?;
    guest.run("md5sum -c /data/sum && echo mine > /data/own && sync")?;
    guest.power_off()
}
