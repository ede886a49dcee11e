// Package testserver takes the place of k8s.io/apiserver/pkg/storage/etcd3/testserver when Kubernetes' storage tests
// are compiled: the same functions, but the store that a test gets is a process of its own, started from the program
// that STORE_BIN names, instead of an etcd in the process of the test.
//
// The program is given etcd's flags, behind the words of STORE_ARGS, so that one build of the tests serves etcd as well
// as any store that takes etcd's place. STORE_STARTED_LOG, if set, names a file to which each test that starts a store
// adds a line with its name.
//
// Invariant: no test gets a client before its store has answered a linearizable read, and no store outlives its test.
package testserver

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/kubernetes"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest"
	"google.golang.org/grpc"
	storagetesting "k8s.io/apiserver/pkg/storage/testing"
)

// A store that has not answered by then is reported with its log.
const readyWithin = 60 * time.Second

// How much of the end of a store's log a failed test shows.
const logTailBytes = 8 << 10

// NewTestConfig returns the settings of one store: free ports of the loopback interface and a data folder that is
// removed when the test ends. The type is etcd's, because the tests change fields of it. RunEtcd passes on those that
// a test does change: the URLs, the client's TLS files and the interval of progress notifications.
func NewTestConfig(t testing.TB) *embed.Config {
	t.Helper()
	client, peer, err := twoFreePorts()
	if err != nil {
		t.Fatalf("no free port for the store: %v", err)
	}
	cfg := embed.NewConfig()
	cfg.ListenClientUrls = []url.URL{{Scheme: "http", Host: client}}
	cfg.AdvertiseClientUrls = cfg.ListenClientUrls
	cfg.ListenPeerUrls = []url.URL{{Scheme: "http", Host: peer}}
	cfg.AdvertisePeerUrls = cfg.ListenPeerUrls
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	cfg.Dir = filepath.Join(t.TempDir(), "data")
	return cfg
}

// RunEtcd starts a store with these settings, or with those of NewTestConfig for nil, and returns a client that is
// connected to it. The store is killed when the test ends; if the test failed, the end of the store's log is shown.
func RunEtcd(t testing.TB, cfg *embed.Config) *kubernetes.Client {
	t.Helper()
	if cfg == nil {
		cfg = NewTestConfig(t)
	}
	noteStart(t)
	var tlsConfig *tls.Config
	if !cfg.ClientTLSInfo.Empty() {
		var err error
		if tlsConfig, err = cfg.ClientTLSInfo.ClientConfig(); err != nil {
			t.Fatal(err)
		}
		useHostOfCertificate(cfg)
	}
	s := startStore(t, cfg)
	s.waitUntil(t, "listening", func(context.Context) error {
		connection, err := net.Dial("tcp", cfg.AdvertiseClientUrls[0].Host)
		if err == nil {
			connection.Close()
		}
		return err
	})

	client, err := kubernetes.New(clientv3.Config{
		TLS:         tlsConfig,
		Endpoints:   urlStrings(cfg.AdvertiseClientUrls),
		DialTimeout: readyWithin,
		DialOptions: []grpc.DialOption{grpc.WithBlock()},
		Logger:      zaptest.NewLogger(t, zaptest.Level(zapcore.ErrorLevel)).Named("client"),
	})
	if err != nil {
		t.Fatalf("no connection to the store within %s: %v", readyWithin, err)
	}
	s.waitUntil(t, "ready", func(ctx context.Context) error {
		_, err := client.Client.Get(ctx, "ready?")
		return err
	})

	// Tests count requests through these two.
	client.KV = storagetesting.NewKVRecorder(client.KV)
	client.Kubernetes = storagetesting.NewKubernetesRecorder(client.Kubernetes)
	return client
}

type store struct {
	command *exec.Cmd
	logPath string
	exited  chan struct{} // closed when the process has ended, after exitErr was set
	exitErr error
}

