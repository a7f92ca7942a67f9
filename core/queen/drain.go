package queen

import (
	"context"
	"fmt"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/raft/fsm"
)

// DrainHive starts or ends the draining of a hive: a draining hive gets no new workers, and its
// workers no new requests. Errors: NotFound, Unavailable.
func (q *Queen) DrainHive(ctx context.Context, hive string, drain bool) (core.Hive, error) {
	if err := q.Registry.CatchUp(ctx); err != nil {
		return core.Hive{}, err
	}
	h, err := q.hives.Named(ctx, hive)
	if err != nil {
		return h, err
	}
	if h.Draining != drain {
		if err := q.Registry.Write(ctx, fmt.Sprintf("drain %s %t", h.ID, drain), fsm.SetHiveDraining(h.ID, drain)); err != nil {
			return h, err
		}
		q.log.Info("draining of a hive changed", "hive", h.ID, "draining", drain)
	}
	return q.hives.Named(ctx, h.ID)
}
