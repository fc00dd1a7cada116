//! Who changes which blocks of a disk whose blocks are larger than sectors.
//!
//! A write of part of a block reads the block, and writes it back later with the old bytes of all its
//! other sectors. Whatever changed those in between would be undone. So a rewrite has its blocks for
//! itself, and waits for those who came before it; whole-block requests only wait for rewrites.
//!
//! ```text
//!   came first ─► claim 7: 0..8192 shared │ claim 8: 4096..8192 alone │ claim 9: 0..8192 shared
//!                  runs                      waits for 7                 waits for 8
//! ```
//!
//! A claim waits for earlier ones only, so nobody waits in a circle and nobody is overtaken for ever.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::ops::Range;
use std::task::{Poll, Waker};

/// How a request changes its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Touch {
    /// Whole: beside others of its sort.
    Whole,
    /// In part: alone.
    Part,
}

#[derive(Debug)]
struct Entry {
    bytes: Range<u64>,
    touch: Touch,
    /// Wakes the claim, if it waits.
    waker: Option<Waker>,
}

impl Entry {
    fn conflicts(&self, other: &Self) -> bool {
        let overlap = self.bytes.start < other.bytes.end && other.bytes.start < self.bytes.end;
        overlap && (self.touch == Touch::Part || other.touch == Touch::Part)
    }
}

/// The claims on one file, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    entries: RefCell<BTreeMap<u64, Entry>>,
    next: Cell<u64>,
}

/// A claim; over when dropped.
#[derive(Debug)]
pub(crate) struct Claim<'a> {
    claims: &'a Claims,
    number: u64,
}

impl Claims {
    /// Claims whole blocks of the disk: waits until no earlier claim is in the way.
    pub(crate) async fn claim(&self, bytes: Range<u64>, touch: Touch) -> Claim<'_> {
        let number = self.next.get();
        self.next.set(number + 1);
        self.entries.borrow_mut().insert(number, Entry { bytes, touch, waker: None });
        let claim = Claim { claims: self, number };
        poll_fn(|context| {
            let mut entries = self.entries.borrow_mut();
            let mut earlier = entries.range(..number);
            let own = &entries[&number];
            let blocked = earlier.any(|(_, entry)| entry.conflicts(own));
            if !blocked {
                return Poll::Ready(());
            }
            let own = entries.get_mut(&number).expect("it leaves with its claim");
            own.waker = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
        claim
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut entries = self.claims.entries.borrow_mut();
        let own = entries.remove(&self.number).expect("a claim is dropped once");
        let waiting = entries.range_mut(self.number..).map(|(_, entry)| entry);
        let woken: Vec<Waker> = waiting
            .filter(|entry| entry.conflicts(&own))
            .filter_map(|entry| entry.waker.take())
            .collect();
        drop(entries);
        woken.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;

    use futures_util::FutureExt as _;

    use super::{Claim, Claims, Touch};

    type Claiming<'a> = Pin<Box<dyn Future<Output = Claim<'a>> + 'a>>;

    fn begin<'a>(claims: &'a Claims, bytes: std::ops::Range<u64>, touch: Touch) -> Claiming<'a> {
        Box::pin(claims.claim(bytes, touch))
    }

    fn now<'a>(claiming: &mut Claiming<'a>) -> Option<Claim<'a>> {
        claiming.as_mut().now_or_never()
    }

    #[test]
    fn whole_blocks_wait_for_rewrites_only_and_rewrites_for_all() {
        let claims = Claims::default();
        let whole = now(&mut begin(&claims, 0..8192, Touch::Whole));
        let beside = now(&mut begin(&claims, 4096..12288, Touch::Whole));
        assert!(whole.is_some() && beside.is_some());
        let mut part = begin(&claims, 4096..8192, Touch::Part);
        let elsewhere = now(&mut begin(&claims, 12288..16384, Touch::Part));
        assert!(now(&mut part).is_none() && elsewhere.is_some());
        // who comes later does not overtake one that waits
        let mut after = begin(&claims, 0..8192, Touch::Whole);
        assert!(now(&mut after).is_none());
        drop(whole);
        assert!(now(&mut part).is_none());
        drop(beside);
        let part = now(&mut part);
        assert!(part.is_some() && now(&mut after).is_none());
        drop(part);
        assert!(now(&mut after).is_some());
    }

    #[test]
    fn one_that_gives_up_waiting_is_in_nobodys_way() {
        let claims = Claims::default();
        let whole = now(&mut begin(&claims, 0..4096, Touch::Whole));
        let mut part = begin(&claims, 0..4096, Touch::Part);
        assert!(now(&mut part).is_none());
        let mut after = begin(&claims, 0..4096, Touch::Whole);
        assert!(now(&mut after).is_none());
        drop(part);
        assert!(now(&mut after).is_some());
        drop(whole);
        assert!(claims.entries.borrow().is_empty());
    }
}
