//! Real handshakes over an in-memory pipe, with files that change.

use super::*;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType, IsCa, Issuer,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
};
use rustls::{ClientConfig, ClientConnection};
use rustls_pki_types::ServerName;

/// A CA that lives in a directory.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

struct Issued {
    pem: String,
    key: String,
    der: CertificateDer<'static>,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    fn issue(&self, name: &str, serial: u64) -> Issued {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.subject_alt_names.push(SanType::IpAddress([10, 0, 0, 7].into()));
        params.subject_alt_names.push(SanType::URI("spiffe://test/x".try_into().unwrap()));
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.distinguished_name.push(DnType::OrganizationName, "system:masters");
        params.serial_number = Some(SerialNumber::from(serial));
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Issued { pem: certificate.pem(), key: key.serialize_pem(), der: certificate.der().clone() }
    }

    fn revoke(&self, serial: u64) -> String {
        let day = |day| rcgen::date_time_ymd(2024, 1, day);
        let revoked = RevokedCertParams {
            serial_number: SerialNumber::from(serial),
            revocation_time: day(2),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: day(1),
            next_update: rcgen::date_time_ymd(2124, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}

struct Files {
    directory: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn server(&self, issued: &Issued) -> ServerTls {
        ServerTls::new(self.write("tls.crt", &issued.pem), self.write("tls.key", &issued.key))
    }
}

/// A client that trusts one CA and may have a certificate.
fn client(ca: &Authority, certificate: Option<&Issued>) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.pem.as_bytes()).unwrap()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match certificate {
        Some(issued) => {
            let key = PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).unwrap();
            builder.with_client_auth_cert(vec![issued.der.clone()], key).unwrap()
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

/// Shakes hands; returns the server's certificate and what the server knows of the client, or the server's error.
fn handshake(
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
) -> Result<(CertificateDer<'static>, Option<CertificateDer<'static>>), rustls::Error> {
    let mut client = ClientConnection::new(client, ServerName::try_from("localhost").unwrap()).unwrap();
    let mut server = rustls::ServerConnection::new(server).unwrap();
    while client.is_handshaking() || server.is_handshaking() || client.wants_write() {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        server.read_tls(&mut &wire[..]).unwrap();
        server.process_new_packets()?;
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        client.read_tls(&mut &wire[..]).unwrap();
        client.process_new_packets()?;
    }
    assert_eq!(server.alpn_protocol(), Some(&b"h2"[..]));
    let seen = client.peer_certificates().unwrap()[0].clone();
    Ok((seen, server.peer_certificates().map(|chain| chain[0].clone())))
}

#[test]
fn a_client_certificate_is_verified_and_its_names_are_read() {
    let ca = Authority::new("ca");
    let files = Files::new();
    let issued = ca.issue("server", 1);
    let mut settings = files.server(&issued);
    settings.client_ca = Some(files.write("ca.crt", &ca.pem));
    settings.client_auth = ClientAuth::Required;
    let tls = ReloadingTls::load(settings).unwrap();
    let alice = ca.issue("alice", 2);
    let (_, seen) = handshake(tls.current(), client(&ca, Some(&alice))).unwrap();
    let names = identity(&seen.unwrap()).unwrap();
    assert_eq!(names.common_name, "alice");
    assert_eq!(names.organizations, ["system:masters"]);
    assert_eq!(names.dns_names, ["localhost"]);
    assert_eq!(names.uris, ["spiffe://test/x"]);
    assert_eq!(names.addresses, [std::net::IpAddr::from([10, 0, 0, 7])]);
    handshake(tls.current(), client(&ca, None)).expect_err("no certificate");
    let stranger = Authority::new("other").issue("alice", 3);
    handshake(tls.current(), client(&ca, Some(&stranger))).expect_err("another CA");
}

#[test]
fn an_optional_certificate_may_be_missing_but_not_wrong() {
    let ca = Authority::new("ca");
    let files = Files::new();
    let mut settings = files.server(&ca.issue("server", 1));
    settings.client_ca = Some(files.write("ca.crt", &ca.pem));
    settings.client_auth = ClientAuth::Optional;
    let tls = ReloadingTls::load(settings).unwrap();
    assert_eq!(handshake(tls.current(), client(&ca, None)).unwrap().1, None);
    let stranger = Authority::new("other").issue("alice", 3);
    handshake(tls.current(), client(&ca, Some(&stranger))).expect_err("another CA");
}

#[test]
fn a_revoked_certificate_is_refused_once_the_list_is_there() {
    let ca = Authority::new("ca");
    let files = Files::new();
    let mut settings = files.server(&ca.issue("server", 1));
    settings.client_ca = Some(files.write("ca.crt", &ca.pem));
    settings.client_crl = Some(files.write("crl.pem", &ca.revoke(99)));
    settings.client_auth = ClientAuth::Required;
    let tls = ReloadingTls::load(settings).unwrap();
    let alice = client(&ca, Some(&ca.issue("alice", 7)));
    handshake(tls.current(), alice.clone()).unwrap();
    files.write("crl.pem", &ca.revoke(7));
    assert!(tls.reload().unwrap());
    let error = handshake(tls.current(), alice).expect_err("revoked");
    assert!(format!("{error:?}").contains("Revoked"), "{error:?}");
    let bob = client(&ca, Some(&ca.issue("bob", 8)));
    handshake(tls.current(), bob).unwrap();
}

#[test]
fn new_files_are_used_and_a_half_replaced_set_keeps_the_last_good_one() {
    let ca = Authority::new("ca");
    let files = Files::new();
    let (first, second) = (ca.issue("first", 1), ca.issue("second", 2));
    let tls = ReloadingTls::load(files.server(&first)).unwrap();
    let served = || handshake(tls.current(), client(&ca, None)).unwrap().0;
    assert!(!tls.reload().unwrap(), "nothing has changed");

    // The certificate is there before its key.
    files.write("tls.crt", &second.pem);
    let error = tls.reload().expect_err("the key is the old one").to_string();
    assert!(error.contains("tls.crt"), "{error}");
    assert!(!tls.reload().unwrap(), "complained about once");
    assert_eq!(served(), first.der);
    files.write("tls.key", &second.key);
    assert!(tls.reload().unwrap());
    assert_eq!(served(), second.der);

    files.write("tls.key", "nonsense");
    let error = tls.reload().expect_err("no key").to_string();
    assert!(error.contains("tls.key"), "{error}");
    std::fs::remove_file(files.directory.path().join("tls.key")).unwrap();
    tls.reload().expect_err("no file");
    assert!(!tls.reload().unwrap(), "complained about once");
    assert_eq!(served(), second.der);

    // The same files as before the trouble: still the same configuration's certificate.
    files.write("tls.key", &second.key);
    assert!(tls.reload().unwrap());
    assert_eq!(served(), second.der);
}

#[test]
fn settings_that_make_no_sense_are_refused_by_name() {
    let ca = Authority::new("ca");
    let files = Files::new();
    let good = files.server(&ca.issue("server", 1));
    let refused = |change: &dyn Fn(&mut ServerTls)| {
        let mut settings = good.clone();
        change(&mut settings);
        ReloadingTls::load(settings).expect_err("refused").to_string()
    };
    assert!(refused(&|it| it.client_auth = ClientAuth::Required).contains("client CA"));
    assert!(refused(&|it| it.cipher_suites = vec!["TLS_RSA_WITH_RC4".into()]).contains("TLS_RSA_WITH_RC4"));
    assert!(refused(&|it| (it.version_min, it.version_max) = (TlsVersion::V13, TlsVersion::V12)).contains("version"));
    assert!(refused(&|it| it.certificate = "/does/not/exist".into()).contains("/does/not/exist"));
    let empty = files.write("empty.crt", "");
    assert!(refused(&|it| it.certificate = empty.clone()).contains("empty.crt"));

    let mut settings = good.clone();
    settings.cipher_suites = vec!["TLS_AES_128_GCM_SHA256".into()];
    settings.version_min = TlsVersion::V13;
    let tls = ReloadingTls::load(settings).unwrap();
    handshake(tls.current(), client(&ca, None)).unwrap();
}

#[test]
fn cipher_suites_are_those_of_etcd_and_unsupported_ones_are_left_out_while_another_is_left() {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let cbc = "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA";
    let wanted = names(&["TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305", cbc, "TLS_RSA_WITH_AES_256_GCM_SHA384"]);
    assert_eq!(unsupported_cipher_suites(&wanted).unwrap(), [cbc, "TLS_RSA_WITH_AES_256_GCM_SHA384"]);
    let unknown = unsupported_cipher_suites(&names(&["TLS_NOPE"])).unwrap_err().to_string();
    assert!(unknown.contains("\"TLS_NOPE\" is unknown"), "{unknown}");

    let ca = Authority::new("ca");
    let files = Files::new();
    let good = files.server(&ca.issue("server", 1));
    let suites = |cipher_suites: &[String], version_max| {
        let settings = ServerTls { cipher_suites: cipher_suites.to_vec(), version_max, ..good.clone() };
        let config = ReloadingTls::load(settings)?.current();
        handshake(config.clone(), client(&ca, None)).unwrap();
        Ok::<_, Error>(config.crypto_provider().cipher_suites.iter().map(|it| format!("{:?}", it.suite())).collect())
    };
    let only_v12: Vec<String> = suites(&wanted, TlsVersion::V12).unwrap();
    assert_eq!(only_v12, ["TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256"]);
    let both = suites(&wanted, TlsVersion::V13).unwrap();
    assert_eq!(both.len(), 1 + 3, "TLS 1.3 has all of its own: {both:?}");
    assert_eq!(suites(&names(&[cbc]), TlsVersion::V13).unwrap().len(), 3);
    let none = suites(&names(&[cbc]), TlsVersion::V12).unwrap_err().to_string();
    assert!(none.contains(cbc), "{none}");
}

#[tokio::test]
async fn a_hangup_reloads_at_once() {
    let ca = Authority::new("ca");
    let files = Files::new();
    let tls = ReloadingTls::load(files.server(&ca.issue("first", 1))).unwrap();
    let before = tls.current();
    let watch = tokio::spawn(tls.clone().watch());
    tokio::time::sleep(Duration::from_millis(50)).await;
    files.server(&ca.issue("second", 2));
    let pid = std::process::id().to_string();
    assert!(std::process::Command::new("kill").args(["-HUP", &pid]).status().unwrap().success());
    for _ in 0..200 {
        if !Arc::ptr_eq(&before, &tls.current()) {
            watch.abort();
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not reloaded within two seconds");
}
