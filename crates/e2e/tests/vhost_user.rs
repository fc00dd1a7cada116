//! A guest whose disk is a vhost-user-blk device.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::process::{Signal, poll_until, signal};
use e2e::qemu::{Disk, Guest};
use e2e::{Shale, guest, tools};

/// A volume with a system on it, connected over vhost-user.
fn bootable(shale: &Shale) -> Result<Disk> {
    shale.datastore("fast")?;
    shale.volume("web", "fast", "20G")?;
    tools::copy_in(&guest::disk_image()?, &shale.connect("web")?.uri)?;
    shale.disconnect("web")?;
    shale.connect_vhost_user("web")
}

/// Write, snapshot while it runs, destroy, revert, read again.
#[test]
fn a_guest_writes_and_its_past_comes_back() -> Result<()> {
    let shale = Shale::start()?;
    let disk = bootable(&shale)?;
    let mut guest = Guest::boot(&disk)?;
    ensure!(guest.run("cat /sys/block/vda/queue/write_cache")? == "write back");
    let id = guest.run("cat /sys/block/vda/serial")?;
    let volume = shale.json(&["volume", "show", "web"])?;
    let uuid = volume["id"].as_str().context("an id")?.replace('-', "");
    ensure!(id == uuid[..20], "the guest sees {id:?} of {uuid}");
    guest.run(
        "dd if=/dev/urandom of=/data/file bs=1M count=20 && md5sum /data/file > /data/sum && sync",
    )?;
    shale.snapshot("good", "web")?;
    guest.run("rm -rf /data/* && dd if=/dev/urandom of=/data/junk bs=1M count=30 && sync")?;
    guest.power_off()?;
    shale.disconnect("web")?;
    shale.revert("good", "web")?;

    let mut guest = Guest::boot(&shale.connect_vhost_user("web")?)?;
    guest.run("md5sum -c /data/sum && [ ! -e /data/junk ]")?;
    guest.power_off()?;
    shale.disconnect("web")
}

/// The node dies while the guest writes: it goes on with the next one, and nothing is lost or done twice
/// where the guest can see it.
#[test]
fn a_guest_goes_on_after_the_node_died() -> Result<()> {
    let shale = Shale::start()?;
    let mut guest = Guest::boot(&bootable(&shale)?)?;
    guest.run("dd if=/dev/urandom of=/data/pattern bs=64k count=16")?;
    let work = guest.start(
        "for n in $(seq 1 60); do dd if=/data/pattern of=/data/$n bs=64k conv=fsync || exit 1; done",
    )?;
    for _ in 0..5 {
        let old = shale.node_pid()?;
        signal(old, Signal::KILL)?;
        let another = || Ok(shale.node_pid().ok().filter(|pid| *pid != old));
        poll_until(Duration::from_secs(60), another, || "a new node".to_owned())?;
    }
    guest.finish(work)?;
    guest.run("echo 3 > /proc/sys/vm/drop_caches")?;
    guest.run("for n in $(seq 1 60); do cmp /data/pattern /data/$n || exit 1; done")?;
    guest.power_off()?;
    shale.disconnect("web")
}
