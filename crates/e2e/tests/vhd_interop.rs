//! Layer files as they lie on disk, read by QEMU and libvhdi, and written by QEMU: other people's
//! code sees exactly the disks that ours does. Nothing runs here; the files are made over the image
//! API by the plainest writer there is.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use e2e::need;
use e2e::process::{run, text};
use image::{
    BLOCK_STRIDE_SECTORS, Bitmap, ChainReader, Content, Kind, LayerImage, LayerReader, Mapped,
    NewImage, Opener, ParentRef, Sector, SectorCount, Step, Timestamp, Trust, Uuid, bat, create,
};

const NOW: Timestamp = Timestamp(800_000_000);

/// A layer file being written.
struct Layer {
    path: PathBuf,
    file: File,
    image: LayerImage,
}

impl Layer {
    fn create(dir: &Path, new: &NewImage) -> Result<Self> {
        let path = dir.join(format!("{}.vhd", new.image.uuid));
        let file = File::options().read(true).write(true).create_new(true).open(&path)?;
        file.set_len(new.len)?;
        for (at, bytes) in &new.pieces {
            file.write_all_at(bytes, at.bytes())?;
        }
        Ok(Self { path, file, image: new.image.clone() })
    }

    fn dynamic(dir: &Path, id: u128, sectors: u64) -> Result<Self> {
        Self::create(dir, &create::dynamic(Uuid::from_u128(id), SectorCount(sectors), NOW)?)
    }

    fn child(dir: &Path, id: u128, parent: &Self, sectors: u64) -> Result<Self> {
        let parent = ParentRef::sibling(parent.image.uuid);
        let (id, size) = (Uuid::from_u128(id), SectorCount(sectors));
        Self::create(dir, &create::differencing(id, size, NOW, &parent)?)
    }

    fn write(&self, sector: u64, bytes: &[u8; 512]) -> Result<()> {
        if self.image.kind == Kind::Fixed {
            return Ok(self.file.write_all_at(bytes, sector * 512)?);
        }
        let (block, within) = self.image.locate(Sector(sector));
        let entry_at = self.image.bat_at.bytes() + bat::offset_of(block);
        let mut entry = [0; 4];
        self.file.read_exact_at(&mut entry, entry_at)?;
        let mut bits = [0; 512];
        let entry = if let Some(entry) = bat::decode_entry(entry) {
            self.file.read_exact_at(&mut bits, entry.bytes())?;
            entry
        } else {
            let start = self.end()?.page_up();
            self.file.set_len(start.plus(BLOCK_STRIDE_SECTORS).bytes())?;
            if self.image.kind == Kind::Dynamic {
                bits = *Bitmap::full().as_bytes();
            }
            let entry = start.plus(7);
            self.file.write_all_at(&bat::encode_entry(Some(entry)), entry_at)?;
            entry
        };
        let mut bits = Bitmap::from_bytes(&bits);
        bits.set_range(within, 1);
        self.file.write_all_at(bits.as_bytes(), entry.bytes())?;
        let at = self.image.data_at(entry).plus(u64::from(within));
        Ok(self.file.write_all_at(bytes, at.bytes())?)
    }

    fn end(&self) -> Result<Sector> {
        Ok(Sector::at_or_after(self.file.metadata()?.len()))
    }

    fn close(&self) -> Result<()> {
        if self.image.kind == Kind::Fixed {
            return Ok(());
        }
        let (at, footer) = create::tail_for(&self.image, self.end()?);
        Ok(self.file.write_all_at(&footer, at.bytes())?)
    }

    fn path(&self) -> Result<&str> {
        self.path.to_str().context("a path in UTF-8")
    }
}

