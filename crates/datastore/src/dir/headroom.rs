//! Head-room: space that guest data cannot have, so that records, intents and deletes go on when
//! the file system is full (deleting needs a record first, and some file systems need space for the
//! deletion itself).
//!
//! The head-room is a real file, `shale.reserve`, whose space is allocated. As long as it is whole,
//! whoever fills the file system, guests or strangers, runs into its end before the head-room.
//!
//! ```text
//!   Whole ──a put or remove met NoSpace──► Lent ──space came back──► Whole
//!     │ guests may take space               │ guests may not: NoSpace at once
//! ```
//!
//! - A `put` or `remove` that meets `NoSpace` becomes a borrower. It waits until no guest is inside
//!   a `reserve`, cuts a slice off the file's end, tries again, and so on until it is done or
//!   nothing is left. A slice is small, so that a stranger can snatch little of it.
//! - Every borrower, and every removal, puts back what it can. Guests come in again only when the
//!   file is whole, so what they take is never head-room.
//! - The wait is a future, not a blocked thread: a guest's `reserve` may need the same helper
//!   threads that a waiting borrower would block.
//!
//! It holds bytes, not inodes: a file system without free inodes refuses new objects to all alike.
//!
//! Without fallocate (ZFS) there is no such file: a guest's `reserve` is refused while less than
//! the head-room plus its own length is free. That check and the taking are two steps, so there
//! the head-room may be dented by requests that run at the same moment.

use std::future::poll_fn;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

/// Name of the file.
pub(super) const FILE: &str = "shale.reserve";
/// Most that is kept.
const MOST: u64 = 64 << 20;
/// Least that is kept, on very small file systems.
const LEAST: u64 = 4 << 20;
/// What is cut off at once for a borrower: the largest thing it writes in one step is smaller in
/// all but odd cases, and then it comes back.
pub(super) const SLICE: u64 = 512 << 10;
/// Smallest step of putting space back.
const STEP: u64 = 64 << 10;

/// The head-room that a file system of `total` bytes gets: 1 %, but 4 to 64 MiB.
pub(super) fn size_for(total: u64) -> u64 {
    (total / 100).clamp(LEAST, MOST).next_multiple_of(STEP)
}

/// Whether guests may take space.
#[derive(Debug)]
enum Phase {
    /// The file is whole; so many guests are taking space.
    Whole { guests: usize },
    /// So many borrowers wait for so many guests to come out.
    Closing { guests: usize, borrowers: usize },
    /// The file is not whole; so many borrowers are at work.
    Lent { borrowers: usize },
}

#[derive(Debug)]
struct State {
    phase: Phase,
    waiting: Vec<Waker>,
}

/// The head-room of one datastore, shared by its threads.
#[derive(Debug)]
pub(super) struct HeadRoom {
    file: Option<OwnedFd>,
    want: u64,
    /// Bytes of the file that are really taken. Locked while the file is worked on, by helper
    /// threads only.
    held: Mutex<u64>,
    /// Locked for moments; never while the file is worked on, as home threads take it.
    state: Mutex<State>,
}

/// What a guest is told at the door.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Door {
    /// Take space; call `leave` afterwards.
    Entered,
    /// The file is not whole: try `refill`, then ask again.
    NotWhole,
}

