//! The compiled values of one field of a rule.
//!
//! Invariant: a question costs a binary search at most, and allocates nothing.

use super::spec::{ALL, Semantics, negative};

/// Texts, some of them the beginnings of others.
#[derive(Debug, Default)]
pub(super) struct Set {
    /// Sorted.
    exact: Box<[Box<str>]>,
    /// Sorted, and none begins with another.
    prefixes: Box<[Box<str>]>,
}

impl Set {
    fn new<'a>(values: impl Iterator<Item = &'a str>, style: Style) -> Self {
        let mut exact = Vec::new();
        let mut prefixes: Vec<&str> = Vec::new();
        for value in values {
            match value.strip_suffix('*') {
                Some(rest) if style == Style::Prefixes => prefixes.push(rest.trim_end_matches('*')),
                _ => exact.push(value),
            }
        }
        prefixes.sort_unstable();
        // What a shorter one covers always comes right behind it.
        prefixes.dedup_by(|longer, shorter| longer.starts_with(*shorter));
        Self { exact: sorted(exact), prefixes: prefixes.into_iter().map(Box::from).collect() }
    }

    fn contains(&self, value: &str) -> bool {
        contains(&self.exact, value) || {
            // The only candidate is the greatest prefix that is not above the value: between the two, every text begins
            // with it.
            let above = self.prefixes.partition_point(|prefix| **prefix <= *value);
            above > 0 && value.starts_with(&*self.prefixes[above - 1])
        }
    }
}

fn sorted(mut values: Vec<&str>) -> Box<[Box<str>]> {
    values.sort_unstable();
    values.dedup();
    values.into_iter().map(Box::from).collect()
}

pub(super) fn contains(sorted: &[Box<str>], value: &str) -> bool {
    sorted.binary_search_by(|candidate| (**candidate).cmp(value)).is_ok()
}

/// Whether a `*` at the end of a value is a wildcard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    Exact,
    Prefixes,
}

/// What a list without values matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Empty {
    Everything,
    Nothing,
}

/// A list of values, reduced: `*` wins, positive values drop negative ones.
pub(super) enum Reduced<'a> {
    All,
    Positive(Vec<&'a str>),
    Negative(Vec<&'a str>),
    Empty,
}

pub(super) fn reduce(values: &[String]) -> Reduced<'_> {
    if values.is_empty() {
        return Reduced::Empty;
    }
    if values.iter().any(|value| value == ALL) {
        return Reduced::All;
    }
    let positive: Vec<&str> = values.iter().map(String::as_str).filter(|value| negative(value).is_none()).collect();
    if positive.is_empty() {
        return Reduced::Negative(values.iter().filter_map(|value| negative(value)).collect());
    }
    Reduced::Positive(positive)
}

/// The values of a field.
#[derive(Debug)]
pub(super) enum Terms {
    /// Everything.
    All,
    /// Nothing.
    Nothing,
    /// One of these.
    AnyOf(Set),
    /// None of these.
    NoneOf(Set),
    /// As the original's code: there is one of these that differs.
    AnyDiffers(Box<[Box<str>]>),
}

impl Terms {
    pub(super) fn new(values: &[String], style: Style, empty: Empty, semantics: Semantics) -> Self {
        match (reduce(values), semantics) {
            (Reduced::All, _) => Self::All,
            (Reduced::Empty, _) if empty == Empty::Everything => Self::All,
            (Reduced::Empty, _) => Self::Nothing,
            (Reduced::Positive(values), _) => Self::AnyOf(Set::new(values.into_iter(), style)),
            (Reduced::Negative(values), Semantics::Documented) if values.contains(&ALL) => Self::Nothing,
            (Reduced::Negative(values), Semantics::Documented) => Self::NoneOf(Set::new(values.into_iter(), style)),
            // The code tests the prefix without regard to the sign, and without it, that the texts differ: one is
            // always true.
            (Reduced::Negative(values), Semantics::KubeGateway)
                if style == Style::Prefixes && values.iter().any(|value| value.ends_with('*')) =>
            {
                Self::All
            }
            (Reduced::Negative(values), Semantics::KubeGateway) => Self::AnyDiffers(sorted(values)),
        }
    }

    /// Paths have no negative values: they are ignored.
    pub(super) fn paths(values: &[String]) -> Self {
        match reduce(values) {
            Reduced::All => Self::All,
            Reduced::Positive(values) => Self::AnyOf(Set::new(values.into_iter(), Style::Prefixes)),
            Reduced::Negative(_) | Reduced::Empty => Self::Nothing,
        }
    }

    pub(super) fn matches(&self, value: &str) -> bool {
        match self {
            Self::All => true,
            Self::Nothing => false,
            Self::AnyOf(set) => set.contains(value),
            Self::NoneOf(set) => !set.contains(value),
            Self::AnyDiffers(values) => values.iter().any(|other| **other != *value),
        }
    }

