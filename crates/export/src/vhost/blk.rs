//! The virtio block device's own words: features, configuration space, requests. Pure.

use io::{ByteCount, ByteOffset, ByteRange, Clear, DeviceInfo};
use virtio_bindings::virtio_blk as blk;

/// Sector of the protocol in bytes, whatever the device's blocks are.
pub(crate) const SECTOR: u64 = 512;
/// Queues at most.
pub(crate) const QUEUES: u16 = 16;
/// Descriptors of a queue at most.
pub(crate) const QUEUE_SIZE: u16 = 1024;
/// Data pieces of a request: what fits a queue of 128, QEMU's choice, beside header and status.
const SEGMENTS: u32 = 126;
/// Bytes of one of them. A request of all stays below what devices here take at once.
const SEGMENT_BYTES: u32 = 256 << 10;
/// Bytes of a request's data at most.
pub(crate) const MOST_DATA: usize = (SEGMENTS * SEGMENT_BYTES) as usize;
/// Ranges of a discard.
const RANGES: u32 = 32;
/// Sectors of one of them: a server that closes waits for no more than a gibibyte being cleared.
const RANGE_SECTORS: u32 = (1 << 30) / 512;
/// Bytes of a range as it stands in a request.
const RANGE_LEN: usize = 16;
/// Bytes of what a request begins with.
pub(crate) const HEADER_LEN: usize = 16;
/// Bytes of the text that identifies a disk.
pub(crate) const ID_LEN: usize = blk::VIRTIO_BLK_ID_BYTES as usize;
/// Bytes of the configuration space.
const CONFIG_LEN: usize = 60;
/// Where the write cache is switched.
pub(crate) const WRITEBACK_AT: u32 = 32;

const fn bit(number: u32) -> u64 {
    1 << number
}

pub(crate) const FLUSH: u64 = bit(blk::VIRTIO_BLK_F_FLUSH);
pub(crate) const CONFIG_WCE: u64 = bit(blk::VIRTIO_BLK_F_CONFIG_WCE);

/// What the device offers of the block device's features.
pub(crate) fn features(read_only: bool) -> u64 {
    let both = bit(blk::VIRTIO_BLK_F_SIZE_MAX)
        | bit(blk::VIRTIO_BLK_F_SEG_MAX)
        | bit(blk::VIRTIO_BLK_F_BLK_SIZE)
        | bit(blk::VIRTIO_BLK_F_TOPOLOGY)
        | bit(blk::VIRTIO_BLK_F_MQ)
        | FLUSH
        | CONFIG_WCE;
    let own = if read_only {
        bit(blk::VIRTIO_BLK_F_RO)
    } else {
        bit(blk::VIRTIO_BLK_F_DISCARD) | bit(blk::VIRTIO_BLK_F_WRITE_ZEROES)
    };
    both | own
}

/// The configuration space.
pub(crate) fn config(info: &DeviceInfo, queues: u16, writeback: bool) -> [u8; CONFIG_LEN] {
    let mut space = [0; CONFIG_LEN];
    let mut put = |at: usize, bytes: &[u8]| space[at..at + bytes.len()].copy_from_slice(bytes);
    let block = info.logical_block.max(512);
    put(0, &(info.size.0 / SECTOR).to_le_bytes());
    put(8, &SEGMENT_BYTES.to_le_bytes());
    put(12, &SEGMENTS.to_le_bytes());
    put(20, &block.to_le_bytes());
    let physical = (info.physical_block / block).max(1).ilog2();
    put(24, &[u8::try_from(physical).unwrap_or(0)]);
    put(26, &u16::try_from(info.physical_block / block).unwrap_or(1).to_le_bytes());
    put(32, &[u8::from(writeback)]);
    put(34, &queues.to_le_bytes());
    let granularity = u32::try_from(u64::from(info.clear_granularity) / SECTOR).unwrap_or(8).max(1);
    put(36, &RANGE_SECTORS.to_le_bytes());
    put(40, &RANGES.to_le_bytes());
    put(44, &granularity.to_le_bytes());
    put(48, &RANGE_SECTORS.to_le_bytes());
    put(52, &RANGES.to_le_bytes());
    put(56, &[1]);
    space
}

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    Read(ByteOffset),
    Write(ByteOffset),
    Flush,
    /// The ranges follow as data.
    Clear {
        zeroes: bool,
    },
    Identify,
    /// Nothing that this device does.
    Unknown,
}

/// Understands a request's header.
pub(crate) fn asked(header: &[u8; HEADER_LEN]) -> Asked {
    let (kind, rest) = header.split_first_chunk().expect("16 bytes");
    let (_priority, sector) = rest.split_at(4);
    let sector = u64::from_le_bytes(sector.try_into().expect("8 bytes"));
    // one that is too high for an offset is out of every device
    let at = ByteOffset(sector.saturating_mul(SECTOR));
    match u32::from_le_bytes(*kind) {
        blk::VIRTIO_BLK_T_IN => Asked::Read(at),
        blk::VIRTIO_BLK_T_OUT => Asked::Write(at),
        blk::VIRTIO_BLK_T_FLUSH => Asked::Flush,
        blk::VIRTIO_BLK_T_GET_ID => Asked::Identify,
        blk::VIRTIO_BLK_T_DISCARD => Asked::Clear { zeroes: false },
        blk::VIRTIO_BLK_T_WRITE_ZEROES => Asked::Clear { zeroes: true },
        _ => Asked::Unknown,
    }
}