func startStore(t testing.TB, cfg *embed.Config) *store {
	t.Helper()
	bin := os.Getenv("STORE_BIN")
	if bin == "" {
		t.Fatal("STORE_BIN does not name the store's program")
	}
	args := append(strings.Fields(os.Getenv("STORE_ARGS")), flags(cfg)...)
	// Not t.TempDir: that may be gone when the log is wanted.
	logFile, err := os.CreateTemp("", "store-*.log")
	if err != nil {
		t.Fatal(err)
	}
	defer logFile.Close()

	s := &store{command: exec.Command(bin, args...), logPath: logFile.Name(), exited: make(chan struct{})}
	s.command.Stdout = logFile
	s.command.Stderr = logFile
	s.command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.command.Start(); err != nil {
		t.Fatalf("cannot start %s: %v", bin, err)
	}
	go func() {
		s.exitErr = s.command.Wait()
		close(s.exited)
	}()
	t.Cleanup(func() { s.stop(t) })
	return s
}

// The flags are etcd's. Only what a test changed, or what keeps two stores apart, is passed.
func flags(cfg *embed.Config) []string {
	args := []string{
		"--data-dir=" + cfg.Dir,
		"--listen-client-urls=" + strings.Join(urlStrings(cfg.ListenClientUrls), ","),
		"--advertise-client-urls=" + strings.Join(urlStrings(cfg.AdvertiseClientUrls), ","),
		"--listen-peer-urls=" + strings.Join(urlStrings(cfg.ListenPeerUrls), ","),
		"--initial-advertise-peer-urls=" + strings.Join(urlStrings(cfg.AdvertisePeerUrls), ","),
		"--initial-cluster=" + cfg.InitialCluster,
	}
	if interval := cfg.WatchProgressNotifyInterval; interval != embed.NewConfig().WatchProgressNotifyInterval {
		args = append(args, "--watch-progress-notify-interval="+interval.String())
	}
	if tls := cfg.ClientTLSInfo; !tls.Empty() {
		args = append(args, "--cert-file="+tls.CertFile, "--key-file="+tls.KeyFile,
			"--trusted-ca-file="+tls.TrustedCAFile)
	}
	return args
}

func (s *store) waitUntil(t testing.TB, what string, try func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), readyWithin)
	defer cancel()
	for {
		err := try(ctx)
		if err == nil {
			return
		}
		select {
		case <-s.exited:
			t.Fatalf("the store ended before it was %s: %v", what, s.exitErr)
		case <-ctx.Done():
			t.Fatalf("the store was not %s within %s: %v", what, readyWithin, err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (s *store) stop(t testing.TB) {
	select {
	case <-s.exited:
		t.Errorf("the store ended by itself during the test: %v", s.exitErr)
	default:
		// Nothing of the store is looked at again, so a tidy end would only take time.
		if err := s.command.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Errorf("cannot kill the store: %v", err)
		}
		<-s.exited
	}
	if t.Failed() {
		t.Logf("the end of the store's log:\n%s", tail(s.logPath))
	}
	os.Remove(s.logPath)
}

func tail(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	if len(text) > logTailBytes {
		text = text[len(text)-logTailBytes:]
	}
	return string(text)
}

var portLock sync.Mutex

// twoFreePorts returns two addresses of the loopback network that no one else takes: the host part is made of the
// number of this process, so that processes which look for ports at the same time do not meet.
func twoFreePorts() (string, string, error) {
	portLock.Lock()
	defer portLock.Unlock()
	pid := os.Getpid()
	host := fmt.Sprintf("127.%d.%d.%d", 64+pid>>16&63, pid>>8&255, pid&255)
	first, err := net.Listen("tcp", host+":0")
	if err != nil {
		return "", "", err
	}
	defer first.Close()
	second, err := net.Listen("tcp", host+":0")
	if err != nil {
		return "", "", err
	}
	defer second.Close()
	return first.Addr().String(), second.Addr().String(), nil
}

// The certificates of Kubernetes' tests are made out to 127.0.0.1 and to no other address of the loopback network.
func useHostOfCertificate(cfg *embed.Config) {
	for _, urls := range [][]url.URL{cfg.ListenClientUrls, cfg.AdvertiseClientUrls} {
		for i := range urls {
			urls[i].Host = net.JoinHostPort("127.0.0.1", urls[i].Port())
		}
	}
}

func noteStart(t testing.TB) {
	path := os.Getenv("STORE_STARTED_LOG")
	if path == "" {
		return
	}
	file, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	name, _, _ := strings.Cut(t.Name(), "/")
	if _, err := fmt.Fprintln(file, name); err != nil {
		t.Fatal(err)
	}
}

func urlStrings(urls []url.URL) []string {
	texts := make([]string, 0, len(urls))
	for _, u := range urls {
		texts = append(texts, u.String())
	}
	return texts
}
