package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest"
	"github.com/rbee-project/rbee/plugins/sdk/catalog"
)

// countedOrigin is a server with one model that counts the bytes it sends.
type countedOrigin struct {
	url    string
	data   []byte
	digest string
	rate   int  // bytes per second of each connection
	direct bool // the hive fetches by HTTP itself, several parts at once; otherwise the catalog source does, in one piece
	given  atomic.Int64
	half   chan struct{} // closed once half of it was sent
}

// bigModel returns a GGUF file of more than 32 MiB.
func bigModel(t testing.TB) []byte {
	t.Helper()
	file := filepath.Join(t.TempDir(), "big.gguf")
	cmd := exec.CommandContext(t.Context(), "go", "run", "../../../core/coretest/ggufgen", "-preset", "135m", "-layers", "4", "-out", file)
	r := run(t, cmd)
	must.Eq(t, 0, r.code, must.Sprint(r.stderr))
	data, err := os.ReadFile(file)
	must.NoError(t, err)
	must.Greater(t, 32<<20, len(data))
	return data
}

func newCountedOrigin(t testing.TB, rate int, direct bool) *countedOrigin {
	t.Helper()
	o := &countedOrigin{data: bigModel(t), rate: rate, direct: direct, half: make(chan struct{})}
	o.digest = fmt.Sprintf("sha256:%x", sha256.Sum256(o.data))
	mux := http.NewServeMux()
	mux.HandleFunc("/manifest", func(w http.ResponseWriter, _ *http.Request) {
		f := catalog.File{Path: "big.gguf", SizeBytes: int64(len(o.data)), Digest: o.digest}
		if o.direct {
			f.URL = o.url + "/file"
		}
		_ = json.NewEncoder(w).Encode(catalog.Manifest{Name: "big", Files: []catalog.File{f}})
	})
	mux.HandleFunc("/file", o.file)
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	o.url = s.URL
	return o
}

func (o *countedOrigin) file(w http.ResponseWriter, r *http.Request) {
	first, last, _ := strings.Cut(strings.TrimPrefix(r.Header.Get("Range"), "bytes="), "-")
	from, err := strconv.Atoi(first)
	to := len(o.data)
	if n, err := strconv.Atoi(last); err == nil {
		to = min(n+1, to)
	}
	if err != nil || from < 0 || from >= to {
		http.Error(w, "range", http.StatusRequestedRangeNotSatisfiable)
		return
	}
	w.Header().Set("Etag", `"1"`)
	w.Header().Set("Content-Length", strconv.Itoa(to-from))
	w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to-1, len(o.data)))
	w.WriteHeader(http.StatusPartialContent)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for rest := o.data[from:to]; len(rest) > 0; {
		select {
		case <-tick.C:
		case <-r.Context().Done():
			return
		}
		n, err := w.Write(rest[:min(len(rest), o.rate/20)])
		if half, given := int64(len(o.data))/2, o.given.Add(int64(n)); given >= half && given-int64(n) < half {
			close(o.half)
		}
		if err != nil || http.NewResponseController(w).Flush() != nil {
			return
		}
		rest = rest[n:]
	}
}

// newSeedingCluster returns three queens that are also hives, and one more hive, each with its own
// store, and an origin that counts.
func newSeedingCluster(t testing.TB, o *countedOrigin) *cluster {
	t.Helper()
	c := newCluster(t)
	plugins := t.TempDir()
	must.NoError(t, coretest.Build(filepath.Join(plugins, "rbee-catalog-counted"), "./testdata/counted"))
	c.extra = fmt.Sprintf("plugin_dir = %q\ncatalog \"counted\" {\n  config {\n    origin = %q\n  }\n}\n", plugins, o.url)
	c.ownStores = true
	for i := range 3 {
		c.add(fmt.Sprintf("both-%d", i+1), true, true)
	}
	c.add("hive-4", false, true)
	for _, n := range c.nodes {
		n.env = append(n.env, "RBEE_HIVE_DOWNLOAD_ALLOW_ADDRESSES=127.0.0.0/8")
	}
	c.join(3, 4)
	return c
}

