package coretest_test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

const module = "github.com/rbee-project/rbee"

// allowed is the import table of contributing/design.md, section 3: which packages of rbee a
// package may import. A pattern ending in /... covers a whole tree. For every package, the first
// matching row applies.
var allowed = []struct {
	packages string
	imports  []string
}{
	{"core", nil},
	{"proto/...", []string{"proto/..."}},
	{"plugins/sdk", []string{"proto/plugin/v1"}},
	{"plugins/sdk/openai", nil},
	{"plugins/sdk/origin", []string{"plugins/sdk"}},
	{"plugins/sdk/origin/origintest", nil},
	{"plugins/sdk/worker", []string{"plugins/sdk", "proto/plugin/v1", "proto/worker/v1"}},
	{"plugins/sdk/worker/child", nil},
	{"plugins/sdk/worker/forward", []string{"plugins/sdk/openai"}},
	{"plugins/sdk/worker/api", []string{"plugins/sdk/openai", "plugins/sdk/worker"}},
	{"plugins/sdk/worker/simple", []string{"plugins/sdk", "plugins/sdk/openai", "plugins/sdk/worker", "plugins/sdk/worker/api"}},
	{"plugins/sdk/catalog/simple", []string{"plugins/sdk", "plugins/sdk/catalog"}},
	{"plugins/sdk/catalog", []string{"plugins/sdk", "proto/plugin/v1", "proto/catalog/v1"}},
	{"plugins/sdk/...", []string{"plugins/sdk/...", "proto/plugin/v1", "proto/worker/v1", "proto/catalog/v1"}},
	{"plugins/jinja", nil},
	{"plugins/grammar", nil},
	{"plugins/grammar/...", []string{"plugins/grammar"}},
	{"plugins/llamacpp/internal/batch", nil},
	{"plugins/llamacpp/internal/sampler", nil},
	{"plugins/llamacpp/internal/dialogue", []string{"plugins/grammar"}},
	{"plugins/llamacpp/internal/constraint", []string{"plugins/grammar"}},
	{"plugins/llamacpp/internal/native", []string{"plugins/sdk/...", "plugins/llamacpp/internal/batch"}},
	{"plugins/llamacpp", []string{"plugins/sdk/...", "plugins/grammar", "plugins/jinja", "plugins/llamacpp/internal/..."}},
	{"plugins/llamacpp/...", []string{"plugins/sdk/..."}},
	{"plugins/...", []string{"plugins/sdk/...", "plugins/llamacpp", "plugins/jinja"}},
	{"raft/state", []string{"core", "proto/raft/v1"}},
	{"raft/fsm", []string{"core", "proto/raft/v1", "raft/state"}},
	{"raft/logstore", []string{"core", "proto/raft/v1"}},
	{"raft/node", []string{"core", "proto/raft/v1", "raft/..."}},
	{"core/gguf", []string{"core"}},
	{"core/sched", []string{"core"}},
	{"core/deploy", []string{"core", "core/sched"}},
	{"core/operation", []string{"core"}},
	{"core/setting", []string{"core"}},
	{"core/job", []string{"core", "core/disk", "core/operation", "core/wire", "proto/job/v1"}},
	{"core/download", []string{"core", "plugins/sdk", "plugins/sdk/origin"}},
	{"core/disk", nil},
	{"core/bundle", []string{"core"}},
	{"core/modelname", []string{"core"}},
	{"core/store", []string{"core", "core/disk", "core/bundle", "core/gguf", "core/modelname"}},
	{"core/hostinfo", []string{"core"}},
	{"core/config", []string{"core"}},
	{"core/pki", []string{"core", "core/disk"}},
	{"core/token", []string{"core"}},
	{"core/swarm", []string{"core"}},
	{"core/gossip", []string{"core", "core/disk", "proto/gossip/v1"}},
	{"core/ssh", []string{"core", "core/disk"}},
	{"core/rpc", []string{"core", "core/pki", "proto/options/v1"}},
	{"core/wire", []string{"core", "proto/..."}},
	{"core/confine", nil},
	{"core/pluginhost", []string{"core", "core/bundle", "core/config", "core/confine", "core/hostinfo", "core/rpc", "plugins/sdk/...", "proto/plugin/v1", "proto/worker/v1", "proto/catalog/v1"}},
	{"core/gobuild", []string{"core", "core/hostinfo"}},
	{"core/scaffold", []string{"core"}},
	{"core/plugintest", []string{"core", "plugins/sdk/..."}},
	{"core/remote", []string{"core", "core/disk", "core/job", "core/operation", "core/ssh"}},
	{"core/hive", []string{"core", "core/disk", "core/modelname", "core/operation", "core/job", "core/store", "core/download", "core/gguf", "core/hostinfo", "core/pluginhost", "core/plugintest", "core/gobuild", "core/sched", "core/wire", "core/rpc", "core/swarm", "proto/...", "plugins/sdk/..."}},
	{"core/inference/sse", []string{"plugins/sdk/openai"}},
	{"core/inference/conn", []string{"core"}},
	{"core/admission", nil},
	{"core/inference", []string{"core", "core/admission", "core/inference/conn", "core/inference/sse", "plugins/sdk/openai"}},
	{"core/registry", []string{"core", "core/rpc", "core/pki", "core/setting", "raft/node", "raft/fsm", "raft/state", "proto/queen/v1", "proto/raft/v1"}},
	{"core/queen/liveness", []string{"core", "core/wire", "core/rpc", "raft/fsm", "raft/state", "proto/..."}},
	{"core/queen/router", []string{"core", "core/registry", "core/inference", "core/sched", "core/queen/liveness", "raft/state"}},
	{"core/queen/membership", []string{"core", "core/registry", "core/gossip", "core/pki", "core/token", "core/rpc", "raft/fsm", "raft/state", "proto/..."}},
	{"core/queen/tokens", []string{"core", "core/registry", "core/setting", "core/pki", "core/token", "raft/fsm", "raft/state", "proto/raft/v1"}},
	{"core/queen/limits", []string{"core", "core/admission", "core/inference", "core/rpc", "raft/state", "proto/queen/v1"}},
	{"core/queen/hives", []string{"core", "core/operation", "core/registry", "core/sched", "core/rpc", "core/queen/liveness", "proto/..."}},
	{"core/queen/placement", []string{"core", "core/modelname", "core/operation", "core/registry", "core/sched", "core/queen/liveness", "core/queen/hives", "core/queen/router", "raft/fsm", "raft/state"}},
	{"core/queen/deployments", []string{"core", "core/deploy", "core/registry", "core/queen/liveness", "core/queen/hives", "core/queen/placement", "raft/fsm"}},
	{"core/queen/dispatch", []string{"core", "core/operation", "core/registry", "core/job", "core/wire", "core/queen/hives", "core/queen/membership", "raft/fsm", "proto/..."}},
	{"core/queen", []string{"core/registry", "core/setting", "core/queen/...", "core", "core/modelname", "core/operation", "core/job", "core/rpc", "core/swarm", "raft/fsm", "proto/..."}},
	{"core/gateway/dialect", []string{"plugins/sdk/openai"}},
	{"core/gateway/dialect/...", []string{"core", "core/gateway/dialect", "plugins/sdk/openai"}},
	{"core/gateway", []string{"core", "core/operation", "core/gateway/dialect/...", "core/inference", "plugins/sdk/openai"}},
	{"core/client", []string{"core", "core/operation", "plugins/sdk/openai"}},
	{"core/agent", []string{"core/...", "raft/node", "plugins/sdk/...", "proto/..."}},
	{"core/coretest/...", []string{"core/...", "plugins/sdk/...", "raft/fsm", "raft/state", "proto/raft/v1"}},
	{"cmd/rbee", []string{"cmd/rbee/cli"}},
	{"cmd/rbee/cli/term", []string{"core"}},
	{"contributing/examples/...", []string{"plugins/sdk/..."}},
	{"cmd/rbee/...", []string{"cmd/rbee/cli/term", "core/...", "plugins/sdk/..."}},
}

