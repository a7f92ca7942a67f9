package gateway

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest/fakecluster"
)

func TestSubmit(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	resp, body, err := r.post("/v1/jobs", `{"operation":"worker_spawn","model":"tiny","grace":"1m30s","hive":"localhost","slots":2}`)
	must.NoError(t, err)
	must.Eq(t, 202, resp.StatusCode)
	must.Eq(t, "/v1/jobs/j1-h1", resp.Header.Get("Location"))
	var job core.Job
	must.NoError(t, json.Unmarshal([]byte(body), &job))
	must.Eq(t, "j1-h1", job.ID)
	must.Eq(t, core.Request{Operation: core.OpWorkerSpawn, Model: "tiny", Hive: "localhost", Slots: 2, Grace: core.Duration(90 * time.Second)}, r.jobs.submitted[0])
	for name, bad := range map[string]string{
		"empty":          ``,
		"no operation":   `{}`,
		"unknown field":  `{"operation":"worker_spawn","mdl":"x"}`,
		"wrong type":     `{"operation":"worker_spawn","slots":"2"}`,
		"bad duration":   `{"operation":"worker_spawn","grace":"soon"}`,
		"two objects":    `{"operation":"worker_spawn"}{}`,
		"array":          `[]`,
		"long id":        `{"operation":"worker_spawn","request_id":"` + strings.Repeat("a", 129) + `"}`,
		"number too big": `{"operation":"worker_spawn","slots":1e99}`,
	} {
		resp, body, err := r.post("/v1/jobs", bad)
		must.NoError(t, err)
		must.Eq(t, 400, resp.StatusCode, must.Sprint(name))
		errorIn(t, body)
	}
	resp, _, err = r.post("/v1/jobs", `{"operation":"`+strings.Repeat("a", maxJobBody)+`"}`)
	must.NoError(t, err)
	must.Eq(t, 413, resp.StatusCode)
	must.Len(t, 1, r.jobs.submitted)
}

func TestJobAndCancel(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	resp, body := r.get("/v1/jobs/j1-h1")
	must.Eq(t, 200, resp.StatusCode)
	must.StrContains(t, body, `"state":"running"`)
	for _, path := range []string{"/v1/jobs/j9", "/v1/jobs/j9/stream"} {
		resp, body = r.get(path)
		must.Eq(t, 404, resp.StatusCode)
		errorIn(t, body)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodDelete, r.url+"/v1/jobs/j1-h1", nil)
	must.NoError(t, err)
	resp, _, err = r.do(req)
	must.NoError(t, err)
	must.Eq(t, 202, resp.StatusCode)
	must.Eq(t, []string{"j1-h1"}, r.jobs.cancelled)
}

func TestJobStream(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.jobs.add(
		core.Event{Kind: core.EventProgress, Progress: &core.Progress{Phase: "download", Done: 1, Total: 2, Unit: "bytes"}},
		core.Event{Kind: core.EventLog, Message: "hello\nworld"},
		core.Event{Kind: core.EventEnd, State: core.JobSucceeded},
	)
	for _, c := range []struct {
		query, header string
		status        int
		first         string
	}{
		{"", "", 200, "id: 1\nevent: progress\ndata: {\"seq\":1,"},
		{"?after=1", "", 200, "id: 2\nevent: log\ndata: {\"seq\":2,"},
		{"", "2", 200, "id: 3\nevent: end\ndata: {\"seq\":3,"},
		{"?after=1", "2", 200, "id: 3\n"},
		{"?after=-1", "", 400, ""},
		{"?after=x", "", 400, ""},
		{"", "x", 400, ""},
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, r.url+"/v1/jobs/j1-h1/stream"+c.query, nil)
		must.NoError(t, err)
		if c.header != "" {
			req.Header.Set("Last-Event-ID", c.header)
		}
		resp, body, err := r.do(req)
		must.NoError(t, err)
		must.Eq(t, c.status, resp.StatusCode)
		if c.status != 200 {
			errorIn(t, body)
			continue
		}
		must.Eq(t, "text/event-stream", resp.Header.Get("Content-Type"))
		must.Eq(t, "no-store", resp.Header.Get("Cache-Control"))
		_, events, ok := strings.Cut(body, "\n")
		must.True(t, ok)
		must.True(t, strings.HasPrefix(events, c.first), must.Sprint(body))
		must.True(t, strings.Contains(body, "event: end\n"))
	}
}

