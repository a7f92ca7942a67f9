package gguf

import (
	"io"

	"github.com/rbee-project/rbee/core"
)

func read(r io.ReaderAt, size int64) (*File, error) {
	return nil, core.Errorf("read gguf", core.Unsupported, "not built yet")
}

// EstimateBytes is the device memory that a worker with this model, so many slots, and so many positions per slot needs, in bytes.
// slots below 1 count as 1; contextTokens 0 means the model's own.
func (f *File) EstimateBytes(slots, contextTokens int) int64 { return f.TensorBytes }
