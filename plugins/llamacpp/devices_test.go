package llamacpp

import (
	"encoding/json"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/llamacpp/internal/native"
	"github.com/rbee-project/rbee/plugins/sdk/worker"
)

// Every cache type, load mode and attention mode that the settings offer works on a CPU or fails
// with a reason. Answers to a plain question differ from the usual one only at near ties.
func TestEngineSettings(t *testing.T) {
	var configs []string
	for _, kind := range kvTypes() {
		configs = append(configs, `{"kv_cache_type":"`+kind+`"}`)
	}
	for _, mode := range native.LoadModes() {
		if mode != "mlock" && mode != "mmap+mlock" { // mlock needs the right to lock memory
			configs = append(configs, `{"load_mode":"`+mode+`"}`)
		}
	}
	configs = append(configs, `{"flash_attention":"on"}`, `{"flash_attention":"off"}`)
	for _, config := range configs {
		t.Run(config, func(t *testing.T) {
			_, diags, err := decodeConfig(CPU, json.RawMessage(config))
			must.NoError(t, err)
			must.SliceEmpty(t, diags)
			w := startWorker(t, 1, 256, config)
			must.Eq(t, 4, w.chat(t, question("What is a queen?", `,"max_tokens":4,"ignore_eos":true`)).Usage.CompletionTokens)
		})
	}
}

func TestDeviceSettings(t *testing.T) {
	t.Parallel()
	for text, path := range map[string]string{
		`{"devices":["cuda:0","cuda:1"]}`:                                         "",
		`{"devices":["cuda:0","cuda:1"],"tensor_split":[3,1],"split_mode":"row"}`: "",
		`{"cpu_expert_layers":-1,"gpu_layers":0}`:                                 "",
		`{"devices":["cuda:0","cuda:0"]}`:                                         "devices",
		`{"devices":["cuda:0"],"tensor_split":[3,1]}`:                             "tensor_split",
		`{"devices":["cuda:0","cuda:1"],"tensor_split":[0,0]}`:                    "tensor_split",
		`{"devices":["cuda:0","cuda:1"],"tensor_split":[-1,2]}`:                   "tensor_split",
		`{"split_mode":"diagonal"}`:                                               "split_mode",
		`{"cpu_expert_layers":-2}`:                                                "cpu_expert_layers",
		`{"load_mode":"slowly"}`:                                                  "load_mode",
		`{"kv_cache_type":"q4_0","flash_attention":"off"}`:                        "flash_attention",
		`{"keep_state":true,"keep_state_mib":0}`:                                  "keep_state_mib",
	} {
		_, diags, err := decodeConfig(CUDA, json.RawMessage(text))
		must.NoError(t, err)
		if path == "" {
			must.SliceEmpty(t, diags, must.Sprint(text))
			continue
		}
		must.Len(t, 1, diags, must.Sprint(text))
		must.Eq(t, []any{path}, diags[0].Path)
	}
	c := defaultConfig()
	c.Devices, c.TensorSplit, c.SplitMode, c.CPUExperts = []string{"cuda:0", "cuda:1"}, []float64{3, 1}, "row", 2
	must.Eq(t, native.Placement{Devices: make([]native.Device, 2), GPULayers: -1, CPUExpertLayers: 2, LoadMode: "auto", SplitMode: "row", TensorSplit: []float32{3, 1}}, c.placement(make([]native.Device, 2)))
	one := c.placement(make([]native.Device, 1)) // such as a draft model's
	must.Eq(t, "", one.SplitMode)
	must.SliceEmpty(t, one.TensorSplit)
}

// A worker type reports what its settings load beside each model.
func TestBesideOfSettings(t *testing.T) {
	t.Parallel()
	b := newTestBackend(t, CPU)
	a, d := filepath.Join(t.TempDir(), "a.gguf"), filepath.Join(t.TempDir(), "d.gguf")
	b.config.LoRA, b.config.Draft, b.config.PrefixStore = []string{a + ":0.5"}, d, 8
	f := b.fingerprint(t.Context())
	must.Eq(t, []worker.ModelFile{{Path: a, Role: worker.RoleAdapter}, {Path: d, Role: worker.RoleDraft}}, f.Beside)
	must.Eq(t, 8<<20, f.BesideBytes)
	files, bytes := b.config.beside(CUDA)
	must.Eq(t, f.Beside, files)
	must.Zero(t, bytes, must.Sprint("the store is in the machine's memory"))
	files, bytes = defaultConfig().beside(CPU)
	must.SliceEmpty(t, files)
	must.Zero(t, bytes)
}
