package cli

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"

	"github.com/rbee-project/rbee/core"
)

// The values of --format.
const (
	formatTable = "table"
	formatJSON  = "json"
)

// output is stdout. It remembers the first write error, which fails the command whichever code
// wrote. It is not safe for concurrent use.
type output struct {
	to     io.Writer
	closed bool // it was closed before this program began
	err    error
}

func (o *output) Write(b []byte) (int, error) {
	if o.err != nil {
		return 0, o.err
	}
	if o.closed {
		o.err = core.Errorf(core.Internal, "write to stdout: it is closed")
		return 0, o.err
	}
	n, err := o.to.Write(b)
	if path, ok := errors.AsType[*fs.PathError](err); ok {
		err = path.Err
	}
	o.err = core.Wrap(err, core.Internal, "write to stdout")
	return n, o.err
}

// writeJSON writes v in the JSON format of the whole CLI: indented, with a newline at the end.
func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}
