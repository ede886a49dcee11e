package main

import (
	"encoding/json"
	"fmt"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes/scheme"
	clientmetadata "k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
)

// kinds does the same with an object of each kind: typed objects in protobuf, then objects without a type in JSON.
func kinds(s *session) {
	for _, example := range examples() {
		s.typedKind(example)
	}
	for _, example := range examples() {
		s.untypedKind(example)
	}
}

// in is where objects of this kind are.
func (s *session) in(e example, namespace string) string {
	if e.namespaced {
		return namespace
	}
	return ""
}

func name(object runtime.Object) string {
	accessor, err := meta.Accessor(object)
	if err != nil {
		panic(err)
	}
	return accessor.GetName()
}

func version(object runtime.Object) string {
	accessor, err := meta.Accessor(object)
	if err != nil {
		panic(err)
	}
	return accessor.GetResourceVersion()
}

// restClient is what the typed clients are made of, for the group of this kind.
func (s *session) restClient(version schema.GroupVersion) rest.Interface {
	config := rest.CopyConfig(s.config)
	config.GroupVersion = &version
	config.APIPath = "/apis"
	if version.Group == "" {
		config.APIPath = "/api"
	}
	config.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	config.ContentType = runtime.ContentTypeProtobuf
	config.NegotiatedSerializer = scheme.Codecs.WithoutConversion()
	client, err := rest.RESTClientFor(config)
	if err != nil {
		panic(err)
	}
	return client
}

func (s *session) typedKind(e example) {
	client := s.restClient(e.resource.GroupVersion())
	named := name(e.object)
	what := func(verb string) string {
		return fmt.Sprintf("typed %s %s", verb, e.resource.GroupResource()) + "/" + e.resource.Version
	}
	request := func(request *rest.Request) *rest.Request {
		return request.NamespaceIfScoped(s.namespace, e.namespaced).Resource(e.resource.Resource)
	}
	tell := func(verb string, result rest.Result) runtime.Object {
		object, err := result.Get()
		s.tell(what(verb), settled(object, err), err)
		return object
	}
	dry := request(client.Post()).VersionedParams(&metav1.CreateOptions{DryRun: []string{"All"}}, scheme.ParameterCodec)
	tell("dry-run create", dry.Body(e.object).Do(s.ctx))
	tell("create", request(client.Post()).Body(e.object).Do(s.ctx))
	tell("create again", request(client.Post()).Body(e.object).Do(s.ctx))
	got := tell("get", request(client.Get()).Name(named).Do(s.ctx))
	if got != nil {
		updated := got.DeepCopyObject()
		accessor, err := meta.Accessor(updated)
		if err != nil {
			panic(err)
		}
		accessor.SetAnnotations(map[string]string{"updated": "yes"})
		result := request(client.Put()).Name(named).Body(updated).Do(s.ctx)
		for tries := 0; apierrors.IsConflict(result.Error()) && tries < 20; tries++ {
			// A controller was faster.
			if fresh, err := request(client.Get()).Name(named).Do(s.ctx).Get(); err == nil {
				accessor.SetResourceVersion(version(fresh))
			}
			result = request(client.Put()).Name(named).Body(updated).Do(s.ctx)
		}
		tell("update", result)
		accessor.SetResourceVersion("1")
		tell("update a stale", request(client.Put()).Name(named).Body(updated).Do(s.ctx))
	}
	patch := []byte(`{"metadata":{"labels":{"patched":"yes"}}}`)
	tell("patch", request(client.Patch(types.StrategicMergePatchType)).Name(named).Body(patch).Do(s.ctx))
	list := func(verb string, namespace bool, options metav1.ListOptions) {
		request := client.Get().Resource(e.resource.Resource).VersionedParams(&options, scheme.ParameterCodec)
		if namespace {
			request = request.NamespaceIfScoped(s.namespace, e.namespaced)
		}
		tell(verb, request.Do(s.ctx))
	}
	list("list", true, metav1.ListOptions{LabelSelector: marked})
	list("list everywhere", false, metav1.ListOptions{LabelSelector: marked})
	list("list by name", true, metav1.ListOptions{FieldSelector: "metadata.name=" + named})
	if e.namespaced {
		fields := "metadata.namespace=" + s.namespace + ",metadata.name=" + named
		list("list everywhere by name", false, metav1.ListOptions{FieldSelector: fields})
	}
	tell("get none", request(client.Get()).Name("nothing").Do(s.ctx))
	tell("delete", request(client.Delete()).Name(named).Body(&metav1.DeleteOptions{GracePeriodSeconds: ptr(int64(0))}).Do(s.ctx))
	s.gone(what("gone"), e, s.namespace, named)
}

// gone waits until an object is, as some have finalizers that controllers take away.
func (s *session) gone(what string, e example, namespace, named string) {
	if e.kind == "Namespace" {
		// It takes five seconds; the tests of kubectl wait for it.
		return
	}
	resource := s.metadata.Resource(e.resource)
	so := until(func() bool {
		var err error
		if e.namespaced {
			_, err = resource.Namespace(namespace).Get(s.ctx, named, metav1.GetOptions{})
		} else {
			_, err = resource.Get(s.ctx, named, metav1.GetOptions{})
		}
		return err != nil
	})
	s.tell(what, so, nil)
}

