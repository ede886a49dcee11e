package main

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// clusterEvents writes and reads events about objects that are in no namespace, as recorders of controllers do: in the
// namespace default, by both APIs.
func clusterEvents(s *session) {
	moment := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	old := s.typed.CoreV1().Events(metav1.NamespaceDefault)
	recent := s.typed.EventsV1().Events(metav1.NamespaceDefault)
	about := func(name string) *corev1.Event {
		return &corev1.Event{
			ObjectMeta:     metav1.ObjectMeta{Name: name},
			InvolvedObject: corev1.ObjectReference{APIVersion: "v1", Kind: "Namespace", Name: s.namespace},
			Reason:         "TestedCluster", Message: "Namespace tenancy was tested", Type: corev1.EventTypeNormal,
			FirstTimestamp: metav1.NewTime(moment), Count: 1,
		}
	}
	made, err := old.Create(s.ctx, about("about-namespace"), metav1.CreateOptions{})
	s.tell("create one about a namespace", made, err)
	placed := about("about-placed")
	placed.InvolvedObject.Namespace = metav1.NamespaceDefault
	made, err = old.Create(s.ctx, placed, metav1.CreateOptions{})
	s.tell("create one that says a namespace", made, err)
	fresh := &eventsv1.Event{
		ObjectMeta: metav1.ObjectMeta{Name: "about-node"},
		Regarding:  corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: "one", FieldPath: "spec.taints"},
		Related:    &corev1.ObjectReference{Kind: "Namespace", Name: s.other},
		Reason:     "TestedCluster", Note: "Node one was tested", Type: corev1.EventTypeNormal, Action: "Testing",
		ReportingController: "example.com/tester", ReportingInstance: "one", EventTime: metav1.NewMicroTime(moment),
	}
	recorded, err := recent.Create(s.ctx, fresh, metav1.CreateOptions{})
	s.tell("create one about a node", recorded, err)
	recorded, err = recent.Get(s.ctx, "about-namespace", metav1.GetOptions{})
	s.tell("get it by the other API", recorded, err)
	made, err = old.Get(s.ctx, "about-node", metav1.GetOptions{})
	s.tell("get the other by the other API", made, err)
	if err == nil {
		made.Count = 2
		made, err = old.Update(s.ctx, made, metav1.UpdateOptions{})
		s.tell("update it", made, err)
	}
	made, err = old.Patch(s.ctx, "about-namespace", types.StrategicMergePatchType, []byte(`{"count":2}`), metav1.PatchOptions{})
	s.tell("patch it", made, err)
	made, err = old.Patch(s.ctx, "about-placed", types.JSONPatchType,
		[]byte(`[{"op":"replace","path":"/involvedObject","value":{"kind":"Node","name":"two"}}]`), metav1.PatchOptions{})
	s.tell("patch what one is about", made, err)
	for _, fields := range []string{
		"", "involvedObject.namespace=", "involvedObject.namespace!=", "involvedObject.namespace=default", "involvedObject.namespace=tenancy",
		"involvedObject.kind=Namespace,involvedObject.name=tenancy", "involvedObject.kind=Node,involvedObject.name=two,involvedObject.namespace=",
	} {
		if fields != "" {
			fields += ","
		}
		list, err := s.typed.CoreV1().Events(metav1.NamespaceAll).List(s.ctx, metav1.ListOptions{FieldSelector: fields + "reason=TestedCluster"})
		s.tell("list by "+fields, list, err)
	}
	watched, err := recent.Watch(s.ctx, metav1.ListOptions{FieldSelector: "regarding.kind=Node,reason=TestedCluster", TimeoutSeconds: ptr(int64(1))})
	if err != nil {
		s.tell("watch", nil, err)
		return
	}
	for event := range watched.ResultChan() {
		s.tell("watched "+string(event.Type), event.Object, nil)
	}
	options := map[string]string{"Accept": table}
	s.ask("GET", "/api/v1/namespaces/default/events?fieldSelector=reason%3DTestedCluster", options, "")
	s.tell("delete them", nil, old.DeleteCollection(s.ctx, metav1.DeleteOptions{}, metav1.ListOptions{FieldSelector: "reason=TestedCluster"}))
}
