package cli

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/rbee-project/rbee/cmd/rbee/cli/term"
	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/client"
)

// ensureWorker returns the id of model, and if none is ready starts a worker for it, with progress
// on stderr. A token with only the right to use models sees no workers: then the queen starts one,
// if necessary, for the request itself.
func ensureWorker(ctx context.Context, a *app, c *client.Client, model string) (string, error) {
	// A queen that knows of no leader still answers, and so do the workers that it knows.
	id, ready, _, err := workersOf(ctx, a, c, model, client.Consistency(core.ConsistencyStale))
	if core.KindOf(err) == core.Forbidden && id != "" {
		return id, nil
	}
	if err != nil || ready {
		return id, err
	}
	// Concurrent commands for one model start one worker: the first does, the others wait for it.
	unlock, err := lockModel(ctx, a, c, model)
	if err != nil {
		return "", err
	}
	defer unlock()
	for {
		id, ready, loading, err := workersOf(ctx, a, c, model)
		if err != nil || ready {
			return id, err
		}
		if !loading {
			break
		}
		if err := sleep(ctx, loadPoll); err != nil {
			return "", err
		}
	}
	fmt.Fprintf(a.stderr, "No worker serves %s: starting one.\n", term.Line(model))
	job, err := a.runJob(ctx, c, core.Request{Operation: core.OpWorkerSpawn, Model: model, KeepAlive: core.KeepAliveDefault})
	if err != nil {
		return "", err
	}
	result, err := client.Result[core.SpawnResult](job)
	if err != nil {
		return "", err
	}
	fmt.Fprintf(a.stderr, "Worker %s is ready on %s.\n", term.Line(result.Worker.ID), term.Line(result.Worker.Device))
	return result.Worker.Model, nil
}

// loadPoll is the interval between checks of a worker that loads its model.
const loadPoll = 250 * time.Millisecond

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// workersOf returns the id of model, and whether a worker of it is ready, or loading. The id is
// also set if listing the workers fails.
func workersOf(ctx context.Context, a *app, c *client.Client, model string, read ...client.ReadOption) (id string, ready, loading bool, err error) {
	id = model
	m, err := c.Model(ctx, model)
	switch {
	case err == nil:
		id = m.ID
	case core.KindOf(err) != core.NotFound: // it may still be in a catalog, which the hive asks
		return "", false, false, err
	}
	workers, err := c.Workers(ctx, read...)
	if err != nil {
		return id, false, false, err
	}
	for _, w := range workers {
		if w.Model == id {
			ready = ready || w.State == core.WorkerReady
			loading = loading || w.State == core.WorkerLoading
		}
	}
	return id, ready, loading, nil
}

// lockModel serializes the commands of this user that start a worker for the same model.
func lockModel(ctx context.Context, a *app, c *client.Client, model string) (unlock func(), err error) {
	dir, err := a.stateDir()
	if err != nil {
		return func() {}, nil //nolint:nilerr // without a folder for it, there is no such lock
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return func() {}, nil //nolint:nilerr // as above
	}
	sum := sha256.Sum256([]byte(c.Address() + "\x00" + model))
	path := filepath.Join(dir, "model-"+hex.EncodeToString(sum[:8])+".lock")
	unlock, err = lockFile(ctx, path)
	switch {
	case err == nil:
		return unlock, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	}
	return func() {}, nil
}
