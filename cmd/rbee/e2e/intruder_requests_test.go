package e2e

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest"
)

// Whole requests to the public API are refused to every token that is not currently one of this
// cluster, and to a hive's certificate, which is not a token.
func TestIntruderRequests(t *testing.T) {
	t.Parallel()
	c, first, in := withInsider(t)
	var foreign struct{ Token string }
	elsewhere := c.add("elsewhere", true, true) // a separate cluster, which is never started
	out := elsewhere.run("cluster", "init", "--config", elsewhere.file, "--format", "json")
	must.Eq(t, 0, out.code, must.Sprint(out.stderr))
	must.NoError(t, json.Unmarshal([]byte(out.stdout), &foreign))

	short := asJSON[core.NewToken](first, "token", "create", "--type", "api", "--scope", "admin,operate,read,infer", "--ttl", "2s")
	revoked := asJSON[core.NewToken](first, "token", "create", "--type", "api", "--scope", "admin,operate,read,infer")
	join := asJSON[core.NewToken](first, "token", "create", "--type", "join")
	reader := asJSON[core.NewToken](first, "token", "create", "--type", "api", "--scope", "read")

	ask := func(hc *http.Client, method, path, body, token string) int {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, first.url()+path, strings.NewReader(body))
		must.NoError(t, err)
		req.Header.Set("Content-Type", "application/json")
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		resp, err := hc.Do(req)
		must.NoError(t, err)
		must.NoError(t, resp.Body.Close())
		return resp.StatusCode
	}
	hc := c.httpClient()
	defer hc.CloseIdleConnections()
	must.Eq(t, http.StatusOK, ask(hc, http.MethodGet, "/v1/hives", "", revoked.Secret))
	first.must("token", "revoke", revoked.ID, "--yes")
	coretest.Eventually(t, patience, func() error { // it has expired
		if code := ask(hc, http.MethodGet, "/v1/hives", "", short.Secret); code != http.StatusUnauthorized {
			return fmt.Errorf("the token with a life of 2 s is answered with %d", code)
		}
		return nil
	})
	withHive := c.httpClient()
	defer withHive.CloseIdleConnections()
	transport, ok := withHive.Transport.(*http.Transport)
	must.True(t, ok)
	transport.TLSClientConfig.Certificates = []tls.Certificate{in.certificate("ffffffff", time.Hour, core.RoleHive)}

	for _, r := range []struct{ method, path, body string }{
		{http.MethodGet, "/v1/status", ""},
		{http.MethodGet, "/v1/tokens", ""},
		{http.MethodGet, "/v1/models", ""},
		{http.MethodPost, "/v1/chat/completions", `{"model":"rbee-tiny","messages":[{"role":"user","content":"hello"}],"max_tokens":4}`},
		{http.MethodPost, "/v1/messages", `{"model":"rbee-tiny","messages":[{"role":"user","content":"hello"}],"max_tokens":4}`},
		{http.MethodPost, "/v1/jobs", `{"operation":"worker_spawn","model":"rbee-tiny","hive":"queen-1"}`},
		{http.MethodPost, "/v1/tokens", `{"kind":"api","scopes":["admin"]}`},
		{http.MethodDelete, "/v1/tokens/" + reader.ID, ""},
		{http.MethodDelete, "/v1/nodes/queen-1", ""},
		{http.MethodGet, "/v1/operator/snapshot", ""},
		{http.MethodGet, "/metrics", ""},
	} {
		for name, token := range map[string]string{
			"none": "", "expired": short.Secret, "of another cluster": foreign.Token, "revoked": revoked.Secret, "another secret": otherSecret(reader.Secret), "a join token": join.Secret,
		} {
			if code := ask(hc, r.method, r.path, r.body, token); code != http.StatusUnauthorized && code != http.StatusTooManyRequests {
				t.Errorf("%s %s with the token %q is answered with %d", r.method, r.path, name, code)
			}
		}
		code := ask(withHive, r.method, r.path, r.body, "")
		must.Eq(t, http.StatusUnauthorized, code, must.Sprint("a hive's certificate: ", r.method, r.path))
	}
	tokens := asJSON[[]core.Token](first, "token", "list")
	for _, tok := range tokens {
		must.NotEq(t, revoked.ID, tok.ID)
	}
	handles, err := filepath.Glob(filepath.Join(first.dir, "hive", "workers", "*.json"))
	must.NoError(t, err)
	must.SliceEmpty(t, handles, must.Sprint("an intruder's request started a worker"))
	counted := first.refusals()
	must.Positive(t, counted["no_token"], must.Sprint(counted))
	must.Positive(t, counted["bad_token"], must.Sprint(counted))
}

// A request that creates a token through the local socket cannot be replayed by somebody who has
// seen it, to that socket or to the public port.
func TestLocalRequestIsNotReplayed(t *testing.T) {
	t.Parallel()
	c, first, _ := withInsider(t)
	socket := filepath.Join(first.dir, "run", "agent.sock")
	real := socket + "-real"
	must.NoError(t, os.Rename(socket, real))
	l, err := net.Listen("unix", socket)
	must.NoError(t, err)
	var heard struct {
		sync.Mutex
		b []byte
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			to, err := net.Dial("unix", real)
			if err != nil {
				_ = from.Close()
				return
			}
			wg.Go(func() {
				defer to.Close()
				buf := make([]byte, 64<<10)
				for {
					n, err := from.Read(buf)
					heard.Lock()
					heard.b = append(heard.b, buf[:n]...)
					heard.Unlock()
					if _, writeErr := to.Write(buf[:n]); err != nil || writeErr != nil {
						return
					}
				}
			})
			wg.Go(func() {
				defer from.Close()
				_, _ = io.Copy(from, to)
			})
		}
	})
	first.env = append(first.env, "RBEE_DATA_DIR="+first.dir)
	lost := c.token
	c.token = ""
	first.must("token", "create", "--type", "api", "--scope", "admin", "--local")
	c.token = lost
	must.NoError(t, l.Close())
	heard.Lock()
	request := heard.b
	heard.Unlock()
	must.StrContains(t, string(request), "POST /v1/tokens")
	before := len(asJSON[[]core.Token](first, "token", "list"))

	for name, dial := range map[string]func() (net.Conn, error){
		"the same socket": func() (net.Conn, error) { return net.Dial("unix", real) },
		"the public port": func() (net.Conn, error) {
			return tls.Dial("tcp", first.ip+":7833", &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}) //nolint:gosec // it is the server that is tested
		},
	} {
		conn, err := dial()
		must.NoError(t, err, must.Sprint(name))
		_, err = conn.Write(request)
		must.NoError(t, err, must.Sprint(name))
		must.NoError(t, conn.SetReadDeadline(time.Now().Add(patience)))
		answer := make([]byte, 12)
		_, err = io.ReadFull(conn, answer)
		must.NoError(t, err, must.Sprint(name))
		must.StrHasPrefix(t, "HTTP/1.1 4", string(answer), must.Sprint(name))
		must.NoError(t, conn.Close())
	}
	must.Len(t, before, asJSON[[]core.Token](first, "token", "list"))
	must.NoError(t, os.Rename(real, socket))
	first.stop(syscall.SIGTERM)
	wg.Wait()
}
