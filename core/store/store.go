// Package store keeps a hive's models and worker binaries on disk: partial files, digests, safe
// unpacking, atomic publish, free space.
//
// Layout below the store's folder:
//
//	blobs/sha256-<hex>                       files of models, named by content
//	models/<id>.json                         a model's facts and blobs; / and : of the id are written + and =
//	workers/<type>/<version>[~<revision>]/   manifest.json, state.json, the plugin executable, engine/
//	parts/sha256-<hex>/                      links to the files of a split model, named as engines want them
//	partial/                                 files being fetched, each with a journal; never used from there
//	checked.json                             blobs that matched their digests since the machine started
//	quarantine/                              files without their announced digest; never used from there
//
// Several processes may have one store open: they lock each file that they fetch, and publish it by
// rename.
//
// A Supply provides one Source after the other for each file: an origin, other hives, a catalog
// plugin. A transfer keeps the bytes that one source has fetched when it switches to the next, and
// across a crash of its process (see journal.go); the digest of the whole decides. OpenBlob reads a
// file by its digest, also while it is still arriving.
package store

import (
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/rbee-project/rbee/core"
)

const (
	blobsDir   = "blobs"
	modelsDir  = "models"
	partsDir   = "parts"
	workersDir = "workers"
	partialDir = "partial"

	maxRecordBytes = 16 << 20            // size of a record or manifest
	partialAge     = 14 * 24 * time.Hour // how long an interrupted transfer can be resumed
)

// FileSpec is a file that a catalog source offers.
type FileSpec struct {
	Path      string // slash-separated, relative; only displayed, never a path of this machine
	SizeBytes int64  // 0: unknown
	Digest    string // "sha256:<hex>", "sha512:<hex>"; empty: the source publishes none
	Locator   string // meaningful to the source alone
	Ref       string // the manifest's exact reference
}

// origin tells the places apart that one file can be fetched from.
func (f FileSpec) origin() string { return f.Ref + "\x00" + f.Locator }

// Store is a folder of models and worker binaries. It is safe for concurrent use. Its own methods
// handle models and the store as a whole; each embedded part has its own state and locks, and knows
// nothing of models.
type Store struct {
	*folder
	*checked
	*transfers
	*binaries

	blobs flights[blob]

	// held while a record is read, changed and written, or blobs are deleted; guards below
	records sync.Mutex
	pinned  map[digest]int // blobs whose records are about to be written
}

// Open opens the store in dir, creates the missing parts of its layout, and removes what killed
// processes left in partial/. Close it when all its transfers have ended.
func Open(dir string, log hclog.Logger) (*Store, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	if log == nil {
		log = hclog.NewNullLogger()
	}
	at := &folder{dir: abs, log: log, boot: bootID}
	checked := &checked{folder: at}
	transfers := &transfers{folder: at, free: freeBytes, incoming: map[string]*partial{}}
	s := &Store{
		folder: at, checked: checked, transfers: transfers,
		binaries: &binaries{folder: at, checked: checked, transfers: transfers, limits: defaultLimits},
	}
	if err := s.open(); err != nil {
		return nil, core.WithHint(fmt.Errorf("open store: %w", err), "Set store_dir to a folder that this user may write, or correct the owner of %s.", abs)
	}
	return s, nil
}
