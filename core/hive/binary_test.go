package hive

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest"
	"github.com/rbee-project/rbee/core/operation"
	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/sdktest/fake"
)

// words adds an engine of the fake worker to the fake catalog.
func (r *rig) words(ref, library string) {
	r.t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	must.NoError(r.t, w.WriteHeader(&tar.Header{Name: "lib/" + library, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(library))}))
	_, err := w.Write([]byte(library))
	must.NoError(r.t, err)
	must.NoError(r.t, w.Close())
	must.NoError(r.t, z.Close())
	must.NoError(r.t, os.WriteFile(filepath.Join(r.dir, "catalog", ref), b.Bytes(), 0o600))
}

// Several versions of a worker type coexist, and a worker keeps the one that it was started with.
func TestVersionsSideBySide(t *testing.T) {
	t.Parallel()
	r := run(t, setup{workers: "worker \"engined\" {\n  config {}\n}", change: func(o *Options) { o.Engines = []string{"fake:mirror"} }})
	r.words("words@2", "libwords.v2.so")
	r.words("words@1", "libwords.v1.so")
	r.words("mirror", "libwords.v1.so")
	newest := result1[core.WorkerBinary](r, core.Request{Operation: core.OpWorkerDownload, Type: fake.Engined})
	must.Eq(t, "engined@1.2.3-words-v2", newest.ID)
	must.Eq(t, "fake:words@2", newest.Source)
	first := r.spawn(fake.Engined)

	for _, version := range []string{"v1", "1", "1.2.3-words-v1"} {
		b := result1[core.WorkerBinary](r, core.Request{Operation: core.OpWorkerDownload, Type: fake.Engined, Version: version})
		must.Eq(t, "engined@1.2.3-words-v1", b.ID)
		must.Eq(t, "v1", b.EngineVersion)
	}
	// A reference that the plugin names has that engine's layout; any other has the layout of the
	// version.
	b := result1[core.WorkerBinary](r, core.Request{Operation: core.OpWorkerDownload, Type: fake.Engined, From: "fake:words@1"})
	must.Eq(t, "engined@1.2.3-words-v1", b.ID)
	b = result1[core.WorkerBinary](r, core.Request{Operation: core.OpWorkerDownload, Type: fake.Engined, Version: "v1", From: "fake:mirror"})
	foreign := b.ID
	must.RegexMatch(t, regexp.MustCompile(`^engined@1\.2\.3-words-1\+[0-9a-f]{12}$`), foreign)

	f := r.failure(core.Request{Operation: core.OpWorkerDownload, Type: fake.Engined, Version: "v9"})
	must.Eq(t, core.NotFound, f.Kind)
	must.StrContains(t, f.Hint, "v2 (fake:words@2), v1 (fake:words@1)")

	second := r.spawn("engined@1.2.3-words-v1")
	third := r.spawn("engined@v1") // a third version beside them
	f = r.failure(core.Request{Operation: core.OpWorkerSpawn, Type: "engined@v9", Model: "tiny"})
	must.Eq(t, core.NotFound, f.Kind)
	used := map[string][]string{}
	list, err := operation.WorkerBinaryList.Ask(t.Context(), r, core.Request{})
	must.NoError(t, err)
	for _, x := range list {
		used[x.ID] = x.InUseBy
	}
	must.Eq(t, []string{first.Worker.ID}, used["engined@1.2.3-words-v2"])
	must.SliceContainsAll(t, []string{second.Worker.ID, third.Worker.ID}, used["engined@1.2.3-words-v1"])
	must.Eq(t, []string{}, used[foreign])

	// Deleting requires naming one, and one in use is refused.
	f = r.failure(core.Request{Operation: core.OpWorkerBinaryDelete, Binary: fake.Engined})
	must.Eq(t, core.Invalid, f.Kind)
	must.StrContains(t, f.Hint, foreign+", engined@1.2.3-words-v1, engined@1.2.3-words-v2")
	gone := result1[core.WorkerBinary](r, core.Request{Operation: core.OpWorkerBinaryDelete, Binary: foreign})
	must.DirNotExists(t, gone.Path)
	must.Eq(t, core.InUse, r.failure(core.Request{Operation: core.OpWorkerBinaryDelete, Binary: "engined@1.2.3-words-v1"}).Kind)
}

