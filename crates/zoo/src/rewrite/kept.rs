//! Fields that look as if they named something, and stay as they are, with the reason why they may.
//!
//! Invariant: a field of the API's messages that looks like a name has a rule or is here. A newer API with another one fails the test.

use std::collections::{BTreeSet, HashSet};

use super::plan::mark;
use super::schema::{self, Type};

/// Why, in which package, which fields.
const KEPT: &[(&str, &str, &[&str])] = &[
    (
        "names an object in the object's own namespace",
        "core.v1",
        &[
            "AzureFilePersistentVolumeSource.secretName",
            "AzureFileVolumeSource.secretName",
            "ConfigMapNodeConfigSource.name",
            "LocalObjectReference.name",
            "NodeAllocatableResourceClaimStatus.resourceClaimName",
            "PersistentVolumeClaimVolumeSource.claimName",
            "PodExtendedResourceClaimStatus.resourceClaimName",
            "PodResourceClaim.resourceClaimName",
            "PodResourceClaim.resourceClaimTemplateName",
            "PodResourceClaimStatus.resourceClaimName",
            "PodSchedulingGroup.podGroupName",
            "PodSpec.serviceAccountName",
            "SecretReference.name",
            "SecretVolumeSource.secretName",
        ],
    ),
    (
        "names an object in the object's own namespace, or in one that is mapped",
        "admissionregistration.v1",
        &["ParamRef.name", "ServiceReference.name"],
    ),
    ("names an object in a namespace that is mapped", "apiextensions.v1", &["ServiceReference.name"]),
    ("names an object in the object's own namespace", "apps.v1", &["StatefulSetSpec.serviceName"]),
    ("names an object in a namespace that is mapped", "flowcontrol.v1", &["ServiceAccountSubject.name"]),
    (
        "names an object in the object's own namespace",
        "networking.v1",
        &["IngressServiceBackend.name", "IngressTLS.secretName"],
    ),
    (
        "names a pod in the object's own namespace",
        "resource.v1",
        &["ResourceClaimConsumerReference.apiGroup", "ResourceClaimConsumerReference.name"],
    ),
    (
        "names a pod, a secret or a node",
        "authentication.v1",
        &["BoundObjectReference.kind", "BoundObjectReference.name"],
    ),
    (
        "names a part of the same object",
        "admissionregistration.v1",
        &[
            "ExpressionWarning.fieldRef",
            "MatchCondition.name",
            "MutatingWebhook.name",
            "ValidatingWebhook.name",
            "Variable.name",
        ],
    ),
    (
        "names a part of the same object",
        "apiextensions.v1",
        &[
            "CustomResourceColumnDefinition.name",
            "CustomResourceDefinitionVersion.name",
            "CustomResourceSubresourceScale.labelSelectorPath",
            "JSONSchemaProps.$ref",
        ],
    ),
    ("names a part of the same object", "batch.v1", &["PodFailurePolicyOnExitCodesRequirement.containerName"]),
    (
        "names a part of the same object",
        "core.v1",
        &[
            "AttachedVolume.name",
            "Container.name",
            "ContainerExtendedResourceRequest.containerName",
            "ContainerExtendedResourceRequest.requestName",
            "ContainerExtendedResourceRequest.resourceName",
            "ContainerPort.name",
            "ContainerResizePolicy.resourceName",
            "ContainerStatus.name",
            "EndpointPort.name",
            "EnvVar.name",
            "EphemeralContainer.targetContainerName",
            "EphemeralContainerCommon.name",
            "FileKeySelector.volumeName",
            "PodResourceClaim.name",
            "PodResourceClaimStatus.name",
            "PodSchedulingGate.name",
            "ResourceClaim.name",
            "ResourceFieldSelector.containerName",
            "ResourceStatus.name",
            "ServicePort.name",
            "Volume.name",
            "VolumeDevice.name",
            "VolumeMount.name",
            "VolumeMountStatus.name",
        ],
    ),
    ("names a part of the same object", "discovery.v1", &["EndpointPort.name"]),
    ("names a part of the same object", "networking.v1", &["ServiceBackendPort.name"]),
    (
        "names a part of the same object",
        "resource.v1",
        &["CounterSet.name", "Device.name", "DeviceRequest.name", "DeviceSubRequest.name", "ResourcePool.name"],
    ),
    (
        "names a metric",
        "autoscaling.v1",
        &[
            "ContainerResourceMetricSource.name",
            "ContainerResourceMetricStatus.name",
            "ExternalMetricSource.metricName",
            "ExternalMetricStatus.metricName",
            "ObjectMetricSource.metricName",
            "ObjectMetricStatus.metricName",
            "PodsMetricSource.metricName",
            "PodsMetricStatus.metricName",
            "ResourceMetricSource.name",
            "ResourceMetricStatus.name",
        ],
    ),
    (
        "names a metric",
        "autoscaling.v2",
        &[
            "ContainerResourceMetricSource.name",
            "ContainerResourceMetricStatus.name",
            "MetricIdentifier.name",
            "ResourceMetricSource.name",
            "ResourceMetricStatus.name",
        ],
    ),
    ("selects pods by labels, written as text", "autoscaling.v1", &["ScaleStatus.selector"]),
    (
        "names the kind of a reference: the API version is kept, or there is only one",
        "admissionregistration.v1",
        &["ParamKind.kind"],
    ),
    (
        "is looked at together with the kind, or tells which of several fields there is",
        "flowcontrol.v1",
        &["Subject.kind"],
    ),
    ("there is one value only", "rbac.v1", &["RoleRef.apiGroup", "Subject.apiGroup"]),
    (
        "it has the tenant's prefix in own cluster-scoped objects, as a variant of the message says",
        "meta.v1",
        &["ObjectMeta.generateName", "ObjectMeta.name"],
    ),
    (
        "is a shared class or an object of the host's, allowed elsewhere",
        "core.v1",
        &[
            "ClusterTrustBundleProjection.name",
            "ClusterTrustBundleProjection.signerName",
            "ModifyVolumeStatus.targetVolumeAttributesClassName",
            "PersistentVolumeClaimSpec.storageClassName",
            "PersistentVolumeClaimSpec.volumeAttributesClassName",
            "PersistentVolumeClaimStatus.currentVolumeAttributesClassName",
            "PersistentVolumeSpec.storageClassName",
            "PersistentVolumeSpec.volumeAttributesClassName",
            "PodCertificateProjection.signerName",
            "PodSpec.schedulerName",
            "ServiceSpec.loadBalancerClass",
        ],
    ),
    (
        "is a shared class or an object of the host's, allowed elsewhere",
        "certificates.v1",
        &["CertificateSigningRequestSpec.signerName"],
    ),
    (
        "is a shared class or an object of the host's, allowed elsewhere",
        "networking.v1",
        &["IngressSpec.ingressClassName"],
    ),
    (
        "is a shared class or an object of the host's, allowed elsewhere",
        "resource.v1",
        &[
            "DeviceClassSpec.extendedResourceName",
            "DeviceSubRequest.deviceClassName",
            "ExactDeviceRequest.deviceClassName",
        ],
    ),
    (
        "is a shared class or an object of the host's, allowed elsewhere",
        "storage.v1",
        &["CSIStorageCapacity.storageClassName", "VolumeAttachmentSource.persistentVolumeName"],
    ),
    (
        "names a node: they are the host's",
        "core.v1",
        &["EndpointAddress.nodeName", "EventSource.host", "PodStatus.nominatedNodeName"],
    ),
    ("names a node: they are the host's", "discovery.v1", &["Endpoint.nodeName", "ForNode.name"]),
    ("names a node: they are the host's", "resource.v1", &["Device.nodeName", "ResourceSliceSpec.nodeName"]),
    ("names a node: they are the host's", "storage.v1", &["CSINodeDriver.nodeID", "VolumeAttachmentSpec.nodeName"]),
    ("selects nodes by their labels", "node.v1", &["Scheduling.nodeSelector"]),
    (
        "is of a kind that does not go upstream: KubeZoo decides by it on the tenant's names",
        "admissionregistration.v1",
        &[
            "MutatingAdmissionPolicyBindingSpec.policyName",
            "NamedRuleWithOperations.resourceNames",
            "Rule.apiGroups",
            "ValidatingAdmissionPolicyBindingSpec.policyName",
            "WebhookClientConfig.url",
        ],
    ),
    (
        "is of a kind that does not go upstream: KubeZoo decides by it on the tenant's names",
        "authorization.v1",
        &[
            "FieldSelectorAttributes.rawSelector",
            "LabelSelectorAttributes.rawSelector",
            "NonResourceRule.nonResourceURLs",
            "ResourceRule.apiGroups",
            "ResourceRule.resourceNames",
        ],
    ),
    (
        "is of a kind that does not go upstream: KubeZoo decides by it on the tenant's names",
        "flowcontrol.v1",
        &[
            "NonResourcePolicyRule.nonResourceURLs",
            "PriorityLevelConfigurationReference.name",
            "ResourcePolicyRule.apiGroups",
            "ResourcePolicyRule.namespaces",
        ],
    ),
    (
        "KubeZoo decides by it on the tenant's names; upstream it gives nothing",
        "rbac.v1",
        &["PolicyRule.apiGroups", "PolicyRule.nonResourceURLs", "PolicyRule.resourceNames"],
    ),
    (
        "is rewritten with the definition's group, elsewhere",
        "apiextensions.v1",
        &[
            "CustomResourceDefinitionNames.kind",
            "CustomResourceDefinitionNames.listKind",
            "CustomResourceDefinitionNames.shortNames",
            "CustomResourceDefinitionSpec.group",
            "WebhookClientConfig.url",
        ],
    ),
    (
        "is an address or a name of the network, limited elsewhere",
        "core.v1",
        &[
            "ContainerPort.hostIP",
            "EndpointAddress.hostname",
            "EndpointAddress.ip",
            "HTTPGetAction.host",
            "HostAlias.hostnames",
            "HostAlias.ip",
            "LoadBalancerIngress.hostname",
            "LoadBalancerIngress.ip",
            "PodDNSConfig.nameservers",
            "PodDNSConfigOption.name",
            "PodIP.ip",
            "PodSpec.hostname",
            "PodSpec.hostnameOverride",
            "PodStatus.podIP",
            "ServiceSpec.clusterIP",
            "ServiceSpec.clusterIPs",
            "ServiceSpec.externalName",
            "ServiceSpec.loadBalancerIP",
            "TCPSocketAction.host",
        ],
    ),
    (
        "is an address or a name of the network, limited elsewhere",
        "discovery.v1",
        &["Endpoint.addresses", "Endpoint.hostname", "EndpointSlice.addressType"],
    ),
    (
        "is an address or a name of the network, limited elsewhere",
        "networking.v1",
        &[
            "IngressLoadBalancerIngress.hostname",
            "IngressLoadBalancerIngress.ip",
            "IngressRule.host",
            "IngressTLS.hosts",
        ],
    ),
    (
        "is an address or a name of the network, limited elsewhere",
        "resource.v1",
        &["NetworkDeviceData.hardwareAddress", "NetworkDeviceData.interfaceName", "NetworkDeviceData.ips"],
    ),
    ("is withheld with the field around it", "core.v1", &["HostIP.ip", "NodeAddress.address"]),
    (
        "means something to a storage system, limited elsewhere",
        "core.v1",
        &[
            "AzureDiskVolumeSource.diskName",
            "AzureDiskVolumeSource.kind",
            "AzureFilePersistentVolumeSource.shareName",
            "AzureFileVolumeSource.shareName",
            "CephFSPersistentVolumeSource.user",
            "CephFSVolumeSource.user",
            "FlockerVolumeSource.datasetName",
            "GCEPersistentDiskVolumeSource.pdName",
            "ISCSIPersistentVolumeSource.initiatorName",
            "ISCSIVolumeSource.initiatorName",
            "QuobyteVolumeSource.group",
            "QuobyteVolumeSource.user",
            "RBDPersistentVolumeSource.user",
            "RBDVolumeSource.user",
            "ScaleIOPersistentVolumeSource.volumeName",
            "ScaleIOVolumeSource.volumeName",
            "StorageOSPersistentVolumeSource.volumeName",
            "StorageOSPersistentVolumeSource.volumeNamespace",
            "StorageOSVolumeSource.volumeName",
            "StorageOSVolumeSource.volumeNamespace",
            "VsphereVirtualDiskVolumeSource.storagePolicyName",
        ],
    ),
    (
        "means something to a driver",
        "storage.v1",
        &["CSIDriverSpec.fsGroupPolicy", "CSINodeDriver.name", "VolumeAttributesClass.driverName"],
    ),
    (
        "means something to the kubelet or in a container",
        "core.v1",
        &[
            "AppArmorProfile.localhostProfile",
            "ContainerImage.names",
            "HTTPHeader.name",
            "ImageVolumeStatus.imageRef",
            "NodeRuntimeHandler.name",
            "PodCertificateProjection.userAnnotations",
            "PodOS.name",
            "PodSecurityContext.fsGroupChangePolicy",
            "PodSecurityContext.supplementalGroupsPolicy",
            "PodStatus.qosClass",
            "SELinuxOptions.user",
            "SeccompProfile.localhostProfile",
            "ScopedResourceSelectorRequirement.scopeName",
            "Sysctl.name",
            "TopologySpreadConstraint.nodeAffinityPolicy",
            "TopologySpreadConstraint.nodeTaintsPolicy",
            "WindowsSecurityContextOptions.gmsaCredentialSpecName",
            "WindowsSecurityContextOptions.runAsUserName",
        ],
    ),
    ("is a zone", "discovery.v1", &["ForZone.name"]),
    ("is documentation", "apiextensions.v1", &["ExternalDocumentation.url"]),
    (
        "is of discovery and of queries, rewritten elsewhere",
        "meta.v1",
        &[
            "APIGroup.name",
            "APIResource.group",
            "APIResource.kind",
            "APIResource.name",
            "APIResource.shortNames",
            "APIResource.singularName",
            "APIResourceList.groupVersion",
            "GroupKind.group",
            "GroupKind.kind",
            "GroupResource.group",
            "GroupVersion.group",
            "GroupVersionForDiscovery.groupVersion",
            "GroupVersionKind.group",
            "GroupVersionKind.kind",
            "GroupVersionResource.group",
            "ListOptions.fieldSelector",
            "ListOptions.labelSelector",
            "ListOptions.shardSelector",
            "ServerAddressByClientCIDR.serverAddress",
            "ShardInfo.selector",
            "TypeMeta.kind",
        ],
    ),
    ("says what the body is", "runtime", &["TypeMeta.kind"]),
];

