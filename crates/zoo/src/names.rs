//! What a tenant's names are upstream.
//!
//! A tenant has an id, made from the UID of its `Tenant` object and so never used again, and the id makes a prefix. Namespaces, names of
//! cluster-scoped objects, users and groups have it upstream; names within a namespace are the same on both sides.
//!
//! Invariant: the prefix has a fixed length and is followed by the tenant's own name unchanged. So a prefixed name says whose it is, and no
//! two tenants' names meet. The prefix is never told to a tenant.

use std::borrow::Cow;
use std::fmt;

use ring::digest::{SHA256, digest};

/// Characters of an id.
pub const ID_LENGTH: usize = 10;
/// What every tenant's prefix begins with. Names that begin with it, an id and a dash belong to tenants.
pub const PREFIX_START: &str = "kz";
/// Characters of a prefix: its beginning, the id, a dash.
pub const PREFIX_LENGTH: usize = PREFIX_START.len() + ID_LENGTH + 1;
/// The longest name that a tenant's namespace can have: Kubernetes allows 63 characters upstream.
pub const NAMESPACE_LENGTH_MAX: usize = 63 - PREFIX_LENGTH;

/// Characters of a UID, as kube-apiserver makes them.
const UID_LENGTH: usize = 36;
/// Base 32, as in names of DNS.
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
const SERVICE_ACCOUNT: &str = "system:serviceaccount:";
const SERVICE_ACCOUNTS_OF: &str = "system:serviceaccounts:";

/// Identifies a tenant for all time: [`ID_LENGTH`] characters of base 32.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TenantId([u8; ID_LENGTH]);

impl TenantId {
    /// The id of the tenant whose `Tenant` object has this UID.
    #[must_use]
    pub fn of_uid(uid: &str) -> Self {
        let hash = digest(&SHA256, uid.as_bytes());
        let mut bits = hash.as_ref().iter().take(8).fold(0u64, |bits, byte| (bits << 8) | u64::from(*byte));
        Self(std::array::from_fn(|_| {
            let digit = ALPHABET[(bits >> 59) as usize];
            bits <<= 5;
            digit
        }))
    }

    /// The id in a name that has a tenant's prefix, and the rest of it: the tenant's own name.
    #[must_use]
    pub fn split(name: &str) -> Option<(Self, &str)> {
        let rest = name.strip_prefix(PREFIX_START)?;
        let (id, rest) = rest.as_bytes().split_at_checked(ID_LENGTH)?;
        let id: [u8; ID_LENGTH] = id.try_into().ok()?;
        if rest.first() != Some(&b'-') || !id.iter().all(|digit| ALPHABET.contains(digit)) {
            return None;
        }
        Some((Self(id), &name[PREFIX_LENGTH..]))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("base 32 is ASCII")
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl fmt::Debug for TenantId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "TenantId({self})")
    }
}

/// A tenant's names, both ways.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    id: TenantId,
    uid: Box<str>,
    prefix: [u8; PREFIX_LENGTH],
}

impl Names {
    /// The names of the tenant whose `Tenant` object has this UID.
    #[must_use]
    pub fn of_uid(uid: &str) -> Self {
        let id = TenantId::of_uid(uid);
        let mut prefix = [b'-'; PREFIX_LENGTH];
        prefix[..PREFIX_START.len()].copy_from_slice(PREFIX_START.as_bytes());
        prefix[PREFIX_START.len()..PREFIX_LENGTH - 1].copy_from_slice(&id.0);
        Self { id, uid: uid.into(), prefix }
    }

    /// The tenant.
    #[must_use]
    pub fn id(&self) -> TenantId {
        self.id
    }

    /// The UID of its `Tenant` object.
    #[must_use]
    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// What its names begin with upstream.
    #[must_use]
    pub fn prefix(&self) -> &str {
        std::str::from_utf8(&self.prefix).expect("a prefix is ASCII")
    }

    /// A name as it is upstream: of a namespace, a cluster-scoped object, a user or a group that is the tenant's own.
    #[must_use]
    pub fn inward(&self, name: &str) -> String {
        let mut inward = String::with_capacity(PREFIX_LENGTH + name.len());
        inward.push_str(self.prefix());
        inward.push_str(name);
        inward
    }

