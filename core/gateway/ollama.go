package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/gateway/dialect"
	"github.com/rbee-project/rbee/core/gateway/dialect/ollama"
	"github.com/rbee-project/rbee/core/gateway/dialect/responses"
	"github.com/rbee-project/rbee/core/operation"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

func openaiResponses(g *Gateway) dialect.Dialect { return responses.New(&g.answers) }

func openaiResponsesSize(g *Gateway) dialect.Dialect { return responses.CountTokens(&g.answers) }

// greeting answers the request by which Ollama's clients check that a server runs.
func (g *Gateway) greeting(w *response, _ *http.Request) error {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = w.Write([]byte("rbee is running\n")) // the client may have disconnected
	return nil
}

func (g *Gateway) ollamaVersion(w *response, _ *http.Request) error {
	return writeJSON(w, http.StatusOK, map[string]string{"version": ollama.Version})
}

func (g *Gateway) ollamaTags(w *response, r *http.Request) error {
	models, err := g.modelsFor(r.Context(), w)
	if err != nil {
		return err
	}
	aliases, err := operation.AliasList.Ask(r.Context(), g.o.Cluster, core.Request{})
	aliases = slices.DeleteFunc(slices.Clone(aliases), func(a core.Alias) bool { return !w.token.MayAsk(a.Model) })
	return answerOne(w, ollama.TagsOf(models, aliases), err)
}

func (g *Gateway) ollamaRunning(w *response, r *http.Request) error {
	workers, err := g.o.Cluster.Workers(r.Context())
	if err != nil {
		return err
	}
	workers = slices.DeleteFunc(slices.Clone(workers), func(v core.Worker) bool { return !w.token.MayAsk(v.Model) })
	models, err := g.modelsFor(r.Context(), w)
	return answerOne(w, ollama.RunningOf(workers, models, time.Now()), err)
}

// named is the body of Ollama's routes for one model.
type named struct {
	Model  string `json:"model"`
	Name   string `json:"name"` // sent by older clients
	Stream *bool  `json:"stream"`
}

func (g *Gateway) readNamed(w *response, r *http.Request) (named, error) {
	var n named
	body, err := g.readBody(w, r, maxJobBody)
	if err != nil {
		return n, err
	}
	if err := json.Unmarshal(body, &n); err != nil {
		return n, badBody("", "the request's body is not a JSON object with a model")
	}
	if n.Model == "" {
		n.Model = n.Name
	}
	if n.Model == "" {
		return n, badBody("model", "model is missing")
	}
	n.Model = ollama.Name(n.Model)
	return n, nil
}

func (g *Gateway) ollamaShow(w *response, r *http.Request) error {
	n, err := g.readNamed(w, r)
	if err != nil {
		return err
	}
	m, err := g.findModel(r.Context(), w, n.Model)
	if err != nil {
		return err
	}
	for _, hive := range m.Hives { // a hive's own answer has the file details
		if whole, err := operation.ModelGet.Ask(r.Context(), g.o.Cluster, core.Request{Hive: hive, Model: m.ID}); err == nil {
			m.Facts = whole.Facts
			break
		}
	}
	return writeJSON(w, http.StatusOK, ollama.ShowOf(m))
}

