use anyhow::{Context, Result};
use e2e::mount::SmallDisk;
use e2e::tools::{self, Fill};
use e2e::{Guest, Shale, guest};
const MIB: u64 = 1 << 20;
#[test]
fn dbg() -> Result<()> {
    let small = SmallDisk::new(640 * MIB)?;
    let shale = Shale::start()?;
    let dir = small.dir().join("store");
    std::fs::create_dir(&dir)?;
    shale.cli(&["datastore", "create", "small", "--dir", dir.to_str().context("UTF-8")?])?;
    shale.volume("ballast", "small", "1G")?;
    let ballast = shale.connect("ballast")?;
    shale.volume("web", "small", "1G")?;
    let web = shale.connect("web")?;
    tools::copy_in(&guest::disk_image()?, &web.uri)?;
    let space = shale.json(&["datastore", "show", "small"])?;
    let free = space["space"]["free"].as_u64().context("no free space told")?;
    let take = free.saturating_sub(20 * MIB) / (2 * MIB) * (2 * MIB);
    tools::write(&ballast.uri, &[Fill { byte: 7, at: 0, len: take }])?;
    shale.disconnect("ballast")?;
    let mut guest = Guest::boot(&web.disk())?;
    let job = guest.start("dd if=/dev/urandom of=/data/big bs=1M count=100; df -k; sync; dmesg | tail -5; ls -la /data; df -k; free -k")?;
    let out = guest.finish(job);
    eprintln!("{out:?} {:?}", shale.json(&["alarm", "list"]));
    Ok(())
}
