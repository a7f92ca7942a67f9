package agent

import (
	"cmp"
	"os"
	"os/user"
	"path/filepath"
	"slices"

	"github.com/hashicorp/go-hclog"

	"github.com/rbee-project/rbee/core/config"
	"github.com/rbee-project/rbee/core/confine"
	"github.com/rbee-project/rbee/core/gobuild"
	"github.com/rbee-project/rbee/core/hive"
	"github.com/rbee-project/rbee/core/pluginhost"
	"github.com/rbee-project/rbee/plugins/sdk"
)

// specs returns the worker types and catalog sources of this agent: those with a block in the
// configuration, and every other plugin in the plugin folder with its defaults. builtin and file
// come first, because sources are searched in order for a bare model name.
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
			log.Warn("plugin skipped", "plugin", x.Path, "problem", x.Problem)
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

// PluginWalls confines an agent's plugins: they cannot reach its data folder and its keys, may read
// what is installed on the machine, may write only to shared places, and do not see the home
// folder. home is the value of HOME. roots are the agent's folders that plugins use: if the agent
// runs as root, the plugins' user gets access to them.
func PluginWalls(cfg *config.Config, home string, roots ...string) (pluginhost.Walls, error) {
	w := pluginhost.Walls{Rules: pluginRules(cfg), Roots: roots}
	for _, dir := range homes(home) {
		// A service's home may be its data folder, and a container's home the root.
		if dir != "/" && w.Rules.Access(dir) != confine.None {
			w.Homes = append(w.Homes, dir)
		}
	}
	var err error
	w.User, w.Problem, err = pluginUser(cfg, roots)
	return w, err
}

// homes lists the home folders of the agent's user, with symbolic links resolved.
func homes(home string) []string {
	var out []string
	add := func(dir string) {
		if real, err := filepath.EvalSymlinks(dir); err == nil && filepath.IsAbs(real) && !slices.Contains(out, real) {
			out = append(out, real)
		}
	}
	add(home)
	if u, err := user.Current(); err == nil {
		add(u.HomeDir)
	}
	return out
}

func pluginRules(cfg *config.Config) confine.Rules {
	// GPUs are device files that are written to; temporary files and shared memory belong to
	// everyone.
	rules := confine.Rules{"/": confine.Read, "/dev": confine.Full, "/proc": confine.Full, "/tmp": confine.Full, "/var/tmp": confine.Full}
	add := func(access confine.Access, paths ...string) {
		for _, path := range paths {
			if path != "" {
				rules[path] = access
			}
		}
	}
	if temp := os.TempDir(); rules.Access(temp) == confine.Read {
		add(confine.Full, temp)
	}
	add(confine.None, cfg.DataDir, cfg.TLS.KeyFile, cfg.Gossip.KeyFile, cfg.Queen.OperatorTokenFile)
	add(confine.Read, cfg.StoreDir, cfg.PluginDir)
	if self, err := os.Executable(); err == nil {
		add(confine.Read, filepath.Dir(self))
	}
	return rules
}

// buildOptions returns how worker plugins are built on this machine; nil: building is disabled.
func buildOptions(b config.Build, suite []string) *hive.BuildOptions {
	if !b.Enabled || len(suite) == 0 {
		return nil
	}
	o := &hive.BuildOptions{Suite: suite, Go: gobuild.Options{Go: b.Go, CGO: b.CGO, Timeout: b.Timeout, MaxDiskBytes: int64(b.MaxDisk)}}
	if b.CacheDir != "" {
		o.Go.BuildCache, o.Go.ModuleCache = filepath.Join(b.CacheDir, "build"), filepath.Join(b.CacheDir, "modules")
	}
	return o
}