// engineOnly may be imported only below plugins/llamacpp: yzma panics at start without libffi.
var engineOnly = []string{"github.com/hybridgroup/yzma", "github.com/ebitengine/purego", "github.com/jupiterrider/ffi"}

// bindingOnly may import yzma: code that can crash the process is confined to one place. llamatest
// is for tests and checks that place.
var bindingOnly = []string{"plugins/llamacpp/internal/native", "plugins/llamacpp/llamatest"}

type goPackage struct {
	ImportPath string
	Imports    []string
}

func TestImportTable(t *testing.T) {
	t.Parallel()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Imports", module+"/...")
	out, err := cmd.Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		t.Fatalf("go list: %v\n%s", err, exit.Stderr)
	}
	must.NoError(t, err)
	seen := 0
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; seen++ {
		var p goPackage
		err := dec.Decode(&p)
		if errors.Is(err, io.EOF) {
			break
		}
		must.NoError(t, err)
		name := strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
		i := slices.IndexFunc(allowed, func(r struct {
			packages string
			imports  []string
		},
		) bool {
			return matches(r.packages, name)
		})
		if i < 0 {
			t.Errorf("package %s is in no row of the table: add it there and to contributing/design.md", name)
			continue
		}
		for _, imp := range p.Imports {
			if rel, ok := strings.CutPrefix(imp, module+"/"); ok {
				if !slices.ContainsFunc(allowed[i].imports, func(pattern string) bool { return matches(pattern, rel) }) {
					t.Errorf("%s imports %s, which its row (%s) does not allow", name, rel, allowed[i].packages)
				}
				continue
			}
			if !strings.HasPrefix(name, "plugins/llamacpp") && slices.ContainsFunc(engineOnly, func(e string) bool { return strings.HasPrefix(imp, e) }) {
				t.Errorf("%s imports %s, which only the engine may", name, imp)
			}
			if strings.HasPrefix(imp, engineOnly[0]) && !slices.Contains(bindingOnly, name) {
				t.Errorf("%s imports %s, which only %v may", name, imp, bindingOnly)
			}
			if name == "core" && strings.Contains(strings.SplitN(imp, "/", 2)[0], ".") {
				t.Errorf("core imports %s: it may use the standard library only", imp)
			}
			if slices.Contains([]string{"utils", "util", "helper", "helpers", "common", "types"}, path.Base(name)) {
				t.Errorf("package %s: name it for what it does", name)
			}
		}
	}
	must.Greater(t, 20, seen)
}

func matches(pattern, name string) bool {
	if tree, ok := strings.CutSuffix(pattern, "/..."); ok {
		return name == tree || strings.HasPrefix(name, tree+"/")
	}
	return pattern == name
}
