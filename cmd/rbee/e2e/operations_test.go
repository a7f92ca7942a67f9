package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/crypto/ssh"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/client"
	"github.com/rbee-project/rbee/core/coretest"
	"github.com/rbee-project/rbee/core/operation"
)

// contract runs the operations of the contract on one cluster, each step through queens other than
// the previous one's.
type contract struct {
	c    *cluster
	t    *testing.T // of the running step
	turn int        // counts the queens
	done map[core.Operation]bool

	key     ssh.PublicKey // of the user whose home the first queen runs in
	reached bool          // this machine has an SSH server

	first, second core.Worker // on hive-1 and hive-2, once they are spawned
	model         core.Model
	binary        core.WorkerBinary
}

// queen returns the next one.
func (o *contract) queen() *node {
	queens := o.c.queens()
	o.turn++
	return queens[o.turn%len(queens)]
}

// asJob runs a request as a job through the next queen, checks its events, and compares another
// queen's view of it.
func asJob[T any](o *contract, r core.Request) T {
	o.t.Helper()
	return asJobAt[T](o, o.queen(), r)
}

func asJobAt[T any](o *contract, q *node, r core.Request) T {
	o.t.Helper()
	cl := o.c.client(q)
	var events []core.Event
	j, err := cl.Run(o.t.Context(), r, func(e core.Event) error {
		events = append(events, e)
		return nil
	})
	must.NoError(o.t, err, must.Sprintf("%s: %s", r.Operation, core.HintOf(err)))
	o.done[r.Operation] = true
	must.Eq(o.t, r.Operation, j.Operation)
	must.Eq(o.t, core.JobSucceeded, j.State)
	count := map[core.EventKind]int{}
	for i, e := range events {
		must.Eq(o.t, int64(i+1), e.Seq)
		count[e.Kind]++
	}
	must.Eq(o.t, 1, count[core.EventResult])
	must.Eq(o.t, 1, count[core.EventEnd])
	must.Eq(o.t, core.EventEnd, events[len(events)-1].Kind)
	elsewhere, err := o.c.client(o.queen()).Job(o.t.Context(), j.ID)
	must.NoError(o.t, err)
	must.Eq(o.t, string(j.Result), string(elsewhere.Result))
	v, err := client.Result[T](j)
	must.NoError(o.t, err)
	return v
}

// fails runs a request as a job that must fail, and returns the error.
func (o *contract) fails(r core.Request) error {
	o.t.Helper()
	_, err := o.c.client(o.queen()).Run(o.t.Context(), r, nil)
	must.Error(o.t, err)
	must.NotEq(o.t, "", core.HintOf(err), must.Sprint(err))
	return err
}

// got returns the answer to a plain GET; a list is unwrapped.
func got[T any](o *contract, route string) T {
	o.t.Helper()
	a := o.queen().get(route)
	must.Eq(o.t, http.StatusOK, a.code, must.Sprint(route, a.body))
	var v T
	var wrapped struct {
		Object string          `json:"object"`
		Data   json.RawMessage `json:"data"`
	}
	body := []byte(a.body)
	if json.Unmarshal(body, &wrapped) == nil && wrapped.Object == "list" {
		body = wrapped.Data
	}
	must.NoError(o.t, json.Unmarshal(body, &v), must.Sprint(a.body))
	return v
}

// cli runs a command of rbee at the next queen and decodes its JSON.
func cli[T any](o *contract, args ...string) T {
	o.t.Helper()
	return asJSON[T](o.queen(), args...)
}

// TestOperations runs every operation of the contract against three queens and two hives with the
// real engine: as a job, by its plain GET and by its command.
func TestOperations(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.ownStores = true
	c.env = buildEnv(t)
	for i := range 3 {
		c.add(fmt.Sprintf("queen-%d", i+1), true, false)
	}
	for i := range 2 {
		c.add(fmt.Sprintf("hive-%d", i+1), false, true)
	}
	o := &contract{c: c, done: map[core.Operation]bool{}, key: identity(t, filepath.Dir(c.nodes[0].file))}
	c.join(3, 2)
	for _, step := range []struct {
		name string
		run  func(*contract)
	}{
		{"Status", (*contract).status},
		{"Settings", (*contract).settings},
		{"Hives", (*contract).hives},
		{"WorkerDownload", (*contract).workerDownload},
		{"WorkerBinaries", (*contract).workerBinaries},
		{"WorkerBuild", (*contract).workerBuild},
		{"WorkerBinaryDelete", (*contract).workerBinaryDelete},
		{"ModelDownload", (*contract).modelDownload},
		{"Models", (*contract).models},
		{"WorkerSpawn", (*contract).workerSpawn},
		{"WorkerProcesses", (*contract).workerProcesses},
		{"ActiveWorkers", (*contract).activeWorkers},
		{"Infer", (*contract).infer},
		{"InUse", (*contract).inUse},
		{"ActiveWorkerRetire", (*contract).activeWorkerRetire},
		{"WorkerProcessDelete", (*contract).workerProcessDelete},
		{"Store", (*contract).storeVerifyAndGC},
		{"ModelDelete", (*contract).modelDelete},
		{"OverSSH", (*contract).overSSH},
		{"Questions", (*contract).questions},
	} {
		if !t.Run(step.name, func(t *testing.T) {
			o.t = t
			step.run(o)
		}) {
			t.FailNow() // later steps depend on it
		}
	}
	for _, spec := range operation.All() {
		if (spec.Number > 0 || spec.AsksHive) && !o.done[spec.Name] && (spec.Runs != operation.RunsOverSSH || o.reached) {
			t.Errorf("no step runs %s", spec.Name)
		}
	}
}

