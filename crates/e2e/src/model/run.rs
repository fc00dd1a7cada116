//! One seed: lives of one system, each ended by a death, each looked at from end to end.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use controller::client::Method;
use io::sim::SplitMix64;
use serde_json::json;

use super::check::{self, Died};
use super::deeds::{Deeds, Went};
use super::guest::{Guest, Shared};
use super::machine::Machine;
use super::rest::Rest;

/// The machine's disk: room for all that deeds make.
const DISK: u64 = 3 << 30;
const DATASTORE: &str = "store";
/// Where the disk and the log of a seed with a difference are kept; unset: nowhere.
const KEEP: &str = "SHALE_MODEL_KEEP";

/// What a run came to.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Power cuts.
    pub cuts: u64,
    /// Deaths of the node, of the server, of both.
    pub kills: u64,
    /// Deeds that were done, by name.
    pub done: BTreeMap<&'static str, u64>,
    /// Deeds that were refused as they must be.
    pub refused: u64,
    /// Deeds that a death interrupted.
    pub open: u64,
    /// Requests of guests.
    pub requests: u64,
}

impl Outcome {
    /// Adds another run's figures.
    pub fn add(&mut self, other: &Self) {
        self.cuts += other.cuts;
        self.kills += other.kills;
        self.refused += other.refused;
        self.open += other.open;
        self.requests += other.requests;
        for (deed, count) in &other.done {
            *self.done.entry(deed).or_default() += count;
        }
    }
}

/// How a life ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Death {
    /// Nothing dies: the deeds end, and what the server learned of them must be all of it.
    Nobody,
    Node,
    Server,
    Both,
    Power,
}

/// Runs one seed of `lives` lives. `tell` hears each life as it begins.
///
/// # Errors
/// The first difference between system and model, with the life it was in and the system's last words.
pub fn run(seed: u64, lives: u64, tell: &mut dyn FnMut(&str)) -> Result<Outcome> {
    let mut machine = Machine::new(DISK)?;
    let mut outcome = Outcome::default();
    let lived = live(&mut machine, seed, lives, tell, &mut outcome);
    let errors = machine.disk_errors();
    if let (Err(_), Some(dir)) = (&lived, std::env::var_os(KEEP)) {
        machine.keep_in(&Path::new(&dir).join(seed.to_string()))?;
    }
    lived.with_context(|| {
        let errors = errors.map_or_else(|e| e.to_string(), |errors| errors.to_string());
        let log = machine.log();
        format!("seed {seed}; errors of the disk below: {errors}; the system's last words:\n{log}")
    })?;
    Ok(outcome)
}

fn live(
    machine: &mut Machine,
    seed: u64,
    lives: u64,
    tell: &mut dyn FnMut(&str),
    outcome: &mut Outcome,
) -> Result<()> {
    let mut rng = SplitMix64::new(seed);
    let rest = Rest::new(machine.url(), &machine.token()?)?;
    let body = json!({"name": DATASTORE, "dir": machine.store().display().to_string()});
    rest.change(Method::POST, "/api/v1/datastores", Some(&body))
        .map_err(|problem| anyhow::anyhow!("{}", problem.detail))?;
    let shared = Arc::new(Shared::default());
    let guest = Guest::start(&shared, rng.next_u64());
    for number in 0..lives {
        let death = match rng.between(0, 9) {
            0..=1 => Death::Node,
            2 => Death::Nobody,
            3 => Death::Server,
            4 => Death::Both,
            _ => Death::Power,
        };
        let after = Duration::from_millis(rng.between(5, 1500));
        tell(&format!("seed {seed}, life {number}: {death:?} after {after:?}"));
        let plan = SplitMix64::new(rng.next_u64());
        let within = || format!("life {number}, which ended by {death:?} after {after:?}");
        one_life(machine, &rest, &shared, plan, (death, after), outcome).with_context(within)?;
        match death {
            Death::Nobody => {}
            Death::Power => outcome.cuts += 1,
            Death::Node | Death::Server | Death::Both => outcome.kills += 1,
        }
    }
    shared.pause();
    check::everything(&rest, &shared, Died::Nothing).context("at the end")?;
    outcome.requests += guest.end();
    machine.down()
}

/// Deeds until the death, then a look at everything.
fn one_life(
    machine: &mut Machine,
    rest: &Rest,
    shared: &Shared,
    plan: SplitMix64,
    (death, after): (Death, Duration),
    outcome: &mut Outcome,
) -> Result<()> {
    let outside = machine.outside().to_owned();
    let (begun, begin) = channel::<()>();
    // said before the first process dies: until then nothing may fail as if one had
    let dying = AtomicBool::new(false);
    // the deeds go on, on this thread, while the killer waits on its own
    let killed = std::thread::scope(|scope| {
        let (died, dead) = channel::<()>();
        let (machine, dying) = (&mut *machine, &dying);
        let dark = || shared.darken();
        let killer = scope.spawn(move || {
            // the sender goes early where a deed went wrong
            let early = matches!(begin.recv_timeout(after), Err(RecvTimeoutError::Disconnected));
            dying.store(death != Death::Nobody, Ordering::SeqCst);
            let killed = if early { Ok(()) } else { kill(machine, death, dark) };
            drop(died);
            killed
        });
        let mut deeds = Deeds { rest, shared, rng: plan, outside: &outside, datastore: DATASTORE };
        let acted = act(&mut deeds, (dying, &dead), shared, outcome);
        drop(begun);
        let killed = killer.join().unwrap_or_else(|_panic| bail!("the killer failed"));
        acted.and(killed)
    });
    killed?;
    shared.pause();
    let died = match death {
        Death::Nobody => Died::Nothing,
        Death::Node => Died::Processes,
        Death::Server => {
            machine.serve()?;
            Died::Nothing
        }
        Death::Both => {
            machine.serve()?;
            Died::Processes
        }
        Death::Power => {
            machine.serve()?;
            Died::Machine
        }
    };
    rest.moved(machine.url(), &machine.token()?)?;
    check::everything(rest, shared, died)?;
    if let Some(wrong) = shared.wrong() {
        bail!("{wrong}");
    }
    shared.go_on();
    Ok(())
}

fn kill(machine: &mut Machine, death: Death, dark: impl FnOnce()) -> Result<()> {
    match death {
        Death::Nobody => Ok(()),
        Death::Node => machine.kill_node(),
        Death::Server => machine.kill_serve(),
        Death::Both => machine.kill_all(),
        Death::Power => machine.cut(dark),
    }
}

/// Deeds, one after the other, until one is left open by the death, or the death was between two.
fn act(
    deeds: &mut Deeds<'_>,
    (dying, dead): (&AtomicBool, &Receiver<()>),
    shared: &Shared,
    outcome: &mut Outcome,
) -> Result<()> {
    loop {
        if matches!(dead.try_recv(), Err(std::sync::mpsc::TryRecvError::Disconnected)) {
            return Ok(());
        }
        match deeds.act()? {
            None => {}
            Some(Went::Done(what)) => *outcome.done.entry(what).or_default() += 1,
            Some(Went::Refused) => outcome.refused += 1,
            Some(Went::Open(said)) => {
                ensure!(dying.load(Ordering::SeqCst), "nothing died, and {said}");
                outcome.open += 1;
                // nothing more is begun before what is open was looked at
                return match dead.recv() {
                    Ok(()) | Err(_) => Ok(()),
                };
            }
        }
        if let Some(wrong) = shared.wrong() {
            bail!("{wrong}");
        }
    }
}
