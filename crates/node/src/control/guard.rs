//! One excluding operation a volume at a time: who comes second is told what runs.

use std::rc::Rc;

use model::{Code, Problem};
use uuid::Uuid;

use super::Control;
use crate::problem::Outcome;

/// Volumes that an operation has for itself until this is dropped.
pub(super) struct Working {
    control: Rc<Control>,
    volumes: Vec<Uuid>,
}

impl Control {
    /// Takes all of `volumes` for the task, or none.
    pub(super) fn work_on(self: &Rc<Self>, volumes: &[Uuid], task: Uuid) -> Outcome<Working> {
        let mut working = self.working.borrow_mut();
        for volume in volumes {
            let Some(other) = working.get(volume) else { continue };
            let what = self.shared.tasks.get(*other).map_or_else(
                || "another operation".to_owned(),
                |task| format!("{} ({})", task.operation, task.id),
            );
            let name =
                self.find_if(*volume).map_or_else(|| volume.to_string(), |(_, record)| record.name);
            return Err(Problem::new(Code::Busy, format!("{name} is busy: {what} is running."))
                .hint("wait for it, then try again")
                .with("task", other.to_string()));
        }
        working.extend(volumes.iter().map(|volume| (*volume, task)));
        Ok(Working { control: Rc::clone(self), volumes: volumes.to_vec() })
    }

    /// The task that has the volume for itself.
    pub(super) fn task_on(&self, volume: Uuid) -> Option<Uuid> {
        self.working.borrow().get(&volume).copied()
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        let mut working = self.control.working.borrow_mut();
        for volume in &self.volumes {
            working.remove(volume);
        }
    }
}