func TestJobStreamKeepsAlive(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(o *rigOptions) { o.KeepAlive = 5 * time.Millisecond })
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, r.url+"/v1/jobs/j1-h1/stream", nil)
	must.NoError(t, err)
	resp, err := r.client.Do(req)
	must.NoError(t, err)
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for comments := 0; comments < 3; {
		must.True(t, lines.Scan())
		if lines.Text() == ": keep-alive" {
			comments++
		}
	}
	r.jobs.add(core.Event{Kind: core.EventEnd, State: core.JobSucceeded})
	end := false
	for lines.Scan() {
		end = end || lines.Text() == "event: end"
	}
	must.True(t, end)
	must.NoError(t, lines.Err())
}

func TestBrokenJobStream(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.jobs.add(core.Event{Kind: core.EventLog, Message: "a"})
	r.jobs.fail = core.Errorf(core.Unavailable, "the hive is gone")
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, r.url+"/v1/jobs/j1-h1/stream", nil)
	must.NoError(t, err)
	_, body, err := r.do(req)
	must.ErrorIs(t, err, io.ErrUnexpectedEOF)
	must.StrContains(t, body, "event: error\ndata: {\"error\":{\"message\":\"the hive is gone\"")
	must.StrContains(t, body, "id: 1\n")
}

// A job stream does not delay a stop: it can be resumed elsewhere.
func TestStopEndsJobStreams(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, r.url+"/v1/jobs/j1-h1/stream", nil)
	must.NoError(t, err)
	resp, err := r.client.Do(req)
	must.NoError(t, err)
	defer resp.Body.Close()
	start := time.Now()
	r.stop()
	must.Less(t, 900*time.Millisecond, time.Since(start))
	_, err = io.ReadAll(resp.Body)
	must.ErrorIs(t, err, io.ErrUnexpectedEOF)
}

// An operation that requires another scope than operate is checked for it before anything is
// submitted.
func TestJobScope(t *testing.T) {
	t.Parallel()
	g, auth := guarded(io.Discard)
	auth.Change(func(s *fakecluster.State) {
		s.Secrets["rbee_both_secret"] = core.Token{Kind: core.TokenAPI, Scopes: []core.Scope{core.ScopeOperate, core.ScopeAdmin}}
	})
	for n, c := range []struct {
		token, operation string
		status           int
	}{
		{"rbee_only-operate_secret", `{"operation":"hive_install","host":"box"}`, 403},
		{"rbee_only-admin_secret", `{"operation":"hive_install","host":"box"}`, 403},
		{"rbee_both_secret", `{"operation":"hive_install","host":"box"}`, 202},
		{"rbee_only-operate_secret", `{"operation":"worker_spawn","model":"m"}`, 202},
		{"rbee_only-operate_secret", `{"operation":"worker_download","type":"cpu","force":true}`, 202},
		{"rbee_only-operate_secret", `{"operation":"worker_download","type":"cpu","force":true,"from":"http://host/x.tgz#sha256=0"}`, 403},
		{"rbee_both_secret", `{"operation":"worker_download","type":"cpu","from":"http://host/x.tgz"}`, 202},
	} {
		r := httptest.NewRequest(http.MethodPost, "/v1/jobs", strings.NewReader(c.operation))
		r.Host, r.RemoteAddr = "localhost", fmt.Sprintf("10.9.9.%d:1", n)
		r.Header.Set("Authorization", "Bearer "+c.token)
		w := httptest.NewRecorder()
		g.Handler().ServeHTTP(w, r)
		must.Eq(t, c.status, w.Code, must.Sprintf("%s %s: %s", c.token, c.operation, w.Body))
		if c.status == 403 && c.token == "rbee_only-operate_secret" {
			must.StrContains(t, w.Body.String(), `scope \"admin\"`)
		}
	}
}
