package llamacpp

import (
	"context"
	"encoding/json"
	"errors"
	"runtime"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/llamacpp/internal/native"
	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/worker"
)

func firstFingerprint(t testing.TB, b *Backend) worker.Fingerprint {
	t.Helper()
	enough := errors.New("enough")
	var first worker.Fingerprint
	must.ErrorIs(t, b.Fingerprint(t.Context(), func(f worker.Fingerprint) error {
		first = f
		return enough
	}), enough)
	return first
}

func TestFingerprintWithoutEngine(t *testing.T) {
	t.Parallel()
	f := firstFingerprint(t, newTestBackend(t, CPU))
	must.Eq(t, "", f.Problem)
	must.Len(t, 1, f.Devices)
	must.Eq(t, "cpu", f.Devices[0].ID)
	must.NotEq(t, "", f.Devices[0].Name)
	must.Positive(t, f.Devices[0].FreeBytes)
	must.LessEq(t, f.Devices[0].TotalBytes, f.Devices[0].FreeBytes)

	if runtime.GOOS != "darwin" {
		f = firstFingerprint(t, newTestBackend(t, Metal))
		must.Len(t, 0, f.Devices)
		must.StrContains(t, f.Problem, "Metal exists on Macs")
	}
}

func TestFingerprintEnds(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	n := 0
	must.ErrorIs(t, newTestBackend(t, CPU).Fingerprint(ctx, func(worker.Fingerprint) error {
		n++
		cancel()
		return nil
	}), context.Canceled)
	must.Eq(t, 1, n)
}

type fakeCUDA struct {
	n    int
	err  error
	bare bool // neither names nor free memory
}

func (f fakeCUDA) count() (int, error) { return f.n, f.err }
func (f fakeCUDA) name(int) (string, error) {
	if f.bare {
		return "", errors.New("no name")
	}
	return "Card", nil
}
func (f fakeCUDA) total(int) (int64, error) { return 8 << 30, nil }
func (f fakeCUDA) free(int) (int64, bool)   { return 5 << 30, !f.bare }

func TestCUDADevices(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		driver  fakeCUDA
		openErr error
		devices []worker.Device
		problem string
	}{
		"two cards": {driver: fakeCUDA{n: 2}, devices: []worker.Device{
			{ID: "cuda:0", Kind: "cuda", Name: "Card", TotalBytes: 8 << 30, FreeBytes: 5 << 30},
			{ID: "cuda:1", Kind: "cuda", Name: "Card", TotalBytes: 8 << 30, FreeBytes: 5 << 30},
		}},
		"a card that says little": {driver: fakeCUDA{n: 1, bare: true}, devices: []worker.Device{
			{ID: "cuda:0", Kind: "cuda", Name: "NVIDIA card 0", TotalBytes: 8 << 30, FreeBytes: 8 << 30, Problem: "The driver cannot describe this card (no name)."},
		}},
		"no card":       {problem: "There is no NVIDIA card in this machine; use the worker type cpu."},
		"no driver":     {openErr: errors.New("libcuda.so.1 is not there"), problem: "NVIDIA's driver cannot be used here (libcuda.so.1 is not there); install it, or use the worker type cpu."},
		"broken driver": {driver: fakeCUDA{err: errors.New("code 999")}, problem: "NVIDIA's driver cannot list the cards (code 999); check it with nvidia-smi, or use the worker type cpu."},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			devices, problem := cudaDevices(func() (cudaDriver, error) { return c.driver, c.openErr })
			must.Eq(t, c.problem, problem)
			must.Eq(t, c.devices, devices)
		})
	}
}

func TestOfFlavour(t *testing.T) {
	t.Parallel()
	all := []native.Device{{Name: "CUDA0", Registry: "CUDA", GPU: true}, {Name: "CUDA1", Registry: "CUDA", GPU: true}, {Name: "MTL0", Registry: "MTL", GPU: true}, {Name: "BLAS", Registry: "BLAS"}, {Name: "CPU", Registry: "CPU"}}
	must.Len(t, 2, ofFlavour(all, CUDA))
	must.Eq(t, "MTL0", ofFlavour(all, Metal)[0].Name)
	must.Eq(t, []native.Device{all[4]}, ofFlavour(all, CPU))
	must.Len(t, 0, ofFlavour(all[3:], CUDA))
	must.Len(t, 0, ofFlavour(all, Vulkan))
	must.Len(t, 1, ofFlavour([]native.Device{{Name: "Vulkan0", Registry: "Vulkan", GPU: true}, {Name: "Vulkan1", Registry: "Vulkan"}}, Vulkan)) // a software renderer does not count
}

