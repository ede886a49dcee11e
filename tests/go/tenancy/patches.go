package main

import (
	"encoding/json"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	appsv1apply "k8s.io/client-go/applyconfigurations/apps/v1"
	autoscalingv1apply "k8s.io/client-go/applyconfigurations/autoscaling/v1"
	corev1apply "k8s.io/client-go/applyconfigurations/core/v1"
	metav1apply "k8s.io/client-go/applyconfigurations/meta/v1"
	networkingv1apply "k8s.io/client-go/applyconfigurations/networking/v1"
	rbacv1apply "k8s.io/client-go/applyconfigurations/rbac/v1"
	"k8s.io/client-go/util/retry"
)

func patches(s *session) {
	api := s.typed.CoreV1().ConfigMaps(s.namespace)
	created, err := api.Create(s.ctx, configMap(s.namespace, "patched", nil), metav1.CreateOptions{FieldManager: "maker"})
	s.tell("create", created, err)
	patch := func(kind types.PatchType, body string, options metav1.PatchOptions) {
		patched, err := api.Patch(s.ctx, "patched", kind, []byte(body), options)
		s.tell(fmt.Sprintf("%s %s", kind, body), patched, err)
	}
	none := metav1.PatchOptions{}
	patch(types.JSONPatchType, `[{"op":"add","path":"/data","value":{"a":"1"}}]`, none)
	patch(types.JSONPatchType, `[{"op":"test","path":"/metadata/namespace","value":"tenancy"},{"op":"copy","from":"/metadata/namespace","path":"/data/namespace"}]`, none)
	patch(types.JSONPatchType, `[{"op":"test","path":"/data/namespace","value":"tenancy"},{"op":"remove","path":"/data/namespace"}]`, none)
	patch(types.JSONPatchType, `[{"op":"replace","path":"/metadata/namespace","value":"default"}]`, none)
	patch(types.JSONPatchType, `[{"op":"replace","path":"","value":{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"patched","namespace":"tenancy"},"data":{"whole":"yes"}}}]`, none)
	patch(types.JSONPatchType, `[{"op":"jump","path":"/data"}]`, none)
	patch(types.JSONPatchType, `{}`, none)
	patch(types.MergePatchType, `{"data":{"b":"2","whole":null}}`, none)
	patch(types.MergePatchType, `{"metadata":{"ownerReferences":[{"apiVersion":"v1","kind":"ConfigMap","name":"nobody","uid":"6f0a0d8c-58ab-4f7b-9f20-1c2d3e4f5a6b"}]}}`, metav1.PatchOptions{DryRun: []string{"All"}})
	patch(types.MergePatchType, `{"metadata":{"finalizers":["example.com/f"]}}`, metav1.PatchOptions{FieldManager: "finalizer"})
	patch(types.MergePatchType, `{"metadata":{"finalizers":null}}`, metav1.PatchOptions{FieldManager: "finalizer"})
	patch(types.MergePatchType, `{"dta":{}}`, metav1.PatchOptions{FieldValidation: metav1.FieldValidationStrict})
	patch(types.MergePatchType, `[]`, none)
	patch(types.StrategicMergePatchType, `{"metadata":{"annotations":{"s":"t"}},"data":{"$patch":"replace","c":"3"}}`, none)
	patch("application/nothing", `{}`, none)
	patch(types.ApplyPatchType, `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"patched"},"data":{"c":"4"}}`, metav1.PatchOptions{FieldManager: "applier"})
	patch(types.ApplyPatchType, `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"patched"},"data":{"c":"4"}}`, metav1.PatchOptions{FieldManager: "applier", Force: ptr(true)})
	patch(types.ApplyPatchType, `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"patched"},"data":{"c":"4"}}`, none)
	patch(types.ApplyPatchType, `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"other"}}`, metav1.PatchOptions{FieldManager: "applier"})
	patch(types.ApplyPatchType, `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"patched","namespace":"default"}}`, metav1.PatchOptions{FieldManager: "applier"})
	patch(types.ApplyPatchType, `{"kind":"ConfigMap","metadata":{"name":"patched"}}`, metav1.PatchOptions{FieldManager: "applier"})
	patch(types.ApplyYAMLPatchType, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: patched}\ndata: {c: '4', d: '5'}\n", metav1.PatchOptions{FieldManager: "applier"})
	s.applies()
	s.options()
	s.conflicts()
}

