//! The controller's own event stream: the last events are kept, so that a reader that lost its
//! connection goes on where it was; one that is too far behind is told to load its lists again.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use model::{Change, Event, Timestamp};
use tokio::sync::broadcast;

/// Events that are kept for those who come back.
const KEPT: usize = 2048;

/// The wall clock.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_unix_ms(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[derive(Debug)]
struct Kept {
    last: u64,
    events: VecDeque<Arc<Event>>,
}

/// Where changes go; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Hub {
    kept: Arc<Mutex<Kept>>,
    live: broadcast::Sender<Arc<Event>>,
}

impl Hub {
    /// Event ids go on from the wall clock: a restarted controller does not reuse them.
    pub(crate) fn new() -> Self {
        let last = now().unix_ms().saturating_mul(1000);
        let (live, _) = broadcast::channel(KEPT);
        Self { kept: Arc::new(Mutex::new(Kept { last, events: VecDeque::new() })), live }
    }

    pub(crate) fn tell(&self, change: Change) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.last += 1;
        let event = Arc::new(Event { id: kept.last, at: now(), change });
        kept.events.push_back(Arc::clone(&event));
        if kept.events.len() > KEPT {
            kept.events.pop_front();
        }
        // sent under the lock: live readers see the ids in order. Nobody has to listen.
        self.live.send(event).ok();
    }

    /// What was missed since `last`, and what comes from now on, without a gap or an overlap.
    pub(crate) fn listen(
        &self,
        last: Option<u64>,
    ) -> (Vec<Arc<Event>>, broadcast::Receiver<Arc<Event>>) {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let live = self.live.subscribe();
        let Some(last) = last else { return (Vec::new(), live) };
        let oldest = kept.events.front().map_or(kept.last + 1, |event| event.id);
        if last > kept.last || last + 1 < oldest {
            return (vec![self.resync(&kept)], live);
        }
        (kept.events.iter().filter(|event| event.id > last).cloned().collect(), live)
    }

    /// Said to a reader that missed events.
    pub(crate) fn resync_now(&self) -> Arc<Event> {
        self.resync(&self.kept.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn resync(&self, kept: &Kept) -> Arc<Event> {
        Arc::new(Event { id: kept.last, at: now(), change: Change::Resync })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_go_on_where_they_were_or_are_told_to_reload() {
        let hub = Hub::new();
        let (missed, mut live) = hub.listen(None);
        assert!(missed.is_empty());
        hub.tell(Change::Resync);
        hub.tell(Change::Resync);
        let first = live.try_recv().expect("told").id;
        let (missed, _) = hub.listen(Some(first));
        assert_eq!(missed.iter().map(|e| e.id).collect::<Vec<_>>(), [first + 1]);
        for _ in 0..=KEPT {
            hub.tell(Change::Resync);
        }
        for unknown in [first, 0, u64::MAX - 1] {
            let (missed, _) = hub.listen(Some(unknown));
            assert_eq!(missed.len(), 1, "{unknown}");
            assert_eq!(missed[0].change, Change::Resync);
        }
    }
}
