//! What tenants' pods may be, as admission policies of the apiserver behind.
//!
//! Pods are made by controllers of the host as well, from a tenant's deployments and jobs, past zoo. So the apiserver itself enforces what keeps
//! them off the host: the baseline of the Pod Security Standards (Kubernetes' documentation, "Pod Security Standards"), and that nobody puts a
//! pod on a node but the scheduler. It enforces too that a tenant does not tell, in a status, where traffic goes.
//!
//! Invariant: the policies hold in every namespace that carries a tenant's label, whoever writes.

use serde_json::{Value, json};

use super::TENANT_LABEL;
use crate::pods::AUDIENCE_START;

/// The version of the kinds of all policies.
pub(super) const API_VERSION: &str = "admissionregistration.k8s.io/v1";
/// The name of the policy for pods, and of its binding.
pub(super) const PODS: &str = "pods.tenancy.kubewharf.io";
/// The name of the policy for statuses, and of its binding.
pub(super) const STATUSES: &str = "statuses.tenancy.kubewharf.io";

/// The name of the policy for claims of volumes, and of its binding.
pub(super) const CLAIMS: &str = "claims.tenancy.kubewharf.io";

/// Capabilities that the baseline lets a container add.
const CAPABILITIES: &str = "['AUDIT_WRITE','CHOWN','DAC_OVERRIDE','FOWNER','FSETID','KILL','MKNOD','NET_BIND_SERVICE','SETFCAP','SETGID',\
     'SETPCAP','SETUID','SYS_CHROOT']";
/// Types of SELinux that the baseline lets a container have.
const SELINUX_TYPES: &str = "['','container_t','container_init_t','container_kvm_t','container_engine_t']";
/// Kernel parameters that the baseline lets a pod set.
const SYSCTLS: &str = "['kernel.shm_rmid_forced','net.ipv4.ip_local_port_range','net.ipv4.ip_unprivileged_port_start',\
     'net.ipv4.tcp_syncookies','net.ipv4.ping_group_range','net.ipv4.ip_local_reserved_ports','net.ipv4.tcp_keepalive_time',\
     'net.ipv4.tcp_fin_timeout','net.ipv4.tcp_keepalive_intvl','net.ipv4.tcp_keepalive_probes','net.ipv4.tcp_rmem','net.ipv4.tcp_wmem']";

/// The policies and their bindings, each with its path's last two parts.
pub(super) fn objects(storage_classes: &[String]) -> Vec<(String, Value)> {
    let mut objects = Vec::new();
    for (name, policy) in [(PODS, pods()), (STATUSES, statuses()), (CLAIMS, claims(storage_classes))] {
        objects.push((format!("validatingadmissionpolicies/{name}"), policy));
        objects.push((format!("validatingadmissionpolicybindings/{name}"), binding(name)));
    }
    objects
}

fn binding(name: &str) -> Value {
    json!({
        "apiVersion": API_VERSION, "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": { "name": name },
        "spec": {
            "policyName": name, "validationActions": ["Deny"],
            "matchResources": of_tenants(),
        },
    })
}

/// The audience of tokens for the API of the tenant that a namespace is of, in CEL.
pub(super) fn own_audience() -> String {
    format!("('{AUDIENCE_START}' + namespaceObject.metadata.labels['{TENANT_LABEL}'])")
}

/// What selects the tenants' namespaces.
pub(super) fn of_tenants() -> Value {
    json!({ "namespaceSelector": { "matchExpressions": [{ "key": TENANT_LABEL, "operator": "Exists" }] } })
}

fn policy(name: &str, rules: &Value, variables: &Value, validations: &Value) -> Value {
    json!({
        "apiVersion": API_VERSION, "kind": "ValidatingAdmissionPolicy",
        "metadata": { "name": name },
        "spec": {
            "failurePolicy": "Fail", "matchConstraints": { "resourceRules": rules },
            "variables": variables, "validations": validations,
        },
    })
}

