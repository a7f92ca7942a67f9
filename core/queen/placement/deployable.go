package placement

import (
	"context"
	"strings"

	"github.com/rbee-project/rbee/core/modelname"
)

// Deployable is a model that a deployment can name.
type Deployable struct {
	known  knownModel
	stored map[string]bool
}

// Argument returns the worker_spawn argument for the model on a hive.
func (d Deployable) Argument(hive string) string {
	argument, _, _ := d.known.on(hive)
	return argument
}

// Stored returns the ids of the hives that have it, Offered those of the hives that can fetch it;
// nil: any can.
func (d Deployable) Stored() map[string]bool { return d.stored }

// Offered returns the ids of the hives that can fetch it; nil: any can.
func (d Deployable) Offered() map[string]bool { return d.known.offered }

// Sizes returns the least device memory that a worker needs, and that with the model's own context;
// 0: unknown.
func (d Deployable) Sizes() (least, estimate int64) { return d.known.sizeBytes, d.known.estimateBytes }

// Deployable finds a model by any of its names. The chosen hive fetches a catalog reference that no
// hive has, as a deployment is an explicit request for it. Errors: NotFound, Invalid, Unavailable.
func (p *Placer) Deployable(ctx context.Context, name string) (Deployable, error) {
	lists, _, err := p.modelsOf(ctx)
	if err != nil {
		return Deployable{}, err
	}
	m, ok, err := stored(lists, name, p.aliases())
	if err != nil {
		return Deployable{}, err
	}
	if bare := p.Dealias(name); !ok {
		if strings.Contains(bare, ":") || modelname.IsRepository(bare) {
			m = knownModel{id: bare, argument: bare}
		} else if m, err = p.find(ctx, name); err != nil {
			return Deployable{}, err
		}
	}
	d := Deployable{known: m, stored: map[string]bool{}}
	for hive := range m.stored {
		d.stored[hive] = true
	}
	if len(d.stored) > 0 && m.argument == m.id && m.offered == nil {
		// Its origin is unknown: hives without it cannot fetch it.
		d.known.offered = d.stored
	}
	return d, nil
}
