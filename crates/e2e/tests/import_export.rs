//! Volumes into files and files into volumes: every pair of formats keeps every byte and every hole,
//! other people's tools read what is written, hostile files are refused in words, and what fails, is
//! cancelled or killed leaves nothing.

use std::fs::File;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use e2e::process::run;
use e2e::shale::exit;
use e2e::{Shale, need, tools};

const MIB: u64 = 1 << 20;
/// No multiple of a block, of a page, or of a grain of any format.
const ODD: u64 = 5 * MIB + 3 * 512;
const FORMATS: [&str; 7] = ["raw", "vhd", "vhd-fixed", "qcow2", "vmdk", "vhdx", "vdi"];

fn path(path: &Path) -> Result<&str> {
    path.to_str().context("a path in UTF-8")
}

/// A disk with data at its ends and in the middle, and holes between.
fn pattern(size: u64) -> Result<Vec<u8>> {
    let mut disk = vec![0; usize::try_from(size)?];
    let len = disk.len();
    for (at, byte) in [(0, 1), (70_000, 2), (len / 2 / 512 * 512, 3), (len - 512, 4)] {
        let at = at.min(len - 512);
        disk[at..at + 512].fill(byte);
    }
    Ok(disk)
}

/// A sparse file of these bytes.
fn write_sparse(path: &Path, bytes: &[u8]) -> Result<()> {
    let file = File::create(path)?;
    file.set_len(bytes.len() as u64)?;
    for (index, chunk) in bytes.chunks(4096).enumerate() {
        if chunk.iter().any(|byte| *byte != 0) {
            file.write_all_at(chunk, index as u64 * 4096)?;
        }
    }
    Ok(())
}

fn used(path: &Path) -> Result<u64> {
    Ok(std::fs::metadata(path)?.blocks() * 512)
}

fn import(shale: &Shale, name: &str, from: &Path, more: &[&str]) -> Result<()> {
    let words = ["volume", "import", name, "--datastore", "fast", "--from", path(from)?];
    shale.cli(&[&words[..], more].concat()).map(drop)
}

fn import_refused(shale: &Shale, from: &Path, more: &[&str], code: i32, says: &str) -> Result<()> {
    let words = ["volume", "import", "no", "--datastore", "fast", "--from", path(from)?];
    let said = shale.refused(&[&words[..], more].concat(), code)?;
    ensure!(said.contains(says), "it says: {said}, not: {says}");
    ensure!(!shale.names(&["volume", "list"])?.contains(&"no".to_owned()), "a volume is left");
    Ok(())
}

fn export(shale: &Shale, name: &str, to: &Path, more: &[&str]) -> Result<()> {
    let words = ["volume", "export", name, "--to", path(to)?];
    shale.cli(&[&words[..], more].concat()).map(drop)
}

/// What the volume, or its snapshot, holds, through its own export as a guest would read it.
fn content(shale: &Shale, volume: &str, snapshot: Option<&str>) -> Result<Vec<u8>> {
    let more: Vec<&str> =
        snapshot.iter().flat_map(|s| ["--snapshot", *s]).chain(["--read-only"]).collect();
    let connection = shale.connect_with(volume, &more)?;
    let file = shale.home().join("content.raw");
    tools::copy_out(&connection.uri, &file)?;
    shale.disconnect(volume)?;
    let bytes = std::fs::read(&file)?;
    std::fs::remove_file(&file)?;
    Ok(bytes)
}

fn same(found: &[u8], wanted: &[u8], what: &str) -> Result<()> {
    ensure!(found.len() == wanted.len(), "{what}: {} bytes, not {}", found.len(), wanted.len());
    let differs = found.chunks(512).zip(wanted.chunks(512)).position(|(a, b)| a != b);
    ensure!(differs.is_none(), "{what}: sector {} differs", differs.unwrap_or(0));
    Ok(())
}

/// Nothing but what was there: no file beside `keep`, no finding, no layer of nobody.
fn nothing_left(shale: &Shale, dir: &Path, keep: &[&str]) -> Result<()> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        found.push(entry?.file_name().to_string_lossy().into_owned());
    }
    found.retain(|name| !keep.contains(&name.as_str()));
    ensure!(found.is_empty(), "left in {}: {found:?}", dir.display());
    let check = shale.json(&["datastore", "check", "fast"])?;
    let findings = check["result"]["findings"].as_array().or(check["findings"].as_array());
    ensure!(findings.is_some_and(Vec::is_empty), "{check}");
    let intents = shale.home().join("fast/intent");
    let open = std::fs::read_dir(intents).map(Iterator::count).unwrap_or(0);
    ensure!(open == 0, "{open} intents are left");
    Ok(())
}

fn folder(shale: &Shale, name: &str) -> Result<PathBuf> {
    let dir = shale.home().join(name);
    std::fs::create_dir(&dir)?;
    Ok(dir)
}

