//! `shale snapshot schedule`.

use controller::client::Method;
use model::{Problem, Reference, ScheduleStatus, SetSchedule};

use crate::grammar::Schedule;
use crate::output;
use crate::session::{Session, segment};

impl Session {
    pub(crate) async fn schedule(&self, command: Schedule) -> Result<(), Problem> {
        let at_volume =
            |volume: &Reference| format!("/api/v1/volumes/{}/schedule", segment(volume));
        match command {
            Schedule::Set {
                volume,
                hourly,
                daily,
                weekly,
                at,
                weekday,
                no_reserve,
                tried,
                waiting,
            } => {
                let body =
                    SetSchedule { hourly, daily, weekly, at, weekday, unreserved: no_reserve };
                let path = at_volume(&volume);
                if self.tried(&tried, Method::PUT, &path, Some(&body)).await? {
                    return Ok(());
                }
                if self.change(Method::PUT, &path, Some(&body), &waiting).await?.is_none() {
                    return Ok(());
                }
                self.show_schedule(&path).await
            }
            Schedule::Show { volume } => self.show_schedule(&at_volume(&volume)).await,
            Schedule::List => {
                let all = self.client.list::<ScheduleStatus>("/api/v1/schedules").await?;
                output::list(self.format, &all)
            }
            Schedule::Clear { volume, waiting } => {
                let path = at_volume(&volume);
                let task = self.change(Method::DELETE, &path, None::<&()>, &waiting).await?;
                let text =
                    format!("volume '{volume}' has no schedule any more; its snapshots stay");
                self.done(task, &text)
            }
        }
    }

    async fn show_schedule(&self, path: &str) -> Result<(), Problem> {
        output::row(self.format, &self.client.get::<ScheduleStatus>(path).await?)
    }
}
