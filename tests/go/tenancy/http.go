package main

// rawRequests are those that no library of Kubernetes sends, but other clients do.
func rawRequests(s *session) {
	space := "/api/v1/namespaces/" + s.namespace
	maps := space + "/configmaps"
	json := map[string]string{"Content-Type": "application/json"}
	s.ask("POST", maps, json, `{"metadata":{"name":"http"},"data":{"a":"b"}}`)
	for _, accept := range []string{
		"application/json", "application/yaml", "application/vnd.kubernetes.protobuf", "application/cbor", "text/html", "*/*", "application/*",
		"text/plain, application/json;q=0.5", "application/vnd.kubernetes.protobuf;stream=watch", "nonsense", "application/json;charset=utf-8",
	} {
		s.ask("GET", maps+"/http", map[string]string{"Accept": accept}, "")
		s.ask("GET", maps+"?fieldSelector=metadata.name%3Dhttp", map[string]string{"Accept": accept}, "")
	}
	s.ask("GET", maps+"/nothing", map[string]string{"Accept": "application/yaml"}, "")
	s.ask("GET", maps+"/nothing", map[string]string{"Accept": "application/vnd.kubernetes.protobuf"}, "")
	s.ask("GET", maps+"/http?pretty=1", nil, "")
	s.ask("GET", maps+"/http", map[string]string{"User-Agent": "curl/8"}, "")
	s.ask("GET", maps+"?watch=1&timeoutSeconds=1&fieldSelector=metadata.name%3Dhttp", map[string]string{"Accept": "application/yaml"}, "")
	s.ask("GET", maps+"?watch=1&timeoutSeconds=1&fieldSelector=metadata.name%3Dhttp", map[string]string{"Accept": "application/json;stream=watch"}, "")
	s.ask("GET", maps+"?watch=maybe&timeoutSeconds=1&fieldSelector=metadata.name%3Dhttp", nil, "")
	s.ask("GET", maps+"?watch=true&watch=false&timeoutSeconds=1&fieldSelector=metadata.name%3Dhttp", nil, "")
	s.ask("POST", maps, map[string]string{"Content-Type": "application/yaml"}, "metadata: {name: yaml}\ndata: {a: b}\n")
	s.ask("PUT", maps+"/yaml", map[string]string{"Content-Type": "application/yaml"}, "metadata: {name: yaml}\ndata: {a: c}\n")
	s.ask("POST", maps, map[string]string{"Content-Type": "text/plain"}, `{"metadata":{"name":"text"}}`)
	s.ask("POST", maps, map[string]string{"Content-Type": "application/vnd.kubernetes.protobuf"}, "k8s\x00nonsense")
	s.ask("POST", maps, nil, `{"metadata":{"name":"untyped-body"}}`)
	s.ask("POST", maps, json, ``)
	s.ask("POST", maps, json, `[]`)
	s.ask("POST", maps, json, `{"metadata":{"name":"deep"},"data":`+deep(200)+`}`)
	s.ask("POST", maps, json, "\ufeff{}")
	s.ask("POST", maps, json, `{"metadata":{"name":"a"}} {"metadata":{"name":"b"}}`)
	s.ask("POST", maps, json, `{"Metadata":{"Name":"case"}}`)
	s.ask("POST", maps, json, `{"metadata":{"name":"unicode","annotations":{"a":"\u00e4\ud83d\ude00","b":"\ud800"}}}`)
	s.ask("POST", maps, json, `{"metadata":{"name":"http"}}`)
	s.ask("PUT", maps+"/new-by-put", json, `{"metadata":{"name":"new-by-put"}}`)
	s.ask("PUT", maps, json, `{}`)
	s.ask("DELETE", maps+"/yaml", json, `{"apiVersion":"v1","kind":"DeleteOptions","propagationPolicy":"Background"}`)
	s.ask("DELETE", maps+"/http?dryRun=All", nil, "")
	s.ask("DELETE", maps+"/http?gracePeriodSeconds=x", nil, "")
	s.ask("DELETE", maps+"/http", json, `{"kind":"Nonsense"}`)
	s.ask("HEAD", maps+"/http", nil, "")
	s.ask("OPTIONS", maps+"/http", nil, "")
	s.ask("PATCH", maps+"/http", json, `{}`)
	s.ask("PATCH", maps, map[string]string{"Content-Type": "application/merge-patch+json"}, `{}`)
	s.ask("BREW", maps+"/http", nil, "")
	s.ask("TRACE", maps+"/http", nil, "")
	for _, path := range []string{
		"/api/v1/namespaces/" + s.namespace + "/", maps + "/", maps + "/http/", "/api/v1/", "/api/", "/apis/", "/apis/apps/",
		"/api/v1/namespaces//configmaps", "/api/v1//namespaces", "//api/v1/namespaces/" + s.other, "/api/v1/namespaces/" + s.namespace + "/./configmaps/http",
		"/api/v1/namespaces/" + s.other + "/../" + s.namespace + "/configmaps/http", "/api/v1/namespaces/x%2f..%2f" + s.namespace + "/configmaps/http",
		maps + "/a%2fb", maps + "/%68ttp", "/API/v1/namespaces", "/apis/Apps/v1/deployments", "/api/v1/ConfigMaps", "/apis/apps/v1/namespaces/tenancy/deployments/a/scale/b",
		"/api/v1/namespaces/tenancy/pods/a/exec", "/api/v1/nodes/a/proxy/", "/api/v1/proxy/nodes/a", "/api/v1/namespaces/tenancy/services/http:a:b/proxy/x",
		"/swagger.json", "/ui", "/index.html", "/healthz/etcd", "/.well-known/nothing", "/robots.txt",
	} {
		s.ask("GET", path, nil, "")
	}
	for _, headers := range []map[string]string{
		{"Impersonate-User": "jane"},
		{"Impersonate-User": "jane", "Impersonate-Group": "system:masters"},
		{"Impersonate-Group": "system:masters"},
		{"Impersonate-User": "system:serviceaccount:tenancy:default"},
		{"Impersonate-User": "jane", "Impersonate-Uid": "7", "Impersonate-Extra-Scope": "all"},
		{"X-Remote-User": "root", "X-Remote-Group": "system:masters"},
		{"Authorization": "Basic cm9vdDpyb290"},
	} {
		s.ask("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", merged(json, headers), `{"apiVersion":"authentication.k8s.io/v1","kind":"SelfSubjectReview"}`)
		s.ask("GET", maps+"/http", headers, "")
	}
	s.ask("GET", maps+"/http", map[string]string{"Accept-Encoding": "gzip"}, "")
	s.ask("GET", maps+"?limit=500", map[string]string{"Accept-Encoding": "identity"}, "")
	s.ask("GET", maps+"/http", map[string]string{"If-None-Match": "*", "Range": "bytes=0-10"}, "")
	s.ask("GET", maps+"/http", map[string]string{"Origin": "https://example.com"}, "")
	s.ask("GET", maps+"/http?timeout=1ns", nil, "")
	s.ask("GET", maps+"/http?timeout=x", nil, "")
	s.ask("POST", "/apis/nothing.example.com/v1/namespaces/tenancy/things", json, `{}`)
	s.ask("DELETE", maps+"/http", nil, "")
}

func merged(maps ...map[string]string) map[string]string {
	all := map[string]string{}
	for _, one := range maps {
		for key, value := range one {
			all[key] = value
		}
	}
	return all
}

// deep is a value within so many others.
func deep(levels int) string {
	text := "1"
	for range levels {
		text = `{"a":` + text + `}`
	}
	return text
}
