//! Disks that stand elsewhere, as an import reads them: in blocks of ours, from the first to the last.

use std::path::PathBuf;
use std::time::Duration;

use blockio::FileDevice;
use catalog::{CatalogError, Chunk, Code, Incoming, Next, Result};
use export::{NbdAddress, NbdClient, NbdError};
use image::{
    BLOCK_BYTES, BLOCK_SECTORS, Bitmap, Content, FormatError, LayerImage, LayerReader, Mapped,
    Opener, SECTOR, Sector, SectorCount, Step, Trust,
};
use io::{
    BlockDevice as _, BlockFile as _, ByteOffset, ByteRange, ExtentKind, Io, IoBuf, Request, Ring,
};

/// Bytes of a block, in memory.
pub(crate) const BLOCK: usize = 2 << 20;
const _: () = assert!(BLOCK as u64 == BLOCK_BYTES);
/// A server that says nothing for this long has failed.
const NBD_LIMIT: Duration = Duration::from_secs(60);
/// How far block status is asked for at once.
const STATUS: u64 = 1 << 30;

/// The layers of an import, the base first.
pub(crate) struct Sources {
    ring: Ring,
    pub(crate) disks: Vec<Disk>,
}

/// One disk.
pub(crate) struct Disk {
    /// Where it stands, for errors.
    pub(crate) name: String,
    pub(crate) size: u64,
    /// The block that comes next.
    block: u64,
    from: From,
}

enum From {
    Raw { file: FileDevice, data: Option<ByteRange> },
    Vhd { file: FileDevice, reader: Box<LayerReader> },
    Nbd { client: Option<NbdClient>, known: Vec<(ByteRange, bool)> },
}

impl Sources {
    pub(crate) fn new(ring: &Ring, disks: Vec<Disk>) -> Self {
        Self { ring: ring.clone(), disks }
    }
}

impl Incoming for Sources {
    fn next(&mut self, layer: usize) -> Io<'_, Result<Next>> {
        let disk = &mut self.disks[layer];
        let ring = &self.ring;
        Box::pin(async move {
            let name = disk.name.clone();
            disk.next(ring).await.map_err(|error| error.during(name))
        })
    }

    fn done(&self, layer: usize) -> u64 {
        let disk = &self.disks[layer];
        disk.block.saturating_mul(BLOCK_BYTES).min(disk.size)
    }

    fn size(&self, layer: usize) -> u64 {
        self.disks[layer].size
    }
}

impl Disk {
    /// A raw file. A rest of less than a sector becomes a sector, with zeros after it.
    pub(crate) fn raw(path: &std::path::Path, file: FileDevice) -> Self {
        let size = file.info().size.0.next_multiple_of(SECTOR);
        Self {
            name: path.display().to_string(),
            size,
            block: 0,
            from: From::Raw { file, data: None },
        }
    }

    /// A VHD that was opened.
    pub(crate) fn vhd(path: &std::path::Path, file: FileDevice, image: LayerImage) -> Self {
        let size = image.size.bytes();
        let reader = Box::new(LayerReader::new(image, file.info().size.0));
        Self { name: path.display().to_string(), size, block: 0, from: From::Vhd { file, reader } }
    }

    /// An export of an NBD server; a rest of less than a sector is as in a raw file.
    pub(crate) async fn nbd(ring: &Ring, name: String, address: NbdAddress) -> Result<Self> {
        let client = ring.run_blocking(move || NbdClient::connect(&address, NBD_LIMIT)).await;
        let client = client.map_err(|error| from_nbd(&error).during(&name))?;
        let size = client.size().next_multiple_of(SECTOR);
        let from = From::Nbd { client: Some(client), known: Vec::new() };
        Ok(Self { name, size, block: 0, from })
    }

    /// Bytes that are stored, as far as they are known.
    pub(crate) async fn stored(&self) -> Result<u64> {
        match &self.from {
            From::Raw { file, .. } | From::Vhd { file, .. } => Ok(file.used().await?.0),
            From::Nbd { .. } => Ok(0),
        }
    }