fn pods() -> Value {
    let rules = json!([{
        "apiGroups": [""], "apiVersions": ["*"], "operations": ["CREATE", "UPDATE"],
        "resources": ["pods", "pods/ephemeralcontainers"],
    }]);
    let lists = ["containers", "initContainers", "ephemeralContainers"];
    let every = |condition: &str| {
        let each = lists.map(|list| format!("(!has(object.spec.{list}) || object.spec.{list}.all(c, {condition}))"));
        each.join(" && ")
    };
    let context = |condition: &str| every(&format!("!has(c.securityContext) || ({condition})"));
    let both = |field: &str, condition: &str| {
        let of_pod = format!(
            "(!has(object.spec.securityContext) || !has(object.spec.securityContext.{field}) || {})",
            condition.replace('$', &format!("object.spec.securityContext.{field}"))
        );
        let of_container = context(&format!(
            "!has(c.securityContext.{field}) || {}",
            condition.replace('$', &format!("c.securityContext.{field}"))
        ));
        format!("{of_pod} && {of_container}")
    };
    let hosts = ["livenessProbe", "readinessProbe", "startupProbe", "lifecycle.postStart", "lifecycle.preStop"]
        .map(|place| {
            let there = match place.split_once('.') {
                Some((outer, _)) => format!("(!has(c.{outer}) || !has(c.{place}) || "),
                None => format!("(!has(c.{place}) || "),
            };
            let none = |kind: &str| {
                format!("(!has(c.{place}.{kind}) || !has(c.{place}.{kind}.host) || c.{place}.{kind}.host == '')")
            };
            format!("{there}({} && {}))", none("httpGet"), none("tcpSocket"))
        })
        .join(" && ");
    let off = |field: &str| format!("(!has(object.spec.{field}) || !object.spec.{field})");
    let own = own_audience();
    let deny = |expression: String, message: &str| json!({ "expression": expression, "message": message });
    let validations = json!([
        deny(
            ["hostNetwork", "hostPID", "hostIPC"].map(off).join(" && "),
            "a tenant's pod can't share the host's network, processes or IPC"
        ),
        deny(
            "!has(object.spec.volumes) || object.spec.volumes.all(v, !has(v.hostPath))".to_owned(),
            "a tenant's pod can't mount the host's files",
        ),
        deny(
            "request.operation != 'CREATE' || !has(object.spec.nodeName) || object.spec.nodeName == ''".to_owned(),
            "a tenant's pod can't choose its node by name",
        ),
        deny(
            context("!has(c.securityContext.privileged) || !c.securityContext.privileged"),
            "a tenant's container can't be privileged",
        ),
        deny(
            context(&format!(
                "!has(c.securityContext.capabilities) || !has(c.securityContext.capabilities.add) || \
                 c.securityContext.capabilities.add.all(a, a in {CAPABILITIES})"
            )),
            "a tenant's container can't add this capability",
        ),
        deny(
            every("!has(c.ports) || c.ports.all(p, !has(p.hostPort) || p.hostPort == 0)"),
            "a tenant's container can't take a port of the host",
        ),
        deny(
            context("!has(c.securityContext.procMount) || c.securityContext.procMount == 'Default'"),
            "a tenant's container can't unmask /proc",
        ),
        deny(
            both("seLinuxOptions", &format!("((!has($.type) || $.type in {SELINUX_TYPES}) && (!has($.user) || $.user == '') && (!has($.role) || $.role == ''))")),
            "a tenant's pod can't choose such SELinux options",
        ),
        deny(every(&hosts), "a tenant's probes and hooks can't name a host"),
        deny(
            "!has(object.spec.priorityClassName) || !object.spec.priorityClassName.startsWith('system-')".to_owned(),
            "a tenant's pod can't come before the host's own",
        ),
        deny(
            "!has(object.metadata.annotations) || object.metadata.annotations.all(k, \
             !k.startsWith('container.apparmor.security.beta.kubernetes.io/') || object.metadata.annotations[k] != 'unconfined')"
                .to_owned(),
            "a tenant's pod can't be without AppArmor",
        ),
        deny(both("seccompProfile", "$.type != 'Unconfined'"), "a tenant's pod can't be without seccomp"),
        deny(both("appArmorProfile", "$.type != 'Unconfined'"), "a tenant's pod can't be without AppArmor"),
        deny(
            both("windowsOptions", "!has($.hostProcess) || !$.hostProcess"),
            "a tenant's pod can't be a process of the host",
        ),
        deny(
            format!(
                "!has(object.spec.securityContext) || !has(object.spec.securityContext.sysctls) || \
                 object.spec.securityContext.sysctls.all(s, s.name in {SYSCTLS})"
            ),
            "a tenant's pod can't set this kernel parameter",
        ),
        deny(
            format!(
                "request.operation != 'CREATE' || !has(object.spec.volumes) || object.spec.volumes.all(v, \
                 !has(v.projected) || !has(v.projected.sources) || v.projected.sources == null || v.projected.sources.all(s, !has(s.serviceAccountToken) || \
                 (has(s.serviceAccountToken.audience) && (s.serviceAccountToken.audience == {own} || \
                 s.serviceAccountToken.audience.startsWith({own} + ':')))))"
            ),
            "a tenant's pod can't have a token for anybody but the tenant",
        ),
        deny(
            "request.operation != 'CREATE' || !has(object.spec.volumes) || object.spec.volumes.all(v, !has(v.projected) || \
             !has(v.projected.sources) || v.projected.sources == null || v.projected.sources.all(s, !has(s.podCertificate) && \
             !has(s.clusterTrustBundle)))"
                .to_owned(),
            "a tenant's pod can't have certificates of the host",
        ),
    ]);
    policy(PODS, &rules, &json!([]), &validations)
}