// untyped is the example as a client without types sends it, under a name of its own where there may be one only.
func untyped(e example, named string) *unstructured.Unstructured {
	fields, err := runtime.DefaultUnstructuredConverter.ToUnstructured(e.object)
	if err != nil {
		panic(err)
	}
	object := &unstructured.Unstructured{Object: fields}
	object.SetGroupVersionKind(e.resource.GroupVersion().WithKind(e.kind))
	object.SetName(named)
	unstructured.RemoveNestedField(object.Object, "status")
	return object
}

func (s *session) untypedKind(e example) {
	what := func(verb string) string {
		return fmt.Sprintf("untyped %s %s", verb, e.resource.GroupResource()) + "/" + e.resource.Version
	}
	named := name(e.object) + "-untyped"
	var client dynamic.ResourceInterface = s.dynamic.Resource(e.resource)
	var metadata clientmetadata.ResourceInterface = s.metadata.Resource(e.resource)
	if e.namespaced {
		client = s.dynamic.Resource(e.resource).Namespace(s.namespace)
		metadata = s.metadata.Resource(e.resource).Namespace(s.namespace)
	}
	object, err := client.Create(s.ctx, untyped(e, named), metav1.CreateOptions{FieldManager: "creator"})
	s.tell(what("create"), settled(object, err), err)
	object, err = client.Get(s.ctx, named, metav1.GetOptions{})
	s.tell(what("get"), settled(object, err), err)
	patch := []byte(`[{"op":"add","path":"/metadata/annotations","value":{"patched":"yes"}}]`)
	object, err = client.Patch(s.ctx, named, types.JSONPatchType, patch, metav1.PatchOptions{})
	s.tell(what("json patch"), settled(object, err), err)
	applied := &unstructured.Unstructured{Object: map[string]any{}}
	applied.SetGroupVersionKind(e.resource.GroupVersion().WithKind(e.kind))
	applied.SetName(named)
	applied.SetNamespace(s.in(e, s.namespace))
	applied.SetLabels(map[string]string{"applied": "yes"})
	object, err = client.Apply(s.ctx, named, applied, metav1.ApplyOptions{FieldManager: "applier"})
	s.tell(what("apply"), settled(object, err), err)
	list, err := client.List(s.ctx, metav1.ListOptions{LabelSelector: marked})
	s.tell(what("list"), settled(list, err), err)
	part, err := metadata.Get(s.ctx, named, metav1.GetOptions{})
	s.tell(what("get metadata of"), settled(part, err), err)
	parts, err := metadata.List(s.ctx, metav1.ListOptions{LabelSelector: "applied"})
	s.tell(what("list metadata of"), settled(parts, err), err)
	part, err = metadata.Patch(s.ctx, named, types.MergePatchType, []byte(`{"metadata":{"labels":{"part":"yes"}}}`), metav1.PatchOptions{})
	s.tell(what("patch metadata of"), settled(part, err), err)
	s.tell(what("delete"), nil, client.Delete(s.ctx, named, metav1.DeleteOptions{GracePeriodSeconds: ptr(int64(0))}))
	s.gone(what("gone"), e, s.namespace, named)
}

// settled is an object, or a list, without what controllers add in their own time.
func settled(object runtime.Object, err error) any {
	if err != nil {
		return nil
	}
	bytes, err := json.Marshal(object)
	if err != nil {
		panic(err)
	}
	var value map[string]any
	if err := json.Unmarshal(bytes, &value); err != nil {
		panic(err)
	}
	settle(value)
	return value
}

// settle takes status and what belongs to kube-controller-manager out of an object, a list or a table.
func settle(value any) {
	switch value := value.(type) {
	case []any:
		for _, item := range value {
			settle(item)
		}
	case map[string]any:
		metadata, isObject := value["metadata"].(map[string]any)
		if isObject && value["code"] == nil {
			delete(value, "status")
		}
		if isObject {
			delete(metadata, "generation")
			entries, _ := metadata["managedFields"].([]any)
			entries = slices.DeleteFunc(entries, func(entry any) bool {
				return entry.(map[string]any)["manager"] == "kube-controller-manager"
			})
			if len(entries) > 0 {
				metadata["managedFields"] = entries
			}
			annotations, _ := metadata["annotations"].(map[string]any)
			delete(annotations, "deployment.kubernetes.io/revision")
		}
		settle(value["items"])
		settle(value["rows"])
		settle(value["object"])
	}
}

// names are those of a list, in its order.
func names(list runtime.Object) []string {
	items, err := meta.ExtractList(list)
	if err != nil {
		panic(err)
	}
	found := []string{}
	for _, item := range items {
		accessor, err := meta.Accessor(item)
		if err != nil {
			panic(err)
		}
		found = append(found, accessor.GetNamespace()+"/"+accessor.GetName())
	}
	return found
}

func sorted(texts []string) []string {
	slices.Sort(texts)
	return texts
}
