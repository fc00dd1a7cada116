//! Medians, and ratios of pairs with their spread.

/// The middle; between the two middle ones of an even count. `values` is not empty.
pub(crate) fn median(values: &[f64]) -> f64 {
    percentile(values, 0.5)
}

/// Linear between neighbours. `values` is not empty.
pub(crate) fn percentile(values: &[f64], part: f64) -> f64 {
    assert!(!values.is_empty() && (0.0..=1.0).contains(&part), "{part} of {} values", values.len());
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = part * (sorted.len() - 1) as f64;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0..len")]
    let (low, high) = (at.floor() as usize, at.ceil() as usize);
    sorted[low] + (sorted[high] - sorted[low]) * (at - at.floor())
}

/// A ratio taken inside each round.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Ratio {
    pub(crate) median: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Ratio {
    /// The i-th values belong together.
    pub(crate) fn of_pairs(ours: &[f64], theirs: &[f64]) -> Self {
        assert_eq!(ours.len(), theirs.len(), "rounds are complete");
        let ratios: Vec<_> = ours.iter().zip(theirs).map(|(our, their)| our / their).collect();
        Self {
            median: median(&ratios),
            low: percentile(&ratios, 0.0),
            high: percentile(&ratios, 1.0),
        }
    }
}

impl std::fmt::Display for Ratio {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.2} ({:.2}–{:.2})", self.median, self.low, self.high)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn middle_and_edges() {
        let values = [3.0, 1.0, 2.0, 10.0];
        for (part, expected) in [(0.0, 1.0), (0.5, 2.5), (1.0, 10.0)] {
            assert!((percentile(&values, part) - expected).abs() < 1e-9, "{part}");
        }
        assert!((median(&[7.0]) - 7.0).abs() < 1e-9);
    }

    #[test]
    fn a_ratio_is_of_pairs_not_of_medians() {
        let ratio = Ratio::of_pairs(&[10.0, 40.0, 90.0], &[10.0, 20.0, 30.0]);
        assert_eq!(ratio, Ratio { median: 2.0, low: 1.0, high: 3.0 });
    }
}
