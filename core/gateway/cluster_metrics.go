package gateway

import (
	"context"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/operation"
)

const (
	// maxSeries bounds the workers and the hives with separate series; the rest share the label
	// otherLabel.
	maxSeries  = 256
	otherLabel = "other"
)

// clusterMetrics holds the data of `rbee ps`, `top` and `hive list`, collected on each scrape: this
// queen's view of the cluster.
type clusterMetrics struct {
	ctx     context.Context //nolint:containedctx // of one scrape; Collect has none
	cluster Cluster
	waiting func() map[string]int // requests in line, by core.Model.ID
}

type gauge struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
}

func clusterGauge(name, help string, labels ...string) gauge {
	return gauge{prometheus.NewDesc("rbee_cluster_"+name, help, labels, nil), prometheus.GaugeValue}
}

// The metrics of the cluster.
var (
	hivesGauge         = clusterGauge("hives", "Hives, by status.", "status")
	deviceTotalGauge   = clusterGauge("device_memory_bytes", "Memory of a device of a hive.", "hive", "device")
	deviceFreeGauge    = clusterGauge("device_free_memory_bytes", "Free memory of a device of a hive, as it last reported.", "hive", "device")
	workersGauge       = clusterGauge("workers", "Active workers, by model and state.", "model", "state")
	slotsGauge         = clusterGauge("worker_slots", "Requests that a worker serves at once.", "worker", "hive", "model")
	activeGauge        = clusterGauge("worker_active_requests", "Requests that a worker serves.", "worker", "hive", "model")
	queuedGauge        = clusterGauge("worker_queued_requests", "Requests that wait in a worker.", "worker", "hive", "model")
	rateGauge          = clusterGauge("worker_tokens_per_second", "Tokens that a worker generates per second.", "worker", "hive", "model")
	tokensCounter      = gauge{clusterGauge("worker_tokens_total", "Tokens that a worker has generated since it began.", "worker", "hive", "model").desc, prometheus.CounterValue}
	draftCounter       = gauge{clusterGauge("worker_draft_tokens_total", "Draft tokens: guessed, to evaluate several in a step.", "worker", "hive", "model").desc, prometheus.CounterValue}
	acceptedCounter    = gauge{clusterGauge("worker_accepted_tokens_total", "Draft tokens that were what the model chose.", "worker", "hive", "model").desc, prometheus.CounterValue}
	kvGauge            = clusterGauge("worker_kv_used_tokens", "Tokens in a worker's cache.", "worker", "hive", "model")
	waitingGauge       = clusterGauge("waiting_requests", "Requests that wait at this queen for a free slot of their model.", "model")
	clusterDescription = []gauge{hivesGauge, deviceTotalGauge, deviceFreeGauge, workersGauge, slotsGauge, activeGauge, queuedGauge, rateGauge, tokensCounter, draftCounter, acceptedCounter, kvGauge, waitingGauge}
)

// Describe implements prometheus.Collector.
func (clusterMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, g := range clusterDescription {
		ch <- g.desc
	}
}

// sums adds up values by their labels.
type sums map[gauge]map[string]float64

func (s sums) add(g gauge, v float64, labels ...string) {
	if s[g] == nil {
		s[g] = map[string]float64{}
	}
	s[g][strings.Join(labels, "\x00")] += v
}

// Collect implements prometheus.Collector.
func (c clusterMetrics) Collect(ch chan<- prometheus.Metric) {
	s := sums{}
	names := c.hives(s)
	c.workers(s, names)
	model := limitedTo(maxModelLabels)
	for name, n := range c.waiting() {
		s.add(waitingGauge, float64(n), model(name))
	}
	for g, values := range s {
		for labels, v := range values {
			if m, err := prometheus.NewConstMetric(g.desc, g.kind, v, strings.Split(labels, "\x00")...); err == nil { // registered labels are valid UTF-8
				ch <- m
			}
		}
	}
}

// hives adds the hives and returns their labels by id.
func (c clusterMetrics) hives(s sums) map[string]string {
	hives, err := operation.HiveList.Ask(c.ctx, c.cluster, core.Request{})
	if err != nil {
		return nil
	}
	slices.SortFunc(hives, func(a, b core.Hive) int { return strings.Compare(a.ID, b.ID) })
	names, label := map[string]string{}, limitedTo(maxSeries)
	for _, h := range hives {
		s.add(hivesGauge, 1, string(h.Status))
		name := h.Name
		if name == "" {
			name = h.ID
		}
		names[h.ID] = label(name)
		for _, d := range h.Devices[:min(len(h.Devices), maxSeries)] {
			s.add(deviceTotalGauge, float64(d.TotalBytes), names[h.ID], d.ID)
			s.add(deviceFreeGauge, float64(d.FreeBytes), names[h.ID], d.ID)
		}
	}
	return names
}

func (c clusterMetrics) workers(s sums, hives map[string]string) {
	workers, err := c.cluster.Workers(c.ctx)
	if err != nil {
		return
	}
	slices.SortFunc(workers, func(a, b core.Worker) int { return strings.Compare(a.Hive+a.ID, b.Hive+b.ID) })
	label, model := limitedTo(maxSeries), limitedTo(maxModelLabels)
	for _, w := range workers {
		m := model(w.Model)
		s.add(workersGauge, 1, m, string(w.State))
		hive := hives[w.Hive]
		if hive == "" {
			hive = otherLabel
		}
		id := label(w.ID)
		if id == otherLabel {
			hive = otherLabel
		}
		for g, v := range map[gauge]float64{
			slotsGauge: float64(w.Slots), activeGauge: float64(w.Load.Active), queuedGauge: float64(w.Load.Queued), rateGauge: w.Load.TokensPerSecond,
			tokensCounter: float64(w.Load.TokensTotal), draftCounter: float64(w.Load.DraftTokens), acceptedCounter: float64(w.Load.AcceptedTokens), kvGauge: float64(w.Load.KVUsedTokens),
		} {
			s.add(g, v, id, hive, m)
		}
	}
}

// limitedTo returns a function that keeps the first names unchanged and maps all further ones to
// otherLabel.
func limitedTo(most int) func(string) string {
	known := map[string]bool{}
	return func(name string) string {
		if !known[name] {
			if len(known) >= most {
				return otherLabel
			}
			known[name] = true
		}
		return name
	}
}
