package gateway

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/client"
	"github.com/rbee-project/rbee/core/coretest/fakecluster"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// talk sends one request on an open connection and returns the answer.
func talk(t *testing.T, c net.Conn, br *bufio.Reader, request string) (*http.Response, string) {
	t.Helper()
	_, err := io.WriteString(c, request)
	must.NoError(t, err)
	resp, err := http.ReadResponse(br, nil)
	must.NoError(t, err)
	body, err := io.ReadAll(resp.Body)
	must.NoError(t, err)
	return resp, string(body)
}

func dialed(t *testing.T, addr string) (net.Conn, *bufio.Reader) {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	must.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	must.NoError(t, c.SetDeadline(time.Now().Add(10*time.Second)))
	return c, bufio.NewReader(c)
}

func askWith(body string) string {
	return fmt.Sprintf("POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
}

const health = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"

// A stopping server answers one request on each existing connection and accepts no new ones.
func TestDrainAnswersOpenConnections(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(o *rigOptions) { o.LameDuck = 300 * time.Millisecond })
	finish, begun := make(chan struct{}), make(chan struct{})
	r.serve("w1", func(w http.ResponseWriter, q *http.Request) {
		body, _ := io.ReadAll(q.Body)
		if !strings.Contains(string(body), `"stream":true`) {
			answerJSON(200, wholeAnswer)(w, q)
			return
		}
		streamOf(tokenEvent(1))(w, q)
		close(begun)
		<-finish
		streamOf(tokenEvent(2), doneEvent)(w, q)
	})
	asked, askedReader := dialed(t, r.addr)
	probe, probeReader := dialed(t, r.addr)
	streaming, streamReader := dialed(t, r.addr)
	jobs, jobsReader := dialed(t, r.addr)
	unused, unusedReader := dialed(t, r.addr)
	idle, idleReader := dialed(t, r.addr)
	for c, br := range map[net.Conn]*bufio.Reader{asked: askedReader, probe: probeReader, idle: idleReader, jobs: jobsReader} {
		resp, _ := talk(t, c, br, health)
		must.False(t, resp.Close)
	}
	_, err := io.WriteString(streaming, askWith(streamAsk))
	must.NoError(t, err)
	<-begun
	stream, err := http.ReadResponse(streamReader, nil) // the stop was not yet announced
	must.NoError(t, err)
	must.False(t, stream.Close)

	stopped := make(chan struct{})
	go func() { defer close(stopped); r.stop() }()
	eventually(t, "no connection is taken", func() bool {
		c, err := net.Dial("tcp", r.addr)
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	resp, body := talk(t, asked, askedReader, askWith(askTiny))
	must.Eq(t, 200, resp.StatusCode)
	must.Eq(t, wholeAnswer, body)
	must.True(t, resp.Close)
	_, err = askedReader.ReadByte()
	must.ErrorIs(t, err, io.EOF)
	resp, body = talk(t, probe, probeReader, "GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")
	must.Eq(t, 503, resp.StatusCode)
	must.StrContains(t, body, "stopping")
	must.True(t, resp.Close)
	resp, body = talk(t, jobs, jobsReader, "GET /v1/jobs/j1-h1/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
	must.Eq(t, 503, resp.StatusCode)
	must.Eq(t, "stopping", code(errorIn(t, body)))
	must.True(t, resp.Close)
	close(finish)
	events, err := io.ReadAll(stream.Body)
	must.NoError(t, err)
	must.Eq(t, tokenEvent(1)+tokenEvent(2)+doneEvent, string(events))
	resp, _ = talk(t, streaming, streamReader, health) // its connection is as good as any
	must.Eq(t, 200, resp.StatusCode)
	must.True(t, resp.Close)
	select {
	case <-stopped:
		t.Fatal("the server stopped under connections that were in use a moment ago")
	default:
	}
	for _, br := range []*bufio.Reader{idleReader, unusedReader} {
		_, err = br.ReadByte()
		must.ErrorIs(t, err, io.EOF)
	}
	_ = unused
	<-stopped
}

// A rolling restart with clients on kept-alive connections, which retry elsewhere only if the
// connection was refused.
func TestDrainFailsNoRequest(t *testing.T) {
	t.Parallel()
	one := newRig(t, func(o *rigOptions) { o.LameDuck = 2 * time.Second }) // a client that is descheduled for longer finds its connection closed
	two := newRig(t, nil)
	for _, r := range []*rig{one, two} {
		r.serve("w1", answerJSON(200, wholeAnswer))
	}
	var wg sync.WaitGroup
	var atOne, atTwo, failed atomic.Int64
	stop := make(chan struct{})
	for range 16 {
		wg.Go(func() {
			transport := &http.Transport{}
			defer transport.CloseIdleConnections()
			c := &http.Client{Transport: transport}
			for {
				select {
				case <-stop:
					return
				case <-time.After(rand.N(10 * time.Millisecond)):
				}
				resp, err := c.Post(one.url+"/v1/chat/completions", "application/json", strings.NewReader(askTiny))
				count := &atOne
				if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" && errors.Is(err, syscall.ECONNREFUSED) {
					count = &atTwo
					resp, err = c.Post(two.url+"/v1/chat/completions", "application/json", strings.NewReader(askTiny))
				}
				if err != nil {
					failed.Add(1)
					t.Error(err)
					return
				}
				body, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil || resp.StatusCode != http.StatusOK || string(body) != wholeAnswer {
					failed.Add(1)
					t.Error(resp.StatusCode, err)
				}
				count.Add(1)
			}
		})
	}
	eventually(t, "clients have connections", func() bool { return atOne.Load() > 64 })
	one.stop()
	eventually(t, "clients are elsewhere", func() bool { return atTwo.Load() > 64 })
	close(stop)
	wg.Wait()
	must.Zero(t, failed.Load())
}

// A hurried stop does not wait for streams, but still sends them an error event.
func TestHurryEndsStreamsWithEvent(t *testing.T) {
	t.Parallel()
	hurry, begun := make(chan struct{}), make(chan struct{})
	r := newRig(t, func(o *rigOptions) { o.Hurry, o.grace = hurry, time.Hour })
	r.serve("w1", func(w http.ResponseWriter, q *http.Request) {
		_, _ = io.Copy(io.Discard, q.Body)
		streamOf(tokenEvent(1))(w, q)
		close(begun)
		<-q.Context().Done()
	})
	streaming, br := dialed(t, r.addr)
	_, err := io.WriteString(streaming, askWith(streamAsk))
	must.NoError(t, err)
	<-begun
	stopped := make(chan struct{})
	go func() { defer close(stopped); r.stop() }()
	eventually(t, "no connection is taken", func() bool {
		c, err := net.Dial("tcp", r.addr)
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	close(hurry)
	resp, err := http.ReadResponse(br, nil)
	must.NoError(t, err)
	events, err := io.ReadAll(resp.Body)
	must.ErrorIs(t, err, io.ErrUnexpectedEOF, must.Sprint("no clean end"))
	must.StrContains(t, string(events), tokenEvent(1))
	must.StrContains(t, string(events), "this server is stopping")
	<-stopped
}

// tlsRig also serves a rig's gateway over TLS and returns the address and the certificate.
func tlsRig(t *testing.T, r *rig) (addr string, ca []byte, stop func()) {
	t.Helper()
	donor := httptest.NewTLSServer(nil)
	certificate := donor.TLS.Certificates[0]
	ca = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: donor.Certificate().Raw})
	donor.Close()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	must.NoError(t, err)
	g := New(r.o)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- g.Serve(ctx, tls.NewListener(tcp, &tls.Config{Certificates: []tls.Certificate{certificate}, NextProtos: []string{"h2", "http/1.1"}, MinVersion: tls.VersionTLS13}), 5*time.Second)
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		must.NoError(t, <-done)
	})
	t.Cleanup(stop)
	return tcp.Addr().String(), ca, stop
}

