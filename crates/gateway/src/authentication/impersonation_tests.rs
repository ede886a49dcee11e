use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use kubewharf_foundation::clock::ManualClock;
use parking_lot::Mutex;
use proptest::prelude::*;

use super::super::{AccessVerdict, TokenVerdict};
use super::*;
use crate::user::AUTHENTICATED;

fn headers(fields: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        let name: HeaderName = name.parse().expect("a name");
        headers.append(name, HeaderValue::from_str(value).expect("a value"));
    }
    headers
}

/// What is asked for by these headers: the checks as `group/resource/subresource namespace/name`, and the user.
fn asked(fields: &[(&str, &str)]) -> Result<Option<(Vec<String>, User)>, ImpersonationError> {
    let impersonation = Impersonation::of(&headers(fields))?;
    Ok(impersonation.map(|impersonation| {
        let shown = |check: &ImpersonationCheck| {
            let ImpersonationCheck { api_group, resource, subresource, namespace, name } = check;
            format!("{api_group}/{resource}/{subresource} {namespace}/{name}")
        };
        (impersonation.checks().iter().map(shown).collect(), impersonation.into_user())
    }))
}

fn checks(fields: &[(&str, &str)]) -> Vec<String> {
    asked(fields).expect("they make sense").expect("somebody else").0
}

fn user(fields: &[(&str, &str)]) -> User {
    asked(fields).expect("they make sense").expect("somebody else").1
}

#[test]
fn everything_that_is_asked_for_is_checked() {
    let fields = [
        ("Impersonate-User", "jane"),
        ("Impersonate-Group", "dev"),
        ("Impersonate-Group", "ops"),
        ("Impersonate-Uid", "4711"),
        ("Impersonate-Extra-Scopes", "view"),
        ("Impersonate-Extra-Scopes", "edit"),
        ("Impersonate-Extra-acme.com%2Fproject", "x"),
    ];
    assert_eq!(
        checks(&fields),
        [
            "/users/ /jane",
            "authentication.k8s.io/uids/ /4711",
            "/groups/ /dev",
            "/groups/ /ops",
            "authentication.k8s.io/userextras/acme.com/project /x",
            "authentication.k8s.io/userextras/scopes /view",
            "authentication.k8s.io/userextras/scopes /edit",
        ]
    );
    let expected = User {
        name: "jane".into(),
        uid: "4711".into(),
        groups: vec!["dev".into(), "ops".into(), AUTHENTICATED.into()],
        extra: vec![
            ("acme.com/project".into(), vec!["x".into()]),
            ("scopes".into(), vec!["view".into(), "edit".into()]),
        ],
    };
    assert_eq!(user(&fields), expected);
}

#[test]
fn service_accounts_are_checked_as_such_and_are_in_their_groups() {
    let name = "system:serviceaccount:kube-system:node.agent";
    assert_eq!(checks(&[("impersonate-user", name)]), ["/serviceaccounts/ kube-system/node.agent"]);
    let groups = ["system:serviceaccounts", "system:serviceaccounts:kube-system", AUTHENTICATED];
    assert_eq!(user(&[("impersonate-user", name)]).groups, groups);
    let with_groups = user(&[("impersonate-user", name), ("impersonate-group", "dev")]);
    assert_eq!(with_groups.groups, ["dev", AUTHENTICATED], "the groups that were asked for, and no others");
    for no_account in [
        "system:serviceaccount:a",
        "system:serviceaccount:a:",
        "system:serviceaccount::b",
        "system:serviceaccount:a:b:c",
        "system:serviceaccount:A:b",
        "system:serviceaccount:a.b:c",
        "system:serviceaccount:-a:b",
        "system:serviceaccount:a:b..c",
        &format!("system:serviceaccount:{}:b", "a".repeat(64)),
        &format!("system:serviceaccount:a:{}", "b".repeat(254)),
    ] {
        assert_eq!(checks(&[("impersonate-user", no_account)]), [format!("/users/ /{no_account}")]);
        assert_eq!(user(&[("impersonate-user", no_account)]).groups, [AUTHENTICATED]);
    }
}

