//! What sides did in turn, round by round, and the numbers that follow from it.

use serde::{Deserialize, Serialize};

use crate::document::median;

/// One side's turn at a workload.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Turn<S, W, M> {
    /// Which side.
    pub side: S,
    /// Rounds count from 0.
    pub round: u32,
    /// What was done.
    pub workload: W,
    /// What came of it.
    pub measured: M,
}

/// The median over the rounds of a number of a workload.
pub fn of<S: PartialEq, W: PartialEq, M>(
    turns: &[Turn<S, W, M>],
    side: S,
    workload: W,
    number: fn(&M) -> f64,
) -> Option<f64> {
    let turns = turns.iter().filter(|turn| turn.side == side && turn.workload == workload);
    median(turns.map(|turn| number(&turn.measured)).collect())
}

/// Two sides' numbers of the same round combined, and the median of that over the rounds: what the machine does meanwhile changes both.
pub fn paired<S: PartialEq + Copy, W: PartialEq + Copy, M>(
    turns: &[Turn<S, W, M>],
    sides: (S, S),
    workload: W,
    number: fn(&M) -> f64,
    combine: fn(f64, f64) -> f64,
) -> Option<f64> {
    let of = |side: S, round: u32| {
        let is_wanted = |turn: &&Turn<S, W, M>| turn.side == side && turn.round == round && turn.workload == workload;
        Some(number(&turns.iter().find(is_wanted)?.measured))
    };
    let rounds = turns.iter().map(|turn| turn.round + 1).max().unwrap_or(0);
    median((0..rounds).filter_map(|round| Some(combine(of(sides.0, round)?, of(sides.1, round)?))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Side, round and number.
    fn turn(side: char, round: u32, number: f64) -> Turn<char, (), f64> {
        Turn { side, round, workload: (), measured: number }
    }

    #[test]
    fn a_pair_is_that_of_one_round_so_a_slow_round_changes_it_little() {
        let turns: Vec<_> = [(0, 1.0), (1, 3.0), (2, 2.0)]
            .into_iter()
            .flat_map(|(round, factor)| [turn('a', round, 10.0 * factor), turn('b', round, 15.0 * factor)])
            .collect();
        let ratio = paired(&turns, ('b', 'a'), (), |number| *number, |a, b| a / b);
        assert!(ratio.is_some_and(|ratio| (ratio - 1.5).abs() < 1e-9), "{ratio:?}");
        assert_eq!(of(&turns, 'b', (), |number| *number), Some(30.0));
        assert_eq!(of(&turns, 'c', (), |number| *number), None);
        assert_eq!(paired(&turns, ('c', 'a'), (), |number| *number, |a, b| a - b), None);
    }
}
