//! The guest: it writes, clears, flushes and reads connected volumes over NBD, one request after the
//! other, while everything else goes on.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use export::{NbdAddress, NbdClient, NbdResult};
use io::sim::SplitMix64;
use model::Uuid;
use sim::guest::{ZERO, recognise, sector_bytes};

use super::ledger::{Ledger, zones};

/// A server that says nothing for so long has failed.
const LIMIT: Duration = Duration::from_secs(60);
/// Until a client that found nobody tries again.
const RETRY: Duration = Duration::from_millis(20);

/// What administrators, guest and killer share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    ledger: Mutex<Ledger>,
    /// The guest is to end.
    over: AtomicBool,
    /// The guest begins nothing new: somebody looks at everything.
    paused: Mutex<Pause>,
    changed: Condvar,
    /// The power is being cut: what is answered from now on was not promised.
    dark: AtomicBool,
    /// What a guest read that it must not.
    wrong: Mutex<Option<String>>,
}

#[derive(Debug, Default)]
struct Pause {
    wanted: bool,
    busy: bool,
}

fn open<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        open(&self.ledger)
    }

    /// What went wrong in the guest, if anything.
    pub(super) fn wrong(&self) -> Option<String> {
        open(&self.wrong).clone()
    }

    /// Waits until the guest has ended its request, and keeps it from the next.
    pub(super) fn pause(&self) {
        let mut pause = open(&self.paused);
        pause.wanted = true;
        while pause.busy {
            pause = self.changed.wait(pause).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// From now on nothing that is answered counts, until guests [go on](Self::go_on).
    pub(super) fn darken(&self) {
        self.dark.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_dark(&self) -> bool {
        self.dark.load(Ordering::SeqCst)
    }

    pub(super) fn go_on(&self) {
        self.dark.store(false, Ordering::SeqCst);
        open(&self.paused).wanted = false;
        self.changed.notify_all();
    }

    fn end(&self) {
        self.over.store(true, Ordering::SeqCst);
        self.go_on();
    }

    /// Waits while the guest is to pause; false: it is to end.
    fn enter(&self) -> bool {
        let mut pause = open(&self.paused);
        while pause.wanted && !self.over.load(Ordering::SeqCst) {
            pause = self.changed.wait(pause).unwrap_or_else(PoisonError::into_inner);
        }
        pause.busy = true;
        !self.over.load(Ordering::SeqCst)
    }

    fn leave(&self) {
        open(&self.paused).busy = false;
        self.changed.notify_all();
    }
}

/// The guest's thread; it ends when this is dropped.
pub(super) struct Guest {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<u64>>,
}

impl Guest {
    pub(super) fn start(shared: &Arc<Shared>, seed: u64) -> Self {
        let of_thread = Arc::clone(shared);
        let thread = std::thread::spawn(move || live(&of_thread, SplitMix64::new(seed)));
        Self { shared: Arc::clone(shared), thread: Some(thread) }
    }

    /// Ends it; how many requests it made.
    pub(super) fn end(mut self) -> u64 {
        self.shared.end();
        self.thread.take().map_or(0, |thread| thread.join().unwrap_or(0))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.shared.end();
    }
}

fn live(shared: &Shared, mut rng: SplitMix64) -> u64 {
    let mut clients: HashMap<(Uuid, String), NbdClient> = HashMap::new();
    let mut requests = 0;
    while shared.enter() {
        let chosen = choose(&shared.ledger(), &mut rng);
        let served = match chosen {
            None => false,
            Some((volume, uri)) => {
                let key = (volume, uri);
                match clients.remove(&key).map_or_else(|| connect(&key.1), Ok) {
                    Err(_not_there) => false,
                    Ok(mut client) => {
                        let went = act(shared, volume, &mut client, &mut rng);
                        requests += 1;
                        if went.is_ok() {
                            clients.insert(key, client);
                        }
                        went.is_ok()
                    }
                }
            }
        };
        shared.leave();
        if !served {
            // nobody to wait for: a server that is to come back says nothing of it
            std::thread::sleep(RETRY);
        }
    }
    shared.leave();
    requests
}

fn choose(ledger: &Ledger, rng: &mut SplitMix64) -> Option<(Uuid, String)> {
    let all: Vec<(Uuid, String)> =
        ledger.volumes.iter().filter_map(|(id, v)| Some((*id, v.uri.clone()?))).collect();
    let last = (all.len() as u64).checked_sub(1)?;
    all.get(usize::try_from(rng.between(0, last)).ok()?).cloned()
}

pub(super) fn connect(uri: &str) -> NbdResult<NbdClient> {
    NbdClient::connect(&NbdAddress::parse(uri)?, LIMIT)
}

/// One request; on an error its outcome is open.
fn act(
    shared: &Shared,
    volume: Uuid,
    client: &mut NbdClient,
    rng: &mut SplitMix64,
) -> NbdResult<()> {
    let (at, len, value) = {
        let mut ledger = shared.ledger();
        let value = ledger.value();
        let Some(known) = ledger.volumes.get(&volume).filter(|v| v.uri.is_some()) else {
            return Ok(());
        };
        let zones = zones(known.blocks);
        let last = zones.len() as u64 - 1;
        let (first, room) = zones[usize::try_from(rng.between(0, last)).unwrap_or(0)];
        let skip = rng.between(0, room - 1);
        (first + skip, rng.between(1, room - skip), value)
    };
    if at + len > client.size() / 512 {
        // it shrank by a revert since the client came
        return Ok(());
    }
    let (offset, bytes) = (at * 512, len * 512);
    let size = u32::try_from(bytes).expect("a few sectors");
    let on = |doing: &mut dyn FnMut(&mut sim::guest::History)| {
        if let Some(known) = shared.ledger().volumes.get_mut(&volume) {
            doing(&mut known.history);
        }
    };
    match rng.between(0, 9) {
        0..=4 => {
            on(&mut |history| history.submit(at, len, value));
            let data: Vec<u8> = (at..at + len).flat_map(|s| sector_bytes(value, s)).collect();
            client.write(offset, &data)?;
            on(&mut |history| history.acknowledge(at, len, value));
        }
        5 | 6 => {
            let value = value | ZERO;
            on(&mut |history| history.submit(at, len, value));
            client.zero(offset, size, rng.chance(50))?;
            on(&mut |history| history.acknowledge(at, len, value));
        }
        7 => {
            let mut began = 0;
            on(&mut |history| began = history.tick());
            client.flush()?;
            if !shared.is_dark() {
                on(&mut |history| history.flushed(began));
            }
        }
        _ => {
            let mut data = vec![0; usize::try_from(bytes).expect("a few sectors")];
            client.read(offset, &mut data)?;
            let ledger = shared.ledger();
            let Some(known) = ledger.volumes.get(&volume) else { return Ok(()) };
            for (sector, found) in (at..).zip(data.chunks(512)) {
                let allowed = known.history.after_kill(sector);
                if let Err(what) = recognise(found, sector, &allowed) {
                    let what = format!("a guest of {} read: {what}", known.name);
                    open(&shared.wrong).get_or_insert(what);
                }
            }
        }
    }
    Ok(())
}
