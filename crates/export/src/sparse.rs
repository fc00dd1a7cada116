//! Reads that leave out what is known to be zero: such ranges are named, not sent.
//!
//! A long read of a thin disk is mostly holes; naming one costs a few bytes instead of its length in
//! copies here and at the client. A short read is not looked at: there the question costs more than
//! the answer saves.

use io::{BlockDevice, ByteRange, ExtentKind};

/// Reads from this length on are looked at.
pub(crate) const FROM: u64 = 64 << 10;
/// A hole shorter than this is sent as data: one more chunk would cost the client as much. It bounds
/// the number of parts as well.
const HOLE: u64 = 32 << 10;

/// A part of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) range: ByteRange,
    pub(crate) is_hole: bool,
}

/// The parts of `range`, in order and without gaps. What the device cannot tell is data: the read of
/// it says why.
pub(crate) async fn parts(device: &dyn BlockDevice, range: ByteRange) -> Vec<Part> {
    let end = range.start.0 + range.len.0;
    let mut at = range.start.0;
    let mut parts = Vec::new();
    while at < end {
        let before = at;
        let rest = ByteRange::new(at, end - at);
        for extent in device.extents(rest).await.unwrap_or_default() {
            let len = extent.range.len.0.min(end - at);
            if extent.range.start.0 != at || len == 0 {
                break;
            }
            push(&mut parts, ByteRange::new(at, len), extent.kind != ExtentKind::Data);
            at += len;
        }
        if at == before {
            push(&mut parts, rest, false);
            at = end;
        }
    }
    close_hole(&mut parts);
    parts
}

fn push(parts: &mut Vec<Part>, range: ByteRange, is_hole: bool) {
    if !is_hole {
        close_hole(parts);
    }
    match parts.last_mut() {
        Some(last) if last.is_hole == is_hole => last.range.len.0 += range.len.0,
        _ => parts.push(Part { range, is_hole }),
    }
}

/// The hole that ends the list, if one does, is over: a short one becomes data.
fn close_hole(parts: &mut Vec<Part>) {
    let Some(hole) = parts.pop_if(|last| last.is_hole && last.range.len.0 < HOLE) else { return };
    match parts.last_mut() {
        Some(data) => data.range.len.0 += hole.range.len.0,
        None => parts.push(Part { is_hole: false, ..hole }),
    }
}

#[cfg(test)]
mod tests {
    use super::{Part, close_hole, push};
    use io::ByteRange;

    const KIB: u64 = 1024;

    /// Lengths in KiB, negative where a hole.
    fn folded(extents: &[i64]) -> Vec<i64> {
        let (mut parts, mut at) = (Vec::new(), 0);
        for extent in extents {
            let len = extent.unsigned_abs() * KIB;
            push(&mut parts, ByteRange::new(at, len), *extent < 0);
            at += len;
        }
        close_hole(&mut parts);
        let mut next = 0;
        let told = |part: &Part| {
            assert_eq!(part.range.start.0, next, "without gaps");
            next += part.range.len.0;
            let kib = i64::try_from(part.range.len.0 / KIB).expect("short");
            if part.is_hole { -kib } else { kib }
        };
        let told = parts.iter().map(told).collect();
        assert_eq!(next, at, "all of it");
        told
    }

    #[test]
    fn short_holes_become_data() {
        let table: [(&[i64], &[i64]); 9] = [
            (&[], &[]),
            (&[64], &[64]),
            (&[-64], &[-64]),
            (&[-16, -16], &[-32]),
            (&[-16, 48], &[64]),
            (&[48, -16], &[64]),
            (&[4, -4, 4, -32, 4], &[12, -32, 4]),
            (&[-4, 4, -4, 4, -4], &[20]),
            (&[-64, 4, -4], &[-64, 8]),
        ];
        for (extents, want) in table {
            assert_eq!(folded(extents), want, "{extents:?}");
        }
    }
}
