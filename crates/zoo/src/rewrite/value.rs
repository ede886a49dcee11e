//! What becomes of one string.
//!
//! Invariant: outward, no name comes back that isn't the tenant's.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::names::{Names, PREFIX_LENGTH};

/// What a string is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Op {
    /// The name of a namespace or of a cluster-scoped object of the tenant's; a foreign one is blanked.
    Name,
    /// As [`Op::Name`], of the object itself: a foreign object is not told at all.
    Own,
    User,
    Group,
    /// Text for people.
    Text,
    /// Whom a token in a pod is for; decided by [`super::pods`].
    Audience,
    /// What of itself a pod is told; decided by [`super::pods`].
    FieldPath,
}

/// What is to be done with a string.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Change {
    Keep,
    /// The prefix is put at this place.
    Prefix(usize),
    /// The prefix is taken away from this place.
    Strip(usize),
    /// Another text comes in its place.
    Replace(String),
    /// It goes.
    Remove,
    /// It names an object that isn't the tenant's.
    Foreign,
}

impl Op {
    pub(super) fn change(self, outward: bool, names: &Names, text: &str) -> Change {
        if text.is_empty() {
            return Change::Keep;
        }
        match (self, outward) {
            (Self::Text, false) | (Self::Audience | Self::FieldPath, _) => Change::Keep,
            (Self::Text, true) => match names.text_outward(text) {
                Cow::Borrowed(_) => Change::Keep,
                Cow::Owned(text) => Change::Replace(text),
            },
            (Self::Name | Self::Own, false) => Change::Prefix(0),
            (Self::User, false) => prefixed(names, &names.user_inward(text)),
            (Self::Group, false) => prefixed(names, &names.group_inward(text)),
            (Self::Name, true) => stripped(names, text, names.outward(text).is_some()),
            (Self::User, true) => stripped(names, text, names.user_outward(text).is_some()),
            (Self::Group, true) => stripped(names, text, names.group_outward(text).is_some()),
            (Self::Own, true) if names.outward(text).is_some() => Change::Strip(0),
            (Self::Own, true) => Change::Foreign,
        }
    }

    /// The string after the change; none if it stays. A foreign name is blank.
    pub(super) fn changed(self, outward: bool, names: &Names, text: &str) -> Option<String> {
        match self.change(outward, names, text) {
            Change::Keep => None,
            Change::Prefix(at) => Some(format!("{}{}{}", &text[..at], names.prefix(), &text[at..])),
            Change::Strip(at) => Some(format!("{}{}", &text[..at], &text[at + PREFIX_LENGTH..])),
            Change::Replace(text) => Some(text),
            Change::Remove | Change::Foreign => Some(String::new()),
        }
    }

    /// The same for a string in base 64. What is none is left as it is: kube-apiserver refuses it.
    pub(super) fn changed_base64(self, outward: bool, names: &Names, text: &str) -> Option<String> {
        let decoded = String::from_utf8(STANDARD.decode(text).ok()?).ok()?;
        Some(STANDARD.encode(self.changed(outward, names, &decoded)?))
    }
}

/// A subject's name is what it was, but for the prefix: at the beginning, or behind that of service accounts.
fn prefixed(names: &Names, inward: &str) -> Change {
    Change::Prefix(inward.find(names.prefix()).expect("a subject's name has the prefix upstream"))
}

fn stripped(names: &Names, text: &str, is_own: bool) -> Change {
    match text.find(names.prefix()) {
        Some(at) if is_own => Change::Strip(at),
        _ => Change::Replace(String::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_foreign_name_is_never_told() {
        let names = Names::of_uid("u");
        assert_eq!(Op::Name.changed(true, &names, "kube-system").as_deref(), Some(""));
        assert_eq!(Op::Own.change(true, &names, "kube-system"), Change::Foreign);
        assert_eq!(Op::User.changed(true, &names, "system:node:a").as_deref(), Some(""));
        assert_eq!(Op::Group.changed(true, &names, "system:masters").as_deref(), Some(""));
        assert_eq!(Op::Name.changed(true, &names, ""), None);
    }

    #[test]
    fn base64_comes_back() {
        let names = Names::of_uid("u");
        let inward = Op::Name.changed_base64(false, &names, "ZGVmYXVsdA==").unwrap();
        assert_eq!(Op::Name.changed_base64(true, &names, &inward).as_deref(), Some("ZGVmYXVsdA=="));
        assert_eq!(Op::Name.changed_base64(false, &names, "?"), None);
    }
}
