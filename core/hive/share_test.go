package hive

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/operation"
	"github.com/rbee-project/rbee/core/store"
	"github.com/rbee-project/rbee/core/swarm"
	hivev1 "github.com/rbee-project/rbee/proto/hive/v1"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
)

// town is a set of hives that reach each other, with the leader's board.
type town struct {
	t     *testing.T
	board *swarm.Board

	mu    sync.Mutex // guards below
	hives map[string]*rig
	doors map[string]net.Listener
	shut  map[string]bool // hives that do not answer
}

func newTown(t *testing.T) *town {
	t.Helper()
	w := &town{t: t, hives: map[string]*rig{}, doors: map[string]net.Listener{}, shut: map[string]bool{}}
	w.board = swarm.NewBoard(func(id string) (swarm.Hive, bool) { return swarm.Hive{Name: "name-" + id, Address: id}, true })
	return w
}

// add runs a hive with its files served on loopback, in place of a mux of core/rpc.
func (w *town) add(id string, change ...func(*Options)) *rig {
	w.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must.NoError(w.t, err)
	r := run(w.t, setup{blobs: townQueen{w: w, hive: id}, change: func(o *Options) {
		o.ID, o.Name, o.Peers = id, "name-"+id, w
		for _, f := range change {
			f(o)
		}
	}})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.hive.ServeBlobs(ctx, l) }()
	w.t.Cleanup(func() {
		cancel()
		must.NoError(w.t, <-ended)
	})
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hives[id], w.doors[id] = r, l
	return r
}

// DialBlob connects to a hive of the town.
func (w *town) DialBlob(ctx context.Context, hive, address string) (net.Conn, error) {
	w.mu.Lock()
	l, shut := w.doors[hive], w.shut[hive]
	w.mu.Unlock()
	if l == nil || shut || address != hive {
		return nil, core.Errorf(core.Unavailable, "no way to %s", hive)
	}
	var d net.Dialer
	return d.DialContext(ctx, "tcp", l.Addr().String())
}

// townQueen is the leader as seen by one hive.
type townQueen struct {
	queenv1.UnimplementedBlobServiceServer
	w    *town
	hive string
}

func (q townQueen) Claim(ctx context.Context, req *queenv1.ClaimRequest) (*queenv1.ClaimResponse, error) {
	if ask, _, err := q.w.board.Begin(time.Now(), req.GetDigest()); err != nil {
		return nil, err
	} else if ask {
		q.w.board.Asked(time.Now(), req.GetDigest(), q.w.holdings(ctx, req.GetDigest()))
	}
	p, err := q.w.board.Claim(time.Now(), swarm.Claim{
		Hive: q.hive, Digest: req.GetDigest(), Stage: swarm.Stage(req.GetStage()), HaveBytes: req.GetHaveBytes(), Source: req.GetSource(),
		Avoid: req.GetAvoid(), NoOrigin: req.GetNoOrigin(), Mute: req.GetMute(),
	})
	resp := &queenv1.ClaimResponse{Origin: p.Origin, Waiting: p.Waiting, Nobody: p.Nobody, Again: durationpb.New(p.Again)}
	for _, s := range p.Seeders {
		resp.Seeders = append(resp.Seeders, &queenv1.Seeder{Hive: s.Hive, Name: s.Name, RpcAddress: s.Address})
	}
	return resp, err
}

func (w *town) holdings(ctx context.Context, digest string) map[string]swarm.Holding {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := map[string]swarm.Holding{}
	for id, r := range w.hives {
		resp, err := r.hives.FindBlob(ctx, &hivev1.FindBlobRequest{Digest: digest})
		must.NoError(w.t, err)
		out[id] = swarm.Holding{Whole: resp.GetWhole(), Fetching: resp.GetFetching(), FromOrigin: resp.GetFromOrigin(), HaveBytes: resp.GetHaveBytes()}
	}
	return out
}

func wantTiny() core.Request { return core.Request{Operation: core.OpModelDownload, Model: "tiny"} }

