package gateway

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
)

// A worker on an unresponsive machine costs a moment while another worker exists, and gets the full
// timeout otherwise.
func TestDialNextCandidate(t *testing.T) {
	t.Parallel()
	var (
		mu   sync.Mutex
		gave = map[string]time.Duration{}
		r    *rig
	)
	r = newRig(t, func(o *rigOptions) {
		o.inf.DialTimeout = 700 * time.Millisecond
		o.inf.Dial = func(ctx context.Context, w core.Worker) (net.Conn, error) {
			deadline, _ := ctx.Deadline()
			mu.Lock()
			gave[w.ID] = time.Until(deadline)
			mu.Unlock()
			if w.Hive == "dark" {
				<-ctx.Done() // neither answers nor refuses
				return nil, ctx.Err()
			}
			return r.dialWorker(ctx, w)
		}
	})
	r.add(core.Worker{ID: "w0", Hive: "dark", Model: "tiny", Nonce: "n"}, "")
	r.add(core.Worker{ID: "w1", Hive: "gone", Model: "tiny", Nonce: "n"}, "") // refused
	r.serve("w2", answerJSON(200, wholeAnswer))
	start := time.Now()
	resp, _, err := r.post("/v1/chat/completions", askTiny)
	must.NoError(t, err)
	must.Eq(t, 200, resp.StatusCode)
	must.Eq(t, "w2", resp.Header.Get("X-Rbee-Worker"))
	must.Eq(t, "test; attempt 3", resp.Header.Get("X-Rbee-Route"))
	must.Between(t, 250*time.Millisecond, time.Since(start), 650*time.Millisecond)
	must.Eq(t, []string{"w0", "w1"}, r.router.failures())
	must.Between(t, 150*time.Millisecond, gave["w0"], 250*time.Millisecond)
	must.Between(t, 500*time.Millisecond, gave["w2"], 700*time.Millisecond)

	r.add(core.Worker{ID: "w3", Hive: "dark", Model: "alone", Nonce: "n"}, "")
	start = time.Now()
	resp, body, err := r.post("/v1/chat/completions", `{"model":"alone","messages":[]}`)
	must.NoError(t, err)
	must.Eq(t, 503, resp.StatusCode)
	must.StrContains(t, errorIn(t, body).Message, "cannot be reached")
	must.Between(t, 700*time.Millisecond, time.Since(start), 2*time.Second)
}

func TestSuspectHiveIdleConnections(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	dials := 0
	var r *rig
	r = newRig(t, func(o *rigOptions) {
		o.inf.Dial = func(ctx context.Context, w core.Worker) (net.Conn, error) {
			mu.Lock()
			dials++
			mu.Unlock()
			return r.dialWorker(ctx, w)
		}
	})
	r.serve("w1", answerJSON(200, wholeAnswer))
	for i, want := range []int{1, 1, 1, 2} {
		switch i {
		case 2:
			r.inference.DropHive("another hive")
		case 3:
			r.inference.DropHive("h1")
		}
		resp, _, err := r.post("/v1/chat/completions", askTiny)
		must.NoError(t, err)
		must.Eq(t, 200, resp.StatusCode)
		must.Eq(t, want, dials)
	}
}
