// Package store keeps a hive's models and worker binaries on disk: partial files, digests, safe unpacking, atomic publish, free space.
//
// Layout below the store's folder:
//
//	blobs/sha256-<hex>                       files of models, named by content
//	models/<id>.json                         what a model is and which blobs it has
//	workers/<type>/<version>[~<revision>]/   manifest.json, state.json, the plugin executable, engine/
//	partial/                                 what is on its way in; nothing there is ever used
//
// Several processes may have one store open: what they bring in is locked file by file, and published by rename.
package store

import (
	"context"
	"io"

	"github.com/hashicorp/go-hclog"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/gguf"
)

// FileSpec is a file that a catalog source offers.
type FileSpec struct {
	Path      string // slash-separated, relative; only shown, never used as a path of this machine
	SizeBytes int64  // 0: unknown
	Digest    string // "sha256:<hex>", "sha512:<hex>"; empty: the source publishes none
	Locator   string // for the source alone
	Ref       string // the manifest's exact reference
}

// Fetch writes the bytes of f from offset to its end into w. The store checks size and digest.
type Fetch func(ctx context.Context, f FileSpec, offset int64, w io.Writer) error

// ModelSpec is a model to put into the store.
type ModelSpec struct {
	ID      string   // 1–128 of a–z A–Z 0–9 . _ -, starting with a letter or digit
	Ref     string   // catalog reference, with the source's name
	License string   // empty: what the GGUF says
	Aliases []string // further names
	Files   []FileSpec
}

// BinarySpec is a worker binary to put into the store.
type BinarySpec struct {
	Type          string
	Version       string // of the plugin alone; see ID
	Executable    string // path of the plugin executable on this machine, copied
	EngineName    string // empty: no engine
	EngineVersion string
	Source        string            // catalog reference of the engine, or "local"
	Engine        *FileSpec         // a .tar.gz; nil: no engine
	Prefix        string            // only archive entries below it are unpacked, without it; empty or ends with a slash
	Links         map[string]string // link name → name of an unpacked file, both without a slash
	Force         bool              // bring it anew even if a sound entry is there
}

// ID is the id of the entry that the spec makes: "<type>@<version>", or "<type>@<version>-<engine name>-<engine version>".
func (b BinarySpec) ID() string { return b.Type + "@" + b.version() }

func (b BinarySpec) version() string {
	if b.EngineName == "" {
		return b.Version
	}
	return b.Version + "-" + b.EngineName + "-" + b.EngineVersion
}

// Store is a folder of models and worker binaries. It is safe for concurrent use.
type Store struct {
	dir string
	log hclog.Logger
}

// Open opens the store in dir, makes what is missing of its layout, and removes what killed processes left in partial/.
func Open(dir string, log hclog.Logger) (*Store, error) { return &Store{dir: dir, log: log}, nil }

// Close releases the store's folder. Transfers must have ended.
func (s *Store) Close() error { return nil }

// Dir is the store's folder.
func (s *Store) Dir() string { return s.dir }

// Models lists the models, sorted by id. Damaged ones are listed as such.
func (s *Store) Models() ([]core.Model, error) { return nil, errNotBuilt() }

// Model finds a model by id, alias or reference, and the path of its GGUF file.
// core.NotFound carries the nearest names as hint; a damaged model is core.Integrity.
func (s *Store) Model(name string) (core.Model, string, error) {
	return core.Model{}, "", errNotBuilt()
}

// Header reads the GGUF header of a model, for memory estimates with other slots and contexts.
func (s *Store) Header(name string) (*gguf.File, error) { return nil, errNotBuilt() }

// PutModel brings a model into the store, or gives the one that is there.
func (s *Store) PutModel(ctx context.Context, spec ModelSpec, fetch Fetch, progress func(core.Progress)) (core.Model, error) {
	return core.Model{}, errNotBuilt()
}

// VerifyModel reads all files of a model and compares their digests. A difference is core.Integrity, and the model is listed as damaged from then on.
func (s *Store) VerifyModel(ctx context.Context, id string) error { return errNotBuilt() }

// Binaries lists the worker binaries, sorted by id. Damaged ones are listed as such.
func (s *Store) Binaries() ([]core.WorkerBinary, error) { return nil, errNotBuilt() }

// Binary finds a worker binary by id; a type alone means the newest sound one of that type.
func (s *Store) Binary(id string) (core.WorkerBinary, error) {
	return core.WorkerBinary{}, errNotBuilt()
}

// BinaryPaths gives the paths of a worker binary's executable and of its engine folder, which is empty without an engine.
// id is as in Binary; a damaged entry is core.Integrity.
func (s *Store) BinaryPaths(id string) (exe, engineDir string, err error) {
	return "", "", errNotBuilt()
}

// PutBinary brings a worker binary into the store, or gives the sound one that is there unless spec.Force is set.
func (s *Store) PutBinary(ctx context.Context, spec BinarySpec, fetch Fetch, progress func(core.Progress)) (core.WorkerBinary, error) {
	return core.WorkerBinary{}, errNotBuilt()
}

// VerifyBinary reads all files of a worker binary and compares their digests. A difference is core.Integrity, and the entry is listed as damaged from then on.
func (s *Store) VerifyBinary(ctx context.Context, id string) error { return errNotBuilt() }

// SetProbe keeps what a probe of a worker binary found.
func (s *Store) SetProbe(id string, devices []core.Device, problem string) error {
	return errNotBuilt()
}

// RemoveSuperseded removes the folders of worker binaries that a later revision has replaced, except those that inUse says are in use
// (it is given the folder's path).
func (s *Store) RemoveSuperseded(inUse func(folder string) bool) error { return errNotBuilt() }

func errNotBuilt() error { return core.Errorf("", core.Unsupported, "the store is not built yet") }
