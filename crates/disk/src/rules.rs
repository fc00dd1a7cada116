//! Switches for the durability rules, so that proofs can show that each rule matters.

/// Which of the durability rules are kept. Products use [`Rules::all`]; a simulation that switches one
/// off must find a violation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// D1: metadata becomes eligible only after its data write completed, and a flush writes a copy
    /// frozen before the data barrier.
    pub d1_eligible_after_data: bool,
    /// D2: metadata is in the log before the guest sees the completion.
    pub d2_log_before_completion: bool,
    /// D3: removals are log records too.
    pub d3_log_removals: bool,
    /// D4: a log is replayed only on an exact match of its identity.
    pub d4_exact_log_match: bool,
    /// D5: an open without its log zeroes what no durable structure owns.
    pub d5_zero_unowned: bool,
    /// D6: space is reused only after the drop is durable and older requests ended.
    pub d6_reuse_after_durable: bool,
    /// D7: a failed flush fails all later ones.
    pub d7_poison: bool,
    /// D8: an ancestor is seen only as far as every layer above it reaches.
    pub d8_grown_range_is_zero: bool,
    /// D9: bitmaps are durable before the BAT entries that name them.
    pub d9_bitmap_before_bat: bool,
    /// P4: nothing begins while a request runs that its caller left behind.
    pub p4_left_behind_first: bool,
}

impl Rules {
    /// Every rule kept.
    #[must_use]
    pub const fn all() -> Self {
        Self {
            d1_eligible_after_data: true,
            d2_log_before_completion: true,
            d3_log_removals: true,
            d4_exact_log_match: true,
            d5_zero_unowned: true,
            d6_reuse_after_durable: true,
            d7_poison: true,
            d8_grown_range_is_zero: true,
            d9_bitmap_before_bat: true,
            p4_left_behind_first: true,
        }
    }
}

impl Default for Rules {
    fn default() -> Self {
        Self::all()
    }
}
