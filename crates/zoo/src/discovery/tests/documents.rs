//! What is in the documents.

use proptest::prelude::*;

use super::host::{self, META, SECRET};
use crate::discovery::cache::Name;
use crate::discovery::json::{self, Edit};
use crate::discovery::{Encoding, Malformed, Resources};
use crate::kinds;

const PUBLIC: &str = "zoo.example.com:443";

fn transform(name: &Name, encoding: Encoding, document: &[u8], resources: &Resources) -> Result<Edit, Malformed> {
    crate::discovery::transform(name, encoding, document, resources, PUBLIC)
}

/// All documents as tenants have them; those that they don't have are left out.
fn for_tenants() -> (Resources, Vec<(Name, Encoding, Vec<u8>)>) {
    let documents = host::documents();
    let base = |base: &Name| {
        let (_, _, body) =
            documents.iter().find(|(name, encoding, _)| name == base && *encoding == Encoding::Json).unwrap();
        let Ok(Edit::Replace(body)) = transform(base, Encoding::Json, body, &Resources::default()) else { panic!() };
        body
    };
    let resources = Resources::new(&base(&Name::AggregatedApi), &base(&Name::AggregatedApis)).unwrap();
    let mut transformed = Vec::new();
    for (name, encoding, body) in documents {
        let is_served = match &name {
            Name::Group(group) => resources.has_group(group),
            Name::Version(group, version) => resources.has_version(group, version),
            Name::OpenApi3(name) => crate::discovery::paths::has_document(name, &resources),
            _ => true,
        };
        if !is_served {
            continue;
        }
        let body = match transform(&name, encoding, &body, &resources).unwrap() {
            Edit::Keep => body,
            Edit::Replace(body) => body,
            Edit::Drop => panic!("{name:?} is served"),
        };
        transformed.push((name, encoding, body));
    }
    (resources, transformed)
}

fn has(document: &[u8], text: &str) -> bool {
    memchr::memmem::find(document, text.as_bytes()).is_some()
}

#[test]
fn no_refused_resource_is_left_in_any_document() {
    let served: Vec<_> = kinds::all().iter().filter(|known| known.outcome.is_served()).collect();
    let mut refused = vec![SECRET.to_owned(), "HostSecret".to_owned(), "host.example.com".to_owned()];
    for known in kinds::all() {
        if !known.outcome.is_served() {
            // A few are part of another name, such as bindings of rolebindings.
            let is_part = served.iter().any(|other| other.resource.contains(known.resource));
            let quoted = is_part.then(|| format!("/{}", known.resource));
            refused.push(quoted.unwrap_or_else(|| known.resource.to_owned()));
            let is_part = served.iter().any(|other| other.kind.starts_with(known.kind));
            refused.push(format!(".{}{}", known.kind, if is_part { "\"" } else { "" }));
        }
        for subresource in known.subresources {
            if !subresource.outcome.is_served() {
                refused.push(format!("{}/{}", known.resource, subresource.name));
                refused.push(format!("{}/{{name}}/{}", known.resource, subresource.name));
            }
        }
    }
    let documents = for_tenants().1;
    assert!(documents.len() > 40);
    for (name, encoding, body) in &documents {
        for refused in &refused {
            assert!(!has(body, refused), "{refused} is in {name:?} as {encoding:?}");
        }
        if *encoding == Encoding::Json {
            serde_json::from_slice::<serde_json::Value>(body).unwrap();
        }
    }
}

#[test]
fn what_tenants_have_is_in_all_documents() {
    let (resources, documents) = for_tenants();
    let of = |name: Name| documents.iter().filter(move |(known, ..)| *known == name);
    for resource in host::resources() {
        let Some(known) = kinds::find(resource.group, resource.resource).filter(|known| known.outcome.is_served())
        else {
            continue;
        };
        let prefix = if known.group.is_empty() { "api/v1".to_owned() } else { format!("apis/{}/v1", known.group) };
        let base = if known.group.is_empty() { Name::AggregatedApi } else { Name::AggregatedApis };
        let version = Name::Version(known.group.into(), "v1".into());
        for (name, _, body) in of(base).chain(of(version)) {
            assert!(has(body, known.resource), "{} is not in {name:?}", known.resource);
        }
        for (name, encoding, body) in of(Name::OpenApi2).chain(of(Name::OpenApi3(prefix.clone().into()))) {
            assert!(has(body, &format!("/{prefix}/{}", known.resource)), "{} is not in {name:?}", known.resource);
            for schema in [host::schema(&resource), format!("{}List", host::schema(&resource)), META.to_owned()] {
                // Once as a name, and where it is referred to.
                let finder = memchr::memmem::Finder::new(&schema);
                assert!(finder.find_iter(body).count() > 1, "{schema} is not in {name:?} as {encoding:?}");
            }
        }
        let found = resources.find(known.group, "v1", known.resource).unwrap();
        assert_eq!((&*found.kind.kind, &*found.kind.group, &*found.kind.version), (known.kind, known.group, "v1"));
        assert_eq!(found.namespaced, known.namespaced);
        assert_eq!(resources.find_kind(known.group, known.kind).unwrap(), found);
        let subresources = known.subresources.iter().filter(|subresource| subresource.outcome.is_served());
        assert_eq!(found.subresources.len(), subresources.count(), "{}", known.resource);
    }
    let scale = resources.find("apps", "v1", "deployments").unwrap().subresource("scale").unwrap();
    assert_eq!((&*scale.kind.group, &*scale.kind.version, &*scale.kind.kind), ("autoscaling", "v1", "Scale"));
    assert!(!resources.has_group("host.example.com") && !resources.has_version("networking.k8s.io", "v2alpha1"));
}

