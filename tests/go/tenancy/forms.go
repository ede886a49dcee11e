package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

func clusterRole(name string) *rbacv1.ClusterRole {
	return &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name}}
}

const (
	table    = "application/json;as=Table;v=v1;g=meta.k8s.io"
	part     = "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io"
	partList = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"
)

// answer is what is told of an answer over HTTP.
type answer struct {
	Status  int               `json:"status"`
	Headers map[string]string `json:"headers,omitempty"`
	Body    any               `json:"body,omitempty"`
}

// told are the headers that clients act upon.
var told = []string{"Content-Type", "Content-Encoding", "Cache-Control", "Warning", "Allow", "Location", "Retry-After", "Vary", "WWW-Authenticate"}

// ask sends a request as it is, and tells the answer.
func (s *session) ask(method, path string, headers map[string]string, body string) {
	ctx, cancel := context.WithTimeout(s.ctx, patience)
	defer cancel()
	what := fmt.Sprintf("%s %s %s %s", method, path, shown(headers), body)
	client, err := rest.HTTPClientFor(s.config)
	if err != nil {
		panic(err)
	}
	request, err := http.NewRequestWithContext(ctx, method, s.config.Host+path, strings.NewReader(body))
	if err != nil {
		s.tell(what, nil, err)
		return
	}
	for name, value := range headers {
		request.Header.Set(name, value)
	}
	response, err := client.Do(request)
	if err != nil {
		s.tell(what, nil, err)
		return
	}
	defer response.Body.Close()
	bytes, err := io.ReadAll(response.Body)
	if err != nil {
		s.tell(what, nil, err)
		return
	}
	found := answer{Status: response.StatusCode, Headers: map[string]string{}}
	for _, name := range told {
		if values := response.Header.Values(name); len(values) > 0 {
			found.Headers[name] = strings.Join(values, ", ")
		}
	}
	switch {
	case json.Valid(bytes):
		var value any
		if err := json.Unmarshal(bytes, &value); err != nil {
			panic(err)
		}
		if s.area == "forms" {
			settle(value)
		}
		found.Body = value
	case strings.Contains(found.Headers["Content-Type"], "protobuf") || found.Headers["Content-Encoding"] != "":
		// Ids and times differ in them; the other areas read such answers.
		found.Body = fmt.Sprintf("binary: %v", len(bytes) > 0)
	default:
		found.Body = string(bytes)
	}
	s.tell(what, found, nil)
}

func shown(headers map[string]string) string {
	texts := []string{}
	for name, value := range headers {
		texts = append(texts, name+": "+value)
	}
	slices.Sort(texts)
	return strings.Join(texts, ", ")
}

func path(e example, namespace, more string) string {
	prefix := "/apis/" + e.resource.Group + "/" + e.resource.Version
	if e.resource.Group == "" {
		prefix = "/api/" + e.resource.Version
	}
	if e.namespaced {
		prefix += "/namespaces/" + namespace
	}
	return prefix + "/" + e.resource.Resource + more
}

// forms asks for tables and for metadata alone, of each kind, in lists, single and as they change.
func forms(s *session) {
	made := func(e example) string {
		switch {
		case e.kind == "Namespace":
			// That one is there.
			return s.other
		case e.namespaced:
			return name(e.object)
		}
		return "tenancy-forms"
	}
	for _, e := range examples() {
		named := made(e)
		if e.kind != "Namespace" {
			client := s.dynamic.Resource(e.resource)
			var err error
			if e.namespaced {
				_, err = client.Namespace(s.other).Create(s.ctx, untyped(e, named), metav1.CreateOptions{})
			} else {
				_, err = client.Create(s.ctx, untyped(e, named), metav1.CreateOptions{})
			}
			if err != nil {
				s.tell("create "+e.resource.String(), nil, err)
			}
		}
	}
	// What tables show of these comes from controllers.
	settled := until(func() bool {
		job, err := s.typed.BatchV1().Jobs(s.other).Get(s.ctx, "example", metav1.GetOptions{})
		quota, errOfQuota := s.typed.CoreV1().ResourceQuotas(s.other).Get(s.ctx, "example", metav1.GetOptions{})
		return err == nil && errOfQuota == nil && len(job.Status.Conditions) > 0 && len(quota.Status.Hard) > 0
	})
	s.tell("controllers have seen them", settled, nil)
	for _, e := range examples() {
		named := made(e)
		one, chosen := path(e, s.other, "/"+named), "?labelSelector="+marked
		if e.kind == "Namespace" {
			chosen = "?fieldSelector=" + url.QueryEscape("metadata.name="+named)
		}
		s.ask("GET", one, map[string]string{"Accept": table}, "")
		s.ask("GET", path(e, s.other, chosen), map[string]string{"Accept": table + ",application/json"}, "")
		s.ask("GET", path(e, s.other, chosen+"&includeObject=None"), map[string]string{"Accept": table}, "")
		s.ask("GET", one, map[string]string{"Accept": part}, "")
		s.ask("GET", path(e, s.other, chosen), map[string]string{"Accept": partList}, "")
		if !e.namespaced && e.kind != "Namespace" {
			s.tell("delete "+named, nil, s.dynamic.Resource(e.resource).Delete(s.ctx, named, metav1.DeleteOptions{}))
		}
	}
	secrets := "/api/v1/namespaces/" + s.namespace + "/secrets"
	s.ask("GET", secrets+"?limit=2&includeObject=Object", map[string]string{"Accept": table}, "")
	s.ask("GET", secrets+"?includeObject=Some", map[string]string{"Accept": table}, "")
	s.ask("GET", "/api/v1/secrets?limit=2", map[string]string{"Accept": table}, "")
	s.ask("GET", "/api/v1/secrets?limit=2", map[string]string{"Accept": partList}, "")
	s.ask("GET", secrets, map[string]string{"Accept": "application/json;as=Table;v=v9;g=meta.k8s.io"}, "")
	s.ask("GET", secrets, map[string]string{"Accept": "application/json;as=Chair;v=v1;g=meta.k8s.io"}, "")
	s.ask("GET", secrets+"?watch=1&timeoutSeconds=1&fieldSelector=metadata.name%3Dlisted-00", map[string]string{"Accept": table}, "")
	s.ask("GET", secrets+"?watch=1&timeoutSeconds=1&fieldSelector=metadata.name%3Dlisted-00", map[string]string{"Accept": part}, "")
}
