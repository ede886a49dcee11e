//! Kubeconfig files: how to reach an apiserver and as whom. Reads the upstream's, writes tenants'.
//!
//! Invariant: what a kubeconfig asks for and this program can't do (a plugin that gets credentials, a proxy, no check of the server's
//! certificate) is an error that names the field, never ignored.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

/// Why a kubeconfig can't be used.
#[derive(Debug, thiserror::Error)]
#[error("kubeconfig {file}: {problem}")]
pub struct KubeconfigError {
    file: PathBuf,
    problem: String,
}

/// An apiserver, and as whom to ask it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kubeconfig {
    /// Its URL.
    pub server: String,
    /// Whose certificates it may have (PEM).
    pub authorities: Option<Vec<u8>>,
    /// The name that its certificate must have, if it is not that of the URL.
    pub server_name: Option<String>,
    /// The client's certificate and its key (PEM).
    pub certificate: Option<(Vec<u8>, Vec<u8>)>,
    /// The client's token.
    pub token: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    #[serde(default)]
    current_context: String,
    #[serde(default)]
    contexts: Vec<Context>,
    #[serde(default)]
    clusters: Vec<NamedCluster>,
    #[serde(default)]
    users: Vec<NamedUser>,
}

#[derive(Deserialize)]
struct Context {
    name: String,
    context: ContextOf,
}

#[derive(Deserialize)]
struct ContextOf {
    cluster: String,
    #[serde(default)]
    user: String,
}

#[derive(Deserialize)]
struct NamedCluster {
    name: String,
    cluster: Cluster,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
    tls_server_name: Option<String>,
    #[serde(default)]
    insecure_skip_tls_verify: bool,
    proxy_url: Option<String>,
}

#[derive(Deserialize)]
struct NamedUser {
    name: String,
    user: User,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
struct User {
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<PathBuf>,
    username: Option<String>,
    exec: Option<serde_json::Value>,
    auth_provider: Option<serde_json::Value>,
    #[serde(rename = "as")]
    impersonate: Option<String>,
}

impl Kubeconfig {
    /// Reads what the file's current context means. Files that it names are relative to its folder.
    ///
    /// # Errors
    /// When a file can't be read, or says what can't be done; names the field.
    pub fn read(file: &Path) -> Result<Self, KubeconfigError> {
        let wrong = |problem: String| KubeconfigError { file: file.to_owned(), problem };
        let text = std::fs::read_to_string(file).map_err(|error| wrong(error.to_string()))?;
        Self::parse(&text, file.parent().unwrap_or(Path::new("."))).map_err(wrong)
    }

    fn parse(text: &str, folder: &Path) -> Result<Self, String> {
        let parsed: File = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
        if parsed.current_context.is_empty() {
            return Err("there is no current-context".into());
        }
        let missing = |what: &str, name: &str| format!("there is no {what} {name:?}");
        let context = parsed.contexts.into_iter().find(|context| context.name == parsed.current_context);
        let context = context.ok_or_else(|| missing("context", &parsed.current_context))?.context;
        let cluster = parsed.clusters.into_iter().find(|cluster| cluster.name == context.cluster);
        let cluster = cluster.ok_or_else(|| missing("cluster", &context.cluster))?.cluster;
        let user = match parsed.users.into_iter().find(|user| user.name == context.user) {
            Some(user) => user.user,
            None if context.user.is_empty() => User::default(),
            None => return Err(missing("user", &context.user)),
        };
        if cluster.insecure_skip_tls_verify {
            return Err("insecure-skip-tls-verify is not supported: name the authority of the server".into());
        }
        let unsupported = [
            ("proxy-url", cluster.proxy_url.is_some()),
            ("username", user.username.is_some()),
            ("exec", user.exec.is_some()),
            ("auth-provider", user.auth_provider.is_some()),
            ("as", user.impersonate.is_some()),
        ];
        if let Some((field, _)) = unsupported.iter().find(|(_, set)| *set) {
            return Err(format!("{field} is not supported: use a client certificate or a token"));
        }
        let content = |data: Option<String>, name: Option<PathBuf>, field: &str| match (data, name) {
            (Some(data), _) => STANDARD.decode(data.trim()).map(Some).map_err(|error| format!("{field}-data: {error}")),
            (None, Some(name)) => {
                let path = folder.join(name);
                let content = std::fs::read(&path);
                content.map(Some).map_err(|error| format!("{field}: {}: {error}", path.display()))
            }
            (None, None) => Ok(None),
        };
        let authorities =
            content(cluster.certificate_authority_data, cluster.certificate_authority, "certificate-authority")?;
        let certificate = content(user.client_certificate_data, user.client_certificate, "client-certificate")?;
        let key = content(user.client_key_data, user.client_key, "client-key")?;
        let certificate = match (certificate, key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => return Err("client-certificate and client-key belong together".into()),
        };
        let token = match (user.token, user.token_file) {
            (Some(token), _) => Some(token),
            (None, Some(name)) => {
                let path = folder.join(name);
                let token = std::fs::read_to_string(&path);
                Some(token.map_err(|error| format!("tokenFile: {}: {error}", path.display()))?.trim().to_owned())
            }
            (None, None) => None,
        };
        Ok(Self { server: cluster.server, authorities, server_name: cluster.tls_server_name, certificate, token })
    }

