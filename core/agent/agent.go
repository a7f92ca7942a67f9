// Package agent builds one process out of a configuration, a queen and a hive, and runs it: start, ready, stop in order.
package agent

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/config"
	"github.com/rbee-project/rbee/core/gateway"
	"github.com/rbee-project/rbee/core/hive"
	"github.com/rbee-project/rbee/core/pluginhost"
	"github.com/rbee-project/rbee/core/queen"
	"github.com/rbee-project/rbee/core/rpc"
	"github.com/rbee-project/rbee/core/store"
	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/raft/node"
)

const (
	// drainGrace is how long open requests may go on when the agent is told to end.
	drainGrace = 10 * time.Second
	// rpcGrace is how long calls between queen and hive may go on after both have ended their work.
	rpcGrace = time.Second
)

// The gateway is given the queen; say here that it fits.
var (
	_ gateway.Router  = (*queen.Queen)(nil)
	_ gateway.Cluster = (*queen.Queen)(nil)
	_ gateway.Jobs    = (*queen.Queen)(nil)
)

// Options say how Run runs an agent, beside its configuration.
type Options struct {
	Version string       // of the program
	Logger  hclog.Logger // nil: none
	// Ready is called once, when the agent can serve, with the host:port of its HTTP API.
	Ready func(address string)
}

// Record is what a running agent writes to agent.json in its data folder, so that scripts find it.
type Record struct {
	PID         int       `json:"pid"`
	HTTPAddress string    `json:"http_address"` // host:port
	Version     string    `json:"version"`
	StartedAt   time.Time `json:"started_at"`
}

// Run runs an agent until ctx ends. Errors: Invalid for a configuration that cannot work, InUse for an address or a data folder that
// another process has, Internal.
func Run(ctx context.Context, cfg *config.Config, o Options) (err error) {
	log := o.Logger
	if log == nil {
		log = hclog.NewNullLogger()
	}
	started := time.Now()
	if cfg.DataDir == "" {
		if cfg.DataDir, err = os.MkdirTemp("", "rbee-"); err != nil {
			return core.E("make a temporary data folder", core.Internal, err)
		}
		defer os.RemoveAll(cfg.DataDir)
	}
	unlock, err := lockDataDir(cfg.DataDir)
	if err != nil {
		return err
	}
	defer unlock()

	// The address first: when it is taken nothing else has happened yet.
	listener, err := listen(ctx, cfg.Bind)
	if err != nil {
		return err
	}
	defer listener.Close()

	id, err := nodeID(cfg.DataDir)
	if err != nil {
		return err
	}
	plugins := pluginhost.New(pluginhost.Options{PluginDir: cfg.PluginDir, RunDir: filepath.Join(cfg.DataDir, "run"), Logger: log.Named("plugin")})
	// Wrong plugin settings end the agent now, at their line of the file, rather than the first worker later.
	if err := cfg.Diagnostics(plugins.Validate(ctx, cfg)).Err(); err != nil {
		return core.WithHint(err, "\"rbee config validate\" checks a configuration without starting anything.")
	}
	workers, catalogs, err := specs(plugins, cfg, log)
	if err != nil {
		return err
	}
	blobs, err := store.Open(cfg.StoreDir, log.Named("store"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, blobs.Close()) }()

	raftDir := filepath.Join(cfg.DataDir, "raft")
	if cfg.Dev {
		raftDir = "" // in memory
	}
	registry, err := node.Open(node.Options{ID: id, Dir: raftDir, Logger: log})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, registry.Shutdown()) }()

	pipe := rpc.NewPipe()
	defer pipe.Close()
	conn, err := rpc.Client(pipe)
	if err != nil {
		return err
	}
	defer conn.Close()

	bees, err := hive.New(hive.Options{
		ID: id, Name: cfg.Name, Version: o.Version, DataDir: cfg.DataDir,
		Store: blobs, Plugins: plugins, WorkerSpecs: workers, CatalogSpecs: catalogs, Queens: hive.OneQueen(conn), Logger: log,
		StopWorkersOnExit: !cfg.Hive.KeepWorkers,
		Slots:             cfg.Hive.Slots, ContextTokens: cfg.Hive.ContextTokens, Threads: cfg.Hive.Threads, StopGrace: cfg.Hive.StopGrace,
	})
	if err != nil {
		return err
	}
	q := queen.New(queen.Options{
		Node: registry, ID: id, Version: o.Version, Logger: log.Named("queen"),
		LocalHive: bees.ID,
		HiveConn: func(h string) (grpc.ClientConnInterface, error) {
			if h == bees.ID() {
				return conn, nil
			}
			return nil, core.WithHint(core.Errorf("", core.Unavailable, "hive %s is not on this machine", h), "Hives on other machines are not supported yet.")
		},
	})
	api := gateway.New(gateway.Options{
		Router: q, Cluster: q, Jobs: q, Version: o.Version, Logger: log.Named("gateway"),
		Dial: dialLocal(bees),
	})
	server := rpc.NewServer(log.Named("rpc"))
	q.Register(server)
	bees.Register(server)

	// Started in this order, stopped in the opposite one.
	stages := []stage{
		{"rpc", func(ctx context.Context) error { return rpc.Serve(ctx, server, pipe.Listener(), rpcGrace) }},
		{"queen", q.Run},
		{"hive", bees.Run},
		{"gateway", func(ctx context.Context) error { return api.Serve(ctx, listener, drainGrace) }},
		{"ready", func(ctx context.Context) error {
			address := listener.Addr().String()
			if err := awaitReady(ctx, q, bees); err != nil {
				return err
			}
			if err := writeRecord(cfg.DataDir, Record{PID: os.Getpid(), HTTPAddress: address, Version: o.Version, StartedAt: started}); err != nil {
				return err
			}
			log.Info("ready", "address", address, "data", cfg.DataDir, "took", time.Since(started).Round(time.Millisecond))
			if o.Ready != nil {
				o.Ready(address)
			}
			<-ctx.Done()
			return ctx.Err()
		}},
	}
	return runStages(ctx, stages)
}