#[test]
fn fields_that_nobody_knows_survive() {
    for (name, encoding, body) in for_tenants().1 {
        match (&name, encoding) {
            (Name::AggregatedApi | Name::AggregatedApis, Encoding::Json) => {
                assert!(has(&body, r#""future":[{"a":"]}"}]"#));
            }
            (Name::AggregatedApi | Name::AggregatedApis, Encoding::Protobuf) => assert!(has(&body, "future")),
            (Name::OpenApi2, Encoding::Json) => assert!(has(&body, r#""parameters":{"a":{"in":"query"}}"#)),
            (Name::OpenApi3(_), Encoding::Json) => assert!(has(&body, r#""securitySchemes":{"b":{}}"#)),
            _ => {}
        }
    }
}

#[test]
fn nodes_can_only_be_read() {
    let (resources, documents) = for_tenants();
    let verbs: Vec<_> = resources.find("", "v1", "nodes").unwrap().verbs.iter().collect();
    assert_eq!(verbs, ["get", "list", "watch"]);
    for (name, encoding, body) in documents {
        if encoding != Encoding::Json {
            continue;
        }
        let document: serde_json::Value = serde_json::from_slice(&body).unwrap();
        match name {
            Name::OpenApi2 => {
                let item = document["paths"]["/api/v1/nodes/{name}"].as_object().unwrap();
                assert_eq!(item.keys().collect::<Vec<_>>(), ["get", "parameters"]);
            }
            Name::Version(group, _) if group.is_empty() => {
                let resources = document["resources"].as_array().unwrap();
                let nodes = resources.iter().find(|resource| resource["name"] == "nodes").unwrap();
                assert_eq!(nodes["verbs"], serde_json::json!(["get", "list", "watch"]));
                let pods = resources.iter().find(|resource| resource["name"] == "pods").unwrap();
                assert_eq!(pods["verbs"].as_array().unwrap().len(), 4);
            }
            _ => {}
        }
    }
}

#[test]
fn the_preferred_version_is_one_that_tenants_have() {
    for (name, encoding, body) in for_tenants().1 {
        let is_networking = matches!(&name, Name::Group(group) if &**group == "networking.k8s.io");
        match encoding {
            Encoding::Json if is_networking => {
                let group: serde_json::Value = serde_json::from_slice(&body).unwrap();
                assert_eq!(group["preferredVersion"]["version"], "v1");
                assert_eq!(group["versions"].as_array().unwrap().len(), 1);
            }
            Encoding::Protobuf if is_networking => {
                assert_eq!(memchr::memmem::find_iter(&body, "networking.k8s.io/v1").count(), 2);
                assert!(!has(&body, "v2alpha1"));
            }
            _ => {}
        }
    }
}

#[test]
fn a_document_in_which_all_is_the_tenants_stays_as_it_is() {
    let resources = for_tenants().0;
    for (name, encoding, body) in host::documents() {
        if matches!(&name, Name::OpenApi3(name) if &**name == "apis/batch/v1") {
            assert_eq!(transform(&name, encoding, &body, &resources).unwrap(), Edit::Keep);
        }
    }
}

#[test]
fn the_public_address_is_zoos() {
    for (name, _, body) in for_tenants().1 {
        if name == Name::Api {
            assert!(has(&body, PUBLIC) && has(&body, "0.0.0.0/0"));
        }
    }
}

#[test]
fn broken_documents_are_errors() {
    let resources = for_tenants().0;
    for (name, encoding, body) in host::documents() {
        for length in (0..body.len().min(300)).chain([body.len() - 1]) {
            let transformed = transform(&name, encoding, &body[..length], &resources);
            // A message of protobuf may as well end where a field ends.
            if encoding == Encoding::Json {
                assert!(transformed.is_err(), "{name:?} after {length} bytes");
            }
        }
    }
    assert!(Resources::new(b"{}", b"{").is_err());
    assert!(json::document(b"").is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn damaged_documents_make_no_panic(
        seed in any::<prop::sample::Index>(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let resources = Resources::default();
        let documents = host::documents();
        let (name, encoding, mut body) = documents[seed.index(documents.len())].clone();
        for (at, byte) in damage {
            let at = at.index(body.len());
            body[at] = byte;
        }
        let _ = transform(&name, encoding, &body, &resources);
    }
}
