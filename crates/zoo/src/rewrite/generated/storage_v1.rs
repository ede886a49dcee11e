// Written by `cargo run -p xtask -- codegen-kubernetes` from the API modules of Kubernetes; do not edit.

use crate::rewrite::schema::Type::*;
use crate::rewrite::schema::{Message, inlined, many, map, one};

pub(super) static MESSAGES: &[Message] = &[
    Message { name: "storage.v1.CSIDriver", root: true, bare: false, fields: &[one("metadata", 1, Of("meta.v1.ObjectMeta"), true), one("spec", 2, Of("storage.v1.CSIDriverSpec"), false)] },
    Message { name: "storage.v1.CSIDriverList", root: true, bare: false, fields: &[one("metadata", 1, Of("meta.v1.ListMeta"), true), many("items", 2, Of("storage.v1.CSIDriver"))] },
    Message { name: "storage.v1.CSIDriverSpec", root: false, bare: false, fields: &[one("attachRequired", 1, Bool, false), one("podInfoOnMount", 2, Bool, false), many("volumeLifecycleModes", 3, Text), one("storageCapacity", 4, Bool, false), one("fsGroupPolicy", 5, Text, false), many("tokenRequests", 6, Of("storage.v1.TokenRequest")), one("requiresRepublish", 7, Bool, false), one("seLinuxMount", 8, Bool, false), one("nodeAllocatableUpdatePeriodSeconds", 9, Int, false), one("serviceAccountTokenInSecrets", 10, Bool, false), one("preventPodSchedulingIfMissing", 11, Bool, false)] },
    Message { name: "storage.v1.CSINode", root: true, bare: false, fields: &[one("metadata", 1, Of("meta.v1.ObjectMeta"), true), one("spec", 2, Of("storage.v1.CSINodeSpec"), false)] },
    Message { name: "storage.v1.CSINodeDriver", root: false, bare: false, fields: &[one("name", 1, Text, false), one("nodeID", 2, Text, false), many("topologyKeys", 3, Text), one("allocatable", 4, Of("storage.v1.VolumeNodeResources"), false)] },
    Message { name: "storage.v1.CSINodeList", root: true, bare: false, fields: &[one("metadata", 1, Of("meta.v1.ListMeta"), true), many("items", 2, Of("storage.v1.CSINode"))] },
    Message { name: "storage.v1.CSINodeSpec", root: false, bare: false, fields: &[many("drivers", 1, Of("storage.v1.CSINodeDriver"))] },
    Message { name: "storage.v1.CSIStorageCapacity", root: true, bare: false, fields: &[one("metadata", 1, Of("meta.v1.ObjectMeta"), true), one("nodeTopology", 2, Of("meta.v1.LabelSelector"), false), one("storageClassName", 3, Text, false), one("capacity", 4, Of("quantity.Quantity"), false), one("maximumVolumeSize", 5, Of("quantity.Quantity"), false)] },
    Message { name: "storage.v1.CSIStorageCapacityList", root: true, bare: false, fields: &[one("metadata", 1, Of("meta.v1.ListMeta"), true), many("items", 2, Of("storage.v1.CSIStorageCapacity"))] },
    Message { name: "storage.v1.StorageClass", root: true, bare: false, fields: &[one("metadata", 1, Of("meta.v1.ObjectMeta"), true), one("provisioner", 2, Text, false), map("parameters", 3, Text), one("reclaimPolicy", 4, Text, false), many("mountOptions", 5, Text), one("allowVolumeExpansion", 6, Bool, false), one("volumeBindingMode", 7, Text, false), many("allowedTopologies", 8, Of("core.v1.TopologySelectorTerm"))] },
    Message { name: "storage.v1.StorageClassList", root: true, bare: false, fields: &[one("metadata", 1, Of("meta.v1.ListMeta"), true), many("items", 2, Of("storage.v1.StorageClass"))] },
    Message { name: "storage.v1.TokenRequest", root: false, bare: false, fields: &[one("audience", 1, Text, false), one("expirationSeconds", 2, Int, false)] },
    Message { name: "storage.v1.VolumeAttachment", root: true, bare: false, fields: &[one("metadata", 1, Of("meta.v1.ObjectMeta"), true), one("spec", 2, Of("storage.v1.VolumeAttachmentSpec"), false), one("status", 3, Of("storage.v1.VolumeAttachmentStatus"), true)] },
    Message { name: "storage.v1.VolumeAttachmentList", root: true, bare: false, fields: &[one("metadata", 1, Of("meta.v1.ListMeta"), true), many("items", 2, Of("storage.v1.VolumeAttachment"))] },
    Message { name: "storage.v1.VolumeAttachmentSource", root: false, bare: false, fields: &[one("persistentVolumeName", 1, Text, false), one("inlineVolumeSpec", 2, Of("core.v1.PersistentVolumeSpec"), false)] },
    Message { name: "storage.v1.VolumeAttachmentSpec", root: false, bare: false, fields: &[one("attacher", 1, Text, false), one("source", 2, Of("storage.v1.VolumeAttachmentSource"), false), one("nodeName", 3, Text, false)] },
    Message { name: "storage.v1.VolumeAttachmentStatus", root: false, bare: false, fields: &[one("attached", 1, Bool, false), map("attachmentMetadata", 2, Text), one("attachError", 3, Of("storage.v1.VolumeError"), false), one("detachError", 4, Of("storage.v1.VolumeError"), false)] },
    Message { name: "storage.v1.VolumeAttributesClass", root: true, bare: false, fields: &[one("metadata", 1, Of("meta.v1.ObjectMeta"), true), one("driverName", 2, Text, false), map("parameters", 3, Text)] },
    Message { name: "storage.v1.VolumeAttributesClassList", root: true, bare: false, fields: &[one("metadata", 1, Of("meta.v1.ListMeta"), true), many("items", 2, Of("storage.v1.VolumeAttributesClass"))] },
    Message { name: "storage.v1.VolumeError", root: false, bare: false, fields: &[one("time", 1, Of("meta.v1.Time"), true), one("message", 2, Text, true), one("errorCode", 3, Int, false)] },
    Message { name: "storage.v1.VolumeNodeResources", root: false, bare: false, fields: &[one("count", 1, Int, false)] },
];
