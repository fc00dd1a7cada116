//! Load on a vhost-user-blk device, as a guest with one queue makes it, and what it cost its server.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use export::driver::Driver;
use rand::rngs::SmallRng;
use rand::{Rng as _, RngCore as _, SeedableRng as _};

/// What every request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pattern {
    RandomRead,
    RandomWrite,
    Read,
    Write,
}

impl Pattern {
    /// As fio calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::RandomRead => "randread",
            Self::RandomWrite => "randwrite",
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

/// What a guest does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) pattern: Pattern,
    pub(crate) block: usize,
    pub(crate) depth: usize,
    /// The part of the disk that is used, from its start.
    pub(crate) size: u64,
    pub(crate) seed: u64,
}

/// What came of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    pub(crate) iops: f64,
    /// Processor time of the server for a request, in microseconds.
    pub(crate) cpu: f64,
}

/// Time before anything is counted: caches and queues fill.
const WARM: Duration = Duration::from_millis(500);
/// No answer for so long means that there will be none.
const LIMIT: Duration = Duration::from_secs(30);
/// What the kernel counts processor time in.
const TICKS: f64 = 100.0;

struct Guest {
    driver: Driver,
    load: Load,
    random: SmallRng,
    next: u64,
}

impl Guest {
    fn begin(&mut self, buffer: usize) -> Result<()> {
        let Load { pattern, block, size, .. } = self.load;
        let blocks = size / block as u64;
        let at = match pattern {
            Pattern::RandomRead | Pattern::RandomWrite => self.random.random_range(0..blocks),
            Pattern::Read | Pattern::Write => {
                self.next += 1;
                self.next % blocks
            }
        } * block as u64;
        match pattern {
            Pattern::RandomRead | Pattern::Read => self.driver.read(buffer, at, block)?,
            Pattern::RandomWrite | Pattern::Write => self.driver.write(buffer, at, block)?,
        }
        Ok(())
    }

    /// Keeps the queue full until `end`; the number of requests that ended.
    fn work(&mut self, end: Instant) -> Result<u64> {
        let mut count = 0;
        while Instant::now() < end {
            let ended = self.driver.wait(LIMIT)?;
            ensure!(!ended.is_empty(), "no request ended in {LIMIT:?}");
            for request in ended {
                ensure!(request.ok, "a request failed");
                count += 1;
                self.begin(request.buffer)?;
            }
            self.driver.kick()?;
        }
        Ok(count)
    }
}

impl Guest {
    /// Waits for all that is under way: a server whose front end just goes may not take it well.
    fn drain(mut self) -> Result<()> {
        let mut left = self.load.depth;
        while left > 0 {
            let ended = self.driver.wait(LIMIT)?;
            ensure!(!ended.is_empty(), "no request ended in {LIMIT:?}");
            left -= ended.len();
        }
        Ok(())
    }
}

/// Runs `load` on the device behind `socket`, which process `server` serves.
pub(crate) fn measure(load: Load, socket: &Path, server: u32, time: Duration) -> Result<Cost> {
    let driver = Driver::connect(socket, load.block, load.depth)
        .with_context(|| format!("connecting to {}", socket.display()))?;
    let mut guest = Guest { driver, load, random: SmallRng::seed_from_u64(load.seed), next: 0 };
    let mut content = vec![0; load.block];
    guest.random.fill_bytes(&mut content);
    for buffer in 0..load.depth {
        guest.driver.put(buffer, &content);
        guest.begin(buffer)?;
    }
    guest.driver.kick()?;
    guest.work(Instant::now() + WARM)?;
    let (begin, before) = (Instant::now(), processor_time(server)?);
    let count = guest.work(begin + time)?;
    let (seconds, cpu) = (begin.elapsed().as_secs_f64(), processor_time(server)? - before);
    guest.drain()?;
    let count = count as f64;
    Ok(Cost { iops: count / seconds, cpu: cpu * 1e6 / count })
}

/// Writes the whole range once.
pub(crate) fn fill(socket: &Path, size: u64) -> Result<()> {
    const BLOCK: usize = 1 << 20;
    const DEPTH: usize = 8;
    let load = Load { pattern: Pattern::Write, block: BLOCK, depth: DEPTH, size, seed: 1 };
    let driver = Driver::connect(socket, BLOCK, DEPTH)?;
    let mut guest = Guest { driver, load, random: SmallRng::seed_from_u64(1), next: u64::MAX };
    let mut left = size / BLOCK as u64;
    let mut content = vec![0; BLOCK];
    let mut flight = 0;
    let mut free: Vec<usize> = (0..DEPTH).collect();
    while left > 0 || flight > 0 {
        while left > 0
            && let Some(buffer) = free.pop()
        {
            guest.random.fill_bytes(&mut content);
            guest.driver.put(buffer, &content);
            guest.next = guest.next.wrapping_add(1);
            guest.driver.write(buffer, guest.next * BLOCK as u64, BLOCK)?;
            left -= 1;
            flight += 1;
        }
        guest.driver.kick()?;
        let ended = guest.driver.wait(LIMIT)?;
        ensure!(!ended.is_empty() && ended.iter().all(|request| request.ok), "filling failed");
        flight -= ended.len();
        free.extend(ended.into_iter().map(|request| request.buffer));
    }
    guest.driver.flush(0)?;
    guest.driver.kick()?;
    let flushed = guest.driver.wait(LIMIT)?;
    ensure!(flushed.iter().all(|request| request.ok) && !flushed.is_empty(), "flushing failed");
    Ok(())
}

/// Seconds of processor time that a process took.
fn processor_time(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(')').context("a process's name")?;
    let mut ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<f64>);
    let (user, system) =
        (ticks.next().context("user time")??, ticks.next().context("system time")??);
    Ok((user + system) / TICKS)
}