// ollamaCopy adds an alias for a model.
func (g *Gateway) ollamaCopy(w *response, r *http.Request) error {
	var c struct {
		Source      string `json:"source"`
		Destination string `json:"destination"`
	}
	body, err := g.readBody(w, r, maxJobBody)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(body, &c); err != nil {
		return badBody("", "the request's body is not a JSON object with a source and a destination")
	}
	for field, name := range map[string]string{"source": c.Source, "destination": c.Destination} {
		if name == "" {
			return badBody(field, "%s is missing", field)
		}
	}
	request := core.Request{Operation: core.OpAliasSet, Name: ollama.Name(c.Destination), Model: ollama.Name(c.Source)}
	if err := g.runJob(r.Context(), w, request, nil); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

// ollamaDelete deletes a model from every hive that has it. For an alias, which a copy creates, it
// deletes only the alias.
func (g *Gateway) ollamaDelete(w *response, r *http.Request) error {
	n, err := g.readNamed(w, r)
	if err != nil {
		return err
	}
	aliases, err := operation.AliasList.Ask(r.Context(), g.o.Cluster, core.Request{})
	if err != nil {
		return err
	}
	if slices.ContainsFunc(aliases, func(a core.Alias) bool { return a.Name == n.Model }) {
		if err := g.runJob(r.Context(), w, core.Request{Operation: core.OpAliasRemove, Name: n.Model}, nil); err != nil {
			return err
		}
		w.WriteHeader(http.StatusOK)
		return nil
	}
	m, err := g.findModel(r.Context(), w, n.Model)
	if err != nil {
		return err
	}
	if len(m.Hives) == 0 { // its files were deleted meanwhile
		return &apiError{err: core.Errorf(core.NotFound, "no model %q: no hive has its files", clip(n.Model, 100)), code: openai.CodeModelNotFound, param: "model"}
	}
	for _, hive := range m.Hives {
		if err := g.runJob(r.Context(), w, core.Request{Operation: core.OpModelDelete, Hive: hive, Model: m.ID}, nil); err != nil {
			return err
		}
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

// pullLine is one progress line of a pull.
type pullLine struct {
	Status    string `json:"status,omitempty"`
	Digest    string `json:"digest,omitempty"`
	Total     int64  `json:"total,omitempty"`     // bytes
	Completed int64  `json:"completed,omitempty"` // bytes
	Error     string `json:"error,omitempty"`
}

// ollamaPull downloads a model and reports the progress.
func (g *Gateway) ollamaPull(w *response, r *http.Request) error {
	n, err := g.readNamed(w, r)
	if err != nil {
		return err
	}
	request := core.Request{Operation: core.OpModelDownload, Model: n.Model}
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	done, ok := g.streams.add(true, cancel)
	if !ok {
		return errRefused
	}
	defer done()
	if n.Stream != nil && !*n.Stream {
		if err := g.runJob(ctx, w, request, nil); err != nil {
			return err
		}
		return writeJSON(w, http.StatusOK, pullLine{Status: "success"})
	}
	send := func(l pullLine) error {
		b, err := json.Marshal(l)
		if err != nil {
			return core.Wrap(err, core.Internal, "write progress")
		}
		if w.status == 0 {
			w.Header().Set("Content-Type", "application/x-ndjson")
			w.WriteHeader(http.StatusOK)
		}
		if _, err := w.Write(append(b, '\n')); err != nil {
			return core.WithKind(err, core.Cancelled)
		}
		if err := w.c.Flush(); err != nil && !errors.Is(err, http.ErrNotSupported) {
			return core.WithKind(err, core.Cancelled)
		}
		return nil
	}
	err = g.runJob(ctx, w, request, func(p core.Progress) error {
		l := pullLine{Status: p.Phase}
		if p.Unit == "bytes" {
			l.Total, l.Completed, l.Digest = p.Total, p.Done, p.Phase
		}
		return send(l)
	})
	switch {
	case err == nil:
		return send(pullLine{Status: "success"})
	case w.status == 0:
		return err
	case core.KindOf(err) == core.Cancelled:
		return http.ErrAbortHandler
	}
	e, _ := envelope(err)
	return send(pullLine{Error: e.Message})
}

// runJob submits a job, waits for its end and returns the error that it ended with. progress is
// called for each progress event; nil: not wanted. If the client disconnects, the job continues:
// others may wait for it.
func (g *Gateway) runJob(ctx context.Context, w *response, r core.Request, progress func(core.Progress) error) error {
	job, err := g.o.Jobs.Submit(ctx, r, false)
	if err != nil {
		return err
	}
	w.job = job
	var ended error
	err = g.o.Jobs.Events(ctx, job.ID, 0, func(e core.Event) error {
		if e.Progress != nil && progress != nil {
			return progress(*e.Progress)
		}
		if e.State != "" && e.Error != nil {
			ended = e.Error.Err()
		}
		return nil
	})
	if err != nil {
		return err
	}
	return ended
}
