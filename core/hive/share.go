package hive

import (
	"context"
	"errors"
	"io"
	"net"
	"path"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/job"
	"github.com/rbee-project/rbee/core/store"
	"github.com/rbee-project/rbee/core/swarm"
	hivev1 "github.com/rbee-project/rbee/proto/hive/v1"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
)

const (
	// leastShared is the least size, in bytes, of a file to ask other hives for: fetching a smaller
	// one is faster than asking.
	leastShared = 1 << 20
	// claimTimeout is how long one queen may take to answer where to fetch a file from before
	// another is asked.
	claimTimeout = 2500 * time.Millisecond
)

// Peers is how a hive reaches the files of other hives. *rpc.Pool implements it.
type Peers interface {
	// DialBlob connects to the files of the hive with this node id, whose RPC port is at address.
	DialBlob(ctx context.Context, hive, address string) (net.Conn, error)
}

// ServeBlobs serves this hive's files to the hives that connect, until ctx ends or l is closed. The
// connections of l are those of rpc.Mux.Blobs. If the options forbid sharing, it closes l.
func (h *Hive) ServeBlobs(ctx context.Context, l net.Listener) error {
	if h.blobs.keep {
		_ = l.Close()
		<-ctx.Done()
		return nil
	}
	return swarm.NewServer(sharedShelf{h.blobs.store}, h.opts.UploadLimit, h.blobs.log).Serve(ctx, l)
}

// sharedShelf is the store as core/swarm needs it.
type sharedShelf struct{ shelf }

// OpenBlob opens a file.
func (s sharedShelf) OpenBlob(digest string) (swarm.Blob, error) {
	b, err := s.shelf.OpenBlob(digest)
	if err != nil {
		return nil, err // not a nil *Blob in an interface
	}
	return sharedBlob{b}, nil
}

type sharedBlob struct{ *store.Blob }

// Size returns the size of the whole file.
func (b sharedBlob) Size() int64 { return b.SizeBytes() }

// blobs serves the hive's files, and finds files at other hives.
type blobs struct {
	log   hclog.Logger
	store shelf
	keep  bool          // do not share files with other hives
	swarm *swarm.Client // nil: there are no other hives
}

func newBlobs(opts Options, s shelf, log hclog.Logger) *blobs {
	bl := &blobs{log: log, store: s, keep: opts.KeepFiles}
	if opts.Peers != nil && opts.Queens != nil {
		c := &claimer{queens: opts.Queens}
		bl.swarm = swarm.NewClient(swarm.ClientOptions{Dial: opts.Peers.DialBlob, Claim: c.claim, Have: bl.haveBytes, Mute: bl.keep, Logger: log})
	}
	return bl
}

// haveBytes returns how much of a file is stored, from its beginning.
func (bl *blobs) haveBytes(digest string) int64 {
	n, _ := bl.hasBlob(digest)
	return n
}

// hasBlob returns how much of a file is stored, from its beginning, and whether that is all of it,
// verified.
func (bl *blobs) hasBlob(digest string) (bytes int64, whole bool) {
	b, err := bl.store.OpenBlob(digest)
	if err != nil {
		return 0, false
	}
	defer b.Close()
	ctx, cancel := context.WithCancel(context.Background()) // never blocks
	cancel()
	for {
		end, err := b.Wait(ctx, bytes)
		if err != nil || end <= bytes {
			return bytes, !b.Arriving()
		}
		bytes = end
	}
}

// FindBlob reports how much of a file the hive has.
func (s hiveService) FindBlob(_ context.Context, req *hivev1.FindBlobRequest) (*hivev1.FindBlobResponse, error) {
	bl := s.h.blobs
	if bl.swarm == nil || bl.keep || !swarm.ValidDigest(req.GetDigest()) {
		return &hivev1.FindBlobResponse{}, nil
	}
	resp := &hivev1.FindBlobResponse{}
	resp.HaveBytes, resp.Whole = bl.hasBlob(req.GetDigest())
	resp.Fetching, resp.FromOrigin = bl.swarm.Fetching(req.GetDigest())
	return resp, nil
}

// claimer asks the leading queen, through any queen, where to fetch a file from. It is safe for
// concurrent use.
type claimer struct {
	queens Queens

	mu   sync.Mutex // guards last
	last string     // the queen that answered last
}

func (c *claimer) claim(ctx context.Context, claim swarm.Claim) (swarm.Plan, error) {
	req := &queenv1.ClaimRequest{
		Digest: claim.Digest, Stage: queenv1.BlobStage(claim.Stage), HaveBytes: claim.HaveBytes, Source: claim.Source,
		Avoid: claim.Avoid, NoOrigin: claim.NoOrigin, Mute: claim.Mute,
	}
	c.mu.Lock()
	last := c.last
	c.mu.Unlock()
	list := slices.Clone(c.queens.List())
	if i := slices.IndexFunc(list, func(q QueenAddress) bool { return q.ID == last }); i > 0 {
		list[0], list[i] = list[i], list[0]
	}
	var err error = core.Errorf(core.Unavailable, "no queen is known")
	for _, q := range list {
		var conn grpc.ClientConnInterface
		if conn, err = c.queens.Conn(q); err != nil {
			continue
		}
		var resp *queenv1.ClaimResponse
		if resp, err = askQueen(ctx, conn, req); err == nil {
			c.mu.Lock()
			c.last = q.ID
			c.mu.Unlock()
			return planOf(resp), nil
		}
		if ctx.Err() != nil {
			return swarm.Plan{}, core.FromContext(ctx)
		}
	}
	return swarm.Plan{}, err
}

