package gateway

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest/fakecluster"
	"github.com/rbee-project/rbee/core/inference"
)

// registryReads are the routes whose answer comes from the replicated registry.
var registryReads = []string{
	"/v1/status", "/v1/hives", "/v1/hives/{hive}", "/v1/hives/{hive}/status", "/v1/workers", "/v1/workers/{worker}",
	"/v1/aliases", "/v1/deployments", "/v1/deployments/{deployment}", "/v1/settings", "/v1/queens", "/v1/nodes", "/v1/tokens", "/v1/cluster", "/v1/operator/raft",
}

// served answers one request without a network.
func served(g *Gateway, method, target, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	r.Host = "localhost"
	w := httptest.NewRecorder()
	g.Handler().ServeHTTP(w, r)
	return w
}

func TestConsistencyOfEveryRoute(t *testing.T) {
	t.Parallel()
	jobs := &fakeJobs{}
	jobs.add(core.Event{Kind: core.EventEnd})
	cluster := newCluster()
	cluster.Change(func(s *fakecluster.State) { s.Status.Cluster = &core.Cluster{ID: "c1"} })
	g := New(Options{Inference: inference.New(inference.Options{Router: &fakeRouter{}}), Cluster: cluster, Jobs: jobs, Reader: cluster, Admin: cluster})
	seen := 0
	for _, rt := range routes() {
		path := wildcard.ReplaceAllString(strings.ReplaceAll(rt.pattern, "{pid}", "12"), "h1")
		registry := rt.method == http.MethodGet && slices.Contains(registryReads, rt.pattern)
		for query, want := range map[string]core.Consistency{"": core.ConsistencyDefault, "?consistency=default": core.ConsistencyDefault, "?a=b&consistency=stale": core.ConsistencyStale, "?consistency=linearizable": core.ConsistencyLinearizable} {
			before := len(cluster.State().Reads)
			w := served(g, rt.method, path+query, "{}")
			asked := cluster.State().Reads[before:]
			what := must.Sprintf("%s %s%s: %s", rt.method, rt.pattern, query, w.Body)
			h := w.Header()
			if !registry { // routes that serve models must never wait for another queen
				must.SliceNotContains(t, asked, core.ConsistencyDefault, what)
				must.SliceNotContains(t, asked, core.ConsistencyLinearizable, what)
				must.Eq(t, "", h.Get("X-Rbee-Stale"), what)
				continue
			}
			seen++
			must.Eq(t, 200, w.Code, what)
			must.Eq(t, []core.Consistency{want}, asked, what)
			contact, stale := "0", "false"
			if want == core.ConsistencyStale {
				contact, stale = "20", "true"
			}
			must.Eq(t, []string{"42", "q1", contact, stale}, []string{h.Get("X-Rbee-Index"), h.Get("X-Rbee-Leader"), h.Get("X-Rbee-Last-Contact"), h.Get("X-Rbee-Stale")}, what)
		}
		if !registry {
			continue
		}
		for _, query := range []string{"?consistency=", "?consistency=newest", "?consistency=Stale", "?consistency=stale&consistency=default"} {
			before := len(cluster.State().Reads)
			w := served(g, rt.method, path+query, "")
			must.Eq(t, 400, w.Code)
			must.StrContains(t, w.Body.String(), "There are default, stale and linearizable.")
			must.Len(t, before, cluster.State().Reads)
		}
	}
	must.Eq(t, 4*len(registryReads), seen)
}

