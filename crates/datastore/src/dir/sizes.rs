//! What the objects of one directory take together, without looking at each of them every time.
//!
//! Only objects that this process changes are looked at again: those whose name came or went, and
//! those that are, or were, open for writing. What others do to the files shows when all are looked at
//! anew, which happens once a minute at most.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::name::ObjectName;
use crate::store::ObjectInfo;

/// How long what others may have changed is taken as it was.
const FRESH: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(super) struct Sizes {
    /// Locked for moments, also by threads that serve guests.
    marks: Mutex<Marks>,
    /// Locked while files are looked at, by helper threads only.
    known: Mutex<Option<Known>>,
}

#[derive(Debug, Default)]
struct Marks {
    /// Changed since they were looked at.
    touched: BTreeSet<ObjectName>,
    /// Open for writing, with the number of handles.
    open: BTreeMap<ObjectName, usize>,
}

#[derive(Debug)]
struct Known {
    used: BTreeMap<ObjectName, u64>,
    sum: u64,
    at: Instant,
}

impl Sizes {
    fn marks(&self) -> MutexGuard<'_, Marks> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An object came, went or was replaced.
    pub(super) fn touch(&self, name: ObjectName) {
        self.marks().touched.insert(name);
    }

    /// An object is open for writing until the result is dropped.
    pub(super) fn writing(self: &Arc<Self>, name: ObjectName) -> Writing {
        *self.marks().open.entry(name).or_default() += 1;
        Writing { sizes: Arc::clone(self), name }
    }

    /// What all objects take: `look` at those that may have changed, `scan` when nothing is known, or
    /// what is known is old.
    pub(super) fn sum(
        &self,
        look: impl Fn(&ObjectName) -> Result<Option<u64>>,
        scan: impl FnOnce() -> Result<Vec<ObjectInfo>>,
    ) -> Result<u64> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let (touched, open) = {
            let mut marks = self.marks();
            let open: Vec<ObjectName> = marks.open.keys().copied().collect();
            (std::mem::take(&mut marks.touched), open)
        };
        let sum = match known.as_mut().filter(|known| known.at.elapsed() < FRESH) {
            Some(known) => touched
                .iter()
                .chain(&open)
                .try_for_each(|name| {
                    known.enter(*name, look(name)?);
                    Ok(())
                })
                .map(|()| known.sum),
            None => scan().map(|objects| {
                let used = objects.iter().map(|object| (object.name, object.used.0)).collect();
                let sum = objects.iter().map(|object| object.used.0).sum();
                *known = Some(Known { used, sum, at: Instant::now() });
                sum
            }),
        };
        if sum.is_err() {
            // What was not looked at is still to be.
            self.marks().touched.extend(touched);
        }
        sum
    }
}

impl Known {
    fn enter(&mut self, name: ObjectName, now: Option<u64>) {
        let before = match now {
            Some(now) => self.used.insert(name, now),
            None => self.used.remove(&name),
        };
        self.sum = self.sum - before.unwrap_or(0) + now.unwrap_or(0);
    }
}

/// An object is open for writing as long as this lives.
#[derive(Debug)]
pub(super) struct Writing {
    sizes: Arc<Sizes>,
    name: ObjectName,
}

impl Drop for Writing {
    fn drop(&mut self) {
        let mut marks = self.sizes.marks();
        marks.touched.insert(self.name);
        if let Some(handles) = marks.open.get_mut(&self.name) {
            *handles -= 1;
            if *handles == 0 {
                marks.open.remove(&self.name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use io::ByteCount;
    use uuid::Uuid;

    use super::*;
    use crate::error::DatastoreError;

    fn name(n: u128) -> ObjectName {
        ObjectName::Layer(Uuid::from_u128(n))
    }

    /// Files, and how often one was looked at.
    #[derive(Default)]
    struct Files(RefCell<BTreeMap<ObjectName, u64>>, RefCell<usize>);

    impl Files {
        fn set(&self, n: u128, used: Option<u64>) {
            match used {
                Some(used) => drop(self.0.borrow_mut().insert(name(n), used)),
                None => drop(self.0.borrow_mut().remove(&name(n))),
            }
        }

        fn sum(&self, sizes: &Sizes) -> u64 {
            let look = |name: &ObjectName| {
                *self.1.borrow_mut() += 1;
                Ok(self.0.borrow().get(name).copied())
            };
            let scan = || {
                let files = self.0.borrow();
                let info = |(name, used): (&ObjectName, &u64)| ObjectInfo {
                    name: *name,
                    len: ByteCount::ZERO,
                    used: ByteCount(*used),
                };
                Ok(files.iter().map(info).collect())
            };
            sizes.sum(look, scan).expect("these files can be looked at")
        }
    }

    #[test]
    fn only_what_changed_is_looked_at() {
        let (sizes, files) = (Arc::new(Sizes::default()), Files::default());
        for n in 0..100 {
            files.set(n, Some(10));
        }
        assert_eq!(files.sum(&sizes), 1000);
        files.set(3, Some(11));
        files.set(4, None);
        files.set(200, Some(5));
        for n in [3, 4, 200] {
            sizes.touch(name(n));
        }
        assert_eq!(files.sum(&sizes), 1000 + 1 - 10 + 5);
        assert_eq!(*files.1.borrow(), 3);
        assert_eq!(files.sum(&sizes), 996, "and nothing twice");
        assert_eq!(*files.1.borrow(), 3);
    }

    #[test]
    fn what_is_open_is_looked_at_until_it_is_closed() {
        let (sizes, files) = (Arc::new(Sizes::default()), Files::default());
        assert_eq!(files.sum(&sizes), 0);
        let writing = [sizes.writing(name(1)), sizes.writing(name(1))];
        for used in [1, 2] {
            files.set(1, Some(used));
            assert_eq!(files.sum(&sizes), used);
        }
        let [one, other] = writing;
        drop(one);
        files.set(1, Some(3));
        assert_eq!(files.sum(&sizes), 3);
        files.set(1, Some(4));
        drop(other);
        assert_eq!(files.sum(&sizes), 4, "once more after it was closed");
        let looks = *files.1.borrow();
        assert_eq!(files.sum(&sizes), 4);
        assert_eq!(*files.1.borrow(), looks);
    }

    #[test]
    fn a_look_that_failed_is_repeated() {
        let (sizes, files) = (Arc::new(Sizes::default()), Files::default());
        assert_eq!(files.sum(&sizes), 0);
        files.set(1, Some(7));
        sizes.touch(name(1));
        let failed =
            |name: &ObjectName| Err(DatastoreError::system("look at", name, rustix::io::Errno::IO));
        assert!(sizes.sum(failed, || Ok(Vec::new())).is_err());
        assert_eq!(files.sum(&sizes), 7);
    }
}
