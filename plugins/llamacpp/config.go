package llamacpp

import (
	"bytes"
	"encoding/json"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/shirou/gopsutil/v4/cpu"
	"github.com/shirou/gopsutil/v4/mem"

	"github.com/rbee-project/rbee/plugins/llamacpp/internal/native"
	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/worker"
)

// config is the config block of the worker types.
type config struct {
	Threads       int      `json:"threads"`
	BatchTokens   int      `json:"batch_tokens"`
	PromptChunk   int      `json:"prompt_chunk"`
	PromptPause   int      `json:"prompt_pause_ms"`
	ContextTokens int      `json:"context_tokens"`
	KVCacheType   string   `json:"kv_cache_type"`
	Pooling       string   `json:"pooling"`
	Queue         int      `json:"queue"`
	PrefixStore   int      `json:"prefix_store_mib"`
	Repack        bool     `json:"repack"`
	Speculation   bool     `json:"speculation"`
	Draft         string   `json:"draft"`
	LoRA          []string `json:"lora"`
	KeepState     bool     `json:"keep_state"`
	KeepStateMiB  int      `json:"keep_state_mib"`

	FlashAttention string `json:"flash_attention"`
	LoadMode       string `json:"load_mode"`

	GPULayers   int       `json:"gpu_layers"`
	Devices     []string  `json:"devices"`
	SplitMode   string    `json:"split_mode"`
	TensorSplit []float64 `json:"tensor_split"`
	CPUExperts  int       `json:"cpu_expert_layers"`
}

func defaultConfig() config {
	return config{
		BatchTokens: 512, PromptPause: 100, ContextTokens: 4096, KVCacheType: "f16", Pooling: poolingOfModel, Queue: 64, PrefixStore: -1, Repack: true, Speculation: true, LoRA: []string{},
		KeepStateMiB: 256, FlashAttention: "auto", LoadMode: "auto", GPULayers: -1, Devices: []string{}, SplitMode: "layer", TensorSplit: []float64{},
	}
}

