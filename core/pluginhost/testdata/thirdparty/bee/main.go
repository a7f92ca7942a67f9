// Command rbee-worker-bee is a worker type as a third party would write it: it answers every prompt
// with a hum.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
	"github.com/rbee-project/rbee/plugins/sdk/worker"
)

type bee struct {
	config struct {
		Hum   string `json:"hum"`
		Pause int    `json:"pause_ms"`
	}
	spec worker.StartSpec
	gate *worker.Gate
}

var abilities = []worker.Capability{worker.CapabilityChat}

func main() { worker.Serve(&bee{}) }

func (b *bee) Info(context.Context) (sdk.Info, error) {
	return sdk.Info{Name: "bee", Kind: sdk.KindWorker, Version: "0.1.0", Summary: "Hums."}, nil
}

func (b *bee) Schema(context.Context) (sdk.Schema, error) {
	return sdk.Schema{Attributes: []sdk.Attribute{
		{Name: "hum", Type: "string", Default: json.RawMessage(`"bz"`), Doc: "The sound."},
		{Name: "pause_ms", Type: "number", Default: json.RawMessage("0"), Doc: "Milliseconds between two sounds."},
	}}, nil
}

func (b *bee) Configure(_ context.Context, c sdk.Config) (sdk.Diagnostics, error) {
	b.config.Hum = "bz"
	if err := json.Unmarshal(c.JSON, &b.config); err != nil {
		return nil, err
	}
	if strings.Contains(b.config.Hum, " ") {
		return sdk.Diagnostics{{Summary: "Two sounds", Detail: "A bee makes one sound. Leave out the space.", Path: []any{"hum"}}}, nil
	}
	return nil, nil
}

func (b *bee) Fingerprint(ctx context.Context, emit func(worker.Fingerprint) error) error {
	for {
		if err := emit(worker.Fingerprint{Devices: []worker.Device{{ID: "hive", Kind: "wood", Name: "Hive"}}}); err != nil {
			return err
		}
		select {
		case <-time.After(30 * time.Second):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (b *bee) Start(_ context.Context, s worker.StartSpec, progress func(worker.Progress) error) (http.Handler, error) {
	if _, err := os.Stat(s.ModelPath); err != nil || s.Device != "hive" {
		return nil, fmt.Errorf("model %s on device %s: %w", s.ModelPath, s.Device, sdk.ErrNotFound)
	}
	if s.ContextTokens == 0 {
		s.ContextTokens = 100
	}
	b.spec, b.gate = s, worker.NewGate(s.Slots)
	return b.gate.Handler(http.HandlerFunc(b.answer)), progress(worker.Progress{Phase: "waking up", Done: 1, Total: 1})
}

func (b *bee) answer(w http.ResponseWriter, r *http.Request) {
	body, err := openai.ReadBody(r.Body, 1<<20)
	req, bad := openai.DecodeChat(body)
	if bad == nil {
		bad = req.CheckAbility(abilities)
	}
	switch {
	case r.URL.Path != "/v1/chat/completions":
		openai.WriteError(w, http.StatusNotFound, openai.NewError(http.StatusNotFound, openai.TypeNotFound, "", "", "bees only chat"))
		return
	case err != nil || bad != nil:
		openai.WriteError(w, http.StatusBadRequest, openai.Invalid("", "%v %v", err, bad))
		return
	}
	n := req.MaxOutput()
	heard := 0
	for _, m := range req.Messages {
		text, _ := m.Content.PlainText()
		heard += len(strings.Fields(text))
	}
	usage := &openai.Usage{PromptTokens: heard, CompletionTokens: n, TotalTokens: heard + n}
	text, stop, events := "", openai.FinishLength, openai.NewEventWriter(w)
	chunk := openai.ChatChunk{ID: "bee", Object: openai.ObjectChatChunk, Model: b.spec.ModelID}
	for range n {
		select {
		case <-time.After(time.Duration(b.config.Pause) * time.Millisecond):
		case <-r.Context().Done():
			return
		}
		text += b.config.Hum
		b.gate.AddTokens(1)
		if req.Stream {
			chunk.Choices = []openai.ChunkChoice{{Delta: openai.Delta{Content: &b.config.Hum}}}
			_ = events.JSON(chunk)
		}
	}
	if req.Stream {
		chunk.Choices, chunk.Usage = []openai.ChunkChoice{{FinishReason: &stop}}, usage
		_ = events.JSON(chunk)
		_ = events.Done()
		return
	}
	_ = json.NewEncoder(w).Encode(openai.ChatResponse{ID: "bee", Object: openai.ObjectChat, Model: b.spec.ModelID, Usage: usage, Choices: []openai.ChatChoice{
		{Message: openai.AnswerMessage{Role: "assistant", Content: &text}, FinishReason: stop},
	}})
}

func (b *bee) Status(context.Context) (worker.Status, error) {
	st := worker.Status{State: worker.StateReady, ContextTokens: b.spec.ContextTokens, Capabilities: abilities}
	b.gate.Fill(&st)
	return st, nil
}

func (b *bee) Drain(ctx context.Context) error                     { return b.gate.Drain(ctx) }
func (b *bee) Stop(ctx context.Context, grace time.Duration) error { return b.gate.Stop(ctx, grace) }
