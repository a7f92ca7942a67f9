package agent

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/config"
	"github.com/rbee-project/rbee/core/pki"
	"github.com/rbee-project/rbee/core/pluginhost"
)

// Check returns the problems that keep an agent with this configuration from starting on this
// machine. It starts nothing but plugins, each for a moment; plugins may be nil: their blocks are
// not checked. Files that this user may not read only cause warnings.
func Check(ctx context.Context, cfg *config.Config, plugins *pluginhost.Host) *config.Diagnostics {
	identity, err := identityOf(ctx, cfg)
	diags := cfg.Diagnostics(nil)
	switch {
	case errors.Is(err, fs.ErrPermission):
		diags.Append(config.Warning(cfg.Blame(identitySetting(cfg), "Not checked", err)))
	case err != nil:
		diags.Append(cfg.Blame(identitySetting(cfg), "Unusable identity", err))
	default:
		diags = problems(ctx, cfg, identity)
	}
	if cfg.Hive.Enabled && plugins != nil {
		diags.Append(plugins.Validate(ctx, cfg))
	}
	return diags
}

// identitySetting names the setting that determines this machine's identity in its cluster.
func identitySetting(cfg *config.Config) string {
	if cfg.TLS.Given() {
		return "tls.cert_file"
	}
	return "data_dir"
}

// problems returns what is wrong with a configuration on a machine with this identity; nil: it is
// not in a cluster. An agent checks this before it opens anything.
func problems(ctx context.Context, cfg *config.Config, identity *pki.Identity) *config.Diagnostics {
	diags := cfg.Diagnostics(cfg.OpenWithoutTLS(identity != nil))
	if cfg.Hive.Enabled && cfg.Given("plugin_dir") {
		diags.Append(cfg.Blame("plugin_dir", "No plugins", isFolder(cfg.PluginDir)))
	}
	if identity == nil {
		if !cfg.Queen.Enabled || !cfg.Hive.Enabled {
			diags.Append(cfg.Blame(roleSetting(cfg), "One role alone", core.Errorf(core.Invalid, "an agent in no cluster is queen and hive in one").Hint(
				"Enable both, or make this machine part of a cluster: \"rbee cluster init\" on the first, \"rbee agent -join TOKEN@host\" on the others.")))
		}
		return diags
	}
	diags.Append(cfg.Blame(identitySetting(cfg), "Another role", rolesFit(cfg, identity)))
	if !identity.Has(core.RoleQueen) { // it may renew its own
		diags.Append(cfg.Blame(identitySetting(cfg), "Certificate", identity.Check(time.Now())))
	}
	diags.Append(cfg.Blame("bind.advertise", "Advertised address", cfg.CheckAdvertised(ctx)))
	_, err := gossipKeys(cfg, identity)
	diags.Append(cfg.Blame("gossip.key_file", "No gossip key", err))
	if cfg.TLS.Given() && cfg.Queen.Enabled {
		_, err := seedOfFiles(cfg, identity, time.Time{})
		diags.Append(cfg.Blame("queen.operator_token_file", "No operator token", err))
	}
	return diags
}

// roleSetting names the setting that determines this machine's roles.
func roleSetting(cfg *config.Config) string {
	if cfg.Given("hive.enabled") && !cfg.Given("queen.enabled") {
		return "hive.enabled"
	}
	return "queen.enabled"
}

// rolesFit refuses roles that this machine's certificate lacks, and a queen that is to stop being
// one: it would still count among the votes that the others need.
func rolesFit(cfg *config.Config, identity *pki.Identity) error {
	const hint = "To change what it is, it leaves the cluster (\"rbee cluster leave\") and joins again with a token for its new role."
	switch {
	case cfg.Queen.Enabled && !identity.Has(core.RoleQueen):
		return core.Errorf(core.Invalid, "this machine is a hive of cluster %s, not a queen as queen.enabled demands", identity.Cluster()).Hint(hint)
	case cfg.Hive.Enabled && !identity.Has(core.RoleHive):
		return core.Errorf(core.Invalid, "this machine is a queen of cluster %s, not a hive as hive.enabled demands", identity.Cluster()).Hint(hint)
	case !cfg.Queen.Enabled && identity.Has(core.RoleQueen) && !cfg.TLS.Given():
		return core.Errorf(core.Invalid, "this machine is a queen of cluster %s: with queen.enabled = false the others would still count on its vote", identity.Cluster()).Hint(
			"Take queen.enabled = false out. " + hint)
	}
	return nil
}

// isFolder returns the reason why path is not a folder; nil: it is one.
func isFolder(path string) error {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return core.Errorf(core.NotFound, "there is no folder %s", path)
	case err != nil:
		return err
	case !info.IsDir():
		return core.Errorf(core.Invalid, "%s is not a folder", path)
	}
	return nil
}
