//! A watch's bytes as events: one JSON object a line, or protobuf messages with their length before.
//!
//! Invariant: an event is handed on whole or not at all.

use bytes::{Buf, Bytes, BytesMut};

use crate::limits::EVENT_BYTES_MAX;
use crate::proto;
use crate::rewrite::Encoding;
use crate::scan;

/// An event that can't be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event of a watch can't be read: {0}")]
pub(crate) struct BadFrame(&'static str);

/// Splits what comes into events.
pub(crate) struct Splitter {
    encoding: Encoding,
    rest: BytesMut,
    /// Bytes of `rest` in which there is no end of a line.
    seen: usize,
}

impl Splitter {
    pub(crate) fn new(encoding: Encoding) -> Self {
        Self { encoding, rest: BytesMut::new(), seen: 0 }
    }

    /// Takes what came.
    pub(crate) fn push(&mut self, piece: &[u8]) {
        self.rest.extend_from_slice(piece);
    }

    /// The next event that is there: in JSON with the end of its line, in protobuf without its length.
    pub(crate) fn next(&mut self) -> Result<Option<Bytes>, BadFrame> {
        let length = match self.encoding {
            Encoding::Json => {
                let Some(end) = memchr::memchr(b'\n', &self.rest[self.seen..]) else {
                    self.seen = self.rest.len();
                    return self.wait();
                };
                let length = self.seen + end + 1;
                self.seen = 0;
                length
            }
            Encoding::Protobuf => {
                let Some(header) = self.rest.first_chunk::<4>() else { return Ok(None) };
                let length = u32::from_be_bytes(*header) as usize;
                if length > EVENT_BYTES_MAX {
                    return Err(BadFrame("it is too long"));
                }
                if self.rest.len() < 4 + length {
                    return Ok(None);
                }
                self.rest.advance(4);
                length
            }
        };
        Ok(Some(self.rest.split_to(length).freeze()))
    }

    fn wait(&self) -> Result<Option<Bytes>, BadFrame> {
        if self.rest.len() > EVENT_BYTES_MAX { Err(BadFrame("it is too long")) } else { Ok(None) }
    }
}

/// What a shared watch must know of an event, as it came from upstream.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Facts<'a> {
    /// `ADDED`, `MODIFIED`, `DELETED`, `BOOKMARK` or `ERROR`.
    pub(crate) kind: &'a str,
    pub(crate) name: &'a str,
    pub(crate) namespace: &'a str,
    /// Zero if it tells none.
    pub(crate) version: u64,
}

impl<'a> Facts<'a> {
    /// Reads them off an event.
    pub(crate) fn of(encoding: Encoding, frame: &'a [u8]) -> Result<Self, BadFrame> {
        match encoding {
            Encoding::Json => {
                let kind = scan::text(frame, &["type"]).ok_or(BadFrame("it has no type"))?;
                let meta = scan::find(frame, &["object", "metadata"]).map(|range| &frame[range]).unwrap_or_default();
                let (mut name, mut namespace, mut version) = ("", "", 0);
                for (field, range) in scan::fields(meta, 0) {
                    let text = || std::str::from_utf8(&meta[range.clone()]).ok().map(|text| text.trim_matches('"'));
                    match field {
                        b"name" => name = text().unwrap_or_default(),
                        b"namespace" => namespace = text().unwrap_or_default(),
                        b"resourceVersion" => {
                            version = text().and_then(|text| text.parse().ok()).unwrap_or(0);
                            // What else is wanted comes before it.
                            break;
                        }
                        _ => {}
                    }
                }
                Ok(Self { kind, name, namespace, version })
            }
            Encoding::Protobuf => Self::of_protobuf(frame).ok_or(BadFrame("its protobuf is broken")),
        }
    }

    fn of_protobuf(frame: &'a [u8]) -> Option<Self> {
        let text = |bytes: Option<&'a [u8]>| std::str::from_utf8(bytes?).ok();
        let mut facts = Self { kind: "", name: "", namespace: "", version: 0 };
        let mut object = &[][..];
        for field in proto::fields(frame) {
            let field = field?;
            match field.number {
                1 => facts.kind = text(field.bytes())?,
                2 => object = proto::find(field.bytes()?, 1)?,
                _ => {}
            }
        }
        for field in proto::fields(proto::find(proto::unwrap(object)?, 1).unwrap_or_default()) {
            let field = field?;
            match field.number {
                1 => facts.name = text(field.bytes())?,
                3 => facts.namespace = text(field.bytes())?,
                6 => facts.version = text(field.bytes())?.parse().unwrap_or(0),
                _ => {}
            }
        }
        Some(facts)
    }
}

/// An event of an object that a list has without its type.
pub(crate) fn added(encoding: Encoding, api_version: &str, kind: &str, object: &[u8]) -> Bytes {
    let mut frame = Vec::with_capacity(object.len() + 128);
    match encoding {
        Encoding::Json => {
            frame.extend_from_slice(b"{\"type\":\"ADDED\",\"object\":{");
            let fields = object.get(1..).unwrap_or_default();
            if scan::find(object, &["kind"]).is_none() {
                frame.extend_from_slice(format!("\"kind\":\"{kind}\",\"apiVersion\":\"{api_version}\"").as_bytes());
                if fields.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'}') {
                    frame.push(b',');
                }
            }
            // An apiserver breaks lines for clients that look like people; an event is one line, and within a string there is no break.
            for line in fields.split(|byte| *byte == b'\n') {
                frame.extend_from_slice(line);
            }
            frame.extend_from_slice(b"}\n");
        }
        Encoding::Protobuf => put_event(&mut frame, "ADDED", api_version, kind, object),
    }
    frame.into()
}