/// Every size and shape of disk through every format, out and back: the bytes are the same, other
/// people's tools see them in the file, and holes stay holes on both ways.
#[test]
fn every_format_goes_out_and_comes_back_as_it_was() -> Result<()> {
    let shale = Shale::start()?;
    shale.datastore("fast")?;
    let dir = folder(&shale, "files")?;
    for (round, size) in [ODD, 512, 2 * MIB, 4 * MIB + 512].into_iter().enumerate() {
        round_trips(&shale, &dir, &format!("v{round}"), &pattern(size)?)?;
    }
    for (name, disk) in [("clumps", clumps()?), ("scattered", scattered()?)] {
        round_trips(&shale, &dir, name, &disk)?;
    }
    Ok(())
}

/// 6 MiB of data in three places of 64 MiB and a sector.
fn clumps() -> Result<Vec<u8>> {
    let mut disk = vec![0; usize::try_from(64 * MIB + 512)?];
    for at in [0_usize, 20 << 20, 50 << 20] {
        disk[at..at + (2 << 20)].fill(9);
    }
    Ok(disk)
}

/// Every 300 KiB, 40 KiB: what a file system of small files looks like.
fn scattered() -> Result<Vec<u8>> {
    let mut disk = vec![0; usize::try_from(32 * MIB)?];
    for piece in disk.chunks_mut(300 << 10) {
        let len = piece.len().min(40 << 10);
        piece[..len].fill(7);
    }
    Ok(disk)
}

fn round_trips(shale: &Shale, dir: &Path, name: &str, plain: &[u8]) -> Result<()> {
    let raw = dir.join(format!("{name}.img"));
    write_sparse(&raw, plain)?;
    let source = used(&raw)?;
    import(shale, name, &raw, &[])?;
    near(layer_space(shale, name)?, source, plain, "raw", &format!("volume {name}"))?;
    for format in FORMATS {
        let what = format!("{name}, {format}");
        let file = dir.join(format!("{name}.{format}"));
        export(shale, name, &file, &["--format", format])?;
        near(used(&file)?, source, plain, format, &what)?;
        let mode = std::fs::metadata(&file)?.mode() & 0o777;
        ensure!(mode == 0o600, "{what} can be read by others: {mode:o}");
        let driver = if ["vhd", "vhd-fixed"].contains(&format) { "vpc" } else { format };
        let mut compare = Command::new(need::tool("/usr/bin/qemu-img")?);
        run(compare.args(["compare", "-f", "raw", "-F", driver]).arg(&raw).arg(&file))?;

        let back = format!("back-{format}");
        import(shale, &back, &file, &[])?;
        // whatever the file's own grain made of it, a volume holds no more than the source
        near(layer_space(shale, &back)?, source, plain, "raw", &format!("{what}, back"))?;
        let bytes = content(shale, &back, None)?;
        // VHDX counts in MiB and VMDK in grains: then zeros follow
        ensure!(bytes.len() >= plain.len(), "{what}: {} bytes", bytes.len());
        let (start, rest) = bytes.split_at(plain.len());
        same(start, plain, &what)?;
        ensure!(rest.iter().all(|byte| *byte == 0), "{what}: something follows");
        let exact = ["raw", "vhd", "vhd-fixed", "qcow2"].contains(&format);
        ensure!(!exact || rest.is_empty(), "{what}: {} became {}", plain.len(), bytes.len());
        shale.delete_volume(&back)?;
        std::fs::remove_file(&file)?;
    }
    Ok(())
}

/// `found` bytes are what `source` bytes of data may take: 5 % more and some headers, and what the
/// format cannot do without (docs/import-export.md has the figures).
fn near(found: u64, source: u64, plain: &[u8], format: &str, what: &str) -> Result<()> {
    // pieces of so many bytes are stored whole
    let whole = |grain: usize| {
        let pieces = plain.chunks(grain).filter(|piece| piece.iter().any(|byte| *byte != 0));
        (pieces.count() * grain) as u64
    };
    let (data, headers) = match format {
        "qcow2" => (whole(64 << 10), 320 << 10),
        "vmdk" => (whole(64 << 10), 192 << 10),
        "vdi" => (whole(1 << 20), 64 << 10),
        "vhdx" => (source, 2 * MIB),
        _ => (source, 192 << 10),
    };
    let most = data + data / 20 + headers;
    ensure!(found <= most, "{what}: {found} bytes for {source} of data, at most {most}");
    Ok(())
}

/// What the volume takes on the datastore.
fn layer_space(shale: &Shale, volume: &str) -> Result<u64> {
    let shown = shale.json(&["volume", "show", volume])?;
    shown["space"]["used"].as_u64().context("no space told")
}

