//! Who may act as whom: what the headers `Impersonate-*` of a request ask for ([`Wanted`]), and whether the user may
//! ([`Wanted::decide`]).
//!
//! Invariant: the decision, the user that comes of it and the refusal are those of Kubernetes 1.36 with its feature
//! `ConstrainedImpersonation`, which is on (`pkg/endpoints/filters/impersonation` of k8s.io/apiserver v0.36.3). First
//! the constrained modes that apply are tried: each takes the verb `impersonate:MODE` on whom the user acts as and
//! `impersonate-on:MODE:VERB` on what the request is for. Then the verb `impersonate`. A refusal is that of the first.

use std::collections::BTreeMap;

use kubewharf_kube_api::content::dns_subdomain_errors;
use kubewharf_kube_api::quote::{push_quoted, quoted};
use kubewharf_kube_api::users::{
    ALL_AUTHENTICATED, ALL_UNAUTHENTICATED, ANONYMOUS, NODE_NAME_KEY, NODES_GROUP, PRIVILEGED_GROUP, node_of,
    service_account_groups, service_account_of,
};
use kubewharf_kube_api::{RequestInfo, Status};

use super::decision::authorize;
use super::policy::Policy;
use super::{Attributes, UserInfo};

/// The header that names the user; the other ones count only beside it.
pub const USER_HEADER: &str = "impersonate-user";
/// The header that names the user's identifier.
pub const UID_HEADER: &str = "impersonate-uid";
/// The header, one for each, that names a group.
pub const GROUP_HEADER: &str = "impersonate-group";
/// What the headers of further facts begin with; the key follows.
pub const EXTRA_HEADER_PREFIX: &str = "impersonate-extra-";

const AUTHENTICATION_GROUP: &str = "authentication.k8s.io";
/// From how many on it is first asked whether all are allowed.
const MANY: usize = 4;

/// Whether a request's header of this name, in any case, belongs to impersonation. It must not go on with the request.
#[must_use]
pub fn is_header(name: &str) -> bool {
    let begins =
        name.get(..EXTRA_HEADER_PREFIX.len()).is_some_and(|start| start.eq_ignore_ascii_case(EXTRA_HEADER_PREFIX));
    begins || [USER_HEADER, UID_HEADER, GROUP_HEADER].iter().any(|header| name.eq_ignore_ascii_case(header))
}

/// Whom a request asks to be treated as, before it is completed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted(UserInfo);

impl Wanted {
    /// Reads a request's headers, their values as they are on the wire; `None` if they ask for nothing.
    ///
    /// # Errors
    /// The 400 to answer with: when there are such headers but none that names a user, or one is not UTF-8.
    pub fn from_headers<'a>(headers: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Result<Option<Self>, Status> {
        let mut user = UserInfo::default();
        let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let (mut has_user, mut has_uid) = (false, false);
        for (name, value) in headers.into_iter().filter(|(name, _)| is_header(name)) {
            let name = name.to_ascii_lowercase();
            let value = str::from_utf8(value)
                .map_err(|_| Status::bad_request(format!("the value of the header {name} is not UTF-8")))?
                .to_owned();
            match name.as_str() {
                // Of these the first counts, even if it is empty.
                USER_HEADER if !std::mem::replace(&mut has_user, true) => user.username = value,
                UID_HEADER if !std::mem::replace(&mut has_uid, true) => user.uid = value,
                USER_HEADER | UID_HEADER => {}
                GROUP_HEADER => user.groups.push(value),
                name => {
                    let key = unescape(&name[EXTRA_HEADER_PREFIX.len()..]);
                    extra.entry(key).or_default().push(value);
                }
            }
        }
        user.extra = extra.into_iter().collect();
        if !user.username.is_empty() {
            return Ok(Some(Self(user)));
        }
        if user.uid.is_empty() && user.groups.is_empty() && user.extra.is_empty() {
            return Ok(None);
        }
        let wanted = as_go_value(&user);
        Err(Status::bad_request(format!("requested {wanted} without impersonating a user name")))
    }

    /// The user that the request is treated as one of, if this user may ask for it.
    ///
    /// # Errors
    /// The 403 to answer with.
    pub fn decide(&self, policy: &Policy, user: &UserInfo, request: &RequestInfo<'_>) -> Result<UserInfo, Status> {
        let request = Attributes::of_request(request);
        let mut refusal = None;
        for mode in Mode::ALL {
            if !mode.applies(&self.0, user) {
                continue;
            }
            match (Check { policy, user, mode }).act_as(&self.0, &request) {
                Ok(effective) => return Ok(effective),
                Err(status) => refusal = refusal.or(Some(status)),
            }
        }
        Err(refusal.unwrap_or_else(|| Status::forbidden("all impersonation modes failed")))
    }
}

