package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/metadata/metadatainformer"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// followed is an informer and what its handlers were told, by object.
type followed struct {
	what     string
	informer cache.SharedIndexInformer
	lock     sync.Mutex
	told     map[string][]string
}

func follow(what string, informer cache.SharedIndexInformer) *followed {
	f := &followed{what: what, informer: informer, told: map[string][]string{}}
	note := func(verb string, object any) {
		key, err := cache.DeletionHandlingMetaNamespaceKeyFunc(object)
		if err != nil {
			key = err.Error()
		}
		f.lock.Lock()
		defer f.lock.Unlock()
		f.told[key] = append(f.told[key], verb)
	}
	_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(object any) { note("added", object) },
		UpdateFunc: func(_, object any) { note("updated", object) },
		DeleteFunc: func(object any) { note("deleted", object) },
	})
	if err != nil {
		panic(err)
	}
	return f
}

// told are the handlers' calls for objects with these names.
func (f *followed) tellOf(names ...string) map[string][]string {
	f.lock.Lock()
	defer f.lock.Unlock()
	told := map[string][]string{}
	for key, verbs := range f.told {
		if slices.ContainsFunc(names, func(name string) bool { return name == key }) {
			told[key] = slices.Clone(verbs)
		}
	}
	return told
}

func runInformers(s *session) {
	ctx, stop := context.WithCancel(s.ctx)
	defer stop()
	chosen := func(options *metav1.ListOptions) { options.LabelSelector = "informed" }
	all := informers.NewSharedInformerFactoryWithOptions(s.typed, 0, informers.WithTweakListOptions(chosen))
	one := informers.NewSharedInformerFactoryWithOptions(s.typed, 0, informers.WithNamespace(s.namespace), informers.WithTweakListOptions(chosen))
	untyped := dynamicinformer.NewFilteredDynamicSharedInformerFactory(s.dynamic, 0, "", chosen)
	parts := metadatainformer.NewFilteredSharedInformerFactory(s.metadata, 0, "", chosen)
	followers := []*followed{
		follow("typed, all namespaces", all.Core().V1().ConfigMaps().Informer()),
		follow("typed, one namespace", one.Core().V1().ConfigMaps().Informer()),
		follow("dynamic, all namespaces", untyped.ForResource(configMaps).Informer()),
		follow("metadata, all namespaces", parts.ForResource(configMaps).Informer()),
		follow("typed, namespaces", all.Core().V1().Namespaces().Informer()),
		follow("typed, cluster roles", all.Rbac().V1().ClusterRoles().Informer()),
	}
	informed := map[string]string{"informed": "yes"}
	create := func(namespace, name string) {
		_, err := s.typed.CoreV1().ConfigMaps(namespace).Create(s.ctx, configMap(namespace, name, informed), metav1.CreateOptions{})
		if err != nil {
			s.tell("create "+name, nil, err)
		}
	}
	create(s.namespace, "early")
	create(s.other, "early")
	for _, f := range followers {
		go f.informer.RunWithContext(ctx)
	}
	for _, f := range followers {
		s.tell("synced: "+f.what, until(f.informer.HasSynced), nil)
	}
	create(s.namespace, "late")
	create(s.other, "late")
	patch := func(namespace, name, labels string) {
		_, err := s.typed.CoreV1().ConfigMaps(namespace).Patch(s.ctx, name, types.MergePatchType, []byte(`{"metadata":{"labels":`+labels+`}}`), metav1.PatchOptions{})
		if err != nil {
			s.tell("patch "+name, nil, err)
		}
	}
	patch(s.namespace, "early", `{"more":"yes"}`)
	patch(s.other, "early", `{"informed":null}`)
	if err := s.typed.CoreV1().ConfigMaps(s.namespace).Delete(s.ctx, "late", metav1.DeleteOptions{}); err != nil {
		s.tell("delete", nil, err)
	}
	_, err := s.typed.CoreV1().Namespaces().Patch(s.ctx, s.other, types.MergePatchType, []byte(`{"metadata":{"labels":{"informed":"yes"}}}`), metav1.PatchOptions{})
	s.tell("label a namespace", err == nil, nil)
	create(s.namespace, "end")
	keys := []string{}
	for _, namespace := range []string{s.namespace, s.other} {
		for _, name := range []string{"early", "late", "end"} {
			keys = append(keys, namespace+"/"+name)
		}
	}
	for _, f := range followers[:4] {
		came := until(func() bool {
			return len(f.tellOf(s.namespace+"/end")) == 1 && len(f.tellOf(s.namespace + "/late")[s.namespace+"/late"]) == 2
		})
		s.tell("told: "+f.what, []any{came, f.tellOf(keys...)}, nil)
		held := []string{}
		for _, object := range f.informer.GetStore().List() {
			accessor, err := meta.Accessor(object)
			if err != nil {
				panic(err)
			}
			held = append(held, fmt.Sprintf("%s/%s %v", accessor.GetNamespace(), accessor.GetName(), accessor.GetLabels()))
		}
		s.tell("held: "+f.what, sorted(held), nil)
	}
	came := until(func() bool { return len(followers[4].tellOf(s.other)) == 1 })
	s.tell("told: "+followers[4].what, []any{came, followers[4].tellOf(s.other, s.namespace, "default")}, nil)
	s.elect()
}

// elect makes one leader of two candidates, and the other one when the first goes.
func (s *session) elect() {
	lead := func(ctx context.Context, name string, begun chan<- string) {
		lock := &resourcelock.LeaseLock{
			LeaseMeta:  metav1.ObjectMeta{Namespace: s.namespace, Name: "leader"},
			Client:     s.typed.CoordinationV1(),
			LockConfig: resourcelock.ResourceLockConfig{Identity: name},
		}
		leaderelection.RunOrDie(ctx, leaderelection.LeaderElectionConfig{
			Lock: lock, LeaseDuration: 4 * time.Second, RenewDeadline: 3 * time.Second, RetryPeriod: 200 * time.Millisecond,
			ReleaseOnCancel: true,
			Callbacks: leaderelection.LeaderCallbacks{
				OnStartedLeading: func(context.Context) { begun <- name },
				OnStoppedLeading: func() {},
			},
		})
	}
	begun := make(chan string, 2)
	first, stopFirst := context.WithCancel(s.ctx)
	second, stopSecond := context.WithCancel(s.ctx)
	defer stopFirst()
	defer stopSecond()
	leaders := []string{}
	next := func() {
		select {
		case name := <-begun:
			leaders = append(leaders, name)
		case <-time.After(patience):
			leaders = append(leaders, "nobody")
		}
	}
	go lead(first, "one", begun)
	next()
	go lead(second, "two", begun)
	stopFirst()
	next()
	s.tell("leaders", leaders, nil)
}