/// A claim without a class, or with a selector, could be bound to any volume of the host.
fn claims(storage_classes: &[String]) -> Value {
    let rules = json!([{
        "apiGroups": [""], "apiVersions": ["*"], "operations": ["CREATE"], "resources": ["persistentvolumeclaims"],
    }]);
    let classes = Value::from(storage_classes).to_string().replace('"', "'");
    let (allowed, which) = if storage_classes.is_empty() {
        (String::new(), String::new())
    } else {
        (format!(" && object.spec.storageClassName in {classes}"), format!(" of these: {}", storage_classes.join(", ")))
    };
    let deny = |expression: String, message: String| json!({ "expression": expression, "message": message });
    let validations = json!([
        deny(
            format!("has(object.spec.storageClassName) && object.spec.storageClassName != ''{allowed}"),
            format!("a tenant's claim must name a storage class{which}"),
        ),
        deny("!has(object.spec.selector)".to_owned(), "a tenant's claim can't select volumes".to_owned()),
        deny(
            "!has(object.spec.volumeName) || object.spec.volumeName == ''".to_owned(),
            "a tenant's claim can't name a volume".to_owned(),
        ),
    ]);
    policy(CLAIMS, &rules, &json!([]), &validations)
}

fn statuses() -> Value {
    let rules = json!([{
        "apiGroups": [""], "apiVersions": ["*"], "operations": ["UPDATE"], "resources": ["pods/status", "services/status"],
    }]);
    let variables = json!([{
        "name": "byTenant",
        "expression": "request.userInfo.groups.exists(g, g.startsWith('tenancy.kubewharf.io:tenant:'))",
    }]);
    let unchanged = |resource: &str, field: &str| {
        format!(
            "!variables.byTenant || request.resource.resource != '{resource}' || !has(object.status) || !has(object.status.{field}) || \
             (has(oldObject.status) && has(oldObject.status.{field}) && object.status.{field} == oldObject.status.{field})"
        )
    };
    let deny = |expression: String, message: &str| json!({ "expression": expression, "message": message });
    let ingress = "!variables.byTenant || request.resource.resource != 'services' || !has(object.status) || \
         !has(object.status.loadBalancer) || !has(object.status.loadBalancer.ingress) || \
         (has(oldObject.status) && has(oldObject.status.loadBalancer) && has(oldObject.status.loadBalancer.ingress) && \
         object.status.loadBalancer.ingress == oldObject.status.loadBalancer.ingress)";
    let validations = json!([
        deny(unchanged("pods", "podIP"), "a tenant can't say what a pod's address is"),
        deny(unchanged("pods", "podIPs"), "a tenant can't say what a pod's addresses are"),
        deny(unchanged("pods", "hostIP"), "a tenant can't say what a node's address is"),
        deny(ingress.to_owned(), "a tenant can't say where a load balancer is"),
    ]);
    policy(STATUSES, &rules, &variables, &validations)
}
