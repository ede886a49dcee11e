package main

import (
	"context"
	"fmt"
	"hash/fnv"
	"net"
	"net/http"
	"slices"
	"sync/atomic"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// informersReport is what happened to all informers together.
type informersReport struct {
	// Synced are those that know a first state.
	Synced int `json:"synced"`
	// Lists are the requests for all objects, as a list or as a watch that begins with them.
	Lists int64 `json:"lists"`
	// Watches are the requests for what comes after a known state.
	Watches int64 `json:"watches"`
	// Refused are requests that were not answered with 200.
	Refused map[string]int `json:"refused"`
	// Errors are what the informers themselves call one.
	Errors  map[string]int `json:"errors"`
	Added   int64          `json:"added"`
	Updated int64          `json:"updated"`
	Deleted int64          `json:"deleted"`
	// Stores tells how many informers hold what: see digest.
	Stores map[string]int `json:"stores"`
}

// followers are the informers.
type followers struct {
	informers               []cache.SharedIndexInformer
	lists, watches          atomic.Int64
	added, updated, deleted atomic.Int64
	refused, errors         texts
}

// startFollowers starts informers of the ConfigMaps of a namespace, which take turns in so many transports. A transport
// opens a further connection only at the server's limit of streams.
func startFollowers(
	ctx context.Context, config *rest.Config, namespace string, count, connections int,
) (*followers, error) {
	all := &followers{}
	transports := make([]http.RoundTripper, max(1, connections))
	for place := range transports {
		own := rest.CopyConfig(config)
		// client-go gives configurations that are alike the same transport; a dialer makes them differ.
		own.Dial = (&net.Dialer{}).DialContext
		client, err := rest.HTTPClientFor(own)
		if err != nil {
			return nil, err
		}
		transports[place] = &countingTransport{next: client.Transport, all: all}
	}
	for number := range count {
		if err := all.start(ctx, config, transports[number%len(transports)], namespace, number); err != nil {
			return nil, err
		}
	}
	return all, nil
}

func (all *followers) start(
	ctx context.Context, config *rest.Config, transport http.RoundTripper, namespace string, number int,
) error {
	own := rest.CopyConfig(config)
	// As controllers and as other clients do.
	if number%2 == 0 {
		own.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
		own.ContentType = runtime.ContentTypeProtobuf
	}
	clients, err := kubernetes.NewForConfigAndClient(own, &http.Client{Transport: transport})
	if err != nil {
		return err
	}
	factory := informers.NewSharedInformerFactoryWithOptions(clients, 0, informers.WithNamespace(namespace))
	informer := factory.Core().V1().ConfigMaps().Informer()
	err = informer.SetWatchErrorHandlerWithContext(func(ctx context.Context, reflector *cache.Reflector, err error) {
		all.errors.add(err.Error())
		cache.DefaultWatchErrorHandler(ctx, reflector, err)
	})
	if err != nil {
		return err
	}
	_, err = informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { all.added.Add(1) },
		UpdateFunc: func(any, any) { all.updated.Add(1) },
		DeleteFunc: func(any) { all.deleted.Add(1) },
	})
	if err != nil {
		return err
	}
	all.informers = append(all.informers, informer)
	go informer.RunWithContext(ctx)
	return nil
}

func (all *followers) report() informersReport {
	told := informersReport{
		Lists:   all.lists.Load(),
		Watches: all.watches.Load(),
		Refused: all.refused.counts(),
		Errors:  all.errors.counts(),
		Added:   all.added.Load(),
		Updated: all.updated.Load(),
		Deleted: all.deleted.Load(),
		Stores:  map[string]int{},
	}
	for _, informer := range all.informers {
		if informer.HasSynced() {
			told.Synced++
		}
		told.Stores[digest(informer.GetStore())]++
	}
	return told
}

// digest is FNV-1a (64 bits) of a line for each object, in the order of the names: name, blank, resource version.
func digest(store cache.Store) string {
	objects := store.List()
	lines := make([]string, 0, len(objects))
	for _, object := range objects {
		configMap := object.(*corev1.ConfigMap)
		lines = append(lines, configMap.Name+" "+configMap.ResourceVersion+"\n")
	}
	slices.Sort(lines)
	hash := fnv.New64a()
	for _, line := range lines {
		hash.Write([]byte(line))
	}
	return fmt.Sprintf("%016x", hash.Sum64())
}

// countingTransport counts the requests of informers, those that client-go repeats by itself too.
type countingTransport struct {
	next http.RoundTripper
	all  *followers
}

func (transport *countingTransport) RoundTrip(request *http.Request) (*http.Response, error) {
	query := request.URL.Query()
	kind := "watch"
	if query.Get("watch") != "true" || query.Get("sendInitialEvents") == "true" {
		kind = "list"
		transport.all.lists.Add(1)
	} else {
		transport.all.watches.Add(1)
	}
	response, err := transport.next.RoundTrip(request)
	if err != nil {
		transport.all.refused.add(fmt.Sprintf("%s: %v", kind, err))
	} else if response.StatusCode != http.StatusOK {
		transport.all.refused.add(fmt.Sprintf("%s: %s", kind, response.Status))
	}
	return response, err
}
