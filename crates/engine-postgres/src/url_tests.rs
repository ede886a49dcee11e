//! Tests of [`super`].

use tokio_postgres::config::Host;

use super::*;

fn parse(text: &str) -> Result<Target, String> {
    Target::parse(text, Environment { password: None, passfile: None })
}

fn tcp(name: &str) -> Vec<Host> {
    vec![Host::Tcp(name.to_owned())]
}

#[test]
fn a_url_and_its_keywords_mean_the_same() {
    let url = "postgresql://u:p%40ss@a:1,b:2/db?sslmode=verify-full&sslrootcert=/ca%20dir/ca.crt&connect_timeout=3\
               &application_name=x%26y&keepalives_idle=7&tcp_user_timeout=1500";
    let keywords = "host=a,b port=1,2 user = u password='p@ss' dbname=db sslmode=verify-full \
                    sslrootcert='/ca dir/ca.crt' connect_timeout=3 application_name=x&y keepalives_idle=7 \
                    tcp_user_timeout=1500";
    for text in [url, keywords] {
        let target = parse(text).unwrap();
        assert_eq!(target.hosts.len(), 2, "{text}");
        for (one, (name, port)) in target.hosts.iter().zip([("a", 1), ("b", 2)]) {
            assert_eq!((one.get_hosts(), one.get_ports()), (&tcp(name)[..], &[port][..]), "{text}");
            assert_eq!((one.get_user(), one.get_dbname()), (Some("u"), Some("db")));
            assert_eq!(one.get_password(), Some(&b"p@ss"[..]));
            assert_eq!(one.get_application_name(), Some("x&y"));
            assert_eq!(one.get_ssl_mode(), SslMode::Require);
            assert_eq!(one.get_target_session_attrs(), TargetSessionAttrs::ReadWrite);
            assert_eq!(one.get_keepalives_idle(), Duration::from_secs(7));
            assert_eq!(one.get_tcp_user_timeout(), Some(&Duration::from_millis(1500)));
        }
        assert_eq!(target.connect_timeout, Duration::from_secs(3));
        assert_eq!(target.tls.verify, Verify::ChainAndName);
        assert_eq!(target.tls.roots, Roots::File("/ca dir/ca.crt".into()));
        assert!(!target.is_pooled && target.passwords.is_none());
    }
}

#[test]
fn what_is_not_said_has_a_default() {
    let target = parse("postgres://h/d").unwrap();
    let one = &target.hosts[0];
    assert_eq!(one.get_ssl_mode(), SslMode::Prefer);
    assert_eq!(target.tls.verify, Verify::Nothing);
    assert_eq!((target.connect_timeout, one.get_keepalives_idle()), (CONNECT_TIMEOUT, KEEPALIVES_IDLE));
    assert_eq!(one.get_application_name(), Some("kubewharf"));
    assert!(parse("host=h pgbouncer=true").unwrap().is_pooled);
    let socket = parse("postgres://%2Frun%2Fpg/d").unwrap();
    assert_eq!(socket.hosts[0].get_hosts(), [Host::Unix("/run/pg".into())]);
}

#[test]
fn a_named_authority_counts_where_tls_is_required() {
    let verify = |text| parse(text).unwrap().tls.verify;
    assert_eq!(verify("host=h sslmode=require"), Verify::Nothing);
    assert_eq!(verify("host=h sslmode=require sslrootcert=/ca"), Verify::Chain);
    assert_eq!(verify("host=h sslmode=prefer sslrootcert=/ca"), Verify::Nothing);
    assert_eq!(verify("host=h sslmode=verify-ca"), Verify::Chain);
}

#[test]
fn the_text_comes_before_the_environment_and_that_before_the_file() {
    let environment =
        || Environment { password: Some("from environment".to_owned()), passfile: Some("/passes".into()) };
    let target = Target::parse("host=h password=own", environment()).unwrap();
    assert_eq!(target.hosts[0].get_password(), Some(&b"own"[..]));
    let target = Target::parse("host=h", environment()).unwrap();
    assert_eq!(target.hosts[0].get_password(), Some(&b"from environment"[..]));
    assert!(target.passwords.is_none());
    let target = Target::parse("host=h", Environment { password: None, passfile: Some("/passes".into()) }).unwrap();
    assert!(target.hosts[0].get_password().is_none() && target.passwords.is_some());
}

#[test]
fn what_is_not_understood_is_refused_by_name_and_without_the_password() {
    for (text, name) in [
        ("host=h password=hunter2 sslmode=maybe", "sslmode"),
        ("host=h password=hunter2 service=x", "service"),
        ("host=h password=hunter2 target_session_attrs=standby", "target_session_attrs"),
        ("host=h password=hunter2 pgbouncer=perhaps", "pgbouncer"),
        ("host=h password=hunter2 tcp_user_timeout=long", "tcp_user_timeout"),
        ("host=h password=hunter2 sslcert=/c", "sslkey"),
        ("host=h password=hunter2 connect_timeout=x", "connect_timeout"),
        ("host=h password=hunter2 gssencmode=require", "gssencmode"),
        ("password=hunter2", "host"),
        ("host=a,b,c port=1,2 password=hunter2", "ports"),
        ("host='h password=hunter2", "quoted"),
        ("postgres://u:hunter2@h/d?x", "="),
        ("hunter2", "="),
    ] {
        let error = parse(text).map(|_| ()).unwrap_err();
        assert!(error.contains(name) && !error.contains("hunter2"), "{text}: {error}");
    }
}
