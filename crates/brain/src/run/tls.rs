//! The certificates of the ports.

use kubewharf_grpc::TlsSource;

use super::RunError;
use crate::config::Config;

pub(super) fn source(config: &Config) -> Result<Option<TlsSource>, RunError> {
    match &config.client_tls {
        None => Ok(None),
        Some(_) => Err(RunError::Tls("TLS is not built yet".to_owned())),
    }
}
