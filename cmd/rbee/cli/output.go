package cli

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"time"

	"github.com/rbee-project/rbee/cmd/rbee/cli/term"
	"github.com/rbee-project/rbee/core"
)

// The values of --format.
const (
	formatTable = "table"
	formatJSON  = "json"
)

// output is stdout. It remembers the first error of writing, which fails the command whatever
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

// writeJSON writes v as the CLI shows JSON everywhere: indented, with a newline at the end.
func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// show writes v as JSON, or calls text, whichever the user asked for.
func (a *app) show(v any, text func(w io.Writer) error) error {
	if a.wantJSON() {
		return writeJSON(a.stdout, v)
	}
	return text(a.stdout)
}

// list is a slice for JSON: never null.
func list[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

// ago is how long before now t was: "5m ago". A zero t is empty.
func (a *app) ago(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	d := a.now().Sub(t)
	if d < time.Second {
		return "now"
	}
	return term.Duration(d) + " ago"
}

// since is the time since t without "ago".
func (a *app) since(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return term.Duration(max(0, a.now().Sub(t)))
}
