package client

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/operation"
)

// Version describes what a queen runs.
type Version struct {
	Version string `json:"version"`
	Go      string `json:"go"`
	OS      string `json:"os"`
	Arch    string `json:"arch"`
}

// CatalogQuery is a search in the catalog sources of a hive.
type CatalogQuery struct {
	Text  string // empty: everything
	Kind  string // as in core.CatalogItem; empty: every kind
	Limit int    // 0: the queen's default; at most 1000
}

// Healthy returns nil if a queen answers at all.
func (c *Client) Healthy(ctx context.Context) error {
	_, err := fetchOne[struct{}](ctx, c, "/healthz")
	return err
}

// Ready returns nil if a queen can serve requests; otherwise the error names what is missing.
func (c *Client) Ready(ctx context.Context) error {
	_, err := fetchOne[struct{}](ctx, c, "/readyz")
	return err
}

// Version returns what the queen runs.
func (c *Client) Version(ctx context.Context) (Version, error) {
	return fetchOne[Version](ctx, c, "/version")
}

// Metrics returns the queen's metrics in Prometheus' text format.
func (c *Client) Metrics(ctx context.Context) ([]byte, error) {
	resp, _, err := c.do(ctx, call{method: http.MethodGet, path: "/metrics", accept: "text/plain"})
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	return text, core.Wrap(err, core.Unavailable, "read metrics")
}

// Answer implements operation.Answerer: it calls the GET route of a read-only operation. Errors:
// also Unsupported for an operation without such a route.
func (c *Client) Answer(ctx context.Context, r core.Request) (any, error) {
	return c.Reading().Answer(ctx, r)
}

// Reading returns an Answerer for registry reads that are as fresh as the options demand.
func (c *Client) Reading(opts ...ReadOption) operation.Answerer { return answerer{c, readingOf(opts)} }

type answerer struct {
	c    *Client
	read reading
}

func (a answerer) Answer(ctx context.Context, r core.Request) (any, error) {
	s, err := operation.Find(r.Operation)
	if err != nil {
		return nil, err
	}
	path, err := s.Path(r)
	if err != nil {
		return nil, err
	}
	v := s.Zero()
	header, err := a.c.read(ctx, call{method: http.MethodGet, path: a.read.path(path), slow: s.Slow}, func(body []byte) error {
		var err error
		if s.IsList() {
			var l struct {
				Data json.RawMessage `json:"data"`
			}
			if err := json.Unmarshal(body, &l); err != nil || l.Data == nil {
				return err
			}
			body = l.Data
		}
		v, err = s.Decode(body)
		return err
	})
	if err != nil {
		return nil, err
	}
	a.read.report(header)
	return v, nil
}

// Standing returns what an agent last learnt about its own machine's membership. Only an agent's
// local socket answers this call.
func (c *Client) Standing(ctx context.Context) (core.Standing, error) {
	return fetchOne[core.Standing](ctx, c, "/v1/standing")
}

// Status returns an overview of the whole cluster.
func (c *Client) Status(ctx context.Context, opts ...ReadOption) (core.Status, error) {
	return fetchOne[core.Status](ctx, c, "/v1/status", opts...)
}

// Hives lists the hives of the cluster.
func (c *Client) Hives(ctx context.Context, opts ...ReadOption) ([]core.Hive, error) {
	return operation.HiveList.Ask(ctx, c.Reading(opts...), core.Request{})
}

// Hive returns one hive by ID, name or core.LocalHive.
func (c *Client) Hive(ctx context.Context, hive string, opts ...ReadOption) (core.Hive, error) {
	return operation.HiveGet.Ask(ctx, c.Reading(opts...), core.Request{Hive: hive})
}

// Workers lists the active workers.
func (c *Client) Workers(ctx context.Context, opts ...ReadOption) ([]core.Worker, error) {
	return operation.ActiveWorkerList.Ask(ctx, c.Reading(opts...), core.Request{})
}

