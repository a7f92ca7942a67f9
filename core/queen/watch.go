package queen

import (
	"context"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/registry"
)

// viewInterval is the interval between checks of what the registry does not contain: the members of
// the raft cluster.
const viewInterval = time.Second

// watchView sends the hives their view of the cluster, now and on every change, until ctx ends.
func (q *Queen) watchView(ctx context.Context) {
	for ctx.Err() == nil {
		ws := registry.WatchSet{}
		if v := q.Members.View(ws); v != nil {
			q.liveness.SetView(v)
		}
		_ = registry.WaitUntil(ctx, ws, time.Now().Add(viewInterval)) // the next iteration checks what changed
	}
}

// watchDown calls tell for hives that are down, until ctx ends. A hive that still reports to this
// queen is only out of the leader's sight.
func (q *Queen) watchDown(ctx context.Context, tell func(hive string)) {
	told := map[string]bool{}
	for ctx.Err() == nil {
		ws, later := registry.WatchSet{}, false
		for _, h := range q.Registry.View().Hives(ws) {
			switch {
			case h.Status != core.HiveDown:
				delete(told, h.ID)
			case told[h.ID]:
			case q.liveness.Hive(h.ID).Hears():
				later = true
			default:
				told[h.ID] = true
				tell(h.ID)
			}
		}
		if later {
			_ = registry.WaitUntil(ctx, ws, time.Now().Add(viewInterval))
		} else {
			_ = registry.Wait(ctx, ws)
		}
	}
}
