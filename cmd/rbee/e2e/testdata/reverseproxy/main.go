// Command reverseproxy is the peer that BenchmarkRelay compares rbee with: a bare
// httputil.ReverseProxy in front of the unix socket in its first argument, on which connections
// begin with its second; or, with "copy" as third argument, a relay without HTTP that passes bytes
// on as they arrive. It prints the address where it listens, and ends when its input does.
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
		FlushInterval: -1, // flush after each read
		Transport: &http.Transport{DisableCompression: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dial(ctx)
		}},
	}
	srv := &http.Server{
		ReadHeaderTimeout: 5 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			// Otherwise the server closes the request's body with the response header, maybe before
			// the transport has read its end, and the transport abandons the connection in the
			// middle of the response.
			_ = http.NewResponseController(w).EnableFullDuplex()
			proxy.ServeHTTP(w, r)
		}),
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		_ = srv.Close()
	}()
	_ = srv.Serve(l) // ends when the input does
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
