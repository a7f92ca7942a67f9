// Command rbee-worker-parrot is a worker type of somebody else: it needs nothing of rbee but the
// plugin SDK.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
	"github.com/rbee-project/rbee/plugins/sdk/worker"
)

type parrot struct {
	spec atomic.Pointer[worker.StartSpec]
}

func main() { worker.Serve(&parrot{}) }

func (*parrot) Info(context.Context) (sdk.Info, error) {
	return sdk.Info{Name: "parrot", Kind: sdk.KindWorker, Version: "0.1.0", Summary: "says what it is told"}, nil
}

func (*parrot) Schema(context.Context) (sdk.Schema, error) { return sdk.Schema{}, nil }

func (*parrot) Configure(context.Context, sdk.Config) (sdk.Diagnostics, error) { return nil, nil }

func (*parrot) Fingerprint(ctx context.Context, emit func(worker.Fingerprint) error) error {
	for {
		if err := emit(worker.Fingerprint{Devices: []worker.Device{{ID: "perch", Kind: "perch", Name: "a perch"}}}); err != nil {
			return err
		}
		select {
		case <-time.After(20 * time.Second):
		case <-ctx.Done():
			return nil
		}
	}
}

func (p *parrot) Start(_ context.Context, s worker.StartSpec, _ func(worker.Progress) error) (http.Handler, error) {
	p.spec.Store(&s)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var q *openai.ChatRequest
		body, err := openai.ReadBody(r.Body, 1<<20)
		if err == nil {
			q, err = openai.DecodeChat(body)
		}
		if err != nil {
			refusal, _ := errors.AsType[*openai.Error](err)
			openai.WriteError(w, 0, refusal)
			return
		}
		text, _ := q.Messages[len(q.Messages)-1].Content.PlainText()
		answer := openai.AnswerMessage{Role: "assistant", Content: new(strings.ToUpper(text))}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(openai.ChatResponse{
			Object: openai.ObjectChat, Model: s.ModelID, Choices: []openai.ChatChoice{{Message: answer, FinishReason: "stop"}},
		})
	}), nil
}

func (p *parrot) Status(context.Context) (worker.Status, error) {
	if s := p.spec.Load(); s != nil {
		return worker.Status{WorkerID: s.WorkerID, Nonce: s.Nonce, ModelID: s.ModelID, State: worker.StateReady, Slots: s.Slots, Capabilities: []string{"chat"}}, nil
	}
	return worker.Status{State: worker.StateIdle}, nil
}

func (*parrot) Drain(context.Context) error { return nil }

func (*parrot) Stop(context.Context, time.Duration) error { return nil }
