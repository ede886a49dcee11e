//! Which form of a document a client gets.
//!
//! As kube-apiserver 1.36 negotiates: clauses of `Accept` by their weight, the first that can be served wins, and only the first header of
//! the name counts. As there, and unlike RFC 9110, a weight of zero refuses nothing.

/// More clauses are not looked at; clients send five.
const CLAUSES_MAX: usize = 64;

/// A clause of the header `Accept`.
#[derive(Debug)]
struct Clause<'a> {
    main: &'a str,
    sub: &'a str,
    weight: f32,
    parameters: Vec<(&'a str, &'a str)>,
}

impl<'a> Clause<'a> {
    /// As `ParseAccept` of goautoneg: only blanks are trimmed, and what is malformed is left out.
    fn parse(clause: &'a str) -> Option<Self> {
        let (media, mut rest) = cut(trim(clause), ';');
        let (main, sub) = cut(media, '/');
        let main = trim(main);
        let (sub, more) = if sub.is_empty() && main == "*" { ("*", "") } else { cut(sub, '/') };
        if sub.is_empty() || !more.is_empty() {
            return None;
        }
        let mut found = Self { main, sub: trim(sub), weight: 1.0, parameters: Vec::new() };
        while !rest.is_empty() {
            let parameter;
            (parameter, rest) = cut(rest, ';');
            let (name, value) = cut(parameter, '=');
            let (value, more) = cut(value, '=');
            if value.is_empty() || !more.is_empty() {
                continue;
            }
            match trim(name) {
                "q" => found.weight = value.parse().unwrap_or_default(),
                name => found.parameters.push((name, trim(value))),
            }
        }
        Some(found)
    }

    fn parse_all(header: &'a str) -> Vec<Self> {
        let mut clauses: Vec<_> = header.split(',').take(CLAUSES_MAX).filter_map(Self::parse).collect();
        // As Go sorts so few. The order is not a total one, so how it is done matters.
        for end in 1..clauses.len() {
            for at in (1..=end).rev() {
                if !clauses[at].is_before(&clauses[at - 1]) {
                    break;
                }
                clauses.swap(at, at - 1);
            }
        }
        clauses
    }

    fn is_before(&self, other: &Self) -> bool {
        self.weight > other.weight || (self.main != "*" && other.main == "*") || (self.sub != "*" && other.sub == "*")
    }
}

/// Before and after the first separator; nothing is after it if there is none.
fn cut(text: &str, separator: char) -> (&str, &str) {
    text.split_once(separator).unwrap_or((text, ""))
}

fn trim(text: &str) -> &str {
    text.trim_matches(' ')
}

/// The encodings of Kubernetes' objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Media {
    Json,
    Yaml,
    Protobuf,
}

/// All of them, in the order in which kube-apiserver prefers them.
const MEDIA: [Media; 3] = [Media::Json, Media::Yaml, Media::Protobuf];

impl Media {
    fn subtype(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Yaml => "yaml",
            Self::Protobuf => "vnd.kubernetes.protobuf",
        }
    }
}

/// The form of an object that a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Form {
    pub(super) media: Media,
    /// Over several lines.
    pub(super) is_pretty: bool,
    /// All groups in one document.
    pub(super) is_aggregated: bool,
}

/// The form of a discovery document; none if there is no such form. `can_be_aggregated` is true for `/api` and `/apis`.
pub(super) fn form(accept: Option<&str>, can_be_aggregated: bool) -> Option<Form> {
    let Some(accept) = accept.filter(|accept| !accept.is_empty()) else {
        return Some(Form { media: Media::Json, is_pretty: false, is_aggregated: false });
    };
    let clauses = Clause::parse_all(accept);
    // An aggregated document is preferred, wherever in the order it is.
    let aggregated = if can_be_aggregated { first(&clauses, true) } else { None };
    aggregated.or_else(|| first(&clauses, false))
}

fn first(clauses: &[Clause<'_>], is_aggregated: bool) -> Option<Form> {
    clauses.iter().find_map(|clause| MEDIA.into_iter().find_map(|media| accepted(clause, media, is_aggregated)))
}

fn accepted(clause: &Clause<'_>, media: Media, is_aggregated: bool) -> Option<Form> {
    let is_meant = match (clause.main, clause.sub) {
        ("*" | "application", "*") => true,
        ("application", sub) => sub == media.subtype(),
        _ => false,
    };
    if !is_meant {
        return None;
    }
    let (mut group, mut version, mut kind, mut is_converted, mut is_pretty) = ("", "", "", false, false);
    for &(name, value) in &clause.parameters {
        match name {
            "g" => (group, is_converted) = (value, true),
            "v" => (version, is_converted) = (value, true),
            "as" => (kind, is_converted) = (value, true),
            "pretty" => is_pretty = value == "1",
            "sv" if !value.is_empty() => return None,
            "stream" if !value.is_empty() && (value != "watch" || media == Media::Yaml) => return None,
            _ => {}
        }
    }
    // Kubernetes 1.36 has no other version left.
    let is_fitting = if is_aggregated {
        (group, version, kind) == ("apidiscovery.k8s.io", "v2", "APIGroupDiscoveryList")
    } else {
        !is_converted
    };
    is_fitting.then_some(Form { media, is_pretty, is_aggregated })
}

/// The encodings of OpenAPI documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Encoding {
    Json,
    Protobuf,
}