#[test]
fn groups_tell_who_is_authenticated_as_in_kube_apiserver() {
    for (name, asked, groups) in [
        ("jane", &[][..], &[AUTHENTICATED][..]),
        ("jane", &[AUTHENTICATED], &[AUTHENTICATED]),
        ("jane", &[UNAUTHENTICATED], &[UNAUTHENTICATED]),
        ("jane", &["dev", UNAUTHENTICATED], &["dev", UNAUTHENTICATED]),
        (ANONYMOUS, &[], &[UNAUTHENTICATED]),
        (ANONYMOUS, &[UNAUTHENTICATED], &[UNAUTHENTICATED]),
        (ANONYMOUS, &[AUTHENTICATED], &[AUTHENTICATED, UNAUTHENTICATED]),
    ] {
        let mut fields = vec![("impersonate-user", name)];
        fields.extend(asked.iter().map(|group| ("impersonate-group", *group)));
        assert_eq!(user(&fields).groups, groups, "{name} {asked:?}");
    }
}

#[test]
fn headers_without_a_user_ask_for_nothing_or_make_no_sense() {
    assert_eq!(asked(&[]), Ok(None));
    assert_eq!(asked(&[("x-impersonate-user", "jane"), ("accept", "a")]), Ok(None));
    assert_eq!(asked(&[("impersonate-user", "")]), Ok(None));
    assert_eq!(asked(&[("impersonate-anything", "jane")]), Ok(None));
    assert_eq!(asked(&[("impersonate-uid", "")]), Ok(None));
    for field in ["impersonate-group", "impersonate-uid", "impersonate-extra-a"] {
        let error = asked(&[(field, "x")]).expect_err("whose?");
        assert_eq!(error.status(), http::StatusCode::BAD_REQUEST);
    }
    asked(&[("impersonate-group", "")]).expect_err("an empty group is a group");
    assert_eq!(checks(&[("impersonate-user", "a"), ("impersonate-user", "b")]), ["/users/ /a"], "the first counts");
    let mut odd = headers(&[]);
    odd.insert(USER.clone(), HeaderValue::from_bytes(b"\xff").expect("allowed in HTTP"));
    Impersonation::of(&odd).expect_err("not UTF-8");
}

#[test]
fn keys_of_extras_are_decoded_as_kube_apiserver_does() {
    for (encoded, key) in [
        ("Scopes", "scopes"),
        ("a%2Fb", "a/b"),
        ("a%41", "aA"),
        ("%e4%b8%ad", "中"),
        ("a+b", "a+b"),
        ("100%", "100%"),
        ("a%2", "a%2"),
        ("a%zz%2f", "a%zz%2f"),
    ] {
        let header = format!("Impersonate-Extra-{encoded}");
        let user = user(&[("impersonate-user", "jane"), (&header, "x")]);
        assert_eq!(user.extra, [(key.to_owned(), vec!["x".to_owned()])], "{encoded}");
    }
    asked(&[("impersonate-user", "jane"), ("impersonate-extra-%ff", "x")]).expect_err("not UTF-8");
}

#[test]
fn more_values_than_can_be_reviewed_are_refused() {
    let groups = |count: usize| {
        let mut fields = vec![("impersonate-user", "jane")];
        fields.extend(std::iter::repeat_n(("impersonate-group", "g"), count));
        asked(&fields)
    };
    groups(IMPERSONATION_VALUES_MAX).expect("as many as are allowed");
    groups(IMPERSONATION_VALUES_MAX + 1).expect_err("one more");
}

/// A cluster where some impersonations are allowed.
#[derive(Default)]
struct Cluster {
    allowed: HashSet<&'static str>,
    asked: Mutex<Vec<String>>,
    at_once: AtomicUsize,
    most_at_once: AtomicUsize,
    down: bool,
}

