//! The corner cases that show what this is for; thousands more are compared with Kubernetes' own answers in
//! `tests/request_info`.

use proptest::prelude::*;

use super::*;

fn get(target: &str) -> RequestInfo<'_> {
    RequestInfo::parse("GET", target).unwrap()
}

#[test]
fn a_subresource_of_an_object_is_told_in_all_its_parts() {
    let info = RequestInfo::parse("POST", "/apis/apps/v1/namespaces/shop/deployments/web/scale?dryRun=All").unwrap();
    let expected = RequestInfo {
        is_resource_request: true,
        path: "/apis/apps/v1/namespaces/shop/deployments/web/scale".into(),
        verb: "create".into(),
        api_prefix: "apis",
        api_group: "apps".into(),
        api_version: "v1".into(),
        namespace: "shop".into(),
        resource: "deployments".into(),
        subresource: "scale".into(),
        name: "web".into(),
        parts: "deployments/web/scale".into(),
        ..RequestInfo::default()
    };
    assert_eq!(info, expected);
    assert_eq!(info.parts.iter().collect::<Vec<_>>(), ["deployments", "web", "scale"]);
    assert_eq!(info.clone().into_owned(), info);
}

#[test]
fn a_request_without_escapes_is_told_in_slices_of_it() {
    let allocates_nothing = |text: &Cow<'_, str>| text.is_empty() || matches!(text, Cow::Borrowed(_));
    for (method, target) in [
        ("GET", "/api/v1/namespaces/shop/pods/web-0"),
        ("GET", "/api/v1/pods?limit=500&resourceVersion=0"),
        ("GET", "/api/v1/pods?watch=true&labelSelector=app"),
        ("DELETE", "/api/v1/namespaces/shop/pods?labelSelector=app"),
        ("PROPFIND", "/healthz"),
    ] {
        let info = RequestInfo::parse(method, target).unwrap();
        let verb_is_static = allocates_nothing(&info.verb) || method == "PROPFIND";
        let rest = [&info.path, &info.namespace, &info.resource, &info.name, &info.parts.0, &info.label_selector];
        assert!(verb_is_static && rest.into_iter().all(allocates_nothing), "{info:?}");
    }
}

#[test]
fn what_is_unescaped_cannot_hide_a_part_of_the_path() {
    // A kube-apiserver splits the path after unescaping it; so an escaped slash separates parts.
    let info = get("/api/v1/namespaces/shop%2fsecrets/web?watch=1");
    assert_eq!((&*info.namespace, &*info.resource, &*info.name), ("shop", "secrets", "web"));
    assert_eq!(info.path, "/api/v1/namespaces/shop/secrets/web");
    // And it resolves no dots.
    assert_eq!(get("/api/v1/namespaces/a/../secrets").resource, "..");
}

#[test]
fn a_field_selector_that_demands_one_name_names_the_object() {
    let info = get("/api/v1/pods?watch&fieldSelector=metadata.name%3Dweb-0%2Cspec.nodeName%3Dn1");
    assert_eq!((&*info.verb, &*info.name), ("watch", "web-0"));
    assert_eq!(info.field_selector, "metadata.name=web-0,spec.nodeName=n1");
    for not_a_name in ["metadata.name!=x", "metadata.name=..", "metadata.name=a%2Fb", "metadata.name=x,y"] {
        let target = format!("/api/v1/pods?fieldSelector={not_a_name}");
        assert_eq!(get(&target).name, "", "{target}");
    }
}

#[test]
fn an_option_that_is_malformed_makes_a_list_of_all_but_of_a_watch() {
    let of = |query: &str| {
        let target = format!("/api/v1/pods?{query}&fieldSelector=metadata.name=x");
        let info = get(&target).into_owned();
        (info.verb.into_owned(), info.name.into_owned())
    };
    let told = |verb: &str, name: &str| (verb.to_owned(), name.to_owned());
    assert_eq!(of("limit=1"), told("list", "x"));
    assert_eq!(of("limit="), told("list", ""));
    assert_eq!(of("timeoutSeconds=1s&watch="), told("watch", ""));
    assert_eq!(of("labelSelector=a%20b&watch=False"), told("list", ""));
    // The long s is an s only to the one of the two ways in which Kubernetes compares.
    assert_eq!(of("watch=fal%C5%BFe"), told("list", "x"));
    assert_eq!(of("watch=fal%C5%BFe&limit=x"), told("watch", ""));
}

