//! How a kube-apiserver is asked who a token belongs to ([`TokenReview`], authentication.k8s.io/v1) and what a user may
//! do ([`SubjectAccessReview`], authorization.k8s.io/v1).
//!
//! Invariant: an answer that does not say yes means no. What is missing in it is `false` or empty, and what is not such
//! a review at all is an error.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::ser::SerializeMap as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::labels::Requirement;
use crate::request_info::RequestInfo;

/// The path that token reviews are posted to.
pub const TOKEN_REVIEW_PATH: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
/// The path that subject access reviews are posted to.
pub const SUBJECT_ACCESS_REVIEW_PATH: &str = "/apis/authorization.k8s.io/v1/subjectaccessreviews";

/// Further facts about a user, by key.
pub type Extra = [(String, Vec<String>)];

/// Why an answer is not one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not valid JSON, or a field has the wrong type.
    #[error("the answer to a {kind} is malformed: {source}")]
    Json {
        /// What it should have been.
        kind: &'static str,
        /// What is wrong with it, and where.
        source: serde_json::Error,
    },
    /// It is another object.
    #[error("the answer to a {kind} of {api_version} is a {found_kind:?} of {found_api_version:?}")]
    OtherKind {
        /// What it should have been.
        kind: &'static str,
        /// The group and version that it should have been of.
        api_version: &'static str,
        /// The `kind` that it has.
        found_kind: String,
        /// The `apiVersion` that it has.
        found_api_version: String,
    },
}

/// Who does this token belong to?
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenReview<'a> {
    /// The question.
    pub spec: TokenReviewSpec<'a>,
    /// The answer; empty in a question.
    pub status: TokenReviewStatus,
}

/// A token.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TokenReviewSpec<'a> {
    /// The token. It is not shown by [`fmt::Debug`].
    #[serde(borrow, skip_serializing_if = "str::is_empty")]
    pub token: Cow<'a, str>,
    /// For whom the token must be meant, at least for one of these; if empty, for the kube-apiserver itself.
    #[serde(skip_serializing_if = "<[_]>::is_empty", deserialize_with = "null_as_empty")]
    pub audiences: Cow<'a, [String]>,
}

impl fmt::Debug for TokenReviewSpec<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenReviewSpec").field("audiences", &self.audiences).finish_non_exhaustive()
    }
}

/// Who a token belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TokenReviewStatus {
    /// Whether the token is valid; if not, nothing else counts but the error.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub authenticated: bool,
    /// The user.
    #[serde(deserialize_with = "null_as_empty")]
    pub user: UserInfo,
    /// Those of the question's audiences that the token is meant for. Who named audiences must check that this is not
    /// empty: it is if the kube-apiserver does not know audiences.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_empty")]
    pub audiences: Vec<String>,
    /// Why the token could not be checked; empty if it could.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub error: String,
}

/// A user.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UserInfo {
    /// The name.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub username: String,
    /// An identifier that outlives the name; empty if there is none.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub uid: String,
    /// The groups.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_empty")]
    pub groups: Vec<String>,
    /// Further facts, by key, in the keys' order.
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "map_of_pairs", deserialize_with = "pairs_of_map")]
    pub extra: Vec<(String, Vec<String>)>,
}

/// May this user do this?
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SubjectAccessReview<'a> {
    /// The question.
    pub spec: SubjectAccessReviewSpec<'a>,
    /// The answer; empty in a question.
    pub status: SubjectAccessReviewStatus,
}

/// A user, and what is to be done. Exactly one of the two kinds of attributes must be there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SubjectAccessReviewSpec<'a> {
    /// What is to be done with a resource.
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    pub resource_attributes: Option<ResourceAttributes<'a>>,
    /// What is to be done with another path.
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    pub non_resource_attributes: Option<NonResourceAttributes<'a>>,
    /// The user's name.
    #[serde(borrow, skip_serializing_if = "str::is_empty")]
    pub user: Cow<'a, str>,
    /// All of the user's groups; none is added to them.
    #[serde(skip_serializing_if = "<[_]>::is_empty", deserialize_with = "null_as_empty")]
    pub groups: Cow<'a, [String]>,
    /// Further facts about the user, by key.
    #[serde(
        skip_serializing_if = "<[_]>::is_empty",
        serialize_with = "map_of_pairs",
        deserialize_with = "borrowable_pairs_of_map"
    )]
    pub extra: Cow<'a, Extra>,
    /// The user's identifier.
    #[serde(borrow, skip_serializing_if = "str::is_empty")]
    pub uid: Cow<'a, str>,
}