/// A way to be allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// A service account acts as the node that its pod is on.
    AssociatedNode,
    /// Anybody acts as a node.
    ArbitraryNode,
    /// Anybody acts as a service account.
    ServiceAccount,
    /// Anybody acts as anybody else.
    UserInfo,
    /// The only way before 1.36.
    Legacy,
}

impl Mode {
    /// In the order in which they are tried.
    const ALL: [Self; 5] =
        [Self::AssociatedNode, Self::ArbitraryNode, Self::ServiceAccount, Self::UserInfo, Self::Legacy];

    fn name(self) -> &'static str {
        match self {
            Self::AssociatedNode => "associated-node",
            Self::ArbitraryNode => "arbitrary-node",
            Self::ServiceAccount => "serviceaccount",
            Self::UserInfo => "user-info",
            Self::Legacy => "",
        }
    }

    fn applies(self, wanted: &UserInfo, user: &UserInfo) -> bool {
        let has_only_name = wanted.uid.is_empty() && wanted.groups.is_empty() && wanted.extra.is_empty();
        let node = node_of(&wanted.username);
        let is_service_account = service_account_of(&wanted.username).is_some();
        match self {
            Self::AssociatedNode => {
                let own = user.extra.iter().find(|(key, _)| key == NODE_NAME_KEY).map(|(_, values)| values.as_slice());
                let own = if let Some([own]) = own { own } else { "" };
                has_only_name && service_account_of(&user.username).is_some() && node == Some(own)
            }
            Self::ArbitraryNode => has_only_name && node.is_some(),
            Self::ServiceAccount => has_only_name && is_service_account,
            Self::UserInfo => node.is_none() && !is_service_account,
            Self::Legacy => true,
        }
    }
}

/// What is the same for all that is asked in one mode.
struct Check<'a> {
    policy: &'a Policy,
    user: &'a UserInfo,
    mode: Mode,
}

impl Check<'_> {
    fn act_as(&self, wanted: &UserInfo, request: &Attributes<'_>) -> Result<UserInfo, Status> {
        let is_constrained = self.mode != Mode::Legacy;
        if is_constrained {
            let verb = format!("impersonate-on:{}:{}", self.mode.name(), request.verb);
            self.may(&Attributes { verb: &verb, ..*request })?;
        }
        let verb = if is_constrained { format!("impersonate:{}", self.mode.name()) } else { "impersonate".to_owned() };
        let asked = Attributes {
            is_resource_request: true,
            verb: &verb,
            api_group: if is_constrained { AUTHENTICATION_GROUP } else { "" },
            ..Attributes::default()
        };

        let mut effective = wanted.clone();
        let mut who = Attributes { resource: "users", name: &wanted.username, ..asked };
        if let Some(node) = node_of(&wanted.username).filter(|_| is_constrained) {
            // That it is the own node was found out before, so that the right need not name it.
            let name = if self.mode == Mode::AssociatedNode { "*" } else { node };
            who = Attributes { resource: "nodes", name, ..who };
            effective.groups = vec![NODES_GROUP.to_owned()];
        } else if let Some((namespace, name)) = service_account_of(&wanted.username) {
            who = Attributes { resource: "serviceaccounts", namespace, name, ..who };
            if wanted.groups.is_empty() {
                effective.groups = service_account_groups(namespace);
            }
        }
        self.may(&who)?;
        if !wanted.uid.is_empty() {
            self.may(&Attributes { api_group: AUTHENTICATION_GROUP, resource: "uids", name: &wanted.uid, ..asked })?;
        }
        self.may_have_groups(&wanted.groups, &Attributes { resource: "groups", ..asked })?;
        let asked = Attributes { api_group: AUTHENTICATION_GROUP, resource: "userextras", ..asked };
        self.may_have_extra(&wanted.extra, &asked)?;

        let is_unauthenticated = effective.groups.iter().any(|group| group == ALL_UNAUTHENTICATED);
        let implied = if effective.username == ANONYMOUS { ALL_UNAUTHENTICATED } else { ALL_AUTHENTICATED };
        if !is_unauthenticated && !effective.groups.iter().any(|group| group == implied) {
            effective.groups.push(implied.to_owned());
        }
        Ok(effective)
    }

    fn may_have_groups(&self, groups: &[String], asked: &Attributes<'_>) -> Result<(), Status> {
        if self.mode != Mode::Legacy {
            let refuse = |name: &str, why: &str| {
                Err(Status::forbidden_request(&self.user.username, &Attributes { name, ..*asked }.to_request(), why))
            };
            if groups.iter().any(String::is_empty) {
                return refuse("", "impersonating the empty string group is not allowed");
            }
            if groups.iter().any(|group| group == PRIVILEGED_GROUP) {
                return refuse(PRIVILEGED_GROUP, "impersonating the system:masters group is not allowed");
            }
            if groups.len() >= MANY && self.may(&Attributes { name: "*", ..*asked }).is_ok() {
                return Ok(());
            }
        }
        groups.iter().try_for_each(|group| self.may(&Attributes { name: group, ..*asked }))
    }

    fn may_have_extra(&self, extra: &[(String, Vec<String>)], asked: &Attributes<'_>) -> Result<(), Status> {
        if self.mode != Mode::Legacy {
            if let Some(why) = extra.iter().find_map(|(key, values)| wrong_extra(key, values)) {
                return Err(Status::forbidden_request(&self.user.username, &asked.to_request(), &why));
            }
            let values: usize = extra.iter().map(|(_, values)| values.len()).sum();
            let is_many = extra.len() >= MANY || values >= MANY;
            if is_many && self.may(&Attributes { subresource: "*", name: "*", ..*asked }).is_ok() {
                return Ok(());
            }
        }
        for (key, values) in extra {
            for value in values {
                self.may(&Attributes { subresource: key, name: value, ..*asked })?;
            }
        }
        Ok(())
    }

    fn may(&self, asked: &Attributes<'_>) -> Result<(), Status> {
        let decision = authorize(self.policy, self.user, asked);
        if decision.allowed {
            return Ok(());
        }
        let why = decision.reason.to_string();
        Err(Status::forbidden_request(&self.user.username, &asked.to_request(), &why))
    }
}

