package gateway_test

import (
	"context"
	"crypto/sha256"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/client"
	"github.com/rbee-project/rbee/core/gateway"
	"github.com/rbee-project/rbee/core/operation"
)

// loneHive has one worker process and every worker binary.
type loneHive struct{}

func (loneHive) Answer(_ context.Context, r core.Request) (any, error) {
	if err := operation.Check(r); err != nil {
		return nil, err
	}
	switch r.Operation {
	case core.OpWorkerProcessList:
		return []core.Process{{PID: 42, WorkerID: "w1"}}, nil
	case core.OpWorkerProcessGet:
		if r.PID != 42 {
			return nil, core.Errorf(core.NotFound, "process %d is not a worker", r.PID).Hint("Look at the list.")
		}
		return core.Process{PID: r.PID, WorkerID: "w1", Log: []string{"loaded"}}, nil
	case core.OpWorkerBinaryGet:
		return core.WorkerBinary{ID: r.Binary}, nil
	}
	s, err := operation.Find(r.Operation)
	return s.Zero(), err
}

// A client reads a hive's own answers as it reads a queen's.
func TestLocalHandler(t *testing.T) {
	t.Parallel()
	s := httptest.NewServer(gateway.LocalHandler(loneHive{}, nil, nil))
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

	// Nothing else is served: no other hive, and nothing that makes changes.
	for _, r := range []struct{ method, path string }{
		{http.MethodGet, "/v1/hives/other/processes"},
		{http.MethodGet, "/v1/workers"},
		{http.MethodPost, "/v1/jobs"},
		{http.MethodPost, "/v1/tokens"},
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

// A queen creates tokens for clients that prove read access to its data folder, with a single-use
// proof per request.
func TestLocalTokens(t *testing.T) {
	t.Parallel()
	proof := func(message []byte) []byte { sum := sha256.Sum256(append([]byte("key"), message...)); return sum[:] }
	var told []core.Token
	made := 0
	s := httptest.NewServer(gateway.LocalHandler(nil, &gateway.LocalTokens{
		Create: func(_ context.Context, r core.TokenRequest) (core.NewToken, error) {
			made++
			return core.NewToken{Token: core.Token{ID: "t1", Name: r.Name, Kind: r.Kind}, Secret: "rbee_t1_secret"}, nil
		},
		Proof: proof,
		Told:  func(_ context.Context, made core.Token) { told = append(told, made) },
	}, nil))
	t.Cleanup(s.Close)
	post := func(body, header string) int {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL+"/v1/tokens", strings.NewReader(body))
		must.NoError(t, err)
		req.Header.Set(gateway.ProofHeader, header)
		resp, err := http.DefaultClient.Do(req)
		must.NoError(t, err)
		must.NoError(t, resp.Body.Close())
		return resp.StatusCode
	}
	const body = `{"kind":"api","name":"alice","scopes":["admin"]}`
	now := time.Now()
	good := gateway.LocalProof([]byte(body), now, proof)
	for name, header := range map[string]string{
		"none":           "",
		"garbage":        "x.y",
		"another key":    gateway.LocalProof([]byte(body), now, func([]byte) []byte { return make([]byte, 32) }),
		"another body":   gateway.LocalProof([]byte(`{}`), now, proof),
		"too old":        gateway.LocalProof([]byte(body), now.Add(-2*time.Minute), proof),
		"of tomorrow":    gateway.LocalProof([]byte(body), now.Add(24*time.Hour), proof),
		"another moment": strings.Replace(good, good[:4], "1234", 1),
	} {
		must.Eq(t, http.StatusForbidden, post(body, header), must.Sprint(name))
	}
	must.Eq(t, 0, made)
	must.Eq(t, http.StatusCreated, post(body, good))
	must.Eq(t, http.StatusForbidden, post(body, good)) // valid only once
	must.Eq(t, []core.Token{{ID: "t1", Name: "alice", Kind: core.TokenAPI}}, told)
}
