// Package pluginhost is the host side of plugins: it finds, verifies, launches, configures,
// supervises and re-attaches them.
package pluginhost

import (
	"cmp"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/hcl/v2"

	"github.com/rbee-project/rbee/core/config"
	"github.com/rbee-project/rbee/plugins/sdk"
)

// Options are what a Host needs.
type Options struct {
	PluginDir string       // folder of plugin executables
	RunDir    string       // parent of the private folders of catalogs and probes, created if missing; empty: the system's temporary folder
	Logger    hclog.Logger // nil: none
	// Environ returns the environment that plugins' variables are picked from; nil: os.Environ.
	Environ func() []string
	// StartTimeout bounds a plugin's launch up to its first answer; 0: 20 s.
	StartTimeout time.Duration
	// CallTimeout bounds each of the short calls of a launch: Info, Schema, Configure; 0: 10 s.
	CallTimeout time.Duration
	// AllowAddresses are passed to every plugin: see sdk.Config.
	AllowAddresses []string
	// Protocols are the versions of the plugin protocol that the host speaks, oldest first; nil:
	// sdk.ProtocolVersions. Tests use it to simulate other versions of rbee.
	Protocols []int
	Walls     Walls
}

// Host launches plugins. It is safe for concurrent use. It need not be closed, but the plugins it
// returns must be.
type Host struct {
	o Options

	mu      sync.Mutex // guards below
	digests map[fileKey]string
	asRoot  map[string]string // by plugin name: why it runs as this process's user
}

// New returns a Host.
func New(o Options) *Host {
	if o.Logger == nil {
		o.Logger = hclog.NewNullLogger()
	}
	if o.Environ == nil {
		o.Environ = os.Environ
	}
	if len(o.Protocols) == 0 {
		o.Protocols = sdk.ProtocolVersions()
	}
	if o.StartTimeout == 0 {
		o.StartTimeout = 20 * time.Second
	}
	if o.CallTimeout == 0 {
		o.CallTimeout = 10 * time.Second
	}
	return &Host{o: o, digests: map[fileKey]string{}, asRoot: map[string]string{}}
}

// Spec describes what to launch and how to configure it. The zero value is not usable: get one from
// Host.Spec or Host.DefaultSpec.
type Spec struct {
	Kind       sdk.Kind
	Name       string // worker type or catalog source: the block's label
	Executable string // absolute path
	Folder     string // folder that is the plugin and contains Executable; empty: the plugin is the executable alone
	Env        []string
	SHA256     string // of the executable or the folder, lower-case hex; empty: not checked

	plugin config.Plugin
}

// Spec returns the spec for a plugin block of the configuration. Errors as Find.
func (h *Host) Spec(p config.Plugin) (Spec, error) {
	exe, err := h.findFile(p.Executable)
	if err != nil {
		return Spec{}, err
	}
	return Spec{Kind: sdk.Kind(p.Kind), Name: p.Label, Executable: exe.Path, Folder: exe.Folder, Env: p.Env, SHA256: p.SHA256, plugin: p}, nil
}

// FileSpec returns the spec for an executable, or a folder with an executable of its name, outside
// of the plugin folder, with an empty config block. Errors as Find.
func (h *Host) FileSpec(kind sdk.Kind, name, path string) (Spec, error) {
	exe, folder, err := locate(path)
	if err != nil {
		return Spec{}, err
	}
	return Spec{
		Kind: kind, Name: name, Executable: exe, Folder: folder,
		plugin: config.Plugin{Kind: string(kind), Label: name, Executable: filepath.Base(path), Body: hcl.EmptyBody()},
	}, nil
}

// DefaultSpec returns the spec for a plugin that the configuration does not name, with an empty
// config block. Errors as Find.
func (h *Host) DefaultSpec(kind sdk.Kind, name string) (Spec, error) {
	exe, err := h.Find(kind, name)
	if err != nil {
		return Spec{}, err
	}
	return h.FileSpec(kind, name, cmp.Or(exe.Folder, exe.Path))
}