// questions asks a hive everything that needs no arguments, in all three ways.
func (o *contract) questions() {
	for _, s := range operation.All() {
		if !s.AsksOnlyHive() || s.Get == "" {
			continue
		}
		r := core.Request{Operation: s.Name, Hive: "hive-1"}
		path, err := s.Path(r)
		must.NoError(o.t, err)
		for way, text := range map[string]json.RawMessage{
			"job": asJob[json.RawMessage](o, r), "GET": got[json.RawMessage](o, path),
			"command": cli[json.RawMessage](o, append(strings.Fields(s.CLI[0]), "--hive", "hive-1")...),
		} {
			v, err := s.Receive(text)
			must.NoError(o.t, err, must.Sprint(s.Name, way))
			must.Eq(o.t, s.ResultType(), strings.NewReplacer("core.", "", "operation.", "").Replace(fmt.Sprintf("%T", v)))
			must.NotEq(o.t, "null", string(text), must.Sprint(s.Name, way))
		}
	}
	items := asJob[[]core.CatalogItem](o, core.Request{Operation: core.OpCatalogSearch, Hive: "hive-1", Text: "rbee-tiny", Source: "builtin"})
	must.Eq(o.t, items, got[[]core.CatalogItem](o, "/v1/hives/hive-1/catalog?q=rbee-tiny&source=builtin"))
	must.SliceContainsFunc(o.t, items, "builtin:rbee-tiny", func(i core.CatalogItem, ref string) bool { return i.Ref == ref })
}

func (o *contract) status() {
	for _, s := range []core.Status{
		asJob[core.Status](o, core.Request{Operation: core.OpStatus}), got[core.Status](o, "/v1/status"), cli[core.Status](o, "status"),
	} {
		must.Len(o.t, 3, s.Queens)
		must.Len(o.t, 2, s.Hives)
		must.SliceEmpty(o.t, s.Problems)
	}
}

func (o *contract) settings() {
	is := func(value string, set bool) {
		o.t.Helper()
		list := core.OpSettingList
		for _, l := range [][]core.Setting{asJob[[]core.Setting](o, core.Request{Operation: list}), got[[]core.Setting](o, "/v1/settings"), cli[[]core.Setting](o, "operator", "setting", "list")} {
			i := slices.IndexFunc(l, func(s core.Setting) bool { return s.Name == "token_grace" })
			must.NonNegative(o.t, i)
			must.Eq(o.t, value, l[i].Value)
			must.Eq(o.t, set, l[i].Set)
		}
	}
	is("", false)
	set := core.Request{Operation: core.OpSettingSet, Setting: "token_grace", Value: "30m"}
	must.True(o.t, asJob[core.Setting](o, set).Set)
	is("30m", true)
	must.False(o.t, cli[core.Setting](o, "operator", "setting", "reset", "token_grace").Set)
	is("", false)
	set.Setting = "token_grce"
	must.Eq(o.t, core.NotFound, core.KindOf(o.fails(set)))
	set.Setting, set.Value = "token_grace", "-1s"
	must.Eq(o.t, core.Invalid, core.KindOf(o.fails(set)))
}