/// A request's outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Ok,
    Error,
    Unsupported,
}

impl Status {
    pub(crate) fn byte(self) -> u8 {
        let code = match self {
            Self::Ok => blk::VIRTIO_BLK_S_OK,
            Self::Error => blk::VIRTIO_BLK_S_IOERR,
            Self::Unsupported => blk::VIRTIO_BLK_S_UNSUPP,
        };
        u8::try_from(code).expect("0, 1 or 2")
    }
}

/// The most bytes that the ranges of a clear take.
pub(crate) const RANGES_LEN: usize = RANGES as usize * RANGE_LEN;

/// The ranges of a clear, and whether each may give its space back.
pub(crate) fn ranges(data: &[u8], zeroes: bool) -> Result<Vec<(ByteRange, Clear)>, Status> {
    let (whole, rest) = data.as_chunks::<RANGE_LEN>();
    if !rest.is_empty() || whole.is_empty() || data.len() > RANGES_LEN {
        return Err(Status::Error);
    }
    let range = |bytes: &[u8; RANGE_LEN]| {
        let (sector, rest) = bytes.split_first_chunk().expect("16 bytes");
        let (sectors, flags) = rest.split_first_chunk().expect("8 bytes");
        let sectors = u32::from_le_bytes(*sectors);
        let flags = u32::from_le_bytes(flags.try_into().expect("4 bytes"));
        let unmap = flags & 1 != 0;
        // A discard has no flags; a bit that nobody defined asks for what is not here.
        if flags & !1 != 0 || (unmap && !zeroes) {
            return Err(Status::Unsupported);
        }
        if sectors > RANGE_SECTORS {
            return Err(Status::Error);
        }
        let start = u64::from_le_bytes(*sector).checked_mul(SECTOR).ok_or(Status::Error)?;
        let how = if unmap || !zeroes { Clear::Deallocate } else { Clear::KeepSpace };
        let len = ByteCount(u64::from(sectors) * SECTOR);
        Ok((ByteRange { start: ByteOffset(start), len }, how))
    };
    whole.iter().map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info() -> DeviceInfo {
        DeviceInfo {
            size: ByteCount(1 << 30),
            logical_block: 512,
            physical_block: 4096,
            memory_align: 512,
            max_io: 32 << 20,
            clear_granularity: 4096,
            read_only: false,
        }
    }

    #[test]
    fn the_configuration_space_is_laid_out_as_the_standard_says() {
        let space = config(&info(), 4, true);
        assert_eq!(space[..8], (1_u64 << 21).to_le_bytes());
        assert_eq!(space[20..28], [0, 2, 0, 0, 3, 0, 8, 0]);
        assert_eq!(space[32..36], [1, 0, 4, 0]);
        assert_eq!(space[44..48], [8, 0, 0, 0]);
        assert_eq!(space[56], 1);
        assert!(SEGMENTS * SEGMENT_BYTES <= info().max_io);
    }

    fn header(kind: u32, sector: u64) -> [u8; 16] {
        let mut bytes = [0xff; 16];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        bytes[8..].copy_from_slice(&sector.to_le_bytes());
        bytes
    }

    #[test]
    fn requests_are_understood() {
        assert_eq!(asked(&header(0, 2)), Asked::Read(ByteOffset(1024)));
        assert_eq!(asked(&header(1, u64::MAX)), Asked::Write(ByteOffset(u64::MAX)));
        assert_eq!(asked(&header(4, 0)), Asked::Flush);
        assert_eq!(asked(&header(8, 0)), Asked::Identify);
        assert_eq!(asked(&header(11, 0)), Asked::Clear { zeroes: false });
        assert_eq!(asked(&header(13, 0)), Asked::Clear { zeroes: true });
        assert_eq!(asked(&header(2, 0)), Asked::Unknown);
    }

    fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
        [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
    }

    #[test]
    fn ranges_are_checked() {
        let two = [range(8, 16, 0), range(0, 8, 1)].concat();
        assert_eq!(
            ranges(&two, true),
            Ok(vec![
                (ByteRange::new(4096, 8192), Clear::KeepSpace),
                (ByteRange::new(0, 4096), Clear::Deallocate)
            ])
        );
        assert_eq!(ranges(&two, false), Err(Status::Unsupported));
        assert_eq!(
            ranges(&two[..16], false),
            Ok(vec![(ByteRange::new(4096, 8192), Clear::Deallocate)])
        );
        for (bad, status) in [
            (vec![], Status::Error),
            (vec![0; 15], Status::Error),
            (vec![0; 16 * 33], Status::Error),
            (range(u64::MAX, 1, 0), Status::Error),
            (range(0, RANGE_SECTORS + 1, 0), Status::Error),
            (range(0, 1, 2), Status::Unsupported),
        ] {
            assert_eq!(ranges(&bad, true), Err(status));
        }
    }
}
