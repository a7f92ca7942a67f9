// Command rbee-worker-mortal is a worker type that dies when a request asks for it.
package main

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
	"github.com/rbee-project/rbee/plugins/sdk/worker"
)

type mortal struct {
	spec atomic.Pointer[worker.StartSpec]
}

func main() { worker.Serve(&mortal{}) }

func (*mortal) Info(context.Context) (sdk.Info, error) {
	return sdk.Info{Name: "mortal", Kind: sdk.KindWorker, Version: "0.1.0", Summary: "dies of a request"}, nil
}

func (*mortal) Schema(context.Context) (sdk.Schema, error) { return sdk.Schema{}, nil }

func (*mortal) Configure(context.Context, sdk.Config) (sdk.Diagnostics, error) { return nil, nil }

func (*mortal) Fingerprint(ctx context.Context, emit func(worker.Fingerprint) error) error {
	for {
		if err := emit(worker.Fingerprint{Devices: []worker.Device{{ID: "grave", Kind: "grave", Name: "a grave"}}}); err != nil {
			return err
		}
		select {
		case <-time.After(20 * time.Second):
		case <-ctx.Done():
			return nil
		}
	}
}

func (m *mortal) Start(_ context.Context, s worker.StartSpec, _ func(worker.Progress) error) (http.Handler, error) {
	m.spec.Store(&s)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if strings.Contains(string(body), "die") {
			os.Exit(3)
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(openai.ChatResponse{
			Object: openai.ObjectChat, Model: s.ModelID,
			ID: "chatcmpl-mortal", Choices: []openai.ChatChoice{{Message: openai.AnswerMessage{Role: "assistant", Content: new("alive")}, FinishReason: "stop"}},
		})
	}), nil
}

func (m *mortal) Status(context.Context) (worker.Status, error) {
	if s := m.spec.Load(); s != nil {
		return worker.Status{WorkerID: s.WorkerID, Nonce: s.Nonce, ModelID: s.ModelID, State: worker.StateReady, Slots: s.Slots}, nil
	}
	return worker.Status{State: worker.StateIdle}, nil
}

func (*mortal) Drain(context.Context) error { return nil }

func (*mortal) Stop(context.Context, time.Duration) error { return nil }