impl HeadRoom {
    /// The head-room in `file`, of which `held` bytes are there, and which wants to be `want`.
    pub(super) fn new(file: Option<OwnedFd>, want: u64, held: u64) -> Self {
        let whole = file.is_none() || held >= want;
        let phase = if whole { Phase::Whole { guests: 0 } } else { Phase::Lent { borrowers: 0 } };
        let state = State { phase, waiting: Vec::new() };
        Self { file, want, held: Mutex::new(held), state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn held(&self) -> MutexGuard<'_, u64> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes that guests must leave free beyond what is taken already. Blocks.
    pub(super) fn missing(&self) -> u64 {
        self.want.saturating_sub(*self.held())
    }

    /// Whether the file system's free bytes have to be compared with [`HeadRoom::missing`], because
    /// there is no file that holds the space.
    pub(super) fn is_counted(&self) -> bool {
        self.file.is_none()
    }

    /// Waits until no borrower is at work, and lets a guest in if the head-room is whole.
    pub(super) async fn enter(&self) -> Door {
        poll_fn(|context| self.poll_enter(context)).await
    }

    fn poll_enter(&self, context: &mut Context<'_>) -> Poll<Door> {
        let mut state = self.state();
        match &mut state.phase {
            Phase::Whole { guests } => {
                *guests += 1;
                Poll::Ready(Door::Entered)
            }
            Phase::Lent { borrowers: 0 } => Poll::Ready(Door::NotWhole),
            Phase::Lent { .. } | Phase::Closing { .. } => {
                state.waiting.push(context.waker().clone());
                Poll::Pending
            }
        }
    }

    /// A guest comes out.
    pub(super) fn leave(&self) {
        let mut state = self.state();
        let opened = match &mut state.phase {
            Phase::Whole { guests } => {
                *guests -= 1;
                false
            }
            Phase::Closing { guests, borrowers } => {
                *guests -= 1;
                let (guests, borrowers) = (*guests, *borrowers);
                if guests == 0 {
                    state.phase = Phase::Lent { borrowers };
                }
                guests == 0
            }
            Phase::Lent { .. } => unreachable!("a guest was inside while head-room was lent"),
        };
        if opened {
            wake(state);
        }
    }

    /// Shuts guests out and waits until they are; [`HeadRoom::settle`] must follow.
    pub(super) async fn borrow(&self) {
        self.close();
        poll_fn(|context| {
            let mut state = self.state();
            if matches!(state.phase, Phase::Lent { .. }) {
                return Poll::Ready(());
            }
            state.waiting.push(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    fn close(&self) {
        let mut state = self.state();
        state.phase = match state.phase {
            Phase::Whole { guests: 0 } => Phase::Lent { borrowers: 1 },
            Phase::Whole { guests } => Phase::Closing { guests, borrowers: 1 },
            Phase::Closing { guests, borrowers } => {
                Phase::Closing { guests, borrowers: borrowers + 1 }
            }
            Phase::Lent { borrowers } => Phase::Lent { borrowers: borrowers + 1 },
        };
    }

    /// A borrower gets space: false if none is left. Blocks.
    pub(super) fn release_slice(&self) -> Result<bool, Errno> {
        let Some(file) = &self.file else { return Ok(false) };
        let mut held = self.held();
        let lent = matches!(self.state().phase, Phase::Lent { borrowers: 1.. });
        assert!(lent, "head-room is released without a borrower");
        if *held == 0 {
            return Ok(false);
        }
        let left = held.saturating_sub(SLICE);
        rustix::fs::ftruncate(file, left)?;
        *held = left;
        // Some file systems hand freed space out only after the transaction that freed it.
        rustix::fs::fsync(file)?;
        Ok(true)
    }

    /// A borrower is done, whatever became of it. Blocks.
    pub(super) fn settle(&self) {
        {
            let mut state = self.state();
            match &mut state.phase {
                Phase::Lent { borrowers: borrowers @ 1.. } => *borrowers -= 1,
                other => unreachable!("a borrower left while head-room was {other:?}"),
            }
        }
        self.refill();
    }

    /// Puts back what is missing, as far as there is space and nobody borrows. Blocks. Cheap when
    /// nothing is missing.
    pub(super) fn refill(&self) {
        // What is put back while someone borrows would only be taken out again.
        let idle = |state: &State| matches!(state.phase, Phase::Lent { borrowers: 0 });
        if !idle(&self.state()) {
            return;
        }
        let mut held = self.held();
        if let Some(file) = &self.file {
            *held = fill(file, *held, self.want);
        }
        let mut state = self.state();
        if idle(&state) && (self.file.is_none() || *held >= self.want) {
            state.phase = Phase::Whole { guests: 0 };
        }
        wake(state);
    }
}

fn wake(mut state: MutexGuard<'_, State>) {
    let waiting = std::mem::take(&mut state.waiting);
    drop(state);
    waiting.into_iter().for_each(Waker::wake);
}

/// Extends the allocated file from `held` towards `want` bytes, in ever smaller steps where space
/// runs out; how far it came.
pub(super) fn fill(file: &OwnedFd, mut held: u64, want: u64) -> u64 {
    let mut step = want.saturating_sub(held);
    while held < want && step > 0 {
        let part = step.min(want - held);
        match rustix::fs::fallocate(file, FallocateFlags::empty(), held, part) {
            Ok(()) => held += part,
            Err(Errno::INTR) => {}
            Err(Errno::NOSPC | Errno::DQUOT) => {
                // What the failed attempt allocated beyond the end is given back.
                if let Err(error) = rustix::fs::ftruncate(file, held) {
                    tracing::warn!(%error, "cannot trim the head-room file of a datastore");
                }
                step = part / 2 / STEP * STEP;
            }
            Err(error) => {
                tracing::warn!(%error, "cannot take back the head-room of a datastore");
                break;
            }
        }
    }
    held
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::{Door, HeadRoom, LEAST, MOST, SLICE, size_for};

    fn poll<T>(future: impl Future<Output = T>) -> Option<T> {
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        }
    }

    fn held(want: u64) -> HeadRoom {
        let file = tempfile::tempfile().unwrap().into();
        let held = super::fill(&file, 0, want);
        assert_eq!(held, want);
        HeadRoom::new(Some(file), want, held)
    }

    #[test]
    fn sizes() {
        assert_eq!(size_for(0), LEAST);
        assert_eq!(size_for(1 << 30), 10_747_904);
        assert_eq!(size_for(u64::MAX), MOST);
    }

    #[test]
    fn n1_guests_and_borrowers_exclude_each_other() {
        let room = held(4 * SLICE);
        assert_eq!(poll(room.enter()), Some(Door::Entered));
        assert_eq!(poll(room.enter()), Some(Door::Entered));
        let mut borrower = pin!(room.borrow());
        let mut context = Context::from_waker(Waker::noop());
        assert!(borrower.as_mut().poll(&mut context).is_pending(), "a guest was inside");
        assert_eq!(poll(room.enter()), None, "a guest came in before a waiting borrower");
        room.leave();
        assert!(borrower.as_mut().poll(&mut context).is_pending(), "a guest was inside");
        room.leave();
        assert!(borrower.as_mut().poll(&mut context).is_ready());

        assert_eq!(poll(room.enter()), None, "a guest came in while head-room was lent");
        assert!(room.release_slice().unwrap());
        assert_eq!(room.missing(), SLICE);
        room.settle();
        assert_eq!(room.missing(), 0, "the slice was not put back");
        assert_eq!(poll(room.enter()), Some(Door::Entered));
    }

    #[test]
    fn n1_the_last_of_several_borrowers_puts_back() {
        let room = held(2 * SLICE);
        assert_eq!(poll(room.borrow()), Some(()));
        assert_eq!(poll(room.borrow()), Some(()));
        assert_eq!([(); 3].map(|()| room.release_slice().unwrap()), [true, true, false]);
        room.settle();
        room.refill();
        assert_eq!(room.missing(), 2 * SLICE, "put back under a borrower's hands");
        assert_eq!(poll(room.enter()), None);
        room.settle();
        assert_eq!(room.missing(), 0);
    }

    #[test]
    fn without_a_file_there_is_nothing_to_lend() {
        let room = HeadRoom::new(None, LEAST, 0);
        assert!(room.is_counted());
        assert_eq!((room.missing(), poll(room.borrow())), (LEAST, Some(())));
        assert!(!room.release_slice().unwrap());
        room.settle();
        assert_eq!(poll(room.enter()), Some(Door::Entered));
    }
}
