//! Metadata contexts: what a client can be told of a range without reading it.

use io::{Extent, ExtentKind};

use crate::wire::state;

/// A metadata context that is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Context {
    /// `base:allocation`: whether a range is data, zeros, or a hole.
    Allocation,
    /// `qemu:allocation-depth`: 0 where no layer holds the range, else which one does, counted
    /// from the top: 1 is what was written since the last snapshot.
    Depth,
}

impl Context {
    /// All of them, in the order they are listed.
    pub const ALL: [Self; 2] = [Self::Allocation, Self::Depth];

    /// What clients call it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Allocation => "base:allocation",
            Self::Depth => "qemu:allocation-depth",
        }
    }

    /// The query that lists it among others.
    pub(crate) fn namespace(self) -> &'static str {
        match self {
            Self::Allocation => "base:",
            Self::Depth => "qemu:",
        }
    }

    /// The number that stands for it in requests and replies.
    pub(crate) const fn id(self) -> u32 {
        match self {
            Self::Allocation => 1,
            Self::Depth => 2,
        }
    }

    pub(crate) fn of(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|context| context.id() == id)
    }

    /// What is said of an extent.
    pub(crate) fn status(self, extent: &Extent) -> u32 {
        match (self, extent.kind) {
            (Self::Allocation, ExtentKind::Data) => 0,
            (Self::Allocation, ExtentKind::Hole) => state::HOLE | state::ZERO,
            (Self::Allocation, ExtentKind::Zero) => state::ZERO,
            (Self::Depth, _) => extent.depth,
        }
    }
}

/// Some of the contexts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contexts(u32);

impl Contexts {
    /// None of them.
    pub const NONE: Self = Self(0);

    /// These and one more.
    #[must_use]
    pub const fn with(self, context: Context) -> Self {
        Self(self.0 | (1 << context.id()))
    }

    /// Whether `context` is among them.
    #[must_use]
    pub const fn has(self, context: Context) -> bool {
        self.0 & (1 << context.id()) != 0
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Each of them, in order.
    pub fn iter(self) -> impl Iterator<Item = Context> {
        Context::ALL.into_iter().filter(move |context| self.has(*context))
    }
}

#[cfg(test)]
mod tests {
    use io::{ByteRange, Extent, ExtentKind};

    use super::{Context, Contexts};

    #[test]
    fn each_context_has_its_words_for_an_extent() {
        let table = [
            (ExtentKind::Data, 1, 0, 1),
            (ExtentKind::Data, 31, 0, 31),
            (ExtentKind::Zero, 2, 2, 2),
            (ExtentKind::Hole, 0, 3, 0),
        ];
        for (kind, depth, allocation, layers) in table {
            let extent = Extent { range: ByteRange::new(0, 512), kind, depth };
            let said = Context::ALL.map(|context| context.status(&extent));
            assert_eq!(said, [allocation, layers], "{extent:?}");
        }
    }

    #[test]
    fn sets_keep_what_was_put_in() {
        let one = Contexts::default().with(Context::Depth);
        assert!(one.has(Context::Depth) && !one.has(Context::Allocation) && !one.is_empty());
        let both = one.with(Context::Allocation).with(Context::Depth);
        assert_eq!(both.iter().collect::<Vec<_>>(), Context::ALL);
        assert!(Context::ALL.into_iter().all(|context| Context::of(context.id()) == Some(context)));
        assert_eq!(Context::of(0), None);
    }
}
