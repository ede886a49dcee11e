//! What the gateway is configured with, and what it may do in the cluster.
//!
//! Its folder is the user's to try things out in: the manifest is written once and then left alone. What changes from start to start, the
//! ports of the kube-apiservers, is in a file of its own.

use std::path::{Path, PathBuf};

use anyhow::Context;

use super::kubectl::{Kubectl, Url};
use super::pki::{Pair, Pki};

/// The name of the cluster.
pub(super) const CLUSTER: &str = "kubewharf";
/// As whom the gateway is known to kube-apiservers.
pub(super) const USER: &str = "kubegateway";
/// The group of that user, which has the rights of [`RIGHTS`].
pub(super) const GROUP: &str = "kubewharf:gateways";

/// To ask who somebody is and what they may do, and to act as them. Alone, the gateway may do nothing.
const RIGHTS: &str = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: "kubewharf:gateway"}
rules:
- {apiGroups: [authentication.k8s.io], resources: [tokenreviews], verbs: [create]}
- {apiGroups: [authorization.k8s.io], resources: [subjectaccessreviews], verbs: [create]}
- {apiGroups: [""], resources: [users, groups, serviceaccounts], verbs: [impersonate]}
- {apiGroups: [authentication.k8s.io], resources: ["*"], verbs: [impersonate]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: "kubewharf:gateway"}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: "kubewharf:gateway"}
subjects:
- {apiGroup: rbac.authorization.k8s.io, kind: Group, name: "kubewharf:gateways"}
"#;

/// Writes the configuration into `folder`, and returns where it is.
pub(super) fn configure(folder: &Path, pki: &Pki, apiservers: &[Url]) -> anyhow::Result<PathBuf> {
    let folder = folder.join("gateway");
    std::fs::create_dir_all(&folder).with_context(|| format!("can't make {}", folder.display()))?;
    let write =
        |path: &Path, text: &str| std::fs::write(path, text).with_context(|| format!("can't write {}", path.display()));
    let endpoints = folder.join("kube-apiservers");
    write(&endpoints, &apiservers.iter().map(|url| format!("- {url}\n")).collect::<String>())?;
    let manifest = folder.join("cluster.yaml");
    if !manifest.exists() {
        write(&manifest, &manifest_of(pki, &endpoints))?;
    }
    Ok(folder)
}

fn manifest_of(pki: &Pki, endpoints: &Path) -> String {
    // JSON's texts are YAML's, whatever is in a path.
    let quoted = |path: &Path| format!("{:?}", path.display().to_string());
    let pair =
        |pair: &Pair| format!("    certFile: {}\n    keyFile: {}\n", quoted(&pair.certificate), quoted(&pair.key));
    let authority = quoted(&pki.authority);
    format!(
        "# Read again when it changes. `kubewharf up` writes it only if it is not there.\n\
         apiVersion: proxy.kubegateway.io/v1alpha1\n\
         kind: UpstreamCluster\n\
         metadata:\n  name: {CLUSTER}\n\
         spec:\n  \
           # Written at each start: the ports are new ones.\n  \
           discovery:\n    file:\n      path: {endpoints}\n  \
           clientConfig:\n    caFile: {authority}\n{client}    serverName: kubernetes\n  \
           secureServing:\n    clientCAFile: {authority}\n{server}    \
             serverNames: [localhost, kubernetes, kubernetes.default, kubernetes.default.svc]\n  \
           logging:\n    mode: 'on'\n  \
           dispatchPolicies:\n  \
           - rules:\n    \
             - {{verbs: ['*'], apiGroups: ['*'], resources: ['*']}}\n    \
             - {{verbs: ['*'], nonResourceURLs: ['*']}}\n",
        endpoints = quoted(endpoints),
        client = pair(&pki.gateway_client),
        server = pair(&pki.gateway),
    )
}

/// Gives the gateway its rights, and waits until each kube-apiserver knows of them.
pub(super) async fn authorize(kubectl: &Kubectl, apiservers: &[Url]) -> anyhow::Result<()> {
    let Some(first) = apiservers.first() else { return Ok(()) };
    let server = format!("--server={first}");
    let apply = ["apply", "--server-side", "--force-conflicts", "--validate=false", "-f", "-", &server];
    kubectl.run_with_input(&apply, RIGHTS).await.context("the gateway can't be given its rights")?;
    for url in apiservers {
        let server = format!("--server={url}");
        let (user, group) = (format!("--as={USER}"), format!("--as-group={GROUP}"));
        let may = ["auth", "can-i", "impersonate", "groups", &user, &group, &server];
        super::eventually(async || {
            kubectl.run(&may).await.with_context(|| format!("{url} does not know of the gateway's rights"))
        })
        .await?;
    }
    Ok(())
}
