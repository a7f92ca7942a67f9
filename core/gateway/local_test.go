package gateway_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/client"
	"github.com/rbee-project/rbee/core/gateway"
)

// loneHive has one worker process and one worker binary.
type loneHive struct{}

func (loneHive) Processes(context.Context) ([]core.Process, error) {
	return []core.Process{{PID: 42, WorkerID: "w1"}}, nil
}

func (loneHive) Process(_ context.Context, pid int) (core.Process, error) {
	if pid != 42 {
		return core.Process{}, core.WithHint(core.Errorf("", core.NotFound, "process %d is not a worker", pid), "Look at the list.")
	}
	return core.Process{PID: pid, WorkerID: "w1", Log: []string{"loaded"}}, nil
}

func (loneHive) Binaries(context.Context) ([]core.WorkerBinary, error) { return nil, nil }

func (loneHive) Binary(_ context.Context, id string) (core.WorkerBinary, error) {
	return core.WorkerBinary{ID: id}, nil
}

// What a hive says of itself is read by the same client as what a queen says.
func TestLocalHandler(t *testing.T) {
	t.Parallel()
	s := httptest.NewServer(gateway.LocalHandler(loneHive{}))
	t.Cleanup(s.Close)
	c, err := client.New(client.Options{Addresses: []string{s.URL}})
	must.NoError(t, err)
	t.Cleanup(c.Close)
	list, err := c.Processes(t.Context(), core.LocalHive)
	must.NoError(t, err)
	must.Len(t, 1, list)
	must.Eq(t, 42, list[0].PID)
	p, err := c.Process(t.Context(), core.LocalHive, 42)
	must.NoError(t, err)
	must.Eq(t, []string{"loaded"}, p.Log)
	_, err = c.Process(t.Context(), core.LocalHive, 43)
	must.Eq(t, core.NotFound, core.KindOf(err))
	must.Eq(t, "Look at the list.", core.HintOf(err))
	binaries, err := c.Binaries(t.Context(), core.LocalHive)
	must.NoError(t, err)
	must.Len(t, 0, binaries)
	b, err := c.Binary(t.Context(), core.LocalHive, "cpu@1.0")
	must.NoError(t, err)
	must.Eq(t, "cpu@1.0", b.ID)

	// Nothing else, no other hive, and nothing that changes anything.
	for _, r := range []struct{ method, path string }{
		{http.MethodGet, "/v1/hives/other/processes"},
		{http.MethodGet, "/v1/workers"},
		{http.MethodPost, "/v1/jobs"},
		{http.MethodDelete, "/v1/hives/localhost/processes/42"},
		{http.MethodPost, "/v1/hives/localhost/processes"},
		{http.MethodGet, "/"},
	} {
		req, err := http.NewRequestWithContext(t.Context(), r.method, s.URL+r.path, nil)
		must.NoError(t, err)
		resp, err := http.DefaultClient.Do(req)
		must.NoError(t, err)
		must.NoError(t, resp.Body.Close())
		must.Between(t, 400, resp.StatusCode, 499, must.Sprint(r.method, r.path))
	}
	for _, pid := range []string{"0", "-1", "x", "99999999999999999999"} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL+"/v1/hives/localhost/processes/"+pid, nil)
		must.NoError(t, err)
		resp, err := http.DefaultClient.Do(req)
		must.NoError(t, err)
		must.NoError(t, resp.Body.Close())
		must.Eq(t, http.StatusBadRequest, resp.StatusCode, must.Sprint(pid))
	}
}