fn looks_like_a_name(field: &str) -> bool {
    let field = field.to_ascii_lowercase();
    let anywhere = ["name", "selector", "user", "group", "subject", "class", "host", "node", "kind", "address"];
    let at_the_end = ["ref", "refs", "ip", "ips", "url", "urls"];
    anywhere.iter().any(|part| field.contains(part)) || at_the_end.iter().any(|end| field.ends_with(end))
}

#[test]
fn every_field_that_looks_like_a_name_has_a_rule_or_a_reason_to_have_none() {
    let mut kept: HashSet<(String, &str)> = HashSet::new();
    for (_, package, fields) in KEPT {
        for field in *fields {
            let (message, field) = field.split_once('.').unwrap();
            assert!(kept.insert((format!("{package}.{message}"), field)), "{message}.{field} is there twice");
        }
    }
    let mut without = BTreeSet::new();
    for message in schema::all() {
        for field in message.fields {
            // A field that is a message has the fields of it.
            let plain = matches!(field.of, Type::Text | Type::Bytes);
            let named = plain && looks_like_a_name(field.name) && mark(message.name, field.name).is_none();
            if named && !kept.remove(&(message.name.to_owned(), field.name)) {
                without.insert(format!("{}.{}", message.name, field.name));
            }
        }
    }
    assert!(without.is_empty(), "neither a rule nor a reason: {without:#?}");
    assert!(kept.is_empty(), "no such fields, or they have a rule: {kept:#?}");
}
