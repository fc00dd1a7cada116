//! The main job on a real guest, step by step, with figures: `cargo xtask demo`.
//!
//! Everything is done by the released binary's CLI, QEMU and qemu-img; all of it happens in a
//! temporary directory that is gone afterwards, and every process is ended by the handle that
//! started it.
#![expect(clippy::print_stdout, reason = "a demo talks")]

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::shale::pause_ms;
use e2e::{Connection, Guest, Shale, guest, qemu, tools};
use serde_json::Value;

const CLONES: u64 = 10;

fn main() -> Result<()> {
    let mut demo = Demo { step: 0 };
    let begin = Instant::now();
    let mut shale = start(&mut demo)?;
    disk(&mut demo, &shale)?;
    let connection = install(&mut demo, &shale)?;
    live_and_die(&mut demo, &shale, &connection)?;
    back(&mut demo, &shale)?;
    clones(&mut demo, &shale)?;
    demo.step("Everything is taken down and away");
    shale.down()?;
    drop(shale);
    demo.note(&format!("done in {}", seconds(begin.elapsed())));
    Ok(())
}

fn start(demo: &mut Demo) -> Result<Shale> {
    demo.step("`shale serve` on an empty directory, and a datastore on another");
    let begin = Instant::now();
    let shale = Shale::start()?;
    demo.note(&format!("up after {}: {}", seconds(begin.elapsed()), shale.url()));
    let dir = shale.datastore("fast")?;
    demo.did(&format!("datastore create fast --dir {}", dir.display()));
    let store = shale.json(&["datastore", "show", "fast"])?;
    let free = bytes(&store["space"], "free")?;
    demo.note(&format!("file system {}, free {}", word(&store, "file_system"), size(free)));
    Ok(shale)
}

fn disk(demo: &mut Demo, shale: &Shale) -> Result<()> {
    demo.step("A thin disk of 20 GiB");
    let begin = Instant::now();
    shale.volume("web", "fast", "20G")?;
    demo.did("volume create web --datastore fast --size 20G --kind thin");
    demo.note(&format!("{}; {}", seconds(begin.elapsed()), space(shale, "web")?));
    Ok(())
}

fn install(demo: &mut Demo, shale: &Shale) -> Result<Connection> {
    demo.step("A bootable Linux is copied onto it by qemu-img over NBD");
    let begin = Instant::now();
    let image = guest::disk_image()?;
    demo.note(&format!("image (made once, kept): {}", seconds(begin.elapsed())));
    let connection = shale.connect("web")?;
    demo.did("volume connect web -o json");
    demo.note(&connection.uri);
    let begin = Instant::now();
    tools::copy_in(&image, &connection.uri)?;
    let image_size = image.metadata()?.len();
    demo.note(&format!(
        "{} copied in {}; {}",
        size(image_size),
        seconds(begin.elapsed()),
        space(shale, "web")?
    ));
    Ok(connection)
}

fn live_and_die(demo: &mut Demo, shale: &Shale, connection: &Connection) -> Result<()> {
    demo.step(&format!("A guest boots from the disk ({})", qemu::accelerator()));
    let mut guest = Guest::boot(&connection.disk())?;
    demo.note(&format!("up after {}: {}", seconds(guest.boot_time), guest.run("uname -sr")?));
    let write = "for i in 1 2 3 4; do dd if=/dev/urandom of=/data/file$i bs=1M count=8; done; \
                 cd /data && md5sum file* > sums && cd / && sync";
    guest.run(write)?;
    demo.note(&format!("it wrote {}", guest.run("cd /data && echo *")?));

    demo.step("A snapshot while it runs and writes");
    let job = guest.start("dd if=/dev/urandom of=/tmp/noise bs=64k count=200 conv=fsync")?;
    let begin = Instant::now();
    let answer = shale.json(&["snapshot", "create", "good", "--volume", "web"])?;
    demo.did("snapshot create good --volume web");
    let took = begin.elapsed();
    guest.finish(job)?;
    let pause = pause_ms(&answer)
        .map_or_else(String::new, |pause| format!("; the guest's I/O paused for {pause:.1} ms"));
    demo.note(&format!("the command took {}{pause}", seconds(took)));
    demo.note(&space(shale, "web")?);

    demo.step("The guest destroys its files");
    guest.run("rm -rf /data/* && dd if=/dev/urandom of=/data/garbage bs=1M count=20 && sync")?;
    demo.note(&format!("left: {}", guest.run("cd /data && echo *")?));
    guest.power_off()
}