#[test]
fn a_target_that_go_refuses_is_an_error_that_says_where() {
    let of = |target: &str| RequestInfo::parse("GET", target).unwrap_err();
    assert_eq!(of(""), Error::NotAPath);
    assert_eq!(of("?watch=1"), Error::NotAPath);
    assert_eq!(of("*?"), Error::NotAPath);
    assert_eq!(of("/a%2"), Error::BadEscape { offset: 2 });
    assert_eq!(of("/a?b=\n"), Error::ControlCharacter { offset: 5 });
    assert_eq!(of("/apis/apps/v1/watch/"), Error::NoResource { verb: "watch" });
    assert_eq!(of("/a%2").to_string().matches("at byte 2").count(), 1);
    assert_eq!(get("/a?b=%2").path, "/a");
    assert_eq!(get("*").path, "*");
}

#[test]
fn an_endless_query_costs_no_more_than_reading_it() {
    // Go takes a query of more than 10,000 pairs for empty.
    let pairs = |count: usize| format!("/api/v1/pods?watch{}", "&".repeat(count - 1));
    assert_eq!(get(&pairs(10_000)).verb, "watch");
    assert_eq!(get(&pairs(10_001)).verb, "list");
}

#[test]
fn only_what_kubernetes_never_cuts_short_is_long_running() {
    for (target, expected) in [
        ("/api/v1/pods?watch=1", true),
        ("/api/v1/watch/pods", true),
        ("/api/v1/namespaces/a/pods/b/log", true),
        ("/api/v1/namespaces/a/pods/b/exec?command=sh", true),
        ("/api/v1/namespaces/a/services/b/proxy/x", true),
        ("/debug/pprof/profile", true),
        ("/debug/pprof", false),
        ("/api/v1/namespaces/a/pods/b/status", false),
        ("/exec", false),
    ] {
        assert_eq!(get(target).is_long_running(), expected, "{target}");
    }
}

/// Texts in which Go and Kubernetes look for something.
fn piece() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => prop::sample::select(vec![
            "/", "//", "api", "apis", "v1", "watch", "proxy", "namespaces", "status", "?", "&", "=", ";", "%", "%2",
            "%2F", "%00", "%ff", "%C5%BF", "+", "#", "\\", ",", "!", "(", ")", " in ", "<", ">", "fieldSelector=",
            "labelSelector=", "metadata.name=", "limit=", "\u{17f}", "\0", "*",
        ])
        .prop_map(str::to_owned),
        1 => any::<String>(),
        1 => any::<Vec<u8>>().prop_map(|bytes| bytes.iter().map(|byte| format!("%{byte:02x}")).collect()),
    ]
}

proptest! {
    #[test]
    fn no_target_and_no_method_makes_it_panic(
        method in prop_oneof![Just("GET".to_owned()), Just("DELETE".to_owned()), any::<String>()],
        beginning in prop::sample::select(vec!["", "/", "/api/v1/", "/apis/g/v1/", "/api/v1/pods?"]),
        pieces in prop::collection::vec(piece(), 0..20),
    ) {
        let target = beginning.to_owned() + &pieces.concat();
        if let Ok(info) = RequestInfo::parse(&method, &target) {
            prop_assert!(!info.is_resource_request || info.parts.iter().last().is_some_and(|part| !part.is_empty()));
            let _ = info.is_long_running();
        }
    }

    #[test]
    fn bytes_of_any_kind_do_not_make_it_panic(bytes in any::<Vec<u8>>()) {
        let _ = RequestInfo::parse("GET", &String::from_utf8_lossy(&bytes));
        let _ = selector::required_name(&bytes);
        let _ = selector::is_label_selector(&bytes);
    }
}
