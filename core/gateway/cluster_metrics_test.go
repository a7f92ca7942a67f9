package gateway

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest/fakecluster"
	"github.com/rbee-project/rbee/core/inference"
)

func scrape(t *testing.T, c Cluster) string {
	t.Helper()
	m := NewMetrics()
	must.NoError(t, m.Registerer().Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "rbee_test_given"}, func() float64 { return 7 })))
	g := New(Options{Inference: inference.New(inference.Options{Router: &fakeRouter{}}), Metrics: m, Cluster: c})
	w := httptest.NewRecorder()
	r := httptest.NewRequest(http.MethodGet, "/metrics", http.NoBody)
	r.Host = "localhost"
	g.Handler().ServeHTTP(w, r)
	must.Eq(t, 200, w.Code, must.Sprint(w.Body.String()))
	return w.Body.String()
}

// The metrics include what `ps` and `top` show, and what other packages have registered.
func TestClusterMetrics(t *testing.T) {
	t.Parallel()
	text := scrape(t, fakecluster.New(fakecluster.State{
		Hives: []core.Hive{{ID: "h1", Name: "desk", Status: core.HiveReady, Devices: []core.Device{{ID: "cuda:0", TotalBytes: 800, FreeBytes: 300}}}},
		Workers: []core.Worker{
			{ID: "w1", Hive: "h1", Model: "tiny", State: core.WorkerReady, Slots: 4, Load: core.Load{Active: 2, Queued: 1, TokensPerSecond: 9.5, TokensTotal: 1234, KVUsedTokens: 77, DraftTokens: 40, AcceptedTokens: 30}},
			{ID: "w2", Hive: "h1", Model: "tiny", State: core.WorkerLoading, Slots: 4},
		},
	}))
	for _, want := range []string{
		`rbee_cluster_hives{status="ready"} 1`,
		`rbee_cluster_device_memory_bytes{device="cuda:0",hive="desk"} 800`,
		`rbee_cluster_device_free_memory_bytes{device="cuda:0",hive="desk"} 300`,
		`rbee_cluster_workers{model="tiny",state="loading"} 1`,
		`rbee_cluster_worker_slots{hive="desk",model="tiny",worker="w1"} 4`,
		`rbee_cluster_worker_active_requests{hive="desk",model="tiny",worker="w1"} 2`,
		`rbee_cluster_worker_queued_requests{hive="desk",model="tiny",worker="w1"} 1`,
		`rbee_cluster_worker_tokens_per_second{hive="desk",model="tiny",worker="w1"} 9.5`,
		"# TYPE rbee_cluster_worker_tokens_total counter\n" + `rbee_cluster_worker_tokens_total{hive="desk",model="tiny",worker="w1"} 1234`,
		`rbee_cluster_worker_kv_used_tokens{hive="desk",model="tiny",worker="w1"} 77`,
		`rbee_cluster_worker_draft_tokens_total{hive="desk",model="tiny",worker="w1"} 40`,
		`rbee_cluster_worker_accepted_tokens_total{hive="desk",model="tiny",worker="w1"} 30`,
		"rbee_test_given 7",
	} {
		must.StrContains(t, text, want)
	}
}

// The number of labels is bounded, however many workers and hives there are.
func TestClusterMetricsAreBounded(t *testing.T) {
	t.Parallel()
	var c fakecluster.State
	for i := range 3 * maxSeries {
		h := fmt.Sprintf("h%04d", i)
		c.Hives = append(c.Hives, core.Hive{ID: h, Status: core.HiveReady, Devices: []core.Device{{ID: "cpu", TotalBytes: 1}}})
		c.Workers = append(c.Workers, core.Worker{ID: fmt.Sprintf("w%04d", i), Hive: h, Model: fmt.Sprintf("m%04d", i), State: core.WorkerReady, Slots: 1})
	}
	text := scrape(t, fakecluster.New(c))
	must.StrContains(t, text, fmt.Sprintf(`rbee_cluster_hives{status="ready"} %d`, 3*maxSeries))
	must.StrContains(t, text, fmt.Sprintf(`rbee_cluster_worker_slots{hive="other",model="other",worker="other"} %d`, 2*maxSeries))
	must.Eq(t, maxSeries+1, strings.Count(text, "\nrbee_cluster_worker_slots{"))
	must.Eq(t, maxSeries+1, strings.Count(text, "\nrbee_cluster_device_memory_bytes{"))
	must.Eq(t, maxModelLabels+1, strings.Count(text, "\nrbee_cluster_workers{"))
}

// Workers beyond the bound are counted together, on whichever hive they run.
func TestClusterMetricsOfOneHive(t *testing.T) {
	t.Parallel()
	c := fakecluster.State{Hives: []core.Hive{{ID: "h", Status: core.HiveReady}}}
	for i := range 3 * maxSeries {
		c.Workers = append(c.Workers, core.Worker{ID: fmt.Sprintf("w%04d", i), Hive: "h", Model: "m", State: core.WorkerReady, Slots: 1})
	}
	text := scrape(t, fakecluster.New(c))
	must.StrContains(t, text, fmt.Sprintf(`rbee_cluster_worker_slots{hive="other",model="m",worker="other"} %d`, 2*maxSeries))
	must.StrContains(t, text, `rbee_cluster_worker_slots{hive="h",model="m",worker="w0000"} 1`)
}
