//! What a file from elsewhere is, by its first and last bytes, and whether opening it with somebody
//! else's program would make that program open further files.
//!
//! All these bytes may be a guest's: a raw disk starts with whatever the guest put there. So nothing
//! here decides that another file is read; it only says what a format *would* read, for the caller to
//! refuse.

use crate::bytes::Fields;
use crate::{Footer, Kind};

/// Bytes of a file's start that [`sniff`] wants, fewer where the file is shorter: a VMDK's descriptor
/// is within them wherever QEMU looks for it.
pub const HEAD: usize = 64 << 10;

/// A file format, as far as it is told apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sniffed {
    /// Microsoft's VHD.
    Vhd {
        /// Whether it needs a parent.
        differencing: bool,
    },
    /// Microsoft's VHDX.
    Vhdx,
    /// QEMU's qcow2.
    Qcow2(Qcow2),
    /// VMware's VMDK.
    Vmdk(Vmdk),
    /// VirtualBox's VDI.
    Vdi,
    /// Both a VHD and, by its start, something else: whoever wrote one of the two wants to be taken for
    /// it.
    Ambiguous,
    /// Something with a known beginning that no disk image format here has.
    Other(&'static str),
    /// No beginning that is known: a raw disk may look like this.
    Unknown,
}

/// What the header of a qcow2 file refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Qcow2 {
    /// It stands on a backing file.
    pub backing: bool,
    /// Its data stands in another file.
    pub data_file: bool,
    /// Its content is encrypted.
    pub encrypted: bool,
}

/// What a VMDK is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vmdk {
    /// One file that holds everything.
    Whole,
    /// A descriptor that names other files as its extents.
    Extents,
    /// A disk that stands on another.
    Child,
}

/// Tells what a file is. `head` is its first [`HEAD`] bytes, `tail` its last 512 (fewer where the file
/// is shorter).
#[must_use]
pub fn sniff(head: &[u8], tail: &[u8]) -> Sniffed {
    match (by_start(head), vhd(head, tail)) {
        (None, None) => Sniffed::Unknown,
        (Some(one), None) | (None, Some(one)) => one,
        // A guest writes the start of a fixed VHD, and may write the end of any other file.
        (Some(_), Some(_)) => Sniffed::Ambiguous,
    }
}

fn by_start(head: &[u8]) -> Option<Sniffed> {
    let starts = |magic: &[u8]| head.starts_with(magic);
    if starts(b"QFI\xfb") {
        return Some(qcow2(head));
    }
    if starts(b"KDMV") || starts(b"# Disk DescriptorFile") {
        return Some(Sniffed::Vmdk(vmdk(head)));
    }
    if starts(b"vhdxfile") {
        return Some(Sniffed::Vhdx);
    }
    if head.get(64..68) == Some(&[0x7f, 0x10, 0xda, 0xbe]) {
        return Some(Sniffed::Vdi);
    }
    let others = [
        (&b"COWD"[..], "a VMDK of version 3"),
        (b"QED\0", "a QED image"),
        (b"LUKS\xba\xbe", "an encrypted LUKS volume"),
        (b"PK\x03\x04", "a zip archive"),
        (b"\x1f\x8b\x08", "a gzip file"),
        (b"\xfd7zXZ\0", "an xz file"),
        (b"\x28\xb5\x2f\xfd", "a zstd file"),
        (b"BZh", "a bzip2 file"),
    ];
    others.iter().find(|(magic, _)| starts(magic)).map(|(_, name)| Sniffed::Other(name))
}

/// A VHD has a footer at its end, or a copy of it at its start; a damaged one is still no raw disk.
fn vhd(head: &[u8], tail: &[u8]) -> Option<Sniffed> {
    const COOKIE: &[u8] = b"conectix";
    // the footer of very old tools lacks its last byte, a zero
    let short = tail.get(1..).filter(|bytes| bytes.starts_with(COOKIE));
    let end = match short {
        Some(bytes) => bytes.iter().copied().chain([0]).collect(),
        None => tail.to_vec(),
    };
    let decode = |bytes: &[u8]| Footer::decode(bytes.first_chunk()?).ok();
    let start = decode(head).filter(|footer| footer.kind != Kind::Fixed);
    if let Some(footer) = decode(&end).or(start) {
        return Some(Sniffed::Vhd { differencing: footer.kind == Kind::Differencing });
    }
    let damaged = head.starts_with(COOKIE) || end.starts_with(COOKIE);
    damaged.then_some(Sniffed::Vhd { differencing: false })
}

/// The specification of qcow2: offsets 8 (backing file), 32 (encryption), 72 (features that a reader
/// must know; bit 2: the data stands in another file).
fn qcow2(head: &[u8]) -> Sniffed {
    let Some(header) = head.first_chunk::<80>() else {
        return Sniffed::Other("the start of a qcow2 image");
    };
    let mut fields = Fields::of(header);
    let _magic = fields.take::<4>();
    let version = fields.u32();
    let backing = fields.u64() != 0;
    let _lengths = fields.take::<16>(); // of the name, a cluster, the disk
    let encrypted = fields.u32() != 0;
    let _tables = fields.take::<36>();
    let incompatible = fields.u64();
    let data_file = version >= 3 && incompatible & 4 != 0;
    Sniffed::Qcow2(Qcow2 { backing, data_file, encrypted })
}

/// A sparse extent with its descriptor inside is whole; QEMU takes one without a capacity for a mere
/// envelope of a descriptor, which may name anything.
fn vmdk(head: &[u8]) -> Vmdk {
    if !head.starts_with(b"KDMV") {
        return Vmdk::Extents;
    }
    let capacity = head.get(12..20).is_some_and(|bytes| bytes.iter().any(|byte| *byte != 0));
    if !capacity {
        return Vmdk::Extents;
    }
    let holds = |text: &[u8]| head.windows(text.len()).any(|window| window == text);
    if holds(b"parentFileNameHint") { Vmdk::Child } else { Vmdk::Whole }
}
