//! The clock that schedules go by: the host's in service, one that a test turns in tests.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::tz::TimeZone;
use model::Timestamp;
use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::net::unix::pipe::Receiver;

/// A wall clock with its time zone.
pub trait WallClock: fmt::Debug + Send + Sync {
    /// Now.
    fn now(&self) -> Timestamp;

    /// The zone that local times are meant in.
    fn zone(&self) -> TimeZone;

    /// Completes when the clock shows `at`; earlier where it was set meanwhile, so that whoever waits
    /// looks at it again.
    fn until(&self, at: Timestamp) -> BoxFuture<'static, ()>;
}

/// The clock and the time zone of this host.
pub fn host_clock() -> Arc<dyn WallClock> {
    Arc::new(HostClock)
}

#[derive(Debug)]
struct HostClock;

impl WallClock for HostClock {
    fn now(&self) -> Timestamp {
        crate::hub::now()
    }

    /// Asked for each time: the zone of a host can be changed while this runs.
    fn zone(&self) -> TimeZone {
        TimeZone::system()
    }

    fn until(&self, at: Timestamp) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            if let Err(error) = wait(at).await {
                tracing::warn!(%error, "the kernel's timer cannot be used");
                // The plain timer does not see a clock that is set: look at it every minute.
                let left = at.unix_ms().saturating_sub(crate::hub::now().unix_ms());
                tokio::time::sleep(Duration::from_millis(left).min(Duration::from_secs(60))).await;
            }
        })
    }
}

/// Waits on a timer of the real-time clock, which also ends when that clock is set.
async fn wait(at: Timestamp) -> std::io::Result<()> {
    let timer =
        timerfd_create(TimerfdClockId::Realtime, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
    let overflow = |_| std::io::Error::from(std::io::ErrorKind::InvalidInput);
    let once = Itimerspec {
        it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
        it_value: Timespec {
            tv_sec: i64::try_from(at.unix_ms() / 1000).map_err(overflow)?,
            // at least one: all zero would mean never
            tv_nsec: i64::try_from(at.unix_ms() % 1000).map_err(overflow)? * 1_000_000 + 1,
        },
    };
    let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
    timerfd_settime(&timer, flags, &once)?;
    // Read like a pipe: eight bytes when it goes off. tokio's own wrapper of any file needs unsafe code.
    let timer = Receiver::from_owned_fd_unchecked(timer)?;
    loop {
        timer.readable().await?;
        match timer.try_read(&mut [0; 8]) {
            Ok(_) => return Ok(()),
            // the clock was set
            Err(e) if e.raw_os_error() == Some(Errno::CANCELED.raw_os_error()) => return Ok(()),
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_hosts_clock_waits_until_its_moment_and_not_longer_for_one_that_is_past() {
        let clock = host_clock();
        let now = clock.now();
        clock.until(Timestamp::from_unix_ms(1)).await;
        let soon = Timestamp::from_unix_ms(now.unix_ms() + 20);
        clock.until(soon).await;
        assert!(clock.now() >= soon);
        wait(Timestamp::from_unix_ms(now.unix_ms())).await.expect("the kernel's own timer works");
    }
}
