//! Snapshots by the clock: the policy in a volume's record, and the snapshots made for it.
//!
//! Nothing here knows a clock or a time zone. Whoever runs schedules says what fell due and when; the
//! record that commits the snapshot notes it, so a crash neither loses a run nor repeats it.

use uuid::Uuid;

use crate::api::{LeafSpace, SnapshotSet};
use crate::catalog::{Catalog, refuse_template};
use crate::error::{CatalogError, Code, Result};
use crate::locks::Pace;
use crate::record::{Every, MAX_SNAPSHOTS, Schedule, Scheduled, VolumeRecord};
use crate::txn::Plan;
use crate::volumes::one;

/// The rules that fell due together.
pub(crate) struct Due<'a> {
    rules: &'a [Every],
    at: u64,
}

impl Catalog {
    /// Gives the volume this schedule, or none; also while it is connected.
    ///
    /// # Errors
    /// `not-found`, `is-template`, `bad-request` for rules that contradict each other, `snapshot-limit`
    /// for rules that keep more than a volume can have, `busy`.
    pub async fn schedule_set(
        &self,
        volume: Uuid,
        schedule: Option<Schedule>,
    ) -> Result<VolumeRecord> {
        if let Some(schedule) = &schedule {
            check(schedule)?;
        }
        let held = self.hold(&[volume], "a schedule", Pace::Short).await?;
        let old = self.volume(volume)?;
        refuse_template(&old, "schedule snapshots of")?;
        if old.schedule == schedule {
            return Ok(old);
        }
        let title = format!("set the schedule of {}", old.name);
        let put = VolumeRecord { schedule, ..old };
        let begun = self.begin(Plan { title, puts: vec![put], ..Plan::default() }).await?;
        let made = self.commit(begun).await?;
        drop(held);
        one(made)
    }

    /// Makes the snapshot that `rules` of the volume's schedule ask for at the moment `at`.
    ///
    /// # Errors
    /// As [`Catalog::snapshot_create`]; `bad-request` if the volume has no such rules (any more).
    pub async fn snapshot_scheduled(
        &self,
        volume: Uuid,
        name: &str,
        rules: &[Every],
        at: u64,
    ) -> Result<SnapshotSet> {
        let schedule = self.volume(volume)?.schedule;
        let space = match schedule.is_some_and(|schedule| schedule.unreserved) {
            true => LeafSpace::AsItGrows,
            false => LeafSpace::AsTheKind,
        };
        self.snapshot_as(&[volume], name, space, Some(&Due { rules, at })).await
    }
}

impl Due<'_> {
    /// Notes the run in a record that just got its snapshot.
    pub(crate) fn note(&self, record: &mut VolumeRecord) -> Result<()> {
        let newest = record.snapshots.iter().filter_map(|s| Some(s.scheduled.as_ref()?.run)).max();
        let run = newest.unwrap_or(0).saturating_add(1);
        let rules = record.schedule.iter_mut().flat_map(|schedule| &mut schedule.rules);
        let mut noted = Vec::new();
        for rule in rules.filter(|rule| self.rules.contains(&rule.every)) {
            rule.last = self.at;
            noted.push(rule.every);
        }
        if noted.is_empty() || !self.rules.iter().all(|every| noted.contains(every)) {
            let message = format!("{} has no such schedule any more", record.name);
            return Err(CatalogError::new(Code::BadRequest, message));
        }
        if let Some(made) = record.snapshots.last_mut() {
            made.scheduled = Some(Scheduled { rules: noted, run });
        }
        Ok(())
    }
}

/// Refuses what cannot be kept: the next snapshot is made before the oldest goes.
fn check(schedule: &Schedule) -> Result<()> {
    if let Some(problem) = schedule.problem() {
        let message = format!("this is no schedule: {problem}");
        return Err(CatalogError::new(Code::BadRequest, message));
    }
    if schedule.rules.iter().any(|rule| rule.keep == 0) {
        let message = "a rule of a schedule keeps at least one snapshot";
        return Err(CatalogError::new(Code::BadRequest, message));
    }
    let keeps = schedule.rules.iter().fold(0_u64, |sum, rule| sum + u64::from(rule.keep));
    if keeps >= MAX_SNAPSHOTS as u64 {
        let message = format!("the rules keep up to {keeps} snapshots");
        let most = MAX_SNAPSHOTS - 1;
        return Err(CatalogError::new(Code::SnapshotLimit, message).hint(format!(
            "keep at most {most} in all: the next one is made before the oldest is deleted"
        )));
    }
    Ok(())
}
