package pluginhost

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/worker"
)

// dataSocketName is the name of the data socket in a worker's run folder.
const dataSocketName = "data.sock"

// stopMargin is how long past its grace a worker may take to exit before it is killed.
const stopMargin = 5 * time.Second

// WorkerLaunch describes how to launch a worker plugin.
type WorkerLaunch struct {
	Spec       Spec
	Executable string // overrides Spec.Executable with the installed worker binary; must also match the Spec's SHA256, if set
	EngineDir  string // unpacked engine; empty: none
	WorkerID   string // empty for a probe
	Nonce      string // random per start; empty for a probe
	RunDir     string // private folder of the sockets, created if missing; empty: a temporary one, removed when the process has exited
	// LogFile receives everything that the process writes to its standard error, appended
	// (O_APPEND): if truncated in place, the process continues at its new start. Its size is not
	// bounded here. Empty: lines go to the host's logger.
	LogFile string
	// Tethered makes the process end with this one. Probes are tethered, and so are workers of an
	// agent that keeps nothing.
	Tethered bool
}

// Worker is a running worker plugin process. It is safe for concurrent use.
type Worker struct {
	p        *process
	client   *worker.Client
	info     sdk.Info
	schema   sdk.Schema
	at       Attachment
	engine   string
	logStart int64 // size of the log file before the launch; 0 if reattached
	guarded  atomic.Bool
	// admitModel lets the plugin's user read the model.
	admitModel func(path string) error
}

// LaunchWorker starts the plugin, decodes its configuration by its own schema and configures it.
// Afterwards Fingerprint or Start may be called. ctx bounds the launch only. The process runs until
// Stop, Kill, or its own end. Errors: Invalid for the configuration (with source lines),
// Unavailable for a plugin that does not start or answer, Unsupported for one that does not fit
// this machine or this rbee, Forbidden, NotFound, Integrity for a wrong digest.
func (h *Host) LaunchWorker(ctx context.Context, l WorkerLaunch) (*Worker, error) {
	const op = opLaunch
	if l.Spec.Kind != sdk.KindWorker {
		return nil, core.Errorf(core.Invalid, "%s: %q is a %s plugin, not a worker", op, l.Spec.Name, l.Spec.Kind)
	}
	if l.Executable != "" {
		l.Spec.Executable = l.Executable
		if l.Spec.Folder != "" {
			l.Spec.SHA256 = "" // the digest is that of the whole folder; the owner of this copy verifies it
		}
	}
	digest, err := h.digest(l.Spec.Executable, false)
	if err != nil {
		return nil, core.Wrap(err, core.NotFound, op)
	}
	logStart := fileSize(l.LogFile)
	p, err := h.start(ctx, launch{spec: l.Spec, runDir: l.RunDir, engine: l.EngineDir, logFile: l.LogFile, nonce: l.Nonce, tethered: l.Tethered})
	if err != nil {
		return nil, err
	}
	client := worker.NewClient(p.conn)
	info, schema, diags, err := h.configure(ctx, p, client, l.Spec, l.EngineDir)
	if err == nil && diags.HasErrors() {
		err = configError(l.Spec, diags)
	}
	if err != nil {
		p.end()
		return nil, err
	}
	h.warn(l.Spec, diags)
	runs := ""
	if file := runningFile(p.run.id.PID); file != "" {
		if runs, err = h.digest(file, false); err != nil {
			p.end()
			return nil, core.Errorf(core.Unavailable, "%s: %s: look at what it runs: %w", op, p.name, err)
		}
		runs = "sha256:" + runs
	}
	return &Worker{
		p: p, client: client, info: info, schema: schema, engine: l.EngineDir, logStart: logStart,
		admitModel: func(path string) error {
			return h.admitModel(h.user(fmt.Sprintf("%s-%s", l.Spec.Kind, l.Spec.Name)), path)
		},
		at: Attachment{
			Process: p.run.id, User: p.run.user, Control: p.keys, DataOpening: newOpening(), Executable: l.Spec.Executable, Digest: "sha256:" + digest, Runs: runs, Network: p.address.Network(), Address: p.address.String(),
			Protocol: p.client.NegotiatedVersion(), Type: l.Spec.Name, WorkerID: l.WorkerID, Nonce: l.Nonce,
			RunDir: p.runDir, DataSocket: filepath.Join(p.runDir, dataSocketName), EngineDir: l.EngineDir, LogFile: l.LogFile,
		},
	}, nil
}

// Info returns the plugin's description from the launch.
func (w *Worker) Info() sdk.Info { return w.info }

// Schema returns the schema of the plugin's config block from the launch; empty if reattached.
func (w *Worker) Schema() core.Schema { return SchemaOf(w.schema) }

// Fingerprint calls emit with every report until ctx ends or emit fails, and returns that error.
func (w *Worker) Fingerprint(ctx context.Context, emit func(worker.Fingerprint) error) error {
	var ours error // emit's own, returned unchanged
	err := w.client.Fingerprint(ctx, func(f worker.Fingerprint) error {
		ours = emit(f)
		return ours
	})
	if ours != nil {
		return ours
	}
	return w.p.explain("fingerprint", err)
}

var errEnough = errors.New("enough")

// FingerprintOnce returns the first report.
func (w *Worker) FingerprintOnce(ctx context.Context) (worker.Fingerprint, error) {
	var first *worker.Fingerprint
	err := w.Fingerprint(ctx, func(f worker.Fingerprint) error {
		first = &f
		return errEnough
	})
	switch {
	case first != nil:
		return *first, nil
	case err != nil:
		return worker.Fingerprint{}, err
	}
	return worker.Fingerprint{}, core.Errorf(core.Internal, "fingerprint: %s reported nothing", w.p.name).Hint("Report this to the author of the plugin.")
}

