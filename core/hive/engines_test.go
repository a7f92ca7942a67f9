package hive

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest"
	"github.com/rbee-project/rbee/core/pluginhost"
	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/sdktest/fake"
	sdkworker "github.com/rbee-project/rbee/plugins/sdk/worker"
)

// toldProblem waits until the queens have received exactly one problem, which has the texts;
// without texts: until they have received none.
func (r *rig) toldProblem(texts ...string) {
	r.t.Helper()
	coretest.Eventually(r.t, patience, func() error {
		told := r.queen.hive().Problems
		if len(texts) == 0 && len(told) == 0 {
			return nil
		}
		if len(texts) > 0 && len(told) == 1 {
			missing := false
			for _, s := range texts {
				missing = missing || !strings.Contains(told[0], s)
			}
			if !missing {
				return nil
			}
		}
		return fmt.Errorf("told: %q, want %q", told, texts)
	})
}

// An engine that cannot be fetched is reported before a request needs it, and again when its bytes
// turn out to be wrong; the report ends once it is installed.
func TestEngineFetchFails(t *testing.T) {
	t.Parallel()
	r := run(t, setup{workers: "worker \"engined\" {\n  config {}\n}"})
	r.toldProblem("engined cannot be installed", "words@2")
	r.words("words@2", "libother.so") // it lacks what the plugin declares
	_, err := r.hive.refreshCapabilities(t.Context(), core.Request{})
	must.NoError(t, err)
	r.toldProblem() // its source has it now
	r.failure(core.Request{Operation: core.OpWorkerDownload, Type: fake.Engined})
	r.toldProblem("engined cannot be installed", "libwords.v2.so")
	must.NoError(t, os.Remove(filepath.Join(r.dir, "catalog", "words@2")))
	r.words("words@2", "libwords.v2.so")
	result1[core.WorkerBinary](r, core.Request{Operation: core.OpWorkerDownload, Type: fake.Engined})
	r.toldProblem()
}

// A catalog source that has an engine does not clear the report of its wrong bytes.
func TestEngineWithWrongBytesStaysNamed(t *testing.T) {
	t.Parallel()
	r := run(t, setup{workers: "worker \"engined\" {\n  config {}\n}"})
	r.words("words@2", "libwords.v2.so")
	h := r.hive
	typ, err := h.types.workerType(fake.Engined)
	must.NoError(t, err)
	h.engines.engineTried(t.Context(), typ, core.Errorf(core.Integrity, "wrong digest").Hint("Ask its publisher."))
	h.engines.checkEngine(t.Context(), typ, map[*workerType]string{})
	must.SliceContains(t, h.types.problems(), "worker type engined cannot be installed: wrong digest (Ask its publisher.)")
}

func named(typ string) pluginhost.Spec { return pluginhost.Spec{Name: typ} }

func TestHiveProblems(t *testing.T) {
	t.Parallel()
	view := func(name, problem string) *workerType {
		w := newType(named(name))
		w.note(sdk.Info{Name: name}, sdkworker.Fingerprint{Problem: problem}, "")
		return w
	}
	for _, tc := range []struct {
		name  string
		types []*workerType
		want  []string // part of each
	}{
		{"no plugin", nil, []string{"no worker plugin"}},
		{"one that works", []*workerType{view("openai", ""), view("cuda", "no card")}, nil},
		{"none that works", []*workerType{view("metal", "no Metal"), view("cuda", "no card")}, []string{"metal: no Metal; cuda: no card"}},
		{"a machine without a build", []*workerType{view("cpu", "there is no build for "+runtime.GOOS), view("openai", "")}, []string{"cpu cannot be used: there is no build"}},
		{"not probed yet", []*workerType{newType(named("cpu"))}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			ts := &typeSet{list: tc.types}
			got := ts.problems()
			must.Len(t, len(tc.want), got)
			for i, want := range tc.want {
				must.StrContains(t, got[i], want)
			}
		})
	}
}
