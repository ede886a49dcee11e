// Package storage names the packages of Kubernetes whose tests are run, so that go.mod and go.sum hold what these need.
package storage

import (
	_ "k8s.io/apiserver/pkg/storage/cacher"
	_ "k8s.io/apiserver/pkg/storage/etcd3"
)