/// What is to be done with a resource.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ResourceAttributes<'a> {
    /// The namespace; empty for all, and for resources that are in none.
    #[serde(borrow, skip_serializing_if = "str::is_empty")]
    pub namespace: Cow<'a, str>,
    /// The verb, such as `get` or `impersonate`.
    #[serde(borrow, skip_serializing_if = "str::is_empty")]
    pub verb: Cow<'a, str>,
    /// The API group.
    #[serde(borrow, skip_serializing_if = "str::is_empty")]
    pub group: Cow<'a, str>,
    /// The version of the API group.
    #[serde(borrow, skip_serializing_if = "str::is_empty")]
    pub version: Cow<'a, str>,
    /// The resource.
    #[serde(borrow, skip_serializing_if = "str::is_empty")]
    pub resource: Cow<'a, str>,
    /// The subresource; empty for none.
    #[serde(borrow, skip_serializing_if = "str::is_empty")]
    pub subresource: Cow<'a, str>,
    /// The name of the object; empty for all.
    #[serde(borrow, skip_serializing_if = "str::is_empty")]
    pub name: Cow<'a, str>,
    /// What the request is limited to by fields.
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    pub field_selector: Option<SelectorAttributes<'a>>,
    /// What the request is limited to by labels.
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    pub label_selector: Option<SelectorAttributes<'a>>,
}

/// A selector. The kube-apiserver parses it, and takes the request for not limited if it cannot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SelectorAttributes<'a> {
    /// The selector as in a query, without percent escapes.
    #[serde(borrow, skip_serializing_if = "str::is_empty")]
    pub raw_selector: Cow<'a, str>,
    /// The selector as a list of conditions, which must all hold; instead of the raw one.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_empty")]
    pub requirements: Vec<Requirement>,
}

/// What is to be done with a path that is not one of a resource.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NonResourceAttributes<'a> {
    /// The path.
    #[serde(borrow, skip_serializing_if = "str::is_empty")]
    pub path: Cow<'a, str>,
    /// The method of HTTP, in lower case.
    #[serde(borrow, skip_serializing_if = "str::is_empty")]
    pub verb: Cow<'a, str>,
}

/// Whether the user may.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SubjectAccessReviewStatus {
    /// Whether it is allowed.
    pub allowed: bool,
    /// Whether it is denied whatever others say. If it is neither, nobody has allowed it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub denied: bool,
    /// Why; may be empty.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub reason: String,
    /// What went wrong while it was decided; there can be a decision nevertheless.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub evaluation_error: String,
}

impl SubjectAccessReviewSpec<'_> {
    /// The question whether this request is allowed, without the user who asks.
    #[must_use]
    pub fn of_request<'a>(info: &'a RequestInfo<'_>) -> SubjectAccessReviewSpec<'a> {
        let mut spec = SubjectAccessReviewSpec::default();
        if info.is_resource_request {
            let selector = |raw: &'a str| {
                (!raw.is_empty())
                    .then(|| SelectorAttributes { raw_selector: raw.into(), ..SelectorAttributes::default() })
            };
            spec.resource_attributes = Some(ResourceAttributes {
                namespace: Cow::Borrowed(&info.namespace),
                verb: Cow::Borrowed(&info.verb),
                group: Cow::Borrowed(&info.api_group),
                version: Cow::Borrowed(&info.api_version),
                resource: Cow::Borrowed(&info.resource),
                subresource: Cow::Borrowed(&info.subresource),
                name: Cow::Borrowed(&info.name),
                field_selector: selector(&info.field_selector),
                label_selector: selector(&info.label_selector),
            });
        } else {
            spec.non_resource_attributes =
                Some(NonResourceAttributes { path: Cow::Borrowed(&info.path), verb: Cow::Borrowed(&info.verb) });
        }
        spec
    }
}

/// What a review is to be written as. Metadata is left out: a review has none.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Written<Spec, Status> {
    kind: &'static str,
    api_version: &'static str,
    spec: Spec,
    status: Status,
}

/// What tells the kind of an object.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Names {
    kind: String,
    api_version: String,
}