impl Reviewer for Cluster {
    fn review_token<'a>(&'a self, _: &'a str, _: &'a [String]) -> BoxFuture<'a, Result<TokenVerdict, ReviewError>> {
        unreachable!("impersonation has no tokens")
    }

    fn review_access<'a>(
        &'a self,
        attributes: AccessAttributes<'a>,
    ) -> BoxFuture<'a, Result<AccessVerdict, ReviewError>> {
        async move {
            assert_eq!((attributes.verb, attributes.api_version), ("impersonate", "v1"));
            let at_once = self.at_once.fetch_add(1, Ordering::SeqCst) + 1;
            self.most_at_once.fetch_max(at_once, Ordering::SeqCst);
            tokio::task::yield_now().await;
            self.at_once.fetch_sub(1, Ordering::SeqCst);
            let what = format!("{} {}", attributes.resource, attributes.name);
            self.asked.lock().push(format!("{}: {what}", attributes.user.name));
            if self.down {
                return Err(ReviewError::Unavailable("no endpoint is ready".into()));
            }
            let allowed = self.allowed.contains(what.as_str());
            Ok(AccessVerdict { allowed, reason: if allowed { String::new() } else { "not today".into() } })
        }
        .boxed()
    }
}

fn impersonator(cluster: &Arc<Cluster>, clock: &ManualClock) -> Impersonator {
    let timeout = Duration::from_secs(5);
    Impersonator::new(VerdictTimes::default(), timeout, cluster.clone(), Arc::new(clock.clone()))
}

fn requestor(name: &str) -> Arc<User> {
    Arc::new(User { name: name.into(), groups: vec!["dev".into()], ..User::default() })
}

#[tokio::test]
async fn what_the_cluster_allows_is_remembered_for_this_requestor_alone() {
    let allowed = HashSet::from(["users jane", "groups dev"]);
    let cluster = Arc::new(Cluster { allowed, ..Cluster::default() });
    let clock = ManualClock::default();
    let impersonator = impersonator(&cluster, &clock);
    let fields = headers(&[("impersonate-user", "jane"), ("impersonate-group", "dev")]);
    let ask = async |name: &str, fields: &HeaderMap| {
        let found = impersonator.effective_user(&requestor(name), fields).await;
        found.map(|user| user.map(|user| user.name.clone()))
    };
    for _ in 0..3 {
        assert_eq!(ask("bot", &fields).await, Ok(Some("jane".into())));
    }
    assert_eq!(*cluster.asked.lock(), ["bot: users jane", "bot: groups dev"]);
    ask("other", &fields).await.expect("allowed too");
    assert_eq!(cluster.asked.lock().len(), 4, "another requestor is another question");
    clock.advance(Duration::from_secs(11));
    ask("bot", &fields).await.expect("allowed");
    assert_eq!(cluster.asked.lock().len(), 6, "after a while it is asked again");
    assert_eq!(ask("bot", &headers(&[("accept", "x")])).await, Ok(None));
    assert_eq!(cluster.asked.lock().len(), 6, "and who impersonates nobody costs nothing");
}

#[tokio::test]
async fn one_refusal_refuses_all_and_says_what_kube_apiserver_says() {
    let allowed = HashSet::from(["users jane", "groups dev"]);
    let cluster = Arc::new(Cluster { allowed, ..Cluster::default() });
    let impersonator = impersonator(&cluster, &ManualClock::default());
    let ask = async |fields: &[(&str, &str)]| {
        impersonator.effective_user(&requestor("<bot>"), &headers(fields)).await.expect_err("refused").to_string()
    };
    assert_eq!(
        ask(&[("impersonate-user", "jane"), ("impersonate-group", "dev"), ("impersonate-group", "ops")]).await,
        r#"groups "ops" is forbidden: User "&lt;bot&gt;" cannot impersonate resource "groups" in API group "" at the cluster scope: not today"#
    );
    assert_eq!(
        ask(&[("impersonate-user", "jane"), ("impersonate-extra-scopes", "view")]).await,
        r#"userextras.authentication.k8s.io "view" is forbidden: User "&lt;bot&gt;" cannot impersonate resource "userextras/scopes" in API group "authentication.k8s.io" at the cluster scope: not today"#
    );
    cluster.asked.lock().clear();
    assert_eq!(
        ask(&[("impersonate-user", "system:serviceaccount:ns:name"), ("impersonate-group", "dev")]).await,
        r#"serviceaccounts "name" is forbidden: User "&lt;bot&gt;" cannot impersonate resource "serviceaccounts" in API group "" in the namespace "ns": not today"#
    );
    assert_eq!(cluster.asked.lock().len(), 1, "after the user nothing else is asked");
}

