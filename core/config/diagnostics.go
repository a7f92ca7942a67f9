package config

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"

	"github.com/hashicorp/hcl/v2"

	"github.com/rbee-project/rbee/core"
)

// Diagnostics collects errors and warnings with their source lines.
type Diagnostics struct {
	List  hcl.Diagnostics
	files map[string]*hcl.File
}

// HasErrors reports whether any of the diagnostics is an error.
func (d *Diagnostics) HasErrors() bool { return d != nil && d.List.HasErrors() }

// Append adds diagnostics about the same files, such as those of plugins.
func (d *Diagnostics) Append(list hcl.Diagnostics) { d.List = append(d.List, list...) }

// Warning returns list as warnings.
func Warning(list hcl.Diagnostics) hcl.Diagnostics {
	for _, d := range list {
		d.Severity = hcl.DiagWarning
	}
	return list
}

// Diagnostics wraps diagnostics about this configuration's files, so that they print with their
// source lines.
func (c *Config) Diagnostics(list hcl.Diagnostics) *Diagnostics {
	return &Diagnostics{List: list, files: c.files}
}

// Write prints the diagnostics for people, with source lines. width 0 does not wrap.
func (d *Diagnostics) Write(w io.Writer, width uint, color bool) error {
	if d == nil || len(d.List) == 0 {
		return nil
	}
	list := make(hcl.Diagnostics, 0, len(d.List))
	for _, x := range d.List {
		// With the expression set, the writer would print the values of its variables, and an
		// environment variable may hold a secret.
		x := *x
		x.Expression, x.EvalContext = nil, nil
		list = append(list, &x)
	}
	return hcl.NewDiagnosticTextWriter(w, maps.Clone(d.files), width, color).WriteDiagnostics(list)
}

// Err returns the errors among the diagnostics as one error of kind Invalid, or nil if there are
// none. Its text includes the source lines.
func (d *Diagnostics) Err() error {
	if !d.HasErrors() {
		return nil
	}
	only := &Diagnostics{files: d.files}
	for _, x := range d.List {
		if x.Severity == hcl.DiagError {
			only.List = append(only.List, x)
		}
	}
	var b strings.Builder
	if err := only.Write(&b, 0, false); err != nil {
		return core.Wrap(errors.Join(d.List, err), core.Invalid, "configuration")
	}
	return core.Wrap(fmt.Errorf("%s", strings.TrimSpace(b.String())), core.Invalid, "configuration")
}