fn back(demo: &mut Demo, shale: &Shale) -> Result<()> {
    demo.step("Revert: the guest is off, the disk disconnected");
    shale.disconnect("web")?;
    demo.did("volume disconnect web");
    let begin = Instant::now();
    shale.revert("good", "web")?;
    demo.did("snapshot revert good --volume web");
    demo.note(&format!("{}; {}", seconds(begin.elapsed()), space(shale, "web")?));
    println!("{}", indent(&shale.cli(&["snapshot", "tree", "--volume", "web"])?));

    demo.step("It boots again and its files are back");
    let mut guest = Guest::boot(&shale.connect("web")?.disk())?;
    let sums = guest.run("cd /data && md5sum -c sums")?;
    println!("{}", indent(&sums));
    ensure!(sums.matches(": OK").count() == 4, "not every file is back");
    guest.power_off()?;
    shale.disconnect("web")
}

fn clones(demo: &mut Demo, shale: &Shale) -> Result<()> {
    demo.step("A template, and ten linked clones in one command");
    shale.cli(&["template", "create", "golden", "--from", "web"])?;
    demo.did("template create golden --from web");
    let begin = Instant::now();
    let count = CLONES.to_string();
    let deploy = ["template", "deploy", "golden", "--name", "desk", "--linked", "--count", &count];
    shale.cli(&deploy)?;
    demo.did(&deploy.join(" "));
    let took = begin.elapsed();
    let clones: Vec<Value> = shale
        .list(&["volume", "list"])?
        .into_iter()
        .filter(|volume| word(volume, "name").starts_with("desk"))
        .collect();
    ensure!(clones.len() as u64 == CLONES, "{} clones", clones.len());
    let mut sum = 0;
    for clone in &clones {
        sum += bytes(&clone["space"], "used")?;
    }
    let each = sum / CLONES;
    demo.note(&format!("{CLONES} disks of 20 GiB in {}, {} each", seconds(took), size(each)));

    demo.step("One of them boots");
    let name = word(&clones[0], "name");
    let mut guest = Guest::boot(&shale.connect(&name)?.disk())?;
    guest.run("cd /data && md5sum -c sums")?;
    guest.run("echo mine > /data/own && sync")?;
    demo.note(&format!("{name} up after {}, files are right", seconds(guest.boot_time)));
    guest.power_off()?;
    demo.note(&space(shale, &name)?);
    shale.disconnect(&name)
}

/// Numbers the steps.
struct Demo {
    step: u32,
}

impl Demo {
    fn step(&mut self, what: &str) {
        self.step += 1;
        println!("\n{}. {what}", self.step);
    }

    fn did(&self, command: &str) {
        println!("   $ shale {command}");
    }

    fn note(&self, text: &str) {
        println!("   {text}");
    }
}

fn space(shale: &Shale, volume: &str) -> Result<String> {
    let space = shale.json(&["volume", "show", volume])?["space"].clone();
    let (used, provisioned) = (bytes(&space, "used")?, bytes(&space, "provisioned")?);
    Ok(format!("used {} of {} provisioned", size(used), size(provisioned)))
}

fn bytes(value: &Value, field: &str) -> Result<u64> {
    value[field].as_u64().with_context(|| format!("no {field} in {value}"))
}

fn word(value: &Value, field: &str) -> String {
    value[field].as_str().unwrap_or("?").to_owned()
}

fn seconds(time: Duration) -> String {
    if time < Duration::from_secs(1) {
        format!("{:.1} ms", time.as_secs_f64() * 1e3)
    } else {
        format!("{:.1} s", time.as_secs_f64())
    }
}

fn size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", units[unit]) }
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("   {line}")).collect::<Vec<_>>().join("\n")
}
