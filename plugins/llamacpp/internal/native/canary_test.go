package native

import (
	"cmp"
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"github.com/hashicorp/go-hclog"
	"github.com/hybridgroup/yzma/pkg/llama"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/sdk"
)

// goodLayout is the layout of a library that fits.
func goodLayout() layout {
	m := llama.ModelParams{UseExtraBufts: 1}
	c := llama.ContextParams{NBatch: 2048, NUbatch: 512, TypeK: llama.GGMLTypeF16, TypeV: llama.GGMLTypeF16, Offload_kqv: 1}
	bytes := func(p unsafe.Pointer, n uintptr) []byte { return append([]byte(nil), unsafe.Slice((*byte)(p), n)...) }
	return layout{
		version:       "0.5.0-dev",
		modelParams:   bytes(unsafe.Pointer(&m), unsafe.Sizeof(m))[:78],
		contextParams: bytes(unsafe.Pointer(&c), unsafe.Sizeof(c)),
	}
}

func TestCanary(t *testing.T) {
	t.Parallel()
	must.Eq(t, 160, len(goodLayout().contextParams))
	for name, c := range map[string]struct {
		spoil func(*layout)
		says  string // error text; empty: fits
	}{
		"fits":                   {func(*layout) {}, ""},
		"the older one fits":     {func(l *layout) { l.version = "0.4.0-dev" }, ""},
		"a release fits":         {func(l *layout) { l.version = "0.5.0" }, ""},
		"newer":                  {func(l *layout) { l.version = "0.7.0" }, "the release is not one of"},
		"similar number":         {func(l *layout) { l.version = "0.5.01" }, "the release is not one of"},
		"no version at all":      {func(l *layout) { l.version = "" }, "the release is not one of"},
		"model params shorter":   {func(l *layout) { l.modelParams = l.modelParams[:70] }, "llama_model_params has 70 bytes, not 78"},
		"context params longer":  {func(l *layout) { l.contextParams = append(l.contextParams, make([]byte, 8)...) }, "llama_context_params has 168 bytes, not 160"},
		"context params shifted": {func(l *layout) { l.contextParams = append(make([]byte, 8), l.contextParams[:152]...) }, "the default of n_batch is 0, not 2048"},
		"shifted in the middle": {func(l *layout) {
			l.contextParams = append(l.contextParams[:104:104], append(make([]byte, 8), l.contextParams[104:152]...)...)
		}, "the default of"},
		"another default of ours": {func(l *layout) { l.modelParams[74] = 0 }, "the default of use_extra_bufts is 0, not 1"},
		"nothing was written":     {func(l *layout) { l.modelParams = nil }, "llama_model_params has 0 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := goodLayout()
			c.spoil(&l)
			err := l.check()
			must.Eq(t, err == nil, l.report(err).Passed)
			must.Eq(t, "abi", l.report(err).Name)
			must.StrContains(t, l.report(err).Detail, cmp.Or(c.says, "160 bytes"))
			if c.says == "" {
				must.NoError(t, err)
				return
			}
			must.ErrorIs(t, err, sdk.ErrUnsupported)
			must.StrContains(t, err.Error(), c.says)
			must.NotEq(t, "", sdk.HintOf(err))
		})
	}
}

func TestWritten(t *testing.T) {
	t.Parallel()
	must.Eq(t, []byte{1, 2, 0xa5, 3}, written([]byte{1, 2, 0xa5, 3, 0xa5, 0xa5}, []byte{1, 2, 0x5a, 3, 0x5a, 0x5a})) // a hole does not end the struct
	must.Len(t, 0, written([]byte{0xa5}, []byte{0x5a}))
}

func TestLibraryRefuses(t *testing.T) {
	t.Parallel()
	var l library
	must.ErrorIs(t, l.load(t.TempDir(), hclog.NewNullLogger()), sdk.ErrNotFound)
	must.Eq(t, "", l.dir) // nothing was loaded, so another folder may be tried

	dir := t.TempDir()
	for _, name := range []string{"llama", "ggml", "ggml-base"} {
		must.NoError(t, os.WriteFile(filepath.Join(dir, libraryName(name)), []byte("no library"), 0o600))
	}
	err := l.load(dir, hclog.NewNullLogger())
	must.Error(t, err)
	must.NotEq(t, "", sdk.HintOf(err))
	must.Eq(t, err, l.load(dir, hclog.NewNullLogger())) // the error persists
	must.ErrorIs(t, l.load(t.TempDir(), hclog.NewNullLogger()), sdk.ErrState)
}

// A library of another kind lacks the functions.
func TestLibraryOfOtherKind(t *testing.T) {
	dir, fake := engineDir(t), t.TempDir()
	b, err := os.ReadFile(filepath.Join(dir, libraryName("ggml-base")))
	must.NoError(t, err)
	for _, name := range []string{"llama", "ggml", "ggml-base"} {
		must.NoError(t, os.WriteFile(filepath.Join(fake, libraryName(name)), b, 0o600))
	}
	var l library
	err = l.load(fake, hclog.NewNullLogger())
	must.ErrorContains(t, err, "llama_model_default_params")
}

func TestEngineLog(t *testing.T) {
	t.Parallel()
	e := engineLog{log: hclog.NewNullLogger()}
	e.add(2, "loading\n")
	e.add(4, "error: this")
	e.add(5, " and that\nnext ")
	e.add(5, "line\n")
	e.add(2, "info\n")
	e.add(5, "more info\n")
	e.add(3, "a warning\n\n")
	must.Eq(t, ": error: this and that; next line; a warning", e.explain())
	for range 100 {
		e.add(4, "again\n")
	}
	must.Len(t, keptLines, e.lines)
	e.forget()
	must.Eq(t, "", e.explain())
	e.add(4, string(make([]byte, 10000)))
	must.LessEq(t, 4096, len(e.part))
}
