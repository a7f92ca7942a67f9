// Package llamacpp serves GGUF models with llama.cpp's shared libraries, loaded into the process:
// the engine of the worker types cpu, cuda, metal and vulkan.
//
// One process serves one model. The requests of all slots share every step of the engine
// (continuous batching); each slot has its own cache.
package llamacpp

import (
	"fmt"
	"strings"

	"github.com/hashicorp/go-hclog"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/worker"
)

// Flavour is the kind of device that a worker type uses. It is also the worker type's name.
type Flavour string

// The flavours. They differ in the libraries they need and the devices they report.
const (
	CPU   Flavour = "cpu"
	CUDA  Flavour = "cuda"
	Metal Flavour = "metal"
	// Vulkan is any graphics card with a Vulkan driver: AMD, Intel, NVIDIA.
	Vulkan Flavour = "vulkan"
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
	b := &Backend{flavour: f, version: "0.0.0-dev", config: defaultConfig(), cores: machineCores(), state: worker.StateIdle}
	for _, o := range opts {
		o(b)
	}
	if b.log == nil {
		b.log = sdk.Logger("llamacpp")
	}
	return b
}

// release is a release of the engine's packages whose struct layouts match the binding.
type release struct {
	packages string // version of the npm packages
	engine   string // version of llama.cpp
}

// releasesFor lists the releases available for a system, the best first. macOS gets an older one,
// the newest published for it.
func releasesFor(goos string) []release {
	newer, older := release{"3.22.1", "v0.5.0"}, release{"3.21.1", "v0.4.0"}
	if goos == "darwin" {
		return []release{older}
	}
	return []release{newer, older}
}

// enginesFor returns the engines that a flavour can use on an operating system and architecture,
// the best first; nil where the flavour does not exist.
func enginesFor(f Flavour, goos, goarch string) []sdk.Engine {
	type target struct {
		Flavour
		os, arch string
	}
	platform, ok := map[target]string{
		{CPU, "linux", "amd64"}:    "linux-x64",
		{CPU, "linux", "arm64"}:    "linux-arm64",
		{CUDA, "linux", "amd64"}:   "linux-x64-cuda",
		{Vulkan, "linux", "amd64"}: "linux-x64-vulkan",
		{CPU, "darwin", "arm64"}:   "mac-arm64-metal", // no package without Metal exists
		{Metal, "darwin", "arm64"}: "mac-arm64-metal",
		{CPU, "darwin", "amd64"}:   "mac-x64",
	}[target{f, goos, goarch}]
	if !ok {
		return nil
	}
	ext := "so"
	if goos == "darwin" {
		ext = "dylib"
	}
	gpu := "" // library names in GPU packages contain the GPU's name
	for _, g := range []Flavour{CUDA, Metal, Vulkan} {
		if strings.HasSuffix(platform, "-"+string(g)) {
			gpu = string(g) + "."
		}
	}
	var out []sdk.Engine
	for _, r := range releasesFor(goos) {
		out = append(out, sdk.Engine{
			Name:    "llama.cpp",
			Version: r.engine,
			Ref:     fmt.Sprintf("npm:@node-llama-cpp/%s@%s", platform, r.packages),
			Prefix:  "package/bins/" + platform + "/",
			Links: map[string]string{
				"libllama." + ext: fmt.Sprintf("libllama.%s%s.%s", gpu, r.engine, ext),
				"libggml." + ext:  fmt.Sprintf("libggml.%s%s.%s", gpu, r.engine, ext),
			},
		})
	}
	return out
}

// where lists the systems that a flavour supports, for messages.
func (f Flavour) where() string {
	switch f {
	case CUDA:
		return "linux/amd64 with an NVIDIA card"
	case Metal:
		return "darwin/arm64"
	case Vulkan:
		return "linux/amd64 with a graphics card that has a Vulkan driver"
	default:
		return "linux/amd64, linux/arm64, darwin/arm64 and darwin/amd64"
	}
}

// summary is the one-line description of the worker type.
func (f Flavour) summary() string {
	switch f {
	case CUDA:
		return "llama.cpp on NVIDIA graphics cards"
	case Metal:
		return "llama.cpp on the graphics processor of Apple silicon"
	case Vulkan:
		return "llama.cpp on graphics cards with a Vulkan driver"
	default:
		return "llama.cpp on the processor"
	}
}
