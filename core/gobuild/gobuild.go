// Package gobuild compiles Go programs with the machine's Go toolchain, in a separate environment
// and within limits.
package gobuild

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/hostinfo"
)

// Options say how, where and within which limits to build programs.
type Options struct {
	Go          string // path of the go command; empty: the one in PATH
	WorkDir     string // parent of temporary folders; empty: the system's
	BuildCache  string // GOCACHE, kept between builds; empty: a temporary one
	ModuleCache string // GOMODCACHE, kept between builds; empty: a temporary one
	// CGO also compiles C code: a module's C code can run its author's commands during the build.
	CGO     bool
	Timeout time.Duration
	// MaxDiskBytes bounds the temporary folder, including caches within it; 0: 8 GiB.
	MaxDiskBytes int64
	// Start starts each command of a build; nil: the command's own Start.
	Start func(cmd *exec.Cmd) error
	// Environ returns the environment from which a build takes a few variables; nil: os.Environ.
	Environ func() []string
}

const (
	defaultTimeout  = 10 * time.Minute
	defaultMaxBytes = 8 << 30
	versionTimeout  = 30 * time.Second
	watchEvery      = time.Second
	// markName names the environment variable that identifies leftover processes of a build.
	markName = "RBEE_BUILD"
)

// Source is what to build: a folder or a package of a module. ParseSource creates it.
type Source struct {
	folder string // absolute; empty: a module
	module string // package@version
}

// String returns the source in the format that ParseSource parses.
func (s Source) String() string {
	if s.folder != "" {
		return s.folder
	}
	return s.module
}

