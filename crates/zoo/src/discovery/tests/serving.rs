//! How the documents are served.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Response};

use super::host::Host;
use crate::discovery::{Discovery, Settings};

const V2: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
const OPENAPI_PROTO: &str = "application/com.github.proto-openapi.spec.v3.v1.0+protobuf";

fn discovery() -> Arc<Discovery<Host>> {
    Discovery::new(Host::new(), Settings::new("zoo.example.com:443"))
}

async fn get(discovery: &Arc<Discovery<Host>>, target: &str, headers: &[(&str, &str)]) -> Response<Bytes> {
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.insert(HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
    }
    discovery.respond(path, query, &map).await.unwrap()
}

fn header<'r>(response: &'r Response<Bytes>, name: &str) -> &'r str {
    response.headers().get(name).map_or("", |value| value.to_str().unwrap())
}

fn json(response: &Response<Bytes>) -> serde_json::Value {
    serde_json::from_slice(response.body()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn aggregated_documents_are_known_by_their_etags() {
    let discovery = discovery();
    let first = get(&discovery, "/apis", &[("accept", &format!("{V2},application/json"))]).await;
    assert_eq!((first.status().as_u16(), header(&first, "content-type")), (200, V2));
    assert_eq!((header(&first, "vary"), header(&first, "cache-control")), ("Accept", "private"));
    let etag = header(&first, "etag").to_owned();
    assert_eq!(etag.len(), 130);
    let again = get(&discovery, "/apis", &[("accept", V2), ("if-none-match", &etag)]).await;
    assert_eq!((again.status().as_u16(), again.body().len(), header(&again, "etag")), (304, 0, &*etag));
    let other = get(&discovery, "/api/", &[("accept", V2), ("if-none-match", &etag)]).await;
    assert_eq!(other.status(), 200);
    let proto = V2.replace("json", "vnd.kubernetes.protobuf");
    let proto = get(&discovery, "/apis", &[("accept", &proto)]).await;
    assert!(proto.body().starts_with(b"k8s\0"));
    assert!(header(&proto, "content-type").starts_with("application/vnd.kubernetes.protobuf;g="));
}

#[tokio::test(start_paused = true)]
async fn documents_have_the_form_that_the_client_asks_for() {
    let discovery = discovery();
    let answer = get(&discovery, "/api", &[]).await;
    assert_eq!(json(&answer)["serverAddressByClientCIDRs"][0]["serverAddress"], "zoo.example.com:443");
    let answer = get(&discovery, "/apis/apps", &[("accept", "application/vnd.kubernetes.protobuf")]).await;
    assert!(answer.body().starts_with(b"k8s\0"));
    let answer = get(&discovery, "/apis/apps/v1/", &[("accept", "application/yaml")]).await;
    assert_eq!(header(&answer, "content-type"), "application/yaml");
    let answer = get(&discovery, "/apis/apps/v1", &[("accept", "text/html")]).await;
    assert_eq!((answer.status().as_u16(), &json(&answer)["reason"]), (406, &"NotAcceptable".into()));
    let pretty = get(&discovery, "/api", &[("user-agent", "curl/8.9")]).await;
    assert!(pretty.body().starts_with(b"{\n  \""));
    let plain = get(&discovery, "/api?pretty=false", &[("user-agent", "curl/8.9")]).await;
    assert_eq!(json(&plain), json(&pretty));
    assert!(!plain.body().contains(&b'\n'));
    let answer = get(&discovery, "/openapi/v2", &[("accept", "text/html")]).await;
    assert_eq!((answer.status().as_u16(), answer.body().len()), (406, 0));
}

#[tokio::test(start_paused = true)]
async fn what_tenants_do_not_have_is_not_asked_for_upstream() {
    let discovery = discovery();
    discovery.resources().await.unwrap();
    discovery.origin.take_asked();
    for (path, message) in [
        ("/apis/storage.k8s.io", "the group storage.k8s.io is not served to tenants"),
        ("/apis/host.example.com/v1", "the group host.example.com is not served to tenants"),
        ("/apis/nothing/v1", "the group nothing is not served to tenants"),
        ("/apis/networking.k8s.io/v2alpha1", "the server could not find the requested resource"),
        ("/api/v2", "the server could not find the requested resource"),
    ] {
        let answer = get(&discovery, path, &[]).await;
        assert_eq!((answer.status().as_u16(), &json(&answer)["reason"]), (404, &"NotFound".into()), "{path}");
        assert!(json(&answer)["message"].as_str().unwrap().ends_with(message), "{path}");
    }
    for path in [
        "/openapi/v3/apis/host.example.com/v1",
        "/openapi/v3/api/v1/pods",
        "/openapi/v3/api/v1/",
        "/openapi/v3//api/v1",
        "/openapi/v3/",
        "/openapi/v3/logs",
        "/openapi/v3/../v2",
    ] {
        let answer = get(&discovery, path, &[]).await;
        assert_eq!((answer.status().as_u16(), answer.body().len()), (404, 0), "{path}");
    }
    assert_eq!(discovery.origin.take_asked(), Vec::<String>::new());
    for path in [
        "/",
        "/version",
        "/api/v1/pods",
        "/apis/apps/v1/deployments",
        "/openapi",
        "/openapi/v2/",
        "/healthz",
        "/apisx",
        "api",
    ] {
        assert!(discovery.respond(path, None, &HeaderMap::new()).await.is_none(), "{path}");
    }
}

#[tokio::test(start_paused = true)]
async fn openapi_is_kept_for_ever_under_its_hash() {
    let discovery = discovery();
    let url_of = async || {
        let index = get(&discovery, "/openapi/v3", &[]).await;
        assert_eq!(header(&index, "content-type"), "text/plain; charset=utf-8");
        json(&index)["paths"]["apis/networking.k8s.io/v1"]["serverRelativeURL"].as_str().unwrap().to_owned()
    };
    let url = url_of().await;
    assert!(!url.contains("HASH1"), "upstream's hash says nothing about the document of tenants");
    for accept in ["application/json", OPENAPI_PROTO] {
        let document = get(&discovery, &url, &[("accept", accept)]).await;
        assert_eq!((document.status().as_u16(), header(&document, "content-type")), (200, accept));
        assert_eq!(header(&document, "cache-control"), "public, immutable");
        assert!(header(&document, "expires").ends_with("GMT"));
        let etag = header(&document, "etag").to_owned();
        assert!(url.ends_with(etag.trim_matches('"')));
        let known = format!("\"other\", W/{etag}");
        let again = get(&discovery, &url, &[("accept", accept), ("if-none-match", &known)]).await;
        assert_eq!((again.status().as_u16(), again.body().len()), (304, 0));
    }
    let without = get(&discovery, url.split_once('?').unwrap().0, &[]).await;
    assert_eq!((without.status().as_u16(), header(&without, "cache-control")), (200, "no-cache, private"));
    let wrong = get(&discovery, "/openapi/v3/apis/networking.k8s.io/v1?hash=HASH1", &[]).await;
    assert_eq!((wrong.status().as_u16(), header(&wrong, "location")), (301, &*url));

    // The document changes. Who has the index already finds the document that it names.
    discovery.origin.set_hash("HASH2");
    tokio::time::advance(Duration::from_secs(61)).await;
    let newer = url_of().await;
    assert_ne!(newer, url);
    let document = get(&discovery, &newer, &[]).await;
    assert_eq!(document.status(), 200);
    let old = get(&discovery, &url, &[]).await;
    assert_eq!((old.status().as_u16(), header(&old, "location")), (301, &*newer));
}

#[tokio::test(start_paused = true)]
async fn a_hash_from_a_newer_index_is_found_while_the_document_is_stale() {
    let discovery = discovery();
    let path = "/openapi/v3/apis/apps/v1";
    get(&discovery, path, &[]).await;
    tokio::time::advance(Duration::from_secs(3)).await;
    discovery.origin.set_hash("HASH2");
    let index = get(&discovery, "/openapi/v3", &[]).await;
    let url = json(&index)["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().unwrap().to_owned();
    assert_eq!(get(&discovery, &url, &[]).await.status(), 200);
    // Whoever makes hashes up does not make zoo ask again.
    discovery.origin.take_asked();
    for number in 0..10 {
        let answer = get(&discovery, &format!("{path}?hash={number}"), &[]).await;
        assert_eq!(answer.status(), 301);
    }
    assert_eq!(discovery.origin.take_asked(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn many_clients_make_one_fetch() {
    let discovery = discovery();
    let clients: Vec<_> = (0..20)
        .map(|_| {
            let discovery = Arc::clone(&discovery);
            tokio::spawn(async move { get(&discovery, "/openapi/v2", &[]).await.status() })
        })
        .collect();
    for client in clients {
        assert_eq!(client.await.unwrap(), 200);
    }
    assert_eq!(discovery.origin.take_asked(), ["/api", "/apis", "/openapi/v2"]);
}

#[tokio::test(start_paused = true)]
async fn documents_are_checked_in_the_background() {
    let discovery = discovery();
    let resources = discovery.resources().await.unwrap();
    assert_eq!(discovery.origin.take_asked(), ["/api", "/apis"]);
    tokio::time::advance(Duration::from_millis(1900)).await;
    assert!(Arc::ptr_eq(&resources, &discovery.resources().await.unwrap()));
    assert_eq!(discovery.origin.take_asked(), Vec::<String>::new());

    // Some time later it is served as it is, and upstream says that it has not changed.
    tokio::time::advance(Duration::from_millis(200)).await;
    for _ in 0..5 {
        assert!(Arc::ptr_eq(&resources, &discovery.resources().await.unwrap()));
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    let asked = std::mem::take(&mut *discovery.origin.asked.lock());
    assert_eq!(asked, ["/api", "/apis"].map(|path| (path.to_owned(), Some("\"HASH1\"".to_owned()))));
    assert!(Arc::ptr_eq(&resources, &discovery.resources().await.unwrap()));

    // A change is seen after the next look, or at once if zoo knows of it.
    discovery.origin.edit("/apis", |body| {
        if let Some(at) = memchr::memmem::find(body, b"leases") {
            body[at..at + 6].copy_from_slice(b"xeases");
        }
    });
    discovery.origin.set_hash("HASH2");
    assert!(discovery.resources().await.unwrap().find("coordination.k8s.io", "v1", "leases").is_some());
    discovery.invalidate();
    assert!(discovery.resources().await.unwrap().find("coordination.k8s.io", "v1", "leases").is_none());
    assert!(!discovery.known_resources().unwrap().has_group("coordination.k8s.io"));
}

#[tokio::test(start_paused = true)]
async fn other_documents_follow_the_resources() {
    let discovery = discovery();
    let has = async |discovery: &Arc<Discovery<Host>>| {
        let document = get(discovery, "/openapi/v2", &[]).await;
        memchr::memmem::find(document.body(), b"/leases").is_some()
    };
    assert!(has(&discovery).await);
    // The ETag of this document stays, yet it is made anew.
    discovery.origin.edit("/apis", |body| {
        if let Some(at) = memchr::memmem::find(body, b"leases") {
            body[at..at + 6].copy_from_slice(b"xeases");
        }
    });
    discovery.origin.set_hash("HASH2");
    tokio::time::advance(Duration::from_secs(61)).await;
    discovery.resources().await.unwrap();
    discovery.origin.is_down.store(true, Ordering::Relaxed);
    let answer = get(&discovery, "/openapi/v2", &[]).await;
    assert_eq!(answer.status(), 503, "what was made with other resources is not served");
    discovery.origin.is_down.store(false, Ordering::Relaxed);
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(!has(&discovery).await);
}

#[tokio::test(start_paused = true)]
async fn what_is_held_is_served_while_upstream_is_down() {
    let discovery = discovery();
    discovery.origin.is_down.store(true, Ordering::Relaxed);
    let answer = get(&discovery, "/apis", &[]).await;
    assert_eq!((answer.status().as_u16(), &json(&answer)["reason"]), (503, &"ServiceUnavailable".into()));
    // It is not asked by everyone.
    discovery.origin.take_asked();
    assert_eq!(get(&discovery, "/apis", &[]).await.status(), 503);
    assert_eq!(discovery.origin.take_asked(), Vec::<String>::new());

    discovery.origin.is_down.store(false, Ordering::Relaxed);
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(get(&discovery, "/apis", &[("accept", V2)]).await.status(), 200);
    discovery.origin.is_down.store(true, Ordering::Relaxed);
    discovery.invalidate();
    tokio::time::advance(Duration::from_secs(3600)).await;
    assert_eq!(get(&discovery, "/apis", &[("accept", V2)]).await.status(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_document_that_can_not_be_used_is_an_error() {
    let discovery = discovery();
    discovery.origin.edit("/apis/apps", |body| body.truncate(20));
    discovery.origin.edit("/openapi/v2", |body| body.insert(0, b'!'));
    for path in ["/apis/apps", "/openapi/v2"] {
        let answer = get(&discovery, path, &[]).await;
        assert_eq!((answer.status().as_u16(), &json(&answer)["reason"]), (500, &"InternalError".into()), "{path}");
    }
    assert_eq!(get(&discovery, "/apis", &[]).await.status(), 200);
}