// Hives that want a model at once fetch it from its origin once, and a later one does not at all.
// Their jobs log the source.
func TestModelFromOtherHives(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	said := map[string]string{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, id := range []string{"h1", "h2", "h3"} {
		r := w.add(id)
		wg.Go(func() {
			j, events := r.follow(r.submit(wantTiny()).ID)
			must.Eq(t, core.JobSucceeded, j.State, must.Sprintf("%+v", j.Error))
			mu.Lock()
			defer mu.Unlock()
			said[id] = logs(events)
		})
	}
	wg.Wait()
	origins := 0
	for id, text := range said {
		if strings.Contains(text, "taking it from its origin") {
			origins++
			continue
		}
		must.StrContains(t, text, "taking it from hive name-", must.Sprint(id))
	}
	must.Eq(t, 1, origins, must.Sprint(said))

	late := w.add("late")
	j, events := late.follow(late.submit(wantTiny()).ID)
	must.Eq(t, core.JobSucceeded, j.State)
	must.StrContains(t, logs(events), "taking it from hive name-")
	must.StrNotContains(t, logs(events), "origin")
}

// A hive with a damaged copy does not harm others: what it serves has the wrong digest, and they
// fall back to the origin.
func TestModelFromAHiveWithADamagedCopy(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	bad := w.add("h1")
	m := result1[core.Model](bad, wantTiny())
	blob := filepath.Join(bad.dir, "store", "blobs", strings.Replace(m.Digest, ":", "-", 1))
	must.NoError(t, os.Chmod(blob, 0o600))
	f, err := os.OpenFile(blob, os.O_RDWR, 0)
	must.NoError(t, err)
	_, err = f.WriteAt([]byte("damage"), m.SizeBytes/2)
	must.NoError(t, err)
	must.NoError(t, f.Close())

	r := w.add("h2")
	j, events := r.follow(r.submit(wantTiny()).ID)
	must.Eq(t, core.JobSucceeded, j.State, must.Sprintf("%+v", j.Error))
	text := logs(events)
	must.StrContains(t, text, "taking it from hive name-h1")
	must.StrContains(t, text, "what came from other hives was not right")
	must.StrContains(t, text, "taking it from its origin")
	got, err := operation.ModelGet.Ask(t.Context(), r, core.Request{Model: "tiny"})
	must.NoError(t, err)
	must.Eq(t, m.Digest, got.Digest)
	must.Eq(t, "", got.Damaged)
}

// An unreachable hive that the leader names costs a moment; so does a leader that does not know the
// service.
func TestModelWithoutOtherHives(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	result1[core.Model](w.add("h1"), wantTiny())
	w.mu.Lock()
	w.shut["h1"] = true
	w.mu.Unlock()
	r := w.add("h2")
	j, events := r.follow(r.submit(wantTiny()).ID)
	must.Eq(t, core.JobSucceeded, j.State)
	must.StrContains(t, logs(events), "hive name-h1 gives no more")
	must.StrContains(t, logs(events), "taking it from its origin")

	old := run(t, setup{change: func(o *Options) { o.ID, o.Peers = "h3", w }})
	j, events = old.follow(old.submit(wantTiny()).ID)
	must.Eq(t, core.JobSucceeded, j.State)
	must.StrContains(t, logs(events), "taking it from its origin")
}

// A hive that keeps its files serves none, is not named to others, and still fetches from them.
func TestModelHiveKeepsFiles(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	keeper := w.add("h1", func(o *Options) { o.KeepFiles = true })
	m := result1[core.Model](keeper, wantTiny())
	resp, err := keeper.hives.FindBlob(t.Context(), &hivev1.FindBlobRequest{Digest: m.Digest})
	must.NoError(t, err)
	must.False(t, resp.GetWhole())
	r := w.add("h2")
	j, events := r.follow(r.submit(wantTiny()).ID)
	must.Eq(t, core.JobSucceeded, j.State)
	must.StrNotContains(t, logs(events), "hive name-h1")
	_, err = net.Dial("tcp", w.doors["h1"].Addr().String())
	must.Error(t, err)
	taker := w.add("h3", func(o *Options) { o.KeepFiles = true })
	j, events = taker.follow(taker.submit(wantTiny()).ID)
	must.Eq(t, core.JobSucceeded, j.State)
	must.StrContains(t, logs(events), "taking it from hive name-h2")
}

// Sources at the origin are tried one after the other, as without other hives; and again from the
// first when hives delivered wrong bytes.
func TestSourcesAtTheOrigin(t *testing.T) {
	t.Parallel()
	gone := core.Errorf(core.Unavailable, "gone")
	first := store.Fetch(nil).Source("first", store.FileSpec{})
	second := store.Fetch(nil).Source("second", store.FileSpec{})
	alone := swarm.Plan{Origin: true}
	for name, tt := range map[string]struct {
		plans  []swarm.Plan
		failed []error
		want   []string
	}{
		"the first does":        {[]swarm.Plan{alone}, []error{nil}, []string{"first"}},
		"the second does":       {[]swarm.Plan{alone}, []error{nil, gone}, []string{"first", "second"}},
		"none does":             {[]swarm.Plan{alone, {Nobody: true}}, []error{nil, gone, gone}, []string{"first", "second", ""}},
		"a hive does":           {[]swarm.Plan{{Seeders: []swarm.Seeder{{Hive: "x", Name: "x"}}}}, []error{nil}, []string{"hive x"}},
		"a hive dies":           {[]swarm.Plan{{Seeders: []swarm.Seeder{{Hive: "x", Name: "x"}}}, alone}, []error{nil, gone, gone}, []string{"hive x", "first", "second"}},
		"a hive has lied":       {[]swarm.Plan{{Seeders: []swarm.Seeder{{Hive: "x", Name: "x"}}}}, []error{nil, core.Errorf(core.Integrity, "wrong")}, []string{"hive x", "first"}},
		"a hive had lied":       {[]swarm.Plan{{Seeders: []swarm.Seeder{{Hive: "x", Name: "x"}}}, alone}, []error{nil, gone, core.Errorf(core.Integrity, "wrong")}, []string{"hive x", "first", "first"}},
		"the origin is wrong":   {[]swarm.Plan{alone, {Nobody: true}}, []error{nil, core.Errorf(core.Integrity, "wrong"), gone}, []string{"first", "second", ""}},
		"wrong after all hives": {[]swarm.Plan{{Seeders: []swarm.Seeder{{Hive: "x", Name: "x"}}}}, []error{nil, core.Errorf(core.Integrity, "wrong"), core.Errorf(core.Integrity, "wrong"), gone}, []string{"hive x", "first", "second", ""}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			next := 0
			c := swarm.NewClient(swarm.ClientOptions{
				Have: func(string) int64 { return 0 },
				Claim: func(_ context.Context, c swarm.Claim) (swarm.Plan, error) {
					if c.Stage != swarm.Asking {
						return swarm.Plan{}, nil
					}
					next++
					return tt.plans[next-1], nil
				},
			})
			spec := store.FileSpec{Path: "f", SizeBytes: 4}
			supply := store.SupplyFunc(func(store.FileSpec) store.Sources { return store.Only(first, second) })
			k := c.Seek("sha256:"+strings.Repeat("ab", 32), 4, func(string, ...any) {})
			defer k.Close(t.Context(), false)
			s := &sharedSources{seeker: k, file: spec, supply: supply}
			for i, failed := range tt.failed {
				got, err := s.Next(t.Context(), failed)
				must.NoError(t, err)
				name := ""
				if got != nil {
					name = got.Name()
				}
				must.Eq(t, tt.want[i], name)
			}
		})
	}
}

