//! A store without space: the writes that need some wait, an alarm says so, they go on by themselves.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::mount::SmallDisk;
use e2e::process::poll_until;
use e2e::shale::exit;
use e2e::tools::{self, Fill};
use e2e::{Guest, Shale, guest};

const MIB: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(120);

fn alarmed(shale: &Shale) -> Result<Option<String>> {
    let alarms = shale.list(&["alarm", "list"])?;
    let full = |alarm: &&serde_json::Value| {
        alarm["code"].as_str().is_some_and(|code| {
            code.contains("full") || code.contains("space") || code.contains("held")
        })
    };
    Ok(alarms.iter().find(full).map(ToString::to_string))
}

fn store(bytes: u64) -> Result<(Shale, SmallDisk)> {
    let small = SmallDisk::new(bytes)?;
    let shale = Shale::start()?;
    let dir = small.dir().join("store");
    std::fs::create_dir(&dir)?;
    shale.cli(&["datastore", "create", "small", "--dir", dir.to_str().context("UTF-8")?])?;
    Ok((shale, small))
}

#[test]
fn a_client_is_held_and_goes_on_when_space_returns() -> Result<()> {
    let (shale, _small) = store(640 * MIB)?;
    shale.volume("ballast", "small", "1G")?;
    let ballast = shale.connect("ballast")?;
    tools::write(&ballast.uri, &[Fill { byte: 7, at: 0, len: 300 * MIB }])?;
    shale.disconnect("ballast")?;

    shale.volume("web", "small", "2G")?;
    let web = shale.connect("web")?;
    let kept = Fill { byte: 1, at: 0, len: 16 * MIB };
    tools::write(&web.uri, &[kept])?;
    let wanted = Fill { byte: 2, at: 64 * MIB, len: 380 * MIB };
    let mut writer = tools::start_write(&web.uri, &[wanted])?;
    poll_until(PATIENCE, || alarmed(&shale), || "an alarm of the full store".into())?;
    ensure!(writer.child().try_wait()?.is_none(), "the writer was not held");

    // Only what needs space waits: reads and writes over allocated blocks go on.
    tools::write(&web.uri, &[Fill { byte: 3, at: 0, len: 8 * MIB }])?;
    tools::expect(
        &web.uri,
        &[Fill { byte: 3, at: 0, len: 8 * MIB }, Fill { at: 8 * MIB, len: 8 * MIB, ..kept }],
    )?;
    // Whatever would not fit is refused before it starts.
    shale.refused(&["volume", "clone", "ballast", "--name", "copy", "--full"], exit::NO_SPACE)?;

    shale.delete_volume("ballast")?;
    let status = writer.wait(PATIENCE)?;
    ensure!(status.success(), "the held write ended with {status}");
    tools::expect(&web.uri, &[wanted, Fill { at: 8 * MIB, len: 8 * MIB, ..kept }])?;
    poll_until(
        PATIENCE,
        || Ok(alarmed(&shale)?.is_none().then_some(())),
        || "the alarm to end".into(),
    )
}

#[test]
fn a_held_volume_can_still_be_disconnected() -> Result<()> {
    let (shale, _small) = store(320 * MIB)?;
    shale.volume("web", "small", "2G")?;
    let web = shale.connect("web")?;
    let kept = Fill { byte: 1, at: 0, len: 16 * MIB };
    tools::write(&web.uri, &[kept])?;
    let mut writer =
        tools::start_write(&web.uri, &[Fill { byte: 2, at: 64 * MIB, len: 400 * MIB }])?;
    poll_until(PATIENCE, || alarmed(&shale), || "an alarm of the full store".into())?;
    writer.kill()?;
    shale.disconnect("web")?;
    let web = shale.connect("web")?;
    tools::expect(&web.uri, &[kept])?;
    shale.disconnect("web")?;
    shale.delete_volume("web")
}

#[test]
fn a_guest_that_fills_the_store_waits_and_goes_on() -> Result<()> {
    let (shale, _small) = store(640 * MIB)?;
    shale.volume("ballast", "small", "1G")?;
    let ballast = shale.connect("ballast")?;
    shale.volume("web", "small", "1G")?;
    let web = shale.connect("web")?;
    tools::copy_in(&guest::disk_image()?, &web.uri)?;
    let space = shale.json(&["datastore", "show", "small"])?;
    let free = space["space"]["free"].as_u64().context("no free space told")?;
    // Leave the guest 8 MiB; some of what it writes lands in blocks that are there already.
    let take = free.saturating_sub(8 * MIB) / (2 * MIB) * (2 * MIB);
    tools::write(&ballast.uri, &[Fill { byte: 7, at: 0, len: take }])?;
    shale.disconnect("ballast")?;

    let mut guest = Guest::boot(&web.disk())?;
    let job = guest.start(
        "dd if=/dev/urandom of=/data/big bs=1M count=150 && sync && md5sum /data/big > /data/sum",
    )?;
    poll_until(PATIENCE, || alarmed(&shale), || "an alarm of the full store".into())?;
    shale.delete_volume("ballast")?;
    guest.finish(job)?;
    guest.power_off()?;
    let mut guest = Guest::boot(&web.disk())?;
    guest.run("md5sum -c /data/sum")?;
    guest.power_off()
}