// kvTypes returns the supported cache types, the default first.
func kvTypes() []string {
	return []string{"f16", "bf16", "f32", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"}
}

// choice is a setting with a fixed set of values, the default first.
type choice struct {
	name   string
	values []string
	doc    string
	get    func(config) string
}

// choices returns those settings, for the schema and for validation.
func choices(f Flavour) []choice {
	list := []choice{
		{"kv_cache_type", kvTypes(), "Number type of the context cache. q8_0 takes half the memory of f16, q4_0 a quarter, f32 twice. Quantised types need flash attention.", func(c config) string { return c.KVCacheType }},
		{"pooling", poolingNames(), "How the vectors of a text's tokens are pooled into its embedding. \"model\" uses the setting in the model's file; without one, the model has no embeddings.", func(c config) string { return c.Pooling }},
		{"flash_attention", []string{"auto", "on", "off"}, "Flash attention. \"auto\" uses it where the device supports it for the model.", func(c config) string { return c.FlashAttention }},
		{"load_mode", native.LoadModes(), "How a model's file is loaded. \"mmap\" maps it, so that the system may drop unused parts and read them again; \"none\" reads it; \"mlock\" reads it and locks it in memory, \"mmap+mlock\" maps and locks it; \"direct_io\" reads it bypassing the system's cache. \"auto\" is the engine's choice.", func(c config) string { return c.LoadMode }},
	}
	if f != CPU {
		list = append(list, choice{"split_mode", native.SplitModes(), "How a model is split when devices names several: \"layer\" puts some layers with their cache on each, \"row\" a part of every matrix, \"none\" uses only the first device.", func(c config) string { return c.SplitMode }})
	}
	return list
}

// threads returns the number of threads of a worker: asked if positive, else the configured number,
// else the worker's share of cores minus one, divided among workers (0: not known). A thread that
// loses its core makes all others wait, so using every core is much slower on a machine that does
// anything else.
func (c config) threads(asked, workers, cores int) int {
	if asked > 0 {
		return asked
	}
	if c.Threads > 0 {
		return c.Threads
	}
	return shareOf(cores, workers)
}

// machineCores returns the number of physical cores that this process may use.
func machineCores() int {
	cores, err := cpu.Counts(false)
	if err != nil || cores < 1 {
		cores = runtime.NumCPU()
	}
	return min(cores, runtime.NumCPU())
}

// shareOf returns a worker's share of the cores. One core stays free for everything else.
func shareOf(cores, workers int) int { return max(1, (cores-1)/max(1, workers)) }

// Defaults for the size of the prefix store.
const (
	storeShare = 16   // divisor of the free memory
	storeMost  = 1024 // MiB
)

// storeBytes returns the size of the prefix store, in bytes.
func (c config) storeBytes() int64 {
	if c.PrefixStore >= 0 {
		return int64(c.PrefixStore) << 20
	}
	m, err := mem.VirtualMemory()
	if err != nil {
		return 0
	}
	return min(int64(m.Available/storeShare), storeMost<<20)
}

// beside returns what each worker loads or allocates on its device beside its model. A prefix store
// of unconfigured size is not counted: it takes a fraction of the free memory, so it always fits.
func (c config) beside(f Flavour) (files []worker.ModelFile, bytes int64) {
	list, err := parseAdapters(c.LoRA)
	if err == nil {
		for _, a := range list {
			files = append(files, worker.ModelFile{Path: a.path, Role: worker.RoleAdapter})
		}
	}
	if c.Draft != "" {
		files = append(files, worker.ModelFile{Path: c.Draft, Role: worker.RoleDraft})
	}
	if f == CPU && c.PrefixStore > 0 { // for other devices the store is not in device memory
		bytes = int64(c.PrefixStore) << 20
	}
	return files, bytes
}

// poolingOfModel takes the pooling from the model's file.
const poolingOfModel = "model"

// poolingNames are the values of pooling, the default first.
func poolingNames() []string { return []string{poolingOfModel, "mean", "cls", "last"} }

type field struct {
	name     string
	doc      string
	min, max int
	get      func(config) int
}

// fields returns the numeric settings, for the schema and for validation.
func fields(f Flavour) []field {
	list := []field{
		{"threads", "CPU threads of a worker, unless the spawn request sets them. 0: the physical cores minus one.", 0, 1024, func(c config) int { return c.Threads }},
		{"batch_tokens", "Maximum tokens in one step of the engine.", 32, 8192, func(c config) int { return c.BatchTokens }},
		{"prompt_pause_ms", "Milliseconds by which new prompts may lengthen a step of the engine while other requests are being answered; earlier steps tell how many tokens fit. A higher number answers new requests sooner and makes running streams pause longer. When more requests wait for their first token than are being answered, the pause is up to four times as long. It is never shorter than three steps without prompts, which matters on a slow machine.", 1, 60000, func(c config) int { return c.PromptPause }},
		{"prompt_chunk", "Tokens of new prompts in such a step, instead of as many as fit into prompt_pause_ms. 0: as many as fit.", 0, 8192, func(c config) int { return c.PromptChunk }},
		{"context_tokens", "Positions per slot, unless the spawn request sets them. Never more than the model was trained for.", 64, 1 << 24, func(c config) int { return c.ContextTokens }},
		{"queue", "Requests that may wait for a slot. More are refused.", 0, 100000, func(c config) int { return c.Queue }},
	}
	list = append(list, field{
		"prefix_store_mib", fmt.Sprintf("Memory in MiB for conversations that lost their slot, so that their next turn need not be read from the beginning. 0: none. -1: a %dth of the memory that is free when the model is loaded, at most %d.", storeShare, storeMost), -1, 1 << 24,
		func(c config) int { return c.PrefixStore },
	})
	list = append(list, field{"keep_state_mib", "Maximum size of the keep_state file in MiB; the most recently used conversations are written first. Restored conversations count towards prefix_store_mib.", 1, 1 << 20, func(c config) int { return c.KeepStateMiB }})
	if f != CPU {
		list = append(list, field{"cpu_expert_layers", "Number of first layers whose experts stay in main memory and run on the CPU, in mixture-of-experts models. -1: all.", -1, 10000, func(c config) int { return c.CPUExperts }})
		list = append(list, field{"gpu_layers", "Layers of the model that go to the GPU. -1: all.", -1, 10000, func(c config) int { return c.GPULayers }})
	}
	return list
}

func schema(f Flavour) sdk.Schema {
	var s sdk.Schema
	def := defaultConfig()
	for _, x := range fields(f) {
		s.Attributes = append(s.Attributes, sdk.Attribute{Name: x.name, Type: "number", Default: fmt.Append(nil, x.get(def)), Doc: x.doc})
	}
	for _, x := range choices(f) {
		s.Attributes = append(s.Attributes, sdk.Attribute{
			Name: x.name, Type: "string", Default: json.RawMessage(strconv.Quote(x.values[0])), Doc: strings.TrimSuffix(x.doc, ".") + ". One of " + strings.Join(x.values, ", ") + ".",
		})
	}
	s.Attributes = append(s.Attributes, sdk.Attribute{
		Name: "keep_state", Type: "bool", Default: json.RawMessage("false"),
		Doc: "Keep the state of conversations in a file when a worker is unloaded to make room for another model, so that they continue where they were when it is loaded again. The file contains users' text: it is in data_dir, closed to other users, and deleted when it is read, when the model is deleted, when a worker of the model is permanently retired, and after a week.",
	})
	s.Attributes = append(s.Attributes, sdk.Attribute{
		Name: "speculation", Type: "bool", Default: json.RawMessage("true"),
		Doc: "Draft the next tokens where a text repeats itself, and check several of them in one step of the engine. Answers do not change. It is only done while measurements show that it saves time.",
	})
	s.Attributes = append(s.Attributes, sdk.Attribute{
		Name: "draft", Type: "string", Default: json.RawMessage(`""`),
		Doc: "Path of a smaller model's GGUF file, which drafts several tokens a step for the models of this worker type. It must have the same vocabulary. Answers do not change. It is only used while measurements show that it saves time. It needs memory in addition to the model's. Empty: none.",
	})
	s.Attributes = append(s.Attributes, sdk.Attribute{
		Name: "lora", Type: "list(string)", Default: json.RawMessage(`[]`),
		Doc: "Paths of LoRA adapters in GGUF format, for the models of this worker type, each optionally followed by a colon and a scale (default 1). Requests use them all, or those that they name in lora, by the file name without .gguf or by the index in the list: [{\"name\": \"x\", \"scale\": 0.5}].",
	})
	if f != CPU {
		s.Attributes = append(s.Attributes, sdk.Attribute{
			Name: "devices", Type: "list(string)", Default: json.RawMessage(`[]`),
			Doc: fmt.Sprintf("Devices that share each model, such as [\"%s:0\", \"%s:1\"]. Empty: the device that the worker is started on.", f, f),
		}, sdk.Attribute{
			Name: "tensor_split", Type: "list(number)", Default: json.RawMessage(`[]`),
			Doc: "Share of a model on each of devices: [3, 1] puts three quarters on the first. Empty: by free memory.",
		})
	}
	if f == CPU {
		s.Attributes = append(s.Attributes, sdk.Attribute{
			Name: "repack", Type: "bool", Default: json.RawMessage("true"),
			Doc: "Keep a second copy of the weights in a layout optimised for this CPU. Without it a model takes half the memory and is up to three times slower.",
		})
	}
	return s
}

// decodeConfig decodes a config block that the host has converted to JSON. Null means the default.
func decodeConfig(f Flavour, raw json.RawMessage) (config, sdk.Diagnostics, error) {
	c := defaultConfig()
	if len(bytes.TrimSpace(raw)) > 0 {
		if err := json.Unmarshal(raw, &c); err != nil {
			return c, nil, fmt.Errorf("config: %w: %w", err, sdk.ErrInvalid)
		}
	}
	var diags sdk.Diagnostics
	for _, x := range fields(f) {
		if v := x.get(c); v < x.min || v > x.max {
			diags = append(diags, sdk.Diagnostic{
				Summary: "Number out of range",
				Detail:  fmt.Sprintf("%s is %d. It must be between %d and %d.", x.name, v, x.min, x.max),
				Path:    []any{x.name},
			})
		}
	}
	for _, x := range choices(f) {
		if v := x.get(c); !slices.Contains(x.values, v) {
			diags = append(diags, sdk.Diagnostic{
				Summary: "Unknown value", Detail: fmt.Sprintf("%s is %q. It must be one of %s.", x.name, v, strings.Join(x.values, ", ")), Path: []any{x.name},
			})
		}
	}
	if c.FlashAttention == "off" && strings.HasPrefix(c.KVCacheType, "q") {
		diags = append(diags, sdk.Diagnostic{
			Summary: "Cache type needs flash attention", Detail: fmt.Sprintf("kv_cache_type is %q, and the engine has such a cache with flash attention only. Set flash_attention to \"auto\" or \"on\", or kv_cache_type to \"f16\".", c.KVCacheType), Path: []any{"flash_attention"},
		})
	}
	diags = append(diags, checkDevices(f, c)...)
	if _, err := parseAdapters(c.LoRA); err != nil {
		diags = append(diags, sdk.Diagnostic{Summary: "Bad adapter", Detail: err.Error() + ".", Path: []any{"lora"}})
	}
	if n := runtime.NumCPU(); len(diags) == 0 && c.Threads >= n && n > 1 {
		diags = append(diags, sdk.Diagnostic{
			Severity: sdk.Warning,
			Summary:  "As many threads as the machine has",
			Detail:   fmt.Sprintf("threads is %d and the machine has %d. Whatever else runs there will slow the worker down many times over; leave at least one free.", c.Threads, n),
			Path:     []any{"threads"},
		})
	}
	return c, diags, nil
}