// Worker returns one active worker by its ID or a unique prefix of it.
func (c *Client) Worker(ctx context.Context, id string, opts ...ReadOption) (core.Worker, error) {
	return operation.ActiveWorkerGet.Ask(ctx, c.Reading(opts...), core.Request{Worker: id})
}

// WorkerDetails returns one active worker with the requests that the answering queen has sent to
// it.
func (c *Client) WorkerDetails(ctx context.Context, id string, opts ...ReadOption) (core.WorkerDetails, error) {
	return fetchOne[core.WorkerDetails](ctx, c, "/v1/workers/"+segment(id), opts...)
}

// Route returns how an inference request was routed, by its x-request-id. Only the queen that
// received it knows, and only for its latest requests.
func (c *Client) Route(ctx context.Context, id string) (core.RouteRecord, error) {
	return fetchOne[core.RouteRecord](ctx, c, "/v1/requests/"+segment(id))
}

// Routes lists how the latest requests that the queen received were routed, newest first. limit 0:
// the queen's default.
func (c *Client) Routes(ctx context.Context, limit int) ([]core.RouteRecord, error) {
	path := "/v1/requests"
	if limit > 0 {
		path += "?limit=" + strconv.Itoa(limit)
	}
	return fetchList[core.RouteRecord](ctx, c, path)
}

// Models lists the models of the whole cluster.
func (c *Client) Models(ctx context.Context) ([]core.Model, error) {
	return fetchList[core.Model](ctx, c, "/v1/models")
}

// Model returns one model of the cluster by ID or alias.
func (c *Client) Model(ctx context.Context, id string) (core.Model, error) {
	return fetchOne[core.Model](ctx, c, "/v1/models/"+segment(id))
}

// HiveModels lists the models of one hive.
func (c *Client) HiveModels(ctx context.Context, hive string) ([]core.Model, error) {
	return operation.ModelList.Ask(ctx, c, core.Request{Hive: hive})
}

// HiveModel returns one model of one hive with its files.
func (c *Client) HiveModel(ctx context.Context, hive, id string) (core.Model, error) {
	return operation.ModelGet.Ask(ctx, c, core.Request{Hive: hive, Model: id})
}

// Processes lists the worker processes of a hive.
func (c *Client) Processes(ctx context.Context, hive string) ([]core.Process, error) {
	return operation.WorkerProcessList.Ask(ctx, c, core.Request{Hive: hive})
}

// Process returns one worker process of a hive with its command line, sockets and recent log.
func (c *Client) Process(ctx context.Context, hive string, pid int) (core.Process, error) {
	return operation.WorkerProcessGet.Ask(ctx, c, core.Request{Hive: hive, PID: pid})
}

// Binaries lists the worker binaries of a hive.
func (c *Client) Binaries(ctx context.Context, hive string) ([]core.WorkerBinary, error) {
	return operation.WorkerBinaryList.Ask(ctx, c, core.Request{Hive: hive})
}

// Binary returns one worker binary of a hive by "<type>" or "<type>@<version>".
func (c *Client) Binary(ctx context.Context, hive, id string) (core.WorkerBinary, error) {
	return operation.WorkerBinaryGet.Ask(ctx, c, core.Request{Hive: hive, Binary: id})
}

// Catalog searches the catalog sources of a hive.
func (c *Client) Catalog(ctx context.Context, hive string, q CatalogQuery) ([]core.CatalogItem, error) {
	return operation.CatalogSearch.Ask(ctx, c, core.Request{Hive: hive, Text: q.Text, Kind: q.Kind, Limit: q.Limit})
}

func hivePath(hive string) string {
	if hive == "" {
		hive = core.LocalHive
	}
	return "/v1/hives/" + segment(hive)
}

// segment escapes a name as one segment of a path: an empty name, or one of dots only, must not
// become another path.
func segment(name string) string {
	switch name {
	case "", ".", "..":
		return "%00"
	}
	return url.PathEscape(name)
}
