//! Imports and exports that do not end well: hostile files, full stores, cancelled tasks, dead nodes.
//! What is refused says why; nothing half-made remains. And the sources that are no files: a pipe, an
//! NBD server.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::mount::SmallDisk;
use e2e::process::{Owned, Signal, poll_until, run, signal, wait_gone};
use e2e::shale::exit;
use e2e::tools::{self, Fill};
use e2e::{Shale, need};
use serde_json::Value;

const MIB: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(120);

fn path(path: &Path) -> Result<&str> {
    path.to_str().context("a path in UTF-8")
}

fn folder(shale: &Shale, name: &str) -> Result<PathBuf> {
    let dir = shale.home().join(name);
    std::fs::create_dir(&dir)?;
    Ok(dir)
}

fn content(shale: &Shale, volume: &str) -> Result<Vec<u8>> {
    let connection = shale.connect_with(volume, &["--read-only"])?;
    let file = shale.home().join("content.raw");
    tools::copy_out(&connection.uri, &file)?;
    shale.disconnect(volume)?;
    let bytes = std::fs::read(&file)?;
    std::fs::remove_file(&file)?;
    Ok(bytes)
}

fn refused(shale: &Shale, from: &Path, more: &[&str], code: i32, says: &str) -> Result<()> {
    let words = ["volume", "import", "no", "--datastore", "fast", "--from", path(from)?];
    let said = shale.refused(&[&words[..], more].concat(), code)?;
    ensure!(said.contains(says), "it says: {said}, not: {says}");
    nothing_left(shale, "fast", &[])
}

/// No volume but `volumes`, no intent, no finding, no layer of nobody.
fn nothing_left(shale: &Shale, store: &str, volumes: &[&str]) -> Result<()> {
    let found = shale.names(&["volume", "list", "--datastore", store])?;
    ensure!(found == volumes, "volumes {found:?}, not {volumes:?}");
    let check = shale.json(&["datastore", "check", store])?;
    ensure!(check.to_string().contains("\"findings\":[]"), "{check}");
    let shown = shale.json(&["datastore", "show", store])?;
    let dir = shown["path"].as_str().context("no path told")?;
    for (kind, wanted) in [("intent", 0), ("layer", volumes.len()), ("record", volumes.len())] {
        let count = std::fs::read_dir(Path::new(dir).join(kind)).map(Iterator::count).unwrap_or(0);
        ensure!(count == wanted, "{count} of {kind} in {dir}, not {wanted}");
    }
    Ok(())
}

fn qemu_img(words: &[&str]) -> Result<()> {
    run(Command::new(need::tool("/usr/bin/qemu-img")?).args(words)).map(drop)
}

