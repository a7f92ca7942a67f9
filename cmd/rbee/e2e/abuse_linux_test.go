package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/rbee-project/rbee/core/coretest"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
)

// peak returns the peak memory of a process.
func peak(t testing.TB, pid int) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	must.NoError(t, err)
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); f[0] == "VmHWM:" {
			kib, err := strconv.ParseInt(f[1], 10, 64)
			must.NoError(t, err)
			return kib << 10
		}
	}
	t.Fatal("no VmHWM")
	return 0
}

// A hundred unfinished bodies of almost 16 MiB stay within the memory budget; a small request is
// answered meanwhile.
func TestBodiesStayWithinMemory(t *testing.T) {
	t.Parallel()
	a := startAgent(t, agentOptions{})
	before := peak(t, a.cmd.Process.Pid)
	const size = 15 << 20
	part := bytes.Repeat([]byte(" "), 1<<20)
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			c, err := net.Dial("tcp", a.addr)
			if err != nil {
				return
			}
			t.Cleanup(func() { _ = c.Close() })
			_ = c.SetDeadline(time.Now().Add(10 * time.Second))
			_, _ = fmt.Fprintf(c, "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n", size)
			for range size>>20 - 1 {
				if _, err := c.Write(part); err != nil {
					return // refused
				}
			}
		})
	}
	wg.Wait()
	resp, err := http.Get("http://" + a.addr + "/healthz")
	must.NoError(t, err)
	resp.Body.Close()
	after := peak(t, a.cmd.Process.Pid)
	t.Logf("before %d MiB, at most %d MiB", before>>20, after>>20)
	must.Less(t, 1<<30, after) // the budget of 256 MiB, copies, and garbage; without the budget, 3 GB
}

// More idle connections than the agent may have open files do not take the API down, and are
// logged.
func TestIdleConnectionsWithFewFiles(t *testing.T) {
	t.Parallel()
	a := startAgent(t, agentOptions{files: 256})
	for range 400 {
		if c, err := net.Dial("tcp", a.addr); err == nil {
			t.Cleanup(func() { _ = c.Close() })
		}
	}
	c := &http.Client{Timeout: 5 * time.Second}
	resp, err := c.Get("http://" + a.addr + "/healthz")
	must.NoError(t, err)
	resp.Body.Close()
	must.Eq(t, http.StatusOK, resp.StatusCode)
	must.StrContains(t, a.log.String(), "too many connections")
}

// Unauthenticated clients with unfinished calls take next to no memory of a queen.
func TestStrangersTakeNoMemory(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.start(1, 0)
	n := c.nodes[0]
	before := peak(t, n.process.Load().cmd.Process.Pid)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	for range 8 {
		config := &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13} //nolint:gosec // it is the server that is tested
		cc, err := grpc.NewClient("passthrough:///"+net.JoinHostPort(n.ip, "7834"), grpc.WithTransportCredentials(credentials.NewTLS(config)))
		must.NoError(t, err)
		t.Cleanup(func() { _ = cc.Close() })
		for range 16 {
			wg.Go(func() { // a whole message, but never the end of the call
				s, err := cc.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true}, queenv1.JoinService_Join_FullMethodName)
				if err == nil {
					_ = s.SendMsg(&queenv1.JoinRequest{CertificateRequest: make([]byte, 15<<20)})
				}
			})
		}
	}
	wg.Wait()
	<-ctx.Done()
	after := peak(t, n.process.Load().cmd.Process.Pid)
	t.Logf("before %d MiB, at most %d MiB", before>>20, after>>20)
	must.Less(t, before+64<<20, after)
}

// The descriptors of connections to a worker are closed when the worker exits.
func TestConnectionsGoWithWorker(t *testing.T) {
	t.Parallel()
	a := startAgent(t, agentOptions{})
	sockets := func() (n int) {
		folder := fmt.Sprintf("/proc/%d/fd", a.cmd.Process.Pid)
		files, err := os.ReadDir(folder)
		must.NoError(t, err)
		for _, f := range files {
			if to, _ := os.Readlink(filepath.Join(folder, f.Name())); strings.HasPrefix(to, "socket:") {
				n++
			}
		}
		return n
	}
	spawned := a.spawn()
	before := sockets()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Post("http://"+a.addr+"/v1/chat/completions", "application/json",
				strings.NewReader(`{"model":"rbee-tiny","max_tokens":8,"messages":[{"role":"user","content":"hello"}]}`))
			must.NoError(t, err)
			_, err = io.Copy(io.Discard, resp.Body)
			must.NoError(t, err)
			must.NoError(t, resp.Body.Close())
		})
	}
	wg.Wait()
	must.Greater(t, before, sockets())
	a.must("worker", "retire", "--yes", spawned.Worker.ID)
	coretest.Eventually(t, patience, func() error {
		if n := sockets(); n > before {
			return fmt.Errorf("%d sockets, %d before the requests", n, before)
		}
		return nil
	})
}
