package gateway

import (
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/rbee-project/rbee/core/inference"
)

var _ inference.Meter = (*Metrics)(nil)

// maxModelLabels bounds the models with separate series; the rest share the label "other".
const maxModelLabels = 100

// maxUsages bounds the pairs of token and model with separate series; the rest share the label
// otherLabel.
const maxUsages = 500

// Metrics holds the metrics of the gateway and, as an inference.Meter, those of inference. The
// program chooses all label values, which never contain client text. It is safe for concurrent use.
type Metrics struct {
	registry   *prometheus.Registry
	requests   *prometheus.CounterVec   // by route and status class
	duration   *prometheus.HistogramVec // by route
	inFlight   prometheus.Gauge
	ttft       prometheus.Histogram
	interToken prometheus.Histogram
	endToEnd   prometheus.Histogram
	events     prometheus.Counter
	streams    *prometheus.CounterVec // by model
	broken     *prometheus.CounterVec // by reason
	failovers  prometheus.Counter
	waits      prometheus.Counter
	refused    *prometheus.CounterVec // by reason
	used       *prometheus.CounterVec // tokens, by token id, model and kind
	asked      *prometheus.CounterVec // requests, by token id and model
	limited    prometheus.Counter

	mu     sync.Mutex // guards below
	models map[string]bool
	usages map[[2]string]bool // by token id and model
}

// NewMetrics returns metrics in a separate registry.
func NewMetrics() *Metrics {
	const ns = "rbee_gateway"
	latency := []float64{.001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 30, 60, 120, 300, 600}
	m := &Metrics{
		registry:   prometheus.NewRegistry(),
		requests:   prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: ns, Name: "requests_total", Help: "Answered requests, by route and class of status."}, []string{"route", "status"}),
		duration:   prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: ns, Name: "request_duration_seconds", Help: "From a request's headers to its whole answer, by route.", Buckets: latency}, []string{"route"}),
		inFlight:   prometheus.NewGauge(prometheus.GaugeOpts{Namespace: ns, Name: "in_flight_requests", Help: "Requests that are being answered."}),
		ttft:       prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: ns, Name: "time_to_first_token_seconds", Help: "From a streamed inference request to its first token.", Buckets: latency}),
		interToken: prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: ns, Name: "inter_token_seconds", Help: "Between tokens of a stream; tokens that come together share their time.", Buckets: []float64{.0001, .0002, .0005, .001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5}}),
		endToEnd:   prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: ns, Name: "inference_duration_seconds", Help: "From an inference request to its whole answer, failed ones excluded.", Buckets: latency}),
		events:     prometheus.NewCounter(prometheus.CounterOpts{Namespace: ns, Name: "stream_events_total", Help: "Relayed events of inference streams, about one per token."}),
		streams:    prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: ns, Name: "streams_total", Help: "Inference streams that began, by model."}, []string{"model"}),
		broken:     prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: ns, Name: "broken_streams_total", Help: "Inference streams that ended before the answer was whole, by reason."}, []string{"reason"}),
		failovers:  prometheus.NewCounter(prometheus.CounterOpts{Namespace: ns, Name: "failovers_total", Help: "Requests that were given to another worker before the first byte."}),
		waits:      prometheus.NewCounter(prometheus.CounterOpts{Namespace: ns, Name: "queued_requests_total", Help: "Requests that waited for a free slot of their model."}),
		refused:    prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: ns, Name: "refused_requests_total", Help: "Requests that were refused for who sent them, by reason."}, []string{"reason"}),
		used:       prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: ns, Name: "key_tokens_total", Help: "Tokens by id of the API token that asked, model and kind: prompt, cached (of the prompt), answer."}, []string{"key", "model", "kind"}),
		asked:      prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: ns, Name: "key_requests_total", Help: "Inference requests that a worker answered, by id of the API token that asked, and model."}, []string{"key", "model"}),
		limited:    prometheus.NewCounter(prometheus.CounterOpts{Namespace: ns, Name: "limited_requests_total", Help: "Requests that were refused for a limit of their API token."}),
		models:     map[string]bool{}, usages: map[[2]string]bool{},
	}
	m.registry.MustRegister(m.requests, m.duration, m.inFlight, m.ttft, m.interToken, m.endToEnd, m.events, m.streams, m.broken, m.failovers, m.waits, m.refused, m.used, m.asked, m.limited,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Registerer registers the metrics of other packages.
func (m *Metrics) Registerer() prometheus.Registerer { return m.registry }

func (m *Metrics) request(route string, status int, took time.Duration) {
	class := "none" // the client disconnected before there was a status
	if status != 0 {
		class = strconv.Itoa(status/100) + "xx"
	}
	m.requests.WithLabelValues(route, class).Inc()
	m.duration.WithLabelValues(route).Observe(took.Seconds())
}

// model returns the label for a model.
func (m *Metrics) model(id string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.models[id] {
		if len(m.models) >= maxModelLabels {
			return "other"
		}
		m.models[id] = true
	}
	return id
}

// Began implements inference.Meter.
func (m *Metrics) Began(model string) { m.streams.WithLabelValues(m.model(model)).Inc() }

// Events implements inference.Meter.
func (m *Metrics) Events(n int) { m.events.Add(float64(n)) }

// FirstToken implements inference.Meter.
func (m *Metrics) FirstToken(d time.Duration) { m.ttft.Observe(d.Seconds()) }

// Tokens implements inference.Meter.
func (m *Metrics) Tokens(n int, each time.Duration) {
	for range n {
		m.interToken.Observe(each.Seconds())
	}
}

// Retried implements inference.Meter.
func (m *Metrics) Retried() { m.failovers.Inc() }

// Waits implements inference.Meter.
func (m *Metrics) Waits() { m.waits.Inc() }

// Ended implements inference.Meter.
func (m *Metrics) Ended(took time.Duration, cut string) {
	if cut != "" {
		m.broken.WithLabelValues(cut).Inc()
		return
	}
	m.endToEnd.Observe(took.Seconds())
}

// Used implements inference.Meter.
func (m *Metrics) Used(key, model string, u inference.Usage) {
	model = m.model(model)
	m.mu.Lock()
	if pair := [2]string{key, model}; !m.usages[pair] {
		if len(m.usages) < maxUsages {
			m.usages[pair] = true
		} else {
			key, model = otherLabel, otherLabel
		}
	}
	m.mu.Unlock()
	m.asked.WithLabelValues(key, model).Inc()
	for kind, n := range map[string]int64{"prompt": u.Prompt, "cached": u.Cached, "answer": u.Completion} {
		if n > 0 {
			m.used.WithLabelValues(key, model, kind).Add(float64(n))
		}
	}
}

// Limited implements inference.Meter.
func (m *Metrics) Limited() { m.limited.Inc() }

func (g *Gateway) metricsPage(w *response, r *http.Request) error {
	view := prometheus.NewRegistry()
	view.MustRegister(clusterMetrics{r.Context(), g.o.Cluster, g.o.Inference.Waiting})
	promhttp.HandlerFor(prometheus.Gatherers{g.metrics.registry, view}, promhttp.HandlerOpts{DisableCompression: true}).ServeHTTP(w, r)
	return nil
}
