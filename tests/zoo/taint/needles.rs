//! What must not be in an answer, and how it is looked for: as it is, and in whatever is base64 in it.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use regex::bytes::Regex;

use super::Marked;

/// Shorter runs of base64's signs decode to less than a marker.
const RUN_SIGNS_MIN: usize = 16;
/// Bytes around a finding that are shown.
const AROUND: usize = 60;

const LENIENT: GeneralPurposeConfig = GeneralPurposeConfig::new()
    .with_decode_padding_mode(DecodePaddingMode::Indifferent)
    .with_decode_allow_trailing_bits(true);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
const OF_URLS: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);

/// What one reader must not see.
pub(crate) struct Needles {
    any: Regex,
    run: Regex,
}

impl Needles {
    /// Everything that is the others' and everything that its own names are made of upstream.
    pub(super) fn of(tenants: &[Marked], reader: usize) -> Self {
        let mut texts = Vec::new();
        for (place, Marked { tenant, marker, .. }) in tenants.iter().enumerate() {
            texts.push(tenant.names.id().to_string());
            texts.push(tenant.names.uid().to_owned());
            if place != reader {
                texts.push(marker.clone());
                texts.push(tenant.name.clone());
            }
        }
        Self::new(&texts)
    }

    pub(crate) fn new(texts: &[String]) -> Self {
        let any: Vec<String> = texts.iter().map(|text| regex::escape(text)).collect();
        let run = format!("[A-Za-z0-9+/_-]{{{RUN_SIGNS_MIN},}}");
        Self { any: Regex::new(&any.join("|")).unwrap(), run: Regex::new(&run).unwrap() }
    }

    /// The first one in this text, with what is around it.
    pub(crate) fn find(&self, bytes: &[u8]) -> Option<String> {
        if let Some(found) = self.any.find(bytes) {
            let around = found.start().saturating_sub(AROUND)..(found.end() + AROUND).min(bytes.len());
            return Some(String::from_utf8_lossy(&bytes[around]).into_owned());
        }
        for run in self.run.find_iter(bytes) {
            let run = run.as_bytes();
            let url_safe = run.iter().any(|sign| matches!(sign, b'-' | b'_'));
            let engine = if url_safe { &OF_URLS } else { &STANDARD };
            // The text before it may be base64's signs too, so it may begin anywhere.
            for start in 0..4 {
                let part = &run[start..];
                // One sign alone is no byte.
                let part = &part[..part.len() - usize::from(part.len() % 4 == 1)];
                let Ok(decoded) = engine.decode(part) else { continue };
                if let Some(found) = self.any.find(&decoded) {
                    let found = String::from_utf8_lossy(found.as_bytes()).into_owned();
                    return Some(format!("{found} in base64 in {}", String::from_utf8_lossy(run)));
                }
            }
        }
        None
    }
}

/// Finds what is there in each form, and nothing else.
pub(super) fn self_test() {
    let needles = Needles::new(&["mkabcdefghijkl".to_owned(), "kzid".to_owned()]);
    assert!(needles.find(b"x mkabcdefghijkl y").is_some_and(|found| found.contains("mkabcdefghijkl")));
    assert_eq!(needles.find(b"x mkabcdefghijk y"), None);
    for text in ["mkabcdefghijkl", "/registry/kzid-default/a", "{\"v\":\"meta.k8s.io/v1\",\"start\":\"kzid\\u0000\"}"] {
        for engine in [&STANDARD, &OF_URLS] {
            for before in ["", "a", "/b", "xyz"] {
                let encoded = format!("\"{before}{}\"", engine.encode(text));
                assert!(needles.find(encoded.as_bytes()).is_some(), "{text} in {encoded}");
            }
        }
    }
}
