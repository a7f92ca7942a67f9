package gateway

import (
	"context"
	"errors"
	"log"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/rbee-project/rbee/core"
)

// lastWords is how long streams that are cut at the end of the grace period have to send their
// error event.
const lastWords = time.Second

// Server returns an http.Server with the limits that a public server needs; the handler bounds
// bodies and answers itself. Serve uses it; call it directly only to serve the handler in another
// way.
func (g *Gateway) Server() *http.Server {
	return &http.Server{
		Handler:           g.Handler(),
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams:          100,
			MaxReceiveBufferPerConnection: 1 << 20,
			MaxReceiveBufferPerStream:     256 << 10,
			SendPingTimeout:               time.Minute,
			PingTimeout:                   15 * time.Second,
		},
		ErrorLog: log.New(g.log.StandardWriter(&hclog.StandardLoggerOptions{ForceLevel: hclog.Debug}), "", 0),
	}
}

// Serve serves connections of l until ctx ends. Then it stops accepting, so that clients go
// elsewhere. Requests on open connections are still answered, and each connection closes with its
// answer; a connection without requests closes after a while. Running requests may continue until
// the end of grace, or until Options.Hurry is closed. Inference streams still running then get an
// error event; job streams end at once, since they can be resumed elsewhere. It closes l and
// returns nil after an orderly stop. Call it once.
func (g *Gateway) Serve(ctx context.Context, l net.Listener, grace time.Duration) error {
	srv, open := g.Server(), newConns(l, g.o.MaxConns, g.log)
	srv.ConnState, srv.ConnContext = open.changed, withFraming
	ended := make(chan error, 1)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { ended <- srv.Serve(open) })
	expiring, stopExpiring := context.WithCancel(ctx)
	defer stopExpiring()
	wg.Go(func() { g.expireAnswers(expiring) })
	select {
	case err := <-ended:
		_ = srv.Close()
		return core.Wrap(err, core.Internal, "serve http")
	case <-ctx.Done():
	}
	g.log.Info("http server stopping", "grace", grace)
	// The deadlines of a shutdown must outlive the context that triggers it.
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	wg.Go(func() {
		select {
		case <-g.o.Hurry:
			cancel()
		case <-stop.Done():
		}
	})
	g.streams.drain()
	_ = l.Close() // the server's own shutdown would close connections with requests in transit
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		g.log.Warn("http server stopped taking connections", "error", err)
	}
	g.lameDuck(open, stop.Done())
	open.closeUnused()
	err := srv.Shutdown(stop)
	if err != nil {
		g.streams.cut()
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWords)
		defer cancel()
		err = srv.Shutdown(last)
	}
	if err != nil && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled) {
		g.log.Warn("http server did not stop cleanly", "error", err)
	}
	_ = srv.Close() // closes what Shutdown left open
	return nil
}