func (o *contract) hives() {
	t := o.t
	hive := o.c.nodeNamed("hive-1").id()
	for _, l := range [][]core.Hive{asJob[[]core.Hive](o, core.Request{Operation: core.OpHiveList}), got[[]core.Hive](o, "/v1/hives"), cli[[]core.Hive](o, "hive", "list")} {
		must.Len(t, 2, l)
	}
	for _, h := range []core.Hive{
		asJob[core.Hive](o, core.Request{Operation: core.OpHiveGet, Hive: "hive-1"}), got[core.Hive](o, "/v1/hives/hive-1"), cli[core.Hive](o, "hive", "get", "hive-1"),
	} {
		must.Eq(t, hive, h.ID)
		must.Eq(t, core.HiveReady, h.Status)
		must.Positive(t, h.Devices[0].TotalBytes)
	}
	for _, h := range []core.HiveHealth{
		asJob[core.HiveHealth](o, core.Request{Operation: core.OpHiveStatus, Hive: "hive-1"}),
		got[core.HiveHealth](o, "/v1/hives/hive-1/status"), cli[core.HiveHealth](o, "hive", "status", "hive-1"),
	} {
		must.Eq(t, hive, h.Hive.ID)
	}
	must.Eq(t, core.NotFound, core.KindOf(o.fails(core.Request{Operation: core.OpHiveGet, Hive: "hive-9"})))
	asJob[core.RefreshResult](o, core.Request{Operation: core.OpHiveRefreshCapabilities, Hive: "hive-1"})
	cli[core.RefreshResult](o, "hive", "refresh", "hive-2")
}

func (o *contract) workerDownload() {
	must.SliceEmpty(o.t, got[[]core.WorkerBinary](o, "/v1/hives/hive-1/binaries")) // an empty list is not an error
	b := asJob[core.WorkerBinary](o, core.Request{Operation: core.OpWorkerDownload, Type: "cpu", Hive: "hive-1"})
	must.Eq(o.t, "cpu", b.Type)
	must.Eq(o.t, "", b.Problem)
	must.SliceNotEmpty(o.t, b.Devices)
	o.binary = cli[core.WorkerBinary](o, "worker", "download", "cpu", "--hive", "hive-2")
	must.Eq(o.t, b.Digest, o.binary.Digest)
}

func (o *contract) workerBinaries() {
	for _, l := range [][]core.WorkerBinary{
		asJob[[]core.WorkerBinary](o, core.Request{Operation: core.OpWorkerBinaryList, Hive: "hive-2"}),
		got[[]core.WorkerBinary](o, "/v1/hives/hive-2/binaries"), cli[[]core.WorkerBinary](o, "worker", "binary", "list", "--hive", "hive-2"),
	} {
		must.Len(o.t, 1, l)
		must.Eq(o.t, o.binary.ID, l[0].ID)
	}
	for _, b := range []core.WorkerBinary{
		asJob[core.WorkerBinary](o, core.Request{Operation: core.OpWorkerBinaryGet, Hive: "hive-2", Binary: "cpu"}),
		got[core.WorkerBinary](o, "/v1/hives/hive-2/binaries/cpu"), cli[core.WorkerBinary](o, "worker", "binary", "get", "cpu", "--hive", "hive-2"),
	} {
		must.Eq(o.t, o.binary.ID, b.ID)
		must.SliceNotEmpty(o.t, b.Files)
	}
}

func (o *contract) modelDownload() {
	o.model = asJob[core.Model](o, core.Request{Operation: core.OpModelDownload, Model: "builtin:rbee-tiny", Hive: "hive-1"})
	must.Eq(o.t, "rbee-tiny", o.model.ID)
	m := cli[core.Model](o, "pull", "rbee-tiny", "--hive", "hive-2")
	must.Eq(o.t, o.model.Digest, m.Digest)
	must.Eq(o.t, core.NotFound, core.KindOf(o.fails(core.Request{Operation: core.OpModelDownload, Model: "builtin:rbee-tinny", Hive: "hive-1"})))
}

func (o *contract) models() {
	for _, l := range [][]core.Model{
		asJob[[]core.Model](o, core.Request{Operation: core.OpModelList, Hive: "hive-1"}), got[[]core.Model](o, "/v1/hives/hive-1/models"),
		cli[[]core.Model](o, "model", "list", "--hive", "hive-1"), cli[[]core.Model](o, "ls"),
	} {
		must.Len(o.t, 1, l)
		must.Eq(o.t, o.model.Digest, l[0].Digest)
	}
	for _, m := range []core.Model{
		asJob[core.Model](o, core.Request{Operation: core.OpModelGet, Hive: "hive-2", Model: "rbee-tiny"}),
		got[core.Model](o, "/v1/hives/hive-2/models/rbee-tiny"), cli[core.Model](o, "model", "get", "rbee-tiny"),
	} {
		must.Eq(o.t, o.model.Digest, m.Digest)
		must.SliceNotEmpty(o.t, m.Files)
	}
}

