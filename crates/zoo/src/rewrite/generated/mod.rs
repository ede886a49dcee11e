// Written by `cargo run -p xtask -- codegen-kubernetes` from the API modules of Kubernetes; do not edit.
//! The messages of the Kubernetes API: facts of the wire, no rules.

mod quantity;
mod runtime;
mod intstr;
mod meta_v1;
mod admissionregistration_v1;
mod core_v1;
mod apps_v1;
mod authentication_v1;
mod authorization_v1;
mod autoscaling_v1;
mod autoscaling_v2;
mod batch_v1;
mod certificates_v1;
mod coordination_v1;
mod discovery_v1;
mod events_v1;
mod flowcontrol_v1;
mod networking_v1;
mod node_v1;
mod policy_v1;
mod rbac_v1;
mod resource_v1;
mod scheduling_v1;
mod storage_v1;
mod apiextensions_v1;

use super::schema::Package;

pub(super) static PACKAGES: &[Package] = &[
    Package { name: "quantity", group: "", version: "", messages: quantity::MESSAGES },
    Package { name: "runtime", group: "", version: "", messages: runtime::MESSAGES },
    Package { name: "intstr", group: "", version: "", messages: intstr::MESSAGES },
    Package { name: "meta.v1", group: "meta.k8s.io", version: "v1", messages: meta_v1::MESSAGES },
    Package { name: "admissionregistration.v1", group: "admissionregistration.k8s.io", version: "v1", messages: admissionregistration_v1::MESSAGES },
    Package { name: "core.v1", group: "", version: "v1", messages: core_v1::MESSAGES },
    Package { name: "apps.v1", group: "apps", version: "v1", messages: apps_v1::MESSAGES },
    Package { name: "authentication.v1", group: "authentication.k8s.io", version: "v1", messages: authentication_v1::MESSAGES },
    Package { name: "authorization.v1", group: "authorization.k8s.io", version: "v1", messages: authorization_v1::MESSAGES },
    Package { name: "autoscaling.v1", group: "autoscaling", version: "v1", messages: autoscaling_v1::MESSAGES },
    Package { name: "autoscaling.v2", group: "autoscaling", version: "v2", messages: autoscaling_v2::MESSAGES },
    Package { name: "batch.v1", group: "batch", version: "v1", messages: batch_v1::MESSAGES },
    Package { name: "certificates.v1", group: "certificates.k8s.io", version: "v1", messages: certificates_v1::MESSAGES },
    Package { name: "coordination.v1", group: "coordination.k8s.io", version: "v1", messages: coordination_v1::MESSAGES },
    Package { name: "discovery.v1", group: "discovery.k8s.io", version: "v1", messages: discovery_v1::MESSAGES },
    Package { name: "events.v1", group: "events.k8s.io", version: "v1", messages: events_v1::MESSAGES },
    Package { name: "flowcontrol.v1", group: "flowcontrol.apiserver.k8s.io", version: "v1", messages: flowcontrol_v1::MESSAGES },
    Package { name: "networking.v1", group: "networking.k8s.io", version: "v1", messages: networking_v1::MESSAGES },
    Package { name: "node.v1", group: "node.k8s.io", version: "v1", messages: node_v1::MESSAGES },
    Package { name: "policy.v1", group: "policy", version: "v1", messages: policy_v1::MESSAGES },
    Package { name: "rbac.v1", group: "rbac.authorization.k8s.io", version: "v1", messages: rbac_v1::MESSAGES },
    Package { name: "resource.v1", group: "resource.k8s.io", version: "v1", messages: resource_v1::MESSAGES },
    Package { name: "scheduling.v1", group: "scheduling.k8s.io", version: "v1", messages: scheduling_v1::MESSAGES },
    Package { name: "storage.v1", group: "storage.k8s.io", version: "v1", messages: storage_v1::MESSAGES },
    Package { name: "apiextensions.v1", group: "apiextensions.k8s.io", version: "v1", messages: apiextensions_v1::MESSAGES },
];
