// Package scaffold writes the Go module of a new plugin, which builds and passes the conformance
// suite.
package scaffold

import (
	"embed"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/rbee-project/rbee/core"
)

// Module is the path of the module with the SDK.
const Module = "github.com/rbee-project/rbee"

// goVersion is the go version of a module if no checkout of the SDK determines it.
const goVersion = "1.26.0"

// templates are the files of a module, with .txt appended to their names; @NAME@ and the like are
// placeholders.
//
//go:embed all:worker all:catalog
var templates embed.FS

// Options describe the module to write.
type Options struct {
	Kind string // worker or catalog
	Name string // of the plugin, as in rbee-<kind>-<name>
	Dir  string // folder of the module; it must not exist, or must be empty
	Path string // of the module; empty: example.org/rbee-<kind>-<name>
	// SDK is where the SDK comes from: a folder with a checkout of rbee, or a version, which may be
	// a commit.
	SDK string
}

// Result describes what was written.
type Result struct {
	Dir        string   `json:"dir"` // absolute
	Module     string   `json:"module"`
	Executable string   `json:"executable"`
	Files      []string `json:"files"` // relative to Dir, sorted
	// Complete reports that the module builds as it is. Otherwise "go mod tidy" fetches the SDK
	// first.
	Complete bool `json:"complete"`
}

var (
	validName    = regexp.MustCompile(`^[a-z][a-z0-9-]{0,31}$`)
	validPath    = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._~/-]{0,199}$`)
	validVersion = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+-]{0,99}$`)
)

// Write writes the module. Errors: Invalid, NotFound for a folder without the SDK, Conflict for a
// folder that is not empty, Internal.
func Write(o Options) (Result, error) {
	const what = "write plugin"
	if o.Kind != "worker" && o.Kind != "catalog" {
		return Result{}, core.Errorf(core.Invalid, "%s: %q is no kind of plugin", what, o.Kind).Hint("There are: worker, catalog.")
	}
	if !validName.MatchString(o.Name) {
		return Result{}, core.Errorf(core.Invalid, "%s: %q cannot be a plugin's name", what, o.Name).Hint("Use up to 32 small letters, digits and dashes, a letter first.")
	}
	r := Result{Module: o.Path, Executable: "rbee-" + o.Kind + "-" + o.Name}
	if r.Module == "" {
		r.Module = "example.org/" + r.Executable
	}
	if !validPath.MatchString(r.Module) {
		return Result{}, core.Errorf(core.Invalid, "%s: %q cannot be a module's path", what, r.Module).Hint("Write one such as example.org/%s.", r.Executable)
	}
	var err error
	if r.Dir, err = filepath.Abs(o.Dir); err != nil {
		return Result{}, core.Wrap(err, core.Invalid, what)
	}
	files := map[string]string{}
	if r.Complete, err = sdkFiles(files, r.Module, o.SDK); err != nil {
		return Result{}, err
	}
	say := strings.NewReplacer("@NAME@", o.Name, "@MODULE@", r.Module, "@EXECUTABLE@", r.Executable)
	err = fs.WalkDir(templates, o.Kind, func(file string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		text, err := templates.ReadFile(file)
		files[strings.TrimSuffix(path.Base(file), ".txt")] = say.Replace(string(text))
		return err
	})
	if err != nil {
		return Result{}, core.Wrap(err, core.Internal, what)
	}
	r.Files, err = writeFiles(r.Dir, files)
	return r, err
}

// sdkFiles adds the files that locate the SDK, and reports whether nothing is left to fetch.
func sdkFiles(files map[string]string, module, sdk string) (complete bool, err error) {
	const what = "find the SDK"
	info, err := os.Stat(sdk)
	if err != nil || !info.IsDir() {
		if !validVersion.MatchString(sdk) {
			return false, core.Errorf(core.NotFound, "%s: %q is neither a folder nor a version", what, sdk).Hint("Give a checkout of rbee, or a version such as v0.1.0.")
		}
		files["go.mod"] = fmt.Sprintf("module %s\n\ngo %s\n\nrequire %s %s\n", module, goVersion, Module, sdk)
		return false, nil
	}
	root, err := filepath.Abs(sdk)
	if err != nil {
		return false, core.Wrap(err, core.Invalid, what)
	}
	mod, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		return false, core.Wrap(err, core.NotFound, what)
	}
	_, requires, ok := strings.Cut(string(mod), "module "+Module+"\n")
	if !ok {
		return false, core.Errorf(core.NotFound, "%s: %s has no %s", what, root, Module).Hint("Give the top folder of a checkout of rbee.")
	}
	sums, err := os.ReadFile(filepath.Join(root, "go.sum"))
	if err != nil {
		return false, core.Wrap(err, core.NotFound, what)
	}
	// These are all of rbee's requirements, so that the go command looks up no other version. "go
	// mod tidy" removes those that the plugin does not use.
	files["go.mod"] = fmt.Sprintf("module %s\n%s\nrequire %s v0.0.0\n\nreplace %s => %s\n", module, requires, Module, Module, quoted(root))
	files["go.sum"] = string(sums)
	return true, nil
}

// quoted returns a path in the form for go.mod.
func quoted(path string) string {
	if strings.ContainsAny(path, " \"'`(),") {
		return fmt.Sprintf("%q", path)
	}
	return path
}
