//! Proves that the control plane works: with kubectl, as a user would, through the gateway.

use std::path::PathBuf;

use anyhow::{Context, bail};

use super::kubectl::Kubectl;
use super::{Plan, eventually};

/// Proves that writes, reads, controllers and deletions work, that the gateway uses all kube-apiservers, and that the tenant has a cluster of
/// its own.
pub(super) async fn check(plan: &Plan<'_>, tenant: PathBuf) -> anyhow::Result<()> {
    let kubectl = &plan.kubectl;
    let user = kubectl.run(&["auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"]).await?;
    if user != "admin" {
        bail!("the gateway's client is taken for {user:?} and not for \"admin\"");
    }
    let namespace = format!("kubewharf-check-{}", std::process::id());
    let namespace = namespace.as_str();
    kubectl.run(&["create", "namespace", namespace]).await?;
    kubectl.run(&["create", "configmap", "check", "--from-literal=answer=42", "-n", namespace]).await?;
    let value = kubectl.run(&["get", "configmap", "check", "-n", namespace, "-o", "jsonpath={.data.answer}"]).await?;
    if value != "42" {
        bail!("the config map reads {value:?} and not \"42\"");
    }
    println!("checked: a config map is written and read");
    let account = ["get", "serviceaccount", "default", "-n", namespace, "-o", "name"];
    eventually(async || kubectl.run(&account).await).await.context("the controllers made no service account")?;
    println!("checked: the controllers made the namespace's service account");
    kubectl.run(&["delete", "namespace", namespace, "--wait=true", "--timeout=60s"]).await?;
    println!("checked: the namespace and all in it are deleted");
    let url = plan.admin_url("metrics");
    let metrics = tokio::task::spawn_blocking(move || metrics(&url)).await.context("the gateway can't be asked")??;
    for url in plan.apiservers {
        let healthy = |line: &str| line.contains(&format!("endpoint=\"{url}\"")) && line.ends_with(" 0");
        if !metrics.lines().any(|line| line.starts_with("kubegateway_proxy_upstream_unhealthy{") && healthy(line)) {
            bail!("the gateway does not use {url}:\n{metrics}");
        }
    }
    println!("checked: the gateway uses both kube-apiservers");
    let tenant = Kubectl { kubeconfig: tenant, ..kubectl.clone() };
    tenant.run(&["delete", "configmap", "check", "--ignore-not-found"]).await?;
    tenant.run(&["create", "configmap", "check", "--from-literal=answer=43"]).await?;
    let namespaces = tenant.run(&["get", "namespaces", "-o", "name"]).await?;
    let own =
        ["default", "kube-node-lease", "kube-public", "kube-system"].map(|name| format!("namespace/{name}\n")).concat();
    if namespaces != own {
        bail!("the tenant sees other namespaces than its own: {namespaces}");
    }
    let value =
        kubectl.run(&["get", "configmaps", "-A", "-o", "jsonpath={.items[?(@.data.answer)].data.answer}"]).await?;
    if value != "43" {
        bail!("the tenant's config map reads {value:?} in the host and not \"43\"");
    }
    println!("checked: the tenant has namespaces and objects of its own");
    Ok(())
}

fn metrics(url: &str) -> anyhow::Result<String> {
    let config = ureq::Agent::config_builder().proxy(None).build();
    let answer = config.new_agent().get(url).call();
    answer.and_then(|mut answer| answer.body_mut().read_to_string()).with_context(|| format!("can't read {url}"))
}