func askQueen(ctx context.Context, conn grpc.ClientConnInterface, req *queenv1.ClaimRequest) (*queenv1.ClaimResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, claimTimeout)
	defer cancel()
	return queenv1.NewBlobServiceClient(conn).Claim(ctx, req)
}

func planOf(r *queenv1.ClaimResponse) swarm.Plan {
	p := swarm.Plan{Origin: r.GetOrigin(), Waiting: r.GetWaiting(), Nobody: r.GetNobody(), Again: r.GetAgain().AsDuration()}
	for _, s := range r.GetSeeders() {
		p.Seeders = append(p.Seeders, swarm.Seeder{Hive: s.GetHive(), Name: s.GetName(), Address: s.GetRpcAddress()})
	}
	return p
}

// sharing supplies one job: it tries other hives before the origin.
type sharing struct {
	blobs  *blobs
	run    *job.Run
	origin store.Supply

	mu      sync.Mutex // guards seekers
	seekers map[*swarm.Seeker]string
}

// share makes the job try other hives, if any, before origin. done must be called when the job has
// finished, successfully or not.
func (bl *blobs) share(ctx context.Context, source *source, origin store.Supply, run *job.Run) (supply store.Supply, done func()) {
	if bl.swarm == nil || source.local() {
		return origin, func() {}
	}
	s := &sharing{blobs: bl, run: run, origin: origin, seekers: map[*swarm.Seeker]string{}}
	return s, func() { s.close(ctx) }
}

// local reports whether a source's files are on this machine in any case.
func (s *source) local() bool { return s.spec.Name == "builtin" || s.spec.Name == "file" }

// Sources returns the sources of one file.
func (s *sharing) Sources(f store.FileSpec) store.Sources {
	if !swarm.ValidDigest(f.Digest) || f.SizeBytes < leastShared {
		return s.origin.Sources(f)
	}
	name := path.Base(f.Path)
	k := s.blobs.swarm.Seek(f.Digest, f.SizeBytes, func(format string, args ...any) { s.run.Log(name+": "+format, args...) })
	s.mu.Lock()
	s.seekers[k] = f.Digest
	s.mu.Unlock()
	return &sharedSources{seeker: k, file: f, supply: s.origin}
}

// close reports to the leader what became of the files.
func (s *sharing) close(ctx context.Context) {
	var wg sync.WaitGroup
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, digest := range s.seekers {
		_, whole := s.blobs.hasBlob(digest)
		wg.Go(func() { k.Close(ctx, whole) })
	}
	wg.Wait()
}

// sharedSources yields hives, and the sources at the origin.
type sharedSources struct {
	seeker *swarm.Seeker
	file   store.FileSpec
	supply store.Supply
	origin store.Sources // being iterated; nil: the current source is a hive
	mixed  bool          // a hive has been a source
}

// Next returns the next source.
func (s *sharedSources) Next(ctx context.Context, failed error) (store.Source, error) {
	if s.origin != nil && failed != nil && !(s.mixed && core.KindOf(failed) == core.Integrity) {
		if next, err := s.origin.Next(ctx, failed); next != nil || err != nil {
			return next, err
		}
	}
	for {
		step, err := s.seeker.Next(ctx, failed)
		switch {
		case err != nil:
			return nil, err
		case !step.Origin && step.Seeder.Hive == "":
			return nil, nil // the transfer fails
		case !step.Origin:
			s.origin, s.mixed = nil, true
			return hiveSource{s.seeker, step.Seeder.Name, s.file.SizeBytes}, nil
		}
		s.origin = s.supply.Sources(s.file)
		if core.KindOf(failed) == core.Integrity {
			s.mixed = false // the bytes from hives were dropped
		}
		next, err := s.origin.Next(ctx, nil)
		if next != nil {
			return next, err
		}
		if failed = err; err == nil {
			failed = core.Errorf(core.Unavailable, "nobody has %s to offer", s.file.Path)
		}
	}
}

// hiveSource is another hive's copy of a file.
type hiveSource struct {
	seeker *swarm.Seeker
	name   string
	size   int64
}

// Name returns the hive's name.
func (s hiveSource) Name() string { return "hive " + s.name }

// Connections returns 1: within a cluster, more do not help.
func (s hiveSource) Connections() int { return 1 }

// Fetch writes a part of the file.
func (s hiveSource) Fetch(ctx context.Context, from, to int64, w io.Writer) error {
	if to < 0 {
		to = s.size
	}
	err := s.seeker.Fetch(ctx, from, to, w)
	if errors.Is(err, store.ErrEnough) {
		return nil
	}
	return err
}

var (
	_ store.Supply  = (*sharing)(nil)
	_ store.Sources = (*sharedSources)(nil)
	_ store.Source  = hiveSource{}
	_ swarm.Shelf   = sharedShelf{}
)