/// Numbers from a seed: the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }

    /// Writes runs of `grain` sectors at random into the layer and into the plain disk, its ends
    /// included.
    fn fill(&mut self, layer: &Layer, plain: &mut [u8], grain: u64) -> Result<()> {
        let sectors = plain.len() as u64 / 512;
        let ends = [0, sectors - 1];
        for first in (0..40).map(|_| self.below(sectors)).chain(ends).collect::<Vec<_>>() {
            let bytes = [u8::try_from(self.below(256))?; 512];
            let first = first / grain * grain;
            for sector in first..(first + grain).min(sectors) {
                layer.write(sector, &bytes)?;
                let at = usize::try_from(sector * 512)?;
                plain[at..at + 512].copy_from_slice(&bytes);
            }
        }
        Ok(())
    }
}

fn disk(sectors: u64) -> Result<Vec<u8>> {
    Ok(vec![0; usize::try_from(sectors * 512)?])
}

fn virtual_size(path: &str) -> Result<u64> {
    let mut info = Command::new(need::tool("/usr/bin/qemu-img")?);
    let output = text(info.args(["info", "-f", "vpc", "--output=json", path]))?;
    let json: serde_json::Value = serde_json::from_str(&output)?;
    json["virtual-size"].as_u64().context("a size")
}

/// QEMU sees the size and every byte.
fn qemu_agrees(path: &str, plain: &[u8], dir: &Path) -> Result<()> {
    ensure!(virtual_size(path)? == plain.len() as u64, "QEMU sees {} bytes", virtual_size(path)?);
    let raw = dir.join("plain.raw");
    std::fs::write(&raw, plain)?;
    let mut compare = Command::new(need::tool("/usr/bin/qemu-img")?);
    run(compare.args(["compare", "-f", "raw", "-F", "vpc"]).arg(&raw).arg(path))?;
    let out = dir.join("out.raw");
    let mut convert = Command::new(need::tool("/usr/bin/qemu-img")?);
    run(convert.args(["convert", "-f", "vpc", "-O", "raw", path]).arg(&out))?;
    ensure!(std::fs::read(&out)? == plain, "QEMU converted {path} to something else");
    Ok(())
}

const READ_BY_LIBVHDI: &str = "
import pyvhdi, sys
# the base first, so that each file can be given its parent, and all kept, as it does not keep it
chain = []
for path in sys.argv[2:]:
    disk = pyvhdi.file()
    disk.open(path)
    if chain:
        disk.set_parent(chain[-1])
    chain.append(disk)
size = disk.get_media_size()
with open(sys.argv[1], 'wb') as out:
    at = 0
    while at < size:
        data = disk.read_buffer_at_offset(min(1 << 20, size - at), at)
        assert data, 'libvhdi read nothing'
        out.write(data)
        at += len(data)
";

/// libvhdi sees every byte of the chain, the base first.
fn libvhdi_agrees(base_first: &[Layer], plain: &[u8], dir: &Path) -> Result<()> {
    need::tool("/usr/share/doc/python3-libvhdi/copyright")?;
    let out = dir.join("libvhdi.raw");
    let mut python = Command::new(need::tool("/usr/bin/python3")?);
    python.args(["-c", READ_BY_LIBVHDI]).arg(&out);
    python.args(base_first.iter().map(|layer| &layer.path));
    run(&mut python)?;
    let read = std::fs::read(&out)?;
    ensure!(read.len() == plain.len(), "libvhdi sees {} bytes of {}", read.len(), plain.len());
    let differs = read.chunks(512).zip(plain.chunks(512)).position(|(read, plain)| read != plain);
    ensure!(differs.is_none(), "libvhdi sees another sector {}", differs.unwrap_or(0));
    Ok(())
}

