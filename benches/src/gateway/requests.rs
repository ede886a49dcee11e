//! What is asked: kube-apiserver's paths, client-go's headers.

use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE, HeaderValue, USER_AGENT};
use http::{HeaderMap, Method, Request};

/// Length of a small object, in bytes, and of the body of a POST.
pub const SMALL_BYTES: usize = 1 << 10;
/// Length of a large object, in bytes.
pub const LARGE_BYTES: usize = 16 << 10;
/// Length of an event of a watch, in bytes.
pub const EVENT_BYTES: usize = 1 << 10;

/// What small objects' paths begin with.
pub const SMALL: &str = "/api/v1/namespaces/team/configmaps/";
/// What large objects' paths begin with.
pub const LARGE: &str = "/api/v1/namespaces/team/secrets/";
/// What the paths begin with of requests that are held until they are released.
pub const HELD: &str = "/api/v1/namespaces/team/serviceaccounts/";
/// Where objects are made.
pub const CREATE: &str = "/api/v1/namespaces/team/configmaps?fieldManager=controller";
/// The path of a long list.
pub const LIST: &str = "/api/v1/pods";
/// A watch.
pub const WATCH: &str =
    "/api/v1/namespaces/team/configmaps?allowWatchBookmarks=true&resourceVersion=71355&timeoutSeconds=3600&watch=true";

/// A text of that length.
pub fn text(bytes: usize) -> Bytes {
    let line = b"{\"metadata\":{\"name\":\"object\",\"namespace\":\"team\"},\"data\":{\"key\":\"value\"}}\n";
    line.iter().copied().cycle().take(bytes).collect::<Vec<u8>>().into()
}

/// An event of a watch: one line.
pub fn event() -> Bytes {
    let mut line = vec![b' '; EVENT_BYTES - 1];
    line[0] = b'{';
    *line.last_mut().expect("not empty") = b'}';
    line.push(b'\n');
    line.into()
}

/// The headers that client-go sends.
pub fn headers() -> HeaderMap {
    HeaderMap::from_iter([
        (ACCEPT, HeaderValue::from_static("application/json")),
        (ACCEPT_ENCODING, HeaderValue::from_static("gzip")),
        (USER_AGENT, HeaderValue::from_static("controller/v1.36.3 (linux/amd64) kubernetes/0123456")),
    ])
}

/// A request for that target, of a server that is called by that authority.
///
/// # Errors
/// Never: the targets are this module's.
pub fn request(method: Method, authority: &str, target: &str, headers: &HeaderMap) -> http::Result<Request<()>> {
    let uri = http::Uri::builder().scheme("https").authority(authority).path_and_query(target).build()?;
    let mut request = Request::new(());
    if method == Method::POST {
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        request.headers_mut().insert(http::header::CONTENT_LENGTH, HeaderValue::from(SMALL_BYTES));
    }
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    request.headers_mut().extend(headers.iter().map(|(name, value)| (name.clone(), value.clone())));
    Ok(request)
}