func TestEngineNames(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		f          Flavour
		os, arch   string
		ref        string
		prefix     string
		llama, ggl string // symlink targets
	}{
		{CPU, "linux", "amd64", "npm:@node-llama-cpp/linux-x64@3.22.1", "package/bins/linux-x64/", "libllama.v0.5.0.so", "libggml.v0.5.0.so"},
		{CPU, "linux", "arm64", "npm:@node-llama-cpp/linux-arm64@3.22.1", "package/bins/linux-arm64/", "libllama.v0.5.0.so", "libggml.v0.5.0.so"},
		{CUDA, "linux", "amd64", "npm:@node-llama-cpp/linux-x64-cuda@3.22.1", "package/bins/linux-x64-cuda/", "libllama.cuda.v0.5.0.so", "libggml.cuda.v0.5.0.so"},
		{Vulkan, "linux", "amd64", "npm:@node-llama-cpp/linux-x64-vulkan@3.22.1", "package/bins/linux-x64-vulkan/", "libllama.vulkan.v0.5.0.so", "libggml.vulkan.v0.5.0.so"},
		{Metal, "darwin", "arm64", "npm:@node-llama-cpp/mac-arm64-metal@3.21.1", "package/bins/mac-arm64-metal/", "libllama.metal.v0.4.0.dylib", "libggml.metal.v0.4.0.dylib"},
		{CPU, "darwin", "arm64", "npm:@node-llama-cpp/mac-arm64-metal@3.21.1", "package/bins/mac-arm64-metal/", "libllama.metal.v0.4.0.dylib", "libggml.metal.v0.4.0.dylib"},
		{CPU, "darwin", "amd64", "npm:@node-llama-cpp/mac-x64@3.21.1", "package/bins/mac-x64/", "libllama.v0.4.0.dylib", "libggml.v0.4.0.dylib"},
	} {
		e := enginesFor(c.f, c.os, c.arch)[0]
		ext := ".so"
		if c.os == "darwin" {
			ext = ".dylib"
		}
		must.Eq(t, c.ref, e.Ref)
		must.Eq(t, c.prefix, e.Prefix)
		must.Eq(t, map[string]string{"libllama" + ext: c.llama, "libggml" + ext: c.ggl}, e.Links)
	}
	for _, f := range []struct {
		f        Flavour
		os, arch string
	}{{CUDA, "linux", "arm64"}, {CUDA, "darwin", "arm64"}, {Metal, "linux", "amd64"}, {Vulkan, "darwin", "arm64"}, {Vulkan, "linux", "arm64"}, {CPU, "windows", "amd64"}} {
		must.Len(t, 0, enginesFor(f.f, f.os, f.arch))
	}
	list := enginesFor(CPU, "linux", "amd64")
	must.Len(t, 2, list)
	must.Eq(t, sdk.Engine{
		Name: "llama.cpp", Version: "v0.4.0", Ref: "npm:@node-llama-cpp/linux-x64@3.21.1", Prefix: "package/bins/linux-x64/",
		Links: map[string]string{"libllama.so": "libllama.v0.4.0.so", "libggml.so": "libggml.v0.4.0.so"},
	}, list[1])
	for _, e := range list { // every package on offer passes the canary
		must.SliceContains(t, native.KnownVersions(), strings.TrimPrefix(e.Version, "v"))
	}
}

func TestConfigure(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		flavour Flavour
		json    string
		path    string // path of the only error; empty: accepted
	}{
		"nothing":           {CPU, ``, ""},
		"empty":             {CPU, `{}`, ""},
		"nulls":             {CPU, `{"threads":null,"kv_cache_type":null}`, ""},
		"all":               {CPU, `{"threads":1,"batch_tokens":256,"prompt_chunk":64,"context_tokens":2048,"kv_cache_type":"q8_0","queue":5,"repack":false}`, ""},
		"negative threads":  {CPU, `{"threads":-1}`, "threads"},
		"small batch":       {CPU, `{"batch_tokens":1}`, "batch_tokens"},
		"odd chunk":         {CPU, `{"prompt_chunk":-1}`, "prompt_chunk"},
		"no pause":          {CPU, `{"prompt_pause_ms":0}`, "prompt_pause_ms"},
		"tiny context":      {CPU, `{"context_tokens":3}`, "context_tokens"},
		"odd store":         {CPU, `{"prefix_store_mib":-2}`, "prefix_store_mib"},
		"no store":          {CPU, `{"prefix_store_mib":0}`, ""},
		"negative queue":    {CPU, `{"queue":-1}`, "queue"},
		"unknown cache":     {CPU, `{"kv_cache_type":"q3"}`, "kv_cache_type"},
		"layers on the cpu": {CUDA, `{"gpu_layers":-2}`, "gpu_layers"},
		"some layers":       {Metal, `{"gpu_layers":10}`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			diags, err := newTestBackend(t, c.flavour).Configure(t.Context(), sdk.Config{JSON: json.RawMessage(c.json)})
			must.NoError(t, err)
			if c.path == "" {
				must.False(t, diags.HasErrors(), must.Sprint(diags))
				return
			}
			must.Len(t, 1, diags)
			must.Eq(t, []any{c.path}, diags[0].Path)
			must.True(t, diags.HasErrors())
		})
	}
	_, err := newTestBackend(t, CPU).Configure(t.Context(), sdk.Config{JSON: json.RawMessage(`{"threads":"many"}`)})
	must.ErrorIs(t, err, sdk.ErrInvalid)
}