/// We see every byte of the chain, the leaf first, as of a stranger's file.
fn we_agree(leaf_first: &[&Path], plain: &[u8]) -> Result<()> {
    let files: Vec<File> = leaf_first.iter().map(File::open).collect::<Result<_, _>>()?;
    let read = |layer: usize, at: u64, len: u64| -> Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(len)?];
        files[layer].read_exact_at(&mut bytes, at)?;
        Ok(bytes)
    };
    let mut layers = Vec::new();
    for (layer, file) in files.iter().enumerate() {
        let file_len = file.metadata()?.len();
        let mut opener = Opener::new(file_len, Trust::Foreign);
        let image = loop {
            match opener.step()? {
                Step::Read { at, len } => opener.supply(&read(layer, at, len)?)?,
                Step::Done(image) => break image,
            }
        };
        layers.push(LayerReader::new(image, file_len));
    }
    let mut chain = ChainReader::new(layers)?;
    ensure!(chain.size().bytes() == plain.len() as u64, "we see {:?}", chain.size());
    let mut at = Sector(0);
    while at.0 < chain.size().0 {
        match chain.map(at, SectorCount(chain.size().0 - at.0))? {
            Mapped::Read { layer, at, len } => chain.supply(layer, &read(layer, at, len)?)?,
            Mapped::Extent { len, content } => {
                let bytes = match content {
                    Content::Data { layer, at } => read(layer, at.bytes(), len.bytes())?,
                    Content::Zero | Content::Parent => disk(len.0)?,
                };
                let from = usize::try_from(at.bytes())?;
                ensure!(
                    bytes == plain[from..from + bytes.len()],
                    "we see something else at {at:?}"
                );
                at = at.plus(len.0);
            }
        }
    }
    Ok(())
}

#[test]
fn qemu_and_libvhdi_read_our_dynamic_layers() -> Result<()> {
    // sizes: one sector, one that a geometry tells, one that none does, several blocks with a rest
    for (seed, sectors) in [(1, 1), (2, 68), (3, 20_480), (4, 4096 * 11 + 77)] {
        let dir = tempfile::tempdir()?;
        let layer = Layer::dynamic(dir.path(), seed.into(), sectors)?;
        let mut plain = disk(sectors)?;
        Random(seed).fill(&layer, &mut plain, 1)?;
        // QEMU looks at the start first, so it reads a file that was not closed, too
        qemu_agrees(layer.path()?, &plain, dir.path())?;
        layer.close()?;
        qemu_agrees(layer.path()?, &plain, dir.path())?;
        we_agree(&[&layer.path], &plain)?;
        libvhdi_agrees(&[layer], &plain, dir.path())?;
    }
    Ok(())
}

#[test]
fn qemu_and_libvhdi_read_our_fixed_layers() -> Result<()> {
    for (seed, sectors) in [(1, 1), (2, 68), (3, 20_481)] {
        let dir = tempfile::tempdir()?;
        let new = create::fixed(Uuid::from_u128(seed.into()), SectorCount(sectors), NOW)?;
        let layer = Layer::create(dir.path(), &new)?;
        let mut plain = disk(sectors)?;
        Random(seed).fill(&layer, &mut plain, 1)?;
        qemu_agrees(layer.path()?, &plain, dir.path())?;
        we_agree(&[&layer.path], &plain)?;
        libvhdi_agrees(&[layer], &plain, dir.path())?;
    }
    Ok(())
}

/// In runs of 8 sectors: after a set bit in a byte of a bitmap, libvhdi 20210425 takes the rest of
/// that byte for set as well (measured), and reads the child where it should read the parent.
#[test]
fn libvhdi_reads_our_chains() -> Result<()> {
    for depth in [1u64, 3, 33] {
        let dir = tempfile::tempdir()?;
        let mut random = Random(depth);
        let (sectors, grain) = (4096 * 3 + 5, 8);
        let mut plain = disk(sectors)?;
        let mut layers = vec![Layer::dynamic(dir.path(), 1, sectors)?];
        random.fill(&layers[0], &mut plain, grain)?;
        for id in 0..depth {
            let parent = layers.last().context("a base")?;
            let layer = Layer::child(dir.path(), u128::from(id) + 2, parent, sectors)?;
            random.fill(&layer, &mut plain, grain)?;
            layers.push(layer);
        }
        layers.iter().try_for_each(Layer::close)?;
        let leaf_first: Vec<&Path> = layers.iter().rev().map(|l| l.path.as_path()).collect();
        we_agree(&leaf_first, &plain)?;
        libvhdi_agrees(&layers, &plain, dir.path())?;
    }
    Ok(())
}

