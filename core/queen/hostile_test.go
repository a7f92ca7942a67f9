package queen

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/inference"
	"github.com/rbee-project/rbee/core/wire"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
)

// TestHostileHive lets a compromised hive send arbitrary reports, next to an honest hive. Its
// reports may be accepted or refused; what the cluster knows about the honest hive, and can
// display, must stay intact.
func TestHostileHive(t *testing.T) {
	t.Parallel()
	edit := func(f func(r *queenv1.LinkRequest)) func(h *fakeHive) []*queenv1.LinkRequest {
		return func(h *fakeHive) []*queenv1.LinkRequest {
			r := h.reportLocked()
			f(r)
			return []*queenv1.LinkRequest{r}
		}
	}
	load := func(l *queenv1.Load) func(h *fakeHive) []*queenv1.LinkRequest {
		return edit(func(r *queenv1.LinkRequest) { r.Workers[0].Load = l })
	}
	store := func(f func(v *queenv1.Inventory)) func(h *fakeHive) []*queenv1.LinkRequest {
		return edit(func(r *queenv1.LinkRequest) {
			r.Inventory = &queenv1.Inventory{Models: []*queenv1.StoredModel{{Id: "evil", SizeBytes: 1}}, OffersKnown: true}
			f(r.Inventory)
		})
	}
	for name, says := range map[string]func(h *fakeHive) []*queenv1.LinkRequest{
		"a rate that is no number":   load(&queenv1.Load{TokensPerSecond: math.NaN()}),
		"an infinite rate":           load(&queenv1.Load{TokensPerSecond: math.Inf(1)}),
		"a negative infinite rate":   load(&queenv1.Load{TokensPerSecond: math.Inf(-1)}),
		"the largest rate":           load(&queenv1.Load{TokensPerSecond: math.MaxFloat64}),
		"negative totals":            load(&queenv1.Load{TokensTotal: math.MinInt64, KvUsedTokens: math.MinInt64}),
		"the largest numbers of all": load(&queenv1.Load{Active: math.MaxInt32, Queued: math.MaxInt32, TokensTotal: math.MaxInt64, KvUsedTokens: math.MaxInt64}),
		"more slots than exist":      edit(func(r *queenv1.LinkRequest) { r.Workers[0].Slots = math.MaxInt32 }),
		"negative context":           edit(func(r *queenv1.LinkRequest) { r.Workers[0].ContextTokens = math.MinInt32 }),
		"more free than there is":    edit(func(r *queenv1.LinkRequest) { r.Hive.Devices[0].FreeBytes = math.MaxInt64 }),
		"negative memory":            edit(func(r *queenv1.LinkRequest) { r.Hive.Devices[0].TotalBytes = math.MinInt64 }),
		"the other's worker":         edit(func(r *queenv1.LinkRequest) { r.Workers[0].Id = "w1" }),
		"the other's worker and run": edit(func(r *queenv1.LinkRequest) { r.Workers[0].Id, r.Workers[0].Nonce = "w1", "nonce-of-w1" }),
		"the other's run":            edit(func(r *queenv1.LinkRequest) { r.Workers[0].Nonce = "nonce-of-w1" }),
		"the other's name":           edit(func(r *queenv1.LinkRequest) { r.Hive.Name = "name-h1" }),
		"the last of all starts":     edit(func(r *queenv1.LinkRequest) { r.Hive.Incarnation = math.MaxUint64 }),
		"nothing at all":             edit(func(r *queenv1.LinkRequest) { r.Reset() }),
		"no hive but workers":        edit(func(r *queenv1.LinkRequest) { r.Hive = nil }),
		"empty parts": edit(func(r *queenv1.LinkRequest) {
			r.Hive.Devices = append(r.Hive.Devices, nil, nil)
			r.Workers = append(r.Workers, nil)
		}),
		"a device twice":              edit(func(r *queenv1.LinkRequest) { r.Hive.Devices = append(r.Hive.Devices, r.Hive.Devices[0]) }),
		"a worker of a type of lines": edit(func(r *queenv1.LinkRequest) { r.Workers[0].Type = "cpu\ncuda" }),
		"a model of control marks":    edit(func(r *queenv1.LinkRequest) { r.Workers[0].Model = "m\x1b[2J" }),
		"an address elsewhere":        edit(func(r *queenv1.LinkRequest) { r.Hive.RpcAddress = "not an address" }),
		"a text of a megabyte":        edit(func(r *queenv1.LinkRequest) { r.Workers[0].Version = strings.Repeat("v", 1<<20) }),
		"a name of a megabyte":        edit(func(r *queenv1.LinkRequest) { r.Hive.Name = strings.Repeat("n", 1<<20) }),
		"many devices": edit(func(r *queenv1.LinkRequest) {
			for i := range 5000 {
				r.Hive.Devices = append(r.Hive.Devices, wire.DeviceToProto(core.Device{ID: fmt.Sprint("d", i), Kind: "cpu"}))
			}
		}),
		"many types": edit(func(r *queenv1.LinkRequest) {
			for i := range 20_000 {
				r.Hive.WorkerTypes = append(r.Hive.WorkerTypes, fmt.Sprint("t", i))
			}
		}),
		"many workers": edit(func(r *queenv1.LinkRequest) {
			for i := range 20_000 {
				r.Workers = append(r.Workers, &queenv1.Worker{Id: fmt.Sprint("x", i), Nonce: fmt.Sprint("n", i), Type: "cpu", State: "ready", Model: "evil"})
			}
		}),
		"a store of many models": store(func(v *queenv1.Inventory) {
			for i := range 20_000 {
				v.Models = append(v.Models, &queenv1.StoredModel{Id: fmt.Sprint("m", i)})
			}
		}),
		"a store of a megabyte":        store(func(v *queenv1.Inventory) { v.Models[0].Damaged = strings.Repeat("d", 1<<20) }),
		"a model of a long name":       store(func(v *queenv1.Inventory) { v.Models[0].Id = strings.Repeat("n", 100<<10) }),
		"a model without a name":       store(func(v *queenv1.Inventory) { v.Models[0].Id = "" }),
		"a model of control marks too": store(func(v *queenv1.Inventory) { v.Models[0].Id, v.Models[0].License = "m\x1b[2J", "\x1b[2J" }),
		"a model twice":                store(func(v *queenv1.Inventory) { v.Models = append(v.Models, v.GetModels()[0]) }),
		"many aliases":                 store(func(v *queenv1.Inventory) { v.Models[0].Aliases = slices.Repeat([]string{"nick"}, 5000) }),
		"negative sizes": store(func(v *queenv1.Inventory) {
			v.Models[0].SizeBytes, v.Models[0].EstimateBytes, v.Models[0].ContextTokens = math.MinInt64, math.MinInt64, math.MinInt64
		}),
		"a model of no time": store(func(v *queenv1.Inventory) {
			v.Models[0].CreatedAt = &timestamppb.Timestamp{Seconds: math.MaxInt64, Nanos: -1}
		}),
		"empty models and offers": store(func(v *queenv1.Inventory) { v.Models, v.Offers = append(v.Models, nil), append(v.Offers, nil, nil) }),
		"many offers": store(func(v *queenv1.Inventory) {
			for i := range 5000 {
				v.Offers = append(v.Offers, &queenv1.Offer{Ref: "builtin:m", Name: fmt.Sprint("m", i), Kind: "model"})
			}
		}),
		"a replay after the end": func(h *fakeHive) []*queenv1.LinkRequest {
			early, end := h.reportLocked(), h.reportLocked()
			end.Ending, end.Workers = true, nil
			return []*queenv1.LinkRequest{early, end, early, end, early}
		},
		"contradictions": func(h *fakeHive) []*queenv1.LinkRequest {
			var all []*queenv1.LinkRequest
			for i := range 60 {
				r := h.reportLocked()
				r.Workers[0].Model = fmt.Sprint("evil", i%3)
				r.Workers[0].State = []string{"ready", "failed", "loading", "retiring"}[i%4]
				all = append(all, r)
			}
			return all
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, "")
				honest, evil := c.newHive("h1"), c.newHive("h2")
				mine := honest.addWorker("w1", "m", core.WorkerReady)
				defer honest.keepBeating()()
				evil.addWorker("x1", "evil", core.WorkerReady)
				for _, known := range []bool{false, true} { // as an unknown hive's first report, and as that of a registered hive
					if known {
						_, _ = evil.beat(t.Context()) // it may be refused after its previous report
						evil.hangUp()
					}
					l, err := openLine(c.server)
					must.NoError(t, err)
					evil.mu.Lock()
					reports := says(evil)
					evil.mu.Unlock()
					for _, r := range reports {
						l.send(r)
						time.Sleep(time.Millisecond) // in the bubble: let everything settle
						synctest.Wait()
					}
					time.Sleep(time.Second)
					c.unharmed(mine)
					l.close()
				}
			})
		})
	}
}