/// What a review holds beside its names.
#[derive(Deserialize)]
struct Content<Spec, Status> {
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

/// The names of a kind of object.
struct Kind {
    kind: &'static str,
    api_version: &'static str,
}

const TOKEN_REVIEW: Kind = Kind { kind: "TokenReview", api_version: "authentication.k8s.io/v1" };
const SUBJECT_ACCESS_REVIEW: Kind = Kind { kind: "SubjectAccessReview", api_version: "authorization.k8s.io/v1" };

impl Kind {
    fn to_json(&self, spec: &impl Serialize, status: &impl Serialize) -> Vec<u8> {
        let written = Written { kind: self.kind, api_version: self.api_version, spec, status };
        serde_json::to_vec(&written).expect("texts, lists and maps by text can be written to memory as JSON")
    }

    fn read<'a, Spec, Status>(&self, json: &'a [u8]) -> Result<(Spec, Status), Error>
    where
        Spec: Default + Deserialize<'a>,
        Status: Default + Deserialize<'a>,
    {
        let malformed = |source| Error::Json { kind: self.kind, source };
        // First the names: the spec or status of another kind of object would be malformed here, which says less.
        let found: Names = serde_json::from_slice(json).map_err(malformed)?;
        if found.kind != self.kind || found.api_version != self.api_version {
            return Err(Error::OtherKind {
                kind: self.kind,
                api_version: self.api_version,
                found_kind: found.kind,
                found_api_version: found.api_version,
            });
        }
        let content: Content<Spec, Status> = serde_json::from_slice(json).map_err(malformed)?;
        Ok((content.spec, content.status))
    }
}

impl<'a> TokenReview<'a> {
    /// The question for this token; see [`TokenReviewSpec`].
    #[must_use]
    pub fn of_token(token: &'a str, audiences: &'a [String]) -> Self {
        let spec = TokenReviewSpec { token: Cow::Borrowed(token), audiences: Cow::Borrowed(audiences) };
        Self { spec, status: TokenReviewStatus::default() }
    }

    /// The object as it is posted. It holds the token.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        TOKEN_REVIEW.to_json(&self.spec, &self.status)
    }

    /// Reads a question or an answer.
    ///
    /// # Errors
    /// When it is not a token review.
    pub fn from_json(json: &'a [u8]) -> Result<Self, Error> {
        TOKEN_REVIEW.read(json).map(|(spec, status)| Self { spec, status })
    }
}

impl<'a> SubjectAccessReview<'a> {
    /// The object as it is posted.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        SUBJECT_ACCESS_REVIEW.to_json(&self.spec, &self.status)
    }

    /// Reads a question or an answer.
    ///
    /// # Errors
    /// When it is not a subject access review.
    pub fn from_json(json: &'a [u8]) -> Result<Self, Error> {
        SUBJECT_ACCESS_REVIEW.read(json).map(|(spec, status)| Self { spec, status })
    }
}

/// Go writes `null` for a list that was never made.
pub(crate) fn null_as_empty<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

fn map_of_pairs<S: Serializer>(pairs: &Extra, serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(pairs.len()))?;
    for (key, values) in pairs {
        map.serialize_entry(key, values)?;
    }
    map.end()
}

fn pairs_of_map<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<(String, Vec<String>)>, D::Error> {
    // Of a key that is there twice the last value counts, as for Go.
    let map: BTreeMap<String, Option<Vec<String>>> = null_as_empty(deserializer)?;
    Ok(map.into_iter().map(|(key, values)| (key, values.unwrap_or_default())).collect())
}

