package agent

import (
	"context"
	"os"
	"path/filepath"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/download"
	"github.com/rbee-project/rbee/core/hive"
	"github.com/rbee-project/rbee/core/pluginhost"
	"github.com/rbee-project/rbee/core/store"
	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/origin"
)

func (p *process) buildHive(ctx context.Context) error {
	cfg := p.cfg
	// Their parents may be new, and are then closed to the plugins' users.
	for _, dir := range []string{filepath.Join(cfg.DataDir, "home"), cfg.StoreDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return core.Wrap(err, core.Internal, "make folders for plugins")
		}
	}
	walls, err := PluginWalls(cfg, p.opts.SSH.Home, cfg.DataDir, cfg.StoreDir)
	if err != nil {
		return err
	}
	walls.HomeDir = filepath.Join(cfg.DataDir, "home")
	plugins := pluginhost.New(pluginhost.Options{
		PluginDir: cfg.PluginDir, RunDir: filepath.Join(cfg.DataDir, "run"), Logger: p.log.Named("plugin"), AllowAddresses: cfg.Hive.Download.AllowAddresses,
		Walls: walls,
	})
	if problem := plugins.Confinement(); problem != "" {
		p.log.Warn("plugins are not fully confined", "problem", problem)
	}
	// Invalid plugin settings end the agent now, reported at their line of the file, rather than
	// failing the first worker later.
	if err := cfg.Diagnostics(plugins.Validate(ctx, cfg)).Err(); err != nil {
		return core.WithHint(err, "\"rbee config validate\" checks a configuration without starting anything.")
	}
	p.plugins = plugins
	workers, catalogs, err := specs(plugins, cfg, p.log)
	if err != nil {
		return err
	}
	blobs, err := store.Open(cfg.StoreDir, p.log.Named("store"))
	if err != nil {
		return err
	}
	p.defers(blobs.Close)
	origins, err := p.origins()
	if err != nil {
		return err
	}
	queens, rpcAddress := hive.OneQueen(p.conn), func() string { return "" }
	var peers hive.Peers
	if p.net != nil {
		queens, rpcAddress, peers = p.net.queens, p.net.identity.RPCAddress, p.net.pool
		if cfg.Queen.Enabled {
			p.net.queens.pipe = p.conn
		}
	}
	p.upload = download.NewLimiter(int64(cfg.Hive.Download.UploadLimit))
	p.bees, err = hive.New(hive.Options{
		Discover: func() (workers, catalogs []pluginhost.Spec, err error) { return specs(plugins, cfg, p.log) },
		ID:       p.id, Name: nodeName(cfg), Version: p.opts.Version, DataDir: cfg.DataDir, RPCAddress: rpcAddress,
		Jobs: p.jobs, Store: blobs, Plugins: plugins, WorkerSpecs: workers, CatalogSpecs: catalogs, Origins: origins, Queens: queens, Peers: peers, Logger: p.log,
		KeepFiles: !cfg.Hive.Download.Seed, UploadLimit: p.upload,
		StopWorkersOnExit: !cfg.Hive.KeepWorkers, Build: buildOptions(cfg.Hive.Build, p.opts.Suite), Engines: cfg.Hive.Engines.Allow,
		Slots: cfg.Hive.Slots, ContextTokens: cfg.Hive.ContextTokens, Threads: cfg.Hive.Threads, MemoryLimit: int64(cfg.Hive.MemoryLimit), StopGrace: cfg.Hive.StopGrace, WorkerTimeout: cfg.Hive.WorkerTimeout,
	})
	return err
}

// origins creates the client for HTTP servers. Plugins refuse the same addresses as it does.
func (p *process) origins() (hive.Origins, error) {
	o := p.cfg.Hive.Download
	allow, err := origin.ParsePrefixes(o.AllowAddresses)
	if err != nil {
		return hive.Origins{}, core.Wrap(err, core.Invalid, "read hive.download.allow_addresses")
	}
	client, err := origin.New(origin.Options{Allow: allow, Environ: os.Environ(), UserAgent: "rbee/" + p.opts.Version})
	if err != nil {
		return hive.Origins{}, core.WithHint(core.Wrap(err, core.Invalid, "prepare downloads"), "%s", sdk.HintOf(err))
	}
	p.defers(func() error { client.Close(); return nil })
	p.download = download.NewLimiter(int64(o.RateLimit))
	return hive.Origins{Client: client, Connections: o.Connections, Limit: p.download}, nil
}
