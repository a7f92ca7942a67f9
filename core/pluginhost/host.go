// Package pluginhost is the host side of plugins: it finds, verifies, launches, configures, supervises and re-attaches them.
package pluginhost

import (
	"context"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/hcl/v2"

	"github.com/rbee-project/rbee/core/config"
	"github.com/rbee-project/rbee/core/hostinfo"
	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/catalog"
	"github.com/rbee-project/rbee/plugins/sdk/worker"
)

// Options are what a Host needs.
type Options struct {
	PluginDir string       // where plugin executables are
	RunDir    string       // parent of the private folders of catalogs and probes; empty: the system's folder for temporary files
	Logger    hclog.Logger // nil: none
	// Environ returns the environment that plugins' variables are picked from; nil: os.Environ.
	Environ func() []string
	// StartTimeout bounds a plugin's launch; 0: 20 s.
	StartTimeout time.Duration
}

// Host launches plugins. It is safe for concurrent use.
type Host struct{ o Options }

// New returns a Host.
func New(o Options) *Host { return &Host{o: o} }

// Executable is a plugin found in the plugin folder.
type Executable struct {
	Kind sdk.Kind `json:"kind"`
	Name string   `json:"name"` // behind rbee-<kind>-
	Path string   `json:"path"`
	// Problem says why it cannot be launched; empty: it can.
	Problem string `json:"problem,omitempty"`
}

// Find returns the plugin of that kind and name. Errors: NotFound with the nearest names as hint, Invalid, Forbidden for a file that others can write.
func (h *Host) Find(kind sdk.Kind, name string) (Executable, error) { panic("todo") }

// List returns the plugins of the plugin folder, ordered by kind and name; those that cannot be launched have a Problem.
func (h *Host) List() ([]Executable, error) { panic("todo") }

// Spec says what to launch and how to configure it.
type Spec struct {
	Kind       sdk.Kind
	Name       string // worker type or catalog source: the block's label
	Executable string // absolute path
	Env        []string
	SHA256     string // hex; empty: not checked

	plugin config.Plugin
	eval   *hcl.EvalContext
}

// Spec returns what a block of the configuration launches. Errors as Find.
func (h *Host) Spec(c *config.Config, p config.Plugin) (Spec, error) { panic("todo") }

// DefaultSpec returns what is launched for a plugin that the configuration does not name. Errors as Find.
func (h *Host) DefaultSpec(kind sdk.Kind, name string) (Spec, error) { panic("todo") }

// WorkerLaunch says how to launch a worker plugin.
type WorkerLaunch struct {
	Spec       Spec
	Executable string // overrides Spec.Executable: the installed worker binary's
	EngineDir  string // unpacked engine; empty: none
	WorkerID   string // empty for a probe
	Nonce      string // empty for a probe
	RunDir     string // private folder for the sockets, made where it is missing; empty: a temporary one, removed when the process ends
	LogFile    string // takes everything the process writes to its standard error, appended; empty: lines go to the host's logger
	// Tethered makes the process end with this one. Probes and workers of an agent that keeps nothing are tethered.
	Tethered bool
}

// Worker is a running worker plugin process. It is safe for concurrent use.
type Worker struct{}

// LaunchWorker starts the plugin, decodes its configuration by its own schema and configures it. Afterwards Fingerprint or Start may be called.
// ctx bounds the launch only. Errors: Invalid for the configuration (with source lines), Unavailable for a plugin that does not start, NotFound, Integrity for a wrong digest.
func (h *Host) LaunchWorker(ctx context.Context, l WorkerLaunch) (*Worker, error) { panic("todo") }

// Attachment is what is needed to find a running worker again. It is JSON-able.
type Attachment struct {
	Process    hostinfo.Identity `json:"process"`
	Executable string            `json:"executable"` // path at launch
	Digest     string            `json:"digest"`     // of the executable at launch: "sha256:<hex>"
	Network    string            `json:"network"`    // of the control socket
	Address    string            `json:"address"`
	Protocol   int               `json:"protocol"`
	Type       string            `json:"type"` // worker type
	WorkerID   string            `json:"worker_id"`
	Nonce      string            `json:"nonce"`
	RunDir     string            `json:"run_dir"`
	DataSocket string            `json:"data_socket"`
	LogFile    string            `json:"log_file,omitempty"`
}