    /// The file's text, with all of this in it. The context has the name of the cluster.
    #[must_use]
    pub fn to_yaml(&self, cluster: &str, user: &str) -> String {
        let data = |bytes: &[u8]| STANDARD.encode(bytes);
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        let mut yaml = format!("apiVersion: v1\nkind: Config\ncurrent-context: {}\nclusters:\n", quoted(cluster));
        yaml += &format!("- name: {}\n  cluster:\n    server: {}\n", quoted(cluster), quoted(&self.server));
        if let Some(authorities) = &self.authorities {
            yaml += &format!("    certificate-authority-data: {}\n", data(authorities));
        }
        if let Some(name) = &self.server_name {
            yaml += &format!("    tls-server-name: {}\n", quoted(name));
        }
        yaml += &format!("users:\n- name: {}\n  user:\n", quoted(user));
        if let Some((certificate, key)) = &self.certificate {
            yaml +=
                &format!("    client-certificate-data: {}\n    client-key-data: {}\n", data(certificate), data(key));
        }
        if let Some(token) = &self.token {
            yaml += &format!("    token: {}\n", quoted(token));
        }
        yaml += &format!(
            "contexts:\n- name: {0}\n  context:\n    cluster: {0}\n    user: {1}\n",
            quoted(cluster),
            quoted(user)
        );
        yaml
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let kubeconfig = Kubeconfig {
            server: "https://127.0.0.1:6443".into(),
            authorities: Some(b"authority".to_vec()),
            server_name: Some("kubernetes".into()),
            certificate: Some((b"certificate".to_vec(), b"key".to_vec())),
            token: Some("a:b#c".into()),
        };
        let yaml = kubeconfig.to_yaml("blue", "admin");
        assert_eq!(Kubeconfig::parse(&yaml, Path::new(".")), Ok(kubeconfig));
    }

    #[test]
    fn what_cannot_be_done_is_told() {
        let base = "current-context: a\ncontexts: [{name: a, context: {cluster: c, user: u}}]\n";
        let parse = |rest: &str| Kubeconfig::parse(&format!("{base}{rest}"), Path::new(".")).expect_err("it is wrong");
        assert_eq!(parse("clusters: []\n"), "there is no cluster \"c\"");
        let clusters = "clusters: [{name: c, cluster: {server: 'https://x'}}]\n";
        assert_eq!(parse(clusters), "there is no user \"u\"");
        let exec = format!("{clusters}users: [{{name: u, user: {{exec: {{command: x}}}}}}]\n");
        assert_eq!(parse(&exec), "exec is not supported: use a client certificate or a token");
    }
}
