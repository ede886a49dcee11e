//! What is asked: kube-apiserver's paths.

use bytes::Bytes;

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
