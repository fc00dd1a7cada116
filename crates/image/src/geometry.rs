//! Cylinders, heads and sectors: the size as disks of the 1990s told it.
//!
//! Some readers (Virtual PC, and QEMU for every creator that it does not know) take the size from
//! here and not from the footer's exact field — except where the geometry is the largest possible,
//! which always means "see the exact size". So [`Geometry::to_write`] yields the specified geometry
//! where that is exact, and the largest one otherwise: no reader then sees another size than we do.

use crate::SectorCount;

/// A disk geometry as the footer stores it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Cylinders.
    pub cylinders: u16,
    /// Heads.
    pub heads: u8,
    /// Sectors in a track.
    pub sectors: u8,
}

impl Geometry {
    /// The largest geometry, which means "see the exact size".
    pub const MAX: Self = Self { cylinders: 65535, heads: 16, sectors: 255 };

    /// The geometry to store for a disk of `size`.
    #[must_use]
    pub fn to_write(size: SectorCount) -> Self {
        let specified = Self::specified(size);
        if specified.size() == size { specified } else { Self::MAX }
    }

    /// The geometry that the appendix of the VHD 1.0 specification computes; it rounds down.
    #[must_use]
    pub fn specified(size: SectorCount) -> Self {
        let total = size.0.min(Self::MAX.size().0);
        if total >= 65535 * 16 * 63 {
            return Self::with(total / (16 * 255), 16, 255);
        }
        let tracks = total / 17;
        let heads = tracks.div_ceil(1024).max(4);
        if tracks < heads.saturating_mul(1024) && heads <= 16 {
            return Self::with(tracks.checked_div(heads).unwrap_or(0), heads, 17);
        }
        let tracks = total / 31;
        if tracks < 16 * 1024 {
            return Self::with(tracks / 16, 16, 31);
        }
        Self::with(total / 63 / 16, 16, 63)
    }

    /// The size that the geometry tells.
    #[must_use]
    pub fn size(self) -> SectorCount {
        let heads_by_sectors = u64::from(self.heads).saturating_mul(u64::from(self.sectors));
        SectorCount(u64::from(self.cylinders).saturating_mul(heads_by_sectors))
    }

    fn with(cylinders: u64, heads: u64, sectors: u8) -> Self {
        Self {
            cylinders: u16::try_from(cylinders).unwrap_or(u16::MAX),
            heads: u8::try_from(heads).unwrap_or(16),
            sectors,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_other_tools_compute() {
        // (sectors, cylinders, heads, sectors a track): what qemu-img 7.2 stores for these sizes.
        for (total, c, h, s) in [
            (68, 1, 4, 17),
            (2108, 31, 4, 17),
            (20_468, 301, 4, 17),
            (10_000_368, 9921, 16, 63),
            (2_097_648, 2081, 16, 63),
            (65535 * 16 * 255, 65535, 16, 255),
            (0xff00_0000, 65535, 16, 255),
        ] {
            let got = Geometry::specified(SectorCount(total));
            assert_eq!(got, Geometry { cylinders: c, heads: h, sectors: s }, "{total} sectors");
        }
    }

    #[test]
    fn what_we_write_never_tells_another_size() {
        for total in (0..3_000_000).step_by(7).chain([0xff00_0000, 0xfeff_ffff]) {
            let size = SectorCount(total);
            let geometry = Geometry::to_write(size);
            assert!(geometry == Geometry::MAX || geometry.size() == size, "{size:?}");
        }
    }
}
