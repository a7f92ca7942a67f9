package agent

import (
	"cmp"
	"context"
	"os"
	"path/filepath"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/operation"
	"github.com/rbee-project/rbee/core/queen"
	"github.com/rbee-project/rbee/core/queen/dispatch"
	"github.com/rbee-project/rbee/core/queen/membership"
	"github.com/rbee-project/rbee/core/queen/tokens"
	"github.com/rbee-project/rbee/core/remote"
)

// installTokenTTL is the lifetime of a join token that hive_install uses at once.
const installTokenTTL = 10 * time.Minute

// SSH configures how a queen reaches other machines. The zero value uses no files.
type SSH struct {
	Home  string // the parent folder of .ssh; empty: the data folder
	Agent string // SSH_AUTH_SOCK; empty: no SSH agent
}

// buildRemote creates the service with which this process's queen installs hives.
func (p *process) buildRemote() error {
	exe, err := os.Executable()
	if err != nil {
		return core.Wrap(err, core.Internal, "find this program")
	}
	if real, err := filepath.EvalSymlinks(exe); err == nil {
		exe = real
	}
	o := remote.Options{
		Name: nodeName(p.cfg), Home: cmp.Or(p.opts.SSH.Home, p.cfg.DataDir), Agent: p.opts.SSH.Agent, DataDir: p.cfg.DataDir,
		Program: remote.Program{Version: p.opts.Version, Executable: exe, PluginDir: p.cfg.PluginDir},
	}
	if p.net != nil {
		o.Cluster = installingQueen{p.queen, p.queen.Members, p.queen.Tokens, p.queen.Jobs, p.net.identity.RPCAddress}
	}
	if p.remote, err = remote.New(o); err != nil {
		return err
	}
	p.jobs.Handle(p.remote.Operations())
	return nil
}

// installingQueen adapts this process's queen to the needs of installations.
type installingQueen struct {
	*queen.Queen
	*membership.Members
	*tokens.Keeper
	*dispatch.Dispatcher
	address func() string // host:port at which machines join
}

var _ remote.Cluster = installingQueen{}

// Hive finds a hive by ID or name.
func (q installingQueen) Hive(ctx context.Context, hive string) (core.Hive, error) {
	return operation.HiveGet.Ask(ctx, q, core.Request{Hive: hive})
}

// JoinToken creates a token with which one machine joins at this queen.
func (q installingQueen) JoinToken(ctx context.Context, name string, roles []core.Role) (tokenAtQueen, id string, err error) {
	t, err := q.CreateToken(ctx, core.TokenRequest{Kind: core.TokenJoin, Name: name, Roles: roles, TTL: core.Duration(installTokenTTL)})
	if err != nil {
		return "", "", err
	}
	return t.Secret + "@" + q.address(), t.ID, nil
}
