//! Committed seeds of the whole-engine proof. More of them: `cargo xtask sim --seeds N`.

use disk::Rules;
use sim::engine::{Outcome, run};

#[test]
fn committed_seeds_hold() {
    let mut sum = Outcome::default();
    for seed in 0..10 {
        match run(seed, 5, Rules::all()) {
            Ok(outcome) => sum.add(&outcome),
            Err(violation) => panic!("seed {seed}: {violation}"),
        }
    }
    // the runs are worth something only if they reach what they are about
    assert!(sum.cuts > 10 && sum.kills > 10, "{sum:?}");
    assert!(sum.finished > 0 && sum.undone > 0 && sum.gates > 20, "{sum:?}");
    for deed in ["snapshot", "delete-snapshot", "revert", "clone", "copy", "grow", "delete"] {
        assert!(sum.deeds.get(deed).is_some_and(|n| *n > 3), "{deed}: {sum:?}");
    }
}
