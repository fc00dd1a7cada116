//! What a guest may expect of its disk: for each sector its last durable content and every later
//! write (invariant 6).
//!
//! A value is the number of the write that made a sector; [`ZERO`] marks those of clears, whose
//! content is zeros. Value 0 is a sector that was never written.

use std::collections::BTreeMap;

/// Marks the value of a clear.
pub const ZERO: u64 = 1 << 63;

/// What may be read at one sector.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Sector {
    /// Content as of the last completed flush.
    durable: u64,
    /// Later writes in order of submission: value, and when it was acknowledged.
    later: Vec<(u64, Option<u64>)>,
    /// What was there in between, while a point in time is being taken.
    recent: Vec<u64>,
}

/// The values allowed at each sector of a point in time; a single one once it was seen.
pub type Content = BTreeMap<u64, Vec<u64>>;

/// The history of one disk, as far as it still matters.
#[derive(Clone, Debug, Default)]
pub struct History {
    sectors: BTreeMap<u64, Sector>,
    clock: u64,
    watched: bool,
}

impl History {
    /// A disk of known content.
    #[must_use]
    pub fn of(content: &Content) -> Self {
        let sectors = content.iter().map(|(sector, values)| {
            let durable = values.first().copied().unwrap_or(0);
            let later = values.iter().skip(1).map(|v| (*v, None)).collect();
            (*sector, Sector { durable, later, recent: Vec::new() })
        });
        Self { sectors: sectors.collect(), clock: 0, watched: false }
    }

    /// A moment later than all before.
    pub fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// A write of `value` was handed to the disk.
    pub fn submit(&mut self, at: u64, len: u64, value: u64) {
        for sector in at..at + len {
            self.sectors.entry(sector).or_default().later.push((value, None));
        }
    }

    /// The guest was told that it is done.
    pub fn acknowledge(&mut self, at: u64, len: u64, value: u64) {
        let now = self.tick();
        for sector in at..at + len {
            let writes = self.sectors.entry(sector).or_default().later.iter_mut();
            for write in writes.filter(|w| w.0 == value) {
                write.1 = Some(now);
            }
        }
    }

    /// A flush that began at `began` completed: what was acknowledged before is durable.
    pub fn flushed(&mut self, began: u64) {
        for sector in self.sectors.values_mut() {
            let last = sector.later.iter().rposition(|w| w.1.is_some_and(|at| at <= began));
            if let Some(last) = last {
                if self.watched {
                    sector.recent.push(sector.durable);
                    sector.recent.extend(sector.later[..last].iter().map(|w| w.0));
                }
                sector.durable = sector.later[last].0;
                sector.later.drain(..=last);
            }
        }
    }

    /// What may be read after the process died: every acknowledged write is there, and nothing that
    /// was handed over before it. Guests have one request at a time in a sector; one that failed or
    /// was left behind has ended before the next begins (rule P4).
    #[must_use]
    pub fn after_kill(&self, sector: u64) -> Vec<u64> {
        let Some(state) = self.sectors.get(&sector) else { return vec![0] };
        let acknowledged = state.later.iter().rposition(|w| w.1.is_some());
        let newest = acknowledged.map_or(state.durable, |at| state.later[at].0);
        let unanswered = state.later[acknowledged.map_or(0, |at| at + 1)..].iter().map(|w| w.0);
        std::iter::once(newest).chain(unanswered).collect()
    }

    /// What may be read after a power cut.
    #[must_use]
    pub fn after_cut(&self, sector: u64) -> Vec<u64> {
        let Some(state) = self.sectors.get(&sector) else { return vec![0] };
        std::iter::once(state.durable).chain(state.later.iter().map(|w| w.0)).collect()
    }

    /// Everything that was ever allowed since the last flush, for each sector written.
    #[must_use]
    pub fn content(&self) -> Content {
        self.sectors.keys().map(|sector| (*sector, self.after_cut(*sector))).collect()
    }

    /// A point in time is being taken: says what it holds at least, and keeps in mind all that comes
    /// until [`Self::taken`].
    pub fn take(&mut self) -> Content {
        self.watched = true;
        let newest = |s: &Sector| {
            let acknowledged = s.later.iter().rev().find(|w| w.1.is_some());
            acknowledged.map_or(s.durable, |w| w.0)
        };
        self.sectors.iter().map(|(sector, state)| (*sector, vec![newest(state)])).collect()
    }

    /// What the point in time may hold that was begun with `least`.
    pub fn taken(&mut self, least: &Content) -> Content {
        self.watched = false;
        let mut content = Content::new();
        for (sector, state) in &mut self.sectors {
            let least = least.get(sector).and_then(|v| v.first()).copied().unwrap_or(0);
            let later = state.later.iter().map(|w| w.0);
            let all = state.recent.drain(..).chain([state.durable]).chain(later);
            // values grow with time, but for the mark of clears
            let newer = all.filter(|v| v & !ZERO > least & !ZERO);
            content.insert(*sector, std::iter::once(least).chain(newer).collect());
        }
        content
    }

    /// The sector was seen to hold `value`, durably.
    pub fn settle(&mut self, sector: u64, value: u64) {
        self.sectors.insert(sector, Sector { durable: value, ..Sector::default() });
    }
}

/// The bytes of a sector that holds `value`.
#[must_use]
pub fn sector_bytes(value: u64, sector: u64) -> [u8; 512] {
    let mut bytes = [0; 512];
    if value != 0 && value & ZERO == 0 {
        for (i, word) in bytes.chunks_exact_mut(16).enumerate() {
            word[..8].copy_from_slice(&value.to_le_bytes());
            word[8..].copy_from_slice(&(sector ^ (i as u64) << 40).to_le_bytes());
        }
    }
    bytes
}

/// Which of `allowed` the bytes are, or a sentence that says what they are instead.
///
/// # Errors
/// The sentence.
pub fn recognise(found: &[u8], sector: u64, allowed: &[u64]) -> Result<u64, String> {
    allowed.iter().copied().find(|v| found == sector_bytes(*v, sector)).ok_or_else(|| {
        let first = found.first_chunk::<8>().map_or(0, |b| u64::from_le_bytes(*b));
        format!("sector {sector} reads {first:#x}, allowed are {allowed:x?}")
    })
}
