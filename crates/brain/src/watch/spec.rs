//! What a watch wants to see.

use bytes::Bytes;
use kubewharf_etcd_api::EtcdError;
use kubewharf_etcd_api::etcdserverpb::WatchCreateRequest;
use kubewharf_etcd_api::etcdserverpb::watch_create_request::FilterType;

use crate::limits::KEY_BYTES_MAX;
use crate::mvcc::{KeyRange, RangeEnd};

/// The keys, kinds and form of the events that a watch gets; all watches with the same one get the same bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Spec {
    pub(super) range: KeyRange,
    pub(super) puts: bool,
    pub(super) deletes: bool,
    pub(super) prev_kv: bool,
}

impl Spec {
    /// What `request` asks for. Keeps no part of the request's buffer.
    pub(super) fn from_request(request: &WatchCreateRequest) -> Result<Self, EtcdError> {
        // No key stands for the smallest one.
        let key: &[u8] = if request.key.is_empty() { &[0] } else { &request.key };
        let range = KeyRange::from_request(bounded(key), bounded(&request.range_end));
        if matches!(range.end, RangeEnd::Before(_)) && key >= request.range_end.as_ref() {
            return Err(EtcdError::WatcherRangeEmpty);
        }
        let excludes = |kind: FilterType| request.filters.contains(&(kind as i32));
        Ok(Self {
            range,
            puts: !excludes(FilterType::Noput),
            deletes: !excludes(FilterType::Nodelete),
            prev_kv: request.prev_kv,
        })
    }

    /// Whether events of this kind are wanted.
    #[inline]
    pub(super) fn admits(&self, is_delete: bool) -> bool {
        if is_delete { self.deletes } else { self.puts }
    }
}

/// A copy of a key or range end, cut where no stored key can tell the difference: stored keys are shorter than the cut,
/// so each compares with it as with the whole.
fn bounded(key: &[u8]) -> Bytes {
    Bytes::copy_from_slice(&key[..key.len().min(KEY_BYTES_MAX + 1)])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(key: &'static [u8], range_end: &'static [u8]) -> Result<Spec, EtcdError> {
        Spec::from_request(&WatchCreateRequest {
            key: Bytes::from_static(key),
            range_end: Bytes::from_static(range_end),
            ..WatchCreateRequest::default()
        })
    }

    #[test]
    fn ranges_are_named_as_in_etcd() {
        assert_eq!(spec(b"a", b"").unwrap().range.end, RangeEnd::Single);
        assert_eq!(spec(b"a", b"\0").unwrap().range.end, RangeEnd::Unbounded);
        assert_eq!(spec(b"a", b"b").unwrap().range.end, RangeEnd::Before(Bytes::from_static(b"b")));
        assert_eq!(spec(b"", b"").unwrap().range.start, "\0");
        assert_eq!(spec(b"", b"\0").unwrap().range.start, "\0");
        for (key, end) in [(b"b", b"b"), (b"c", b"b")] {
            assert_eq!(spec(key, end).unwrap_err().message(), "mvcc: watcher range is empty");
        }
    }

    #[test]
    fn filters_are_a_set_and_unknown_ones_are_ignored() {
        let request = WatchCreateRequest { filters: vec![1, 7, 1], ..WatchCreateRequest::default() };
        let spec = Spec::from_request(&request).unwrap();
        assert!(spec.admits(false));
        assert!(!spec.admits(true));
    }

    #[test]
    fn a_long_bound_is_cut_where_no_key_can_tell() {
        let long = vec![b'k'; KEY_BYTES_MAX + 500];
        let request = WatchCreateRequest {
            key: long.clone().into(),
            range_end: Bytes::from_static(b"z"),
            ..WatchCreateRequest::default()
        };
        let range = Spec::from_request(&request).unwrap().range;
        assert_eq!(range.start.len(), KEY_BYTES_MAX + 1);
        for key in [&long[..KEY_BYTES_MAX], b"k", b"kl", b"l", b"j"] {
            assert_eq!(range.contains(key), key >= long.as_slice() && key < b"z".as_slice());
        }
    }
}
