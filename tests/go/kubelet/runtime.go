package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strconv"
	"sync"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"
)

// streamIdleTimeout is a container runtime's usual one.
const streamIdleTimeout = 4 * time.Hour

// runtime is the streaming server of a container runtime whose containers are this machine.
type runtime struct{}

func newRuntime() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/exec/{namespace}/{pod}/{container}", serveExec)
	mux.HandleFunc("/attach/{namespace}/{pod}/{container}", serveAttach)
	mux.HandleFunc("/portForward/{namespace}/{pod}", servePortForward)
	return mux
}

func serveExec(w http.ResponseWriter, r *http.Request) {
	options, err := remotecommand.NewOptions(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	remotecommand.ServeExec(w, r, runtime{}, r.PathValue("pod"), "", r.PathValue("container"), r.URL.Query()["command"],
		options, streamIdleTimeout, remotecommand.DefaultStreamCreationTimeout, remotecommand.SupportedStreamingProtocols)
}

func serveAttach(w http.ResponseWriter, r *http.Request) {
	options, err := remotecommand.NewOptions(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	remotecommand.ServeAttach(w, r, runtime{}, r.PathValue("pod"), "", r.PathValue("container"),
		options, streamIdleTimeout, remotecommand.DefaultStreamCreationTimeout, remotecommand.SupportedStreamingProtocols)
}

func servePortForward(w http.ResponseWriter, r *http.Request) {
	portforward.ServePortForward(w, r, runtime{}, r.PathValue("pod"), "", &portforward.V4Options{},
		streamIdleTimeout, remotecommand.DefaultStreamCreationTimeout, portforward.SupportedProtocols)
}

// ExecInContainer runs the command. There are no terminals: with one, the command is answered by the size that the
// client's has.
func (runtime) ExecInContainer(ctx context.Context, _, _, _ string, command []string, in io.Reader, out, errs io.WriteCloser,
	tty bool, resize <-chan remotecommand.TerminalSize, _ time.Duration) error {
	if tty {
		size, ok := <-resize
		if !ok {
			return errors.New("the client told no size of its terminal")
		}
		_, err := fmt.Fprintf(out, "%d columns, %d lines\n", size.Width, size.Height)
		return err
	}
	process := exec.CommandContext(ctx, command[0], command[1:]...)
	if out != nil {
		process.Stdout = out
	}
	if errs != nil {
		process.Stderr = errs
	}
	if in != nil {
		// The command may end without reading its input to the end: then nobody waits for that.
		pipe, err := process.StdinPipe()
		if err != nil {
			return err
		}
		go func() {
			_, _ = io.Copy(pipe, in)
			_ = pipe.Close()
		}()
	}
	err := process.Run()
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		return utilexec.CodeExitError{Err: err, Code: exit.ExitCode()}
	}
	return err
}

// AttachContainer is a program that says back what it is told, until the end.
func (runtime) AttachContainer(_ context.Context, _, _, _ string, in io.Reader, out, _ io.WriteCloser, _ bool,
	_ <-chan remotecommand.TerminalSize) error {
	if in == nil || out == nil {
		return errors.New("there is nothing to say without an input and an output")
	}
	_, err := io.Copy(out, in)
	return err
}

// PortForward joins the stream and the port of this machine; each direction ends by itself.
func (runtime) PortForward(ctx context.Context, _, _ string, port int32, stream io.ReadWriteCloser) error {
	connection, err := new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port))))
	if err != nil {
		return err
	}
	defer connection.Close()
	var both sync.WaitGroup
	both.Go(func() {
		_, _ = io.Copy(connection, stream)
		_ = connection.(*net.TCPConn).CloseWrite()
	})
	both.Go(func() {
		_, _ = io.Copy(stream, connection)
		_ = stream.Close()
	})
	both.Wait()
	return nil
}
