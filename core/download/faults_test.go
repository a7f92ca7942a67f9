package download_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core/download"
	"github.com/rbee-project/rbee/core/store"
	"github.com/rbee-project/rbee/plugins/sdk/origin"
)

const childEnv = "RBEE_TEST_DOWNLOAD"

// childOrder tells a child process, which will be killed, what to do.
type childOrder struct {
	Dir, URL string
	Spec     store.ModelSpec
}

func TestMain(m *testing.M) {
	if order := os.Getenv(childEnv); order != "" {
		if err := child(order); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// child fetches a model into a store and exits.
func child(text string) error {
	var order childOrder
	if err := json.Unmarshal([]byte(text), &order); err != nil {
		return err
	}
	client, err := origin.New(origin.Options{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}})
	if err != nil {
		return err
	}
	client.HTTP().Transport = &http.Transport{DialContext: (&net.Dialer{Control: smallReads}).DialContext}
	s, err := store.Open(order.Dir, nil)
	if err != nil {
		return err
	}
	_, err = s.PutModel(context.Background(), order.Spec, from(order.URL, download.Options{Client: client, Connections: 4, Backoff: 1}), nil)
	return err
}

// smallReads bounds the bytes that a connection has received and this process has not read. They
// are lost with the process, and on a busy machine they would be several MiB.
func smallReads(_, _ string, c syscall.RawConn) error {
	var err error
	failed := c.Control(func(fd uintptr) {
		err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 64<<10)
	})
	return errors.Join(failed, err)
}

// from serves the first file, which must be a GGUF, from this repository, and the others by HTTP.
func from(url string, o download.Options) store.Supply {
	return store.SupplyFunc(func(f store.FileSpec) store.Sources {
		if f.Path == "tiny.gguf" {
			return store.Fetch(func(_ context.Context, _ store.FileSpec, offset int64, w io.Writer) error {
				b, err := os.ReadFile("../../plugins/catalog-builtin/rbee-tiny.gguf")
				if err == nil {
					_, err = w.Write(b[offset:])
				}
				return err
			}).Sources(f)
		}
		d, err := download.New(download.File{URL: url, SizeBytes: f.SizeBytes, Digested: true}, o)
		if err != nil {
			return store.Only()
		}
		return store.Only(d)
	})
}

// modelOf returns a model that consists of the repository's GGUF and another file.
func modelOf(t testing.TB, size int64, digest string) store.ModelSpec {
	t.Helper()
	tiny, err := os.ReadFile("../../plugins/catalog-builtin/rbee-tiny.gguf")
	must.NoError(t, err)
	return store.ModelSpec{ID: "m", Ref: "test:m", Files: []store.FileSpec{
		{Path: "tiny.gguf", SizeBytes: int64(len(tiny)), Digest: fmt.Sprintf("sha256:%x", sha256.Sum256(tiny))},
		{Path: "big.bin", SizeBytes: size, Digest: digest},
	}}
}

// rough is a server that cuts connections, and reports when to kill the client, at positions
// counted over all the bytes it has sent.
type rough struct {
	body []byte
	kill chan struct{} // a position for a kill has been passed

	mu    sync.Mutex // guards below
	sent  int64
	cuts  []int64 // positions, ascending
	kills []int64
	held  bool          // a kill is due
	let   chan struct{} // closed after the kill
}

// overrun is how many bytes are sent past a kill position before the server waits for the kill.
const overrun = 4 << 20

// pass decides what to do before another n bytes are sent: wait, cut, or (nil, false) send.
func (r *rough) pass(n int64) (wait <-chan struct{}, cut bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.kills) > 0 && r.sent >= r.kills[0] {
		if !r.held {
			r.held = true
			r.kill <- struct{}{}
		}
		if r.sent >= r.kills[0]+overrun {
			return r.let, false
		}
	}
	if len(r.cuts) > 0 && r.sent >= r.cuts[0] {
		r.cuts = r.cuts[1:]
		return nil, true
	}
	r.sent += n
	return nil, false
}