// awaitReady waits until the hive is known to the queen and the queen can serve.
func awaitReady(ctx context.Context, q *queen.Queen, h *hive.Hive) error {
	select {
	case <-h.Ready():
	case <-ctx.Done():
		return ctx.Err()
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for q.Ready(ctx) != nil {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// dialLocal connects to the data socket of a worker of this process's hive.
func dialLocal(h *hive.Hive) gateway.Dial {
	var d net.Dialer
	return func(ctx context.Context, w core.Worker) (net.Conn, error) {
		if w.Hive != h.ID() {
			return nil, core.Errorf("", core.Unavailable, "the hive of worker %s is not on this machine", w.ID)
		}
		path, err := h.DataSocket(w.ID)
		if err != nil {
			return nil, err
		}
		return d.DialContext(ctx, "unix", path)
	}
}

// listen opens the HTTP port. Errors: InUse, Invalid.
func listen(ctx context.Context, b config.Bind) (net.Listener, error) {
	address := net.JoinHostPort(b.Address, strconv.Itoa(b.HTTPPort))
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", address)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, core.WithHint(core.Errorf("", core.InUse, "the address %s is taken by another process", address),
			"If it is an rbee agent, use it as it is (\"rbee status\"); otherwise choose another port with -http-port or bind { http_port = … }.")
	case errors.Is(err, syscall.EACCES):
		return nil, core.WithHint(core.Errorf("", core.Forbidden, "may not listen on %s", address), "Choose a port above 1023.")
	case err != nil:
		return nil, core.WithHint(core.E("listen", core.Invalid, err), "Check bind { address = … } in the configuration.")
	}
	return l, nil
}

// lockDataDir makes the data folder and keeps other agents out of it until unlock is called. Errors: InUse, Internal.
func lockDataDir(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, core.WithHint(core.E("make the data folder", core.Internal, err), "Choose another folder with -data-dir or data_dir = ….")
	}
	f, err := os.OpenFile(filepath.Join(dir, "agent.lock"), os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, core.WithHint(core.E("open the data folder", core.Internal, err), "The folder must belong to the user who runs the agent.")
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, core.WithHint(core.Errorf("", core.InUse, "another agent uses the data folder %s", dir),
			"Use that agent (\"rbee status\"), stop it, or choose another folder with -data-dir.")
	}
	return func() { f.Close() }, nil
}

// nodeID is this machine's name in the cluster: random at the first start, then kept in the data folder.
func nodeID(dataDir string) (string, error) {
	path := filepath.Join(dataDir, "node-id")
	b, err := os.ReadFile(path)
	if err == nil && len(b) > 0 {
		return string(b), nil
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", core.E("read the node id", core.Internal, err)
	}
	id := make([]byte, 4)
	_, _ = rand.Read(id) // never fails
	name := fmt.Sprintf("%x", id)
	return name, writeFile(path, []byte(name))
}

func writeRecord(dataDir string, r Record) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return core.E("write agent.json", core.Internal, err)
	}
	return writeFile(filepath.Join(dataDir, "agent.json"), append(b, '\n'))
}

// writeFile publishes a file whole or not at all.
func writeFile(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*") // 0600
	if err != nil {
		return core.E("write "+path, core.Internal, err)
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return core.E("write "+path, core.Internal, err)
}

// specs are the worker types and catalog sources of this agent: those with a block in the configuration, and every other plugin in the
// plugin folder with its defaults. builtin and file come first, because a bare model name is looked for in the order of the sources.
func specs(host *pluginhost.Host, cfg *config.Config, log hclog.Logger) (workers, catalogs []pluginhost.Spec, err error) {
	named := map[sdk.Kind]map[string]bool{sdk.KindWorker: {}, sdk.KindCatalog: {}}
	add := func(s pluginhost.Spec) {
		named[s.Kind][s.Name] = true
		if s.Kind == sdk.KindWorker {
			workers = append(workers, s)
		} else {
			catalogs = append(catalogs, s)
		}
	}
	for _, p := range slices.Concat(cfg.Workers, cfg.Catalogs) {
		s, err := host.Spec(p)
		if err != nil {
			return nil, nil, err
		}
		add(s)
	}
	found, err := host.List()
	if err != nil {
		return nil, nil, err
	}
	for _, x := range found {
		if named[x.Kind][x.Name] {
			continue
		}
		if x.Problem != "" {
			log.Warn("plugin is passed over", "plugin", x.Path, "problem", x.Problem)
			continue
		}
		s, err := host.DefaultSpec(x.Kind, x.Name)
		if err != nil {
			return nil, nil, err
		}
		add(s)
	}
	rank := map[string]int{"builtin": -2, "file": -1}
	slices.SortStableFunc(catalogs, func(a, b pluginhost.Spec) int {
		return cmp.Or(cmp.Compare(rank[a.Name], rank[b.Name]), cmp.Compare(a.Name, b.Name))
	})
	return workers, catalogs, nil
}