// Without a leader, reads that must be fresh are refused with a hint, and routes that serve models
// continue and mark their answers as stale.
func TestReadsWithoutLeader(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(o *rigOptions) { o.Reader, o.Admin = o.Cluster.(*fakecluster.Cluster), newCluster() })
	r.cluster.Change(func(s *fakecluster.State) {
		s.NoLeader = core.Errorf(core.Unavailable, "there is no leader")
		s.Models, s.Status.Cluster = []core.Model{{ID: "tiny"}}, &core.Cluster{ID: "c1"}
	})
	r.serve("w1", answerJSON(200, wholeAnswer))
	for _, pattern := range registryReads {
		path := wildcard.ReplaceAllString(pattern, "h1")
		for _, query := range []string{"", "?consistency=linearizable"} {
			resp, body := r.get(path + query)
			if path == "/v1/status" && query == "" {
				must.Eq(t, 200, resp.StatusCode)
				must.StrContains(t, body, `"read":{"index":42,"leader":"","last_contact":"3s","stale":true}`)
				continue
			}
			must.Eq(t, 503, resp.StatusCode, must.Sprint(path))
			must.StrContains(t, errorIn(t, body).Hint, "?consistency=stale")
			must.StrContains(t, body, "there is no leader")
			must.Eq(t, "", resp.Header.Get("X-Rbee-Index"))
		}
		resp, _ := r.get(path + "?consistency=stale")
		must.Eq(t, 200, resp.StatusCode, must.Sprint(path))
		must.Eq(t, "true", resp.Header.Get("X-Rbee-Stale"))
		must.Eq(t, "3000", resp.Header.Get("X-Rbee-Last-Contact"))
	}
	for _, path := range []string{"/v1/models", "/v1/models/tiny"} {
		resp, _ := r.get(path)
		must.Eq(t, 200, resp.StatusCode)
		must.Eq(t, "true", resp.Header.Get("X-Rbee-Stale"))
	}
	for _, path := range []string{"/v1/chat/completions", "/v1/completions"} {
		resp, _, err := r.post(path, askTiny)
		must.NoError(t, err)
		must.Eq(t, 200, resp.StatusCode)
		must.Eq(t, "true", resp.Header.Get("X-Rbee-Stale"))
	}
}

// A silent leader delays a read briefly, and the status even less.
func TestReadsWithSilentLeader(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := New(Options{Cluster: newCluster(), Reader: fakecluster.New(fakecluster.State{Silent: true})})
		start := time.Now()
		w := served(g, "GET", "/v1/status", "")
		must.Eq(t, 200, w.Code)
		must.StrContains(t, w.Body.String(), `"stale":true`)
		must.Eq(t, statusPatience, time.Since(start))

		start = time.Now()
		w = served(g, "GET", "/v1/hives", "")
		must.Eq(t, 503, w.Code)
		must.StrContains(t, w.Body.String(), "?consistency=stale")
		must.Eq(t, readPatience, time.Since(start))
		must.Eq(t, 503, served(g, "GET", "/v1/status?consistency=linearizable", "").Code)

		ctx, cancel := context.WithTimeout(t.Context(), time.Second) // the client's own deadline
		defer cancel()
		r := httptest.NewRequestWithContext(ctx, "GET", "/v1/hives", nil)
		r.Host = "localhost"
		recorder := httptest.NewRecorder()
		g.Handler().ServeHTTP(recorder, r)
		must.Eq(t, 504, recorder.Code)
	})
}