#[test]
fn hostile_files_are_refused_in_words() -> Result<()> {
    let shale = Shale::start()?;
    shale.datastore("fast")?;
    let dir = folder(&shale, "files")?;
    let at = |name: &str| dir.join(name);
    // an image that names a file of the host, under every name that makes it one
    let backed = at("backed.qcow2");
    std::fs::write(&backed, [])?;
    let make = ["create", "-q", "-f", "qcow2", "-u", "-b", "/etc/passwd", "-F", "raw"];
    qemu_img(&[&make[..], &[path(&backed)?, "1M"]].concat())?;
    refused(&shale, &backed, &[], exit::CONFLICT, "backing file")?;
    refused(&shale, &backed, &["--format", "qcow2"], exit::CONFLICT, "backing file")?;
    refused(&shale, &backed, &["--format", "vmdk"], exit::CONFLICT, "backing file")?;
    let data_file = at("data.qcow2");
    let option = format!("data_file={}", path(&at("data.raw"))?);
    qemu_img(&["create", "-q", "-f", "qcow2", "-o", &option, path(&data_file)?, "1M"])?;
    refused(&shale, &data_file, &[], exit::CONFLICT, "another file")?;
    refused(&shale, &data_file, &["--allow-backing"], exit::CONFLICT, "another file")?;
    let text = "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n\
                createType=\"monolithicFlat\"\nRW 2048 FLAT \"/etc/passwd\" 0\n";
    std::fs::write(at("flat.vmdk"), text)?;
    refused(&shale, &at("flat.vmdk"), &[], exit::CONFLICT, "names other files")?;
    // a sparse extent that is only an envelope for such a text
    let mut envelope = b"KDMV\x01\0\0\0\x03\0\0\0".to_vec();
    envelope.resize(512, 0);
    envelope[28..36].copy_from_slice(&1_u64.to_le_bytes());
    envelope.extend_from_slice(text.as_bytes());
    envelope.resize(64 << 10, 0);
    std::fs::write(at("envelope.vmdk"), &envelope)?;
    refused(&shale, &at("envelope.vmdk"), &[], exit::CONFLICT, "names other files")?;

    // damaged, cut off, absurd
    std::fs::write(at("empty"), [])?;
    refused(&shale, &at("empty"), &[], exit::USAGE, "0 bytes")?;
    let mut garbage = b"QFI\xfb\0\0\0\x03".to_vec();
    garbage.resize(4096, 0);
    std::fs::write(at("garbage.qcow2"), &garbage)?;
    refused(&shale, &at("garbage.qcow2"), &[], exit::FAILED, "qemu-nbd")?;
    std::fs::write(at("disk.gz"), b"\x1f\x8b\x08 and so on")?;
    refused(&shale, &at("disk.gz"), &[], exit::CONFLICT, "gzip")?;
    let vhd = at("whole.vhd");
    qemu_img(&["create", "-q", "-f", "vpc", "-o", "force_size=on", path(&vhd)?, "2000G"])?;
    let whole = std::fs::read(&vhd)?;
    std::fs::write(at("cut.vhd"), &whole[..4096])?;
    refused(&shale, &at("cut.vhd"), &[], exit::FAILED, "BAT")?;
    refused(&shale, &at("cut.vhd"), &["--kind", "fixed"], exit::FAILED, "BAT")?;
    std::fs::write(at("plain"), vec![7; 4096])?;
    refused(&shale, &at("plain"), &["--format", "vhd"], exit::FAILED, "footer")?;
    refused(&shale, &at("plain"), &["--format", "vdi"], exit::FAILED, "not in the format")?;

    // a guest's disk that starts as an image is a disk where one says so, and nothing is read of it
    let mut guest = std::fs::read(&backed)?;
    guest.resize(usize::try_from(2 * MIB)?, 0);
    std::fs::write(at("guest.raw"), &guest)?;
    refused(&shale, &at("guest.raw"), &[], exit::CONFLICT, "backing file")?;
    let words = ["volume", "import", "guest", "--datastore", "fast", "--format", "raw", "--from"];
    shale.cli(&[&words[..], &[path(&at("guest.raw"))?]].concat())?;
    ensure!(content(&shale, "guest")? == guest, "the guest's disk differs");
    // the same within a fixed VHD: both claims are there, so one has to say
    let fixed = at("fixed.vhd");
    shale.cli(&["volume", "export", "guest", "--to", path(&fixed)?, "--format", "vhd-fixed"])?;
    shale.delete_volume("guest")?;
    refused(&shale, &fixed, &[], exit::CONFLICT, "--format")?;
    std::fs::write(at("clean.qcow2"), [])?;
    qemu_img(&["create", "-q", "-f", "qcow2", path(&at("clean.qcow2"))?, "1M"])?;
    let header = std::fs::read(at("clean.qcow2"))?;
    File::options().write(true).open(&fixed)?.write_all_at(&header[..512], 0)?;
    refused(&shale, &fixed, &[], exit::CONFLICT, "--format")?;
    let words = ["volume", "import", "fixed", "--datastore", "fast", "--format", "vhd", "--from"];
    shale.cli(&[&words[..], &[path(&fixed)?]].concat())?;
    ensure!(content(&shale, "fixed")?[..512] == header[..512], "the VHD's content differs");
    Ok(())
}

#[test]
fn backing_files_are_read_where_that_is_allowed() -> Result<()> {
    let shale = Shale::start()?;
    shale.datastore("fast")?;
    let dir = folder(&shale, "files")?;
    let (base, top) = (dir.join("base.raw"), dir.join("top.qcow2"));
    std::fs::write(&base, vec![5; usize::try_from(MIB)?])?;
    let make = ["create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", path(&top)?];
    qemu_img(&make)?;
    refused(&shale, &top, &[], exit::CONFLICT, "backing file")?;
    let words = ["volume", "import", "web", "--datastore", "fast", "--allow-backing", "--from"];
    shale.cli(&[&words[..], &[path(&top)?]].concat())?;
    ensure!(content(&shale, "web")? == std::fs::read(&base)?, "the content differs");
    Ok(())
}

