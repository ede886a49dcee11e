package main

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/restmapper"
)

// discover reads what is served, in the old form and in one document, and the schemas of it.
func discover(s *session) {
	client := s.typed.Discovery()
	groups, lists, err := client.ServerGroupsAndResources()
	s.tell("groups", groups, err)
	for _, list := range lists {
		for _, resource := range list.APIResources {
			// A hash of the storage's name; the same in each cluster.
			slices.Sort(resource.Categories)
		}
		s.tell("resources of "+list.GroupVersion, list, nil)
	}
	legacy, err := discovery.NewDiscoveryClientForConfig(s.config)
	if err != nil {
		panic(err)
	}
	legacy.UseLegacyDiscovery = true
	_, old, err := legacy.ServerGroupsAndResources()
	s.tell("groups in the old form", len(old) == len(lists), err)
	for _, list := range old {
		s.tell("resources of "+list.GroupVersion+" in the old form", list, nil)
	}
	version, err := client.ServerVersion()
	s.tell("version", version, err)
	preferred, err := client.ServerPreferredNamespacedResources()
	kinds := []string{}
	for _, list := range preferred {
		for _, resource := range list.APIResources {
			kinds = append(kinds, list.GroupVersion+" "+resource.Kind)
		}
	}
	s.tell("preferred", sorted(kinds), err)
	mapped, err := restmapper.GetAPIGroupResources(client)
	if err == nil {
		mapping, err := restmapper.NewDiscoveryRESTMapper(mapped).KindFor(configMaps)
		s.tell("a kind by its resource", mapping, err)
	}
	paths, err := client.OpenAPIV3().Paths()
	found := []string{}
	for path, group := range paths {
		document, err := group.Schema(runtime.ContentTypeJSON)
		if err != nil {
			s.tell("schema of "+path, nil, err)
			continue
		}
		found = append(found, fmt.Sprintf("%s %x %v", path, sha256.Sum256(document), strings.Contains(group.ServerRelativeURL(), "hash=")))
	}
	s.tell("schemas of version 3", sorted(found), err)
	document, err := client.OpenAPISchema()
	definitions := []string{}
	if err == nil {
		for _, definition := range document.Definitions.AdditionalProperties {
			definitions = append(definitions, definition.Name)
		}
		for _, item := range document.Paths.Path {
			definitions = append(definitions, item.Name)
		}
	}
	s.tell("schemas of version 2", sorted(definitions), err)
	for _, accept := range []string{
		"application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
		"application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList",
		"application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json",
		"application/vnd.kubernetes.protobuf", "application/yaml", "text/html",
	} {
		s.ask("GET", "/api", map[string]string{"Accept": accept}, "")
		s.ask("GET", "/apis", map[string]string{"Accept": accept}, "")
		s.ask("GET", "/apis/apps", map[string]string{"Accept": accept}, "")
		s.ask("GET", "/apis/apps/v1", map[string]string{"Accept": accept}, "")
	}
}
