//! A set of places of a file, kept as runs: what a discard of a whole disk frees is one entry, not a
//! million.

use std::collections::BTreeMap;

use image::Sector;

use crate::space::Place;

/// Places that share no sector, by the page at which each run of them starts.
#[derive(Debug, Default)]
pub(crate) struct Runs(BTreeMap<u32, u32>);

/// A run: its first place, and how many stand right behind one another from there on.
pub(crate) type Run = (Place, u32);

impl Runs {
    pub(crate) fn first(&self) -> Option<Run> {
        self.iter().next()
    }

    /// In the order of the file; a run never starts where another ends.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Run> + '_ {
        self.0.iter().map(|(page, count)| (Place::at_page(*page), *count))
    }

    /// Puts in places that are not in it.
    pub(crate) fn insert(&mut self, from: Place, count: u32) {
        if count == 0 {
            return;
        }
        debug_assert!(from.start().is_page_aligned(), "{from:?}");
        let (mut from, mut count) = (from, count);
        if let Some((before, before_count)) = self.last_until(from)
            && before.nth(before_count) == from
        {
            (from, count) = (before, before_count + count);
        }
        if let Some(behind) = self.0.remove(&from.nth(count).page()) {
            count += behind;
        }
        self.0.insert(from.page(), count);
    }

    /// Takes out those of the places that are in it.
    pub(crate) fn remove(&mut self, from: Place, count: u32) {
        let end = from.nth(count);
        let first = self.last_until(from).map_or(from, |(run, _)| run);
        let touched = self.0.range(first.page()..end.page().max(first.page()));
        let touched: Vec<Run> = touched.map(|(at, run)| (Place::at_page(*at), *run)).collect();
        for (at, run) in touched {
            let before = at.count_below(from.start()).min(run);
            let behind = run - at.count_below(end.start()).min(run);
            if before + behind == run {
                continue;
            }
            self.0.remove(&at.page());
            if before > 0 {
                self.0.insert(at.page(), before);
            }
            if behind > 0 {
                self.0.insert(at.nth(run - behind).page(), behind);
            }
        }
    }

    /// Takes out those that start at `end` or behind it.
    pub(crate) fn cut(&mut self, end: Sector) {
        while let Some((page, count)) = self.0.last_key_value() {
            let (page, count) = (*page, *count);
            let kept = Place::at_page(page).count_below(end).min(count);
            if kept == count {
                return;
            }
            self.0.remove(&page);
            if kept > 0 {
                self.0.insert(page, kept);
            }
        }
    }

    /// The last run that starts at `place` or before it.
    fn last_until(&self, place: Place) -> Option<Run> {
        let (page, count) = self.0.range(..=place.page()).next_back()?;
        Some((Place::at_page(*page), *count))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use proptest::test_runner::RngSeed;

    use super::*;

    fn singles(runs: &Runs) -> Vec<u32> {
        runs.iter().flat_map(|(from, count)| (0..count).map(move |n| from.nth(n).page())).collect()
    }

    #[test]
    fn a_million_neighbours_are_one_run() {
        let mut runs = Runs::default();
        let place = |number: u32| Place::at_page(7).nth(number % 1000);
        for number in 0..1000 {
            // each once, in an order of its own
            runs.insert(place(number * 677), 1);
        }
        assert_eq!(runs.iter().collect::<Vec<_>>(), [(place(0), 1000)]);
        runs.remove(place(10), 20);
        assert_eq!(runs.iter().collect::<Vec<_>>(), [(place(0), 10), (place(30), 970)]);
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            rng_seed: RngSeed::Fixed(7), failure_persistence: None, ..ProptestConfig::default()
        })]
        /// Against a set of single places, on two grids that a table between them shifts.
        #[test]
        fn runs_are_the_places_put_in_and_not_taken_out(
            steps in prop::collection::vec((0u8..10, 0u32..40, 1u32..12), 1..60),
        ) {
            let page = |number: u32| Place::at_page(if number < 20 { 3 } else { 8 }).nth(number).page();
            let (mut runs, mut plain) = (Runs::default(), BTreeSet::new());
            for (what, from, count) in steps {
                // a run does not go over the shift
                let last = if from < 20 { 20 } else { 60 };
                let all: Vec<u32> = (from..(from + count).min(last)).map(page).collect();
                let count = u32::try_from(all.len()).unwrap();
                match what {
                    0..=5 => {
                        if all.iter().all(|place| !plain.contains(place)) {
                            runs.insert(Place::at_page(all[0]), count);
                            plain.extend(&all);
                        }
                    }
                    6..=8 => {
                        runs.remove(Place::at_page(all[0]), count);
                        plain.retain(|place| !all.contains(place));
                    }
                    _ => {
                        let end = Place::at_page(page(from)).start().plus(u64::from(count) * 300);
                        runs.cut(end);
                        plain.retain(|place| Place::at_page(*place).start() < end);
                    }
                }
                prop_assert_eq!(singles(&runs), plain.iter().copied().collect::<Vec<_>>());
                let ends: Vec<u32> = runs.iter().map(|(from, count)| from.nth(count).page()).collect();
                prop_assert!(!runs.iter().any(|(from, _)| ends.contains(&from.page())));
            }
        }
    }
}
