package hive

import (
	"context"
	"slices"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/rbee-project/rbee/core"
)

// engineRecheck is the interval between attempts to resolve an engine that could not be resolved.
const engineRecheck = 5 * time.Minute

// engineFault is why the engine of a worker type cannot be installed.
type engineFault struct {
	text string // with a hint; empty: no fault
	kind core.Kind
}

// noteEngine records why the engine of the type cannot be installed; nil: it can. It reports
// whether that is news.
func (t *workerType) noteEngine(err error) (news bool) {
	var f engineFault
	if err != nil {
		f = engineFault{text: adviceOf(err), kind: core.KindOf(err)}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	news = t.engine.text != f.text
	t.engine = f
	return news
}

func (t *workerType) engineFault() engineFault {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.engine
}

// adviceOf returns an error with its hint, for display.
func adviceOf(err error) string {
	text := err.Error()
	if hint := core.HintOf(err); hint != "" {
		text += " (" + hint + ")"
	}
	return text
}

// engines watches whether the engines of worker types can be installed.
type engines struct {
	log      hclog.Logger
	store    shelf
	catalogs *catalogs
	beat     *beater
	types    *typeSet
}

// engineTried records the result of an attempt to fetch the engine of a worker type, and reports it
// to the queens.
func (e *engines) engineTried(ctx context.Context, t *workerType, err error) {
	if err != nil && (ctx.Err() != nil || core.KindOf(err) == core.Cancelled) {
		return // not about the engine
	}
	if t.noteEngine(err) {
		e.beat.bump()
		if err != nil {
			e.log.Warn("the engine of a worker type cannot be installed", "plugin", t.name(), "error", err)
		}
	}
}

// watchEngines asks, for each usable worker type whose engine is not installed, whether its catalog
// source has it, so that the status names a missing engine before a request needs it. It asks again
// while something is wrong, and returns when ctx ends.
func (e *engines) watchEngines(ctx context.Context) {
	tick := time.NewTicker(engineRecheck)
	defer tick.Stop()
	select { // the first check covers all earlier news
	case <-e.types.engineNews:
	default:
	}
	asked := map[*workerType]string{} // by type: the engine that its source has
	for {
		for _, t := range e.types.all() {
			e.checkEngine(ctx, t, asked)
		}
		select {
		case <-tick.C:
		case <-e.types.engineNews:
		case <-ctx.Done():
			return
		}
	}
}

// checkEngine resolves the engine of a type unless it is installed, or in asked.
func (e *engines) checkEngine(ctx context.Context, t *workerType, asked map[*workerType]string) {
	if t.built {
		return
	}
	info, seen, found := t.known()
	if !found || seen.Problem != "" || info.Engine.Name == "" || asked[t] == info.Engine.Ref {
		return
	}
	if list, err := e.store.Binaries(); err != nil || slices.ContainsFunc(list, func(b core.WorkerBinary) bool {
		return b.Type == t.name() && b.Damaged == ""
	}) {
		return
	}
	m, err := e.catalogs.resolve(ctx, info.Engine.Ref)
	if err == nil {
		asked[t] = info.Engine.Ref
		// Its bytes may still be wrong: only a complete download clears that.
		if t.engineFault().kind != core.Integrity {
			e.engineTried(ctx, t, nil)
		}
		e.log.Debug("the engine of a worker type can be fetched", "plugin", t.name(), "ref", m.Ref)
		return
	}
	e.engineTried(ctx, t, core.Prefix(err, "find engine"))
}
