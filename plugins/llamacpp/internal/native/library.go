// Package native is the only part of the worker that calls llama.cpp, through yzma: its libraries,
// devices, models and contexts. All code that can crash the process is here.
package native

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/ebitengine/purego"
	"github.com/hashicorp/go-hclog"
	"github.com/hybridgroup/yzma/pkg/llama"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/worker"
)

// library is llama.cpp's shared libraries in this process.
type library struct {
	mu      sync.Mutex // guards below
	dir     string     // empty: not loaded
	err     error      // why dir could not be loaded; permanent, as a half-loaded library cannot be unloaded
	version string
	abi     *worker.Check // the canary's result; nil: not yet checked
	devices []Device
	logs    engineLog
}

// theLibrary is the only instance: C code exists once per process, and so do the binding, the
// engine's log callback and its list of devices.
var theLibrary library

// Device is a device as the engine lists it.
type Device struct {
	Name        string // such as "CPU" or "CUDA0"
	Description string
	Registry    string // such as "CPU", "CUDA", "Metal"
	GPU         bool

	handle llama.GGMLBackendDevice
}

// Memory returns the device's free and total memory in bytes, as the engine sees it.
func (d Device) Memory() (free, total int64) {
	f, t := llama.GGMLBackendDeviceMemory(d.handle)
	return int64(min(f, t)), int64(t)
}

// Load loads the libraries below dir, once per process. A failure is permanent, as a half-loaded
// library cannot be unloaded.
func Load(dir string, log hclog.Logger) error { return theLibrary.load(dir, log) }

// Version returns the release of the loaded llama.cpp, such as "0.5.0".
func Version() string {
	theLibrary.mu.Lock()
	defer theLibrary.mu.Unlock()
	return theLibrary.version
}

// Devices returns the engine's devices, in its order.
func Devices() []Device {
	theLibrary.mu.Lock()
	defer theLibrary.mu.Unlock()
	return slices.Clone(theLibrary.devices)
}

// ABICheck returns the canary's result for the engine in this process. It reports false before an
// engine was checked.
func ABICheck() (worker.Check, bool) { return theLibrary.abiCheck() }

// KnownVersions returns the releases of llama.cpp whose layouts have been verified to equal the
// binding's.
func KnownVersions() []string { return []string{"0.4.0", "0.5.0"} }

func (l *library) load(dir string, log hclog.Logger) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	dir, err := filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("engine: %w", err)
	}
	if l.dir != "" {
		if l.dir != dir {
			return fmt.Errorf("engine: this process has loaded %s already and cannot load %s: %w", l.dir, dir, sdk.ErrState)
		}
		return l.err
	}
	for _, name := range []string{"llama", "ggml", "ggml-base"} {
		if _, err := os.Stat(filepath.Join(dir, libraryName(name))); err != nil {
			return sdk.WithHint(fmt.Errorf("engine: %w: %w", err, sdk.ErrNotFound), "Download the worker binary again: its engine folder is not complete.")
		}
	}
	l.dir = dir
	l.err = l.open(log)
	return l.err
}

func (l *library) open(log hclog.Logger) error {
	// Otherwise a failed assertion starts a debugger. Go's os.Setenv does not reach C.
	if err := setenv("GGML_NO_BACKTRACE", "1"); err != nil {
		log.Debug("failed to set the environment of the engine", "error", err)
	}
	seen, err := measureLayout(filepath.Join(l.dir, libraryName("llama")))
	if err != nil {
		return err
	}
	err = seen.check()
	l.abi = seen.report(err)
	if err != nil {
		return err
	}
	l.version, _, _ = strings.Cut(seen.version, "-")
	if err := llama.Load(l.dir); err != nil {
		return sdk.WithHint(fmt.Errorf("engine: %w", err), "Download the worker binary again.")
	}
	l.logs.log = log.Named("engine")
	// Once per process: the number of callbacks is limited, and they are never freed.
	llama.LogSet(purego.NewCallback(l.logs.callback))
	llama.BackendInit()
	if err := llama.GGMLBackendLoadAllFromPath(l.dir); err != nil {
		return fmt.Errorf("engine: %w", err)
	}
	for i := range llama.GGMLBackendDeviceCount() {
		d := llama.GGMLBackendDeviceGet(i)
		kind := llama.GGMLBackendDevType(d)
		l.devices = append(l.devices, Device{
			handle: d, Name: llama.GGMLBackendDeviceName(d), Description: llama.GGMLBackendDeviceDescription(d),
			Registry: llama.GGMLBackendRegName(llama.GGMLBackendDeviceBackendReg(d)),
			GPU:      kind == llama.GGMLBackendDeviceTypeGPU || kind == llama.GGMLBackendDeviceTypeIGPU,
		})
	}
	if len(l.devices) == 0 {
		return sdk.WithHint(fmt.Errorf("engine: no backend in %s fits this processor: %w", l.dir, sdk.ErrUnsupported), "Download the worker binary again; if that does not help, this processor is too old.")
	}
	for _, d := range l.devices {
		log.Debug("engine device", "device", d.Name, "name", d.Description, "backend", d.Registry)
	}
	return nil
}

func (l *library) abiCheck() (worker.Check, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.abi == nil {
		return worker.Check{}, false
	}
	return *l.abi, true
}

// libraryName returns the file name of one of the engine's libraries.
func libraryName(name string) string {
	if runtime.GOOS == "darwin" {
		return "lib" + name + ".dylib"
	}
	return "lib" + name + ".so"
}

func setenv(name, value string) error {
	addr, err := purego.Dlsym(purego.RTLD_DEFAULT, "setenv")
	if err != nil {
		return fmt.Errorf("setenv: %w", err)
	}
	var set func(name, value string, overwrite int32) int32
	purego.RegisterFunc(&set, addr)
	if set(name, value, 1) != 0 {
		return fmt.Errorf("setenv %s failed", name)
	}
	return nil
}

// keptLines bounds the engine's warnings and errors kept for the next error message.
const keptLines = 12

// engineLog receives the engine's log lines, from several threads.
type engineLog struct {
	log hclog.Logger

	mu    sync.Mutex // guards below
	level int32      // of the previous line, for continuations
	part  string     // an incomplete line
	lines []string   // the last warnings and errors
}

// callback has the signature of ggml_log_callback.
func (e *engineLog) callback(level int32, text *byte, _ uintptr) uintptr {
	if text != nil {
		e.add(level, cString(text))
	}
	return 0
}

// The engine's log levels.
const (
	logWarn     = 3
	logError    = 4
	logContinue = 5
)

func (e *engineLog) add(level int32, text string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if level == logContinue {
		level = e.level
	}
	if level != e.level {
		e.part = ""
	}
	e.level = level
	if level < logWarn {
		return
	}
	e.part += text
	for {
		line, rest, whole := strings.Cut(e.part, "\n")
		if !whole {
			if len(e.part) > 4096 {
				e.part = ""
			}
			return
		}
		e.part = rest
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		if e.lines = append(e.lines, line); len(e.lines) > keptLines {
			e.lines = e.lines[1:]
		}
		if level == logError {
			e.log.Warn("engine reports an error", "line", line)
		} else {
			e.log.Debug("engine warns", "line", line)
		}
	}
}

// forget drops the lines kept so far. Call it before a call whose error explain should explain.
func (e *engineLog) forget() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.lines, e.part = nil, ""
}

// explain returns the lines since forget, as a suffix for an error message, or the empty string.
func (e *engineLog) explain() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.lines) == 0 {
		return ""
	}
	return ": " + strings.Join(e.lines, "; ")
}
