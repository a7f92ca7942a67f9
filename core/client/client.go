// Package client is the Go client of rbee's public HTTP API.
package client

import (
	"context"
	"net/http"

	"github.com/rbee-project/rbee/core"
)

// DefaultAddress is where an agent with the default configuration serves the API.
const DefaultAddress = "http://127.0.0.1:7833"

// Options says which queens to ask and how.
type Options struct {
	// Addresses of queens, such as "http://127.0.0.1:7833" or "host:7833"; empty: DefaultAddress.
	// A call goes to the first that can be reached.
	Addresses []string
	Token     string // sent as bearer token; empty: none
	// HTTPClient makes the requests; nil: one without a time limit, since streams last. It is never closed.
	HTTPClient *http.Client
	UserAgent  string // empty: "rbee"
}

// Client asks queens. It is safe for concurrent use. Every error is a core.Error with the kind and the hint that the queen gave;
// Unavailable when no queen can be reached.
type Client struct{ o Options }

// New returns a client. It connects to nothing yet. Errors: Invalid for an address that cannot be read.
func New(o Options) (*Client, error) { return &Client{o: o}, nil }

// Version is what a queen runs.
type Version struct {
	Version string `json:"version"`
	Go      string `json:"go"`
	OS      string `json:"os"`
	Arch    string `json:"arch"`
}

// CatalogQuery asks the catalog sources of a hive.
type CatalogQuery struct {
	Text  string // empty: everything
	Kind  string // "model", "engine" or empty for both
	Limit int    // 0: the queen's default
}

// Address is the queen that answered last, or the first configured one.
func (c *Client) Address() string { return "" }

// Healthy is nil when a queen answers at all.
func (c *Client) Healthy(ctx context.Context) error { return nil }

// Ready is nil when a queen can serve requests; otherwise it says what is missing.
func (c *Client) Ready(ctx context.Context) error { return nil }

// Version returns what the queen runs.
func (c *Client) Version(ctx context.Context) (Version, error) { return Version{}, nil }

// Metrics returns the queen's metrics in Prometheus' text format.
func (c *Client) Metrics(ctx context.Context) ([]byte, error) { return nil, nil }

// Status returns the whole cluster on one screen.
func (c *Client) Status(ctx context.Context) (core.Status, error) { return core.Status{}, nil }

// Hives lists the hives of the cluster.
func (c *Client) Hives(ctx context.Context) ([]core.Hive, error) { return nil, nil }

// Hive returns one hive by id, name or core.LocalHive.
func (c *Client) Hive(ctx context.Context, hive string) (core.Hive, error) { return core.Hive{}, nil }

// Workers lists the active workers.
func (c *Client) Workers(ctx context.Context) ([]core.Worker, error) { return nil, nil }

// Worker returns one active worker by its id or a unique prefix of it.
func (c *Client) Worker(ctx context.Context, id string) (core.Worker, error) {
	return core.Worker{}, nil
}

// Models lists the models of the whole cluster.
func (c *Client) Models(ctx context.Context) ([]core.Model, error) { return nil, nil }

// Model returns one model of the cluster by id or alias.
func (c *Client) Model(ctx context.Context, id string) (core.Model, error) { return core.Model{}, nil }

// HiveModels lists the models of one hive.
func (c *Client) HiveModels(ctx context.Context, hive string) ([]core.Model, error) { return nil, nil }

// HiveModel returns one model of one hive with its files.
func (c *Client) HiveModel(ctx context.Context, hive, id string) (core.Model, error) {
	return core.Model{}, nil
}

// Processes lists the worker processes of a hive.
func (c *Client) Processes(ctx context.Context, hive string) ([]core.Process, error) { return nil, nil }

// Process returns one worker process of a hive with command line, sockets and recent log.
func (c *Client) Process(ctx context.Context, hive string, pid int) (core.Process, error) {
	return core.Process{}, nil
}

// Binaries lists the worker binaries of a hive.
func (c *Client) Binaries(ctx context.Context, hive string) ([]core.WorkerBinary, error) {
	return nil, nil
}

// Binary returns one worker binary of a hive by "<type>" or "<type>@<version>".
func (c *Client) Binary(ctx context.Context, hive, id string) (core.WorkerBinary, error) {
	return core.WorkerBinary{}, nil
}

// Catalog searches the catalog sources of a hive.
func (c *Client) Catalog(ctx context.Context, hive string, q CatalogQuery) ([]core.CatalogItem, error) {
	return nil, nil
}
