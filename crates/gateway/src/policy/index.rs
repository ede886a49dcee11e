//! Finds the first matching rule among many.
//!
//! Which rules match a verb, an API group, a resource is worked out beforehand, as one bit a rule, for each value that
//! any rule mentions and once for all others. A request looks its values up and ANDs the bits. Which rules name a user
//! or a group is kept as lists of rules, because there may be as many users as rules. What is left is asked the rule
//! itself.
//!
//! Invariant: the answer is that of asking one rule after another.

use std::collections::HashMap;

use smallvec::SmallVec;

use super::Attributes;
use super::rule::Rule;
use super::terms::Terms;
use crate::limits::INDEXED_RULES_MIN;

/// Rules in their order.
#[derive(Debug, Default)]
pub(super) struct RuleSet {
    rules: Box<[Rule]>,
    /// `None` where asking one rule after another is faster.
    index: Option<RuleIndex>,
}

impl RuleSet {
    pub(super) fn new(rules: Vec<Rule>) -> Self {
        let index = (rules.len() >= INDEXED_RULES_MIN).then(|| RuleIndex::new(&rules));
        Self { rules: rules.into(), index }
    }

    pub(super) fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// The place of the first rule that matches.
    pub(super) fn first_match(&self, attributes: &Attributes<'_>) -> Option<usize> {
        match &self.index {
            Some(index) => index.first_match(&self.rules, attributes),
            None => first_match_linear(&self.rules, attributes),
        }
    }
}

pub(super) fn first_match_linear(rules: &[Rule], attributes: &Attributes<'_>) -> Option<usize> {
    rules.iter().position(|rule| rule.matches(attributes))
}

/// One bit a rule.
type Bits = Box<[u64]>;

const WORD_BITS: usize = u64::BITS as usize;

fn bits_where<'a>(rules: &'a [Rule], is_set: impl Fn(&'a Rule) -> bool) -> Bits {
    let mut bits = vec![0; rules.len().div_ceil(WORD_BITS)].into_boxed_slice();
    for (place, _) in rules.iter().enumerate().filter(|(_, rule)| is_set(rule)) {
        bits[place / WORD_BITS] |= 1 << (place % WORD_BITS);
    }
    bits
}

/// The bits of `others`, except for these rules, which are asked. So the work is that of the values, not that of values
/// times rules.
fn bits_except<'a>(others: &Bits, rules: &'a [Rule], places: &[usize], is_set: impl Fn(&'a Rule) -> bool) -> Bits {
    let mut bits = others.clone();
    for place in places {
        let bit = 1 << (place % WORD_BITS);
        if is_set(&rules[*place]) {
            bits[place / WORD_BITS] |= bit;
        } else {
            bits[place / WORD_BITS] &= !bit;
        }
    }
    bits
}

/// The rules that match, by the value of one field.
#[derive(Debug)]
struct Values {
    mentioned: HashMap<Box<str>, Bits>,
    others: Bits,
}

impl Values {
    fn new(rules: &[Rule], terms: impl Fn(&Rule) -> &Terms) -> Self {
        let mut places: HashMap<&str, Vec<usize>> = HashMap::new();
        for (place, rule) in rules.iter().enumerate() {
            terms(rule).mentioned().iter().for_each(|text| places.entry(text).or_default().push(place));
        }
        let others = bits_where(rules, |rule| terms(rule).matches_others());
        let entry = |(text, places): (&str, Vec<usize>)| {
            (text.into(), bits_except(&others, rules, &places, |rule| terms(rule).matches(text)))
        };
        Self { mentioned: places.into_iter().map(entry).collect(), others }
    }

    fn get(&self, value: &str) -> &Bits {
        self.mentioned.get(value).unwrap_or(&self.others)
    }
}

/// The rules that match, by subresource, then by resource.
#[derive(Debug)]
struct Resources {
    mentioned: HashMap<Box<str>, OfSubresource>,
    others: Bits,
}

#[derive(Debug)]
struct OfSubresource {
    resources: HashMap<Box<str>, Bits>,
    others: Bits,
}

/// The rules that mention a subresource: with any resource, and with each.
#[derive(Default)]
struct Mentions<'a> {
    any: Vec<usize>,
    resources: HashMap<&'a str, Vec<usize>>,
}

impl Resources {
    fn new(rules: &[Rule]) -> Self {
        let mut mentions: HashMap<&str, Mentions<'_>> = HashMap::new();
        for (place, rule) in rules.iter().enumerate() {
            for (resource, subresource) in rule.resources.mentioned() {
                let of_subresource = mentions.entry(subresource).or_default();
                match resource {
                    Some(resource) => of_subresource.resources.entry(resource).or_default().push(place),
                    None => of_subresource.any.push(place),
                }
            }
        }
        let others = bits_where(rules, |rule| rule.resources.matches_others(None));
        let entry = |(subresource, mentions): (&str, Mentions<'_>)| {
            let others =
                bits_except(&others, rules, &mentions.any, |rule| rule.resources.matches_others(Some(subresource)));
            let entry = |(resource, places): (&str, Vec<usize>)| {
                let is_set = |rule: &Rule| rule.resources.matches(resource, subresource);
                (resource.into(), bits_except(&others, rules, &places, is_set))
            };
            let resources = mentions.resources.into_iter().map(entry).collect();
            (subresource.into(), OfSubresource { resources, others })
        };
        Self { mentioned: mentions.into_iter().map(entry).collect(), others }
    }