// download makes all nodes download the model at once. It calls each with every event of a job.
func (c *cluster) download(nodes []*node, each func(n *node, said string)) map[*node]core.Job {
	c.t.Helper()
	cl := c.client(c.queens()...)
	var mu sync.Mutex
	jobs := map[*node]core.Job{}
	var wg sync.WaitGroup
	for _, n := range nodes {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(c.t.Context(), 2*patience)
			defer cancel()
			wg.Go(func() {
				select {
				case <-n.process.Load().done: // no queen reports the jobs of a dead hive
					cancel()
				case <-ctx.Done():
				}
			})
			j, err := cl.Run(ctx, core.Request{Operation: core.OpModelDownload, Model: "counted:big", Hive: n.name}, func(e core.Event) error {
				if e.Kind == core.EventLog {
					each(n, e.Message)
				}
				return nil
			})
			if err != nil && j.State == "" {
				j = core.Job{State: core.JobFailed, Error: core.FailureOf(err)}
			}
			mu.Lock()
			defer mu.Unlock()
			jobs[n] = j
		})
	}
	wg.Wait()
	return jobs
}

// has checks that the node's store has the model, byte for byte.
func (n *node) has(o *countedOrigin) {
	n.c.t.Helper()
	data, err := os.ReadFile(filepath.Join(n.dir, "store", "blobs", strings.Replace(o.digest, ":", "-", 1)))
	must.NoError(n.c.t, err, must.Sprint(n.name))
	must.Eq(n.c.t, o.digest, fmt.Sprintf("sha256:%x", sha256.Sum256(data)), must.Sprint(n.name))
}

// Four hives download one model at once: its origin sends every byte once. A fifth download does
// not use the origin.
func TestSeedingDownloadsOnce(t *testing.T) {
	t.Parallel()
	o := newCountedOrigin(t, 4<<20, true)
	c := newSeedingCluster(t, o)
	nodes := c.nodes[:3]
	jobs := c.download(c.nodes[:4], func(n *node, said string) { t.Logf("%s: %s", n.name, said) })
	for n, j := range jobs {
		must.Eq(t, core.JobSucceeded, j.State, must.Sprintf("%s: %+v", n.name, j.Error))
		n.has(o)
	}
	must.Eq(t, int64(len(o.data)), o.given.Load())

	// If one loses it, it gets it back from the others.
	must.NoError(t, os.RemoveAll(filepath.Join(nodes[1].dir, "store", "models")))
	must.NoError(t, os.Mkdir(filepath.Join(nodes[1].dir, "store", "models"), 0o700))
	must.NoError(t, os.Remove(filepath.Join(nodes[1].dir, "store", "blobs", strings.Replace(o.digest, ":", "-", 1))))
	var from atomic.Value
	for n, j := range c.download(nodes[1:2], func(_ *node, said string) { from.Store(said) }) {
		must.Eq(t, core.JobSucceeded, j.State, must.Sprintf("%s: %+v", n.name, j.Error))
		n.has(o)
	}
	must.StrContains(t, fmt.Sprint(from.Load()), "taking it from hive ")
	must.Eq(t, int64(len(o.data)), o.given.Load())
}

// The hive that fetches the model from its origin is killed halfway: all others get it in the end,
// and the origin resends only what that hive had not passed on. This also holds for the next leader
// if the leader is killed with it.
func TestSeedingHiveIsKilled(t *testing.T) {
	t.Parallel()
	o := newCountedOrigin(t, 6<<20, false)
	c := newSeedingCluster(t, o)
	var seeder atomic.Pointer[node]
	killed := make(chan struct{})
	go func() {
		defer close(killed)
		select {
		case <-o.half:
		case <-t.Context().Done():
			return
		}
		if n := seeder.Load(); n != nil {
			n.kill()
		}
	}()
	jobs := c.download(c.nodes, func(n *node, said string) {
		t.Logf("%s: %s", n.name, said)
		if strings.Contains(said, "taking it from its origin") {
			seeder.CompareAndSwap(nil, n)
		}
	})
	<-killed
	must.NotNil(t, seeder.Load())
	must.False(t, seeder.Load().running())
	for n, j := range jobs {
		if n == seeder.Load() {
			must.NotEq(t, core.JobSucceeded, j.State)
			continue
		}
		must.Eq(t, core.JobSucceeded, j.State, must.Sprintf("%s: %+v", n.name, j.Error))
		n.has(o)
	}
	t.Logf("the origin gave %d bytes for a file of %d", o.given.Load(), len(o.data))
	must.Less(t, int64(len(o.data))*5/4, o.given.Load())
}