// Over TLS, clients use HTTP/2: one connection for everything, which must not be closed while a
// stream runs.
func TestDrainWithHTTP2(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	finish, begun := make(chan struct{}), make(chan struct{})
	r.serve("w1", func(w http.ResponseWriter, q *http.Request) {
		_, _ = io.Copy(io.Discard, q.Body)
		streamOf(tokenEvent(1))(w, q)
		close(begun)
		<-finish
		streamOf(tokenEvent(2), doneEvent)(w, q)
	})
	addr, ca, stop := tlsRig(t, r)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	transport := &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13}}
	defer transport.CloseIdleConnections()
	c := &http.Client{Transport: transport}
	resp, err := c.Post("https://"+addr+"/v1/chat/completions", "application/json", strings.NewReader(streamAsk))
	must.NoError(t, err)
	defer resp.Body.Close()
	must.Eq(t, 2, resp.ProtoMajor)
	<-begun
	stopped := make(chan struct{})
	go func() { defer close(stopped); stop() }()
	eventually(t, "no connection is taken", func() bool {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	other, err := c.Get("https://" + addr + "/healthz") // on the same connection
	must.NoError(t, err)
	other.Body.Close()
	must.Eq(t, 200, other.StatusCode)
	close(finish)
	events, err := io.ReadAll(resp.Body)
	must.NoError(t, err)
	must.Eq(t, tokenEvent(1)+tokenEvent(2)+doneEvent, string(events))
	<-stopped
}

func TestClientWithTLS(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(o *rigOptions) { _, o.Auth = guarded(io.Discard) })
	r.serve("w1", streamOf(tokenEvent(1), doneEvent))
	addr, ca, _ := tlsRig(t, r)
	other := httptest.NewTLSServer(nil) // of the same test certificate authority, under another name
	other.Close()
	use := func(o client.Options) (*client.Client, error) {
		c, err := client.New(o)
		if err == nil {
			t.Cleanup(c.Close)
		}
		return c, err
	}
	c, err := use(client.Options{Addresses: []string{addr}, CACert: ca, Token: "rbee_all-but-admin_secret"})
	must.NoError(t, err)
	must.Eq(t, "https://"+addr, c.Address())
	_, err = c.Hives(t.Context())
	must.NoError(t, err)
	text := ""
	must.NoError(t, c.ChatStream(t.Context(), openai.ChatRequest{Model: "tiny"}, func(chunk openai.ChatChunk) error {
		text += *chunk.Choices[0].Delta.Content
		return nil
	}))
	must.Eq(t, "t1", text)
	_, err = c.Tokens(t.Context())
	must.Eq(t, core.Forbidden, core.KindOf(err))
	must.StrContains(t, err.Error(), `"admin"`)

	for name, o := range map[string]struct {
		o    client.Options
		kind core.Kind
		hint string
	}{
		"no CA":         {client.Options{Addresses: []string{"https://" + addr}}, core.Unauthenticated, "RBEE_CACERT"},
		"another name":  {client.Options{Addresses: []string{addr}, CACert: ca, ServerName: "queen.evil.example"}, core.Unauthenticated, "names"},
		"one of its":    {client.Options{Addresses: []string{addr}, CACert: ca, ServerName: "example.com", Token: "rbee_only-read_secret"}, "", ""},
		"no TLS there":  {client.Options{Addresses: []string{"https://" + r.addr}, CACert: ca}, core.Invalid, "http://"},
		"TLS there":     {client.Options{Addresses: []string{"http://" + addr}}, core.Invalid, "https://"},
		"wrong token":   {client.Options{Addresses: []string{addr}, CACert: ca, Token: "rbee_x_secret"}, core.Unauthenticated, "rbee token create"},
		"without token": {client.Options{Addresses: []string{addr}, CACert: ca}, core.Unauthenticated, "rbee token create"},
	} {
		c, err := use(o.o)
		must.NoError(t, err)
		_, err = c.Hives(t.Context())
		must.Eq(t, o.kind, core.KindOf(err), must.Sprintf("%s: %v", name, err))
		must.StrContains(t, core.HintOf(err), o.hint, must.Sprint(name))
		if err != nil {
			must.StrNotContains(t, err.Error(), "secret")
		}
	}
	_, err = use(client.Options{CACert: []byte("none")})
	must.Eq(t, core.Invalid, core.KindOf(err))
	_, err = use(client.Options{CACert: ca, HTTPClient: http.DefaultClient})
	must.Eq(t, core.Invalid, core.KindOf(err))
}