    fn get(&self, resource: &str, subresource: &str) -> &Bits {
        self.mentioned.get(subresource).map_or(&self.others, |of_subresource| {
            of_subresource.resources.get(resource).unwrap_or(&of_subresource.others)
        })
    }
}

/// The rules that may match, by one of many names.
#[derive(Debug)]
struct Names {
    /// Places of the rules that match a name and otherwise only some others; ascending.
    places: HashMap<Box<str>, Box<[u32]>>,
    /// Rules that may match any name.
    any: Bits,
}

impl Names {
    /// `finite` tells the only names that a rule matches, or `None` if there are others.
    fn new<'a>(rules: &'a [Rule], finite: impl Fn(&'a Rule) -> Option<Vec<&'a str>>) -> Self {
        let mut places: HashMap<&str, Vec<u32>> = HashMap::new();
        for (place, rule) in rules.iter().enumerate() {
            let place = u32::try_from(place).expect("the number of rules is bounded far below");
            for name in finite(rule).into_iter().flatten() {
                let of_name = places.entry(name).or_default();
                if of_name.last() != Some(&place) {
                    of_name.push(place);
                }
            }
        }
        Self {
            places: places.into_iter().map(|(name, places)| (name.into(), places.into())).collect(),
            any: bits_where(rules, |rule| finite(rule).is_none()),
        }
    }

    fn get(&self, name: &str) -> Option<Places<'_>> {
        self.places.get(name).map(|places| Places(places))
    }
}

/// Places that are yet to come.
struct Places<'a>(&'a [u32]);

impl Places<'_> {
    /// The bits of one word. Words must be asked for in ascending order.
    fn bits(&mut self, word: usize) -> u64 {
        let mut bits = 0;
        while let Some((place, rest)) = self.0.split_first() {
            let place = *place as usize;
            if place / WORD_BITS > word {
                break;
            }
            if place / WORD_BITS == word {
                bits |= 1 << (place % WORD_BITS);
            }
            self.0 = rest;
        }
        bits
    }
}

#[derive(Debug)]
struct RuleIndex {
    verbs: Values,
    api_groups: Values,
    resources: Resources,
    users: Names,
    user_groups: Names,
    /// Rules that match some request for no resource.
    non_resource: Bits,
}

impl RuleIndex {
    fn new(rules: &[Rule]) -> Self {
        Self {
            verbs: Values::new(rules, |rule| &rule.verbs),
            api_groups: Values::new(rules, |rule| &rule.api_groups),
            resources: Resources::new(rules),
            users: Names::new(rules, |rule| {
                Some(rule.users.finite()?.iter().chain(&rule.accounts).map(|name| &**name).collect())
            }),
            user_groups: Names::new(rules, |rule| {
                Some(rule.user_groups.finite()?.iter().map(|name| &**name).collect())
            }),
            non_resource: bits_where(rules, |rule| !matches!(rule.non_resource_urls, Terms::Nothing)),
        }
    }

    fn first_match(&self, rules: &[Rule], attributes: &Attributes<'_>) -> Option<usize> {
        let info = attributes.info;
        // Subresources were split off at the first slash: a resource has none, but nothing here depends on that.
        if info.resource.contains('/') {
            return first_match_linear(rules, attributes);
        }
        let verbs = self.verbs.get(&info.verb);
        let (first, second) = if info.is_resource_request {
            (self.api_groups.get(&info.api_group), self.resources.get(&info.resource, &info.subresource))
        } else {
            (&self.non_resource, &self.non_resource)
        };
        let mut of_user = self.users.get(&attributes.user.name);
        let mut of_groups: SmallVec<[Places<'_>; 16]> =
            attributes.user.groups.iter().filter_map(|group| self.user_groups.get(group)).collect();
        for word in 0..verbs.len() {
            let mut candidates = verbs[word] & first[word] & second[word];
            if candidates == 0 {
                continue;
            }
            candidates &= self.users.any[word] | of_user.as_mut().map_or(0, |places| places.bits(word));
            candidates &=
                of_groups.iter_mut().fold(self.user_groups.any[word], |bits, places| bits | places.bits(word));
            while candidates != 0 {
                let place = word * WORD_BITS + candidates.trailing_zeros() as usize;
                if rules[place].matches_rest(attributes) {
                    return Some(place);
                }
                candidates &= candidates - 1;
            }
        }
        None
    }
}
