use proptest::prelude::*;
use proptest::sample::subsequence;

use crate::authz::Attributes;
use crate::authz::cover::{PARTS_MAX, Part, TooMany, to_texts, uncovered};
use crate::authz::rules::{PolicyRule, Texts};

fn rule(text: &str) -> PolicyRule {
    serde_json::from_value(super::rule(text)).unwrap()
}

fn missing(held: &[&str], wanted: &[&str]) -> Vec<String> {
    let [held, wanted] = [held, wanted].map(|rules| rules.iter().map(|text| rule(text)).collect::<Vec<_>>());
    to_texts(&uncovered(&held.iter().collect::<Vec<_>>(), &wanted).unwrap()).into_iter().collect()
}

#[test]
fn what_is_not_covered_is_told_in_short() {
    assert_eq!(missing(&["get core pods"], &["get core pods"]), [""; 0]);
    assert_eq!(
        missing(&["get core pods", "list * *"], &["get,list,watch core,apps pods,secrets", "get,put url /b,/a"]),
        [
            r#"{APIGroups:[""], Resources:["pods"], Verbs:["watch"]}"#,
            r#"{APIGroups:[""], Resources:["secrets"], Verbs:["get" "watch"]}"#,
            r#"{APIGroups:["apps"], Resources:["pods"], Verbs:["get" "watch"]}"#,
            r#"{APIGroups:["apps"], Resources:["secrets"], Verbs:["get" "watch"]}"#,
            r#"{NonResourceURLs:["/a"], Verbs:["get"]}"#,
            r#"{NonResourceURLs:["/a"], Verbs:["put"]}"#,
            r#"{NonResourceURLs:["/b"], Verbs:["get"]}"#,
            r#"{NonResourceURLs:["/b"], Verbs:["put"]}"#,
        ]
    );
    assert_eq!(
        missing(&["get core pods a"], &["get core pods a,b", "get core pods"]),
        [
            r#"{APIGroups:[""], Resources:["pods"], ResourceNames:["b"], Verbs:["get"]}"#,
            r#"{APIGroups:[""], Resources:["pods"], Verbs:["get"]}"#,
        ]
    );
}

#[test]
fn an_asterisk_takes_an_asterisk() {
    for (held, wanted, is_covered) in [
        ("* * *", "get core pods", true),
        ("* * *", "* * *", true),
        ("* * *", "get url /", false),
        ("* url *", "get url /x", true),
        ("* url *", "* url *", true),
        ("get,list,watch core pods", "* core pods", false),
        ("get core */log", "get core pods/log", true),
        ("get core */log", "get core */log", true),
        ("get core pods/log", "get core */log", false),
        ("get core pods/*", "get core pods/log", false),
        ("get core *", "get core */log", true),
        ("get core pods", "get core pods/log", false),
        ("get url /a/*", "get url /a/b", true),
        ("get url /a/*", "get url /a/b/*", true),
        ("get url /a/*", "get url /a", false),
        ("get url /a*", "get url /a/*", true),
        ("get url /a/*", "get url /*", false),
        ("get core pods x", "get core pods y", false),
        ("get core pods", "get core pods y", true),
    ] {
        assert_eq!(missing(&[held], &[wanted]).is_empty(), is_covered, "{held} {wanted}");
    }
    assert_eq!(missing(&["get core a", "list core b"], &["get,list core a"]).len(), 1, "one rule must cover a part");
}

#[test]
fn rules_that_stand_for_too_much_are_refused_unless_one_rule_covers_them() {
    let many: Texts = (0..300).map(|number| number.to_string().into()).collect();
    let wanted = PolicyRule {
        verbs: many.clone(),
        api_groups: many.clone(),
        resources: many.clone(),
        resource_names: many,
        ..PolicyRule::default()
    };
    const { assert!(PARTS_MAX < 300 * 300) };
    assert_eq!(uncovered(&[&rule("get * *")], [&wanted]), Err(TooMany));
    assert_eq!(uncovered(&[&rule("* * *")], [&wanted]), Ok(vec![]));
    let long =
        PolicyRule { verbs: (0..20_000).map(|number| number.to_string().into()).collect(), ..rule("get core a") };
    assert_eq!(uncovered(&[&long], [&long]), Err(TooMany), "to compare them takes too long");
}

