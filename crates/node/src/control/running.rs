//! The disks that run here, as the catalog sees them: several volumes are gated on their home
//! threads together, switched after the commit, and always let go again.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use catalog::{CatalogError, Code, Result, Running, Tip};
use io::{Io, IoError};
use uuid::Uuid;

use super::Control;
use crate::crash;
use crate::home::Home;
use crate::worker::Worker;

/// A volume whose gate is shut, or about to be.
struct Gated {
    since: Instant,
    /// Its connection may be closing meanwhile, and that waits for the gate: it is opened, or the disk
    /// ended, wherever the connection is.
    home: Worker<Home>,
}

/// [`Running`] over the home threads. One for each catalog.
pub(super) struct Homes {
    control: Weak<Control>,
    gated: RefCell<HashMap<Uuid, Gated>>,
    /// The longest that each volume's guest waited in its last gate.
    paused: RefCell<HashMap<Uuid, Duration>>,
}

impl Homes {
    pub(super) fn new(control: &Rc<Control>) -> Rc<Self> {
        Rc::new(Self {
            control: Rc::downgrade(control),
            gated: RefCell::default(),
            paused: RefCell::default(),
        })
    }

    fn home(&self, volume: Uuid) -> Result<Worker<Home>> {
        if let Some(gated) = self.gated.borrow().get(&volume) {
            return Ok(gated.home.clone());
        }
        let control = self.control.upgrade().ok_or_else(gone)?;
        control.home_of(volume).ok_or_else(|| {
            CatalogError::new(Code::Io, format!("volume {volume} is not connected any more"))
        })
    }

    async fn gate_on(&self, home: Worker<Home>, volume: Uuid) -> Result<()> {
        let gated = Gated { since: Instant::now(), home: home.clone() };
        self.gated.borrow_mut().insert(volume, gated);
        crash::point("before-gate");
        let gated = home
            .call(move |home| async move { home.gate(volume).await })
            .await
            .map_err(|_gone| gone())?;
        crash::point("after-gate");
        gated.map_err(from_io)
    }

    /// Ends a disk that must not be written any more, also one whose connection is closing already.
    async fn end(&self, volume: Uuid, why: String) {
        let gated = self.gated.borrow_mut().remove(&volume);
        if let Some(control) = self.control.upgrade() {
            control.abandon(volume, why).await;
        }
        if let Some(gated) = gated
            && gated.home.call(move |home| async move { home.abandon(volume).await }).await.is_err()
        {
            tracing::error!(%volume, "the home thread ended while the gate was closed");
        }
    }

    /// How long the volume's guest waited; forgets it.
    pub(super) fn take_pause(&self, volume: Uuid) -> Option<Duration> {
        self.paused.borrow_mut().remove(&volume)
    }

    /// Opens gates that an operation left closed. None should be; a guest must not hang for it.
    pub(super) async fn reopen(&self, volumes: &[Uuid]) {
        for volume in volumes {
            if self.gated.borrow().contains_key(volume) {
                tracing::error!(%volume, "an operation left the gate closed; opening it");
                self.ungate(*volume).await;
            }
        }
    }
}

fn gone() -> CatalogError {
    CatalogError::new(Code::Io, "the node is going down")
}

fn from_io(error: IoError) -> CatalogError {
    error.into()
}

impl Running for Homes {
    fn is_connected(&self, volume: Uuid) -> bool {
        self.control.upgrade().is_some_and(|control| control.home_of(volume).is_some())
    }

    fn prepare(&self, volume: Uuid, leaves: Tip) -> Io<'_, Result<()>> {
        Box::pin(async move {
            let home = self.home(volume)?;
            home.call(move |home| async move { home.prepare(volume, leaves.layers()).await })
                .await
                .map_err(|_gone| gone())?
                .map_err(|problem| CatalogError::new(Code::Io, problem.detail))
        })
    }

    fn gate(&self, volume: Uuid) -> Io<'_, Result<()>> {
        Box::pin(async move { self.gate_on(self.home(volume)?, volume).await })
    }

    fn switch(&self, volume: Uuid, leaves: Tip) -> Io<'_, Result<()>> {
        Box::pin(async move {
            let home = self.home(volume)?;
            crash::point("before-switch");
            let switched = home
                .call(move |home| async move { home.switch(volume, leaves.layers()) })
                .await
                .map_err(|_gone| gone())?;
            crash::point("after-switch");
            if let Err(error) = switched {
                // The old leaves are frozen by the commit: the disk must not go on in them.
                let why =
                    format!("its new layer could not be opened after a snapshot: {}", error.detail);
                self.end(volume, why).await;
                return Err(CatalogError::new(Code::Io, error.detail));
            }
            Ok(())
        })
    }

    fn ungate(&self, volume: Uuid) -> Io<'_, ()> {
        Box::pin(async move {
            let home = self.home(volume);
            let gated = self.gated.borrow_mut().remove(&volume);
            let Ok(home) = home else { return };
            let opened = home.call(move |home| async move { home.ungate(volume) }).await;
            if opened.is_err() {
                tracing::error!(%volume, "the home thread ended while the gate was closed");
            }
            if let Some(gated) = gated {
                self.paused.borrow_mut().insert(volume, gated.since.elapsed());
            }
        })
    }

    fn abandon(&self, volume: Uuid) -> Io<'_, ()> {
        Box::pin(async move {
            let why = "whether a snapshot was committed could not be told".to_owned();
            self.end(volume, why).await;
        })
    }
}

#[cfg(test)]
#[path = "running_tests.rs"]
mod tests;
