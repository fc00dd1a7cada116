//! A guest's memory with the rings in it.

/// The first byte chooses what was negotiated; the rest is the guest's memory, twice: what it offers first,
/// and what it has become while that is served.
pub fn vhost_ring(bytes: &[u8]) {
    export::drill::ring(bytes);
}