func TestAdminRoutes(t *testing.T) {
	t.Parallel()
	a := newCluster()
	a.Change(func(s *fakecluster.State) {
		s.Status.Cluster = &core.Cluster{ID: "c1", Name: "home", SealedCAKey: []byte("hidden")}
	})
	g := New(Options{Cluster: a, Admin: a})
	none := New(Options{Cluster: newCluster()})
	for _, c := range []struct {
		method, path, body string
		status             int
		want, done         string
	}{
		{"GET", "/v1/cluster", "", 200, `"id":"c1","name":"home"`, ""},
		{"GET", "/v1/queens", "", 200, `{"object":"list","data":[{"id":"q1"`, "queens"},
		{"GET", "/v1/operator/raft", "", 200, `{"object":"list","data":[{"id":"q1"`, "queens"},
		{"GET", "/v1/nodes", "", 200, `{"object":"list","data":[{"id":"n1","name":"","roles":[]`, "nodes"},
		{"DELETE", "/v1/nodes/n1", "", 200, `"revoked":true`, "revoke node n1"},
		{"POST", "/v1/nodes/n1/leave", "", 200, `"id":"n1"`, "leave n1"},
		{"GET", "/v1/tokens", "", 200, `"id":"t1"`, "tokens"},
		{"POST", "/v1/tokens", `{"kind":"api","name":"ci","scopes":["infer"],"ttl":"24h"}`, 201, `"token":"rbee_`, `create token {"kind":"api","name":"ci","scopes":["infer"],"ttl":"24h0m0s"}`},
		{"POST", "/v1/tokens", `{"kind":"api","scope":["infer"]}`, 400, `unknown field \"scope\"`, ""},
		{"POST", "/v1/tokens", `{"ttl":"soon"}`, 400, `invalid`, ""},
		{"POST", "/v1/tokens", `{"name":"` + strings.Repeat("a", maxAdminBody) + `"}`, 413, `larger`, ""},
		{"DELETE", "/v1/tokens/t1", "", 200, `"id":"t1"`, "revoke token t1"},
		{"POST", "/v1/hives/h1/drain", `{"drain":true}`, 200, `"draining":true`, "drain h1 true"},
		{"POST", "/v1/hives/h1/drain", `{"drain":false}`, 200, `"draining":false`, "drain h1 false"},
		{"POST", "/v1/hives/h1/drain", `{}`, 400, `drain is missing`, ""},
		{"POST", "/v1/hives/h1/drain", `{"drain":"yes"}`, 400, `drain cannot be a string`, ""},
		{"DELETE", "/v1/operator/raft/a1b2.c3d4", ``, 200, `{"status":"done"}`, "remove a1b2.c3d4"},
		{"POST", "/v1/operator/raft/transfer", `{"to":"q2"}`, 200, `{"status":"done"}`, `transfer to "q2"`},
		{"POST", "/v1/operator/raft/transfer", `{"to":""}`, 200, `{"status":"done"}`, `transfer to ""`},
		{"POST", "/v1/operator/raft/transfer", ``, 400, `invalid`, ""},
		{"GET", "/v1/operator/keyring", ``, 200, `{"primary":"k1","keys":["k1","k2"]}`, "keyring"},
		{"POST", "/v1/operator/keyring", `{"action":"use","fingerprint":"k2"}`, 200, `"primary":"k2"`, `keyring {"action":"use","fingerprint":"k2"}`},
		{"GET", "/v1/operator/snapshot", ``, 200, `snapshot`, "save"},
		{"POST", "/v1/operator/snapshot", `octets`, 200, `"index":6`, "restore"},
	} {
		a.Change(func(s *fakecluster.State) { s.Refuse = nil })
		before := len(a.State().Asked)
		what := must.Sprintf("%s %s %s", c.method, c.path, clip(c.body, 80))
		w := served(g, c.method, c.path, c.body)
		must.Eq(t, c.status, w.Code, what)
		must.StrContains(t, w.Body.String(), c.want, what)
		must.StrNotContains(t, w.Body.String(), "hidden")
		must.StrNotContains(t, w.Body.String(), "aGlkZGVu")
		done := a.State().Asked[before:]
		if c.done == "" {
			must.SliceEmpty(t, done, what)
		} else {
			must.Eq(t, []string{c.done}, done, what)
			a.Change(func(s *fakecluster.State) {
				s.Refuse = func(string) error { return core.Errorf(core.Conflict, "it is so already").Hint("Look again.") }
			})
			w = served(g, c.method, c.path, c.body)
			must.Eq(t, 409, w.Code, what)
			must.Eq(t, "Look again.", errorIn(t, w.Body.String()).Hint)
		}
		w = served(none, c.method, c.path, c.body)
		must.Eq(t, 501, w.Code, what)
		must.StrContains(t, errorIn(t, w.Body.String()).Hint, "rbee cluster init")
	}
}

// slowCluster takes long to apply a snapshot that has arrived.
type slowCluster struct {
	*fakecluster.Cluster
	takes time.Duration
}

