//! A request's descriptors, followed from their head. They are the guest's, and may be anything.

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Address as _, Bytes as _, GuestAddress, GuestMemoryMmap};

/// Bytes of a descriptor.
const LEN: u64 = 16;
/// Descriptors of a request that are followed.
const MOST: u32 = 1024;

/// The descriptors of one request in order; ends at the first that cannot be followed.
pub(crate) struct Descriptors<'a> {
    memory: &'a GuestMemoryMmap<()>,
    table: GuestAddress,
    size: u32,
    next: Option<u16>,
    /// Descriptors that may still come: a row that is longer leads in a circle.
    left: u32,
    indirect: bool,
}

impl<'a> Descriptors<'a> {
    /// Those of the request at `head` of a queue of `size` descriptors.
    pub(crate) fn of(
        memory: &'a GuestMemoryMmap<()>,
        table: GuestAddress,
        size: u16,
        head: u16,
    ) -> Self {
        let size = u32::from(size);
        Self { memory, table, size, next: Some(head), left: size, indirect: false }
    }

    fn read(&mut self) -> Option<Descriptor> {
        let index = self.next.take()?;
        let at = self.table.checked_add(u64::from(index) * LEN)?;
        (u32::from(index) < self.size).then(|| self.memory.read_obj(at).ok()).flatten()
    }

    /// Goes on in a table of its own, which is not followed by another.
    fn enter(&mut self, table: Descriptor) -> bool {
        let whole = u64::from(table.len()).is_multiple_of(LEN);
        if self.indirect || !whole || table.has_next() {
            return false;
        }
        self.indirect = true;
        self.table = table.addr();
        self.size = table.len() / 16;
        // a table may be long, and its descriptors may be of no bytes
        self.left = self.size.min(MOST);
        self.next = Some(0);
        true
    }
}

impl Iterator for Descriptors<'_> {
    type Item = Descriptor;

    fn next(&mut self) -> Option<Descriptor> {
        let mut descriptor = self.read()?;
        if descriptor.refers_to_indirect_table() {
            if !self.enter(descriptor) {
                return None;
            }
            descriptor = self.read()?;
            if descriptor.refers_to_indirect_table() {
                return None;
            }
        }
        self.left = self.left.checked_sub(1)?;
        self.next = descriptor.has_next().then(|| descriptor.next());
        Some(descriptor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEXT: u16 = 1;
    const INDIRECT: u16 = 4;

    /// Address, length, flags, next.
    type Row<'a> = &'a [(u64, u32, u16, u16)];

    fn memory(tables: &[(u64, Row<'_>)]) -> GuestMemoryMmap<()> {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
        for (at, table) in tables {
            for (index, (addr, len, flags, next)) in table.iter().enumerate() {
                let descriptor = Descriptor::new(*addr, *len, *flags, *next);
                memory.write_obj(descriptor, GuestAddress(at + 16 * index as u64)).unwrap();
            }
        }
        memory
    }

    fn addresses(memory: &GuestMemoryMmap<()>, size: u16, head: u16) -> Vec<u64> {
        Descriptors::of(memory, GuestAddress(0x1000), size, head).map(|d| d.addr().0).collect()
    }

    #[test]
    fn rows_and_tables_are_followed() {
        let indirect: &[_] = &[(7, 1, NEXT, 1), (8, 1, 0, 0)];
        let direct: &[_] = &[(1, 1, NEXT, 2), (0x2000, 32, INDIRECT, 0), (2, 1, NEXT, 1)];
        let memory = memory(&[(0x1000, direct), (0x2000, indirect)]);
        assert_eq!(addresses(&memory, 4, 0), [1, 2, 7, 8]);
        assert_eq!(addresses(&memory, 4, 1), [7, 8]);
    }

    #[test]
    fn a_circle_of_empty_descriptors_in_a_long_table_ends_soon() {
        let memory = memory(&[
            (0x1000, &[(0x2000, 0xffff_fff0, INDIRECT, 0)]),
            (0x2000, &[(0, 0, NEXT, 0)]),
        ]);
        assert_eq!(addresses(&memory, 4, 0).len(), 1024);
    }

    #[test]
    fn what_leads_nowhere_ends() {
        let inner: &[_] = &[(0x3000, 16, INDIRECT, 0), (5, 1, NEXT, 1)];
        let direct: &[_] = &[
            (1, 1, NEXT, 0),
            (2, 1, NEXT, 4),
            (0x2000, 16, INDIRECT, 0),
            (0x2000, 17, INDIRECT, 0),
        ];
        let memory = memory(&[(0x1000, direct), (0x2000, inner)]);
        assert_eq!(addresses(&memory, 4, 0), [1; 4], "a circle");
        assert_eq!(addresses(&memory, 4, 1), [2], "beyond the table");
        assert!(addresses(&memory, 4, 2).is_empty(), "a table in a table");
        assert!(addresses(&memory, 4, 3).is_empty(), "half a descriptor");
        assert!(addresses(&memory, 4, 9).is_empty(), "no such head");
        let outside = Descriptors::of(&memory, GuestAddress(u64::MAX - 8), 4, 1);
        assert_eq!(outside.count(), 0);
    }
}