// applies uses the configurations that client-go has for applying.
func (s *session) applies() {
	options := metav1.ApplyOptions{FieldManager: "controller"}
	owner, err := s.typed.CoreV1().ConfigMaps(s.namespace).Apply(s.ctx,
		corev1apply.ConfigMap("applied", s.namespace).WithData(map[string]string{"a": "b"}).WithLabels(map[string]string{"x": "y"}), options)
	s.tell("apply a config map", owner, err)
	if err == nil {
		reference := metav1apply.OwnerReference().WithAPIVersion("v1").WithKind("ConfigMap").WithName(owner.Name).WithUID(owner.UID)
		secret, err := s.typed.CoreV1().Secrets(s.namespace).Apply(s.ctx,
			corev1apply.Secret("applied", s.namespace).WithOwnerReferences(reference).WithStringData(map[string]string{"k": "v"}), options)
		s.tell("apply a secret with an owner", secret, err)
	}
	container := corev1apply.Container().WithName("c").WithImage("i").WithEnv(corev1apply.EnvVar().WithName("A").WithValue("1"))
	deployment := appsv1apply.Deployment("applied", s.namespace).WithSpec(appsv1apply.DeploymentSpec().
		WithReplicas(0).WithPaused(true).
		WithSelector(metav1apply.LabelSelector().WithMatchLabels(map[string]string{"app": "applied"})).
		WithTemplate(corev1apply.PodTemplateSpec().WithLabels(map[string]string{"app": "applied"}).
			WithSpec(corev1apply.PodSpec().WithContainers(container))))
	made, err := s.typed.AppsV1().Deployments(s.namespace).Apply(s.ctx, deployment, options)
	if err == nil {
		// The controller of deployments may have been there already.
		made.ManagedFields = made.ManagedFields[:1]
		made.Status.ObservedGeneration, made.Status.Conditions, made.Generation = 0, nil, 0
	}
	s.tell("apply a deployment", made, err)
	scaled, err := s.typed.AppsV1().Deployments(s.namespace).ApplyScale(s.ctx, "applied",
		autoscalingv1apply.Scale().WithSpec(autoscalingv1apply.ScaleSpec().WithReplicas(2)), metav1.ApplyOptions{FieldManager: "scaler"})
	s.tell("apply a scale that is another's", scaled, err)
	scaled, err = s.typed.AppsV1().Deployments(s.namespace).ApplyScale(s.ctx, "applied",
		autoscalingv1apply.Scale().WithSpec(autoscalingv1apply.ScaleSpec().WithReplicas(0)), metav1.ApplyOptions{FieldManager: "scaler", Force: true})
	if err == nil {
		scaled.Name = "applied"
	}
	s.tell("apply a scale by force", scaled, err)
	namespace, err := s.typed.CoreV1().Namespaces().Apply(s.ctx,
		corev1apply.Namespace(s.other).WithLabels(map[string]string{"applied": "yes"}), options)
	s.tell("apply a namespace", namespace, err)
	extracted, err := corev1apply.ExtractNamespace(namespace, "controller")
	s.tell("extract what was applied", extracted, err)
	binding, err := s.typed.RbacV1().RoleBindings(s.namespace).Apply(s.ctx,
		rbacv1apply.RoleBinding("applied", s.namespace).
			WithRoleRef(rbacv1apply.RoleRef().WithAPIGroup("rbac.authorization.k8s.io").WithKind("ClusterRole").WithName("edit")).
			WithSubjects(rbacv1apply.Subject().WithKind("ServiceAccount").WithName("default").WithNamespace(s.other)), options)
	s.tell("apply a role binding", binding, err)
	role, err := s.typed.RbacV1().ClusterRoles().Apply(s.ctx,
		rbacv1apply.ClusterRole("tenancy-applied").WithRules(rbacv1apply.PolicyRule().
			WithAPIGroups("").WithResources("pods").WithVerbs("get")), options)
	s.tell("apply a cluster role", role, err)
	s.tell("delete the cluster role", nil, s.typed.RbacV1().ClusterRoles().Delete(s.ctx, "tenancy-applied", metav1.DeleteOptions{}))
	policy, err := s.typed.NetworkingV1().NetworkPolicies(s.namespace).Apply(s.ctx,
		networkingv1apply.NetworkPolicy("applied", s.namespace).WithSpec(networkingv1apply.NetworkPolicySpec().
			WithIngress(networkingv1apply.NetworkPolicyIngressRule().WithFrom(networkingv1apply.NetworkPolicyPeer().
				WithNamespaceSelector(metav1apply.LabelSelector())))), options)
	s.tell("apply a network policy", policy, err)
}

