//! Two texts line by line: what the first has and the second has not, and the other way round.

use std::fmt::Write as _;

/// Lines around a difference that are shown too.
const CONTEXT_LINES: usize = 2;
/// Texts with more lines in their middle parts are shown one after the other.
const COMPARED_LINES_MAX: usize = 3000;

/// The difference, with `-` before what only the first has and `+` before what only the second has; empty if there is
/// none.
pub(super) fn difference(first: &str, second: &str) -> String {
    let (first, second): (Vec<&str>, Vec<&str>) = (first.lines().collect(), second.lines().collect());
    let start = first.iter().zip(&second).take_while(|(one, other)| one == other).count();
    let (first_rest, second_rest) = (&first[start..], &second[start..]);
    let end = first_rest.iter().rev().zip(second_rest.iter().rev()).take_while(|(one, other)| one == other).count();
    let (first_middle, second_middle) =
        (&first_rest[..first_rest.len() - end], &second_rest[..second_rest.len() - end]);
    if first_middle.is_empty() && second_middle.is_empty() {
        return String::new();
    }
    let mut lines: Vec<(char, &str)> = first[..start].iter().map(|line| (' ', *line)).collect();
    lines.extend(middle(first_middle, second_middle));
    lines.extend(first_rest[first_rest.len() - end..].iter().map(|line| (' ', *line)));
    let near = |place: usize| {
        let around = place.saturating_sub(CONTEXT_LINES)..(place + CONTEXT_LINES + 1).min(lines.len());
        lines[around].iter().any(|(sign, _)| *sign != ' ')
    };
    let mut text = String::new();
    let mut left_out = false;
    for (place, (sign, line)) in lines.iter().enumerate() {
        if near(place) {
            if std::mem::take(&mut left_out) {
                text.push_str("      …\n");
            }
            writeln!(text, "    {sign} {line}").unwrap();
        } else {
            left_out = true;
        }
    }
    text
}

/// By the longest common subsequence.
fn middle<'a>(first: &[&'a str], second: &[&'a str]) -> Vec<(char, &'a str)> {
    if first.len().max(second.len()) > COMPARED_LINES_MAX {
        return first.iter().map(|line| ('-', *line)).chain(second.iter().map(|line| ('+', *line))).collect();
    }
    let width = second.len() + 1;
    // How many lines are common from these places on.
    let mut common = vec![0u16; (first.len() + 1) * width];
    for one in (0..first.len()).rev() {
        for other in (0..second.len()).rev() {
            common[one * width + other] = if first[one] == second[other] {
                common[(one + 1) * width + other + 1] + 1
            } else {
                common[(one + 1) * width + other].max(common[one * width + other + 1])
            };
        }
    }
    let (mut one, mut other) = (0, 0);
    let mut lines = Vec::new();
    while one < first.len() || other < second.len() {
        if one < first.len() && other < second.len() && first[one] == second[other] {
            lines.push((' ', first[one]));
            (one, other) = (one + 1, other + 1);
        } else if other == second.len()
            || one < first.len() && common[(one + 1) * width + other] >= common[one * width + other + 1]
        {
            lines.push(('-', first[one]));
            one += 1;
        } else {
            lines.push(('+', second[other]));
            other += 1;
        }
    }
    lines
}

/// Examples.
pub(super) fn self_test() {
    assert_eq!(difference("a\nb", "a\nb\n"), "");
    assert_eq!(difference("a\nb\nc\n", "a\nx\nc\n"), "      a\n    - b\n    + x\n      c\n");
    assert_eq!(difference("", "a"), "    + a\n");
    let long = |last: &str| format!("1\n2\n3\n4\n5\n{last}\n");
    assert_eq!(difference(&long("6"), &long("7")), "      …\n      4\n      5\n    - 6\n    + 7\n");
}
