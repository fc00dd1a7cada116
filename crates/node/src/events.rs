//! What changed, for whoever listens. The last events are kept, so that a listener that lost its
//! connection goes on where it was; one that is too far behind is told to load its lists again.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use model::{Change, Event, Timestamp};
use tokio::sync::watch;

/// Events that are kept for those who come back.
const KEPT: usize = 2048;

/// The wall clock.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_unix_ms(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

struct Inner {
    last: u64,
    kept: VecDeque<Arc<Event>>,
}

/// The stream of changes. Cheap to clone; shared by all threads.
#[derive(Clone)]
pub(crate) struct Events {
    inner: Arc<Mutex<Inner>>,
    last: watch::Sender<u64>,
}

impl Events {
    /// Event ids go on where the wall clock is, so that a restarted node does not reuse them.
    pub(crate) fn new() -> Self {
        let first = now().unix_ms().saturating_mul(1000);
        let inner = Inner { last: first, kept: VecDeque::new() };
        Self { inner: Arc::new(Mutex::new(inner)), last: watch::Sender::new(first) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells everybody.
    pub(crate) fn tell(&self, change: Change) {
        let id = {
            let mut inner = self.lock();
            inner.last += 1;
            let event = Event { id: inner.last, at: now(), change };
            inner.kept.push_back(Arc::new(event));
            if inner.kept.len() > KEPT {
                inner.kept.pop_front();
            }
            inner.last
        };
        self.last.send_replace(id);
    }

    /// Listens from now on, or from after the event `last` where that is still known.
    pub(crate) fn listen(&self, last: Option<u64>) -> Listener {
        let next = last.unwrap_or_else(|| self.lock().last);
        Listener { events: self.clone(), seen: next, changed: self.last.subscribe() }
    }

    /// The events after `seen`; None where some of them are no longer known.
    fn after(&self, seen: u64) -> (u64, Option<Vec<Arc<Event>>>) {
        let inner = self.lock();
        let oldest = inner.kept.front().map_or(inner.last + 1, |event| event.id);
        if seen > inner.last || seen + 1 < oldest {
            return (inner.last, None);
        }
        let news = inner.kept.iter().filter(|event| event.id > seen).cloned().collect();
        (inner.last, Some(news))
    }
}

/// One reader of the stream.
pub(crate) struct Listener {
    events: Events,
    seen: u64,
    changed: watch::Receiver<u64>,
}

impl Listener {
    /// The next events, at least one; None when the node goes down.
    pub(crate) async fn next(&mut self) -> Option<Vec<Arc<Event>>> {
        loop {
            self.changed.mark_unchanged();
            let (last, news) = self.events.after(self.seen);
            self.seen = last;
            match news {
                Some(news) if news.is_empty() => self.changed.changed().await.ok()?,
                Some(news) => return Some(news),
                None => {
                    let event = Event { id: last, at: now(), change: Change::Resync };
                    return Some(vec![Arc::new(event)]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Events, KEPT};
    use model::{Alarm, Change, ObjectKind, ObjectRef, Severity, Uuid};

    fn alarm(n: usize) -> Change {
        let object = ObjectRef { kind: ObjectKind::Node, id: Uuid::nil(), name: "n".into() };
        Change::Alarm(Alarm {
            id: Uuid::nil(),
            severity: Severity::Info,
            code: n.to_string(),
            object,
            message: String::new(),
            hint: None,
            since: super::now(),
        })
    }

    #[tokio::test]
    async fn listeners_go_on_where_they_were_or_are_told_to_reload() {
        let events = Events::new();
        let mut from_start = events.listen(None);
        events.tell(alarm(1));
        events.tell(alarm(2));
        let first = from_start.next().await.unwrap();
        assert_eq!(first.len(), 2);
        events.tell(alarm(3));
        let again = events.listen(Some(first[0].id)).next().await.unwrap();
        assert_eq!(again.iter().map(|e| e.id).collect::<Vec<_>>(), [first[1].id, first[1].id + 1]);
        for n in 0..=KEPT {
            events.tell(alarm(n));
        }
        let late = events.listen(Some(first[0].id)).next().await.unwrap();
        assert_eq!(late[0].change, Change::Resync);
        let foreign = events.listen(Some(u64::MAX)).next().await.unwrap();
        assert_eq!(foreign[0].change, Change::Resync, "an id of another life");
    }
}
