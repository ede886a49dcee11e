//! What is probably wrong with a rule, though it can be compiled.

use std::collections::BTreeSet;

use super::address::Block;
use super::spec::{ALL, RuleSpec, Semantics, negative};
use super::terms::{Reduced, reduce};

/// Something that is probably wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// The field, as in a manifest.
    pub field: &'static str,
    /// The place of the value in the field's list; `None` for the field as a whole.
    pub index: Option<usize>,
    /// What is wrong.
    pub problem: String,
    /// How to mend it.
    pub remedy: String,
}

/// Looks at a rule; `semantics` is what its negative values mean, and `None` where the original has no such rules.
#[must_use]
pub fn lint(spec: &RuleSpec, semantics: Option<Semantics>) -> Vec<Notice> {
    let mut lint = Lint { notices: Vec::new(), semantics };
    let original_fields: [(&'static str, &[String], Kind); 6] = [
        ("verbs", &spec.verbs, Kind::Plain),
        ("apiGroups", &spec.api_groups, Kind::Plain),
        ("resources", &spec.resources, Kind::Resources),
        ("resourceNames", &spec.resource_names, Kind::Plain),
        ("users", &spec.users, Kind::Users),
        ("userGroups", &spec.user_groups, Kind::Groups),
    ];
    for (field, values, kind) in original_fields {
        lint.mixture(field, values);
        lint.negation(field, values, kind);
    }
    for (field, values) in [("namespaces", &spec.namespaces), ("userAgents", &spec.user_agents), ("cidrs", &spec.cidrs)]
    {
        lint.mixture(field, values);
        lint.none_of_all(field, values);
    }
    lint.verbs(spec);
    lint.nothing(spec);
    lint.resources(spec);
    lint.paths(spec);
    lint.accounts(spec);
    lint.cidrs(spec);
    lint.notices
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    Resources,
    Users,
    Groups,
}

struct Lint {
    notices: Vec<Notice>,
    semantics: Option<Semantics>,
}

impl Lint {
    fn add(
        &mut self,
        field: &'static str,
        index: Option<usize>,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.notices.push(Notice { field, index, problem: problem.into(), remedy: remedy.into() });
    }

    fn mixture(&mut self, field: &'static str, values: &[String]) {
        if !matches!(reduce(values), Reduced::Positive(_)) {
            return;
        }
        for (index, value) in values.iter().enumerate().filter(|(_, value)| negative(value).is_some()) {
            let problem = format!("{value:?} is ignored: the list has positive values too");
            self.add(field, Some(index), problem, "write only positive or only negative values");
        }
    }

    /// Where the original's code does not do what its documentation says.
    fn negation(&mut self, field: &'static str, values: &[String], kind: Kind) {
        let Some(semantics) = self.semantics else { return self.none_of_all(field, values) };
        let Reduced::Negative(values) = reduce(values) else { return };
        let distinct: BTreeSet<&str> = values.iter().copied().collect();
        let prefix = values.iter().find(|value| kind == Kind::Users && value.ends_with('*'));
        let of_all = values.iter().find(|value| kind == Kind::Resources && value.starts_with("*/"));
        let original = if let Some(prefix) = prefix {
            format!("matches every user, those that begin with {:?} too", prefix.trim_end_matches('*'))
        } else if let Some(value) = of_all {
            format!("matches every resource, {value} too")
        } else if kind == Kind::Groups && distinct.len() > 1 {
            "matches every user who is in a group".to_owned()
        } else if kind == Kind::Groups {
            format!("matches each user who is also in a group other than {:?}, and no user without groups", values[0])
        } else if distinct.len() > 1 || distinct.contains(ALL) {
            "matches everything, since each value differs from one of them".to_owned()
        } else {
            return;
        };
        match semantics {
            Semantics::Documented => {
                let meaning = if distinct.contains(ALL) { "nothing" } else { "what is none of these" };
                self.add(
                    field,
                    None,
                    format!("the list matches {meaning}, as documented; the original's code {original}"),
                    "check that this is meant; `compat: kubegateway` brings the old behaviour back",
                );
            }
            Semantics::KubeGateway => self.add(
                field,
                None,
                format!("under `compat: kubegateway` the list {original}"),
                "remove `compat` for the documented meaning, or list what is meant to match",
            ),
        }
    }

    fn none_of_all(&mut self, field: &'static str, values: &[String]) {
        if let Reduced::Negative(values) = reduce(values)
            && values.contains(&ALL)
        {
            self.add(field, None, "\"-*\" matches nothing", "remove the rule, or the value");
        }
    }

    fn verbs(&mut self, spec: &RuleSpec) {
        for (index, verb) in spec.verbs.iter().enumerate() {
            if verb.bytes().any(|byte| byte.is_ascii_uppercase()) {
                let remedy = format!("write {:?}", verb.to_ascii_lowercase());
                self.add("verbs", Some(index), format!("{verb:?} matches nothing: verbs are in lower case"), remedy);
            }
        }
    }

    fn nothing(&mut self, spec: &RuleSpec) {
        let is_for_resources = !spec.api_groups.is_empty() || !spec.resources.is_empty();
        let is_for_paths = !spec.non_resource_urls.is_empty();
        if spec.verbs.is_empty() {
            self.add("verbs", None, "is empty, so the rule matches nothing", "list verbs, or \"*\" for all");
        }
        if is_for_resources && spec.api_groups.is_empty() {
            let remedy = "list API groups: \"\" for the core group, \"*\" for all";
            self.add("apiGroups", None, "is empty, so the rule matches no request for a resource", remedy);
        }
        if is_for_resources && spec.resources.is_empty() {
            let remedy = "list resources, or \"*\" for all";
            self.add("resources", None, "is empty, so the rule matches no request for a resource", remedy);
        }
        if !is_for_resources && !is_for_paths {
            let remedy = "set apiGroups and resources, or nonResourceURLs";
            self.add("resources", None, "is empty, and so is nonResourceURLs: the rule matches nothing", remedy);
        }
    }

    fn resources(&mut self, spec: &RuleSpec) {
        for (index, value) in spec.resources.iter().enumerate() {
            let text = negative(value).unwrap_or(value);
            if text.ends_with("/*") {
                let remedy = "list the subresources one by one, as pods/log; \"*/log\" is that of all resources";
                self.add(
                    "resources",
                    Some(index),
                    format!("{value:?} means no subresource: there is no such wildcard"),
                    remedy,
                );
            } else if text.ends_with('/') {
                self.add("resources", Some(index), format!("{value:?} has an empty subresource"), "remove the slash");
            } else if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
                let remedy = "write the plural in lower case, as in the API's paths";
                self.add(
                    "resources",
                    Some(index),
                    format!("{value:?} is no resource: those are in lower case"),
                    remedy,
                );
            }
        }
    }

    fn paths(&mut self, spec: &RuleSpec) {
        for (index, path) in spec.non_resource_urls.iter().enumerate() {
            if path.starts_with('-') {
                let problem = format!("{path:?} is ignored: there are no negative paths");
                self.add("nonResourceURLs", Some(index), problem, "list the paths that are meant to match");
            } else if path != ALL && !path.starts_with('/') {
                let problem = format!("{path:?} matches nothing: every path begins with a slash");
                self.add("nonResourceURLs", Some(index), problem, format!("write \"/{path}\""));
            } else if path.trim_end_matches('*').contains('*') {
                let problem = format!("{path:?} has a wildcard that is not at the end: there it is a plain character");
                self.add("nonResourceURLs", Some(index), problem, "end the path with the wildcard");
            }
        }
    }

    fn accounts(&mut self, spec: &RuleSpec) {
        for (index, account) in spec.service_accounts.iter().enumerate() {
            if account.name.is_empty() || account.namespace.is_empty() {
                let problem = "matches nothing: a service account has both a name and a namespace";
                self.add("serviceAccounts", Some(index), problem, "set name and namespace");
            } else if [&account.name, &account.namespace].iter().any(|text| text.contains('*') || text.starts_with('-'))
            {
                let problem = "service accounts have neither wildcards nor negative values";
                let remedy =
                    "use users: \"system:serviceaccount:NAMESPACE:*\", or the group system:serviceaccounts:NAMESPACE";
                self.add("serviceAccounts", Some(index), problem, remedy);
            }
        }
        let covered = matches!(reduce(&spec.users), Reduced::All);
        if covered && !spec.service_accounts.is_empty() {
            self.add("serviceAccounts", None, "adds nothing: users has \"*\"", "remove one of the two");
        }
    }

    fn cidrs(&mut self, spec: &RuleSpec) {
        for (index, value) in spec.cidrs.iter().enumerate() {
            if Block::parse(negative(value).unwrap_or(value)).is_some_and(Block::has_host_bits) {
                let problem = format!("{value:?} has bits behind its prefix, which mean nothing");
                self.add("cidrs", Some(index), problem, "write the block's first address");
            }
        }
    }
}
