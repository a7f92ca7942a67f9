package hive

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
)

// The inventory is in the first report of every link and in the first one after a change; other
// reports omit it.
func TestInventoryReportedOnChange(t *testing.T) {
	one, two := &recorder{next: time.Second}, &recorder{next: time.Second}
	told := func(r *recorder) (at []int) {
		r.mu.Lock()
		defer r.mu.Unlock()
		for i, req := range r.reports {
			if req.GetInventory() != nil {
				at = append(at, i)
			}
		}
		return at
	}
	beating(t, func(t *testing.T, b *beater, f *fleet) {
		time.Sleep(1500 * time.Millisecond)
		must.SliceEmpty(t, told(one)) // not read yet
		change := func(id string) {
			f.mu.Lock()
			f.stock, f.stocked = &queenv1.Inventory{Models: []*queenv1.StoredModel{{Id: id}}}, f.stocked+1
			f.mu.Unlock()
			b.bump()
		}
		change("a")
		time.Sleep(4 * time.Second)
		must.Eq(t, []int{2}, told(one))
		must.Eq(t, []int{2}, told(two))
		change("b")
		synctest.Wait()
		must.Len(t, 2, told(one))
		must.Eq(t, "b", one.last().GetInventory().GetModels()[0].GetId())

		// A new link gets it again.
		one.set(func(r *recorder) { r.err = core.Errorf(core.Unavailable, "gone") })
		time.Sleep(1200 * time.Millisecond)
		one.set(func(r *recorder) { r.err, r.reports = nil, nil })
		time.Sleep(3 * time.Second)
		must.Eq(t, []int{0}, told(one))
		must.Len(t, 2, told(two))
	}, one, two)
}

// A change is spread when every connected queen has taken it in, whether or not it leads. One that
// disconnects is not waited for.
func TestSpread(t *testing.T) {
	near, far := &recorder{next: time.Minute}, &recorder{next: time.Minute, delay: 400 * time.Millisecond, follower: true}
	beating(t, func(t *testing.T, b *beater, f *fleet) {
		time.Sleep(2 * time.Second)
		now := time.Now()
		b.bump()
		must.NoError(t, b.spread(t.Context()))
		must.Eq(t, 400*time.Millisecond, time.Since(now))
		must.NoError(t, b.spread(t.Context())) // nothing has changed since
		must.Eq(t, 400*time.Millisecond, time.Since(now))

		far.set(func(r *recorder) { r.delay = time.Hour })
		b.bump()
		limited, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		must.Eq(t, core.DeadlineExceeded, core.KindOf(b.spread(limited)))
		time.Sleep(answerTimeout) // its line is abandoned
		now = time.Now()
		must.NoError(t, b.spread(t.Context()))
		must.Eq(t, 0, time.Since(now))
	}, near, far)
}

// Models that a job fetched or deleted are in the inventory, or out of it, when the job has ended.
func TestInventoryFollowsTheStore(t *testing.T) {
	t.Parallel()
	r := run(t, setup{})
	ids := func() (ids []string) {
		v, _ := r.hive.stock.inventory()
		for _, m := range v.GetModels() {
			ids = append(ids, m.GetId())
		}
		return ids
	}
	must.NoError(t, r.hive.stock.takeInventory(t.Context()))
	must.SliceEmpty(t, ids())
	result1[core.Model](r, core.Request{Operation: core.OpModelDownload, Model: "tiny"})
	must.Eq(t, []string{"tiny"}, ids())
	_, count := r.hive.stock.inventory()
	must.NoError(t, r.hive.stock.takeInventory(t.Context()))
	_, same := r.hive.stock.inventory()
	must.Eq(t, count, same)
	result1[core.ModelDeleteResult](r, core.Request{Operation: core.OpModelDelete, Model: "tiny"})
	must.SliceEmpty(t, ids())
}

// A store with more than an inventory may hold is reported as incomplete.
func TestInventoryBounds(t *testing.T) {
	t.Parallel()
	many := func(n int, aliases int, text string) core.Inventory {
		v := core.Inventory{}
		for i := range n {
			v.Models = append(v.Models, core.Model{ID: fmt.Sprint("m", i), Aliases: make([]string, aliases), License: text})
		}
		return v
	}
	for name, tt := range map[string]struct {
		v     core.Inventory
		whole bool
	}{
		"empty":            {core.Inventory{}, true},
		"as many as fit":   {many(core.MaxInventoryModels, 1, ""), true},
		"one model more":   {many(core.MaxInventoryModels+1, 0, ""), false},
		"too many aliases": {many(1, core.MaxInventoryAliases+1, ""), false},
		"too many bytes":   {many(1, 0, strings.Repeat("x", core.MaxInventoryBytes)), false},
	} {
		p := bounded(tt.v)
		must.Eq(t, !tt.whole, p.GetIncomplete(), must.Sprint(name))
		if tt.whole {
			must.Len(t, len(tt.v.Models), p.GetModels(), must.Sprint(name))
		} else {
			must.SliceEmpty(t, p.GetModels(), must.Sprint(name))
		}
	}
}