fn borrowable_pairs_of_map<'de, 'a, D: Deserializer<'de>>(deserializer: D) -> Result<Cow<'a, Extra>, D::Error> {
    pairs_of_map(deserializer).map(Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_for_a_token_is_as_kubernetes_expects_it_and_does_not_show_the_token() {
        let audiences = ["https://kubernetes.default.svc".to_owned()];
        let review = TokenReview::of_token("secret", &audiences);
        let expected = serde_json::json!({
            "kind": "TokenReview",
            "apiVersion": "authentication.k8s.io/v1",
            "spec": {"token": "secret", "audiences": ["https://kubernetes.default.svc"]},
            "status": {"user": {}},
        });
        let json = review.to_json();
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&json).unwrap(), expected);
        assert_eq!(TokenReview::from_json(&json).unwrap(), review);
        assert!(!format!("{review:?}").contains("secret"));
    }

    #[test]
    fn a_user_is_read_with_all_that_is_known() {
        // As a kube-apiserver answers for a service account, but for the nulls.
        let json = br#"{"kind":"TokenReview","apiVersion":"authentication.k8s.io/v1","metadata":{"managedFields":[]},
            "spec":{"token":"t","audiences":null},"status":{"authenticated":true,"user":{
            "username":"system:serviceaccount:shop:web","uid":"u-1",
            "groups":["system:serviceaccounts","system:authenticated"],
            "extra":{"authentication.kubernetes.io/pod-name":["web-0"],"a":null}},"audiences":["aud"]}}"#;
        let status = TokenReview::from_json(json).unwrap().status;
        let expected = TokenReviewStatus {
            authenticated: true,
            user: UserInfo {
                username: "system:serviceaccount:shop:web".to_owned(),
                uid: "u-1".to_owned(),
                groups: vec!["system:serviceaccounts".to_owned(), "system:authenticated".to_owned()],
                extra: vec![
                    ("a".to_owned(), vec![]),
                    ("authentication.kubernetes.io/pod-name".to_owned(), vec!["web-0".to_owned()]),
                ],
            },
            audiences: vec!["aud".to_owned()],
            error: String::new(),
        };
        assert_eq!(status, expected);
    }

    #[test]
    fn what_does_not_say_yes_is_a_no_or_an_error() {
        let bare = br#"{"kind":"TokenReview","apiVersion":"authentication.k8s.io/v1"}"#;
        assert!(!TokenReview::from_json(bare).unwrap().status.authenticated);
        let bare = br#"{"kind":"SubjectAccessReview","apiVersion":"authorization.k8s.io/v1","status":{}}"#;
        assert!(!SubjectAccessReview::from_json(bare).unwrap().status.allowed);

        let failure = crate::Status::internal_error("storage").to_json();
        let error = TokenReview::from_json(&failure).unwrap_err().to_string();
        assert!(error.contains("TokenReview") && error.contains(r#""Status""#), "{error}");
        let older =
            br#"{"kind":"TokenReview","apiVersion":"authentication.k8s.io/v1beta1","status":{"authenticated":true}}"#;
        assert!(matches!(TokenReview::from_json(older), Err(Error::OtherKind { .. })));
        let wrong_type = String::from_utf8_lossy(older).replace("v1beta1", "v1").replace("true", "\"true\"");
        for malformed in ["", "[", "{}{}", &wrong_type] {
            assert!(matches!(TokenReview::from_json(malformed.as_bytes()), Err(Error::Json { .. })), "{malformed}");
        }
    }

    #[test]
    fn a_request_is_asked_for_with_its_selectors_and_its_user() {
        let info =
            RequestInfo::parse("GET", "/apis/apps/v1/namespaces/shop/deployments?labelSelector=app%3Dweb").unwrap();
        let groups = ["dev".to_owned()];
        let extra = [("scopes".to_owned(), vec!["a".to_owned(), "b".to_owned()])];
        let spec = SubjectAccessReviewSpec {
            user: "jane".into(),
            groups: Cow::Borrowed(&groups),
            extra: Cow::Borrowed(&extra),
            uid: "42".into(),
            ..SubjectAccessReviewSpec::of_request(&info)
        };
        let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
        let expected = serde_json::json!({
            "kind": "SubjectAccessReview",
            "apiVersion": "authorization.k8s.io/v1",
            "spec": {
                "resourceAttributes": {
                    "namespace": "shop", "verb": "list", "group": "apps", "version": "v1", "resource": "deployments",
                    "labelSelector": {"rawSelector": "app=web"},
                },
                "user": "jane", "groups": ["dev"], "extra": {"scopes": ["a", "b"]}, "uid": "42",
            },
            "status": {"allowed": false},
        });
        let json = review.to_json();
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&json).unwrap(), expected);
        assert_eq!(SubjectAccessReview::from_json(&json).unwrap(), review);

        let info = RequestInfo::parse("GET", "/metrics").unwrap();
        let spec = SubjectAccessReviewSpec::of_request(&info);
        let expected = NonResourceAttributes { path: "/metrics".into(), verb: "get".into() };
        assert_eq!((spec.resource_attributes, spec.non_resource_attributes), (None, Some(expected)));
    }
}