/// The event that says that all objects have come: a watch that begins with them goes on from here.
pub(crate) fn initial_end(encoding: Encoding, api_version: &str, kind: &str, version: &str) -> Bytes {
    const ANNOTATION: &str = "k8s.io/initial-events-end";
    let mut frame = Vec::with_capacity(256);
    match encoding {
        Encoding::Json => {
            let text = format!(
                "{{\"type\":\"BOOKMARK\",\"object\":{{\"kind\":\"{kind}\",\"apiVersion\":\"{api_version}\",\"metadata\":\
                 {{\"resourceVersion\":\"{version}\",\"annotations\":{{\"{ANNOTATION}\":\"true\"}}}}}}}}\n"
            );
            frame.extend_from_slice(text.as_bytes());
        }
        Encoding::Protobuf => {
            let (mut entry, mut meta, mut object) = (Vec::new(), Vec::new(), Vec::new());
            proto::put_bytes(&mut entry, 1, ANNOTATION.as_bytes());
            proto::put_bytes(&mut entry, 2, b"true");
            proto::put_bytes(&mut meta, 6, version.as_bytes());
            proto::put_bytes(&mut meta, 12, &entry);
            proto::put_bytes(&mut object, 1, &meta);
            put_event(&mut frame, "BOOKMARK", api_version, kind, &object);
        }
    }
    frame.into()
}

fn put_event(frame: &mut Vec<u8>, event: &str, api_version: &str, kind: &str, object: &[u8]) {
    let (mut type_meta, mut envelope, mut extension, mut message) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    proto::put_bytes(&mut type_meta, 1, api_version.as_bytes());
    proto::put_bytes(&mut type_meta, 2, kind.as_bytes());
    envelope.extend_from_slice(proto::MAGIC);
    proto::put_bytes(&mut envelope, 1, &type_meta);
    proto::put_bytes(&mut envelope, 2, object);
    // Its encodings, empty, as Go writes them.
    proto::put_bytes(&mut envelope, 3, b"");
    proto::put_bytes(&mut envelope, 4, b"");
    proto::put_bytes(&mut extension, 1, &envelope);
    proto::put_bytes(&mut message, 1, event.as_bytes());
    proto::put_bytes(&mut message, 2, &extension);
    with_length(frame, &message);
}

/// Adds an event in protobuf with its length before.
pub(crate) fn with_length(frame: &mut Vec<u8>, message: &[u8]) {
    let length = u32::try_from(message.len()).expect("events are bounded");
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(message);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_whole_however_they_are_cut() {
        let json = b"{\"type\":\"ADDED\"}\n{\"type\":\"B\"}\n";
        let mut protobuf = Vec::new();
        with_length(&mut protobuf, b"one");
        with_length(&mut protobuf, b"");
        with_length(&mut protobuf, b"three");
        for (encoding, bytes, expected) in [
            (Encoding::Json, &json[..], vec!["{\"type\":\"ADDED\"}\n", "{\"type\":\"B\"}\n"]),
            (Encoding::Protobuf, &protobuf[..], vec!["one", "", "three"]),
        ] {
            for length in 1..bytes.len() {
                let mut splitter = Splitter::new(encoding);
                let mut events = Vec::new();
                for piece in bytes.chunks(length) {
                    splitter.push(piece);
                    while let Some(event) = splitter.next().expect("well-formed") {
                        events.push(event);
                    }
                }
                assert_eq!(events, expected, "in pieces of {length}");
            }
        }
    }

    #[test]
    fn what_is_made_can_be_read() {
        let object = br#"{"metadata":{"name":"a","namespace":"b","uid":"c","resourceVersion":"12"},"data":{}}"#;
        let frame = added(Encoding::Json, "v1", "ConfigMap", object);
        let facts = Facts { kind: "ADDED", name: "a", namespace: "b", version: 12 };
        assert_eq!(Facts::of(Encoding::Json, &frame), Ok(facts));
        assert_eq!(scan::text(&frame, &["object", "kind"]), Some("ConfigMap"));
        let broken = b"{\n  \"metadata\": {\n    \"name\": \"a\"\n  }\n}";
        let line = added(Encoding::Json, "v1", "ConfigMap", broken);
        assert_eq!(memchr::memchr(b'\n', &line), Some(line.len() - 1));
        assert_eq!(Facts::of(Encoding::Json, &line).map(|facts| facts.name), Ok("a"));
        let end = initial_end(Encoding::Json, "apps/v1", "Deployment", "9");
        assert_eq!(Facts::of(Encoding::Json, &end).map(|facts| facts.version), Ok(9));

        let (mut meta, mut object) = (Vec::new(), Vec::new());
        proto::put_bytes(&mut meta, 1, b"a");
        proto::put_bytes(&mut meta, 3, b"b");
        proto::put_bytes(&mut meta, 6, b"12");
        proto::put_bytes(&mut object, 1, &meta);
        let frame = added(Encoding::Protobuf, "v1", "ConfigMap", &object);
        let facts = Facts { kind: "ADDED", name: "a", namespace: "b", version: 12 };
        assert_eq!(Facts::of(Encoding::Protobuf, &frame[4..]), Ok(facts));
        let end = initial_end(Encoding::Protobuf, "v1", "ConfigMap", "9");
        assert_eq!(
            Facts::of(Encoding::Protobuf, &end[4..]).map(|facts| (facts.kind, facts.version)),
            Ok(("BOOKMARK", 9))
        );
    }
}
