// Command kubelet is the part of a kubelet that kube-apiservers talk to, without containers: see README.md.
package main

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"

	"k8s.io/klog/v2"
)

func main() {
	var (
		address     = flag.String("listen", "127.0.0.1:10250", "where kube-apiservers connect")
		certificate = flag.String("cert", "", "the file of the certificate that they see")
		key         = flag.String("key", "", "the file of its key")
		clientCA    = flag.String("client-ca", "", "the file of the authority that signs theirs")
		logFile     = flag.String("log", "", "the file with what the containers have logged")
	)
	klog.InitFlags(nil)
	flag.Parse()
	log.SetFlags(log.Ltime | log.Lmicroseconds)
	if err := serve(*address, *certificate, *key, *clientCA, *logFile); err != nil {
		log.Fatal("kubelet: ", err)
	}
}

func serve(address, certificate, key, clientCA, logFile string) error {
	roots, err := os.ReadFile(clientCA)
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(roots) {
		return errors.New(clientCA + " holds no certificate")
	}
	runtimeURL, err := serveRuntime()
	if err != nil {
		return err
	}
	server := &http.Server{
		Handler:   newServer(runtimeURL, logFile),
		TLSConfig: &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool},
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	log.Print("serving kube-apiservers at ", listener.Addr())
	return server.ServeTLS(listener, certificate, key)
}

// serveRuntime serves the container runtime's streams. As those of a real runtime, its URLs can't be guessed.
func serveRuntime() (*url.URL, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	secret := "/" + rand.Text()
	go func() { log.Fatal("kubelet: ", http.Serve(listener, http.StripPrefix(secret, newRuntime()))) }()
	return url.Parse(fmt.Sprintf("http://%s%s", listener.Addr(), secret))
}