/// The encoding of an OpenAPI document; none if there is no such encoding. `version` is `v2` or `v3`.
pub(super) fn openapi(accept: Option<&str>, version: &str) -> Option<Encoding> {
    let accept = accept.filter(|accept| !accept.is_empty()).unwrap_or("*/*");
    let is_protobuf = |sub: &str| {
        // The second spelling is an older one.
        let rest = sub.strip_prefix("com.github.proto-openapi.spec.").and_then(|rest| rest.strip_prefix(version));
        matches!(rest, Some(".v1.0+protobuf" | "@v1.0+protobuf"))
    };
    Clause::parse_all(accept).iter().find_map(|clause| match (clause.main, clause.sub) {
        ("*" | "application", "*" | "json") => Some(Encoding::Json),
        ("*" | "application", sub) if is_protobuf(sub) => Some(Encoding::Protobuf),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const V2: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    const V2_BETA: &str = "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList";

    #[track_caller]
    fn check(accept: &str, expected: Option<(Media, bool)>) {
        let form = form(Some(accept), true);
        assert_eq!(form.map(|form| (form.media, form.is_aggregated)), expected, "{accept}");
    }

    #[test]
    fn a_discovery_document_is_negotiated_as_kube_apiserver_does() {
        check("", Some((Media::Json, false)));
        check("application/json", Some((Media::Json, false)));
        check("*/*", Some((Media::Json, false)));
        check("*", Some((Media::Json, false)));
        check("text/html, */*", Some((Media::Json, false)));
        check("application/yaml", Some((Media::Yaml, false)));
        check("application/vnd.kubernetes.protobuf,application/json", Some((Media::Protobuf, false)));
        check("application/json;q=0.5,application/vnd.kubernetes.protobuf", Some((Media::Protobuf, false)));
        check("*/*, application/yaml", Some((Media::Yaml, false)));
        check(V2, Some((Media::Json, true)));
        check(
            "application/vnd.kubernetes.protobuf; g=apidiscovery.k8s.io; v=v2; as=APIGroupDiscoveryList",
            Some((Media::Protobuf, true)),
        );
        // As client-go asks.
        check(&format!("{V2};profile=nopeer,{V2},{V2_BETA},application/json"), Some((Media::Json, true)));
        check(&format!("application/json,{V2}"), Some((Media::Json, true)));
        check(V2_BETA, None);
        check(&format!("{V2_BETA},application/json"), Some((Media::Json, false)));
        check("application/json;g=x;v=v2;as=APIGroupDiscoveryList", None);
        check("application/json;as=Table;v=v1;g=meta.k8s.io,application/json", Some((Media::Json, false)));
        check("text/html", None);
        check("application/json;sv=1", None);
        check("application/json;stream=watch", Some((Media::Json, false)));
        check("application/yaml;stream=watch", None);
        check("application/json;q=x", Some((Media::Json, false)));
        check(",,a/b/c,/;=", None);
        assert_eq!(form(Some(V2), false), None, "only the roots can be aggregated");
        assert!(form(Some("application/json;pretty=1"), false).unwrap().is_pretty);
        assert_eq!(form(None, true).unwrap().media, Media::Json);
    }

    #[test]
    fn an_openapi_document_is_negotiated_as_kube_apiserver_does() {
        let proto = Some(Encoding::Protobuf);
        assert_eq!(openapi(None, "v3"), Some(Encoding::Json));
        assert_eq!(openapi(Some("*/*"), "v2"), Some(Encoding::Json));
        assert_eq!(openapi(Some("application/com.github.proto-openapi.spec.v3.v1.0+protobuf"), "v3"), proto);
        assert_eq!(openapi(Some("application/com.github.proto-openapi.spec.v2@v1.0+protobuf"), "v2"), proto);
        assert_eq!(openapi(Some("application/com.github.proto-openapi.spec.v2@v1.0+protobuf"), "v3"), None);
        assert_eq!(
            openapi(Some("application/json;q=0.1, application/com.github.proto-openapi.spec.v3@v1.0+protobuf"), "v3"),
            proto
        );
        assert_eq!(openapi(Some("text/html"), "v3"), None);
    }
}