/// Why a fact may not be asked for in a constrained mode.
fn wrong_extra(key: &str, values: &[String]) -> Option<String> {
    if key.is_empty() {
        return Some("impersonating the empty string key in extra is not allowed".to_owned());
    }
    if let Some(why) = wrong_extra_key(key) {
        return Some(format!("impersonating an invalid key in extra is not allowed: {why}"));
    }
    if key.chars().any(|character| !character.to_lowercase().eq([character])) {
        return Some(format!("impersonating a non-lowercase key in extra is not allowed: {}", quoted(key)));
    }
    if values.iter().any(String::is_empty) {
        return Some("impersonating the empty string value in extra is not allowed".to_owned());
    }
    None
}

/// As `IsDomainPrefixedPath` of apimachinery: a name of DNS, a slash and a path.
fn wrong_extra_key(key: &str) -> Option<String> {
    const PATH_FORMAT: &str = r"Invalid path (regex used for validation is '[A-Za-z0-9/\-._~%!$&'()*+,;=:]+')";
    let invalid = |value: &str, why: &str| format!("extra.key: Invalid value: {}: {why}", quoted(value));
    let (domain, path) = match key.split_once('/') {
        Some((domain, path)) if !domain.is_empty() && !path.is_empty() => (domain, path),
        _ => return Some(invalid(key, r#"must be a domain-prefixed path (such as "acme.io/foo")"#)),
    };
    let mut errors: Vec<String> = dns_subdomain_errors(domain).iter().map(|why| invalid(domain, why)).collect();
    let is_of_path = |byte: u8| byte.is_ascii_alphanumeric() || br"/-._~%!$&'()*+,;=:".contains(&byte);
    if !path.bytes().all(is_of_path) {
        errors.push(invalid(path, PATH_FORMAT));
    }
    match errors.len() {
        0 => None,
        1 => errors.pop(),
        _ => Some(format!("[{}]", errors.join(", "))),
    }
}

/// As `url.PathUnescape`; a text with anything that is no escape stays as it is.
fn unescape(text: &str) -> String {
    let mut bytes = text.bytes();
    let mut unescaped = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            unescaped.push(byte);
            continue;
        }
        let mut digit = || bytes.next().and_then(|digit| char::from(digit).to_digit(16));
        let (Some(high), Some(low)) = (digit(), digit()) else { return text.to_owned() };
        unescaped.push(u8::try_from(high * 16 + low).expect("two hexadecimal digits make a byte"));
    }
    String::from_utf8(unescaped).unwrap_or_else(|_| text.to_owned())
}

/// The user as Go's verb `%#v` writes it.
fn as_go_value(user: &UserInfo) -> String {
    fn list(text: &mut String, values: &[String]) {
        let mut inside = String::new();
        for value in values {
            inside += if inside.is_empty() { "" } else { ", " };
            push_quoted(&mut inside, value);
        }
        *text += &format!("[]string{{{inside}}}");
    }

    let mut text = String::from("&user.DefaultInfo{Name:");
    push_quoted(&mut text, &user.username);
    text += ", UID:";
    push_quoted(&mut text, &user.uid);
    text += ", Groups:";
    if user.groups.is_empty() {
        text += "[]string(nil)";
    } else {
        list(&mut text, &user.groups);
    }
    text += ", Extra:map[string][]string";
    if user.extra.is_empty() {
        text += "(nil)";
    } else {
        text += "{";
        for (number, (key, values)) in user.extra.iter().enumerate() {
            text += if number > 0 { ", " } else { "" };
            push_quoted(&mut text, key);
            text += ":";
            list(&mut text, values);
        }
        text += "}";
    }
    text += "}";
    text
}
