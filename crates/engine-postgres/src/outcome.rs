//! What follows from a server's answers to a commit. Pure.
//!
//! A batch is a transaction in steps that are sent together: one begins it and moves the head, some write rows, one commits. Each is answered
//! by itself.
//!
//! Invariant: `NotApplied` only if the server itself has said, in its answer to a step before the last, that the transaction failed, and has
//! then answered the last as well, by which the transaction is over. `Applied` only if all steps succeeded and the server warned of
//! nothing. All else is unknown: the batch is sent again, and the head tells.
//!
//! The client library does not show whether a COMMIT was answered by COMMIT or ROLLBACK. It need not: a transaction in which each
//! step succeeded is not rolled back, and one in which a step failed is not committed.

use kubewharf_engine::Cause;

use crate::error::{describe, is_refusal, state};

/// The server's answer to a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It was done.
    Done,
    /// It was refused, and the session goes on.
    Refused {
        /// The kind of error: SQLSTATE.
        state: String,
        /// For people.
        text: String,
    },
    /// There was none, or one that ends the session.
    Lost(String),
}

/// The answers to a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answers {
    /// To beginning and moving the head.
    pub(crate) begin: Answer,
    /// To what writes rows.
    pub(crate) rows: Vec<Answer>,
    /// To committing.
    pub(crate) commit: Answer,
    /// What the server warned of meanwhile.
    pub(crate) warnings: Vec<String>,
}

/// What became of the batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is durable.
    Applied,
    /// Another head is stored, and nothing was changed.
    Fenced,
    /// Nothing was changed, and nothing will be.
    NotApplied(Cause),
    /// Either may be.
    Unknown(Cause),
}

/// An update of no row, made an error by dividing by the number of rows.
const DIVISION_BY_ZERO: &str = "22012";

impl From<Result<(), tokio_postgres::Error>> for Answer {
    fn from(result: Result<(), tokio_postgres::Error>) -> Self {
        match result {
            Ok(()) => Self::Done,
            Err(error) => match state(&error) {
                Some(state) if is_refusal(&error) => Self::Refused { state: state.to_owned(), text: describe(&error) },
                _ => Self::Lost(describe(&error)),
            },
        }
    }
}

/// Sorts the answers.
pub(crate) fn verdict(answers: &Answers) -> Verdict {
    let unknown = |text: &str| Verdict::Unknown(Cause::Unavailable(format!("PostgreSQL: {text}")));
    let is_failure = |answer: &&Answer| **answer != Answer::Done;
    let failure = std::iter::once(&answers.begin).chain(&answers.rows).find(is_failure);
    match (failure, &answers.commit) {
        // A commit that the server would not wait out for its standbys is done here, and warned of.
        (None, Answer::Done) => match answers.warnings.first() {
            None => Verdict::Applied,
            Some(warning) => unknown(warning),
        },
        // What a server refuses at the very end it has rolled back; what others that speak its language mean by it is not so clear.
        (None, Answer::Refused { text, .. } | Answer::Lost(text)) => unknown(text),
        (Some(Answer::Refused { state, text }), Answer::Done) => {
            if state == DIVISION_BY_ZERO && answers.begin != Answer::Done {
                Verdict::Fenced
            } else {
                refused(state, text)
            }
        }
        // A refusal whose transaction was not seen to end, or no answer at all.
        (Some(Answer::Refused { text, .. } | Answer::Lost(text)), _) => unknown(text),
        (Some(Answer::Done), _) => unknown("a failure that is none"),
    }
}