    /// For a field of which a request has several values, as groups.
    pub(super) fn matches_any<'a>(&self, mut values: impl Iterator<Item = &'a str>) -> bool {
        match self {
            Self::All => true,
            Self::Nothing => false,
            Self::AnyOf(_) | Self::AnyDiffers(_) => values.any(|value| self.matches(value)),
            Self::NoneOf(_) => values.all(|value| self.matches(value)),
        }
    }

    /// Whether a text matches that no list mentions. Only without prefixes.
    pub(super) fn matches_others(&self) -> bool {
        matches!(self, Self::All | Self::NoneOf(_) | Self::AnyDiffers(_))
    }

    /// The texts that are mentioned.
    pub(super) fn mentioned(&self) -> &[Box<str>] {
        match self {
            Self::All | Self::Nothing => &[],
            Self::AnyOf(set) | Self::NoneOf(set) => &set.exact,
            Self::AnyDiffers(values) => values,
        }
    }

    /// The only texts that match; `None` if there are others.
    pub(super) fn finite(&self) -> Option<&[Box<str>]> {
        match self {
            Self::Nothing => Some(&[]),
            Self::AnyOf(set) if set.prefixes.is_empty() => Some(&set.exact),
            _ => None,
        }
    }

    pub(super) fn is_all(&self) -> bool {
        matches!(self, Self::All)
    }
}

/// Resources with their subresources.
#[derive(Debug, Default)]
pub(super) struct Pairs {
    /// Resource and subresource, the latter empty for the resource itself; sorted.
    pairs: Box<[(Box<str>, Box<str>)]>,
    /// Subresources of any resource; sorted.
    of_all: Box<[Box<str>]>,
}

impl Pairs {
    fn new(values: Vec<&str>) -> Self {
        let mut pairs: Vec<(Box<str>, Box<str>)> = Vec::new();
        let mut of_all = Vec::new();
        for value in values {
            match value.split_once('/') {
                None => pairs.push((value.into(), "".into())),
                // A request's subresource is never the empty one of `pods/`.
                Some((_, "")) => {}
                Some((ALL, subresource)) => of_all.push(subresource),
                Some((resource, subresource)) => pairs.push((resource.into(), subresource.into())),
            }
        }
        pairs.sort_unstable();
        pairs.dedup();
        Self { pairs: pairs.into(), of_all: sorted(of_all) }
    }

    fn contains(&self, resource: &str, subresource: &str) -> bool {
        self.contains_of_all(subresource)
            || self.pairs.binary_search_by(|(r, s)| (**r).cmp(resource).then_with(|| (**s).cmp(subresource))).is_ok()
    }

    fn contains_of_all(&self, subresource: &str) -> bool {
        !subresource.is_empty() && contains(&self.of_all, subresource)
    }
}

/// The values of `resources`.
#[derive(Debug)]
pub(super) enum ResourceTerms {
    All,
    Nothing,
    AnyOf(Pairs),
    NoneOf(Pairs),
    /// As the original's code: there is one of these that differs.
    AnyDiffers(Box<[Box<str>]>),
}

impl ResourceTerms {
    pub(super) fn new(values: &[String], semantics: Semantics) -> Self {
        match (reduce(values), semantics) {
            (Reduced::All, _) => Self::All,
            (Reduced::Empty, _) => Self::Nothing,
            (Reduced::Positive(values), _) => Self::AnyOf(Pairs::new(values)),
            (Reduced::Negative(values), Semantics::Documented) if values.contains(&ALL) => Self::Nothing,
            (Reduced::Negative(values), Semantics::Documented) => Self::NoneOf(Pairs::new(values)),
            (Reduced::Negative(values), Semantics::KubeGateway) => Self::AnyDiffers(sorted(values)),
        }
    }

    pub(super) fn matches(&self, resource: &str, subresource: &str) -> bool {
        match self {
            Self::All => true,
            Self::Nothing => false,
            Self::AnyOf(pairs) => pairs.contains(resource, subresource),
            Self::NoneOf(pairs) => !pairs.contains(resource, subresource),
            Self::AnyDiffers(values) => values.iter().any(|value| !is_joined(value, resource, subresource)),
        }
    }

    /// Whether a resource that no list mentions matches, with this subresource; `None` for one that no list mentions
    /// either.
    pub(super) fn matches_others(&self, subresource: Option<&str>) -> bool {
        match self {
            Self::All | Self::AnyDiffers(_) => true,
            Self::Nothing => false,
            Self::AnyOf(pairs) => subresource.is_some_and(|subresource| pairs.contains_of_all(subresource)),
            Self::NoneOf(pairs) => !subresource.is_some_and(|subresource| pairs.contains_of_all(subresource)),
        }
    }

    /// The pairs that are mentioned; the resource is `None` where any is meant.
    pub(super) fn mentioned(&self) -> Vec<(Option<&str>, &str)> {
        match self {
            Self::All | Self::Nothing => Vec::new(),
            Self::AnyOf(pairs) | Self::NoneOf(pairs) => {
                let exact = pairs.pairs.iter().map(|(resource, subresource)| (Some(&**resource), &**subresource));
                exact.chain(pairs.of_all.iter().map(|subresource| (None, &**subresource))).collect()
            }
            Self::AnyDiffers(values) => values.iter().map(|value| split(value)).collect(),
        }
    }

    pub(super) fn is_all(&self) -> bool {
        matches!(self, Self::All)
    }
}

fn split(text: &str) -> (Option<&str>, &str) {
    text.split_once('/').map_or((Some(text), ""), |(resource, subresource)| (Some(resource), subresource))
}

/// Whether `text` is `resource`, or `resource/subresource` if there is a subresource.
fn is_joined(text: &str, resource: &str, subresource: &str) -> bool {
    if subresource.is_empty() {
        return text == resource;
    }
    text.strip_prefix(resource).and_then(|rest| rest.strip_prefix('/')).is_some_and(|rest| rest == subresource)
}