func (c slowCluster) RestoreSnapshot(ctx context.Context, r io.Reader) (core.SnapshotInfo, error) {
	info, err := c.Cluster.RestoreSnapshot(ctx, r)
	select {
	case <-ctx.Done():
		return info, ctx.Err()
	case <-time.After(c.takes):
		return info, err
	}
}

// A snapshot that arrived in time may take longer to apply.
func TestSlowRestore(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(o *rigOptions) {
		o.BodyTimeout = 100 * time.Millisecond
		o.Admin = slowCluster{newCluster(), 5 * o.BodyTimeout}
	})
	for range 2 { // both on one connection
		resp, body, err := r.post("/v1/operator/snapshot", "octets")
		must.NoError(t, err)
		must.Eq(t, 200, resp.StatusCode, must.Sprint(body))
		must.StrContains(t, body, `"index":6`)
	}
}

func TestSnapshotRoutes(t *testing.T) {
	t.Parallel()
	a := newCluster()
	r := newRig(t, func(o *rigOptions) { o.Admin, o.MaxSnapshotBytes, o.BodyTimeout = a, 1<<20, 200*time.Millisecond })
	c, ctx := newClient(t, r.addr), t.Context()
	piece := strings.Repeat("0123456789abcdef", 1<<14) // 256 KiB
	var got strings.Builder

	a.Change(func(s *fakecluster.State) {
		s.Snapshot = func(w io.Writer) error { _, err := io.WriteString(w, piece+piece+piece); return err }
	})
	must.NoError(t, c.SaveSnapshot(ctx, &got))
	must.True(t, got.String() == piece+piece+piece)

	a.Change(func(s *fakecluster.State) {
		s.Snapshot = func(w io.Writer) error {
			_, _ = io.WriteString(w, piece)
			return core.Errorf(core.Unavailable, "the leader is gone")
		}
	})
	must.Eq(t, core.Unavailable, core.KindOf(c.SaveSnapshot(ctx, io.Discard)))

	a.Change(func(s *fakecluster.State) {
		s.Snapshot = func(io.Writer) error { return core.Errorf(core.Integrity, "the disk is bad") }
	})
	resp, body := r.get("/v1/operator/snapshot")
	must.Eq(t, 500, resp.StatusCode)
	must.Eq(t, "application/json", resp.Header.Get("Content-Type"))
	must.Eq(t, "", resp.Header.Get("Content-Disposition"))
	must.Eq(t, "the disk is bad", errorIn(t, body).Message)
	must.Eq(t, core.Integrity, core.KindOf(c.SaveSnapshot(ctx, io.Discard)))

	info, err := c.RestoreSnapshot(ctx, strings.NewReader(piece))
	must.NoError(t, err)
	must.Eq(t, uint64(len(piece)), info.Index)
	must.True(t, string(a.State().Restored) == piece)

	// A slow but steady upload is not aborted.
	pr, pw := io.Pipe()
	go func() {
		for range 8 {
			<-time.After(50 * time.Millisecond)
			_, _ = io.WriteString(pw, "part")
		}
		pw.Close()
	}()
	info, err = c.RestoreSnapshot(ctx, pr)
	must.NoError(t, err)
	must.Eq(t, 32, info.Index)

	head := "POST /v1/operator/snapshot HTTP/1.1\r\nHost: localhost\r\n"
	for name, q := range map[string]struct {
		request string
		status  int
	}{
		"too long, stated":  {head + "Content-Length: 1048577\r\n\r\n", 413},
		"too long, chunked": {head + "Transfer-Encoding: chunked\r\n\r\n100001\r\n" + strings.Repeat("a", 1<<20+1) + "\r\n0\r\n\r\n", 413},
		"stalls":            {head + "Content-Length: 100\r\n\r\nabc", 408},
		"broken":            {head + "Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400},
	} {
		resp, body, closed := rawAsk(t, r.addr, q.request)
		must.Eq(t, q.status, resp.StatusCode, must.Sprint(name))
		errorIn(t, body)
		must.True(t, closed, must.Sprint(name))
	}
}