#[test]
fn without_the_tool_the_error_names_its_package() -> Result<()> {
    let mut shale = Shale::start()?;
    shale.datastore("fast")?;
    let file = shale.home().join("x.qcow2");
    qemu_img(&["create", "-q", "-f", "qcow2", path(&file)?, "1M"])?;
    let nowhere = folder(&shale, "nothing")?;
    shale.down()?;
    shale.serve_with(&[("PATH", path(&nowhere)?)])?;
    refused(&shale, &file, &[], exit::CONFLICT, "apt-get install qemu-utils")?;
    shale.volume("web", "fast", "1M")?;
    let out = shale.home().join("out.vmdk");
    let words = ["volume", "export", "web", "--format", "vmdk", "--to", path(&out)?];
    let said = shale.refused(&words, exit::CONFLICT)?;
    ensure!(said.contains("qemu-utils") && !out.exists(), "{said}");
    Ok(())
}

#[test]
fn a_node_may_be_confined_to_some_directories() -> Result<()> {
    let mut shale = Shale::start()?;
    shale.datastore("fast")?;
    let (inside, outside) = (folder(&shale, "inside")?, folder(&shale, "outside")?);
    for dir in [&inside, &outside] {
        std::fs::write(dir.join("x.raw"), vec![1; 4096])?;
    }
    shale.down()?;
    shale.serve_with(&[("SHALE_TRANSFER_DIRS", path(&inside)?)])?;
    refused(&shale, &outside.join("x.raw"), &[], exit::CONFLICT, "may touch")?;
    std::os::unix::fs::symlink(outside.join("x.raw"), inside.join("link"))?;
    refused(&shale, &inside.join("link"), &[], exit::CONFLICT, "may touch")?;
    let words = ["volume", "import", "web", "--datastore", "fast", "--from"];
    shale.cli(&[&words[..], &[path(&inside.join("x.raw"))?]].concat())?;
    let out = outside.join("out");
    shale.refused(&["volume", "export", "web", "--to", path(&out)?], exit::CONFLICT)?;
    shale.cli(&["volume", "export", "web", "--to", path(&inside.join("out"))?]).map(drop)
}

// --- a pipe ---

/// An import whose data this test sends.
struct Sending {
    cli: Owned,
    input: Option<ChildStdin>,
    task: String,
}

fn begin_sending(shale: &Shale, name: &str, store: &str) -> Result<Sending> {
    let mut command = shale.command()?;
    command.args(["volume", "import", name, "--datastore", store, "--from", "-"]);
    let mut cli =
        Owned::spawn(command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()))?;
    let input = cli.child().stdin.take();
    let task = poll_until(
        PATIENCE,
        || Ok(running(shale)?.and_then(|task| task["id"].as_str().map(str::to_owned))),
        || "the import to begin".into(),
    )?;
    Ok(Sending { cli, input, task })
}

fn running(shale: &Shale) -> Result<Option<Value>> {
    let tasks = shale.list(&["task", "list", "--state", "running"])?;
    Ok(tasks.into_iter().find(|task| task["operation"] == "volume-import"))
}

impl Sending {
    /// Sends so much that some of it must have been taken, and waits until it was.
    fn send_some(&mut self, shale: &Shale) -> Result<()> {
        let input = self.input.as_mut().context("it is still open")?;
        for byte in 1..=8 {
            input.write_all(&vec![byte; usize::try_from(MIB)?])?;
        }
        let moved = || Ok(running(shale)?.filter(|task| task["bytes_done"] != 0));
        poll_until(PATIENCE, moved, || "bytes to be taken".into()).map(drop)
    }
}