// A file that is being downloaded is served as far as it has arrived.
func TestBlobThatArrives(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile(tinyModel)
	must.NoError(t, err)
	w := newTown(t)
	r := w.add("h1")
	half := len(data) / 2
	more := make(chan struct{})
	digest := fmt.Sprintf("sha256:%x", sha256.Sum256(data))
	fetch := store.Fetch(func(ctx context.Context, _ store.FileSpec, offset int64, to io.Writer) error {
		if _, err := to.Write(data[offset:half]); err != nil {
			return err
		}
		select {
		case <-more:
		case <-ctx.Done():
			return ctx.Err()
		}
		_, err := to.Write(data[half:])
		return err
	})
	stored := make(chan error, 1)
	go func() {
		_, err := r.hive.claims.store.PutModel(t.Context(), store.ModelSpec{ID: "slow", Ref: "x:slow", Files: []store.FileSpec{{Path: "slow.gguf", SizeBytes: int64(len(data)), Digest: digest}}}, fetch, nil)
		stored <- err
	}()
	var b swarm.Blob
	for deadline := time.Now().Add(patience); ; {
		if b, err = (sharedShelf{r.hive.claims.store}).OpenBlob(digest); err == nil {
			break
		}
		must.Eq(t, core.NotFound, core.KindOf(err))
		must.True(t, time.Now().Before(deadline))
	}
	defer b.Close()
	must.Eq(t, int64(len(data)), b.Size())
	end, err := b.Wait(t.Context(), 0)
	must.NoError(t, err)
	must.Positive(t, end)
	must.LessEq(t, int64(half), end)
	have, whole := r.hive.blobs.hasBlob(digest)
	must.False(t, whole)
	must.LessEq(t, int64(half), have)
	close(more)
	must.NoError(t, <-stored)
	got, err := io.ReadAll(io.NewSectionReader(b, 0, b.Size()))
	must.NoError(t, err)
	must.True(t, bytes.Equal(data, got))
	have, whole = r.hive.blobs.hasBlob(digest)
	must.True(t, whole)
	must.Eq(t, int64(len(data)), have)
	have, whole = r.hive.blobs.hasBlob("sha256:" + strings.Repeat("00", 32))
	must.False(t, whole)
	must.Eq(t, 0, have)
}
