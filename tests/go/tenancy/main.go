// Command tenancy does what controllers and operators do with the API of Kubernetes, and writes down what it is answered:
// a line of JSON an operation. Run against two clusters that should be alike, it writes the same lines but for ids and
// times. See README.md.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// patience is how long anything may take that depends on a controller or on a watch.
const patience = 20 * time.Second

// session is what all areas work with.
type session struct {
	ctx       context.Context
	config    *rest.Config
	typed     *kubernetes.Clientset
	dynamic   dynamic.Interface
	metadata  metadata.Interface
	namespace string
	other     string
	area      string
	out       *json.Encoder
}

// line is what is written down of an operation.
type line struct {
	Operation string `json:"operation"`
	Result    any    `json:"result,omitempty"`
	Error     any    `json:"error,omitempty"`
}

// areas are the parts of the program, in their order.
var areas = []struct {
	name string
	run  func(*session)
}{
	{"kinds", kinds},
	{"lists", lists},
	{"watches", watches},
	{"informers", runInformers},
	{"events", clusterEvents},
	{"patches", patches},
	{"subresources", subresources},
	{"deletes", deletes},
	{"forms", forms},
	{"http", rawRequests},
	{"discovery", discover},
}

func main() {
	kubeconfig := flag.String("kubeconfig", "", "the file that tells server and user")
	wanted := flag.String("areas", "", "the areas to run, separated by commas; all if empty")
	klog.InitFlags(nil)
	flag.Parse()
	if err := run(*kubeconfig, *wanted); err != nil {
		fmt.Fprintln(os.Stderr, "tenancy:", err)
		os.Exit(1)
	}
}

func run(kubeconfig, wanted string) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	config.QPS, config.Burst = -1, -1
	// What the server warns of is part of some operations, and shown by no other.
	config.WarningHandler = rest.NoWarnings{}
	// As controllers and as operators do.
	protobuf := rest.CopyConfig(config)
	protobuf.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	protobuf.ContentType = runtime.ContentTypeProtobuf
	typed, err := kubernetes.NewForConfig(protobuf)
	if err != nil {
		return err
	}
	untyped, err := dynamic.NewForConfig(config)
	if err != nil {
		return err
	}
	meta, err := metadata.NewForConfig(config)
	if err != nil {
		return err
	}
	s := &session{
		ctx: context.Background(), config: config, typed: typed, dynamic: untyped, metadata: meta,
		namespace: "tenancy", other: "tenancy-other", out: json.NewEncoder(os.Stdout),
	}
	s.out.SetEscapeHTML(false)
	s.area = "setup"
	s.createNamespace(s.namespace)
	s.createNamespace(s.other)
	for _, area := range areas {
		if wanted != "" && !strings.Contains(","+wanted+",", ","+area.name+",") {
			continue
		}
		s.area = area.name
		area.run(s)
	}
	return nil
}

// tell writes an operation down.
func (s *session) tell(operation string, result any, err error) {
	told := line{Operation: s.area + ": " + operation}
	if err != nil {
		told.Error = describe(err)
	} else {
		told.Result = result
	}
	if err := s.out.Encode(told); err != nil {
		panic(err)
	}
}

// describe is the server's status, or the text of an error that the server did not send.
func describe(err error) any {
	if status, ok := err.(apierrors.APIStatus); ok {
		shown := status.Status()
		// A list that expired offers another token to go on with.
		if shown.ListMeta.Continue != "" {
			shown.ListMeta.Continue = "<continue>"
		}
		return shown
	}
	return err.Error()
}

// until repeats it until it is so, and says whether it came to be.
func until(so func() bool) bool {
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if so() {
			return true
		}
	}
	return false
}

func (s *session) createNamespace(name string) {
	created, err := s.typed.CoreV1().Namespaces().Create(s.ctx, namespaceNamed(name), metav1.CreateOptions{})
	s.tell("create namespace "+name, created, err)
	ready := until(func() bool {
		_, err := s.typed.CoreV1().ServiceAccounts(name).Get(s.ctx, "default", metav1.GetOptions{})
		if err != nil {
			return false
		}
		_, err = s.typed.CoreV1().ConfigMaps(name).Get(s.ctx, "kube-root-ca.crt", metav1.GetOptions{})
		return err == nil
	})
	s.tell("namespace "+name+" has what each namespace has", ready, nil)
}
