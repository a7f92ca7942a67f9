package swarm_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest"
	"github.com/rbee-project/rbee/core/swarm"
)

// memFile is a file in memory that arrives, or is whole.
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
func (f *memFile) Size() int64  { return int64(len(f.data)) }
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

// rig is hives, a leader's board, and an origin, in one process.
type rig struct {
	t      *testing.T
	data   []byte
	digest string
	board  *swarm.Board
	// from the origin
	fetch func(ctx context.Context, hive string, offset int64, w io.Writer) error

	origin atomic.Int64 // bytes that came from it

	mu     sync.Mutex // guards below
	hives  map[string]*bee
	leader error // why nobody answers claims
}

type bee struct {
	s      *rig
	id     string
	client *swarm.Client
	shelf  *memShelf
	conns  chan net.Conn
	kill   func() // ends everything at once
	dead   chan struct{}
	said   []string // by one goroutine
}

// memShelf has one file, or none.
type memShelf struct {
	digest string
	mu     sync.Mutex // guards below
	file   *memFile
	odd    []string // what was asked for and is no digest
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
	// rigRate is how fast the origin is: the file takes ten seconds, in the time of the bubble.
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

// slowly gives the file at the origin's rate.
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

// holdings returns what a new leader is told.
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
func (l *pipeListener) Close() error   { return nil }
func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{} }

// download does what a hive's store does with its sources: one after the other, each goes on where
// the last one ended; what is wrong in the end is fetched anew.
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

// all has hives download at once, and gives the errors by id.
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

// later does something after a while.
func later(d time.Duration, do func()) {
	go func() {
		time.Sleep(d)
		do()
	}()
}

func TestManyHivesOneTransfer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ids := strings.Fields("a b c d e f g h i j k l")
		s := newRig(t, ids...)
		begin := time.Now()
		for id, err := range s.all(ids...) {
			must.NoError(t, err, must.Sprint(id))
		}
		must.Eq(t, rigSize, s.origin.Load())
		// They take it while it comes, not when it is there.
		must.Less(t, 13*time.Second, time.Since(begin))

		// One that comes later takes it from those that have it.
		late := s.add("late")
		must.NoError(t, late.download(t.Context()))
		must.Eq(t, rigSize, s.origin.Load())
		must.StrContains(t, strings.Join(late.said, "\n"), "taking it from hive")
	})
}

// at says which hive is at the origin.
func (s *rig) at() *bee {
	for _, b := range s.hives {
		if _, origin := b.client.Fetching(s.digest); origin {
			return b
		}
	}
	return nil
}

func TestTheSeedingHiveDies(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newRig(t, "a", "b", "c", "d")
		var dead string
		later(5*time.Second, func() {
			b := s.at()
			dead = b.id
			b.kill()
		})
		errs := s.all("a", "b", "c", "d")
		must.NotEq(t, "", dead)
		for id, err := range errs {
			if id == dead {
				must.Error(t, err)
				continue
			}
			must.NoError(t, err, must.Sprint(id))
			must.Eq(t, rigSize, s.hives[id].shelf.have(s.digest))
		}
		must.Less(t, rigSize+rigRate, s.origin.Load()) // what it had and had not yet passed on
	})
}

func TestEveryHiveButOneDies(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newRig(t, "a", "b", "c", "d")
		for i := range 3 {
			later(time.Duration(3*(i+1))*time.Second, func() {
				if b := s.at(); b != nil {
					b.kill()
				}
			})
		}
		whole := 0
		for _, err := range s.all("a", "b", "c", "d") {
			if err == nil {
				whole++
			}
		}
		must.Eq(t, 1, whole)
		must.Less(t, rigSize+3*rigRate, s.origin.Load())
	})
}

// A job that is cancelled makes way for another hive.
func TestTheSeedingJobIsCancelled(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newRig(t, "a", "b")
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- s.hives["a"].download(ctx) }()
		time.Sleep(time.Second)
		later(3*time.Second, cancel)
		must.NoError(t, s.hives["b"].download(t.Context()))
		must.ErrorIs(t, <-ended, context.Canceled)
		must.Less(t, rigSize+rigRate, s.origin.Load())
	})
}

func TestNewLeaderAsksTheHives(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newRig(t, "a", "b", "c", "late")
		later(3*time.Second, func() {
			s.mu.Lock()
			s.leader = core.Errorf(core.Unavailable, "there is no leader")
			s.mu.Unlock()
		})
		later(5*time.Second, func() {
			s.board.Clear()
			s.mu.Lock()
			s.leader = nil
			s.mu.Unlock()
		})
		done := make(chan error, 1)
		later(6*time.Second, func() { done <- s.hives["late"].download(t.Context()) })
		for id, err := range s.all("a", "b", "c") {
			must.NoError(t, err, must.Sprint(id))
		}
		must.NoError(t, <-done)
		must.Eq(t, rigSize, s.origin.Load())
	})
}

