package gateway

import (
	"context"
	"net/http"
	"strconv"

	"github.com/rbee-project/rbee/core"
)

// LocalHive is what a hive tells the people of its own machine without any queen.
type LocalHive interface {
	Processes(ctx context.Context) ([]core.Process, error)
	Process(ctx context.Context, pid int) (core.Process, error)
	Binaries(ctx context.Context) ([]core.WorkerBinary, error)
	Binary(ctx context.Context, id string) (core.WorkerBinary, error)
}

// LocalHandler serves what a hive knows of itself, read-only, in the form of the public API with core.LocalHive as the hive. It is for a socket that
// only the agent's user can open: it asks for no token.
func LocalHandler(h LocalHive) http.Handler {
	mux := http.NewServeMux()
	handle := func(path string, f func(r *http.Request) (any, error)) {
		mux.HandleFunc("GET /v1/hives/"+core.LocalHive+path, func(w http.ResponseWriter, r *http.Request) {
			v, err := f(r)
			if err == nil {
				err = writeJSON(w, http.StatusOK, v)
			}
			if err != nil {
				fail(w, err)
			}
		})
	}
	handle("/processes", func(r *http.Request) (any, error) {
		v, err := h.Processes(r.Context())
		return listOf(v), err
	})
	handle("/processes/{pid}", func(r *http.Request) (any, error) {
		pid, err := strconv.Atoi(r.PathValue("pid"))
		if err != nil || pid < 1 {
			return nil, core.Errorf("", core.Invalid, "%q is no process id", clip(r.PathValue("pid"), 40))
		}
		v, err := h.Process(r.Context(), pid)
		return v, err
	})
	handle("/binaries", func(r *http.Request) (any, error) {
		v, err := h.Binaries(r.Context())
		return listOf(v), err
	})
	handle("/binaries/{id...}", func(r *http.Request) (any, error) {
		v, err := h.Binary(r.Context(), r.PathValue("id"))
		return v, err
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { fail(w, noRoute(r)) })
	return mux
}
