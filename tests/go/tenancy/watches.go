package main

import (
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
)

var configMaps = schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}

// begin opens a watch, by one of the three clients.
type begin func(namespace string, options metav1.ListOptions) (watch.Interface, error)

func (s *session) beginnings() map[string]begin {
	return map[string]begin{
		"typed": func(namespace string, options metav1.ListOptions) (watch.Interface, error) {
			return s.typed.CoreV1().ConfigMaps(namespace).Watch(s.ctx, options)
		},
		"dynamic": func(namespace string, options metav1.ListOptions) (watch.Interface, error) {
			return s.dynamic.Resource(configMaps).Namespace(namespace).Watch(s.ctx, options)
		},
		"metadata": func(namespace string, options metav1.ListOptions) (watch.Interface, error) {
			return s.metadata.Resource(configMaps).Namespace(namespace).Watch(s.ctx, options)
		},
	}
}

// events takes events until the one that is the last, or until none comes. Bookmarks come when they like, so only those
// that end a beginning are told.
func events(watching watch.Interface, last func(watch.Event) bool) []string {
	defer watching.Stop()
	told := []string{}
	late := time.After(patience)
	for {
		select {
		case event, open := <-watching.ResultChan():
			if !open {
				return append(told, "end")
			}
			if text := tellEvent(event); text != "" {
				told = append(told, text)
			}
			if last(event) {
				return told
			}
		case <-late:
			return append(told, "nothing more came")
		}
	}
}

func tellEvent(event watch.Event) string {
	if status, ok := event.Object.(*metav1.Status); ok {
		return fmt.Sprintf("%s %d %s", event.Type, status.Code, status.Reason)
	}
	accessor, err := meta.Accessor(event.Object)
	if err != nil {
		return fmt.Sprintf("%s %T", event.Type, event.Object)
	}
	if event.Type == watch.Bookmark {
		if accessor.GetAnnotations()[metav1.InitialEventsAnnotationKey] == "true" {
			return "BOOKMARK that ends the beginning"
		}
		return ""
	}
	return fmt.Sprintf("%s %s/%s %v %v", event.Type, accessor.GetNamespace(), accessor.GetName(), accessor.GetLabels(), accessor.GetResourceVersion() != "")
}

func named(name string) func(watch.Event) bool {
	return func(event watch.Event) bool {
		accessor, err := meta.Accessor(event.Object)
		return err == nil && accessor.GetName() == name || event.Type == watch.Error
	}
}