// Build compiles the program and writes its executable to out, whose folder must exist. It passes
// every line of the toolchain's output to emit, within limits. If it fails or ctx ends, it leaves
// no file and no process behind. Errors: Unsupported without a toolchain, NotFound for a missing
// folder, Invalid with the compiler's messages, TooLarge for the disk limit, DeadlineExceeded,
// ctx's.
func Build(ctx context.Context, o Options, src Source, out string, emit func(line string)) (err error) {
	const op = "build"
	if o.Timeout == 0 {
		o.Timeout = defaultTimeout
	}
	if o.MaxDiskBytes == 0 {
		o.MaxDiskBytes = defaultMaxBytes
	}
	if o.Environ == nil {
		o.Environ = os.Environ
	}
	goTool, err := toolchain(o)
	if err != nil {
		return err
	}
	if src.folder != "" {
		if info, err := os.Stat(src.folder); err != nil || !info.IsDir() {
			return core.Errorf(core.NotFound, "%s: there is no folder %s on this machine", op, src.folder).Hint("The source is a folder of the hive's machine, or module@version.")
		}
	}
	dir, err := os.MkdirTemp(o.WorkDir, "build-")
	if err != nil {
		return core.Wrap(err, core.Internal, op)
	}
	defer func() {
		if rmErr := os.RemoveAll(dir); rmErr != nil {
			err = errors.Join(err, core.Wrap(rmErr, core.Internal, op))
		}
	}()
	b := &build{o: o, dir: dir, mark: rand.Text(), emit: emit, env: environment(o, goTool, dir)}
	for _, d := range []string{"home", "tmp", "bin"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			return core.Wrap(err, core.Internal, op)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	version, err := b.version(ctx, goTool)
	if err != nil {
		return err
	}
	emit(version)
	emit("building " + src.String())
	if err := b.run(ctx, goTool, src); err != nil {
		return err
	}
	return b.publish(out)
}

// toolchain finds the go command.
func toolchain(o Options) (string, error) {
	name := o.Go
	if name == "" {
		name = "go"
	}
	path, err := lookPath(name, o.Environ())
	if err != nil {
		return "", core.Errorf(core.Unsupported, "build: there is no Go toolchain on this machine: %w", err).Hint(
			"Install Go on the hive's machine, or say where it is with hive { build { go = \"/usr/local/go/bin/go\" } }.")
	}
	return path, nil
}

// lookPath is exec.LookPath for the given environment.
func lookPath(name string, environ []string) (string, error) {
	if filepath.IsAbs(name) {
		return exec.LookPath(name)
	}
	for _, dir := range filepath.SplitList(lookup(environ, "PATH")) {
		if !filepath.IsAbs(dir) {
			continue // never run from the current folder
		}
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s is not in PATH", name)
}

func lookup(environ []string, name string) string {
	for _, e := range environ {
		if v, ok := strings.CutPrefix(e, name+"="); ok {
			return v
		}
	}
	return ""
}

// passedOn lists the agent's environment variables that a build sees: where modules come from, and
// how to get there.
func passedOn() []string {
	return []string{
		"GOPROXY", "GONOPROXY", "GOPRIVATE", "GOSUMDB", "GONOSUMDB", "GOINSECURE", "GOVCS",
		"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR",
	}
}

// environment returns the whole environment of a build.
func environment(o Options, goTool, dir string) []string {
	environ := o.Environ()
	cgo := "0"
	if o.CGO {
		cgo = "1"
	}
	or := func(path, name string) string {
		if path != "" {
			return path
		}
		return filepath.Join(dir, name)
	}
	env := []string{
		"PATH=" + filepath.Dir(goTool) + string(filepath.ListSeparator) + lookup(environ, "PATH"),
		"HOME=" + filepath.Join(dir, "home"), "TMPDIR=" + filepath.Join(dir, "tmp"), "GOTMPDIR=" + filepath.Join(dir, "tmp"),
		"GOPATH=" + filepath.Join(dir, "gopath"), "GOMODCACHE=" + or(o.ModuleCache, "modules"), "GOCACHE=" + or(o.BuildCache, "cache"), "GOBIN=" + filepath.Join(dir, "bin"),
		// Ignore personal settings and download no other toolchain; keep the caches removable.
		// Plugins use gRPC, whose tracing pages would keep every method of every type in the
		// binary.
		"GOENV=off", "GOTOOLCHAIN=local", "GOWORK=off", "GOFLAGS=-modcacherw -tags=grpcnotrace", "CGO_ENABLED=" + cgo,
		"GIT_TERMINAL_PROMPT=0", "LC_ALL=C",
	}
	for _, name := range passedOn() {
		if v := lookup(environ, name); v != "" {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// build is one running build.
type build struct {
	o    Options
	dir  string
	mark string
	emit func(string)
	env  []string
}

func (b *build) command(goTool string, args ...string) *exec.Cmd {
	cmd := exec.Command(goTool, args...) //nolint:noctx // a whole process group is ended, not one process
	cmd.Env = append(slices.Clone(b.env), markName+"="+b.mark)
	cmd.Dir = b.dir
	return cmd
}

func (b *build) version(ctx context.Context, goTool string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	var said output
	said.emit = func(string) {}
	if err := b.group(ctx, b.command(goTool, "version"), &said); err != nil {
		if ctx.Err() != nil {
			return "", fmt.Errorf("build: %w", core.FromContext(ctx))
		}
		return "", core.Errorf(core.Unsupported, "build: the Go toolchain %s does not work: %w", goTool, err).Hint("It says: %s", strings.Join(said.tail, "; "))
	}
	return strings.Join(said.tail, " "), nil
}

// run compiles. The executable is the only file in bin/.
func (b *build) run(ctx context.Context, goTool string, src Source) error {
	const op = "build"
	var cmd *exec.Cmd
	if src.folder != "" {
		// Do not run version control on the folder: its settings may name programs to run.
		cmd = b.command(goTool, "build", "-trimpath", "-buildvcs=false", "-o", filepath.Join(b.dir, "bin")+string(filepath.Separator), "--", ".")
		cmd.Dir = src.folder
	} else {
		cmd = b.command(goTool, "install", "-trimpath", "-buildvcs=false", "--", src.module)
	}
	said := output{emit: b.emit}
	watched, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	full := make(chan error, 1)
	go func() { full <- b.watchDisk(watched, stop) }()
	err := b.group(watched, cmd, &said)
	stop(nil)
	if tooLarge := <-full; tooLarge != nil {
		return tooLarge
	}
	if said.dropped > 0 {
		b.emit(fmt.Sprintf("… and %d more lines", said.dropped))
	}
	switch {
	case ctx.Err() != nil && core.KindOf(ctx.Err()) == core.DeadlineExceeded:
		return core.Errorf(core.DeadlineExceeded, "%s: the build takes longer than %s", op, b.o.Timeout).Hint("Allow more time with hive { build { timeout = … } }, or keep the caches with cache_dir.")
	case ctx.Err() != nil:
		return fmt.Errorf("%s: %w", op, core.FromContext(ctx))
	case err != nil:
		return core.Errorf(core.Invalid, "%s: %s cannot be built: %w", op, src, err).Hint("The toolchain says:\n%s", strings.Join(said.tail, "\n"))
	}
	return nil
}

// watchDisk ends the build when its folder exceeds the limit.
func (b *build) watchDisk(ctx context.Context, stop context.CancelCauseFunc) error {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if used := folderBytes(b.dir); used > b.o.MaxDiskBytes {
			err := core.Errorf(core.TooLarge, "build: the build takes more than %d bytes on disk", b.o.MaxDiskBytes).Hint("Build it elsewhere, and put the executable into plugin_dir.")
			stop(err)
			return err
		}
	}
}

// folderBytes sums the file sizes in a folder and ignores files that vanish meanwhile.
func folderBytes(dir string) (n int64) {
	_ = filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil //nolint:nilerr // files come and go
		}
		if info, err := d.Info(); err == nil {
			n += info.Size()
		}
		return nil
	})
	return n
}

// publish moves the executable to out.
func (b *build) publish(out string) error {
	const op = "build"
	made, err := os.ReadDir(filepath.Join(b.dir, "bin"))
	if err != nil {
		return core.Wrap(err, core.Internal, op)
	}
	if len(made) != 1 || !made[0].Type().IsRegular() {
		return core.Errorf(core.Invalid, "%s: not a program: the build made %d executables", op, len(made)).Hint("Name the package main of the plugin.")
	}
	path := filepath.Join(b.dir, "bin", made[0].Name())
	if err := os.Chmod(path, 0o700); err != nil {
		return core.Wrap(err, core.Internal, op)
	}
	return core.Wrap(os.Rename(path, out), core.Internal, op)
}

// leftovers kills the processes that a build left behind, including those that changed their
// process group.
func (b *build) leftovers() { _, _ = hostinfo.KillMarked(markName + "=" + b.mark) }
