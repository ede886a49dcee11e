//! Selectors of a request, with the names that they speak of as these are upstream.
//!
//! Invariant: a selector that Kubernetes would refuse is handed on as it is, so that Kubernetes refuses it in its own words.

use kubewharf_kube_api::Status;

use crate::kinds::Field;
use crate::names::Names;

/// The label that every namespace has, with its name.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// A field selector as it is upstream. `meaning` says what a field is.
pub(super) fn map_fields(
    selector: &str,
    meaning: impl Fn(&str) -> Option<Field>,
    names: &Names,
) -> Result<String, Box<Status>> {
    let terms: Vec<&str> = split_terms(selector).collect();
    // A selector for events may name the kind of what they are about in another term.
    let kind = terms.iter().find_map(|term| match split(term) {
        Some((field, "=" | "==", value)) if field.ends_with(".kind") => Some(value),
        _ => None,
    });
    let mut mapped = String::with_capacity(selector.len() + 16);
    for (place, term) in terms.iter().enumerate() {
        if place > 0 {
            mapped.push(',');
        }
        let Some((field, operator, value)) = split(term) else {
            mapped.push_str(term);
            continue;
        };
        if let Some(Field::AboutNamespace(mark)) = meaning(field) {
            map_about_namespace(field, operator, value, mark, names, &mut mapped);
            continue;
        }
        let is_mapped = match meaning(field) {
            Some(Field::Namespace | Field::OwnName) => true,
            Some(Field::ObjectName) => kind == Some("Namespace"),
            Some(Field::Keep | Field::AboutNamespace(_)) | None => false,
        };
        mapped.push_str(field);
        mapped.push_str(operator);
        // No value at all is what cluster-scoped objects have for a namespace.
        if is_mapped && !value.is_empty() {
            mapped.push_str(names.prefix());
        }
        mapped.push_str(value);
    }
    Ok(mapped)
}

/// A requirement of the namespace of what events are about. An event about what is in none has the mark in another field upstream, and the
/// namespace `default`.
fn map_about_namespace(field: &str, operator: &str, value: &str, mark: &str, names: &Names, mapped: &mut String) {
    let prefix = names.prefix();
    let is_equal = operator != "!=";
    if value.is_empty() {
        mapped.push_str(&format!("{mark}{operator}{prefix}"));
        return;
    }
    mapped.push_str(&format!("{field}{operator}{prefix}{value}"));
    if is_equal {
        mapped.push_str(&format!(",{mark}!={prefix}"));
    }
}

/// The terms; a comma behind a backslash belongs to its term.
fn split_terms(selector: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(selector);
    std::iter::from_fn(move || {
        let text = rest?;
        let mut is_escaped = false;
        let end = text.bytes().position(|byte| {
            let ends = byte == b',' && !is_escaped;
            is_escaped = byte == b'\\' && !is_escaped;
            ends
        });
        rest = end.map(|end| &text[end + 1..]);
        Some(end.map_or(text, |end| &text[..end]))
    })
}

/// Field, operator and value, split at the first operator.
fn split(term: &str) -> Option<(&str, &str, &str)> {
    let at = term.bytes().enumerate().find_map(|(at, _)| match &term.as_bytes()[at..] {
        [b'!' | b'=', b'=', ..] => Some((at, 2)),
        [b'=', ..] => Some((at, 1)),
        _ => None,
    });
    let (at, length) = at?;
    Some((&term[..at], &term[at..at + length], &term[at + length..]))
}

/// A label selector for namespaces, with the values of the label that has the name mapped.
pub(super) fn map_namespace_labels(selector: &str, names: &Names) -> String {
    if !selector.contains(NAME_LABEL) {
        return selector.to_owned();
    }
    // Commas within parentheses separate values, not requirements.
    let mut mapped = String::with_capacity(selector.len() + 32);
    let (mut depth, mut from) = (0u32, 0);
    let mut ends: Vec<usize> = Vec::new();
    for (at, byte) in selector.bytes().enumerate() {
        match byte {
            b'(' => depth += 1,
            b')' => depth = depth.saturating_sub(1),
            b',' if depth == 0 => ends.push(at),
            _ => {}
        }
    }
    ends.push(selector.len());
    for end in ends {
        if from > 0 {
            mapped.push(',');
        }
        map_requirement(&selector[from..end], names, &mut mapped);
        from = end + 1;
    }
    mapped
}

fn map_requirement(requirement: &str, names: &Names, mapped: &mut String) {
    let rest = requirement.trim().strip_prefix(NAME_LABEL).map(str::trim_start);
    let Some(rest) = rest else { return mapped.push_str(requirement) };
    for operator in ["==", "!=", "="] {
        if let Some(value) = rest.strip_prefix(operator) {
            let value = value.trim();
            mapped.push_str(&format!(
                "{NAME_LABEL}{operator}{}{value}",
                if value.is_empty() { "" } else { names.prefix() }
            ));
            return;
        }
    }
    for operator in ["notin", "in"] {
        let values =
            rest.strip_prefix(operator).map(str::trim).and_then(|list| list.strip_prefix('(')?.strip_suffix(')'));
        if let Some(values) = values {
            let values: Vec<String> = values.split(',').map(|value| names.inward(value.trim())).collect();
            mapped.push_str(&format!("{NAME_LABEL} {operator} ({})", values.join(",")));
            return;
        }
    }
    mapped.push_str(requirement);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_that_hold_names_are_mapped() {
        let names = Names::of_uid("u");
        let meaning = |field: &str| match field {
            "metadata.namespace" => Some(Field::Namespace),
            "involvedObject.name" => Some(Field::ObjectName),
            "involvedObject.namespace" => Some(Field::AboutNamespace("mark")),
            _ => Some(Field::Keep),
        };
        let map = |selector: &str| map_fields(selector, meaning, &names).expect("mapped").replace(names.prefix(), "P-");
        assert_eq!(map("metadata.namespace=a,x!=b\\,c"), "metadata.namespace=P-a,x!=b\\,c");
        assert_eq!(map("metadata.namespace="), "metadata.namespace=");
        assert_eq!(map("involvedObject.name=a"), "involvedObject.name=a");
        assert_eq!(
            map("involvedObject.name=a,involvedObject.kind=Namespace"),
            "involvedObject.name=P-a,involvedObject.kind=Namespace"
        );
        assert_eq!(map("involvedObject.namespace=a"), "involvedObject.namespace=P-a,mark!=P-");
        assert_eq!(map("involvedObject.namespace!=a"), "involvedObject.namespace!=P-a");
        assert_eq!(map("involvedObject.namespace=,x=y"), "mark=P-,x=y");
        assert_eq!(map("involvedObject.namespace!="), "mark!=P-");
        assert_eq!(map("nonsense"), "nonsense");
    }

    #[test]
    fn the_label_with_a_namespaces_name_is_mapped() {
        let names = Names::of_uid("u");
        let map = |selector: &str| map_namespace_labels(selector, &names).replace(names.prefix(), "P-");
        assert_eq!(map("a=b"), "a=b");
        assert_eq!(map("a in (x,y),kubernetes.io/metadata.name=b"), "a in (x,y),kubernetes.io/metadata.name=P-b");
        assert_eq!(map("kubernetes.io/metadata.name notin (a, b)"), "kubernetes.io/metadata.name notin (P-a,P-b)");
        assert_eq!(map("!kubernetes.io/metadata.name"), "!kubernetes.io/metadata.name");
        assert_eq!(map("kubernetes.io/metadata.name"), "kubernetes.io/metadata.name");
    }
}
