use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::RootCertStore;
use rustls::crypto::ring;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use super::*;

/// A certificate authority.
pub(super) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

pub(super) struct Identity {
    pub(super) pem: String,
    pub(super) der: Vec<u8>,
    pub(super) key: KeyPair,
}

impl Authority {
    pub(super) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("params");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        Self { issuer: CertifiedIssuer::self_signed(params, key).expect("a certificate") }
    }

    pub(super) fn pem(&self) -> String {
        self.issuer.pem()
    }

    pub(super) fn issue(&self, name: &str) -> Identity {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec![name.to_owned()]).expect("params");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        Identity { pem: certificate.pem(), der: certificate.der().to_vec(), key }
    }

    /// A server with a certificate of ours for `name`, which demands one of ours from its clients.
    pub(super) fn server(&self, name: &str) -> rustls::ServerConfig {
        let identity = self.issue(name);
        let provider = Arc::new(ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).expect("a root");
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().expect("a verifier");
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_client_cert_verifier(verifier)
            .with_single_cert(
                vec![identity.der.into()],
                PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(identity.key.serialize_der())),
            )
            .expect("a server");
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config
    }
}

pub(super) fn client(authority: &Authority, identity: &Identity, server_name: Option<&str>) -> ClientTls {
    ClientTls::new(&ClientTlsFiles {
        ca_pem: Some(authority.pem().as_bytes()),
        certificate_pem: Some(identity.pem.as_bytes()),
        key_pem: Some(identity.key.serialize_pem().as_bytes()),
        server_name,
        insecure: false,
    })
    .expect("usable")
}

#[tokio::test]
async fn new_credentials_hold_for_new_requests_and_old_streams_go_on() {
    let authority = Authority::new();
    let server = Server::with(Some(authority.server("kubernetes")), 100).await;
    let (first, second) = (authority.issue("first"), authority.issue("second"));
    let mut settings = settings(&[&server]);
    settings.tls = Some(client(&authority, &first, Some("kubernetes")));
    let upstream = Upstream::new(settings.clone());
    warm(&upstream).await;
    let endpoint = only(&upstream);
    let mut watch = headers(&endpoint, Class::Watch, "/watch/80").await;
    get(&endpoint, "/").await;
    assert_eq!(server.control.certificate.lock().as_ref(), Some(&first.der));

    settings.tls = Some(client(&authority, &second, Some("kubernetes")));
    upstream.update(settings.clone());
    for _ in 0..5 {
        get(&endpoint, "/").await;
        assert_eq!(server.control.certificate.lock().as_ref(), Some(&second.der));
    }
    // The same files once more are no change.
    let accepted = server.accepted();
    settings.tls = Some(client(&authority, &second, Some("kubernetes")));
    upstream.update(settings);
    get(&endpoint, "/").await;
    assert_eq!(server.accepted(), accepted);

    assert_eq!(read(&mut watch.body).await.expect("a whole body").len(), 240);
    drop(watch);
    until("the old connections are closed", || server.open() == 1).await;
    let status = &upstream.status()[0];
    assert_eq!((status.connections_lost, status.ejections), (0, 0));
}

#[tokio::test]
async fn a_server_is_believed_only_by_its_authority_and_its_name() {
    let (authority, other) = (Authority::new(), Authority::new());
    let identity = authority.issue("client");
    let server = Server::with(Some(authority.server("127.0.0.1")), 100).await;
    let mut settings = settings(&[&server]);
    let insecure = ClientTls::new(&ClientTlsFiles {
        certificate_pem: Some(identity.pem.as_bytes()),
        key_pem: Some(identity.key.serialize_pem().as_bytes()),
        server_name: Some("whatever"),
        insecure: true,
        ..ClientTlsFiles::default()
    })
    .expect("usable");
    let good = client(&authority, &identity, None);
    for (tls, trusted) in [
        (Some(good.clone()), true),
        (Some(client(&other, &identity, None)), false),
        (Some(client(&authority, &identity, Some("kubernetes"))), false),
        (Some(insecure), true),
        (Some(client(&authority, &other.issue("stranger"), None)), false),
        (None, false),
        (Some(good), true),
    ] {
        settings.tls = tls;
        upstream_says(&settings, trusted).await;
    }
}

async fn upstream_says(settings: &UpstreamSettings, trusted: bool) {
    let upstream = Upstream::new(settings.clone());
    let endpoint = only(&upstream);
    let sent = endpoint.send(Class::Short, request(&endpoint, Method::GET, "/"), true).await;
    let answered = match sent {
        Ok(exchange) => exchange.response.await.is_ok(),
        Err(error) => {
            assert!(error.to_string().contains(&**endpoint.url()), "{error}");
            false
        }
    };
    assert_eq!(answered, trusted, "{:?}", settings.tls);
}