func TestDownloadForeignEngine(t *testing.T) {
	t.Parallel()
	const engined = "worker \"engined\" {\n  config {}\n}"
	foreign := core.Request{Operation: core.OpWorkerDownload, Type: fake.Engined, From: "fake:evil", Force: true}
	r := run(t, setup{workers: engined, alone: true, change: func(o *Options) { o.Engines = []string{"fake:mirror", "npm:"} }})
	r.words("words@2", "libwords.v2.so")
	r.words("evil", "libwords.v2.so")
	genuine := result1[core.WorkerBinary](r, core.Request{Operation: core.OpWorkerDownload, Type: fake.Engined})
	f := r.failure(foreign)
	must.Eq(t, core.Forbidden, f.Kind)
	must.StrContains(t, f.Hint, "hive { engines { allow")
	r.stop()

	// Where the hive allows it, it is another binary, whatever version its source reports.
	r = run(t, setup{workers: engined, alone: true, dir: r.dir, change: func(o *Options) { o.Engines = []string{"fake:"} }})
	evil := result1[core.WorkerBinary](r, foreign)
	must.NotEq(t, genuine.ID, evil.ID)
	must.NotEq(t, genuine.Path, evil.Path)
	w := r.spawn(fake.Engined)
	b, err := operation.WorkerBinaryGet.Ask(t.Context(), r, core.Request{Binary: genuine.ID})
	must.NoError(t, err)
	must.Eq(t, genuine.Path, b.Path)
	must.Eq(t, "fake:words@2", b.Source)
	must.Eq(t, []string{w.Worker.ID}, b.InUseBy)
}

func TestEngineAllowed(t *testing.T) {
	t.Parallel()
	const digest = "sha256:aa"
	for _, tc := range []struct {
		allow, ref string
		want       bool
	}{
		{"npm:", "npm:@a/b@1", true},
		{"npm:@a/", "npm:@a/b@1", true},
		{"npm:@a/b", "npm:@a/b@1", true},
		{"npm:@a/b@1", "npm:@a/b@1", true},
		{"npm:@a/b@1", "npm:@a/b@12", false},
		{"npm:@a/b", "npm:@a/bc@1", false},
		{"npm:@a/", "npm:@ab/c@1", false},
		{"npm:", "http:npm:x", false},
		{"https://mirror", "https://mirror.evil/x", false},
		{"https://mirror/", "https://mirror.evil/x", false},
		{"https://mirror/", "https://user@evil/https://mirror/", false},
		{"https://mirror/e/", "https://mirror/e/x#sha256=aa", true},
		{"https://mirror/e/", "https://mirror/e/../x#sha256=aa", false},
		{"https://mirror/e/", "https://mirror/e/%2E%2e/x#sha256=aa", false},
		{"https://mirror/e/x", "https://mirror/e/x#sha256=aa", true},
		{"https://mirror/", "http://mirror/x", false},
		{"sha256:aa", "anything:at/all", true},
		{"sha256:ab", "anything:at/all", false},
		{"", "npm:@a/b@1", false},
	} {
		must.Eq(t, tc.want, engineAllowed([]string{"other:", tc.allow}, tc.ref, digest), must.Sprintf("%s for %s", tc.allow, tc.ref))
	}
	must.False(t, engineAllowed(nil, "npm:x", digest))
}

func TestWorkerBinaryDelete(t *testing.T) {
	t.Parallel()
	r := run(t, setup{})
	w := r.spawn("fake")
	f := r.failure(core.Request{Operation: core.OpWorkerBinaryDelete, Binary: "fake"})
	must.Eq(t, core.InUse, f.Kind)
	must.StrContains(t, f.Message, w.Worker.ID)
	must.StrContains(t, f.Hint, "retire")
	text, err := r.ask(t.Context(), w.Worker.ID, "still here")
	must.NoError(t, err)
	must.StrContains(t, text, "still here")

	result1[core.ExitResult](r, core.Request{Operation: core.OpActiveWorkerRetire, Worker: w.Worker.ID, Grace: core.Duration(time.Second)})
	var gone core.WorkerBinary
	coretest.Eventually(t, patience, func() error { // the devices are probed once more from the same folder
		j := r.do(core.Request{Operation: core.OpWorkerBinaryDelete, Binary: "fake@1.2.3"})
		if j.Error != nil {
			return j.Error.Err()
		}
		return json.Unmarshal(j.Result, &gone)
	})
	must.Eq(t, "fake@1.2.3", gone.ID)
	must.DirNotExists(t, gone.Path)
	list, err := operation.WorkerBinaryList.Ask(t.Context(), r, core.Request{})
	must.NoError(t, err)
	must.Len(t, 0, list)
	must.Eq(t, core.NotFound, r.failure(core.Request{Operation: core.OpWorkerBinaryDelete, Binary: "fake"}).Kind)
	for _, id := range []string{"..", "../..", "fake/../..", "/etc", "fake@../../x"} {
		must.Eq(t, core.NotFound, r.failure(core.Request{Operation: core.OpWorkerBinaryDelete, Binary: id}).Kind, must.Sprint(id))
	}
	r.spawn("fake") // installed again
}

