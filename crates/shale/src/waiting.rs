//! Waiting for tasks: a progress bar on a terminal, silence elsewhere; the outcome as an exit code.

use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use model::{Code, Problem, Size, Task, TaskState};
use tokio::time::Instant;

use crate::grammar::Waiting;
use crate::session::Session;

/// One question waits this long at the server; then it is asked again.
const ASK: u64 = 30;
/// How often a progress bar moves.
const FRAME: Duration = Duration::from_millis(150);

impl Session {
    /// The task when it has succeeded; else the problem it ended with. `None`: do not wait.
    pub(crate) async fn wait(
        &self,
        task: Task,
        waiting: &Waiting,
    ) -> Result<Option<Task>, Problem> {
        if waiting.no_wait && !waiting.wait {
            return Ok(None);
        }
        let until = waiting.timeout.map(|s| Instant::now() + Duration::from_secs(s));
        let task = self.ended(task, until).await?;
        match task.state {
            TaskState::Success => Ok(Some(task)),
            TaskState::Failed | TaskState::Cancelled => Err(outcome(task)),
            TaskState::Waiting | TaskState::Running | TaskState::Cancelling => Err(Problem::new(
                Code::TimeOut,
                format!("Task {} ({} {}) goes on.", task.id, task.operation, task.object.name),
            )
            .hint(format!("follow it: shale task watch {}", task.id))),
        }
    }

    /// The task when it has ended, or as it is at `until`.
    pub(crate) async fn ended(
        &self,
        mut task: Task,
        until: Option<Instant>,
    ) -> Result<Task, Problem> {
        let bar = std::io::stderr().is_terminal().then(|| bar(&task));
        while !task.state.is_final() {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                break;
            }
            let path = format!("/api/v1/tasks/{}", task.id);
            task = match &bar {
                Some(bar) => {
                    show(bar, &task);
                    tokio::time::sleep(FRAME.min(left.unwrap_or(FRAME))).await;
                    self.client.get(&path).await?
                }
                None => {
                    let left = left.unwrap_or(Duration::from_secs(ASK)).as_secs_f64().ceil();
                    let seconds = if left < 30.0 { format!("{left:.0}") } else { ASK.to_string() };
                    self.client.get(&format!("{path}?wait={seconds}")).await?
                }
            };
        }
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        Ok(task)
    }
}

/// Why a task that ended without success did so.
pub(crate) fn outcome(task: Task) -> Problem {
    let what = format!("{} {}", task.operation, task.object.name);
    let code = match task.state {
        TaskState::Cancelled => Code::Cancelled,
        _ => Code::Internal,
    };
    let fallback =
        || Problem::new(code, format!("Task {} ({what}) ended as {}.", task.id, task.state));
    task.error.unwrap_or_else(fallback)
}

fn bar(task: &Task) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(100), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("{prefix} [{bar:30}] {percent:>3}% {msg}");
    bar.set_style(
        style.unwrap_or_else(|_bad_template| ProgressStyle::default_bar()).progress_chars("=> "),
    );
    bar.set_prefix(format!("{} {}", task.operation, task.object.name));
    bar
}

fn show(bar: &ProgressBar, task: &Task) {
    bar.set_position(u64::from(task.percent));
    let phase = task.phase.as_deref().unwrap_or(task.state.as_str());
    let message = if task.bytes_total > Size::default() {
        format!(
            "{phase}, {} of {}, {}/s",
            task.bytes_done.human(),
            task.bytes_total.human(),
            task.rate.human()
        )
    } else {
        phase.to_owned()
    };
    bar.set_message(message);
}
