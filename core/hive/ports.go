package hive

import (
	"context"
	"os/exec"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/gguf"
	"github.com/rbee-project/rbee/core/pluginhost"
	"github.com/rbee-project/rbee/core/store"
	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/catalog"
	sdkworker "github.com/rbee-project/rbee/plugins/sdk/worker"
)

// workerProcess is a running worker plugin as the hive needs it.
type workerProcess interface {
	Info() sdk.Info
	Schema() core.Schema
	FingerprintOnce(ctx context.Context) (sdkworker.Fingerprint, error)
	Start(ctx context.Context, spec sdkworker.StartSpec, progress func(sdkworker.Progress) error) error
	Share(cpuWorkers int) // returned with each Status from then on
	Status(ctx context.Context) (sdkworker.Status, error)
	Drain(ctx context.Context) error
	Stop(ctx context.Context, grace time.Duration) (forced bool, err error)
	DataSocket() string
	DataOpening() string
	Attachment() pluginhost.Attachment
	Done() <-chan struct{}
	Exit() string
	Kill() error
	Close() error
}

// catalogProcess is a running catalog plugin as the hive needs it.
type catalogProcess interface {
	catalog.Source
	Ping(ctx context.Context) error
	Kill() error
	Done() <-chan struct{}
	Close() error
}

// pluginHost launches plugins.
type pluginHost interface {
	LaunchWorker(ctx context.Context, l pluginhost.WorkerLaunch) (workerProcess, error)
	Reattach(ctx context.Context, a pluginhost.Attachment) (workerProcess, error)
	EndAttachment(ctx context.Context, a pluginhost.Attachment) (bool, error)
	LaunchCatalog(ctx context.Context, s pluginhost.Spec) (catalogProcess, error)
	FileSpec(kind sdk.Kind, name, path string) (pluginhost.Spec, error)
	Describe(ctx context.Context, s pluginhost.Spec) (sdk.Info, sdk.Schema, error)
	Confinement() string
	CodeDigest(s pluginhost.Spec) (string, error)
	StartConfined(cmd *exec.Cmd, c pluginhost.Confined) error
}

// shelf is the store as the hive needs it.
type shelf interface {
	Models() ([]core.Model, error)
	Model(name string) (core.Model, string, error)
	Header(name string) (*gguf.File, error)
	OpenBlob(digest string) (*store.Blob, error)
	PutModel(ctx context.Context, spec store.ModelSpec, from store.Supply, progress func(core.Progress)) (core.Model, error)
	Verify(ctx context.Context, progress func(core.Progress)) (core.StoreVerifyResult, error)
	GC(now time.Time, use store.InUse, dryRun bool) (core.StoreGCResult, error)
	DeleteModel(name string, dryRun bool) (core.ModelDeleteResult, error)
	Binaries() ([]core.WorkerBinary, error)
	Binary(id string) (core.WorkerBinary, error)
	BinaryPaths(id string) (exe, engineDir string, err error)
	CheckBinary(ctx context.Context, folder string) error
	CheckModel(ctx context.Context, name string, progress func(core.Progress)) error
	InstalledBinary(spec store.BinarySpec) (core.WorkerBinary, error)
	PutBinary(ctx context.Context, spec store.BinarySpec, from store.Supply, progress func(core.Progress)) (core.WorkerBinary, error)
	SetProbe(id string, p store.Probe) error
	DeleteBinary(id string, claim func(folders []string) error) (core.WorkerBinary, error)
	RemoveSuperseded(inUse func(folder string) bool) error
}

var (
	_ workerProcess  = (*pluginhost.Worker)(nil)
	_ catalogProcess = (*pluginhost.Catalog)(nil)
	_ pluginHost     = processes{}
	_ shelf          = (*store.Store)(nil)
)

// processes is pluginhost.Host with the types of this package.
type processes struct{ *pluginhost.Host }

func (p processes) LaunchWorker(ctx context.Context, l pluginhost.WorkerLaunch) (workerProcess, error) {
	w, err := p.Host.LaunchWorker(ctx, l)
	if err != nil {
		return nil, err // avoids a nil *Worker in a non-nil interface
	}
	return w, nil
}

func (p processes) Reattach(ctx context.Context, a pluginhost.Attachment) (workerProcess, error) {
	w, err := p.Host.Reattach(ctx, a)
	if err != nil {
		return nil, err
	}
	return w, nil
}

func (p processes) LaunchCatalog(ctx context.Context, s pluginhost.Spec) (catalogProcess, error) {
	c, err := p.Host.LaunchCatalog(ctx, s)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// said prefixes an error of a plugin with the operation that was asked for, and keeps its kind and
// hint.
func said(op string, err error) error { return core.Prefix(err, op) }