// The project's own client supports every admin operation.
func TestClientAdmin(t *testing.T) {
	t.Parallel()
	a := newCluster()
	a.Change(func(s *fakecluster.State) { s.Status.Cluster = &core.Cluster{ID: "c1"} })
	r := newRig(t, func(o *rigOptions) { o.Cluster, o.Admin, o.Reader = a, a, a })
	c, ctx := newClient(t, r.addr), t.Context()
	var info core.ReadInfo
	cluster, err := c.Cluster(ctx, client.Report(&info))
	must.NoError(t, err)
	must.Eq(t, "c1", cluster.ID)
	must.Eq(t, core.ReadInfo{Index: 42, Leader: "q1"}, info)
	queens, err := c.Queens(ctx, client.Consistency(core.ConsistencyStale), client.Report(&info))
	must.NoError(t, err)
	must.Eq(t, "q1", queens[0].ID)
	must.Eq(t, core.ReadInfo{Index: 42, Leader: "q1", LastContact: core.Duration(20 * time.Millisecond), Stale: true}, info)
	_, err = c.RaftServers(ctx, client.Consistency(core.ConsistencyLinearizable))
	must.NoError(t, err)
	must.Eq(t, []core.Consistency{core.ConsistencyDefault, core.ConsistencyStale, core.ConsistencyLinearizable}, a.State().Reads)
	_, err = c.Nodes(ctx, client.Consistency("newest"))
	must.Eq(t, core.Invalid, core.KindOf(err))
	must.NoError(t, c.RemoveQueen(ctx, "q1.abcd"))
	must.NoError(t, c.TransferLeadership(ctx, ""))
	nodes, err := c.Nodes(ctx)
	must.NoError(t, err)
	must.Eq(t, "n1", nodes[0].ID)
	node, err := c.RevokeNode(ctx, "n1")
	must.NoError(t, err)
	must.True(t, node.Revoked)
	_, err = c.LeaveNode(ctx, "n1")
	must.NoError(t, err)
	tokens, err := c.Tokens(ctx)
	must.NoError(t, err)
	must.Eq(t, "t1", tokens[0].ID)
	made, err := c.CreateToken(ctx, core.TokenRequest{Kind: core.TokenAPI, Name: "ci", Scopes: []core.Scope{core.ScopeInfer}, TTL: core.Duration(time.Hour)})
	must.NoError(t, err)
	must.StrHasPrefix(t, "rbee_", made.Secret)
	must.Eq(t, []core.Scope{core.ScopeInfer}, made.Token.Scopes)
	must.Eq(t, core.Duration(time.Hour), made.Token.TTL)
	_, err = c.RevokeToken(ctx, "t1")
	must.NoError(t, err)
	hive, err := c.DrainHive(ctx, "h1", true)
	must.NoError(t, err)
	must.True(t, hive.Draining)
	refreshed, err := c.RefreshHive(ctx, "h1")
	must.NoError(t, err)
	must.Eq(t, "cpu", refreshed.After[0].ID)
	sight, err := c.HiveHealth(ctx, "h1")
	must.NoError(t, err)
	must.True(t, sight.Reachable)
	keys, err := c.Keyring(ctx)
	must.NoError(t, err)
	must.Eq(t, "k1", keys.Primary)
	keys, err = c.ChangeKeyring(ctx, core.KeyringChange{Action: "use", Fingerprint: "k2"})
	must.NoError(t, err)
	must.Eq(t, "k2", keys.Primary)
	done := a.State().Asked
	for _, want := range []string{"remove q1.abcd", `transfer to ""`, "revoke node n1", "leave n1", "revoke token t1", "drain h1 true", "refresh h1", "keyring", `keyring {"action":"use","fingerprint":"k2"}`} {
		must.True(t, slices.Contains(done, want), must.Sprint(want))
	}
	alone := newClient(t, newRig(t, nil).addr)
	_, err = alone.Queens(ctx, client.Report(&info))
	must.Eq(t, core.Unsupported, core.KindOf(err))
	_, err = alone.Hives(ctx, client.Report(&info))
	must.NoError(t, err)
	must.Eq(t, core.ReadInfo{}, info)
}