#[test]
fn kinds_are_kept_and_files_are_not_replaced() -> Result<()> {
    let shale = Shale::start()?;
    shale.datastore("fast")?;
    let dir = folder(&shale, "files")?;
    let plain = pattern(ODD)?;
    let raw = dir.join("plain.img");
    write_sparse(&raw, &plain)?;
    for kind in ["fixed", "lazy"] {
        import(&shale, kind, &raw, &["--kind", kind])?;
        same(&content(&shale, kind, None)?, &plain, kind)?;
        let shown = shale.json(&["volume", "show", kind])?;
        ensure!(shown["kind"] == kind, "{shown}");
        let used = shown["space"]["used"].as_u64().context("no space told")?;
        ensure!(used >= ODD, "{kind} takes {used}");
    }
    // a raw file that ends within a sector
    let ragged = dir.join("ragged.img");
    std::fs::write(&ragged, &plain[..plain.len() - 100])?;
    import(&shale, "ragged", &ragged, &[])?;
    let mut padded = plain.clone();
    let cut = padded.len() - 100;
    padded[cut..].fill(0);
    same(&content(&shale, "ragged", None)?, &padded, "ragged")?;

    let out = dir.join("out.vhd");
    std::fs::write(&out, b"mine")?;
    let words = ["volume", "export", "lazy", "--to", path(&out)?];
    let said = shale.refused(&words, exit::CONFLICT)?;
    ensure!(said.contains("--force") && std::fs::read(&out)? == b"mine", "{said}");
    export(&shale, "lazy", &out, &["--force"])?;
    ensure!(std::fs::metadata(&out)?.len() > ODD, "it was not replaced");
    nothing_left(&shale, &dir, &["plain.img", "ragged.img", "out.vhd"])?;

    // a connected volume changes: a snapshot of it does not
    shale.connect("lazy")?;
    let live = dir.join("live.raw");
    let words = ["volume", "export", "lazy", "--to", path(&live)?, "--format", "raw"];
    let said = shale.refused(&words, exit::CONFLICT)?;
    ensure!(said.contains("snapshot create"), "{said}");
    shale.snapshot("now", "lazy")?;
    export(&shale, "lazy", &live, &["--format", "raw", "--snapshot", "now"])?;
    same(&std::fs::read(&live)?, &plain, "the snapshot")
}

#[test]
fn whoever_may_not_manage_storage_names_no_paths() -> Result<()> {
    let shale = Shale::start()?;
    let store = shale.datastore("fast")?;
    let dir = folder(&shale, "files")?;
    let raw = dir.join("plain.img");
    std::fs::write(&raw, pattern(MIB)?)?;
    let answer = shale.json(&["token", "create", "ops", "--role", "operator"])?;
    let secret = answer["secret"].as_str().context("no secret")?.to_owned();
    let operator = |words: &[&str], input: Stdio| {
        let mut command = shale.command()?;
        let output = command.args(words).env("SHALE_TOKEN", &secret).stdin(input).output()?;
        anyhow::Ok(output.status.code().unwrap_or(-1))
    };
    let to_import = |name, from| ["volume", "import", name, "--datastore", "fast", "--from", from];
    ensure!(operator(&to_import("a", path(&raw)?), Stdio::null())? == exit::DENIED);
    ensure!(operator(&to_import("a", "nbd://127.0.0.1:1/"), Stdio::null())? == exit::DENIED);
    let out = dir.join("out");
    shale.volume("web", "fast", "1M")?;
    let words = ["volume", "export", "web", "--to", path(&out)?];
    ensure!(operator(&words, Stdio::null())? == exit::DENIED && !out.exists());
    // their own bytes they may send
    let input = Stdio::from(File::open(&raw)?);
    ensure!(operator(&to_import("a", "-"), input)? == exit::OK);
    same(&content(&shale, "a", None)?, &pattern(MIB)?, "the stream")?;

    // and nobody names what is Shale's own, not by a link either
    let token = shale.data().join("admin.token");
    import_refused(&shale, &token, &["--format", "raw"], exit::CONFLICT, "belongs to Shale")?;
    let link = dir.join("link");
    std::os::unix::fs::symlink(&token, &link)?;
    import_refused(&shale, &link, &["--format", "raw"], exit::CONFLICT, "belongs to Shale")?;
    let inside = store.join("x.vhd");
    let words = ["volume", "export", "web", "--to", path(&inside)?];
    shale.refused(&words, exit::CONFLICT)?;
    for (wrong, code, says) in [
        (dir.clone(), exit::CONFLICT, "regular"),
        (dir.join("missing"), exit::NOT_FOUND, "cannot read"),
        (PathBuf::from("/dev/zero"), exit::CONFLICT, "regular"),
    ] {
        import_refused(&shale, &wrong, &[], code, says)?;
    }
    Ok(())
}
