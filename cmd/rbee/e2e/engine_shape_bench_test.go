package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	psutil "github.com/shirou/gopsutil/v4/process"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest"
)

// engineShape is a model and how BenchmarkEngine loads it, with one thread.
type engineShape struct {
	model         string // path
	slots, tokens int    // tokens per slot
}

// spawn loads the model in a worker of the agent. It returns the worker, how to reach its data
// socket, and the time from the request to the end of the operation.
func (s engineShape) spawn(b *testing.B, a *agent) (core.SpawnResult, *http.Client, time.Duration) {
	b.Helper()
	before := a.handles()
	began := time.Now()
	job, err := a.client().Run(b.Context(), core.Request{Operation: core.OpWorkerSpawn, Model: "file:" + s.model, Slots: s.slots, ContextTokens: s.tokens, Threads: 1}, func(core.Event) error { return nil })
	took := time.Since(began)
	must.NoError(b, err)
	var r core.SpawnResult
	must.NoError(b, json.Unmarshal(job.Result, &r))
	for _, h := range a.handles() {
		if !slices.ContainsFunc(before, func(o handle) bool { return o.Attachment.DataSocket == h.Attachment.DataSocket }) {
			return r, overSocket(func(ctx context.Context) (net.Conn, error) { return dialWorker(ctx, h.Attachment) }), took
		}
	}
	b.Fatal("the worker has no handle")
	return r, nil, took
}

// enginePeer is a llama-server.
type enginePeer struct {
	engineArm
	pid  int
	took time.Duration // from its start until it reports that it is ready
	stop func()
}

// peer starts a llama-server with the model, on a socket.
func (s engineShape) peer(b *testing.B, exe string, more ...string) enginePeer {
	b.Helper()
	socket := filepath.Join(shortDir(b), "peer.sock")
	flags := []string{"-m", s.model, "--host", socket, "-np", strconv.Itoa(s.slots), "-c", strconv.Itoa(s.slots * s.tokens)}
	flags = append(flags, "-t", "1", "-tb", "1", "--offline", "--no-ui", "--alias", "peer")
	cmd := exec.Command(exe, append(flags, more...)...)
	log := &lockedBuffer{}
	cmd.Stdout, cmd.Stderr = log, log
	began := time.Now()
	must.NoError(b, cmd.Start())
	stopped := false
	p := enginePeer{pid: cmd.Process.Pid, stop: func() {
		if !stopped {
			_ = cmd.Process.Signal(syscall.SIGKILL) // it has no state to lose
			_ = cmd.Wait()
		}
		stopped = true
	}}
	b.Cleanup(p.stop)
	p.engineArm = engineArm{name: "llama-server", base: "http://peer", model: "peer", client: overSocket(func(ctx context.Context) (net.Conn, error) { return (&net.Dialer{}).DialContext(ctx, "unix", socket) })}
	coretest.Eventually(b, patience, func() error {
		resp, err := p.client.Get(p.base + "/health")
		if err != nil {
			return fmt.Errorf("%w\n%s", err, log)
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return errors.New(resp.Status)
		}
		return nil
	})
	p.took = time.Since(began)
	return p
}

// load loads the model once more, in a worker or a peer that ends at once, and returns how long it
// took and the memory held then. The worker's figures count for the queen, through which it starts.
func (s engineShape) load(b *testing.B, a *agent, exe string, arm int, f engineFigures) {
	b.Helper()
	var took time.Duration
	var pid int
	var end func()
	switch arm {
	case 0:
		return
	case 1:
		worker, _, d := s.spawn(b, a)
		took, pid = d, worker.PID
		end = func() { a.must("worker", "retire", worker.Worker.ID, "--yes") }
	default:
		peer := s.peer(b, exe)
		took, pid, end = peer.took, peer.pid, peer.stop
	}
	f.add("load, ms", ms(took))
	f.add("resident when loaded, MiB", residentMiB(b, pid))
	end()
}

// residentMiB returns the resident memory of a process, including file pages.
func residentMiB(b *testing.B, pid int) float64 {
	b.Helper()
	p, err := psutil.NewProcess(int32(pid))
	must.NoError(b, err)
	mem, err := p.MemoryInfo()
	must.NoError(b, err)
	return float64(mem.RSS) / (1 << 20)
}

// readerModel creates an encoder of the shape of MiniLM, for measuring embeddings.
func readerModel(b *testing.B) string {
	b.Helper()
	return generate(b, "synthetic-encoder.gguf", "-arch", "bert", "-type", "q8_0", "-layers", "6", "-embd", "384", "-heads", "12", "-kv-heads", "12", "-ffn", "1536", "-vocab", "30522", "-ctx", "512", "-pooling", "mean")
}

// read measures embeddings: four requests one after the other, each with 32 texts.
func (e engineArm) read(ctx context.Context, seed, scale int, f engineFigures) error {
	const requests, texts = 4, 32
	began := time.Now()
	for i := range requests {
		var input []string
		for j := range texts {
			input = append(input, words(seed+800+i*texts+j, max(1, 20/scale)))
		}
		resp, err := e.post(ctx, "/v1/embeddings", map[string]any{"model": e.model, "input": input})
		if err != nil {
			return err
		}
		var out struct {
			Data []struct {
				Embedding []float64 `json:"embedding"`
			} `json:"data"`
		}
		err = json.NewDecoder(resp.Body).Decode(&out)
		_ = resp.Body.Close()
		if err != nil || len(out.Data) != texts || len(out.Data[texts-1].Embedding) == 0 {
			return fmt.Errorf("%s: %d embeddings (%s, %w)", e.name, len(out.Data), strings.TrimSpace(resp.Status), err)
		}
	}
	f.add("embedded texts/s", requests*texts/time.Since(began).Seconds())
	return nil
}