func (o *contract) workerSpawn() {
	r := core.Request{Operation: core.OpWorkerSpawn, Model: "rbee-tiny", Hive: "hive-1", Threads: 1, Slots: 2, RequestID: "operations-spawn"}
	s := asJob[core.SpawnResult](o, r)
	must.Positive(o.t, s.PID)
	must.Eq(o.t, 2, s.Worker.Slots)
	o.first = s.Worker
	again := asJob[core.SpawnResult](o, r) // through another queen, and still one worker
	must.Eq(o.t, o.first.ID, again.Worker.ID)
	o.second = cli[core.SpawnResult](o, "worker", "spawn", "--model", "rbee-tiny", "--hive", "hive-2", "--threads", "1").Worker
	// They already run their current plugin: nothing is replaced.
	must.SliceEmpty(o.t, asJob[core.UpgradeResult](o, core.Request{Operation: core.OpWorkerUpgrade, Type: "cpu", Hive: "hive-1"}).Replaced)
	must.SliceEmpty(o.t, cli[core.UpgradeResult](o, "worker", "upgrade", "cpu", "--hive", "hive-2").Replaced)
	must.ErrorContains(o.t, o.fails(core.Request{Operation: core.OpWorkerSpawn, Model: "rbee-tiny", Hive: "hive-1", Slots: 1024, ContextTokens: 1 << 24}), "trained for")
}

func (o *contract) workerProcesses() {
	for _, l := range [][]core.Process{
		asJob[[]core.Process](o, core.Request{Operation: core.OpWorkerProcessList, Hive: "hive-1"}),
		got[[]core.Process](o, "/v1/hives/hive-1/processes"), cli[[]core.Process](o, "worker", "process", "list", "--hive", "hive-1"),
	} {
		must.Len(o.t, 1, l)
		must.Eq(o.t, o.first.ID, l[0].WorkerID)
		must.Positive(o.t, l[0].MemoryBytes)
	}
	pid := got[[]core.Process](o, "/v1/hives/hive-1/processes")[0].PID
	for _, p := range []core.Process{
		asJob[core.Process](o, core.Request{Operation: core.OpWorkerProcessGet, Hive: "hive-1", PID: pid}),
		got[core.Process](o, fmt.Sprintf("/v1/hives/hive-1/processes/%d", pid)), cli[core.Process](o, "worker", "process", "get", fmt.Sprint(pid), "--hive", "hive-1"),
	} {
		must.Eq(o.t, pid, p.PID)
		must.SliceNotEmpty(o.t, p.CommandLine)
	}
	must.Eq(o.t, core.NotFound, core.KindOf(o.fails(core.Request{Operation: core.OpWorkerProcessGet, Hive: "hive-1", PID: 1})))
}

func (o *contract) activeWorkers() {
	for _, l := range [][]core.Worker{
		asJob[[]core.Worker](o, core.Request{Operation: core.OpActiveWorkerList}), got[[]core.Worker](o, "/v1/workers"), cli[[]core.Worker](o, "ps"),
		cli[[]core.Worker](o, "worker", "list", "--stale"),
	} {
		must.Len(o.t, 2, l)
	}
	for _, w := range []core.Worker{
		asJob[core.Worker](o, core.Request{Operation: core.OpActiveWorkerGet, Worker: o.first.ID[:8]}),
		got[core.Worker](o, "/v1/workers/"+o.first.ID), cli[core.Worker](o, "worker", "get", o.first.ID[:8]),
	} {
		must.Eq(o.t, o.first.ID, w.ID)
		must.Eq(o.t, core.WorkerReady, w.State)
	}
}

func (o *contract) infer() {
	r := asJob[core.InferResult](o, core.Request{Operation: core.OpInfer, Model: "rbee-tiny", Prompt: "What is a queen?", MaxTokens: 64})
	must.StrContains(o.t, r.Text, "queen")
	for _, q := range o.c.queens() {
		out := q.must("infer", "--model", "rbee-tiny", "--prompt", "What is a queen?", "--temperature", "0")
		must.StrContains(o.t, out, "coordinates everything")
		_, _, err := o.c.client(q).Chat(o.t.Context(), tinyQuestion(8))
		must.NoError(o.t, err)
	}
}

// inUse checks that what a worker needs cannot be removed while it runs.
func (o *contract) inUse() {
	err := o.fails(core.Request{Operation: core.OpModelDelete, Model: "rbee-tiny", Hive: "hive-1"})
	must.Eq(o.t, core.InUse, core.KindOf(err))
	must.ErrorContains(o.t, err, o.first.ID)
	err = o.fails(core.Request{Operation: core.OpWorkerBinaryDelete, Binary: "cpu", Hive: "hive-1"})
	must.Eq(o.t, core.InUse, core.KindOf(err))
	must.ErrorContains(o.t, err, o.first.ID)
}