// Start loads the model and returns when the worker serves on DataSocket. WorkerID, Nonce and
// EngineDir of spec are those of the launch and need not be set. progress may be nil; its error
// ends the start and is returned. After an error, including ctx's, the process is unusable: Kill
// it. Errors: the backend's kind; WorkerLost when the process exited, with its last log lines.
func (w *Worker) Start(ctx context.Context, spec worker.StartSpec, progress func(worker.Progress) error) error {
	const op = "start worker"
	if w.at.WorkerID == "" || w.at.Nonce == "" {
		return core.Errorf(core.Conflict, "%s: %s was launched as a probe, without worker id and nonce", op, w.p.name)
	}
	spec.WorkerID, spec.Nonce, spec.EngineDir, spec.DataOpening = w.at.WorkerID, w.at.Nonce, w.engine, w.at.DataOpening
	if err := w.admitModel(spec.ModelPath); err != nil {
		return err
	}
	var ours error
	err := w.client.Start(ctx, spec, w.at.DataSocket, func(p worker.Progress) error {
		if progress != nil {
			ours = progress(p)
		}
		return ours
	})
	if ours != nil {
		return ours
	}
	if err == nil {
		var st worker.Status
		if st, err = w.client.Status(ctx); err == nil {
			w.guarded.Store(st.DataGuarded)
		}
	}
	err = w.p.explain(op, err)
	if core.KindOf(err) == core.WorkerLost {
		if tail := w.Tail(); len(tail) > 0 {
			err = core.Errorf(core.WorkerLost, "%w; its last words:\n  %s", err, strings.Join(tail, "\n  "))
		}
	}
	return err
}

// Tail returns the last lines that the process logged since its launch, formatted, oldest first; if
// its log file was truncated since, the lines after that.
func (w *Worker) Tail() []string { return slices.Clone(w.p.tail(w.at.LogFile, w.logStart)) }

// Share makes each Status tell the worker how many workers compute on the machine's processor.
func (w *Worker) Share(cpuWorkers int) { w.client.Share(cpuWorkers) }

// Status returns the worker's state and load.
func (w *Worker) Status(ctx context.Context) (worker.Status, error) {
	st, err := w.client.Status(ctx)
	return st, w.p.explain("worker status", err)
}

// Drain makes the worker refuse new work and returns when the last running request has finished.
func (w *Worker) Drain(ctx context.Context) error {
	return w.p.explain("drain worker", w.client.Drain(ctx))
}

// Stop ends the work within grace, waits for the process to exit, and kills its group if it does
// not exit within grace plus 5 s, or when ctx ends. forced reports that it was killed. It is
// idempotent; a process that has already exited is not an error.
func (w *Worker) Stop(ctx context.Context, grace time.Duration) (forced bool, err error) {
	if w.p.run.gone() {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, grace+stopMargin)
	defer cancel()
	err = w.client.Stop(ctx, grace) // ends with ctx, or with the process
	// Whatever it answered, only its exit counts.
	if err == nil || errors.Is(err, sdk.ErrUnavailable) {
		select {
		case <-w.Done():
			return false, nil
		case <-ctx.Done():
		case <-time.After(stopMargin):
		}
	}
	if w.p.run.gone() {
		return false, nil
	}
	if err := w.Kill(); err != nil {
		return false, err
	}
	<-w.Done()
	return true, nil
}

// PID returns the process id.
func (w *Worker) PID() int { return w.at.Process.PID }

// DataSocket returns the path of the unix socket on which the worker serves HTTP, once started.
func (w *Worker) DataSocket() string { return w.at.DataSocket }

// DataOpening returns the secret that each connection to DataSocket must begin with, before HTTP,
// once the worker is started. Empty: nothing.
func (w *Worker) DataOpening() string {
	if !w.guarded.Load() {
		return ""
	}
	return w.at.DataOpening
}

// newOpening returns a new opening for a worker's data connections.
func newOpening() string { return "rbee " + rand.Text() + "\n" }

// Attachment returns what Reattach needs. Write it to disk before Start.
func (w *Worker) Attachment() Attachment { return w.at }

// Done is closed when the process has exited; one that this host launched is then reaped, and what
// it left behind in its group is ended.
func (w *Worker) Done() <-chan struct{} { return w.p.run.done }

// Exit returns how the process ended: "exit code 0", "signal killed"; empty while it runs and if
// unknown, as after Reattach.
func (w *Worker) Exit() string { return w.p.run.exitSaid() }

// Kill kills the process and its group at once; if it has already exited, that is not an error. It
// does not wait: use Done.
func (w *Worker) Kill() error { return w.p.run.kill() }

// Close detaches from the process, which keeps running unless it is tethered. For a reattached
// process, Done is no longer closed. It is idempotent.
func (w *Worker) Close() error {
	w.p.letGo()
	return nil
}

// goneSoon waits a moment for a process to exit after its connection broke.
func (p *process) goneSoon() bool {
	select {
	case <-p.run.done:
		return true
	case <-time.After(300 * time.Millisecond):
		return false
	}
}

func (w *Worker) String() string { return fmt.Sprintf("%s, process %d", w.p.name, w.PID()) }

func fileSize(path string) int64 {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return info.Size()
}