// killed makes the server continue after a kill.
func (r *rough) killed() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.kills, r.held = r.kills[1:], false
	close(r.let)
	r.let = make(chan struct{})
}

func (r *rough) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	first, last, size := int64(0), int64(len(r.body))-1, int64(len(r.body))
	w.Header().Set("ETag", `"v1"`)
	status := http.StatusOK
	if _, err := fmt.Sscanf(req.Header.Get("Range"), "bytes=%d-%d", &first, &last); err == nil {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, last, size))
		status = http.StatusPartialContent
	}
	w.Header().Set("Content-Length", strconv.FormatInt(last-first+1, 10))
	w.WriteHeader(status)
	for at := first; at <= last; {
		n := min(64<<10, last+1-at)
		wait, cut := r.pass(n)
		switch {
		case wait != nil:
			select {
			case <-wait:
			case <-req.Context().Done():
				panic(http.ErrAbortHandler)
			}
			continue
		case cut:
			panic(http.ErrAbortHandler)
		}
		if _, err := w.Write(r.body[at : at+n]); err != nil {
			panic(http.ErrAbortHandler)
		}
		at += n
	}
}

// smallBuffers accepts connections with small buffers for sent and unread bytes, which are lost
// with their reader.
type smallBuffers struct{ net.Listener }

func (l smallBuffers) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		err = c.(*net.TCPConn).SetWriteBuffer(64 << 10)
	}
	return c, err
}

// S-01: a transfer whose connections are cut and whose process is killed, again and again, ends
// with the right bytes and has fetched few of them twice. RBEE_DOWNLOAD_FAULTS=1 runs the long
// form: 512 MiB, 100 cuts, 20 kills.
func TestFaultCutsAndKills(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("it starts processes")
	}
	size, cuts, kills := int64(64<<20), 10, 2
	if os.Getenv("RBEE_DOWNLOAD_FAULTS") != "" {
		size, cuts, kills = 512<<20, 100, 20
	}
	body := noise(int(size))
	r := &rough{body: body, kill: make(chan struct{}, 1), let: make(chan struct{})}
	dice := rand.New(rand.NewPCG(1, 2))
	for range cuts {
		r.cuts = append(r.cuts, dice.Int64N(size))
	}
	slices.Sort(r.cuts)
	for i := range kills {
		r.kills = append(r.kills, size/int64(kills+1)*int64(i)+dice.Int64N(size/int64(kills+1))+1)
	}
	server := httptest.NewUnstartedServer(r)
	server.Listener = smallBuffers{server.Listener}
	server.Start()
	t.Cleanup(server.Close)
	dir := t.TempDir()
	spec := modelOf(t, size, fmt.Sprintf("sha256:%x", sha256.Sum256(body)))
	order, err := json.Marshal(childOrder{Dir: dir, URL: server.URL + "/big.bin", Spec: spec})
	must.NoError(t, err)
	exe, err := os.Executable()
	must.NoError(t, err)

	processes := 0
	for done := false; !done; processes++ {
		cmd := exec.CommandContext(t.Context(), exe)
		cmd.Env = append(os.Environ(), childEnv+"="+string(order))
		var out bytes.Buffer
		cmd.Stderr = &out
		must.NoError(t, cmd.Start())
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		select {
		case err := <-ended:
			must.NoError(t, err, must.Sprint(out.String()))
			done = true
		case <-r.kill:
			must.NoError(t, cmd.Process.Kill())
			<-ended
			server.CloseClientConnections()
			r.killed()
		}
	}
	must.Eq(t, kills+1, processes)
	must.SliceEmpty(t, r.cuts)
	s, err := store.Open(dir, nil)
	must.NoError(t, err)
	defer s.Close()
	must.NoError(t, s.VerifyModel(t.Context(), "m"))
	twice := r.sent - size
	t.Logf("%d MiB, %d cuts, %d kills: %.1f MiB sent twice, %.2f MiB for each kill", size>>20, cuts, kills, float64(twice)/(1<<20), float64(twice)/(1<<20)/float64(kills))
	must.LessEq(t, int64(kills)*(size/100+8<<20), twice)
}
