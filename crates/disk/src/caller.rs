//! Who waits for a request, and what becomes of it when nobody does any more.
//!
//! ```text
//!   submit ─► nothing left behind? ─► task of its own ────────────────► ended
//!                  ▲                    │ its future is dropped: left behind
//!                  └──── later requests wait ◄──┘ waits for space or the gate? ─► cut short
//! ```
//!
//! What changes the leaf runs to its end even when its future is dropped: its ticket must outlive its
//! I/O. But then nobody knows when it ends, and whoever comes next, the same client after it was
//! connected again or another one, may write the same sectors, be told so, and find them changed back.
//! So nothing begins, not even a read, while a request runs that was left behind (rule P4).

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use io::{Result, Task};

use crate::disk::{Disk, Inner};

/// Whoever waits for a request.
#[derive(Debug, Default)]
pub(crate) struct Caller {
    gone: Cell<bool>,
}

impl Caller {
    /// Whether nobody waits any more. What has not begun yet must not begin then.
    pub(crate) fn is_gone(&self) -> bool {
        self.gone.get()
    }
}

/// A request that runs to its end by itself; dropping this says that nobody waits for it any more.
struct Attended {
    task: Task<Result<()>>,
    caller: Rc<Caller>,
    inner: Rc<Inner>,
}

impl Future for Attended {
    type Output = Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.task).poll(cx)
    }
}

impl Drop for Attended {
    fn drop(&mut self) {
        if self.task.is_finished() {
            return;
        }
        self.caller.gone.set(true);
        self.inner.left_behind.set(self.inner.left_behind.get() + 1);
        self.inner.changed.notify();
    }
}

/// The request's own end of it.
struct UnderWay {
    caller: Rc<Caller>,
    inner: Rc<Inner>,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if self.caller.is_gone() {
            self.inner.left_behind.set(self.inner.left_behind.get() - 1);
            self.inner.changed.notify();
        }
    }
}

impl Inner {
    /// Waits until no request is under way that its caller left behind.
    pub(crate) async fn follow(&self) {
        while self.left_behind.get() > 0 && self.rules.p4_left_behind_first {
            self.changed.listen().await;
        }
    }
}

impl Disk {
    /// Runs `request` as a task of its own.
    pub(crate) async fn attended<F: Future<Output = Result<()>> + 'static>(
        &self,
        request: impl FnOnce(Rc<Caller>) -> F,
    ) -> Result<()> {
        self.inner.follow().await;
        let (caller, inner) = (Rc::new(Caller::default()), Rc::clone(&self.inner));
        let under_way = UnderWay { caller: Rc::clone(&caller), inner: Rc::clone(&inner) };
        let request = request(Rc::clone(&caller));
        let task = self.inner.local.spawn(async move {
            let _under_way = under_way;
            request.await
        });
        Attended { task, caller, inner }.await
    }
}
