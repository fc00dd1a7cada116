//! Who works on what: operations on one volume follow each other or are refused; those on different
//! volumes run side by side. Readers pin layers, so that nothing under them changes.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use uuid::Uuid;

use crate::error::{CatalogError, Result};

/// How long an operation may take, and so how others meet it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// Others wait for it.
    Short,
    /// Others are refused, and told what runs.
    Long,
}

#[derive(Debug, Default)]
struct State {
    held: BTreeMap<Uuid, (Rc<str>, Pace)>,
    pins: BTreeMap<Uuid, Vec<Rc<str>>>,
    names: BTreeSet<String>,
    waiting: Vec<Waker>,
    /// Volumes whose files may have changed since they were looked at, each with its last touch.
    touched: BTreeMap<Uuid, u64>,
    /// Counts touches.
    touches: u64,
}

impl State {
    fn touch(&mut self, volumes: impl IntoIterator<Item = Uuid>) {
        for volume in volumes {
            self.touches += 1;
            self.touched.insert(volume, self.touches);
        }
    }
}

/// Volumes that were touched, as of one moment: each with its last touch.
#[derive(Debug)]
pub(crate) struct Touched {
    pub(crate) volumes: BTreeMap<Uuid, u64>,
}

/// The locks of one catalog.
#[derive(Clone, Debug, Default)]
pub(crate) struct Locks(Rc<RefCell<State>>);

/// Volumes held; given back on drop.
#[derive(Debug)]
pub(crate) struct Held {
    locks: Locks,
    volumes: Vec<Uuid>,
}

/// Layers pinned; given back on drop.
#[derive(Debug)]
pub(crate) struct Pinned {
    locks: Locks,
    layers: Vec<Uuid>,
    what: Rc<str>,
}

/// Names taken while their volumes are being made; given back on drop.
#[derive(Debug)]
pub(crate) struct Names {
    locks: Locks,
    names: Vec<String>,
}

impl Locks {
    /// Takes all of `volumes` at once: whoever waits holds nothing, so nobody waits for ever.
    pub(crate) async fn hold(&self, volumes: &[Uuid], what: &str, pace: Pace) -> Result<Held> {
        poll_fn(|cx| {
            let mut state = self.0.borrow_mut();
            let in_the_way: Vec<_> =
                volumes.iter().filter_map(|v| state.held.get(v).cloned()).collect();
            if let Some((running, _)) = in_the_way.iter().find(|(_, pace)| *pace == Pace::Long) {
                return Poll::Ready(Err(CatalogError::busy("the volume", running)));
            }
            if !in_the_way.is_empty() {
                state.waiting.push(cx.waker().clone());
                return Poll::Pending;
            }
            let what: Rc<str> = what.into();
            for volume in volumes {
                state.held.insert(*volume, (Rc::clone(&what), pace));
            }
            Poll::Ready(Ok(Held { locks: self.clone(), volumes: volumes.to_vec() }))
        })
        .await
    }

    /// Notes that files of `volumes` may have changed. Whoever holds volumes need not: those held count
    /// as touched, and so do those that were held.
    pub(crate) fn touch(&self, volumes: impl IntoIterator<Item = Uuid>) {
        self.0.borrow_mut().touch(volumes);
    }

    /// What was touched since it was looked at.
    pub(crate) fn touched(&self) -> Touched {
        let mut state = self.0.borrow_mut();
        let held: Vec<Uuid> = state.held.keys().copied().collect();
        state.touch(held);
        Touched { volumes: state.touched.clone() }
    }

    /// Those volumes were looked at after they were touched. Which were touched again stay touched.
    pub(crate) fn looked_at(&self, touched: Touched) {
        let mut state = self.0.borrow_mut();
        for (volume, touch) in touched.volumes {
            if state.touched.get(&volume) == Some(&touch) {
                state.touched.remove(&volume);
            }
        }
    }

    pub(crate) fn pin(&self, layers: &[Uuid], what: &str) -> Pinned {
        let what: Rc<str> = what.into();
        let mut state = self.0.borrow_mut();
        for layer in layers {
            state.pins.entry(*layer).or_default().push(Rc::clone(&what));
        }
        Pinned { locks: self.clone(), layers: layers.to_vec(), what }
    }

    /// Who reads one of `layers`, if anyone does.
    pub(crate) fn reader_of(&self, layers: impl IntoIterator<Item = Uuid>) -> Option<Rc<str>> {
        let state = self.0.borrow();
        layers.into_iter().find_map(|layer| state.pins.get(&layer)?.first().cloned())
    }

    /// Takes `names`; None if one is being given to another volume now.
    pub(crate) fn name(&self, names: &[String]) -> Option<Names> {
        let mut state = self.0.borrow_mut();
        if names.iter().any(|name| state.names.contains(name)) {
            return None;
        }
        state.names.extend(names.iter().cloned());
        Some(Names { locks: self.clone(), names: names.to_vec() })
    }

    pub(crate) fn running(&self, volume: Uuid) -> Option<String> {
        self.0.borrow().held.get(&volume).map(|(what, _)| what.to_string())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let woken = {
            let mut state = self.locks.0.borrow_mut();
            for volume in &self.volumes {
                state.held.remove(volume);
            }
            state.touch(self.volumes.iter().copied());
            std::mem::take(&mut state.waiting)
        };
        woken.into_iter().for_each(Waker::wake);
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let mut state = self.locks.0.borrow_mut();
        for layer in &self.layers {
            let Some(readers) = state.pins.get_mut(layer) else { continue };
            if let Some(at) = readers.iter().position(|what| Rc::ptr_eq(what, &self.what)) {
                readers.swap_remove(at);
            }
            if readers.is_empty() {
                state.pins.remove(layer);
            }
        }
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        let mut state = self.locks.0.borrow_mut();
        for name in &self.names {
            state.names.remove(name);
        }
    }
}
