package liveness_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"
	"google.golang.org/protobuf/proto"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest/memregistry"
	"github.com/rbee-project/rbee/core/coretest/simhive"
	"github.com/rbee-project/rbee/core/queen/liveness"
	"github.com/rbee-project/rbee/core/wire"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
	"github.com/rbee-project/rbee/raft/fsm"
)

func TestManyHivesReportLessOften(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newRig(t)
		var last time.Duration
		for i := range 100 {
			last = simhive.New(fmt.Sprint("h", i), 0).MustTell(t, c.Monitor)
			must.Eq(t, max(time.Second, time.Duration(i+1)*time.Second/50), last)
		}
		must.Eq(t, 2*time.Second, last)
	})
}

func TestReportOfBoundsProblems(t *testing.T) {
	t.Parallel()
	told := core.Hive{ID: "h"}
	for i := range 100 {
		told.Problems = append(told.Problems, fmt.Sprint(i, "\nnot a line ", strings.Repeat("x", 1<<16)))
	}
	r, err := liveness.ReportOf(&queenv1.LinkRequest{Hive: wire.HiveToProto(told)}, time.Now())
	must.NoError(t, err)
	must.Len(t, core.MaxHiveProblems, r.Hive.Problems)
	for _, p := range r.Hive.Problems {
		must.LessEq(t, fsm.MaxTextBytes, len(p))
		must.StrNotContains(t, p, "\n")
	}
}

// FuzzReport checks that no report makes the queen panic, and that repeating an accepted one
// changes nothing in the registry.
func FuzzReport(f *testing.F) {
	for _, r := range []*queenv1.LinkRequest{
		{},
		{Hive: &queenv1.Hive{Id: "h", Name: "n", Incarnation: 1, WorkerTypes: []string{"b", "a", "b"}}},
		{
			Hive:    wire.HiveToProto(core.Hive{ID: "h", Devices: []core.Device{{ID: "cuda:0", Problem: "x\ny\x00"}, {ID: "cpu", TotalBytes: 5, FreeBytes: -1}}}),
			Workers: []*queenv1.Worker{{Id: "w", Type: "cpu", State: "ready", Nonce: "n", Slots: 4, Load: &queenv1.Load{Active: 1}}, {Id: "a", Type: "cpu", State: "failed", Nonce: "m"}},
		},
		{Hive: &queenv1.Hive{Id: "h", Name: strings.Repeat("ä", 600)}},
		{
			Hive:      &queenv1.Hive{Id: "h"},
			Inventory: &queenv1.Inventory{Models: []*queenv1.StoredModel{{Id: "m", Aliases: []string{"n"}, SizeBytes: -1}, {Id: "a"}}, Offers: []*queenv1.Offer{{Ref: "builtin:m"}}, OffersKnown: true},
		},
	} {
		data, err := proto.Marshal(r)
		must.NoError(f, err)
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var r queenv1.LinkRequest
		if proto.Unmarshal(data, &r) != nil {
			return
		}
		b, err := liveness.ReportOf(&r, time.Unix(1, 0))
		if err == nil {
			err = b.Check()
		}
		if err != nil {
			must.NotEq(t, "", core.HintOf(err))
			return
		}
		registry := memregistry.New()
		_, err = registry.Apply(t.Context(), "", fsm.SyncHive(b.Hive, b.Workers))
		must.NoError(t, err)
		told := *b
		told.Workers = slices.Clone(b.Workers)
		must.True(t, b.Registered(registry))
		must.Eq(t, told.Hive.Devices, b.Hive.Devices)
		for i := range told.Workers {
			must.Eq(t, told.Workers[i].Load, b.Workers[i].Load)
			must.Eq(t, told.Workers[i].Load, b.Find(told.Workers[i].ID, told.Workers[i].Nonce).Load)
			must.Nil(t, b.Find(told.Workers[i].ID, "another start"))
		}
	})
}
