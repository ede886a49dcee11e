//! The certificates of the ports: files that are read again when they change, or some made here (`--auto-tls`).

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use kubewharf_foundation::listener::ListenUrl;
use kubewharf_foundation::tls::{ClientAuth, ReloadingTls, ServerTls, TlsVersion};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair};
use tracing::info;

use super::RunError;
use crate::config::{Config, TlsFiles};

/// Where certificates made here are kept, in the data directory; as in etcd.
const FOLDER: &str = "fixtures/client";
const CERTIFICATE: &str = "cert.pem";
const KEY: &str = "key.pem";

/// Loads the certificates that the settings ask for, if they do.
pub(super) fn load(config: &Config) -> Result<Option<Arc<ReloadingTls>>, RunError> {
    let settings = match (&config.client_tls, config.client_auto_tls) {
        (Some(files), false) => of_files(files),
        (files, true) => {
            let folder = config.data_dir().join(FOLDER);
            make(&folder, config)?;
            let mut settings = files.as_ref().map_or_else(|| ServerTls::new("", ""), of_files);
            settings.certificate = folder.join(CERTIFICATE);
            settings.key = folder.join(KEY);
            settings
        }
        (None, false) => return Ok(None),
    };
    Ok(Some(ReloadingTls::load(settings)?))
}

/// The server that files ask for.
pub(super) fn of_files(files: &TlsFiles) -> ServerTls {
    let mut settings = ServerTls::new(&files.cert_file, &files.key_file);
    settings.client_ca.clone_from(&files.trusted_ca_file);
    settings.client_crl.clone_from(&files.crl_file);
    settings.client_auth = if files.client_cert_auth { ClientAuth::Required } else { ClientAuth::None };
    settings.version_min = if files.only_tls13 { TlsVersion::V13 } else { TlsVersion::V12 };
    settings.version_max = if files.only_tls12 { TlsVersion::V12 } else { TlsVersion::V13 };
    settings.cipher_suites.clone_from(&files.cipher_suites);
    settings
}

/// Makes a certificate for the addresses that clients are served at, unless there is one.
fn make(folder: &Path, config: &Config) -> Result<(), RunError> {
    let (certificate_path, key_path) = (folder.join(CERTIFICATE), folder.join(KEY));
    if certificate_path.is_file() && key_path.is_file() {
        return Ok(());
    }
    let failed =
        |error: &dyn std::fmt::Display| RunError::AutoTls { path: folder.to_owned(), problem: error.to_string() };
    super::prepare_data_dir(&config.data_dir())?;
    fs::create_dir_all(folder).map_err(|error| failed(&error))?;
    let urls = config.listen_client_urls.iter().chain(&config.listen_client_http_urls);
    let mut hosts: Vec<String> = urls.map(host).collect();
    hosts.sort_unstable();
    hosts.dedup();
    let mut params = CertificateParams::new(hosts).map_err(|error| failed(&error))?;
    params.distinguished_name.push(DnType::OrganizationName, "kubewharf");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let now = std::time::SystemTime::now();
    let day = std::time::Duration::from_secs(24 * 60 * 60);
    params.not_before = now.into();
    params.not_after = (now + day * 365 * config.self_signed_cert_validity_years).into();
    let key = KeyPair::generate().map_err(|error| failed(&error))?;
    let certificate = params.self_signed(&key).map_err(|error| failed(&error))?;
    // The key first: a certificate without its key would be taken for a whole pair only with it.
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&key_path)
        .map_err(|error| failed(&error))?;
    file.write_all(key.serialize_pem().as_bytes()).map_err(|error| failed(&error))?;
    fs::write(&certificate_path, certificate.pem()).map_err(|error| failed(&error))?;
    info!(certificate = %certificate_path.display(), "made a certificate for --auto-tls");
    Ok(())
}

/// The host that a URL is reached by, as a certificate names it.
fn host(url: &ListenUrl) -> String {
    let text = url.to_string();
    match text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")) {
        Some(target) => {
            let host = target.rsplit_once(':').map_or(target, |(host, _)| host);
            host.trim_start_matches('[').trim_end_matches(']').to_owned()
        }
        None => "localhost".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_named_as_in_certificates() {
        for (url, expected) in [
            ("https://127.0.0.1:2379", "127.0.0.1"),
            ("https://[::1]:2379", "::1"),
            ("http://localhost:1", "localhost"),
            ("unixs:///run/x.sock", "localhost"),
        ] {
            assert_eq!(host(&url.parse().unwrap()), expected);
        }
    }
}
