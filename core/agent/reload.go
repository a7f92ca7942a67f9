package agent

import (
	"context"
	"reflect"
	"slices"
	"strings"

	"github.com/hashicorp/go-hclog"

	"github.com/rbee-project/rbee/core/config"
	"github.com/rbee-project/rbee/core/hive"
)

// reloadable returns the settings that a running agent can change. Blocks of workers and catalogs
// can change as well.
func reloadable() []string {
	return []string{
		"log_level", "hive.slots", "hive.context_tokens", "hive.threads", "hive.memory_limit", "hive.stop_grace", "hive.download.rate_limit", "hive.download.upload_limit",
		"hive.engines.allow",
	}
}

// followReloads rereads the configuration on request, until ctx ends.
func (p *process) followReloads(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-p.opts.Reload:
		}
		cfg, err := p.opts.Load()
		if err == nil {
			err = p.reload(ctx, cfg)
		}
		if err != nil && ctx.Err() == nil {
			p.log.Error("the configuration is not reloaded: the agent keeps the running one", "error", err)
		}
	}
}

// reload applies the settings that can change at run time, all of them or none, and reports which
// others need a restart.
func (p *process) reload(ctx context.Context, cfg *config.Config) error {
	if p.bees != nil {
		if err := cfg.Diagnostics(p.plugins.Validate(ctx, cfg)).Err(); err != nil {
			return err
		}
		workers, catalogs, err := specs(p.plugins, cfg, p.log)
		if err != nil {
			return err
		}
		d := hive.Defaults{
			Slots: cfg.Hive.Slots, ContextTokens: cfg.Hive.ContextTokens, Threads: cfg.Hive.Threads, MemoryLimit: int64(cfg.Hive.MemoryLimit), StopGrace: cfg.Hive.StopGrace, Engines: cfg.Hive.Engines.Allow,
		}
		if err := p.bees.Reload(d, workers, catalogs); err != nil {
			return err
		}
		p.download.SetRate(int64(cfg.Hive.Download.RateLimit))
		p.upload.SetRate(int64(cfg.Hive.Download.UploadLimit))
	}
	p.log.SetLevel(hclog.LevelFromString(cfg.LogLevel))
	p.log.Info("reloaded the configuration", "log_level", cfg.LogLevel)
	if left := needRestart(p.cfg, cfg); len(left) > 0 {
		p.log.Warn("changed settings take effect when the agent is restarted", "settings", strings.Join(left, ", "))
	}
	return nil
}

// needRestart names the settings in which two configurations differ and that a running agent cannot
// change.
func needRestart(running, cfg *config.Config) []string {
	var out []string
	was := running.Settings()
	for i, s := range cfg.Settings() {
		if !reflect.DeepEqual(s.Value, was[i].Value) && !slices.Contains(reloadable(), s.Name) {
			out = append(out, s.Name)
		}
	}
	return out
}