#[test]
fn a_pipe_is_imported_and_ends_in_every_way() -> Result<()> {
    let mut shale = Shale::start()?;
    shale.datastore("fast")?;
    let dir = folder(&shale, "files")?;
    // its end is the size: no multiple of anything
    let mut plain = vec![0; usize::try_from(9 * MIB + 1024)?];
    plain[..4096].fill(1);
    let tail = plain.len() - 700;
    plain[tail..].fill(2);
    let raw = dir.join("plain.raw");
    std::fs::write(&raw, &plain)?;
    let send = |name: &str, file: &Path, more: &[&str], code: i32| -> Result<String> {
        let mut command = shale.command()?;
        command.args(["volume", "import", name, "--datastore", "fast", "--from", "-"]).args(more);
        let output = command.stdin(File::open(file)?).output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(code), "{name} ended with {}: {said}", output.status);
        Ok(said)
    };
    let mut made = Vec::new();
    for kind in ["thin", "lazy", "fixed"] {
        send(kind, &raw, &["--kind", kind], exit::OK)?;
        ensure!(content(&shale, kind)? == plain, "{kind} differs");
        made.push(kind);
    }
    let used = |name: &str| -> Result<u64> {
        let shown = shale.json(&["volume", "show", name])?;
        shown["space"]["used"].as_u64().context("no space told")
    };
    ensure!(used("thin")? < 3 * MIB, "zeros take space: {}", used("thin")?);
    // VHDs as they come, ours and QEMU's
    for format in ["vhd", "vhd-fixed"] {
        let file = dir.join(format);
        shale.cli(&["volume", "export", "thin", "--to", path(&file)?, "--format", format])?;
        send(format, &file, &[], exit::OK)?;
        ensure!(content(&shale, format)? == plain, "{format} differs");
        made.push(format);
    }
    // the same without a file between
    for format in ["raw", "vhd", "vhd-fixed"] {
        let name = format!("piped-{format}");
        let mut from = shale.command()?;
        from.args(["volume", "export", "thin", "--to", "-", "--format", format]);
        let mut from = Owned::spawn(from.stdout(Stdio::piped()))?;
        let mut to = shale.command()?;
        to.args(["volume", "import", &name, "--datastore", "fast", "--from", "-"]);
        let output = to.stdin(from.child().stdout.take().context("its output")?).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        ensure!(from.wait(PATIENCE)?.success(), "the export failed");
        ensure!(content(&shale, &name)? == plain, "{name} differs");
        shale.delete_volume(&name)?;
    }
    let said = shale
        .refused(&["volume", "export", "thin", "--to", "-", "--format", "qcow2"], exit::CONFLICT)?;
    ensure!(said.contains("stream"), "{said}");
    let file = dir.join("qemu.vhd");
    let convert = ["convert", "-f", "raw", "-O", "vpc", "-o", "force_size=on"];
    qemu_img(&[&convert[..], &[path(&raw)?, path(&file)?]].concat())?;
    send("qemu", &file, &[], exit::OK)?;
    ensure!(content(&shale, "qemu")? == plain, "what QEMU wrote differs");
    made.push("qemu");
    let file = dir.join("x.qcow2");
    qemu_img(&["create", "-q", "-f", "qcow2", path(&file)?, "1M"])?;
    let said = send("no", &file, &[], exit::CONFLICT)?;
    ensure!(said.contains("stream"), "{said}");
    let cut = dir.join("cut.vhd");
    let whole = std::fs::read(dir.join("vhd"))?;
    std::fs::write(&cut, &whole[..whole.len() / 2])?;
    let said = send("no", &cut, &[], exit::FAILED)?;
    ensure!(said.contains("ends after"), "{said}");
    // the name is refused before the data is sent
    send("thin", &raw, &[], exit::CONFLICT)?;
    made.sort_unstable();
    nothing_left(&shale, "fast", &made)?;

    // a cancel, a sender that goes, a node that dies: in the middle
    let mut sending = begin_sending(&shale, "web", "fast")?;
    sending.send_some(&shale)?;
    shale.cli(&["task", "cancel", &sending.task])?;
    let status = sending.cli.wait(PATIENCE)?;
    ensure!(status.code() == Some(exit::FAILED), "{status}");
    nothing_left(&shale, "fast", &made)?;

    let mut sending = begin_sending(&shale, "web", "fast")?;
    sending.send_some(&shale)?;
    sending.cli.kill()?;
    let shown = shale.json(&["task", "show", &sending.task])?;
    ensure!(shown["operation"] == "volume-import", "{shown}");
    poll_until(
        PATIENCE,
        || Ok(running(&shale)?.is_none().then_some(())),
        || "the import to end".into(),
    )?;
    nothing_left(&shale, "fast", &made)?;

    let mut sending = begin_sending(&shale, "web", "fast")?;
    sending.send_some(&shale)?;
    let node = shale.node_pid()?;
    signal(node, Signal::KILL)?;
    wait_gone(node, PATIENCE)?;
    let status = sending.cli.wait(PATIENCE)?;
    ensure!(!status.success(), "{status}");
    nothing_left(&shale, "fast", &made)?;
    shale.down()
}

