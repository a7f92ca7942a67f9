// Command reverseproxy is what BenchmarkRelay compares rbee with: in front of the unix socket that
// is its first argument, on which connections begin with its second, a bare httputil.ReverseProxy,
// or, with "copy" as third argument, no HTTP at all: bytes are passed on as they come. It prints
// the address where it listens, and ends when its input does.
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"os"
	"time"
)

func main() {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(l.Addr())
	if len(os.Args) > 3 && os.Args[3] == "copy" {
		go copyBytes(l)
		_, _ = io.Copy(io.Discard, os.Stdin)
		return
	}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = "http", "worker"
		},
		FlushInterval: -1, // each read is passed on at once
		Transport: &http.Transport{DisableCompression: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dial(ctx)
		}},
	}
	srv := &http.Server{
		ReadHeaderTimeout: 5 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			// Otherwise the server closes the request's body with the answer's header, maybe before
			// the transport has read its end, and the transport gives up the connection under the
			// answer.
			_ = http.NewResponseController(w).EnableFullDuplex()
			proxy.ServeHTTP(w, r)
		}),
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		_ = srv.Close()
	}()
	_ = srv.Serve(l) // its end is asked for
}

func dial(ctx context.Context) (net.Conn, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", os.Args[1])
	if err == nil {
		_, err = io.WriteString(c, os.Args[2])
	}
	return c, err
}

// copyBytes joins each connection of l with one to the socket.
func copyBytes(l net.Listener) {
	for {
		client, err := l.Accept()
		if err != nil {
			return
		}
		worker, err := dial(context.Background())
		if err != nil {
			log.Fatal(err)
		}
		pass := func(to, from net.Conn) {
			_, _ = io.Copy(struct{ io.Writer }{to}, struct{ io.Reader }{from}) // a read and a write each time, as a relay does
			_ = to.Close()
		}
		go pass(worker, client)
		go pass(client, worker)
	}
}
