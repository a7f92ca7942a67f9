package worker

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/rbee-project/rbee/plugins/sdk"
)

// dataServer serves a backend's handler on the worker's data socket. Until the handler is set, it
// answers 503, so that clients do not hang while the model loads.
type dataServer struct {
	http    *http.Server
	handler atomic.Pointer[http.Handler]
	done    sync.WaitGroup
}

// listenData binds the socket and serves connections that begin with opening. The folder must exist
// and be private; the socket must not exist.
func listenData(socket, opening string, log hclog.Logger) (*dataServer, error) {
	dir, err := os.Stat(filepath.Dir(socket))
	if err != nil {
		return nil, fmt.Errorf("folder of the data socket: %w: %w", err, sdk.ErrInvalid)
	}
	if !dir.IsDir() || dir.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("folder of the data socket %s has mode %s: only its owner may enter it (0700): %w", filepath.Dir(socket), dir.Mode(), sdk.ErrInvalid)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("data socket: %w: %w", err, sdk.ErrInvalid)
	}
	if err := os.Chmod(socket, 0o600); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("data socket: %w", err)
	}
	d := newDataServer(log)
	d.serve(guard{l, opening})
	return d, nil
}

func newDataServer(log hclog.Logger) *dataServer {
	d := &dataServer{}
	d.http = &http.Server{
		Handler: d,
		// No WriteTimeout: a stream lasts as long as its generation. No ReadTimeout: it would cut a
		// connection while it streams.
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       5 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          log.StandardLogger(&hclog.StandardLoggerOptions{ForceLevel: hclog.Warn}),
	}
	return d
}

// serve serves l until close.
func (d *dataServer) serve(l net.Listener) {
	d.done.Go(func() {
		// Serve returns http.ErrServerClosed after close; any other error shows on the host as a
		// refused connection.
		_ = d.http.Serve(l)
	})
}

// ready makes the server answer with h.
func (d *dataServer) ready(h http.Handler) { d.handler.Store(&h) }

func (d *dataServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if h := d.handler.Load(); h != nil {
		(*h).ServeHTTP(w, r)
		return
	}
	refuseUnavailable(w, "the model is still loading", "loading")
}

// flushTime bounds how long a finished answer may take to reach its reader when the server closes.
const flushTime = 500 * time.Millisecond

// close ends every connection, after flushing finished answers, and removes the socket.
func (d *dataServer) close() {
	// The backend has stopped: the remaining requests are about to end, and no caller's context is
	// left to wait on.
	ctx, cancel := context.WithTimeout(context.Background(), flushTime)
	defer cancel()
	_ = d.http.Shutdown(ctx)
	_ = d.http.Close()
	d.done.Wait()
}