// Reattach takes over a worker that this or an earlier host launched: same process (pid, start time, boot), same executable, and Status answers within 2 s with the
// same worker id and nonce. Errors: NotFound when the process is gone or is another one, Conflict when it answers for another worker, Unavailable when it does not answer.
func (h *Host) Reattach(ctx context.Context, a Attachment) (*Worker, error) { panic("todo") }

// EndAttachment kills the process group of a worker that cannot be taken over, if it is still the same process, and waits until it is gone.
// It returns whether there was anything to kill.
func (h *Host) EndAttachment(ctx context.Context, a Attachment) (bool, error) { panic("todo") }

// Info is what the plugin said of itself at launch.
func (w *Worker) Info() sdk.Info { panic("todo") }

// Fingerprint calls emit with every report until ctx ends or emit fails.
func (w *Worker) Fingerprint(ctx context.Context, emit func(worker.Fingerprint) error) error {
	panic("todo")
}

// FingerprintOnce returns the first report.
func (w *Worker) FingerprintOnce(ctx context.Context) (worker.Fingerprint, error) { panic("todo") }

// Start loads the model and returns when the worker serves on DataSocket. WorkerID, Nonce and EngineDir of spec are those of the launch.
func (w *Worker) Start(ctx context.Context, spec worker.StartSpec, progress func(worker.Progress) error) error {
	panic("todo")
}

// Status asks for the worker's state and load.
func (w *Worker) Status(ctx context.Context) (worker.Status, error) { panic("todo") }

// Drain makes the worker refuse new work and returns when the last running request is finished.
func (w *Worker) Drain(ctx context.Context) error { panic("todo") }

// Stop ends the work within grace, waits for the process to go, and kills its group when it does not go within grace and 5 s more.
// forced says that it was killed. It is idempotent.
func (w *Worker) Stop(ctx context.Context, grace time.Duration) (forced bool, err error) {
	panic("todo")
}

// PID is the process's id.
func (w *Worker) PID() int { panic("todo") }

// DataSocket is the path of the unix socket that the worker serves HTTP on, once started.
func (w *Worker) DataSocket() string { panic("todo") }

// Attachment is what Reattach needs. Write it to disk before Start.
func (w *Worker) Attachment() Attachment { panic("todo") }

// Done is closed when the process is gone and collected.
func (w *Worker) Done() <-chan struct{} { panic("todo") }

// Exit says how the process ended: "exit code 0", "signal killed"; empty while it runs and where it cannot be known.
func (w *Worker) Exit() string { panic("todo") }

// Kill kills the process and its group at once, unless it is gone already. It does not wait: Done does.
func (w *Worker) Kill() error { panic("todo") }

// Close lets go of the process, which goes on unless it is tethered.
func (w *Worker) Close() error { panic("todo") }

// Catalog is a running catalog plugin process. Its errors are core's. It is safe for concurrent use.
type Catalog struct{ catalog.Source }

// LaunchCatalog starts and configures a catalog plugin; it is tethered to this process. Errors as LaunchWorker.
func (h *Host) LaunchCatalog(ctx context.Context, s Spec) (*Catalog, error) { panic("todo") }

// Info is what the plugin said of itself at launch.
func (c *Catalog) PluginInfo() sdk.Info { panic("todo") }

// Done is closed when the process is gone and collected.
func (c *Catalog) Done() <-chan struct{} { panic("todo") }

// Close ends the process and waits for it.
func (c *Catalog) Close() error { panic("todo") }

// Validate checks every plugin block of c: the executable is there, and the config block fits the plugin's schema and the plugin itself. It launches each plugin for a moment.
func (h *Host) Validate(ctx context.Context, c *config.Config) hcl.Diagnostics { panic("todo") }

// Describe launches the plugin for a moment and returns who it is and its schema.
func (h *Host) Describe(ctx context.Context, s Spec) (sdk.Info, sdk.Schema, error) { panic("todo") }

// SchemaHCL renders a plugin's schema as a documented block that parses.
func SchemaHCL(i sdk.Info, s sdk.Schema) string { panic("todo") }