const VERBS: [&str; 3] = ["get", "list", "*"];
const GROUPS: [&str; 3] = ["", "apps", "*"];
const RESOURCES: [&str; 5] = ["pods", "pods/log", "jobs/log", "*/log", "*"];
const NAMES: [&str; 2] = ["a", "b"];
const URLS: [&str; 6] = ["/a", "/a/*", "/a/b", "/a*", "/*", "*"];

fn any_rule() -> impl Strategy<Value = PolicyRule> {
    fn some(of: &[&'static str], least: usize) -> impl Strategy<Value = Texts> + use<> {
        subsequence(of.to_vec(), least..=of.len().min(2)).prop_map(|texts| texts.into_iter().map(Into::into).collect())
    }
    let names = prop_oneof![2 => some(&NAMES, 0), 1 => Just(Texts::default())];
    // Validation refuses rules that are of resources and paths, but what is stored may be older than the validation.
    (0..10, some(&VERBS, 1), some(&GROUPS, 1), some(&RESOURCES, 1), names, some(&URLS, 1)).prop_map(
        |(kind, verbs, api_groups, resources, resource_names, non_resource_urls)| match kind {
            0..6 => PolicyRule { verbs, api_groups, resources, resource_names, ..PolicyRule::default() },
            6..9 => PolicyRule { verbs, non_resource_urls, ..PolicyRule::default() },
            // With names it would cover no path, though it allows some.
            _ => PolicyRule { verbs, api_groups, resources, non_resource_urls, ..PolicyRule::default() },
        },
    )
}

/// Every request that rules of these words can tell from others: each list has one more that no rule names.
fn universe() -> Vec<Attributes<'static>> {
    let mut all = Vec::new();
    for verb in ["get", "list", "fresh"] {
        for api_group in ["", "apps", "fresh"] {
            for (resource, subresource) in
                [("pods", ""), ("pods", "log"), ("jobs", "log"), ("fresh", "log"), ("fresh", ""), ("fresh", "fresh")]
            {
                for name in ["", "a", "b", "fresh"] {
                    all.push(Attributes {
                        is_resource_request: true,
                        verb,
                        api_group,
                        resource,
                        subresource,
                        name,
                        ..Attributes::default()
                    });
                }
            }
        }
        for path in ["/a", "/a/", "/a/b", "/a/fresh", "/afresh", "/fresh", "fresh"] {
            all.push(Attributes { verb, path, ..Attributes::default() });
        }
    }
    all
}

proptest! {
    #[test]
    fn rules_are_covered_if_they_allow_nothing_more(
        held in prop::collection::vec(any_rule(), 0..4),
        wanted in prop::collection::vec(any_rule(), 0..3),
    ) {
        let held: Vec<&PolicyRule> = held.iter().collect();
        let missing = uncovered(&held, &wanted).unwrap();
        let more = universe().into_iter().find(|asked| {
            wanted.iter().any(|rule| rule.allows(asked)) && !held.iter().any(|rule| rule.allows(asked))
        });
        prop_assert_eq!(missing.is_empty(), more.is_none(), "missing {:?}, allowed {:?}", missing, more);
        // What is told to miss is wanted, and not held.
        for part in missing {
            let part = match part {
                Part::Resource { group, resource, name, verb } => PolicyRule {
                    verbs: [verb.into()].into(),
                    api_groups: [group.into()].into(),
                    resources: [resource.into()].into(),
                    resource_names: name.map(Into::into).into_iter().collect(),
                    ..PolicyRule::default()
                },
                Part::Url { url, verb } => PolicyRule {
                    verbs: [verb.into()].into(),
                    non_resource_urls: [url.into()].into(),
                    ..PolicyRule::default()
                },
            };
            prop_assert!(uncovered(&wanted.iter().collect::<Vec<_>>(), [&part]).unwrap().is_empty());
            prop_assert_eq!(uncovered(&held, [&part]).unwrap().len(), 1);
        }
    }
}
