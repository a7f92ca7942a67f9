package hive

import (
	"errors"
	"fmt"
	"math"
	"os"

	"github.com/rbee-project/rbee/core/gguf"
	sdkworker "github.com/rbee-project/rbee/plugins/sdk/worker"
)

// beside is the device memory that a worker takes in addition to its model: adapters, draft models,
// and what its type's settings reserve.
type beside struct {
	bytes  int64
	drafts []*gguf.File
}

// besideOf reads the files that a worker reports it will load. An unreadable file counts nothing:
// the worker will report what is wrong with it.
func (sp *spawner) besideOf(f sdkworker.Fingerprint) beside {
	b := beside{bytes: max(f.BesideBytes, 0)}
	for _, file := range f.Beside {
		header, size, err := readBeside(file)
		if err != nil {
			sp.log.Debug("read a file beside a model", "file", file.Path, "error", err)
			continue
		}
		if header != nil {
			b.drafts = append(b.drafts, header)
		} else {
			b.bytes = plus(b.bytes, size)
		}
	}
	return b
}

// readBeside returns the header of a draft model, or the size of an adapter.
func readBeside(file sdkworker.ModelFile) (*gguf.File, int64, error) {
	info, err := os.Stat(file.Path)
	switch {
	case err != nil:
		return nil, 0, err
	case !info.Mode().IsRegular():
		return nil, 0, errors.New("not a regular file")
	case file.Role == sdkworker.RoleAdapter:
		return nil, info.Size(), nil
	case file.Role != sdkworker.RoleDraft:
		return nil, 0, fmt.Errorf("unknown role %q", file.Role)
	}
	r, err := os.Open(file.Path)
	if err != nil {
		return nil, 0, err
	}
	defer r.Close()
	header, err := gguf.Read(r, info.Size())
	return header, 0, err
}

// add returns a model's estimate plus what is loaded beside it; 0 (unknown) stays 0.
func (b beside) add(estimate int64, slots, contextTokens int) int64 {
	if estimate == 0 {
		return 0
	}
	estimate = plus(estimate, b.bytes)
	for _, d := range b.drafts {
		estimate = plus(estimate, d.EstimateDraft(slots, contextTokens).Total())
	}
	return estimate
}

// plus adds sizes, saturating at math.MaxInt64.
func plus(a, b int64) int64 {
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}