#[test]
fn a_store_that_fills_up_in_the_middle_keeps_nothing() -> Result<()> {
    let small = SmallDisk::new(160 * MIB)?;
    let shale = Shale::start()?;
    let dir = small.dir().join("store");
    std::fs::create_dir(&dir)?;
    shale.cli(&["datastore", "create", "fast", "--dir", path(&dir)?])?;
    for kind in ["thin", "fixed"] {
        let mut head = Command::new("head");
        head.args(["-c", "300M", "/dev/urandom"]).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut head = Owned::spawn(&mut head)?;
        let mut command = shale.command()?;
        command.args(["volume", "import", "web", "--datastore", "fast", "--kind", kind]);
        let data = head.child().stdout.take().context("its output")?;
        let output = command.args(["--from", "-"]).stdin(data).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(exit::NO_SPACE), "{kind}: {}: {said}", output.status);
        nothing_left(&shale, "fast", &[])?;
    }

    // the same the other way: a file system that a file does not fit on
    let home = shale.datastore("large")?;
    shale.volume("big", "large", "200M")?;
    tools::write(&shale.connect("big")?.uri, &[Fill { byte: 9, at: 0, len: 190 * MIB }])?;
    shale.disconnect("big")?;
    for format in ["raw", "vhd", "qcow2"] {
        let to = small.dir().join("big");
        let words = ["volume", "export", "big", "--to", path(&to)?, "--format", format];
        shale.refused(&words, exit::NO_SPACE)?;
        let names: Vec<_> = std::fs::read_dir(small.dir())?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name != "store" && name != "lost+found")
            .collect();
        ensure!(names.is_empty(), "{format}: {names:?} are left");
    }
    ensure!(home.exists());
    Ok(())
}

#[test]
fn an_nbd_server_is_a_source() -> Result<()> {
    let shale = Shale::start()?;
    shale.datastore("fast")?;
    let size = 65 * MIB + 512;
    shale.volume("from", "fast", &size.to_string())?;
    let connection = shale.connect("from")?;
    let fills = [
        Fill { byte: 1, at: 0, len: 4096 },
        Fill { byte: 2, at: 40 * MIB - 512, len: 3 * MIB },
        Fill { byte: 3, at: size - 512, len: 512 },
    ];
    tools::write(&connection.uri, &fills)?;
    shale.disconnect("from")?;
    let wanted = content(&shale, "from")?;
    let import = |name: &str, uri: &str| -> Result<()> {
        shale.cli(&["volume", "import", name, "--datastore", "fast", "--from", uri])?;
        let shown = shale.json(&["volume", "show", name])?;
        let used = shown["space"]["used"].as_u64().context("no space told")?;
        ensure!(used < 10 * MIB, "{name}: holes take space: {used}");
        ensure!(content(&shale, name)? == wanted, "{name} differs");
        Ok(())
    };
    let connection = shale.connect_with("from", &["--read-only"])?;
    import("unix", &connection.uri)?;
    shale.disconnect("from")?;
    let answer = shale.json(&["volume", "connect", "from", "--read-only", "--tcp"])?;
    import("tcp", answer["uri"].as_str().context("no uri")?)?;
    shale.disconnect("from")?;
    // somebody else's server
    let raw = shale.home().join("x.raw");
    std::fs::write(&raw, &wanted)?;
    let socket = shale.home().join("qemu.sock");
    let mut server = Command::new(need::tool("/usr/bin/qemu-nbd")?);
    server.args(["-r", "-f", "raw", "-t", "-x", "disk", "-k"]).arg(&socket).arg(&raw);
    let _server = Owned::spawn(&mut server)?;
    poll_until(
        PATIENCE,
        || Ok(std::os::unix::net::UnixStream::connect(&socket).ok().map(drop)),
        || "qemu-nbd to listen".into(),
    )?;
    import("qemu", &format!("nbd+unix:///disk?socket={}", path(&socket)?))?;
    // what is not there
    for (uri, says) in [
        (format!("nbd+unix:///none?socket={}", path(&socket)?), "refused"),
        ("nbd+unix:///?socket=/nonexistent".to_owned(), "connect"),
        ("nbd://".to_owned(), "no host"),
    ] {
        let words = ["volume", "import", "no", "--datastore", "fast", "--from", &uri];
        let said = shale.try_cli(&words)?;
        ensure!(said.code != exit::OK && said.err.contains(says), "{uri}: {said:?}");
    }
    Ok(())
}
