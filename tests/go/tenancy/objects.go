package main

import (
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	eventsv1 "k8s.io/api/events/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	resourcev1 "k8s.io/api/resource/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// example is an object of a kind, as small as it may be but with each field that names another object.
type example struct {
	resource   schema.GroupVersionResource
	kind       string
	namespaced bool
	object     runtime.Object
}

// marked is the label of all objects of this program, so that lists over everything find them alone.
const marked = "tenancy-example"

func ptr[T any](value T) *T { return &value }

func labelled(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: name, Labels: map[string]string{marked: "yes"}}
}

func namespaceNamed(name string) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
}

func podTemplate() corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "example"}},
		Spec: corev1.PodSpec{
			SchedulerName: "none",
			Containers:    []corev1.Container{{Name: "c", Image: "i"}},
			Affinity: &corev1.Affinity{PodAffinity: &corev1.PodAffinity{
				PreferredDuringSchedulingIgnoredDuringExecution: []corev1.WeightedPodAffinityTerm{{
					Weight: 1,
					PodAffinityTerm: corev1.PodAffinityTerm{
						TopologyKey: "zone", Namespaces: []string{"tenancy", "tenancy-other"},
						NamespaceSelector: &metav1.LabelSelector{
							MatchLabels: map[string]string{"kubernetes.io/metadata.name": "tenancy"},
						},
					},
				}},
			}},
		},
	}
}

func selector() *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: map[string]string{"app": "example"}}
}

