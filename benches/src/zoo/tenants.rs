//! Makes tenants, as a program that offers them would: an object at the kube-apiserver, then a certificate from KubeZoo.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream;
use h2::RecvStream;
use http::{Method, StatusCode};
use kubewharf_zoo::admin::{CertificateAnswer, CertificateRequest, certificate_path};
use kubewharf_zoo::certificates;
use kubewharf_zoo::names::Names;
use kubewharf_zoo::tenant::{FINALIZER, FIRST_NAMESPACES, GROUP, TENANT_LABEL, TENANTS_PATH};
use rustls::ClientConfig;
use serde_json::{Value, json};

use super::cluster::{Cluster, WITHIN, Zoo};
use crate::https::{Ask, Connection, JSON, Target};
use crate::tls;

/// `Tenant` objects that are made at a time when many are.
const MADE_AT_ONCE: usize = 32;
const LIFETIME_SECONDS: u64 = 12 * 3600;
/// Long enough that no watch of this program ends by itself.
const WATCH_SECONDS: u32 = 6 * 3600;

/// A tenant, with the credential of its administrator.
pub struct Tenant {
    /// What its names are upstream.
    pub names: Names,
    /// Where it connects.
    pub target: Target,
}

impl Tenant {
    /// Makes one, with a credential.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn make(cluster: &Cluster, name: &str) -> Result<Self> {
        let names = make(&cluster.admin, name).await?;
        let config = credential(&cluster.zoo, name).await?;
        Ok(Self { names, target: cluster.zoo.target(config) })
    }
}

/// Makes a `Tenant` object.
///
/// # Errors
/// When the kube-apiserver refuses.
pub async fn make(admin: &Connection, name: &str) -> Result<Names> {
    let object = json!({
        "apiVersion": format!("{GROUP}/v1"), "kind": "Tenant",
        "metadata": {"name": name, "finalizers": [FINALIZER]}, "spec": {},
    });
    let made = super::cluster::create(admin, TENANTS_PATH, &object).await?;
    Ok(Names::of_uid(made["metadata"]["uid"].as_str().context("an object without a UID")?))
}

/// What the administrator of a tenant connects with: a new key, and a certificate of it.
///
/// # Errors
/// When KubeZoo signs none.
pub async fn credential(zoo: &Zoo, tenant: &str) -> Result<Arc<ClientConfig>> {
    let (key, request) = certificates::request()?;
    let request = CertificateRequest {
        request,
        user: "admin".to_owned(),
        groups: vec!["system:masters".to_owned()],
        seconds: LIFETIME_SECONDS,
    };
    let path = certificate_path(tenant);
    let ask = Ask::with(Method::POST, &path, JSON, serde_json::to_vec(&request)?.into());
    let answer = zoo.admin()?.expect(StatusCode::CREATED, &ask).await?;
    let answer: CertificateAnswer = serde_json::from_slice(&answer)?;
    tls::client_of(&answer.certificate, &key, &answer.authorities)
}

/// Makes so many `Tenant` objects as fast as the kube-apiserver takes them, and waits until all of their namespaces are there. Names begin
/// with `prefix`. `progress` gets how many there are, now and then.
///
/// # Errors
/// When one is refused, or namespaces do not come.
pub async fn make_many(cluster: &Cluster, prefix: &str, count: usize, progress: impl Fn(usize)) -> Result<()> {
    let mut arrivals = Arrivals::begin(&cluster.admin).await?;
    let mut made = stream::iter(0..count)
        .map(|number| async move { make(&cluster.admin, &format!("{prefix}{number}")).await })
        .buffer_unordered(MADE_AT_ONCE);
    let all_made = async {
        while let Some(names) = made.next().await {
            names?;
        }
        anyhow::Ok(())
    };
    let all_there = arrivals.wait(count * FIRST_NAMESPACES.len(), |namespaces| {
        progress(namespaces / FIRST_NAMESPACES.len());
    });
    futures_util::future::try_join(all_made, all_there).await.map(drop)
}

/// Counts the namespaces of tenants as they are made.
struct Arrivals {
    stream: RecvStream,
    /// The beginning of an event whose end is still to come.
    part: Vec<u8>,
}

impl Arrivals {
    async fn begin(admin: &Connection) -> Result<Self> {
        let version = version(admin, "/api/v1/namespaces").await?;
        let label = TENANT_LABEL.replace('/', "%2F");
        let target = format!(
            "/api/v1/namespaces?watch=1&labelSelector={label}&resourceVersion={version}&timeoutSeconds={WATCH_SECONDS}"
        );
        Ok(Self { stream: admin.watch(&target).await?, part: Vec::new() })
    }

    async fn wait(&mut self, wanted: usize, progress: impl Fn(usize)) -> Result<()> {
        let mut there = 0;
        let mut told = Instant::now();
        while there < wanted {
            let piece = tokio::time::timeout(WITHIN, self.stream.data()).await;
            let piece = piece.with_context(|| format!("only {there} namespaces of {wanted} came"))?;
            let piece = piece.context("the watch of namespaces ended")??;
            self.stream.flow_control().release_capacity(piece.len())?;
            each_line(&mut self.part, &piece, |line| {
                ensure!(!line.starts_with(br#"{"type":"ERROR""#), "{}", String::from_utf8_lossy(line));
                there += usize::from(line.starts_with(br#"{"type":"ADDED""#));
                Ok(())
            })?;
            if told.elapsed().as_secs() >= 10 {
                told = Instant::now();
                progress(there);
            }
        }
        Ok(())
    }
}

/// The version that a resource has now.
///
/// # Errors
/// When the server does not tell.
pub async fn version(connection: &Connection, path: &str) -> Result<String> {
    let answer: Value = serde_json::from_slice(&connection.get_bytes(&format!("{path}?limit=1")).await?)?;
    Ok(answer["metadata"]["resourceVersion"].as_str().context("a list without a version")?.to_owned())
}

/// Hands on the whole lines of what has come; `part` keeps the beginning of the next one.
///
/// # Errors
/// When `each` fails.
pub fn each_line(part: &mut Vec<u8>, piece: &Bytes, mut each: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let mut rest = &piece[..];
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        let (line, after) = (&rest[..end], &rest[end + 1..]);
        if part.is_empty() {
            each(line)?;
        } else {
            part.extend_from_slice(line);
            each(part)?;
            part.clear();
        }
        rest = after;
    }
    part.extend_from_slice(rest);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_the_same_in_pieces_of_any_size() {
        let text = Bytes::from_static(b"one\ntwo\n\nthree\n");
        for size in 1..=text.len() {
            let (mut part, mut lines) = (Vec::new(), Vec::new());
            for start in (0..text.len()).step_by(size) {
                each_line(&mut part, &text.slice(start..text.len().min(start + size)), |line| {
                    lines.push(String::from_utf8_lossy(line).into_owned());
                    Ok(())
                })
                .unwrap();
            }
            assert_eq!(lines, ["one", "two", "", "three"], "{size}");
        }
    }
}