#[tokio::test]
async fn a_cluster_that_can_not_say_is_no_refusal() {
    let cluster = Arc::new(Cluster { down: true, ..Cluster::default() });
    let impersonator = impersonator(&cluster, &ManualClock::default());
    let error = impersonator.effective_user(&requestor("bot"), &headers(&[("impersonate-user", "jane")])).await;
    assert_eq!(error.expect_err("nobody can say").status(), http::StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn many_groups_are_reviewed_a_few_at_once() {
    let names: Vec<&'static str> = (0..100).map(|number| &*format!("groups g{number}").leak()).collect();
    let allowed = names.iter().copied().chain(["users jane"]).collect();
    let cluster = Arc::new(Cluster { allowed, ..Cluster::default() });
    let mut fields = vec![("impersonate-user", "jane")];
    fields.extend(names.iter().map(|name| ("impersonate-group", &name["groups ".len()..])));
    let user = impersonator(&cluster, &ManualClock::default())
        .effective_user(&requestor("bot"), &headers(&fields))
        .await
        .expect("allowed")
        .expect("somebody else");
    assert_eq!(user.groups.len(), 101);
    let most = cluster.most_at_once.load(Ordering::SeqCst);
    assert!((2..=IMPERSONATION_REVIEWS_AT_ONCE).contains(&most), "{most}");
}

proptest! {
    /// Whatever the headers are: nobody becomes somebody without a check for each thing that makes him that.
    #[test]
    fn every_property_of_the_user_was_checked(fields in proptest::collection::vec((
        prop_oneof![
            Just("impersonate-user".to_owned()), Just("impersonate-group".to_owned()), Just("impersonate-uid".to_owned()),
            "impersonate-extra-[a-z%0-9]{0,6}", "impersonate-[a-z]{0,6}",
        ],
        prop_oneof!["[ -~]{0,12}", Just("system:serviceaccount:ns:name".to_owned()), Just(UNAUTHENTICATED.to_owned())],
    ), 0..8)) {
        let fields: Vec<(&str, &str)> = fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        if let Ok(Some((checks, user))) = asked(&fields) {
            prop_assert!(!user.name.is_empty());
            let has = |check: String| checks.contains(&check);
            let of_name = match service_account(&user.name) {
                Some((namespace, name)) => format!("/serviceaccounts/ {namespace}/{name}"),
                None => format!("/users/ /{}", user.name),
            };
            prop_assert!(has(of_name));
            let of_uid = format!("authentication.k8s.io/uids/ /{}", user.uid);
            prop_assert!(user.uid.is_empty() || has(of_uid));
            for (key, values) in &user.extra {
                let of_value = |value: &String| format!("authentication.k8s.io/userextras/{key} /{value}");
                prop_assert!(values.iter().all(|value| has(of_value(value))));
            }
            let implied = |group: &str| {
                group == AUTHENTICATED || group == UNAUTHENTICATED || group.starts_with("system:serviceaccounts")
            };
            let mut groups = user.groups.iter().filter(|group| !implied(group));
            let all_checked = groups.all(|group| has(format!("/groups/ /{group}")));
            prop_assert!(all_checked);
        }
    }
}