/// After growth the BAT stands behind the blocks; it is still where the header says.
#[test]
fn qemu_and_libvhdi_read_a_grown_layer() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (old, new) = (4096 * 1024, 4096 * 1024 + 8);
    let mut layer = Layer::dynamic(dir.path(), 1, old)?;
    layer.write(5, &[5; 512])?;
    let free = layer.end()?.page_up();
    let grown = create::grow(&layer.image, SectorCount(new), free)?;
    ensure!(grown.bat_moved, "one entry more needs one page more");
    let mut table = disk(grown.image.first_free.0 - grown.image.bat_at.0)?;
    table.fill(0xff);
    let old_table = usize::try_from(layer.image.bat_bytes())?;
    layer.file.read_exact_at(&mut table[..old_table], layer.image.bat_at.bytes())?;
    layer.file.write_all_at(&table, grown.image.bat_at.bytes())?;
    for (at, bytes) in image::headers_for(&grown.image) {
        layer.file.write_all_at(&bytes, at.bytes())?;
    }
    layer.image = grown.image;
    layer.write(new - 1, &[6; 512])?;
    layer.close()?;
    // 2 GiB: compared where the data is, by QEMU alone
    ensure!(
        virtual_size(layer.path()?)? == new * 512,
        "QEMU sees {}",
        virtual_size(layer.path()?)?
    );
    let mut io = Command::new(need::tool("/usr/bin/qemu-io")?);
    io.args(["-r", "-f", "vpc", "-c", "read -P 5 2560 512", "-c", "read -P 0 0 2560"]);
    io.args(["-c", &format!("read -P 6 {} 512", (new - 1) * 512)]);
    let output = text(io.arg(layer.path()?))?;
    ensure!(!output.contains("verification failed"), "{output}");
    let mut python = Command::new(need::tool("/usr/bin/python3")?);
    let script = "
import pyvhdi, sys
disk = pyvhdi.file()
disk.open(sys.argv[1])
size = disk.get_media_size()
assert disk.read_buffer_at_offset(512, 2560) == b'\\5' * 512
assert disk.read_buffer_at_offset(512, size - 512) == b'\\6' * 512
print(size)";
    let size = text(python.args(["-c", script, layer.path()?]))?;
    ensure!(size.trim() == (new * 512).to_string(), "libvhdi sees {size}");
    Ok(())
}

#[test]
fn qemu_sees_the_exact_size_of_the_largest_disk() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let layer = Layer::dynamic(dir.path(), 1, 0xff00_0000)?;
    layer.close()?;
    ensure!(virtual_size(layer.path()?)? == 2040 << 30, "{}", virtual_size(layer.path()?)?);
    Ok(())
}

/// What QEMU writes into a layer of ours is read, in blocks that were there and in new ones.
#[test]
fn we_read_what_qemu_writes_into_our_layers() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let sectors = 4096 * 3;
    let layer = Layer::dynamic(dir.path(), 1, sectors)?;
    let mut plain = disk(sectors)?;
    layer.write(9, &[9; 512])?;
    plain[9 * 512..10 * 512].fill(9);
    layer.close()?;
    let mut io = Command::new(need::tool("/usr/bin/qemu-io")?);
    io.args(["-f", "vpc", "-c", "write -P 1 8192 1024", "-c", "write -P 2 4M 64k"]);
    run(io.arg(layer.path()?))?;
    plain[8192..9216].fill(1);
    plain[4 << 20..(4 << 20) + (64 << 10)].fill(2);
    we_agree(&[&layer.path], &plain)?;
    qemu_agrees(layer.path()?, &plain, dir.path())
}
