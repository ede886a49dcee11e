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
}

/// What is to be done with a string.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Change {
    Keep,
    /// The prefix is put before it.
    Prefix,
    /// The prefix is taken away from it.
    Strip,
    /// Another text comes in its place.
    Replace(String),
    /// It names an object that isn't the tenant's.
    Foreign,
}

impl Op {
    pub(super) fn change(self, outward: bool, names: &Names, text: &str) -> Change {
        if text.is_empty() {
            return Change::Keep;
        }
        match (self, outward) {
            (Self::Text, false) => Change::Keep,
            (Self::Text, true) => match names.text_outward(text) {
                Cow::Borrowed(_) => Change::Keep,
                Cow::Owned(text) => Change::Replace(text),
            },
            (Self::Name | Self::Own, false) => Change::Prefix,
            (Self::Name | Self::Own, true) => match names.outward(text) {
                Some(rest) => {
                    debug_assert_eq!(rest.len() + PREFIX_LENGTH, text.len());
                    Change::Strip
                }
                None if self == Self::Own => Change::Foreign,
                None => Change::Replace(String::new()),
            },
            (Self::User, false) => Change::Replace(names.user_inward(text)),
            (Self::User, true) => Change::Replace(names.user_outward(text).unwrap_or_default().into_owned()),
            (Self::Group, false) => Change::Replace(names.group_inward(text)),
            (Self::Group, true) => Change::Replace(names.group_outward(text).unwrap_or_default().into_owned()),
        }
    }

    /// The string after the change; none if it stays. A foreign name is blank.
    pub(super) fn changed(self, outward: bool, names: &Names, text: &str) -> Option<String> {
        match self.change(outward, names, text) {
            Change::Keep => None,
            Change::Prefix => Some(names.inward(text)),
            Change::Strip => Some(text[PREFIX_LENGTH..].to_owned()),
            Change::Replace(text) => Some(text),
            Change::Foreign => Some(String::new()),
        }
    }

    /// The same for a string in base 64. What is none is left as it is: kube-apiserver refuses it.
    pub(super) fn changed_base64(self, outward: bool, names: &Names, text: &str) -> Option<String> {
        let decoded = String::from_utf8(STANDARD.decode(text).ok()?).ok()?;
        Some(STANDARD.encode(self.changed(outward, names, &decoded)?))
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