// unharmed checks what must hold whatever another hive reports.
func (c *cluster) unharmed(mine core.Worker) {
	c.t.Helper()
	// The honest hive's worker is registered unchanged and gets requests, even after a worker of
	// the other hive with the same nonce failed a request.
	workers, err := c.q.Workers(c.t.Context())
	must.NoError(c.t, err)
	for _, w := range workers {
		if w.ID != mine.ID || w.Hive != mine.Hive {
			must.Eq(c.t, "h2", w.Hive)
			lease, err := c.q.Router.Route(c.t.Context(), inference.Query{Model: w.Model, Patience: time.Second})
			if err == nil {
				lease.Release(inference.Outcome{Failed: true})
			}
		}
	}
	must.Less(c.t, 5000, len(workers))
	lease, err := c.q.Router.Route(c.t.Context(), inference.Query{Model: mine.Model, Patience: time.Millisecond})
	must.NoError(c.t, err)
	must.Eq(c.t, mine.Hive, lease.Worker.Hive)
	must.Eq(c.t, mine.ID, lease.Worker.ID)
	lease.Release(inference.Outcome{})
	// The honest hive's reports are accepted, and it is not asked to retire anything.
	resp := c.hives[mine.Hive].mustBeat()
	must.True(c.t, resp.GetRegistered())
	must.Len(c.t, 0, resp.GetRetire())
	// What users and programs query can be encoded, and is bounded.
	hives, err := c.q.Hives(c.t.Context())
	must.NoError(c.t, err)
	must.LessEq(c.t, 2, len(hives))
	for _, h := range hives {
		for _, d := range h.Devices {
			must.Between(c.t, 0, d.FreeBytes, max(d.TotalBytes, 0))
		}
	}
	models, err := c.q.Models(c.t.Context())
	must.NoError(c.t, err)
	must.LessEq(c.t, core.MaxInventoryModels, len(models))
	for _, m := range models {
		must.True(c.t, m.SizeBytes >= 0 && m.EstimateBytes >= 0 && m.ContextTokens >= 0)
	}
	text, err := json.Marshal(map[string]any{"workers": workers, "hives": hives, "models": models})
	must.NoError(c.t, err)
	must.Less(c.t, 4<<20, len(text))
}
