use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::client::Resumption;
use rustls::{ClientConfig, HandshakeKind, RootCertStore};
use rustls_pki_types::{ServerName, UnixTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::authentication::x509::{ClientCertificate, ClientTrustSettings};

struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

fn authority() -> Authority {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let pem = params.self_signed(&key).expect("a CA").pem();
    Authority { pem, issuer: Issuer::new(params, key) }
}

impl Authority {
    /// Certificate and key, as PEM.
    fn issue(&self, name: &str) -> (String, String) {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        (params.signed_by(&key, &self.issuer).expect("a certificate").pem(), key.serialize_pem())
    }

    fn trust(&self) -> Arc<ClientTrust> {
        let settings = ClientTrustSettings { authorities: self.pem.clone().into_bytes(), revocations: None };
        ClientTrust::new(settings, UnixTime::now()).expect("trust")
    }
}

fn settings(authority: &Authority) -> ServerTlsSettings {
    let (certificate, key) = authority.issue("server");
    ServerTlsSettings { certificate: certificate.into_bytes(), key: key.into_bytes() }
}

fn client(server: &Authority, identity: Option<(String, String)>) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(server.pem.as_bytes()).expect("PEM")).expect("a CA");
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).expect("PEM")];
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("PEM");
            builder.with_client_auth_cert(chain, key).expect("a pair")
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = Resumption::in_memory_sessions(8);
    config
}

/// What the server saw: the kind of handshake, and the user of the certificate.
async fn connect(server: &ServerTls, client: &Arc<ClientConfig>) -> Result<(HandshakeKind, Option<String>), String> {
    let (near, far) = tokio::io::duplex(64 << 10);
    let acceptor = TlsAcceptor::from(server.config().clone());
    let serve = async {
        let mut stream = acceptor.accept(far).await.map_err(|error| error.to_string())?;
        let connection = stream.get_ref().1;
        assert_eq!(connection.alpn_protocol(), Some(&b"h2"[..]));
        let kind = connection.handshake_kind().expect("done");
        let trust = server.trust().expect("these tests have one");
        let certificate = ClientCertificate::of_connection(connection, Some(trust), UnixTime::now());
        let user = certificate.and_then(|certificate| certificate.user(trust, UnixTime::now()).ok().flatten());
        stream.write_all(b"hello").await.map_err(|error| error.to_string())?;
        stream.shutdown().await.map_err(|error| error.to_string())?;
        Ok((kind, user.map(|user| user.name.clone())))
    };
    let ask = async {
        let name = ServerName::try_from("localhost").expect("a name");
        let connector = TlsConnector::from(client.clone());
        if let Ok(mut stream) = connector.connect(name, near).await {
            // Tickets come with the first data.
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
    };
    let both = async { tokio::join!(serve, ask).0 };
    tokio::time::timeout(Duration::from_secs(10), both).await.expect("no hang")
}

#[tokio::test]
async fn clients_may_show_a_certificate_and_only_a_good_one() {
    let (servers, clients, strangers) = (authority(), authority(), authority());
    let server = ServerTls::new(settings(&servers), Some(clients.trust())).expect("a server");
    let without = Arc::new(client(&servers, None));
    assert_eq!(connect(&server, &without).await, Ok((HandshakeKind::Full, None)));
    let jane = Arc::new(client(&servers, Some(clients.issue("jane"))));
    assert_eq!(connect(&server, &jane).await, Ok((HandshakeKind::Full, Some("jane".into()))));
    let stranger = Arc::new(client(&servers, Some(strangers.issue("jane"))));
    connect(&server, &stranger).await.expect_err("of an unknown authority");
}

#[tokio::test]
async fn a_session_is_resumed_where_it_began_and_nowhere_else() {
    let (servers, clients) = (authority(), authority());
    let (here_settings, trust) = (settings(&servers), clients.trust());
    let here = ServerTls::new(here_settings.clone(), Some(trust.clone())).expect("a server");
    let jane = Arc::new(client(&servers, Some(clients.issue("jane"))));
    connect(&here, &jane).await.expect("connected");
    let resumed = connect(&here, &jane).await;
    assert_eq!(resumed, Ok((HandshakeKind::Resumed, Some("jane".into()))), "the certificate is remembered");

    let unchanged = here.update(here_settings.clone(), Some(trust.clone())).expect("a server");
    assert!(Arc::ptr_eq(&here, &unchanged));
    let there = ServerTls::new(here_settings.clone(), Some(trust)).expect("a server");
    assert_eq!(connect(&there, &jane).await.expect("connected").0, HandshakeKind::Full);
    let changed = here.update(here_settings, Some(clients.trust())).expect("a server");
    assert_eq!(connect(&changed, &jane).await.expect("connected").0, HandshakeKind::Full);
}

#[test]
fn certificates_and_keys_that_can_not_be_used_are_named() {
    let servers = authority();
    let good = settings(&servers);
    let error = |certificate: &[u8], key: &[u8]| {
        let settings = ServerTlsSettings { certificate: certificate.to_vec(), key: key.to_vec() };
        ServerTls::new(settings, None).expect_err("unusable").to_string()
    };
    assert!(error(b"", &good.key).contains("server certificate: there is none"));
    assert!(error(&good.certificate, b"").contains("server key"));
    assert!(error(&good.certificate, &settings(&servers).key).contains("server certificate and key"));
    assert!(!format!("{good:?}").contains("PRIVATE"));
}
