//! Text for people in which an object is shown as it is upstream: what zoo has put into the object is taken out of it.
//!
//! Errors show objects in three ways: as JSON, in Go's syntax, and as the `String` methods of the API's types write them.
//!
//! Invariant: only what holds the tenant's UID is taken away, which a tenant has no reason to write, though its credentials tell it. Each text is
//! looked through once, whatever is in it.

use std::ops::Range;

use crate::rewrite::TENANT_LABEL;

/// The most that stands between the brace that opens a requirement and its key.
const BEFORE_KEY_BYTES_MAX: usize = 64;
/// The longest requirement of ours, however it is written.
const REQUIREMENT_BYTES_MAX: usize = 1024;
/// What stands before a requirement as a `String` method writes it.
const REQUIREMENT: &str = "LabelSelectorRequirement";

/// The text without the tenant's label and without the terms of selectors that require it.
pub(crate) fn without_label(text: &str, uid: &str) -> String {
    let mut rest = text;
    let mut cleaned = String::with_capacity(text.len());
    while let Some(label) = memchr::memmem::find(rest.as_bytes(), TENANT_LABEL.as_bytes()) {
        let behind = label + TENANT_LABEL.len();
        match requirement(rest, label, uid).or_else(|| entry(rest, label, uid)) {
            Some(found) => {
                let found = with_comma(rest, found);
                cleaned.push_str(&rest[..found.start]);
                rest = &rest[found.end..];
            }
            None => {
                cleaned.push_str(&rest[..behind]);
                rest = &rest[behind..];
            }
        }
    }
    cleaned.push_str(rest);
    cleaned
}

/// The requirement whose key is the label at this place: `{Key: "…", …}`, in any of the ways.
fn requirement(text: &str, label: usize, uid: &str) -> Option<Range<usize>> {
    // A requirement of ours is short, and no text may be looked through for each label in it.
    let near = text.floor_char_boundary(label.saturating_sub(BEFORE_KEY_BYTES_MAX));
    let open = near + text[near..label].rfind('{')?;
    // Nothing stands before the key, but for the signs of a difference; and some of the spaces there are no-break ones.
    let before = text[open + 1..label].trim_end_matches([' ', '\u{a0}', '"', '\\', ':']).to_ascii_lowercase();
    let is_key = before.ends_with("key") && !before.contains(',');
    if !is_key {
        return None;
    }
    let mut depth = 0usize;
    let close = text[open..].bytes().take(REQUIREMENT_BYTES_MAX).position(|byte| {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        depth == 0
    })?;
    let end = open + close + 1;
    if !text[label..end].contains(uid) {
        return None;
    }
    let start = text[..open].strip_suffix(REQUIREMENT).map_or(open, str::len);
    Some(start..end)
}

/// The entry of a map whose key is the label at this place, and whose value is the UID.
fn entry(text: &str, label: usize, uid: &str) -> Option<Range<usize>> {
    let behind = &text[label + TENANT_LABEL.len()..];
    let value =
        behind.trim_start_matches(['"', '\\', ':', ' ', '\u{a0}']).strip_prefix(uid)?.trim_start_matches(['"', '\\']);
    Some(text[..label].trim_end_matches(['"', '\\']).len()..text.len() - value.len())
}

/// The same range with the comma that separates it from what is beside it.
fn with_comma(text: &str, range: Range<usize>) -> Range<usize> {
    if let Some(behind) = text[range.end..].strip_prefix(',') {
        return range.start..text.len() - behind.trim_start_matches([' ', '\u{a0}']).len();
    }
    let before = text[..range.start].trim_end_matches([' ', '\u{a0}']);
    before.strip_suffix(',').map_or(range.clone(), |before| before.len()..range.end)
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "6f0a0d8c-58ab-4f7b-9f20-1c2d3e4f5a6b";

    #[test]
    fn an_object_in_a_text_has_no_term_of_ours() {
        for (upstream, tenant) in [
            (
                "s\"&LabelSelector{MatchLabels:map[string]string{a: b,},MatchExpressions:[]LabelSelectorRequirement{\
                 LabelSelectorRequirement{Key:LABEL,Operator:In,Values:[UID],},},}\"",
                "s\"&LabelSelector{MatchLabels:map[string]string{a: b,},MatchExpressions:[]LabelSelectorRequirement{},}\"",
            ),
            (
                "{LabelSelectorRequirement{Key:a,Operator:Exists,Values:[],},LabelSelectorRequirement{Key:LABEL,Operator:In,Values:[UID],},}",
                "{LabelSelectorRequirement{Key:a,Operator:Exists,Values:[],},}",
            ),
            (
                r#"[]v1.LabelSelectorRequirement{{Key: "a"}, {Key: "LABEL", Operator: "In", Values: []string{"UID"}}}"#,
                r#"[]v1.LabelSelectorRequirement{{Key: "a"}}"#,
            ),
            (
                r#"{\"matchExpressions\":[{\"key\":\"LABEL\",\"operator\":\"In\",\"values\":[\"UID\"]}]} and more"#,
                r#"{\"matchExpressions\":[]} and more"#,
            ),
            (r#""labels":{"LABEL":"UID","a":"b"}"#, r#""labels":{"a":"b"}"#),
            (r#"map[string]string{"a": "b", "LABEL": "UID"}"#, r#"map[string]string{"a": "b"}"#),
            ("map[string]string{LABEL: UID,}", "map[string]string{}"),
            // Somebody else's.
            ("{Key:LABEL,Values:[other],}", "{Key:LABEL,Values:[other],}"),
            ("LABEL {", "LABEL {"),
            ("{ä LABEL", "{ä LABEL"),
        ] {
            let upstream = upstream.replace("LABEL", TENANT_LABEL).replace("UID", UID);
            assert_eq!(without_label(&upstream, UID), tenant.replace("LABEL", TENANT_LABEL), "{upstream}");
        }
    }

    #[test]
    fn many_labels_that_are_no_keys_take_no_longer_than_their_length() {
        let text = format!("{UID}{}", format!("{{{TENANT_LABEL}").repeat(200_000));
        assert_eq!(without_label(&text, UID), text);
        let keys = format!("{UID}{}", format!("{{Key:{TENANT_LABEL}").repeat(50_000));
        assert_eq!(without_label(&keys, UID), keys);
    }
}
