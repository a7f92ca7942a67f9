package main

import (
	"fmt"
	"regexp"
	"runtime"
	"strconv"
	"strings"

	"github.com/rbee-project/rbee/plugins/sdk/worker"
)

// preset describes a kind of server.
type preset struct {
	command []string
	env     []string // NAME=value; overrides the same names
	health  string   // path; empty: /v1/models
	// can lists capabilities that need no trial, for a server without the routes that trials use.
	can []worker.Capability
}

// presets returns the known servers. An argument whose value is unset is omitted, with the option
// before it: see expand.
func presets() map[string]preset {
	return map[string]preset{
		// A Unix socket, as a port would be open to everybody on the machine. --ctx-size is the
		// total of all slots. --offline, as it would otherwise fetch a model from the network.
		"llama-server": {command: []string{
			"llama-server", "--offline", "--host", "${socket}", "--model", "${model.path}", "--alias", "${model.id}",
			"--parallel", "${slots}", "--ctx-size", "${context_total}", "--threads", "${threads}", "--n-gpu-layers", "${layers}",
		}},
		"vllm": {command: []string{
			"vllm", "serve", "${model.name}", "--host", "127.0.0.1", "--port", "${port}", "--served-model-name", "${model.id}",
			"--max-num-seqs", "${slots}", "--max-model-len", "${context}",
		}},
		"sglang": {command: []string{
			"python3", "-m", "sglang.launch_server", "--model-path", "${model.name}", "--host", "127.0.0.1", "--port", "${port}",
			"--served-model-name", "${model.id}", "--max-running-requests", "${slots}", "--context-length", "${context}",
		}},
		"ollama": {
			command: []string{"ollama", "serve"},
			env: []string{
				"OLLAMA_HOST=127.0.0.1:${port}", "OLLAMA_NUM_PARALLEL=${slots}", "OLLAMA_CONTEXT_LENGTH=${context}", "OLLAMA_KEEP_ALIVE=-1",
			},
		},
		"whisper-server": {
			command: []string{
				"whisper-server", "--model", "${model.path}", "--host", "127.0.0.1", "--port", "${port}",
				"--inference-path", "/v1/audio/transcriptions", "--threads", "${threads}",
			},
			health: "/",
			can:    []worker.Capability{"transcription"},
		},
	}
}

// names returns the names that a command line may contain as ${name}.
func names() []string {
	return []string{"model.path", "model.id", "model.name", "port", "socket", "context", "context_total", "slots", "threads", "device", "layers"}
}

var placeholder = regexp.MustCompile(`\$\{([^}]*)\}`)

// unknownName returns the first unknown name in an argument; empty: none.
func unknownName(arg string) string {
	for _, m := range placeholder.FindAllStringSubmatch(arg, -1) {
		known := false
		for _, n := range names() {
			known = known || n == m[1]
		}
		if !known {
			return m[1]
		}
	}
	return ""
}

// values maps the names of a command line to their values. Empty: unset.
type values map[string]string

func valuesOf(s worker.StartSpec, name string, port int, socket string) values {
	if s.Threads == 0 {
		// Servers take all cores, and their threads spin while they wait: with any other load, the
		// last core costs more than it gains.
		s.Threads = max(1, runtime.NumCPU()/2)
	}
	number := func(n int) string {
		if n == 0 {
			return ""
		}
		return strconv.Itoa(n)
	}
	v := values{
		"model.path": s.ModelPath, "model.id": s.ModelID, "model.name": name, "port": strconv.Itoa(port), "socket": socket,
		"context": number(s.ContextTokens), "context_total": number(s.ContextTokens * s.Slots), "slots": strconv.Itoa(s.Slots),
		"threads": number(s.Threads), "device": s.Device,
	}
	if s.Device == "cpu" {
		v["layers"] = "0" // a server built for GPUs would use one
	}
	return v
}

// expand replaces the names in a command line. An argument that contains an unset name is omitted,
// with the option before it.
func (v values) expand(template []string) []string {
	var out []string
	for _, arg := range template {
		missing := false
		text := placeholder.ReplaceAllStringFunc(arg, func(m string) string {
			value := v[m[2:len(m)-1]]
			missing = missing || value == ""
			return value
		})
		if !missing {
			out = append(out, text)
			continue
		}
		if n := len(out); n > 1 && strings.HasPrefix(out[n-1], "-") && !strings.HasPrefix(arg, "-") {
			out = out[:n-1]
		}
	}
	return out
}

// deviceEnv returns the variables that restrict a server to its device.
func deviceEnv(device string) []string {
	kind, n, ok := strings.Cut(device, ":")
	if _, err := strconv.Atoi(n); !ok || err != nil {
		return nil
	}
	switch kind {
	case "cuda":
		return []string{"CUDA_DEVICE_ORDER=PCI_BUS_ID", fmt.Sprintf("CUDA_VISIBLE_DEVICES=%s", n)}
	case "rocm":
		return []string{fmt.Sprintf("HIP_VISIBLE_DEVICES=%s", n)}
	}
	return nil
}
