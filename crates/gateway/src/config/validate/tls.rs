//! Certificates, keys and tokens, from the manifest or from files.

use std::sync::Arc;

use rustls_pki_types::{CertificateDer, ServerName};

use super::super::cluster::{
    BearerToken, ClientPem, ClientTrust, OwnRequests, Scheme, Serving, ServingPem, UpstreamClient,
};
use super::super::credentials;
use super::super::fingerprint::Fingerprint;
use super::super::manifest::{ClientConfig, SecureServing};
use super::super::problem::At;
use super::super::values::Data;
use super::Check;
use crate::authentication::tls::ServerTlsSettings;
use crate::authentication::x509::ClientTrustSettings;

/// Bytes, and the field that they come from.
struct Material<'f> {
    field: &'f str,
    bytes: Vec<u8>,
}

impl Check<'_, '_> {
    /// What a field holds, or the file of another field; `None` if neither is set, or on an error.
    fn material<'f>(&mut self, parent: &At<'_>, data: (&'f str, &Data), file: (&'f str, &str)) -> Option<Material<'f>> {
        if !data.1.is_empty() && !file.1.is_empty() {
            let remedy = format!("remove {} or {}", data.0, file.0);
            self.report.error(&parent.key(file.0), format!("is set, and so is {}", data.0), remedy);
        }
        if !data.1.is_empty() {
            return Some(Material { field: data.0, bytes: data.1.bytes().to_vec() });
        }
        if file.1.is_empty() {
            return None;
        }
        let (_, bytes) = self.read(file.1, &parent.key(file.0))?;
        Some(Material { field: file.0, bytes })
    }

    fn certificates(&mut self, parent: &At<'_>, material: &Material<'_>) -> Option<Vec<CertificateDer<'static>>> {
        let at = parent.key(material.field);
        match credentials::certificates(&material.bytes) {
            Ok(certificates) => {
                if let Some(problem) = credentials::time_problem(&certificates, self.surroundings.now) {
                    self.report.warn(&at, problem, "renew it");
                }
                Some(certificates)
            }
            Err(problem) => {
                self.report.error(&at, problem, "put PEM certificates there");
                None
            }
        }
    }

    fn certified_key(
        &mut self,
        parent: &At<'_>,
        certificate: Option<&Material<'_>>,
        key: Option<&Material<'_>>,
        fields: (&str, &str),
    ) -> Option<Arc<rustls::sign::CertifiedKey>> {
        let (certificate, key) = match (certificate, key) {
            (Some(certificate), Some(key)) => (certificate, key),
            (None, None) => return None,
            (Some(present), None) => {
                let problem = format!("is missing, though there is {}", present.field);
                self.report.error(&parent.key(fields.1), problem, "give the key that belongs to the certificate");
                return None;
            }
            (None, Some(present)) => {
                let problem = format!("is missing, though there is {}", present.field);
                self.report.error(&parent.key(fields.0), problem, "give the certificate that belongs to the key");
                return None;
            }
        };
        let chain = self.certificates(parent, certificate);
        let private = match credentials::key(&key.bytes) {
            Ok(private) => private,
            Err(problem) => {
                self.report.error(&parent.key(key.field), problem, "put an unencrypted PEM private key there");
                return None;
            }
        };
        match credentials::certified_key(chain?, private) {
            Ok(certified) => Some(certified),
            Err(problem) => {
                self.report.error(&parent.key(certificate.field), problem, "give a certificate and its own key");
                None
            }
        }
    }

    pub(super) fn serving(&mut self, serving: &SecureServing, spec: &At<'_>) -> Serving {
        let at = spec.key("secureServing");
        let certificate = self.material(&at, ("certData", &serving.cert_data), ("certFile", &serving.cert_file));
        let key = self.material(&at, ("keyData", &serving.key_data), ("keyFile", &serving.key_file));
        let client_ca =
            self.material(&at, ("clientCAData", &serving.client_ca_data), ("clientCAFile", &serving.client_ca_file));
        let revocations = self.material(&at, ("", &Data::default()), ("crlFile", &serving.crl_file));
        let mut fingerprint = Fingerprint::new();
        for material in [&certificate, &key, &client_ca, &revocations] {
            fingerprint = fingerprint.with(&material.as_ref().map(|material| &material.bytes));
        }
        let certified = self.certified_key(&at, certificate.as_ref(), key.as_ref(), ("certData", "keyData"));
        let client_trust = match &client_ca {
            Some(client_ca) => self.client_trust(&at, client_ca, revocations.as_ref()).map(Arc::new),
            None => {
                if revocations.is_some() {
                    let remedy = "set clientCAData or clientCAFile: the gateway's own client CA has a list of its own";
                    self.report.error(&at.key("crlFile"), "revokes certificates of no client CA", remedy);
                }
                None
            }
        };
        let pem = ServingPem {
            certificate: certificate
                .zip(key)
                .map(|(certificate, key)| ServerTlsSettings { certificate: certificate.bytes, key: key.bytes }),
            client_trust: client_ca.map(|authorities| ClientTrustSettings {
                authorities: authorities.bytes,
                revocations: revocations.map(|revocations| revocations.bytes),
            }),
        };
        Serving { certificate: certified, client_trust, pem, fingerprint: fingerprint.digest() }
    }

    fn client_trust(&mut self, at: &At<'_>, ca: &Material<'_>, crl: Option<&Material<'_>>) -> Option<ClientTrust> {
        let certificates = self.certificates(at, ca)?;
        let roots = match credentials::roots(&certificates) {
            Ok(roots) => roots,
            Err(problem) => {
                self.report.error(&at.key(ca.field), problem, "put CA certificates there");
                return None;
            }
        };
        let revocations = match crl.map(|crl| credentials::revocations(&crl.bytes)).transpose() {
            Ok(revocations) => revocations.unwrap_or_default(),
            Err(problem) => {
                self.report.error(&at.key("crlFile"), problem, "put PEM or DER revocation lists there");
                return None;
            }
        };
        let fingerprint = Fingerprint::of(&(&ca.bytes, crl.map(|crl| &crl.bytes)));
        Some(ClientTrust { roots, certificates, revocations, fingerprint })
    }

    pub(super) fn client(&mut self, client: &ClientConfig, cluster: &str, spec: &At<'_>) -> UpstreamClient {
        let at = spec.key("clientConfig");
        let certificate = self.material(&at, ("certData", &client.cert_data), ("certFile", &client.cert_file));
        let key = self.material(&at, ("keyData", &client.key_data), ("keyFile", &client.key_file));
        let ca = self.material(&at, ("caData", &client.ca_data), ("caFile", &client.ca_file));
        let token = self.material(&at, ("bearerToken", &client.bearer_token), ("tokenFile", &client.token_file));
        let server_name_text = if client.server_name.is_empty() { cluster } else { &client.server_name };
        let tls_fingerprint = Fingerprint::of(&(
            client.insecure,
            server_name_text,
            [&certificate, &key, &ca].map(|material| material.as_ref().map(|material| &material.bytes)),
        ));
        let own_requests = self.own_requests(client, &at);
        let fingerprint = Fingerprint::of(&(
            tls_fingerprint,
            token.as_ref().map(|token| &token.bytes),
            (client.qps, client.burst, client.qps_divisor),
        ));
        let bytes =
            |material: &Option<Material<'_>>| material.as_ref().map(|material| material.bytes.as_slice().into());
        let pem = ClientPem { ca: bytes(&ca), certificate: bytes(&certificate), key: bytes(&key) };
        let roots = ca.and_then(|ca| {
            let certificates = self.certificates(&at, &ca)?;
            let roots = credentials::roots(&certificates);
            roots.map_err(|problem| self.report.error(&at.key(ca.field), problem, "put CA certificates there")).ok()
        });
        let server_name = ServerName::try_from(server_name_text.to_owned()).unwrap_or_else(|_| {
            if !client.server_name.is_empty() {
                let problem = format!("{server_name_text:?} is neither a DNS name nor an IP address");
                self.report.error(&at.key("serverName"), problem, "write a name that is in the servers' certificates");
            }
            ServerName::try_from("invalid.").expect("this is a DNS name")
        });
        UpstreamClient {
            insecure: client.insecure,
            roots: roots.filter(|_| !client.insecure),
            certificate: self.certified_key(&at, certificate.as_ref(), key.as_ref(), ("certData", "keyData")),
            pem,
            token: token.and_then(|token| self.token(&at, &token)),
            server_name,
            own_requests,
            tls_fingerprint,
            fingerprint,
        }
    }

    /// What is missing for servers that are spoken to in this way; `None` if that is not known.
    pub(super) fn client_completeness(&mut self, client: &ClientConfig, scheme: Option<Scheme>, at: &At<'_>) {
        let has = |data: &Data, file: &str| !data.is_empty() || !file.is_empty();
        let has_ca = has(&client.ca_data, &client.ca_file);
        let has_token = has(&client.bearer_token, &client.token_file);
        let has_certificate = has(&client.cert_data, &client.cert_file) || has(&client.key_data, &client.key_file);
        match scheme {
            Some(Scheme::Https) => {
                if !has_ca && !client.insecure {
                    let remedy = "give the CA of the servers' certificates, or caFile; for tests only, insecure: true";
                    self.report.error(&at.key("caData"), "is missing", remedy);
                }
                if !has_token && !has_certificate {
                    let remedy = "give certData and keyData, or bearerToken, or files of these";
                    self.report.error(at, "has no credential, but the gateway needs one to act for its users", remedy);
                }
            }
            Some(Scheme::Http) if has_token || has_certificate => {
                let problem = "has a credential, but the servers are spoken to in clear text";
                self.report.warn(
                    at,
                    problem,
                    "use https:// endpoints: a token can be read on the way, a certificate is not used",
                );
            }
            _ => {}
        }
        if client.insecure {
            let problem = if has_ca { "is set: the CA is not used" } else { "is set" };
            let remedy = "remove it: whoever answers at an endpoint gets the gateway's token and its users' requests";
            self.report.warn(&at.key("insecure"), problem, remedy);
        }
    }

    fn token(&mut self, at: &At<'_>, token: &Material<'_>) -> Option<BearerToken> {
        let bearer = std::str::from_utf8(&token.bytes).ok().and_then(|text| BearerToken::new(text.trim()));
        if bearer.is_none() {
            let problem = "is no token: it is empty, or has spaces or characters that no header can have";
            self.report.error(&at.key(token.field), problem, "put the token there, and nothing else");
        }
        bearer
    }

    fn own_requests(&mut self, client: &ClientConfig, at: &At<'_>) -> Option<OwnRequests> {
        for (field, value) in [("qps", client.qps), ("burst", client.burst), ("qpsDivisor", client.qps_divisor)] {
            if value < 0 {
                self.report.error(&at.key(field), format!("{value} is negative"), "write 0 for no limit");
            }
        }
        if client.qps <= 0 {
            if client.burst > 0 || client.qps_divisor > 0 {
                self.report.warn(
                    &at.key("qps"),
                    "is 0, so burst and qpsDivisor mean nothing",
                    "set qps, or remove them",
                );
            }
            return None;
        }
        if client.burst < client.qps {
            let problem = format!("{} is less than qps", client.burst);
            self.report.error(&at.key("burst"), problem, format!("write {} or more", client.qps));
        }
        Some(OwnRequests {
            per_second: f64::from(client.qps) / f64::from(client.qps_divisor.max(1)),
            burst: client.burst.unsigned_abs(),
        })
    }
}
