package main

import (
	"io"
	"log"
	"net/http"
	"net/url"
	"os"
	"time"

	"k8s.io/apimachinery/pkg/util/proxy"
	translator "k8s.io/apiserver/pkg/util/proxy"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// logInterval is how often a log that is followed is looked at.
const logInterval = 10 * time.Millisecond

// server is what kube-apiservers see of a kubelet.
type server struct {
	runtime *url.URL
	logFile string
}

func newServer(runtime *url.URL, logFile string) http.Handler {
	s := &server{runtime, logFile}
	mux := http.NewServeMux()
	mux.HandleFunc("/exec/{namespace}/{pod}/{container}", s.command)
	mux.HandleFunc("/attach/{namespace}/{pod}/{container}", s.command)
	mux.HandleFunc("/portForward/{namespace}/{pod}", s.portForward)
	mux.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", s.logs)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		log.Printf("%s %s upgrade=%q", r.Method, r.URL.Path, r.Header.Get("Upgrade"))
		mux.ServeHTTP(w, r)
	})
}

// toRuntime passes a request on to the container runtime, which speaks SPDY, and returns where that is.
func (s *server) toRuntime(r *http.Request) (*url.URL, http.Handler) {
	location := s.runtime.JoinPath(r.URL.Path)
	location.RawQuery = r.URL.RawQuery
	return location, proxy.NewUpgradeAwareHandler(location, nil, false, true, responder{})
}

// command serves exec and attach. WebSockets are translated to SPDY, as a kubelet does that declares so.
func (s *server) command(w http.ResponseWriter, r *http.Request) {
	options, err := remotecommand.NewOptions(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	location, handler := s.toRuntime(r)
	if wsstream.IsWebSocketRequestWithStreamCloseProtocol(r) {
		handler = translator.NewStreamTranslatorHandler(location, nil, 0, translator.Options{
			Stdin: options.Stdin, Stdout: options.Stdout, Stderr: options.Stderr, Tty: options.TTY,
		})
	}
	handler.ServeHTTP(w, r)
}

func (s *server) portForward(w http.ResponseWriter, r *http.Request) {
	_, handler := s.toRuntime(r)
	if wsstream.IsWebSocketRequestWithTunnelingProtocol(r) {
		handler = translator.NewTunnelingHandler(handler)
	}
	handler.ServeHTTP(w, r)
}

// logs writes what is in the file, and goes on with what comes to it if that is asked for.
func (s *server) logs(w http.ResponseWriter, r *http.Request) {
	file, err := os.Open(s.logFile)
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	defer file.Close()
	follow := r.URL.Query().Get("follow") == "true"
	w.Header().Set("Content-Type", "text/plain")
	w.WriteHeader(http.StatusOK)
	for {
		if _, err := io.Copy(w, file); err != nil || !follow {
			return
		}
		if err := http.NewResponseController(w).Flush(); err != nil {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-time.After(logInterval):
		}
	}
}

// responder tells what went wrong between here and the runtime.
type responder struct{}

func (responder) Error(w http.ResponseWriter, r *http.Request, err error) {
	log.Printf("%s %s: %v", r.Method, r.URL.Path, err)
	http.Error(w, err.Error(), http.StatusInternalServerError)
}