    async fn next(&mut self, ring: &Ring) -> Result<Next> {
        let start = self.block.saturating_mul(BLOCK_BYTES);
        if start >= self.size {
            return Ok(Next::End);
        }
        let end = (start + BLOCK_BYTES).min(self.size);
        let block = u32::try_from(self.block).unwrap_or(u32::MAX);
        self.block += 1;
        let next = match &mut self.from {
            From::Raw { file, data } => match raw_data(file, data, start).await? {
                Some(from) if from < end => raw_block(file, block, start, end).await?,
                Some(from) => {
                    self.block = from / BLOCK_BYTES;
                    Next::Hole
                }
                None => {
                    self.block = self.size.div_ceil(BLOCK_BYTES);
                    Next::Hole
                }
            },
            From::Vhd { file, reader } => vhd_block(file, reader, block, start, end).await?,
            From::Nbd { client, known } => {
                let taken = client.take().ok_or_else(|| lost("an earlier request failed"))?;
                let (ranges, size) = (std::mem::take(known), taken.size());
                let (kept, ranges, next) = ring
                    .run_blocking(move || nbd_block(taken, ranges, size, block, start, end))
                    .await?;
                // a run of zeros is passed in one step
                if let (Next::Hole, Some((zeros, true))) = (&next, ranges.first())
                    && zeros.start.0 <= end
                    && let Some(reach) = zeros.end()
                {
                    let whole = if reach.0 >= size { self.size } else { reach.0 };
                    self.block = self.block.max(whole / BLOCK_BYTES);
                }
                (*client, *known) = (Some(kept), ranges);
                next
            }
        };
        Ok(next)
    }
}

fn lost(why: &str) -> CatalogError {
    CatalogError::new(Code::Io, format!("the connection was given up: {why}"))
}

fn chunk(block: u32, bytes: Vec<u8>, sectors: u64) -> Next {
    let mut owned = Bitmap::empty();
    owned.set_range(0, u32::try_from(sectors).unwrap_or(u32::MAX).min(BLOCK_SECTORS));
    Next::Chunk(Chunk { block, bytes, owned })
}

/// Where data comes next at or after `from`, by what the file system says.
async fn raw_data(
    file: &FileDevice,
    known: &mut Option<ByteRange>,
    from: u64,
) -> Result<Option<u64>> {
    let len = file.info().size.0;
    loop {
        if let Some(range) = known
            && let Some(end) = range.end()
            && range.len.0 > 0
            && from < end.0
        {
            return Ok(Some(range.start.0.max(from)));
        }
        let at = known.and_then(ByteRange::end).map_or(from, |end| end.0.max(from));
        if at >= len {
            return Ok(None);
        }
        let extents = file.extents(ByteRange::new(at, len - at)).await?;
        let data = extents.iter().find(|extent| extent.kind == ExtentKind::Data);
        *known = data.map(|extent| extent.range).or_else(|| {
            // holes up to here: go on behind them
            let end = extents.last().and_then(|extent| extent.range.end());
            end.map(|end| ByteRange::new(end.0, 0))
        });
    }
}

async fn raw_block(file: &FileDevice, block: u32, start: u64, end: u64) -> Result<Next> {
    let mut bytes = vec![0; BLOCK];
    let len = end.min(file.info().size.0).saturating_sub(start);
    read(file, start, &mut bytes[..as_len(len)]).await?;
    Ok(chunk(block, bytes, (end - start) / SECTOR))
}

async fn read(file: &FileDevice, at: u64, into: &mut [u8]) -> Result<()> {
    if into.is_empty() {
        return Ok(());
    }
    let buffer = IoBuf::zeroed(into.len());
    file.submit(Request::Read { at: ByteOffset(at), into: buffer.clone() }).await?;
    buffer.read_at(0, into);
    Ok(())
}

fn as_len(bytes: u64) -> usize {
    usize::try_from(bytes).expect("less than a block")
}

fn format(error: &FormatError) -> CatalogError {
    let code = match error {
        FormatError::Unsupported(_) => Code::Unsupported,
        FormatError::NotVhd { .. }
        | FormatError::Corrupt { .. }
        | FormatError::OutsideFile { .. }
        | FormatError::NotOurs { .. }
        | FormatError::ShortRead { .. } => Code::Corrupt,
    };
    CatalogError::new(code, error.to_string())
}

/// Opens a VHD from elsewhere.
pub(crate) async fn open_vhd(file: &FileDevice) -> Result<LayerImage> {
    let mut opener = Opener::new(file.info().size.0, Trust::Foreign);
    loop {
        match opener.step().map_err(|error| format(&error))? {
            Step::Done(image) => return Ok(image),
            Step::Read { at, len } => {
                let mut bytes = vec![0; as_len(len)];
                read(file, at, &mut bytes).await?;
                opener.supply(&bytes).map_err(|error| format(&error))?;
            }
        }
    }
}

