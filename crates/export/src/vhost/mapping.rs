//! Files of the front end's, mapped.

use std::fs::File;

use vm_memory::{FileOffset, MmapRegion};

/// Maps `len` bytes of `file` from `offset` on, shared. What lies behind its end is refused: touching that
/// would end the process.
pub(crate) fn map(file: File, offset: u64, len: u64) -> Result<MmapRegion<()>, String> {
    let end = offset.checked_add(len).ok_or("its end is beyond all addresses")?;
    let has = file.metadata().map_err(|error| error.to_string())?.len();
    if has < end {
        return Err(format!("the file has {has} bytes, and {end} are named"));
    }
    let len = usize::try_from(len).map_err(|error| error.to_string())?;
    MmapRegion::from_file(FileOffset::new(file, offset), len).map_err(|error| error.to_string())
}