// Between choosing a binary and launching it, the binary cannot be deleted; while it is being
// deleted, it cannot be launched.
func TestDeletedBinaryIsNotLaunched(t *testing.T) {
	t.Parallel()
	r := run(t, setup{alone: true})
	b := result1[core.WorkerBinary](r, core.Request{Operation: core.OpWorkerDownload, Type: "fake"})
	_, _, release, err := r.hive.claims.holdBinary(t.Context(), b.ID)
	must.NoError(t, err)
	must.Eq(t, core.InUse, r.failure(core.Request{Operation: core.OpWorkerBinaryDelete, Binary: "fake"}).Kind)
	release()
	r.hive.claims.mu.Lock()
	r.hive.claims.leaving[b.Path] = true
	r.hive.claims.mu.Unlock()
	_, _, _, err = r.hive.claims.holdBinary(t.Context(), b.ID)
	must.Eq(t, core.Conflict, core.KindOf(err))
	must.Eq(t, core.Conflict, r.failure(core.Request{Operation: core.OpWorkerSpawn, Model: "tiny", ContextTokens: 64}).Kind)
	r.nothingLeft()
}

func TestEngineOf(t *testing.T) {
	t.Parallel()
	two := sdk.Info{Version: "0.1.0", Engine: sdk.Engine{Name: "llama.cpp", Version: "v0.5.0", Ref: "npm:@a/b@3.22.1"}, OtherEngines: []sdk.Engine{{Name: "llama.cpp", Version: "v0.4.0", Ref: "npm:@a/b@3.21.1"}}}
	for name, c := range map[string]struct {
		info    sdk.Info
		version string
		engine  string // its version
		kind    core.Kind
	}{
		"the first choice":      {two, "", "v0.5.0", ""},
		"of the engine":         {two, "v0.4.0", "v0.4.0", ""},
		"without v":             {two, "0.4.0", "v0.4.0", ""},
		"of the package":        {two, "3.21.1", "v0.4.0", ""},
		"of the whole":          {two, "0.1.0-llama.cpp-v0.4.0", "v0.4.0", ""},
		"of another plugin":     {two, "0.2.0-llama.cpp-v0.4.0", "", core.NotFound},
		"unknown":               {two, "v0.6.0", "", core.NotFound},
		"no engine":             {sdk.Info{Version: "1.0"}, "", "", ""},
		"no engine, its own":    {sdk.Info{Version: "1.0"}, "1.0", "", ""},
		"no engine, another":    {sdk.Info{Version: "1.0"}, "2.0", "", core.NotFound},
		"no engine, no version": {sdk.Info{}, "0", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e, err := engineOf("cpu", c.info, c.version)
			must.Eq(t, c.engine, e.Version)
			if c.kind == "" {
				must.NoError(t, err)
				return
			}
			must.Eq(t, c.kind, core.KindOf(err))
			must.StrContains(t, core.HintOf(err), "It has: ")
		})
	}
}

// With --now, deletion does not wait for running requests.
func TestDeleteNowCutsRunningRequests(t *testing.T) {
	t.Parallel()
	r := run(t, setup{workers: `
worker "slow" {
  plugin = "rbee-worker-fake"
  config {
    token_delay = "10m"
  }
}`})
	w := r.spawn("slow")
	answered := make(chan error, 1)
	go func() {
		_, err := r.ask(t.Context(), w.Worker.ID, "one two")
		answered <- err
	}()
	r.told(patience, func(list []core.Worker) error {
		if len(list) == 1 && list[0].Load.Active == 1 {
			return nil
		}
		return core.Errorf(core.Unavailable, "told of %v", list)
	})
	// A plain delete waits; --now hurries it.
	slow := r.submit(core.Request{Operation: core.OpWorkerProcessDelete, PID: w.PID, Grace: core.Duration(time.Hour)})
	exit := result1[core.ExitResult](r, core.Request{Operation: core.OpWorkerProcessDelete, PID: w.PID, Grace: core.Duration(time.Hour), Now: true})
	must.Eq(t, w.PID, exit.PID)
	must.False(t, exit.Forced)
	must.Error(t, <-answered)
	ended, _ := r.follow(slow.ID)
	must.Eq(t, core.JobSucceeded, ended.State)
	r.nothingLeft()
}