/// The first and the last bytes of a file, as far as there are any.
pub(crate) async fn ends(file: &FileDevice) -> Result<(Vec<u8>, Vec<u8>)> {
    let len = file.info().size.0;
    let mut head = vec![0; as_len(len.min(image::HEAD as u64))];
    read(file, 0, &mut head).await?;
    let mut tail = vec![0; as_len(len.min(SECTOR))];
    read(file, len - tail.len() as u64, &mut tail).await?;
    Ok((head, tail))
}

/// What a VHD itself holds of a block of ours.
async fn vhd_block(
    file: &FileDevice,
    reader: &mut LayerReader,
    block: u32,
    start: u64,
    end: u64,
) -> Result<Next> {
    let (first, last) = (start / SECTOR, end / SECTOR);
    let mut at = first;
    let mut found: Option<(Vec<u8>, Bitmap)> = None;
    while at < last {
        match reader.map(Sector(at), SectorCount(last - at)).map_err(|error| format(&error))? {
            Mapped::Read { at, len, .. } => {
                let mut bytes = vec![0; as_len(len)];
                read(file, at, &mut bytes).await?;
                reader.supply(&bytes).map_err(|error| format(&error))?;
            }
            Mapped::Extent { len, content } => {
                if let Content::Data { at: place, .. } = content {
                    let (bytes, owned) =
                        found.get_or_insert_with(|| (vec![0; BLOCK], Bitmap::empty()));
                    let from = as_len((at - first) * SECTOR);
                    let into = &mut bytes[from..from + as_len(len.bytes())];
                    read(file, place.bytes(), into).await?;
                    let sector = u32::try_from(at - first).expect("within a block");
                    owned.set_range(sector, u32::try_from(len.0).expect("within a block"));
                }
                at += len.0;
            }
        }
    }
    Ok(found.map_or(Next::Hole, |(bytes, owned)| Next::Chunk(Chunk { block, bytes, owned })))
}

type NbdAnswer = Result<(NbdClient, Vec<(ByteRange, bool)>, Next)>;

/// A block of an export; blocking. `known` are runs that were told, with whether they are zero.
fn nbd_block(
    mut client: NbdClient,
    mut known: Vec<(ByteRange, bool)>,
    size: u64,
    block: u32,
    start: u64,
    end: u64,
) -> NbdAnswer {
    let failed = |error: NbdError| from_nbd(&error);
    let real = end.min(size);
    let covered = |known: &[(ByteRange, bool)]| {
        let reach = known.last().and_then(|(range, _)| range.end());
        known.first().is_some_and(|(range, _)| range.start.0 <= start)
            && reach.is_some_and(|reach| reach.0 >= real)
    };
    while !covered(&known) {
        let from = known.last().and_then(|(range, _)| range.end()).map_or(start, |end| end.0);
        let from = from.max(start);
        for extent in client.status(from, (size - from).min(STATUS)).map_err(failed)? {
            let at = known.last().and_then(|(range, _)| range.end()).map_or(from, |end| end.0);
            known.push((ByteRange::new(at.max(from), extent.len), extent.zero));
        }
    }
    let overlaps =
        |range: &ByteRange| range.start.0 < real && range.end().is_some_and(|e| e.0 > start);
    let mut bytes = vec![0; BLOCK];
    let mut any = false;
    for (range, zero) in known.iter().filter(|(range, _)| overlaps(range)) {
        if !zero {
            let from = range.start.0.max(start);
            let to = range.end().map_or(real, |end| end.0.min(real));
            let into = &mut bytes[as_len(from - start)..as_len(to - start)];
            client.read(from, into).map_err(failed)?;
            any = true;
        }
    }
    known.retain(|(range, _)| range.end().is_some_and(|reach| reach.0 > real));
    let next = if any { chunk(block, bytes, (end - start) / SECTOR) } else { Next::Hole };
    Ok((client, known, next))
}

pub(crate) fn from_nbd(error: &NbdError) -> CatalogError {
    let code = match error {
        NbdError::Address(..) => Code::BadRequest,
        _ if error.is_no_space() => Code::NoSpace,
        NbdError::Io(..) | NbdError::Refused(..) | NbdError::Protocol(_) => Code::Io,
    };
    CatalogError::new(code, error.to_string())
}

/// The disk of a file that QEMU serves.
pub(crate) async fn served(ring: &Ring, path: &std::path::Path, socket: PathBuf) -> Result<Disk> {
    Disk::nbd(ring, path.display().to_string(), NbdAddress::unix(socket)).await
}