// The schema's defaults equal those of an empty config block.
func TestSchemaDefaults(t *testing.T) {
	t.Parallel()
	for _, f := range []Flavour{CPU, CUDA, Metal, Vulkan} {
		s, err := newTestBackend(t, f).Schema(t.Context())
		must.NoError(t, err)
		block := map[string]json.RawMessage{}
		for _, a := range s.Attributes {
			must.NotEq(t, "", a.Doc)
			block[a.Name] = a.Default
		}
		b, err := json.Marshal(block)
		must.NoError(t, err)
		c, diags, err := decodeConfig(f, b)
		must.NoError(t, err)
		must.Len(t, 0, diags)
		must.Eq(t, defaultConfig(), c)
	}
}

func TestThreads(t *testing.T) {
	t.Parallel()
	must.Eq(t, 3, config{Threads: 5}.threads(3, 2, 8))
	must.Eq(t, 5, config{Threads: 5}.threads(0, 2, 8))
	n := config{}.threads(0, 0, machineCores())
	must.GreaterEq(t, 1, n)
	must.LessEq(t, max(1, runtime.NumCPU()-1), n)
	for _, c := range []struct{ cores, workers, want int }{{8, 0, 7}, {8, 1, 7}, {8, 2, 3}, {8, 7, 1}, {8, 20, 1}, {1, 1, 1}, {2, 2, 1}} {
		must.Eq(t, c.want, shareOf(c.cores, c.workers), must.Sprintf("%+v", c))
	}
}

// A running worker takes its new share of the cores when told about other workers, unless its
// number of threads is configured.
func TestShareWhileItRuns(t *testing.T) {
	b, spec := newWorkerOf(t, tinyModel(t), 1, 64, `{"pooling":"mean"}`)
	b.cores, spec.Threads, spec.CPUWorkers = 9, 0, 8
	b.Share(1) // no model is loaded yet
	w, _ := serveWorker(t, b, spec)
	threads := func() []int {
		t.Helper()
		w.chat(t, question("Who are you?", `,"max_tokens":2`))
		var out struct{}
		w.ask(t, "/v1/embeddings", map[string]any{"model": "m", "input": "a"}, &out)
		return []int{b.served.engine.ctx.Threads(), b.served.embeds.ctx.Threads()}
	}
	must.Eq(t, []int{1, 1}, threads())
	b.Share(4)
	must.Eq(t, []int{2, 2}, threads())
	b.Share(20)
	must.Eq(t, []int{1, 1}, threads())

	b, spec = newWorkerOf(t, tinyModel(t), 1, 64, `{"pooling":"mean"}`)
	b.cores, spec.Threads = 9, 1
	w, _ = serveWorker(t, b, spec)
	b.Share(2)
	must.Eq(t, []int{1, 1}, threads())
}

func TestInfo(t *testing.T) {
	t.Parallel()
	b, ok := New(CPU, WithVersion("v1.2.3")).(*Backend)
	must.True(t, ok)
	info, err := b.Info(t.Context())
	must.NoError(t, err)
	must.Eq(t, "cpu", info.Name)
	must.Eq(t, sdk.KindWorker, info.Kind)
	must.Eq(t, "1.2.3", info.Version)
	st, err := b.Status(t.Context())
	must.NoError(t, err)
	must.Eq(t, worker.StateIdle, st.State)
	must.NoError(t, b.Drain(t.Context()))
	must.NoError(t, b.Stop(t.Context(), 0))
}