func watches(s *session) {
	api := s.typed.CoreV1().ConfigMaps(s.namespace)
	chosen := metav1.ListOptions{LabelSelector: "watched"}
	at := func() string {
		list, err := api.List(s.ctx, metav1.ListOptions{Limit: 1})
		if err != nil {
			s.tell("list", nil, err)
			return ""
		}
		return list.ResourceVersion
	}
	change := func(text string, err error) {
		if err != nil {
			s.tell(text, nil, err)
		}
	}
	label := func(namespace, name, labels string) {
		_, err := s.typed.CoreV1().ConfigMaps(namespace).Patch(s.ctx, name, types.MergePatchType, []byte(`{"metadata":{"labels":`+labels+`}}`), metav1.PatchOptions{})
		change("label "+name, err)
	}
	create := func(namespace, name string, labels map[string]string) {
		_, err := s.typed.CoreV1().ConfigMaps(namespace).Create(s.ctx, configMap(namespace, name, labels), metav1.CreateOptions{})
		change("create "+name, err)
	}
	watched := map[string]string{"watched": "yes"}
	start := at()
	// What happens while nobody watches is told to those that begin at a version before it.
	create(s.namespace, "a", watched)
	create(s.other, "a", watched)
	create(s.namespace, "b", nil)
	label(s.namespace, "b", `{"watched":"yes"}`)
	label(s.namespace, "a", `{"watched":"still"}`)
	label(s.namespace, "a", `{"watched":null}`)
	change("delete", api.Delete(s.ctx, "b", metav1.DeleteOptions{}))
	create(s.namespace, "last", watched)
	create(s.other, "last", watched)
	for _, client := range []string{"typed", "dynamic", "metadata"} {
		open := s.beginnings()[client]
		follow := func(what, namespace string, options metav1.ListOptions, last func(watch.Event) bool) {
			watching, err := open(namespace, options)
			if err != nil {
				s.tell(client+" "+what, nil, err)
				return
			}
			s.tell(client+" "+what, events(watching, last), nil)
		}
		since := chosen
		since.ResourceVersion = start
		follow("from a version, of one namespace", s.namespace, since, named("last"))
		lastOfOther := func(event watch.Event) bool {
			accessor, err := meta.Accessor(event.Object)
			return err == nil && accessor.GetName() == "last" && accessor.GetNamespace() == s.other || event.Type == watch.Error
		}
		follow("from a version, of all namespaces", "", since, lastOfOther)
		byField := metav1.ListOptions{ResourceVersion: start, FieldSelector: "metadata.name=last,metadata.namespace=" + s.other}
		follow("from a version, by fields", "", byField, named("last"))
		follow("from a version, by name", s.namespace, metav1.ListOptions{ResourceVersion: start, FieldSelector: "metadata.name=b"}, func(event watch.Event) bool {
			return event.Type == watch.Deleted || event.Type == watch.Error
		})
		initial := chosen
		initial.SendInitialEvents = ptr(true)
		initial.ResourceVersionMatch = metav1.ResourceVersionMatchNotOlderThan
		initial.AllowWatchBookmarks = true
		marks := func(event watch.Event) bool { return event.Type == watch.Bookmark || event.Type == watch.Error }
		follow("from the beginning, of one namespace", s.namespace, initial, marks)
		initial.LabelSelector, initial.FieldSelector = "watched", "metadata.namespace="+s.other
		follow("from the beginning, of another namespace of all", "", initial, marks)
		initial.ResourceVersion = "0"
		follow("from any beginning", s.namespace, initial, marks)
		short := chosen
		short.TimeoutSeconds, short.ResourceVersion = ptr(int64(1)), at()
		follow("for a second", s.namespace, short, func(watch.Event) bool { return false })
		bad := chosen
		bad.ResourceVersion = "x"
		follow("from no version", s.namespace, bad, marks)
		bad = chosen
		bad.SendInitialEvents = ptr(true)
		follow("from the beginning without a match", s.namespace, bad, marks)
		bad = metav1.ListOptions{FieldSelector: "data.x=y"}
		follow("by an unknown field", s.namespace, bad, marks)
		newest := chosen
		watching, err := open("", newest)
		if err != nil {
			s.tell(client+" from now on", nil, err)
			continue
		}
		create(s.other, "now-"+client, watched)
		// It begins with what is there, in any order.
		s.tell(client+" from now on", sorted(events(watching, named("now-"+client))), nil)
	}
	s.watchNamespaces()
}

// watchNamespaces follows what has no namespace.
func (s *session) watchNamespaces() {
	list, err := s.typed.CoreV1().Namespaces().List(s.ctx, metav1.ListOptions{})
	if err != nil {
		s.tell("list namespaces", nil, err)
		return
	}
	change := func(labels string) {
		_, err := s.typed.CoreV1().Namespaces().Patch(s.ctx, s.other, types.MergePatchType, []byte(`{"metadata":{"labels":`+labels+`}}`), metav1.PatchOptions{})
		if err != nil {
			s.tell("label a namespace", nil, err)
		}
	}
	change(`{"followed":"one"}`)
	change(`{"followed":"two"}`)
	change(`{"followed":null}`)
	change(`{"done":"yes"}`)
	done := func(event watch.Event) bool {
		accessor, err := meta.Accessor(event.Object)
		return err == nil && accessor.GetLabels()["done"] == "yes" || event.Type == watch.Error
	}
	gone := func(event watch.Event) bool { return event.Type == watch.Deleted || event.Type == watch.Error }
	for _, how := range []struct {
		what    string
		options metav1.ListOptions
		last    func(watch.Event) bool
	}{
		{"by name", metav1.ListOptions{FieldSelector: "metadata.name=" + s.other}, done},
		{"by label", metav1.ListOptions{LabelSelector: "followed"}, gone},
		{"by the label of the name", metav1.ListOptions{LabelSelector: "kubernetes.io/metadata.name=" + s.other}, done},
	} {
		how.options.ResourceVersion = list.ResourceVersion
		watching, err := s.typed.CoreV1().Namespaces().Watch(s.ctx, how.options)
		if err != nil {
			s.tell("namespaces "+how.what, nil, err)
			continue
		}
		s.tell("namespaces "+how.what, events(watching, how.last), nil)
	}
	// A watch of each encoding ends in time by itself.
	watching, err := s.typed.CoreV1().Namespaces().Watch(s.ctx, metav1.ListOptions{TimeoutSeconds: ptr(int64(1)), FieldSelector: "metadata.name=" + s.other})
	if err == nil {
		s.tell("namespaces for a second", events(watching, func(watch.Event) bool { return false }), nil)
	} else {
		s.tell("namespaces for a second", nil, err)
	}
}