// options are those of writing.
func (s *session) options() {
	api := s.typed.CoreV1().ConfigMaps(s.namespace)
	dry := metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}
	made, err := api.Create(s.ctx, configMap("", "dry", nil), dry)
	s.tell("create without effect", made, err)
	_, err = api.Get(s.ctx, "dry", metav1.GetOptions{})
	s.tell("there is none", nil, err)
	_, err = api.Create(s.ctx, configMap("", "dry", nil), metav1.CreateOptions{DryRun: []string{"Some"}})
	s.tell("create with some effect", nil, err)
	generated := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: "generated-"}}
	made, err = api.Create(s.ctx, generated, metav1.CreateOptions{FieldManager: "generator"})
	s.tell("create with a generated name", made, err)
	_, err = api.Create(s.ctx, configMap("default", "elsewhere", nil), metav1.CreateOptions{})
	s.tell("create in another namespace than the path's", nil, err)
	_, err = api.Create(s.ctx, &corev1.ConfigMap{}, metav1.CreateOptions{})
	s.tell("create without a name", nil, err)
	withUID := configMap("", "with-uid", nil)
	withUID.UID, withUID.ResourceVersion = "6f0a0d8c-58ab-4f7b-9f20-1c2d3e4f5a6b", ""
	made, err = api.Create(s.ctx, withUID, metav1.CreateOptions{})
	s.tell("create with a uid", made, err)
	withVersion := configMap("", "with-version", nil)
	withVersion.ResourceVersion = "7"
	_, err = api.Create(s.ctx, withVersion, metav1.CreateOptions{})
	s.tell("create with a version", nil, err)
	long := make([]byte, 129)
	for place := range long {
		long[place] = 'x'
	}
	_, err = api.Create(s.ctx, configMap("", "managed", nil), metav1.CreateOptions{FieldManager: string(long)})
	s.tell("create with a long manager", nil, err)
	for _, validation := range []string{metav1.FieldValidationStrict, metav1.FieldValidationWarn, metav1.FieldValidationIgnore, "Odd"} {
		object := untyped(example{resource: configMaps, kind: "ConfigMap", object: configMap(s.namespace, "validated", nil)}, "validated")
		object.Object["unknown"] = "field"
		made, err := s.dynamic.Resource(configMaps).Namespace(s.namespace).Create(s.ctx, object, metav1.CreateOptions{FieldValidation: validation, DryRun: []string{"All"}})
		s.tell("create with an unknown field: "+validation, made, err)
	}
}

// conflicts are what controllers meet and solve.
func (s *session) conflicts() {
	api := s.typed.CoreV1().ConfigMaps(s.namespace)
	_, err := api.Create(s.ctx, configMap(s.namespace, "counter", nil), metav1.CreateOptions{})
	s.tell("create a counter", nil, err)
	stale, err := api.Get(s.ctx, "counter", metav1.GetOptions{})
	if err != nil {
		s.tell("get the counter", nil, err)
		return
	}
	tries := 0
	err = retry.RetryOnConflict(retry.DefaultRetry, func() error {
		tries++
		fresh, err := api.Get(s.ctx, "counter", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if tries == 1 {
			// Somebody else was faster.
			if _, err := api.Patch(s.ctx, "counter", types.MergePatchType, []byte(`{"data":{"n":"1"}}`), metav1.PatchOptions{}); err != nil {
				return err
			}
		}
		fresh.Data = map[string]string{"n": "2"}
		_, err = api.Update(s.ctx, fresh, metav1.UpdateOptions{})
		return err
	})
	s.tell("a conflict is solved", tries, err)
	stale.Data = map[string]string{"n": "9"}
	_, err = api.Update(s.ctx, stale, metav1.UpdateOptions{})
	s.tell("a stale update", apierrors.IsConflict(err), nil)
	s.tell("a stale update's error", nil, err)
	body, err := json.Marshal(map[string]any{"metadata": map[string]any{"resourceVersion": stale.ResourceVersion}, "data": map[string]string{"n": "9"}})
	if err != nil {
		panic(err)
	}
	_, err = api.Patch(s.ctx, "counter", types.MergePatchType, body, metav1.PatchOptions{})
	s.tell("a stale patch", nil, err)
}
