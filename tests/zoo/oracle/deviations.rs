//! What a tenant is answered differently on purpose. A difference that is not in this table is a bug, and so is a line of
//! this table that the tests do not meet. COMPAT.md says the same to users: it holds each reason, word by word.

use std::sync::LazyLock;

/// An operation that is answered differently, with the reason.
pub(super) struct Deviation {
    /// The test, such as `kubectl/nodes`, or [`ANY`].
    pub(super) group: &'static str,
    /// A part of the operation.
    pub(super) operation: &'static str,
    /// A part of what the tenant is answered; or which side alone came to the operation, in the judge's words.
    pub(super) answer: &'static str,
    /// Why.
    pub(super) reason: &'static str,
}

/// A line each: the test, a part of the operation, a part of the answer, the reason; between tabs.
static DEVIATIONS: LazyLock<Vec<Deviation>> = LazyLock::new(|| {
    let read = |line: &'static str| {
        let fields: Vec<&str> = line.split('\t').collect();
        let [group, operation, answer, reason] = fields[..] else { panic!("not four fields: {line}") };
        Deviation { group, operation, answer, reason }
    };
    include_str!("deviations.txt").lines().map(read).collect()
});

/// Any test. Such a deviation need not be met in each.
pub(super) const ANY: &str = "*";

/// Those of a group.
pub(super) fn of(group: &str) -> impl Iterator<Item = &'static Deviation> {
    DEVIATIONS.iter().filter(move |deviation| deviation.group == group || deviation.group == ANY)
}

impl Deviation {
    /// Whether it is this one.
    pub(super) fn matches(&self, operation: &str, answer: &str) -> bool {
        operation.contains(self.operation) && answer.contains(self.answer)
    }

    /// It, in words.
    pub(super) fn describe(&self) -> String {
        format!("{}: {}: {} ({})", self.group, self.operation, self.answer, self.reason)
    }
}

/// Each reason is in COMPAT.md.
pub(super) fn self_test() {
    let path = kubewharf_testkit::tools::workspace().unwrap().join("COMPAT.md");
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let text = words(&std::fs::read_to_string(path).unwrap());
    let missing: Vec<String> =
        DEVIATIONS.iter().filter(|it| !text.contains(&words(it.reason))).map(Deviation::describe).collect();
    assert!(missing.is_empty(), "COMPAT.md does not say: {missing:#?}");
}
