// Package llamacpp serves GGUF models with llama.cpp's shared libraries, loaded into the process: the engine of the worker types cpu, cuda and metal.
//
// One process serves one model. The requests of all slots share every step of the engine (continuous batching); each has a cache of its own.
package llamacpp

import (
	"fmt"
	"runtime"
	"strings"

	"github.com/hashicorp/go-hclog"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/worker"
)

// Flavour is the kind of device that a worker type uses. It is also the worker type's name.
type Flavour string

// The flavours. The three differ in the libraries they need and the devices they report.
const (
	CPU   Flavour = "cpu"
	CUDA  Flavour = "cuda"
	Metal Flavour = "metal"
)

// Option changes what New makes.
type Option func(*Backend)

// WithVersion sets the plugin's version; a leading v is dropped.
func WithVersion(version string) Option {
	return func(b *Backend) {
		if version != "" {
			b.version = strings.TrimPrefix(version, "v")
		}
	}
}

// WithLogger sets the logger. Without it the plugin logs as plugins do, see sdk.Logger.
func WithLogger(log hclog.Logger) Option { return func(b *Backend) { b.log = log } }

// New makes a backend of one flavour, ready for worker.Serve.
func New(f Flavour, opts ...Option) worker.Backend {
	b := &Backend{flavour: f, version: "0.0.0-dev", config: defaultConfig(), state: worker.StateIdle}
	for _, o := range opts {
		o(b)
	}
	if b.log == nil {
		b.log = sdk.Logger("llamacpp")
	}
	return b
}

// The releases that the engine's packages are pinned to. The second is the newest one served for macOS. Both have the layouts that the binding was made for.
const (
	engineLinux  = "3.22.1"
	releaseLinux = "v0.5.0"
	engineMac    = "3.21.1"
	releaseMac   = "v0.4.0"
)

// engineFor returns the engine that a flavour needs on an operating system and architecture; the zero value where there is none.
func engineFor(f Flavour, goos, goarch string) sdk.Engine {
	type target struct {
		Flavour
		os, arch string
	}
	platform, ok := map[target]string{
		{CPU, "linux", "amd64"}:    "linux-x64",
		{CPU, "linux", "arm64"}:    "linux-arm64",
		{CUDA, "linux", "amd64"}:   "linux-x64-cuda",
		{CPU, "darwin", "arm64"}:   "mac-arm64-metal", // there is no package without Metal
		{Metal, "darwin", "arm64"}: "mac-arm64-metal",
		{CPU, "darwin", "amd64"}:   "mac-x64",
	}[target{f, goos, goarch}]
	if !ok {
		return sdk.Engine{}
	}
	pkg, release, ext := engineLinux, releaseLinux, "so"
	if goos == "darwin" {
		pkg, release, ext = engineMac, releaseMac, "dylib"
	}
	gpu := "" // GPU packages have the GPU's name in the names of their libraries
	for _, g := range []string{"cuda", "metal"} {
		if strings.HasSuffix(platform, "-"+g) {
			gpu = g + "."
		}
	}
	return sdk.Engine{
		Name:    "llama.cpp",
		Version: release,
		Ref:     fmt.Sprintf("npm:@node-llama-cpp/%s@%s", platform, pkg),
		Prefix:  "package/bins/" + platform + "/",
		Links: map[string]string{
			"libllama." + ext: fmt.Sprintf("libllama.%s%s.%s", gpu, release, ext),
			"libggml." + ext:  fmt.Sprintf("libggml.%s%s.%s", gpu, release, ext),
		},
	}
}

// libraryName returns the file name of one of the engine's libraries.
func libraryName(name string) string {
	if runtime.GOOS == "darwin" {
		return "lib" + name + ".dylib"
	}
	return "lib" + name + ".so"
}

// summary is the line that people read about the worker type.
func (f Flavour) summary() string {
	switch f {
	case CUDA:
		return "llama.cpp on NVIDIA graphics cards"
	case Metal:
		return "llama.cpp on the graphics processor of Apple silicon"
	default:
		return "llama.cpp on the processor"
	}
}
