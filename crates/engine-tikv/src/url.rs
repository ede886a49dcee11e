//! Where the cluster is and how it is reached.
//!
//! Job: `tikv://host:port,host:port?name=value&…`, the addresses of the cluster's PDs and a few parameters. What is not understood is refused by
//! name.
//!
//! Invariant: no error holds more of the text than a parameter's name and value, and no parameter is a secret.

use std::path::PathBuf;
use std::time::Duration;

use percent_encoding::percent_decode_str;

const SCHEME: &str = "tikv://";
const PORT: &str = "2379";
/// What TiDB keeps by default, and so what clusters usually keep.
const GC_LIFE_TIME: Duration = Duration::from_secs(10 * 60);
/// Views would have no time to be read.
const GC_LIFE_TIME_MIN: Duration = Duration::from_secs(60);

/// The cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// PDs, each as host and port.
    pub(crate) endpoints: Vec<String>,
    pub(crate) tls: Option<TlsFiles>,
    /// A keyspace of the cluster's, which then speaks API version 2.
    pub(crate) keyspace: Option<String>,
    /// How long the cluster keeps what was overwritten.
    pub(crate) gc_life_time: Duration,
    /// Whether this process tells the cluster to clean up.
    pub(crate) collects_garbage: bool,
    /// Whether small batches may be committed in one phase.
    pub(crate) allows_one_phase: bool,
}

/// PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TlsFiles {
    /// Whose signature on a server's certificate counts.
    pub(crate) ca: PathBuf,
    /// The client's own certificate and its key, where servers ask for one.
    pub(crate) identity: Option<(PathBuf, PathBuf)>,
}

impl Target {
    /// Understands the text; the error says what is wrong with which parameter.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let text = text.strip_prefix(SCHEME).unwrap_or(text);
        if text.contains("://") {
            return Err(format!("it does not begin with {SCHEME}"));
        }
        let (hosts, query) = text.split_once('?').unwrap_or((text, ""));
        let hosts = hosts.strip_suffix('/').unwrap_or(hosts);
        let endpoints = hosts.split(',').map(endpoint).collect::<Result<Vec<_>, _>>()?;

        let (mut ca, mut cert, mut key) = (None, None, None);
        let (mut keyspace, mut gc_life_time) = (None, GC_LIFE_TIME);
        let (mut collects_garbage, mut allows_one_phase) = (false, true);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').ok_or_else(|| format!("the parameter {pair} has no `=`"))?;
            let value = percent_decode_str(value).decode_utf8().map_err(|_| format!("{name} is not UTF-8"))?;
            let path = || Some(PathBuf::from(&*value)).filter(|path| !path.as_os_str().is_empty());
            match name {
                "ca" => ca = path(),
                "cert" => cert = path(),
                "key" => key = path(),
                "keyspace" => keyspace = Some(value.into_owned()).filter(|name| !name.is_empty()),
                "gc_life_time" => gc_life_time = duration(name, &value)?,
                "gc" => collects_garbage = boolean(name, &value)?,
                "one_phase" => allows_one_phase = boolean(name, &value)?,
                _ => return Err(format!("the parameter {name} is not known")),
            }
        }
        if gc_life_time < GC_LIFE_TIME_MIN {
            return Err(format!("gc_life_time is below {} s", GC_LIFE_TIME_MIN.as_secs()));
        }
        let tls = match (ca, cert, key) {
            (None, None, None) => None,
            (Some(ca), None, None) => Some(TlsFiles { ca, identity: None }),
            (Some(ca), Some(cert), Some(key)) => Some(TlsFiles { ca, identity: Some((cert, key)) }),
            (None, ..) => return Err("cert and key need ca, which says whom to trust".to_owned()),
            _ => return Err("cert and key go together".to_owned()),
        };
        Ok(Self { endpoints, tls, keyspace, gc_life_time, collects_garbage, allows_one_phase })
    }
}

