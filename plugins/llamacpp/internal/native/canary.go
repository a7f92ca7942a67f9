package native

import (
	"fmt"
	"strings"
	"unsafe"

	"github.com/ebitengine/purego"
	"github.com/hybridgroup/yzma/pkg/llama"
	"github.com/jupiterrider/ffi"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/worker"
)

// The libraries are bound by name only: one with other struct layouts loads, seems to work and
// overwrites memory. So before calling anything else, the canary measures the two structs that the
// library returns and compares them with the binding's.

// layout is what the canary measured in a library.
type layout struct {
	version       string // from llama_version, such as "0.5.0-dev"
	modelParams   []byte // bytes written by llama_model_default_params
	contextParams []byte // bytes written by llama_context_default_params
}

// check returns an error for a library that does not fit the binding.
func (l layout) check() error {
	bad := func(format string, args ...any) error {
		err := fmt.Errorf("engine: llama.cpp %q does not fit this plugin: %s: %w", l.version, fmt.Sprintf(format, args...), sdk.ErrUnsupported)
		return sdk.WithHint(err, "Download the worker binary again; it needs llama.cpp %s.", strings.Join(KnownVersions(), " or "))
	}
	version, _, _ := strings.Cut(l.version, "-")
	known := false
	for _, v := range KnownVersions() {
		known = known || v == version
	}
	if !known {
		return bad("the release is not one of %s", strings.Join(KnownVersions(), ", "))
	}
	var m llama.ModelParams
	var c llama.ContextParams
	// The last padding of a struct is not written, so compare with the end of the last field.
	if got, want := len(l.modelParams), int(unsafe.Offsetof(m.LoadMTP)+unsafe.Sizeof(m.LoadMTP)); got != want {
		return bad("llama_model_params has %d bytes, not %d", got, want)
	}
	if got, want := len(l.contextParams), int(unsafe.Offsetof(c.CtxOther)+unsafe.Sizeof(c.CtxOther)); got != want {
		return bad("llama_context_params has %d bytes, not %d", got, want)
	}
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&m)), unsafe.Sizeof(m)), l.modelParams)
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&c)), unsafe.Sizeof(c)), l.contextParams)
	for _, d := range []struct {
		name      string
		got, want int64
	}{
		{"n_batch", int64(c.NBatch), 2048},
		{"n_ubatch", int64(c.NUbatch), 512},
		{"type_k", int64(c.TypeK), int64(llama.GGMLTypeF16)},
		{"type_v", int64(c.TypeV), int64(llama.GGMLTypeF16)},
		{"offload_kqv", int64(c.Offload_kqv), 1},
		{"use_extra_bufts", int64(m.UseExtraBufts), 1},
	} {
		if d.got != d.want {
			return bad("the default of %s is %d, not %d", d.name, d.got, d.want)
		}
	}
	return nil
}

// report describes the canary's result, where err is the result of check.
func (l layout) report(err error) *worker.Check {
	c := &worker.Check{Name: "abi", Passed: err == nil}
	if err != nil {
		c.Detail = err.Error()
	} else {
		c.Detail = fmt.Sprintf("llama.cpp %s: model parameters %d bytes, context parameters %d bytes, defaults as expected", l.version, len(l.modelParams), len(l.contextParams))
	}
	return c
}

// paramsRoom exceeds the size of the structs in all known versions.
const paramsRoom = 1024

// measureLayout opens libllama and measures it. It calls nothing that could write outside the
// buffers.
func measureLayout(path string) (layout, error) {
	lib, err := purego.Dlopen(path, purego.RTLD_NOW|purego.RTLD_GLOBAL)
	if err != nil {
		return layout{}, sdk.WithHint(fmt.Errorf("engine: %w", err), "The engine needs the system libraries libstdc++6 and libgcc-s1 (Debian names); install what the message names.")
	}
	var l layout
	if addr, err := purego.Dlsym(lib, "llama_version"); err == nil {
		var version func() string
		purego.RegisterFunc(&version, addr)
		l.version = version()
	}
	if l.modelParams, err = measure(lib, "llama_model_default_params"); err != nil {
		return layout{}, err
	}
	l.contextParams, err = measure(lib, "llama_context_default_params")
	return l, err
}

// measure calls a function that returns a large struct into two differently filled buffers: the
// function has written the bytes that agree.
func measure(lib uintptr, name string) ([]byte, error) {
	words := make([]*ffi.Type, paramsRoom/8)
	for i := range words {
		words[i] = &ffi.TypeUint64
	}
	ret := ffi.NewType(words...)
	fn, err := ffi.Lib{Addr: lib}.Prep(name, &ret)
	if err != nil {
		return nil, sdk.WithHint(fmt.Errorf("engine: %s: %w", name, err), "Download the worker binary again.")
	}
	var rooms [2][paramsRoom]byte
	for i, fill := range []byte{0xa5, 0x5a} {
		for j := range rooms[i] {
			rooms[i][j] = fill
		}
		fn.Call(unsafe.Pointer(&rooms[i]))
	}
	return written(rooms[0][:], rooms[1][:]), nil
}

// written returns the part of a that a call wrote, given that a and b differed before the same
// call.
func written(a, b []byte) []byte {
	n := len(a)
	for n > 0 && a[n-1] != b[n-1] {
		n--
	}
	return a[:n]
}
