package main

import (
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func deletes(s *session) {
	api := s.typed.CoreV1().ConfigMaps(s.namespace)
	make := func(name string, labels map[string]string) *corev1.ConfigMap {
		made, err := api.Create(s.ctx, configMap(s.namespace, name, labels), metav1.CreateOptions{})
		if err != nil {
			s.tell("create "+name, nil, err)
			return configMap(s.namespace, name, labels)
		}
		return made
	}
	one := make("one", nil)
	wrong := types.UID("6f0a0d8c-58ab-4f7b-9f20-1c2d3e4f5a6b")
	s.tell("delete without effect", nil, api.Delete(s.ctx, "one", metav1.DeleteOptions{DryRun: []string{"All"}}))
	s.tell("delete another uid", nil, api.Delete(s.ctx, "one", metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &wrong}}))
	s.tell("delete another version", nil, api.Delete(s.ctx, "one", metav1.DeleteOptions{Preconditions: &metav1.Preconditions{ResourceVersion: ptr("1")}}))
	s.tell("delete with a policy that there is not", nil, api.Delete(s.ctx, "one", metav1.DeleteOptions{PropagationPolicy: ptr(metav1.DeletionPropagation("Odd"))}))
	s.tell("delete this uid", nil, api.Delete(s.ctx, "one", metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &one.UID}}))
	s.tell("delete it again", nil, api.Delete(s.ctx, "one", metav1.DeleteOptions{}))

	// The owner waits for those that block it; an orphan stays.
	owner := make("owner", nil)
	owned := func(name string, owner *corev1.ConfigMap) {
		object := configMap(s.namespace, name, map[string]string{"owned": "yes"})
		object.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "ConfigMap", Name: owner.Name, UID: owner.UID, BlockOwnerDeletion: ptr(true)}}
		_, err := api.Create(s.ctx, object, metav1.CreateOptions{})
		s.tell("create the owned "+name, nil, err)
	}
	gone := func(name string) bool {
		return until(func() bool {
			_, err := api.Get(s.ctx, name, metav1.GetOptions{})
			return apierrors.IsNotFound(err)
		})
	}
	owned("owned", owner)
	s.tell("delete in the foreground", nil, api.Delete(s.ctx, "owner", metav1.DeleteOptions{PropagationPolicy: ptr(metav1.DeletePropagationForeground)}))
	s.tell("both are gone", []bool{gone("owner"), gone("owned")}, nil)
	owner = make("owner", nil)
	owned("orphan", owner)
	s.tell("delete without the owned", nil, api.Delete(s.ctx, "owner", metav1.DeleteOptions{PropagationPolicy: ptr(metav1.DeletePropagationOrphan)}))
	s.tell("the owner is gone", gone("owner"), nil)
	orphan, err := api.Get(s.ctx, "orphan", metav1.GetOptions{})
	if err == nil {
		s.tell("the orphan has no owner", len(orphan.OwnerReferences), nil)
	} else {
		s.tell("the orphan", nil, err)
	}
	// An owner without a namespace.
	role, err := s.typed.RbacV1().ClusterRoles().Create(s.ctx, clusterRole("tenancy-owner"), metav1.CreateOptions{})
	s.tell("create a cluster role", role, err)
	if err == nil {
		object := configMap(s.namespace, "owned-by-role", nil)
		object.OwnerReferences = []metav1.OwnerReference{{APIVersion: "rbac.authorization.k8s.io/v1", Kind: "ClusterRole", Name: role.Name, UID: role.UID}}
		made, err := api.Create(s.ctx, object, metav1.CreateOptions{})
		s.tell("create what it owns", made, err)
		// The collector looks at an object whose owner it does not know; it must find this one.
		never := make("to-be-collected", nil)
		doomed := configMap(s.namespace, "doomed", nil)
		doomed.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "ConfigMap", Name: "nobody", UID: never.UID}}
		_, err = api.Create(s.ctx, doomed, metav1.CreateOptions{})
		s.tell("create what nobody owns", nil, err)
		s.tell("it is gone", gone("doomed"), nil)
		_, err = api.Get(s.ctx, "owned-by-role", metav1.GetOptions{})
		s.tell("the role's is there", err == nil, err)
		s.tell("delete the cluster role", nil, s.typed.RbacV1().ClusterRoles().Delete(s.ctx, role.Name, metav1.DeleteOptions{}))
		s.tell("so the role's goes", gone("owned-by-role"), nil)
	}

	for _, name := range []string{"many-1", "many-2", "many-3"} {
		make(name, map[string]string{"many": "yes"})
	}
	left := func(what string) {
		list, err := api.List(s.ctx, metav1.ListOptions{LabelSelector: "many"})
		if err != nil {
			s.tell(what, nil, err)
			return
		}
		s.tell(what, names(list), nil)
	}
	s.tell("delete many without effect", nil, api.DeleteCollection(s.ctx, metav1.DeleteOptions{DryRun: []string{"All"}}, metav1.ListOptions{LabelSelector: "many"}))
	left("all are left")
	s.tell("delete one of many", nil, api.DeleteCollection(s.ctx, metav1.DeleteOptions{}, metav1.ListOptions{FieldSelector: "metadata.name=many-2"}))
	left("two are left")
	s.tell("delete those of another namespace", nil, api.DeleteCollection(s.ctx, metav1.DeleteOptions{}, metav1.ListOptions{FieldSelector: "metadata.namespace=default"}))
	left("two are left still")
	s.tell("delete many", nil, api.DeleteCollection(s.ctx, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "many"}))
	left("none is left")
	s.tell("delete many metadata", nil, s.metadata.Resource(configMaps).Namespace(s.namespace).DeleteCollection(s.ctx, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "owned"}))
	s.tell("delete cluster roles by label", nil, s.typed.RbacV1().ClusterRoles().DeleteCollection(s.ctx, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "tenancy=nothing"}))
	held := configMap(s.namespace, "held", nil)
	held.Finalizers = []string{"example.com/held"}
	_, err = api.Create(s.ctx, held, metav1.CreateOptions{})
	s.tell("create one with a finalizer", nil, err)
	s.tell("delete it", nil, api.Delete(s.ctx, "held", metav1.DeleteOptions{}))
	waiting, err := api.Get(s.ctx, "held", metav1.GetOptions{})
	s.tell("it waits", waiting, err)
	_, err = api.Patch(s.ctx, "held", types.MergePatchType, []byte(`{"metadata":{"finalizers":["example.com/held","example.com/more"]}}`), metav1.PatchOptions{})
	s.tell("hold it more", nil, err)
	_, err = api.Patch(s.ctx, "held", types.JSONPatchType, []byte(`[{"op":"remove","path":"/metadata/finalizers"}]`), metav1.PatchOptions{})
	s.tell("let it go", nil, err)
	s.tell("it is gone at once", gone("held"), nil)
}