/// What a refusal of a transaction means that was rolled back for it.
fn refused(state: &str, text: &str) -> Verdict {
    let text = format!("PostgreSQL: {text}");
    match state {
        // Another transaction was in the way: the same batch may do next time.
        "40001" | "40P01" | "40003" => Verdict::Unknown(Cause::Unavailable(text)),
        "53100" => Verdict::NotApplied(Cause::NoSpace(text)),
        "XX001" | "XX002" => Verdict::NotApplied(Cause::Corrupt(text)),
        // A pooler hands each transaction to a session that knows nothing of the others' statements.
        "26000" | "42P05" => Verdict::NotApplied(Cause::Io(format!("{text}; behind a pooler, say pgbouncer=true"))),
        _ if state.starts_with("54") => Verdict::NotApplied(Cause::TooLarge(text)),
        // The schema is not what it was, or the user may not what they might.
        _ if state.starts_with("42") || state.starts_with("3F") => Verdict::NotApplied(Cause::Io(text)),
        _ => Verdict::NotApplied(Cause::Unavailable(text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(state: &str) -> Answer {
        Answer::Refused { state: state.to_owned(), text: "no".to_owned() }
    }

    fn lost() -> Answer {
        Answer::Lost("connection closed".to_owned())
    }

    fn sort(begin: Answer, rows: [Answer; 2], commit: Answer) -> Verdict {
        verdict(&Answers { begin, rows: rows.to_vec(), commit, warnings: Vec::new() })
    }

    const DONE: [Answer; 2] = [Answer::Done, Answer::Done];

    fn is_unknown(verdict: &Verdict) -> bool {
        matches!(verdict, Verdict::Unknown(_))
    }

    #[test]
    fn a_batch_is_applied_if_all_was_done_and_nothing_warned_of() {
        let mut answers =
            Answers { begin: Answer::Done, rows: DONE.to_vec(), commit: Answer::Done, warnings: Vec::new() };
        assert_eq!(verdict(&answers), Verdict::Applied);
        answers.rows.clear();
        assert_eq!(verdict(&answers), Verdict::Applied);
        answers.warnings.push("canceling wait for synchronous replication".to_owned());
        let Verdict::Unknown(Cause::Unavailable(text)) = verdict(&answers) else { panic!("{answers:?}") };
        assert!(text.contains("canceling wait"), "{text}");
    }

    #[test]
    fn only_the_head_s_own_step_fences() {
        let aborted = [refusal("25P02"), refusal("25P02")];
        assert_eq!(sort(refusal("22012"), aborted.clone(), Answer::Done), Verdict::Fenced);
        let by_a_row = sort(Answer::Done, [refusal("22012"), refusal("25P02")], Answer::Done);
        assert!(matches!(by_a_row, Verdict::NotApplied(Cause::Unavailable(_))), "{by_a_row:?}");
        // Warnings are of no consequence then: a transaction that did not begin is warned of when it is ended.
        let warnings = vec!["there is no transaction in progress".to_owned()];
        let answers = Answers { begin: refusal("22012"), rows: aborted.to_vec(), commit: Answer::Done, warnings };
        assert_eq!(verdict(&answers), Verdict::Fenced);
    }

    #[test]
    fn a_refusal_before_the_end_is_sorted_by_its_cause() {
        let by = |state: &str| {
            let first = sort(refusal(state), [refusal("25P02"), refusal("25P02")], Answer::Done);
            let second = sort(Answer::Done, [refusal(state), refusal("25P02")], Answer::Done);
            assert_eq!(first, second, "{state}");
            first
        };
        assert!(matches!(by("53100"), Verdict::NotApplied(Cause::NoSpace(_))));
        assert!(matches!(by("54000"), Verdict::NotApplied(Cause::TooLarge(_))));
        assert!(matches!(by("25006"), Verdict::NotApplied(Cause::Unavailable(_))));
        assert!(matches!(by("57014"), Verdict::NotApplied(Cause::Unavailable(_))));
        assert!(matches!(by("42P01"), Verdict::NotApplied(Cause::Io(_))));
        assert!(matches!(by("XX001"), Verdict::NotApplied(Cause::Corrupt(_))));
        for state in ["40001", "40P01", "40003"] {
            assert!(is_unknown(&by(state)), "{state}");
        }
        let Verdict::NotApplied(cause) = by("26000") else { panic!("it was refused") };
        assert!(cause.to_string().contains("pgbouncer=true"), "{cause}");
    }

    #[test]
    fn what_was_lost_is_unknown_wherever_it_was() {
        let answers = [Answer::Done, refusal("53100"), refusal("22012"), lost()];
        for begin in &answers {
            for first in &answers {
                for second in &answers {
                    // Without the end's answer nothing is known, whatever came before.
                    let rows = || [first.clone(), second.clone()];
                    assert!(is_unknown(&sort(begin.clone(), rows(), lost())), "{begin:?} {first:?} {second:?}");
                    assert!(is_unknown(&sort(begin.clone(), rows(), refusal("40001"))));
                    // The first failure counts.
                    let found = sort(begin.clone(), rows(), Answer::Done);
                    let failure = [begin, first, second].into_iter().find(|answer| **answer != Answer::Done);
                    assert_eq!(is_unknown(&found), failure == Some(&lost()), "{begin:?} {first:?} {second:?}");
                }
            }
        }
    }

    #[test]
    fn a_refused_commit_is_unknown() {
        for state in ["40001", "40003", "53100", "25006", "23505"] {
            assert!(is_unknown(&sort(Answer::Done, DONE, refusal(state))), "{state}");
        }
    }
}
