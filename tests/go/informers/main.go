// Command informers is many clients in one: informers that must never have to list again, and a steady load of requests
// that must never fail. It counts what happens to them. See README.md.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
)

// reportInterval is the time between two lines of output.
const reportInterval = 500 * time.Millisecond

// report is a line of output: everything so far.
type report struct {
	Informers informersReport `json:"informers"`
	Load      loadReport      `json:"load"`
}

// paths are those of all flags of one name.
type paths []string

func (p *paths) String() string { return strings.Join(*p, " ") }

func (p *paths) Set(path string) error {
	if !strings.HasPrefix(path, "/") {
		return errors.New("a path begins with /")
	}
	*p = append(*p, path)
	return nil
}

func main() {
	var (
		kubeconfig  = flag.String("kubeconfig", "", "the file that tells server and user")
		namespace   = flag.String("namespace", "default", "whose ConfigMaps the informers follow")
		informers   = flag.Int("informers", 0, "how many informers")
		connections = flag.Int("connections", 1, "how many connections they share at least")
		rate        = flag.Float64("rate", 0, "requests of the load in a second")
		targets     paths
	)
	flag.Var(&targets, "get", "what the load asks for; several are asked for in turn")
	klog.InitFlags(nil)
	flag.Parse()
	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err == nil {
		err = run(config, *namespace, *informers, *connections, *rate, targets)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "informers:", err)
		os.Exit(1)
	}
}

// run goes on until it is told to end (SIGTERM, or Ctrl-C).
func run(config *rest.Config, namespace string, informers, connections int, rate float64, targets paths) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	followers, err := startFollowers(ctx, config, namespace, informers, connections)
	if err != nil {
		return err
	}
	asker, err := startLoad(ctx, config, rate, targets)
	if err != nil {
		return err
	}
	lines := json.NewEncoder(os.Stdout)
	ticker := time.NewTicker(reportInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			asker.wait()
			return lines.Encode(report{followers.report(), asker.report()})
		}
		if err := lines.Encode(report{followers.report(), asker.report()}); err != nil {
			return err
		}
	}
}