    /// The tenant's name for what has this name upstream; none if it is not the tenant's.
    #[must_use]
    pub fn outward<'a>(&self, name: &'a str) -> Option<&'a str> {
        name.strip_prefix(self.prefix())
    }

    /// A user's name upstream. A service account's keeps its form, as kube-apiserver makes it from the namespace.
    #[must_use]
    pub fn user_inward(&self, user: &str) -> String {
        self.subject_inward(SERVICE_ACCOUNT, user)
    }

    /// A user of the tenant, from its name upstream.
    #[must_use]
    pub fn user_outward<'a>(&self, user: &'a str) -> Option<Cow<'a, str>> {
        self.subject_outward(SERVICE_ACCOUNT, user)
    }

    /// A group's name upstream. All service accounts of a namespace keep their form.
    #[must_use]
    pub fn group_inward(&self, group: &str) -> String {
        self.subject_inward(SERVICE_ACCOUNTS_OF, group)
    }

    /// A group of the tenant, from its name upstream.
    #[must_use]
    pub fn group_outward<'a>(&self, group: &'a str) -> Option<Cow<'a, str>> {
        self.subject_outward(SERVICE_ACCOUNTS_OF, group)
    }

    fn subject_inward(&self, namespaced: &str, subject: &str) -> String {
        match subject.strip_prefix(namespaced) {
            Some(rest) => format!("{namespaced}{}{rest}", self.prefix()),
            None => self.inward(subject),
        }
    }

    fn subject_outward<'a>(&self, namespaced: &str, subject: &'a str) -> Option<Cow<'a, str>> {
        match subject.strip_prefix(namespaced) {
            Some(rest) => self.outward(rest).map(|rest| Cow::Owned(format!("{namespaced}{rest}"))),
            None => self.outward(subject).map(Cow::Borrowed),
        }
    }

    /// Text for people that kube-apiserver or a controller wrote, with the tenant's own names in it.
    ///
    /// The prefix is taken away wherever it is, and so is the UID with the label or the term of a selector that zoo has added. A
    /// tenant has no reason to write either, though its credentials tell them; one that does loses them in its own view.
    #[must_use]
    pub fn text_outward<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let has = |part: &[u8]| memchr::memmem::find(text.as_bytes(), part).is_some();
        // A UID of one of ours, and not what a test takes for one.
        let has_uid = self.uid.len() >= UID_LENGTH && has(self.uid.as_bytes());
        match (has(&self.prefix), has_uid) {
            (false, false) => Cow::Borrowed(text),
            (_, false) => Cow::Owned(text.replace(self.prefix(), "")),
            (_, true) => {
                let text = crate::text::without_label(text, &self.uid);
                Cow::Owned(text.replace(self.prefix(), "").replace(&*self.uid, ""))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_prefixed_name_tells_whose_it_is() {
        let names = Names::of_uid("6f0a0d8c-58ab-4f7b-9f20-1c2d3e4f5a6b");
        assert_eq!(names.prefix().len(), PREFIX_LENGTH);
        let inward = names.inward("kube-system");
        assert_eq!(TenantId::split(&inward), Some((names.id(), "kube-system")));
        assert_eq!(names.outward(&inward), Some("kube-system"));
        assert_eq!(Names::of_uid("another").outward(&inward), None);
        assert_eq!(TenantId::split("kube-system"), None);
        assert_eq!(TenantId::split("kzabcdefghi1-x"), None, "1 is no digit of base 32");
    }

    #[test]
    fn text_loses_the_prefix() {
        let names = Names::of_uid("u");
        let prefix = names.prefix();
        let text = format!(r#"namespaces "{prefix}a" not found; x.{prefix}b; system:serviceaccount:{prefix}c:d"#);
        assert_eq!(names.text_outward(&text), r#"namespaces "a" not found; x.b; system:serviceaccount:c:d"#);
        assert!(matches!(names.text_outward("nothing here"), Cow::Borrowed(_)));
    }

    proptest! {
        #[test]
        fn names_come_back(uid in "[0-9a-f-]{1,36}", name in "(system:serviceaccounts?:)?[a-z:.-]{0,20}") {
            let names = Names::of_uid(&uid);
            let inward = names.inward(&name);
            prop_assert_eq!(names.outward(&inward), Some(name.as_str()));
            prop_assert_eq!(names.text_outward(&inward), name.as_str());
            let user = names.user_inward(&name);
            let outward = names.user_outward(&user);
            prop_assert_eq!(outward.as_deref(), Some(name.as_str()));
            let group = names.group_inward(&name);
            let outward = names.group_outward(&group);
            prop_assert_eq!(outward.as_deref(), Some(name.as_str()));
        }
    }
}