// examples are objects of the kinds that client-go has types for. Those that controllers act upon ask for nothing to be
// done, so that an object stays as it was made.
func examples() []example {
	moment := metav1.NewTime(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC))
	core := schema.GroupVersion{Version: "v1"}
	named := func(version schema.GroupVersion, plural, kind string, object runtime.Object) example {
		return example{version.WithResource(plural), kind, true, object}
	}
	wide := func(version schema.GroupVersion, plural, kind string, object runtime.Object) example {
		return example{version.WithResource(plural), kind, false, object}
	}
	jobTemplate := podTemplate()
	jobTemplate.Spec.RestartPolicy = corev1.RestartPolicyNever
	claim := corev1.PersistentVolumeClaimSpec{
		StorageClassName: ptr("gold"), AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
		Resources: corev1.VolumeResourceRequirements{
			Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")},
		},
	}
	rules := []rbacv1.PolicyRule{{
		APIGroups: []string{""}, Resources: []string{"configmaps"}, Verbs: []string{"get"}, ResourceNames: []string{"a"},
	}}
	subjects := []rbacv1.Subject{
		{Kind: "User", APIGroup: rbacv1.GroupName, Name: "jane"},
		{Kind: "Group", APIGroup: rbacv1.GroupName, Name: "system:serviceaccounts:tenancy"},
		{Kind: "ServiceAccount", Name: "default", Namespace: "tenancy"},
	}
	requests := resourcev1.ResourceClaimSpec{Devices: resourcev1.DeviceClaim{Requests: []resourcev1.DeviceRequest{{
		Name: "one", Exactly: &resourcev1.ExactDeviceRequest{DeviceClassName: "gpu"},
	}}}}
	pod := podTemplate()
	return []example{
		named(core, "configmaps", "ConfigMap", &corev1.ConfigMap{
			ObjectMeta: labelled("example"), Data: map[string]string{"text": "tenancy"}, BinaryData: map[string][]byte{"b": {0, 255}},
		}),
		named(core, "secrets", "Secret", &corev1.Secret{
			ObjectMeta: labelled("example"), Data: map[string][]byte{"k": []byte("v")}, Type: "example.com/type",
		}),
		named(core, "serviceaccounts", "ServiceAccount", &corev1.ServiceAccount{
			ObjectMeta: labelled("example"), ImagePullSecrets: []corev1.LocalObjectReference{{Name: "pull"}},
		}),
		named(core, "services", "Service", &corev1.Service{
			ObjectMeta: labelled("example"),
			Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "a.tenancy.svc.cluster.local"},
		}),
		named(core, "endpoints", "Endpoints", &corev1.Endpoints{
			ObjectMeta: labelled("example-endpoints"),
			Subsets: []corev1.EndpointSubset{{
				Addresses: []corev1.EndpointAddress{{
					IP: "192.0.2.7", TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: "tenancy", Name: "p"},
				}},
				Ports: []corev1.EndpointPort{{Port: 80}},
			}},
		}),
		named(core, "pods", "Pod", &corev1.Pod{ObjectMeta: labelled("example"), Spec: pod.Spec}),
		named(core, "podtemplates", "PodTemplate", &corev1.PodTemplate{ObjectMeta: labelled("example"), Template: podTemplate()}),
		named(core, "replicationcontrollers", "ReplicationController", &corev1.ReplicationController{
			ObjectMeta: labelled("example"),
			Spec: corev1.ReplicationControllerSpec{
				Replicas: ptr(int32(0)), Selector: map[string]string{"app": "example"}, Template: ptr(podTemplate()),
			},
		}),
		named(core, "limitranges", "LimitRange", &corev1.LimitRange{
			ObjectMeta: labelled("example"),
			Spec: corev1.LimitRangeSpec{Limits: []corev1.LimitRangeItem{{
				Type: corev1.LimitTypePod, Max: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100")},
			}}},
		}),
		named(core, "resourcequotas", "ResourceQuota", &corev1.ResourceQuota{
			ObjectMeta: labelled("example"),
			Spec: corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{
				"count/widgets.example.com":                                          resource.MustParse("10"),
				"silver.storageclass.storage.k8s.io/requests.storage":                resource.MustParse("10Gi"),
				corev1.ResourceName("requests." + "example.com/" + "special-device"): resource.MustParse("1"),
			}},
		}),
		named(core, "persistentvolumeclaims", "PersistentVolumeClaim", &corev1.PersistentVolumeClaim{
			ObjectMeta: labelled("example"), Spec: claim,
		}),
		named(core, "events", "Event", &corev1.Event{
			ObjectMeta:     labelled("example"),
			InvolvedObject: corev1.ObjectReference{Kind: "Pod", Namespace: "tenancy", Name: "p", APIVersion: "v1"},
			Reason:         "Tested", Message: "Pod tenancy/p was tested", Type: "Normal", FirstTimestamp: moment, Count: 1,
		}),
		named(eventsv1.SchemeGroupVersion, "events", "Event", &eventsv1.Event{
			ObjectMeta: labelled("example-new"), Regarding: corev1.ObjectReference{Kind: "Pod", Namespace: "tenancy", Name: "p"},
			Reason: "Tested", Note: "Pod tenancy/p was tested", Type: "Normal", Action: "Testing",
			ReportingController: "example.com/tester", ReportingInstance: "one", EventTime: metav1.NewMicroTime(moment.Time),
		}),
		named(appsv1.SchemeGroupVersion, "deployments", "Deployment", &appsv1.Deployment{
			ObjectMeta: labelled("example"),
			Spec: appsv1.DeploymentSpec{
				Paused: true, Replicas: ptr(int32(0)), Selector: selector(), Template: podTemplate(),
			},
		}),
		named(appsv1.SchemeGroupVersion, "replicasets", "ReplicaSet", &appsv1.ReplicaSet{
			ObjectMeta: labelled("example"),
			Spec:       appsv1.ReplicaSetSpec{Replicas: ptr(int32(0)), Selector: selector(), Template: podTemplate()},
		}),
		named(appsv1.SchemeGroupVersion, "statefulsets", "StatefulSet", &appsv1.StatefulSet{
			ObjectMeta: labelled("example"),
			Spec: appsv1.StatefulSetSpec{
				Replicas: ptr(int32(0)), Selector: selector(), Template: podTemplate(), ServiceName: "example",
				VolumeClaimTemplates: []corev1.PersistentVolumeClaim{{ObjectMeta: metav1.ObjectMeta{Name: "data"}, Spec: claim}},
			},
		}),
		named(appsv1.SchemeGroupVersion, "daemonsets", "DaemonSet", &appsv1.DaemonSet{
			ObjectMeta: labelled("example"), Spec: appsv1.DaemonSetSpec{Selector: selector(), Template: podTemplate()},
		}),
		named(appsv1.SchemeGroupVersion, "controllerrevisions", "ControllerRevision", &appsv1.ControllerRevision{
			ObjectMeta: labelled("example"), Revision: 7,
			Data: runtime.RawExtension{Raw: []byte(`{"spec":{"template":{"spec":{"namespace":"tenancy"}}}}`)},
		}),
		named(batchv1.SchemeGroupVersion, "jobs", "Job", &batchv1.Job{
			ObjectMeta: labelled("example"), Spec: batchv1.JobSpec{Suspend: ptr(true), Template: jobTemplate},
		}),
		named(batchv1.SchemeGroupVersion, "cronjobs", "CronJob", &batchv1.CronJob{
			ObjectMeta: labelled("example"),
			Spec: batchv1.CronJobSpec{
				Schedule: "0 3 * * *", Suspend: ptr(true),
				JobTemplate: batchv1.JobTemplateSpec{Spec: batchv1.JobSpec{Template: jobTemplate}},
			},
		}),
		named(autoscalingv1.SchemeGroupVersion, "horizontalpodautoscalers", "HorizontalPodAutoscaler",
			&autoscalingv1.HorizontalPodAutoscaler{
				ObjectMeta: labelled("example"),
				Spec: autoscalingv1.HorizontalPodAutoscalerSpec{
					ScaleTargetRef: autoscalingv1.CrossVersionObjectReference{
						APIVersion: "example.com/v1", Kind: "Widget", Name: "w",
					},
					MaxReplicas: 3, TargetCPUUtilizationPercentage: ptr(int32(50)),
				},
			}),
		named(autoscalingv2.SchemeGroupVersion, "horizontalpodautoscalers", "HorizontalPodAutoscaler",
			&autoscalingv2.HorizontalPodAutoscaler{
				ObjectMeta: labelled("example-objects"),
				Spec: autoscalingv2.HorizontalPodAutoscalerSpec{
					ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{APIVersion: "apps/v1", Kind: "Deployment", Name: "d"},
					MaxReplicas:    3,
					Metrics: []autoscalingv2.MetricSpec{{
						Type: autoscalingv2.ObjectMetricSourceType,
						Object: &autoscalingv2.ObjectMetricSource{
							DescribedObject: autoscalingv2.CrossVersionObjectReference{
								APIVersion: "example.com/v1", Kind: "Widget", Name: "w",
							},
							Target: autoscalingv2.MetricTarget{
								Type: autoscalingv2.ValueMetricType, Value: ptr(resource.MustParse("10")),
							},
							Metric: autoscalingv2.MetricIdentifier{Name: "m"},
						},
					}},
				},
			}),
		named(policyv1.SchemeGroupVersion, "poddisruptionbudgets", "PodDisruptionBudget", &policyv1.PodDisruptionBudget{
			ObjectMeta: labelled("example"),
			Spec: policyv1.PodDisruptionBudgetSpec{
				MinAvailable: ptr(intstr.FromInt32(1)),
				Selector:     &metav1.LabelSelector{MatchLabels: map[string]string{"app": "nobody"}},
			},
		}),
		named(networkingv1.SchemeGroupVersion, "ingresses", "Ingress", &networkingv1.Ingress{
			ObjectMeta: labelled("example"),
			Spec: networkingv1.IngressSpec{
				IngressClassName: ptr("nginx"),
				DefaultBackend: &networkingv1.IngressBackend{
					Resource: &corev1.TypedLocalObjectReference{APIGroup: ptr("example.com"), Kind: "Bucket", Name: "b"},
				},
			},
		}),
		named(networkingv1.SchemeGroupVersion, "networkpolicies", "NetworkPolicy", &networkingv1.NetworkPolicy{
			ObjectMeta: labelled("example"),
			Spec: networkingv1.NetworkPolicySpec{Ingress: []networkingv1.NetworkPolicyIngressRule{{
				From: []networkingv1.NetworkPolicyPeer{
					{NamespaceSelector: &metav1.LabelSelector{}},
					{NamespaceSelector: &metav1.LabelSelector{
						MatchLabels: map[string]string{"kubernetes.io/metadata.name": "tenancy"},
					}},
				},
			}}},
		}),
		named(discoveryv1.SchemeGroupVersion, "endpointslices", "EndpointSlice", &discoveryv1.EndpointSlice{
			ObjectMeta: labelled("example"), AddressType: discoveryv1.AddressTypeIPv4,
			Endpoints: []discoveryv1.Endpoint{{
				Addresses: []string{"192.0.2.8"},
				TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: "tenancy", Name: "p"},
			}},
		}),
		named(coordinationv1.SchemeGroupVersion, "leases", "Lease", &coordinationv1.Lease{
			ObjectMeta: labelled("example"), Spec: coordinationv1.LeaseSpec{HolderIdentity: ptr("tenancy-one")},
		}),
		named(rbacv1.SchemeGroupVersion, "roles", "Role", &rbacv1.Role{ObjectMeta: labelled("example"), Rules: rules}),
		named(rbacv1.SchemeGroupVersion, "rolebindings", "RoleBinding", &rbacv1.RoleBinding{
			ObjectMeta: labelled("example"), Subjects: subjects,
			RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "view"},
		}),
		named(resourcev1.SchemeGroupVersion, "resourceclaims", "ResourceClaim", &resourcev1.ResourceClaim{
			ObjectMeta: labelled("example"), Spec: requests,
		}),
		named(resourcev1.SchemeGroupVersion, "resourceclaimtemplates", "ResourceClaimTemplate", &resourcev1.ResourceClaimTemplate{
			ObjectMeta: labelled("example"), Spec: resourcev1.ResourceClaimTemplateSpec{Spec: requests},
		}),
		named(storagev1.SchemeGroupVersion, "csistoragecapacities", "CSIStorageCapacity", &storagev1.CSIStorageCapacity{
			ObjectMeta: labelled("example"), StorageClassName: "gold",
		}),
		wide(core, "namespaces", "Namespace", &corev1.Namespace{ObjectMeta: labelled("tenancy-example")}),
		wide(rbacv1.SchemeGroupVersion, "clusterroles", "ClusterRole", &rbacv1.ClusterRole{
			ObjectMeta: labelled("tenancy-example"), Rules: rules,
		}),
		wide(rbacv1.SchemeGroupVersion, "clusterrolebindings", "ClusterRoleBinding", &rbacv1.ClusterRoleBinding{
			ObjectMeta: labelled("tenancy-example"), Subjects: subjects,
			RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "tenancy-example"},
		}),
		wide(schedulingv1.SchemeGroupVersion, "priorityclasses", "PriorityClass", &schedulingv1.PriorityClass{
			ObjectMeta: labelled("tenancy-example"), Value: 7,
		}),
		wide(storagev1.SchemeGroupVersion, "storageclasses", "StorageClass", &storagev1.StorageClass{
			ObjectMeta: labelled("tenancy-example"), Provisioner: "example.com/none",
		}),
		wide(networkingv1.SchemeGroupVersion, "ingressclasses", "IngressClass", &networkingv1.IngressClass{
			ObjectMeta: labelled("tenancy-example"), Spec: networkingv1.IngressClassSpec{Controller: "example.com/none"},
		}),
	}
}
