//! Big-endian fields of fixed-size structures, taken and put in order of their offsets.

/// Takes fields one after another from a structure whose length is known.
pub(crate) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(crate) fn of(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The next `N` bytes. Structures are arrays of a fixed length, so running over the end is our
    /// own mistake and never follows from what the bytes hold.
    pub(crate) fn take<const N: usize>(&mut self) -> [u8; N] {
        let Some((head, rest)) = self.rest.split_first_chunk::<N>() else {
            unreachable!("a field of {N} bytes past the end of its structure")
        };
        self.rest = rest;
        *head
    }

    pub(crate) fn u8(&mut self) -> u8 {
        u8::from_be_bytes(self.take())
    }

    pub(crate) fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.take())
    }

    pub(crate) fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.take())
    }

    pub(crate) fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.take())
    }
}

/// Puts fields one after another; the rest of the structure is zero.
pub(crate) struct Image<const LEN: usize> {
    bytes: Vec<u8>,
}

impl<const LEN: usize> Image<LEN> {
    pub(crate) fn new() -> Self {
        Self { bytes: Vec::with_capacity(LEN) }
    }

    pub(crate) fn put(&mut self, field: &[u8]) {
        self.bytes.extend_from_slice(field);
    }

    /// The structure, with the checksum put into the four bytes at `checksum_at` (written as zeros
    /// before).
    pub(crate) fn finish(mut self, checksum_at: usize) -> [u8; LEN] {
        self.bytes.resize(LEN, 0);
        let sum = checksum(&self.bytes, checksum_at).to_be_bytes();
        for (slot, byte) in self.bytes.iter_mut().skip(checksum_at).zip(sum) {
            *slot = byte;
        }
        let mut out = [0; LEN];
        out.copy_from_slice(&self.bytes);
        out
    }
}

/// One's complement of the sum of all bytes, the four at `checksum_at` left out.
pub(crate) fn checksum(bytes: &[u8], checksum_at: usize) -> u32 {
    let field = checksum_at..checksum_at.saturating_add(4);
    let sum = bytes
        .iter()
        .enumerate()
        .filter(|(at, _)| !field.contains(at))
        .fold(0u32, |sum, (_, byte)| sum.wrapping_add(u32::from(*byte)));
    !sum
}
