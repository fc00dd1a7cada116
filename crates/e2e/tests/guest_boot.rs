//! A real guest: the builder's disk boots, from a file and from a Shale volume.

use anyhow::{Result, ensure};
use e2e::guest;
use e2e::qemu::{Disk, Guest};

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