func TestWithoutALeaderEachGoesToTheOrigin(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newRig(t, "a", "b")
		s.leader = core.Errorf(core.Unavailable, "there is no leader")
		for id, err := range s.all("a", "b") {
			must.NoError(t, err, must.Sprint(id))
		}
		must.Eq(t, 2*rigSize, s.origin.Load())
	})
}

// A hive that gives wrong bytes harms nobody: the file is taken from its origin, and that hive is
// not asked for it again.
func TestWrongBytesFromAHive(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newRig(t, "bad", "b")
		wrong := bytes.Clone(s.data)
		wrong[len(wrong)/2]++
		s.hives["bad"].shelf.put(wholeMemFile(wrong))
		b := s.hives["b"]
		must.NoError(t, b.download(t.Context()))
		must.Eq(t, rigSize, s.origin.Load())
		must.StrContains(t, strings.Join(b.said, "\n"), "was not right")
		b.said = nil
		must.NoError(t, b.download(t.Context()))
		must.Eq(t, 2*rigSize, s.origin.Load())
		must.StrNotContains(t, strings.Join(b.said, "\n"), "hive bad")
	})
}

// A hive that is asked and says nothing, or says it and gives nothing, holds nobody up for long.
func TestASilentHive(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]func(s *rig, c net.Conn){
		"from the beginning": func(*rig, net.Conn) {},
		"in the middle": func(s *rig, c net.Conn) {
			_, _ = fmt.Fprintf(c, "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-%d/%d\r\nContent-Length: %d\r\n\r\n", rigSize-1, rigSize, rigSize)
			_, _ = c.Write(s.data[:rigSize/2])
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := newRig(t, "mute")
				b := s.add("b", func(o *swarm.ClientOptions) {
					o.Dial = func(context.Context, string, string) (net.Conn, error) {
						client, server := net.Pipe()
						go func() {
							_, _ = http.ReadRequest(bufio.NewReader(server))
							answer(s, server)
							_, _ = io.Copy(io.Discard, server) // until the other side goes
						}()
						return client, nil
					}
				})
				_, _, err := s.board.Begin(time.Now(), s.digest)
				must.NoError(t, err)
				// it lies
				s.board.Asked(time.Now(), s.digest, map[string]swarm.Holding{"mute": {Whole: true}})
				begin := time.Now()
				must.NoError(t, b.download(t.Context()))
				must.Less(t, time.Minute, time.Since(begin))
				must.LessEq(t, rigSize, s.origin.Load())
			})
		})
	}
}

// A hive that cannot reach the one at the origin does not wait for it for ever, however long that
// takes.
func TestAHiveThatCannotBeReached(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newRig(t, "a")
		cut := s.add("cut", func(o *swarm.ClientOptions) {
			o.Dial = func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("no route to host") }
		})
		s.fetch = func(ctx context.Context, hive string, offset int64, w io.Writer) error {
			for hive == "a" { // for ever
				time.Sleep(time.Second)
				if _, err := w.Write([]byte{0}); err != nil || ctx.Err() != nil {
					return ctx.Err()
				}
			}
			return s.slowly(ctx, hive, offset, w)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- s.hives["a"].download(ctx) }()
		time.Sleep(time.Second)
		begin := time.Now()
		must.NoError(t, cut.download(t.Context()))
		must.Less(t, 30*time.Second, time.Since(begin))
		cancel()
		must.Error(t, <-ended)
	})
}

// Where one hive has no access to the origin and another one has, both have the file in the end.
func TestTheOriginFailsOneHive(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		refused := core.Errorf(core.Unauthenticated, "a token is needed")
		s := newRig(t, "a", "b")
		s.fetch = func(ctx context.Context, hive string, offset int64, w io.Writer) error {
			if hive == "a" {
				time.Sleep(time.Second)
				return refused
			}
			return s.slowly(ctx, hive, offset, w)
		}
		ended := make(chan error, 1)
		go func() { ended <- s.hives["a"].download(t.Context()) }()
		time.Sleep(time.Millisecond)
		must.NoError(t, s.hives["b"].download(t.Context()))
		must.NoError(t, <-ended)
		must.Eq(t, rigSize, s.origin.Load())

		// And where nobody has, each hears it from the origin.
		s = newRig(t, "a", "b")
		s.fetch = func(context.Context, string, int64, io.Writer) error { return refused }
		for id, err := range s.all("a", "b") {
			must.ErrorIs(t, err, refused, must.Sprint(id))
		}
	})
}

// A hive that gives nothing away leaves others to the origin, and takes what it can get.
func TestAMuteHive(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newRig(t, "a")
		quiet := s.add("quiet", func(o *swarm.ClientOptions) { o.Mute = true })
		must.NoError(t, quiet.download(t.Context()))
		must.Eq(t, rigSize, s.origin.Load())
		s.hives["quiet"].shelf.put(nil)
		must.NoError(t, s.hives["a"].download(t.Context()))
		must.Eq(t, 2*rigSize, s.origin.Load())
		must.NoError(t, quiet.download(t.Context()))
		must.Eq(t, 2*rigSize, s.origin.Load())
	})
}