func (o *contract) activeWorkerRetire() {
	r := asJob[core.ExitResult](o, core.Request{Operation: core.OpActiveWorkerRetire, Worker: o.first.ID})
	must.Eq(o.t, o.first.ID, r.WorkerID)
	must.False(o.t, r.Forced)
	for _, q := range o.c.queens() {
		coretest.Eventually(o.t, patience, func() error {
			if strings.Contains(q.get("/v1/workers?consistency=stale").body, o.first.ID) {
				return errors.New("the worker is still in a replica")
			}
			return nil
		})
	}
	must.SliceEmpty(o.t, got[[]core.Process](o, "/v1/hives/hive-1/processes"))
}

func (o *contract) workerProcessDelete() {
	spawned := cli[core.SpawnResult](o, "worker", "spawn", "--model", "rbee-tiny", "--hive", "hive-1", "--threads", "1")
	r := asJob[core.ExitResult](o, core.Request{Operation: core.OpWorkerProcessDelete, Hive: "hive-1", PID: spawned.PID})
	must.Eq(o.t, spawned.Worker.ID, r.WorkerID)
	pid := got[[]core.Process](o, "/v1/hives/hive-2/processes")[0].PID
	cli[core.ExitResult](o, "worker", "process", "delete", fmt.Sprint(pid), "--hive", "hive-2", "--yes")
	must.SliceEmpty(o.t, got[[]core.Process](o, "/v1/hives/hive-2/processes"))
}

func (o *contract) storeVerifyAndGC() {
	must.SliceEmpty(o.t, asJob[core.StoreVerifyResult](o, core.Request{Operation: core.OpStoreVerify, Hive: "hive-1"}).Damaged)
	asJob[core.StoreGCResult](o, core.Request{Operation: core.OpStoreGC, Hive: "hive-1"})
	must.Len(o.t, 1, got[[]core.Model](o, "/v1/hives/hive-1/models")) // what may still be wanted stays
}

func (o *contract) modelDelete() {
	r := asJob[core.ModelDeleteResult](o, core.Request{Operation: core.OpModelDelete, Model: "rbee-tiny", Hive: "hive-1"})
	must.Positive(o.t, r.FreedBytes)
	o.queen().must("rm", "rbee-tiny", "--hive", "hive-2", "--yes")
	must.SliceEmpty(o.t, got[[]core.Model](o, "/v1/hives/hive-2/models"))
	// Names that lead out of the store name no model.
	for _, name := range []string{"../models/rbee-tiny", "..", path.Join("/", "etc", "passwd"), "a:b"} {
		must.True(o.t, slices.Contains([]core.Kind{core.NotFound, core.Invalid}, core.KindOf(o.fails(core.Request{Operation: core.OpModelDelete, Model: name, Hive: "hive-2"}))))
	}
}

// overSSH makes the first queen's user add another machine, and remove it again.
func (o *contract) overSSH() {
	t, q := o.t, o.c.nodeNamed("queen-1")
	server := startSSHD(t, o.key)
	o.reached = true
	t.Cleanup(func() { endAgentsOf(t, server.home) })
	config := filepath.Join(filepath.Dir(q.file), ".ssh", "config")
	must.NoError(t, os.WriteFile(config, fmt.Appendf(nil, "Host box\n  HostName 127.0.0.1\n  Port %d\n", server.port), 0o600))
	must.Len(t, 1, asJobAt[core.ImportResult](o, q, core.Request{Operation: core.OpHiveImportSSH}).Added)
	must.True(t, asJobAt[core.SSHTest](o, q, core.Request{Operation: core.OpSSHTest, Host: "box", HostKey: server.fingerprint}).OK)
	r := core.Request{Operation: core.OpHiveInstall, Host: "box", Service: "none", Bind: o.c.net + ".77"}
	installed := asJobAt[core.InstallResult](o, q, r)
	must.Eq(t, core.HiveReady, got[core.Hive](o, "/v1/hives/box").Status)
	r = core.Request{Host: "box"}
	for _, op := range []core.Operation{core.OpHiveStop, core.OpHiveStart} {
		r.Operation = op
		must.False(t, asJobAt[core.InstallResult](o, q, r).Already)
		must.True(t, asJobAt[core.InstallResult](o, q, r).Already)
	}
	r.Operation = core.OpHiveUninstall
	must.Eq(t, installed.Hive, asJobAt[core.UninstallResult](o, q, r).Hive)
	for _, h := range got[[]core.Hive](o, "/v1/hives") {
		must.NotEq(t, installed.Hive, h.ID)
	}
}
