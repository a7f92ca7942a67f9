package swarm_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest"
	"github.com/rbee-project/rbee/core/swarm"
)

// memFile is a file in memory, whole or still arriving.
type memFile struct {
	mu    sync.Mutex // guards below
	data  []byte
	have  int64
	ended bool
	news  chan struct{}
}

func newMemFile(size int) *memFile {
	return &memFile{data: make([]byte, size), news: make(chan struct{})}
}

func wholeMemFile(data []byte) *memFile {
	return &memFile{data: data, have: int64(len(data)), news: make(chan struct{})}
}

func (f *memFile) change(do func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	do()
	close(f.news)
	f.news = make(chan struct{})
}

func (f *memFile) Write(b []byte) (n int, err error) {
	f.change(func() {
		if n = copy(f.data[f.have:], b); n < len(b) {
			err = errors.New("too long")
		}
		f.have += int64(n)
	})
	return n, err
}

func (f *memFile) bytes() int64 { f.mu.Lock(); defer f.mu.Unlock(); return f.have }

func (f *memFile) Close() error { return nil }

func (f *memFile) Size() int64 { return int64(len(f.data)) }

func (f *memFile) ReadAt(b []byte, at int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := copy(b, f.data[at:f.have])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (f *memFile) Wait(ctx context.Context, offset int64) (int64, error) {
	for {
		f.mu.Lock()
		have, ended, news := f.have, f.ended, f.news
		f.mu.Unlock()
		switch {
		case have > offset:
			return have, nil
		case offset >= int64(len(f.data)):
			return have, io.EOF
		case ended:
			return 0, core.Errorf(core.Unavailable, "the transfer has ended")
		}
		select {
		case <-news:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// rig runs hives, a leader's board, and an origin in one process.
type rig struct {
	t      *testing.T
	data   []byte
	digest string
	board  *swarm.Board
	// fetch fetches from the origin.
	fetch func(ctx context.Context, hive string, offset int64, w io.Writer) error

	origin atomic.Int64 // bytes sent by the origin

	mu     sync.Mutex // guards below
	hives  map[string]*bee
	leader error // why claims get no answer
}

type bee struct {
	s      *rig
	id     string
	client *swarm.Client
	shelf  *memShelf
	conns  chan net.Conn
	kill   func() // ends everything at once
	dead   chan struct{}
	said   []string // used by one goroutine only
}

// memShelf holds one file, or none.
type memShelf struct {
	digest string
	mu     sync.Mutex // guards below
	file   *memFile
	odd    []string // requested digests that are malformed
}

func (m *memShelf) OpenBlob(digest string) (swarm.Blob, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !swarm.ValidDigest(digest) {
		m.odd = append(m.odd, digest)
	}
	if m.file == nil || digest != m.digest {
		return nil, core.Errorf(core.NotFound, "there is no such file")
	}
	return m.file, nil
}

func (m *memShelf) put(f *memFile) { m.mu.Lock(); defer m.mu.Unlock(); m.file = f }

func (m *memShelf) have(string) int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.file == nil {
		return 0
	}
	return m.file.bytes()
}

const (
	rigSize = 4 << 20
	// rigRate is the origin's rate: the file takes ten seconds of the bubble's time.
	rigRate = rigSize / 10
)

func newRig(t *testing.T, ids ...string) *rig {
	t.Helper()
	data := bytes.Repeat([]byte("0123456789abcdef"), rigSize/16)
	for i := range len(data) / 1000 {
		data[i*1000] = byte(i)
	}
	s := &rig{t: t, data: data, digest: fmt.Sprintf("sha256:%x", sha256.Sum256(data)), hives: map[string]*bee{}}
	s.fetch = s.slowly
	s.board = swarm.NewBoard(s.look)
	for _, id := range ids {
		s.add(id)
	}
	return s
}

func (s *rig) look(id string) (swarm.Hive, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, ok := s.hives[id]
	if !ok {
		return swarm.Hive{}, false
	}
	h := swarm.Hive{Name: id, Address: id + ":7834"}
	select {
	case <-b.dead:
		h.Suspect = true
	default:
	}
	return h, true
}

// slowly sends the file at the origin's rate.
func (s *rig) slowly(ctx context.Context, _ string, offset int64, w io.Writer) error {
	for offset < int64(len(s.data)) {
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
		n, err := w.Write(s.data[offset:min(offset+rigRate/10, int64(len(s.data)))])
		s.origin.Add(int64(n))
		offset += int64(n)
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *rig) add(id string, change ...func(*swarm.ClientOptions)) *bee {
	s.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	b := &bee{s: s, id: id, shelf: &memShelf{digest: s.digest}, conns: make(chan net.Conn), dead: make(chan struct{})}
	o := swarm.ClientOptions{Dial: s.dial, Have: b.shelf.have, Logger: coretest.Logger(s.t), Claim: func(ctx context.Context, c swarm.Claim) (swarm.Plan, error) {
		c.Hive = id
		return s.claim(ctx, c)
	}}
	for _, f := range change {
		f(&o)
	}
	b.client = swarm.NewClient(o)
	var wg sync.WaitGroup
	wg.Go(func() {
		must.NoError(s.t, swarm.NewServer(b.shelf, nil, coretest.Logger(s.t)).Serve(ctx, &pipeListener{b.conns, b.dead}))
	})
	b.kill = sync.OnceFunc(func() { close(b.dead); cancel(); wg.Wait() })
	s.t.Cleanup(b.kill)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hives[id] = b
	return b
}

func (s *rig) claim(_ context.Context, c swarm.Claim) (swarm.Plan, error) {
	s.mu.Lock()
	err := s.leader
	s.mu.Unlock()
	if err != nil {
		return swarm.Plan{}, err
	}
	if ask, _, err := s.board.Begin(time.Now(), c.Digest); err != nil {
		return swarm.Plan{}, err
	} else if ask {
		s.board.Asked(time.Now(), c.Digest, s.holdings())
	}
	return s.board.Claim(time.Now(), c)
}

// holdings returns the hives' answers to a new leader.
func (s *rig) holdings() map[string]swarm.Holding {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string]swarm.Holding{}
	for id, b := range s.hives {
		var h swarm.Holding
		h.Fetching, h.FromOrigin = b.client.Fetching(s.digest)
		h.HaveBytes = b.shelf.have(s.digest)
		h.Whole = !h.Fetching && h.HaveBytes == int64(len(s.data))
		out[id] = h
	}
	return out
}

func (s *rig) dial(ctx context.Context, hive, _ string) (net.Conn, error) {
	s.mu.Lock()
	b := s.hives[hive]
	s.mu.Unlock()
	client, server := net.Pipe()
	select {
	case b.conns <- server:
		return client, nil
	case <-b.dead:
		return nil, errors.New("connection refused")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

type pipeListener struct {
	conns chan net.Conn
	dead  chan struct{}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.dead:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error { return nil }

func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{} }

// download fetches as a hive's store does: one source after the other, each continuing where the
// last one ended; if the final digest is wrong, it starts over.
func (b *bee) download(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-b.dead:
			cancel()
		case <-ctx.Done():
		}
	}()
	f := newMemFile(len(b.s.data))
	b.shelf.put(f)
	k := b.client.Seek(b.s.digest, f.Size(), func(format string, args ...any) { b.said = append(b.said, fmt.Sprintf(format, args...)) })
	err := b.bring(ctx, k, f)
	if err != nil {
		f.change(func() { f.ended = true })
		b.shelf.put(nil)
	}
	k.Close(ctx, err == nil)
	return err
}

func (b *bee) bring(ctx context.Context, k *swarm.Seeker, f *memFile) error {
	var failed error
	for {
		step, err := k.Next(ctx, failed)
		if err != nil {
			return err
		}
		switch {
		case step.Origin:
			failed = b.s.fetch(ctx, b.id, f.bytes(), f)
		case step.Seeder.Hive != "":
			failed = k.Fetch(ctx, f.bytes(), f.Size(), f)
		default:
			return failed
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if failed != nil {
			continue
		}
		if fmt.Sprintf("sha256:%x", sha256.Sum256(f.data)) == b.s.digest {
			return nil
		}
		failed = core.Errorf(core.Integrity, "digest mismatch")
		f.change(func() { f.have = 0 })
	}
}

// all runs download on the hives concurrently, and returns the errors by ID.
func (s *rig) all(ids ...string) map[string]error {
	var mu sync.Mutex
	out := map[string]error{}
	var wg sync.WaitGroup
	for _, id := range ids {
		b := s.hives[id]
		wg.Go(func() {
			err := b.download(s.t.Context())
			mu.Lock()
			defer mu.Unlock()
			out[id] = err
		})
	}
	wg.Wait()
	return out
}

// later calls do after d.
func later(d time.Duration, do func()) {
	go func() {
		time.Sleep(d)
		do()
	}()
}