/// A host with its port.
fn endpoint(text: &str) -> Result<String, String> {
    let text = text.trim();
    if text.is_empty() {
        return Err("an address of a PD is missing: tikv://host:port,host:port".to_owned());
    }
    let (host, port) = match text.rsplit_once(':') {
        // The last colon of a bare IPv6 address is none before a port.
        Some((host, port)) if !port.ends_with(']') => (host, port),
        _ => (text, PORT),
    };
    if host.is_empty() || (host.contains(':') && !host.starts_with('[')) || port.parse::<u16>().is_err() {
        return Err(format!("{text:?} is not host:port"));
    }
    Ok(format!("{host}:{port}"))
}

fn boolean(name: &str, text: &str) -> Result<bool, String> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        other => Err(format!("{name}={other} is neither true nor false")),
    }
}

/// A number of seconds, minutes or hours, as in `90s`, `10m`, `1h`.
fn duration(name: &str, text: &str) -> Result<Duration, String> {
    let wrong = || format!("{name}={text} is no duration like 90s, 10m or 1h");
    let unit_at = text.find(|character: char| !character.is_ascii_digit()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(unit_at);
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err(wrong()),
    };
    let number: u32 = number.parse().map_err(|_| wrong())?;
    Ok(Duration::from_secs(u64::from(number) * seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_the_pds_and_how_they_are_reached() {
        let target = Target::parse(
            "tikv://a:1,b,[::1]:3,[::1]?ca=/ca%20dir/ca.crt&cert=/c&key=/k&keyspace=mine&gc_life_time=90s&gc=true&one_phase=false",
        )
        .unwrap();
        assert_eq!(target.endpoints, ["a:1", "b:2379", "[::1]:3", "[::1]:2379"]);
        let identity = Some(("/c".into(), "/k".into()));
        assert_eq!(target.tls, Some(TlsFiles { ca: "/ca dir/ca.crt".into(), identity }));
        let tls = Target::parse("a:1?ca=/ca").unwrap().tls;
        assert_eq!(tls, Some(TlsFiles { ca: "/ca".into(), identity: None }), "servers need not ask for a certificate");
        assert_eq!(target.keyspace.as_deref(), Some("mine"));
        assert_eq!((target.gc_life_time, target.collects_garbage), (Duration::from_secs(90), true));
        assert!(!target.allows_one_phase);
    }

    #[test]
    fn what_is_not_said_has_a_default() {
        for text in ["tikv://a:1,b:2", "a:1,b:2", " tikv://a:1,b:2/ ", "tikv://a:1,b:2?ca=&keyspace="] {
            let expected = Target {
                endpoints: vec!["a:1".to_owned(), "b:2".to_owned()],
                tls: None,
                keyspace: None,
                gc_life_time: GC_LIFE_TIME,
                collects_garbage: false,
                allows_one_phase: true,
            };
            assert_eq!(Target::parse(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        for (text, name) in [
            ("", "missing"),
            ("tikv://", "missing"),
            ("tikv://a:1,", "missing"),
            ("postgres://a:1", "tikv://"),
            ("a:b", "host:port"),
            ("::1:2379", "host:port"),
            (":1", "host:port"),
            ("a:1?ca=/ca&cert=/c", "go together"),
            ("a:1?ca=/ca&key=/k", "go together"),
            ("a:1?cert=/c&key=/k", "need ca"),
            ("a:1?gc=maybe", "gc=maybe"),
            ("a:1?one_phase=", "one_phase"),
            ("a:1?gc_life_time=10", "gc_life_time"),
            ("a:1?gc_life_time=m", "gc_life_time"),
            ("a:1?gc_life_time=10d", "gc_life_time"),
            ("a:1?gc_life_time=5s", "gc_life_time"),
            ("a:1?password=x", "password"),
            ("a:1?x", "="),
        ] {
            let error = Target::parse(text).unwrap_err();
            assert!(error.contains(name), "{text}: {error}");
        }
    }
}
