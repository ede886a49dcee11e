//! Whether rules allow all that other rules allow: [`uncovered`].
//!
//! Invariant: the answer is Kubernetes' (`Covers` in `auth/rbac/validation` of component-helpers v0.36.3): the wanted
//! rules are broken down into parts of one verb and one resource, object or path, and one held rule must cover each
//! part as it is. So an asterisk is covered by an asterisk only.

use std::collections::{BTreeMap, BTreeSet};

use super::rules::{ALL, PolicyRule, has, has_or_all, url_matches};

/// The most parts that rules are broken down into: a product of lists grows faster than the request that holds them.
pub(super) const PARTS_MAX: usize = 50_000;
/// The most comparisons of texts: what is held can be long, too. This many take some tenths of a second.
const COMPARISONS_MAX: usize = 50_000_000;

/// Part of a rule: the least that can be granted or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part<'a> {
    /// A verb on a resource.
    Resource {
        group: &'a str,
        resource: &'a str,
        /// The one object that it is about.
        name: Option<&'a str>,
        verb: &'a str,
    },
    /// A verb on a path.
    Url { url: &'a str, verb: &'a str },
}

/// More than [`PARTS_MAX`] parts or [`COMPARISONS_MAX`] comparisons.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooMany;

/// What the wanted rules allow and the held ones don't, in the wanted ones' order.
pub(super) fn uncovered<'a>(
    held: &[&PolicyRule],
    wanted: impl IntoIterator<Item = &'a PolicyRule>,
) -> Result<Vec<Part<'a>>, TooMany> {
    let texts_held: usize = held.iter().map(|rule| texts_of(rule)).sum::<usize>().max(1);
    let mut missing = Vec::new();
    let mut looked_at = 0;
    let mut compared = 0;
    for rule in wanted {
        compared += texts_of(rule) * texts_held;
        if compared > COMPARISONS_MAX {
            return Err(TooMany);
        }
        // A rule that one rule covers as a whole, as of administrators, need not be broken down.
        if held.iter().any(|held| covers_whole(held, rule)) {
            continue;
        }
        for part in parts(rule) {
            looked_at += 1;
            compared += texts_held;
            if looked_at > PARTS_MAX || compared > COMPARISONS_MAX {
                return Err(TooMany);
            }
            if !held.iter().any(|held| covers(held, part)) {
                missing.push(part);
            }
        }
    }
    Ok(missing)
}

fn texts_of(rule: &PolicyRule) -> usize {
    let PolicyRule { verbs, api_groups, resources, resource_names, non_resource_urls } = rule;
    [verbs, api_groups, resources, resource_names, non_resource_urls].map(|texts| texts.len()).iter().sum()
}

fn parts(rule: &PolicyRule) -> impl Iterator<Item = Part<'_>> {
    let of_resources = rule.api_groups.iter().flat_map(move |group| {
        rule.resources.iter().flat_map(move |resource| {
            rule.verbs.iter().flat_map(move |verb| {
                let names = rule.resource_names.iter().map(|name| Some(&**name));
                let all = rule.resource_names.is_empty().then_some(None);
                names.chain(all).map(move |name| Part::Resource { group, resource, name, verb })
            })
        })
    });
    let of_urls = rule.non_resource_urls.iter().flat_map(move |url| {
        let verbs = rule.verbs.iter();
        verbs.map(move |verb| Part::Url { url, verb })
    });
    of_resources.chain(of_urls)
}

fn covers(held: &PolicyRule, part: Part<'_>) -> bool {
    match part {
        Part::Resource { group, resource, name, verb } => {
            has_or_all(&held.verbs, verb)
                && has_or_all(&held.api_groups, group)
                && covers_resource(held, resource)
                && (held.resource_names.is_empty() || name.is_some_and(|name| has(&held.resource_names, name)))
        }
        Part::Url { url, verb } => {
            has_or_all(&held.verbs, verb)
                && held.non_resource_urls.iter().any(|held| url_matches(held, url))
                && held.resource_names.is_empty()
        }
    }
}

fn covers_resource(held: &PolicyRule, resource: &str) -> bool {
    held.resources.iter().any(|held| {
        let is_same_of_all = || match (held.strip_prefix("*/"), resource.split_once('/')) {
            (Some(held), Some((_, sub))) => held == sub,
            _ => false,
        };
        **held == *ALL || **held == *resource || is_same_of_all()
    })
}

/// Whether the rule covers every part of the other; it may say no where it does.
fn covers_whole(held: &PolicyRule, rule: &PolicyRule) -> bool {
    let all = |texts: &[Box<str>], is_covered: &dyn Fn(&str) -> bool| texts.iter().all(|text| is_covered(text));
    let covers_names = if rule.resource_names.is_empty() {
        held.resource_names.is_empty()
    } else {
        held.resource_names.is_empty() || all(&rule.resource_names, &|name| has(&held.resource_names, name))
    };
    let covers_urls = rule.non_resource_urls.is_empty()
        || (held.resource_names.is_empty()
            && all(&rule.non_resource_urls, &|url| held.non_resource_urls.iter().any(|held| url_matches(held, url))));
    covers_names
        && covers_urls
        && all(&rule.verbs, &|verb| has_or_all(&held.verbs, verb))
        && all(&rule.api_groups, &|group| has_or_all(&held.api_groups, group))
        && all(&rule.resources, &|resource| covers_resource(held, resource))
}

/// The parts in short and in order, those of the same resource and object in one, as Kubernetes names them.
pub(super) fn to_texts(parts: &[Part<'_>]) -> BTreeSet<String> {
    let mut verbs_by_resource: BTreeMap<_, Vec<Box<str>>> = BTreeMap::new();
    let mut texts = BTreeSet::new();
    for &part in parts {
        match part {
            Part::Resource { group, resource, name, verb } => {
                verbs_by_resource.entry((group, resource, name)).or_default().push(verb.into());
            }
            Part::Url { url, verb } => {
                let non_resource_urls = [url.into()].into();
                let rule = PolicyRule { verbs: [verb.into()].into(), non_resource_urls, ..PolicyRule::default() };
                texts.insert(rule.to_compact_text());
            }
        }
    }
    for ((group, resource, name), verbs) in verbs_by_resource {
        let rule = PolicyRule {
            verbs: verbs.into(),
            api_groups: [group.into()].into(),
            resources: [resource.into()].into(),
            resource_names: name.map(Into::into).into_iter().collect(),
            ..PolicyRule::default()
        };
        texts.insert(rule.to_compact_text());
    }
    texts
}
