package store_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest"
	"github.com/rbee-project/rbee/core/store"
)

const mib = 1 << 20

// noise returns an incompressible, unpredictable file.
func noise(size int) []byte {
	b := make([]byte, size)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(b)
	return b
}

// place is a source of one file: it counts its fetches, and may stop, lie or change.
type place struct {
	name        string
	body        []byte
	connections int
	bytes       atomic.Int64
	busy, most  atomic.Int64         // calls of Fetch at once
	stop        func(at int64) error // called before each piece; an error ends the Fetch

	mu    sync.Mutex // guards asked
	asked []int64    // offsets where the calls of Fetch began
}

func (p *place) Name() string     { return p.name }
func (p *place) Connections() int { return max(p.connections, 1) }

func (p *place) Fetch(ctx context.Context, from, to int64, w io.Writer) error {
	p.mu.Lock()
	p.asked = append(p.asked, from)
	p.mu.Unlock()
	for n, m := p.busy.Add(1), p.most.Load(); n > m && !p.most.CompareAndSwap(m, n); m = p.most.Load() {
	}
	defer p.busy.Add(-1)
	if to < 0 {
		to = int64(len(p.body))
	}
	to = min(to, int64(len(p.body)))
	for at := from; at < to; {
		if err := ctx.Err(); err != nil {
			return err
		}
		if p.stop != nil {
			if err := p.stop(at); err != nil {
				return err
			}
		}
		n, err := w.Write(p.body[at:min(at+100_000, to)])
		at += int64(n)
		p.bytes.Add(int64(n))
		if err != nil {
			return err
		}
	}
	return nil
}

// stopAt returns a source that fails once it has served that many bytes.
func stopAt(limit int64, kind core.Kind) func(int64) error {
	return func(at int64) error {
		if at >= limit {
			return core.Errorf(kind, "lost")
		}
		return nil
	}
}

// supply returns the sources one after the other, and records why each was given up.
type supply struct {
	sources []store.Source
	failed  []error
}

func (s *supply) Sources(store.FileSpec) store.Sources { return s }

func (s *supply) Next(_ context.Context, failed error) (store.Source, error) {
	if failed != nil {
		s.failed = append(s.failed, failed)
	}
	if len(s.sources) == 0 {
		return nil, nil
	}
	next := s.sources[0]
	s.sources = s.sources[1:]
	return next, nil
}

func from(sources ...store.Source) *supply { return &supply{sources: sources} }

func fileSpec(body []byte) store.FileSpec {
	return store.FileSpec{Path: "big.bin", SizeBytes: int64(len(body)), Digest: sha256Of(body)}
}

// published fails the test unless the store has exactly this file.
func published(t *testing.T, s *store.Store, body []byte) {
	t.Helper()
	b, err := s.OpenBlob(sha256Of(body))
	must.NoError(t, err)
	defer b.Close()
	must.False(t, b.Arriving())
	got, err := io.ReadAll(io.NewSectionReader(b, 0, b.SizeBytes()))
	must.NoError(t, err)
	must.True(t, bytes.Equal(body, got), must.Sprint("the file has other content"))
	must.SliceEmpty(t, files(t, s, "partial"))
}

func TestSeveralConnections(t *testing.T) {
	t.Parallel()
	body := noise(34*mib + 12345)
	s := open(t, t.TempDir())
	p := &place{body: body, connections: 4}
	// The second to fourth must have started before the first may end.
	var once sync.Once
	all := make(chan struct{})
	p.stop = func(at int64) error {
		if p.busy.Load() == 4 {
			once.Do(func() { close(all) })
		}
		if at > 0 && at < 7*mib {
			return nil
		}
		if at >= 7*mib {
			<-all
		}
		return nil
	}
	must.NoError(t, s.EnsureBlob(t.Context(), fileSpec(body), from(p)))
	published(t, s, body)
	must.Eq(t, int64(len(body)), p.bytes.Load(), must.Sprint("each byte once"))
	must.Eq(t, 4, p.most.Load())
}

func TestSmallFileOneConnection(t *testing.T) {
	t.Parallel()
	body := noise(15 * mib)
	s := open(t, t.TempDir())
	p := &place{body: body, connections: 4}
	must.NoError(t, s.EnsureBlob(t.Context(), fileSpec(body), from(p)))
	published(t, s, body)
	must.Eq(t, []int64{0}, p.asked)
}

// The bytes that a source has delivered are kept when another continues, at the exact byte.
func TestSourceChangedInTheMiddle(t *testing.T) {
	t.Parallel()
	body := noise(5*mib + 77)
	s := open(t, t.TempDir())
	a := &place{body: body, stop: stopAt(2_300_000, core.Unavailable)}
	b := &place{body: body, stop: stopAt(4_100_000, core.Forbidden)}
	c := &place{body: body}
	sup := from(a, b, c)
	must.NoError(t, s.EnsureBlob(t.Context(), fileSpec(body), sup))
	published(t, s, body)
	must.Eq(t, []int64{2_300_000}, b.asked)
	must.Eq(t, []int64{4_100_000}, c.asked)
	must.Eq(t, int64(len(body)), a.bytes.Load()+b.bytes.Load()+c.bytes.Load())
	must.SliceLen(t, 2, sup.failed)
	must.Eq(t, core.Unavailable, core.KindOf(sup.failed[0]))
	must.Eq(t, core.Forbidden, core.KindOf(sup.failed[1]))
}

// S-04: bytes that do not match the announced digest are quarantined, and another source is asked.
func TestWrongBytes(t *testing.T) {
	t.Parallel()
	body := noise(3 * mib)
	wrong := bytes.Clone(body)
	wrong[2*mib] ^= 1

	t.Run("another source is asked", func(t *testing.T) {
		t.Parallel()
		s := open(t, t.TempDir())
		bad, good := &place{body: wrong}, &place{body: body}
		sup := from(bad, good)
		must.NoError(t, s.EnsureBlob(t.Context(), fileSpec(body), sup))
		published(t, s, body)
		must.Eq(t, int64(len(body)), good.bytes.Load())
		must.Eq(t, core.Integrity, core.KindOf(sup.failed[0]))
		must.SliceLen(t, 1, files(t, s, "quarantine"))
	})
	t.Run("it is named, never loadable, and there are few of them", func(t *testing.T) {
		t.Parallel()
		s := open(t, t.TempDir())
		var err error
		for range 5 {
			err = s.EnsureBlob(t.Context(), fileSpec(body), from(&place{body: wrong}))
			must.Eq(t, core.Integrity, core.KindOf(err))
		}
		must.ErrorContains(t, err, sha256Of(wrong))
		nothingPublished(t, s)
		must.SliceEmpty(t, files(t, s, "partial"))
		kept, quarantineErr := s.Quarantined()
		must.NoError(t, quarantineErr)
		must.SliceLen(t, 3, kept)
		must.StrContains(t, core.HintOf(err), filepath.Join(s.Dir(), kept[0].Path))
		for _, name := range []string{sha256Of(wrong), sha256Of(body)} {
			_, err := s.OpenBlob(name)
			must.Eq(t, core.NotFound, core.KindOf(err))
		}
	})
	t.Run("only what the liar brought is fetched anew", func(t *testing.T) {
		t.Parallel()
		s := open(t, t.TempDir())
		liar := &place{body: wrong, stop: stopAt(2*mib+100_000, core.Unavailable)}
		honest := &place{body: body}
		sup := from(&place{body: body, stop: stopAt(mib, core.Unavailable)}, liar, honest)
		must.NoError(t, s.EnsureBlob(t.Context(), fileSpec(body), sup))
		published(t, s, body)
		must.SliceEmpty(t, files(t, s, "quarantine"))
	})
	t.Run("a source that says itself that it lied", func(t *testing.T) {
		t.Parallel()
		s := open(t, t.TempDir())
		liar := &place{body: wrong, stop: stopAt(2*mib+100_000, core.Integrity)}
		honest := &place{body: body}
		must.NoError(t, s.EnsureBlob(t.Context(), fileSpec(body), from(liar, honest)))
		published(t, s, body)
		must.Eq(t, []int64{0}, honest.asked)
	})
}

// S-02: a file that changes at its source is fetched anew, and two versions of it are never mixed.
func TestChangedInTheMiddle(t *testing.T) {
	t.Parallel()
	old, body := noise(3*mib), bytes.Clone(noise(3*mib))
	body[10] ^= 1
	for name, spec := range map[string]store.FileSpec{"with a digest": fileSpec(body), "without": {Path: "big.bin", SizeBytes: int64(len(body))}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := open(t, t.TempDir())
			p := &place{body: old}
			p.stop = func(at int64) error {
				if at >= 2*mib && &p.body[0] == &old[0] {
					p.body = body
					return core.Errorf(core.Conflict, "it has another ETag")
				}
				return nil
			}
			must.NoError(t, s.EnsureBlob(t.Context(), spec, from(p)))
			published(t, s, body)
			must.Eq(t, []int64{0, 0}, p.asked)
		})
	}
	t.Run("for ever", func(t *testing.T) {
		t.Parallel()
		s := open(t, t.TempDir())
		p := &place{body: old, stop: stopAt(mib, core.Conflict)}
		err := s.EnsureBlob(t.Context(), fileSpec(old), from(p))
		must.Eq(t, core.Conflict, core.KindOf(err))
		must.Eq(t, []int64{0, 0, 0, 0}, p.asked)
		must.SliceEmpty(t, files(t, s, "partial"))
	})
}

// Without a digest, nothing shows that two sources have the same version.
func TestNoDigestNoMixing(t *testing.T) {
	t.Parallel()
	old, body := noise(3*mib), bytes.Clone(noise(3*mib))
	body[10] ^= 1
	s := open(t, t.TempDir())
	b := &place{body: body}
	sup := from(&place{body: old, stop: stopAt(2*mib, core.Unavailable)}, b)
	must.NoError(t, s.EnsureBlob(t.Context(), store.FileSpec{Path: "big.bin", SizeBytes: int64(len(body))}, sup))
	published(t, s, body)
	must.Eq(t, []int64{0}, b.asked)
}

// killed returns what a killed process leaves: the contents of the disk when its source had reached
// a position.
func killed(t *testing.T, body []byte, connections int, at int64, between func(s *store.Store)) *store.Store {
	t.Helper()
	s := open(t, t.TempDir())
	next := open(t, t.TempDir())
	p := &place{body: body, connections: connections}
	var once sync.Once
	p.stop = func(pos int64) error {
		if p.bytes.Load() < at {
			return nil
		}
		once.Do(func() {
			// The rest depends on whether the first 16 MiB have been hashed: over one connection
			// they have.
			coretest.Eventually(t, time.Minute, func() error {
				b, err := os.ReadFile(filepath.Join(s.Dir(), "partial", "sha256-"+sha256Of(body)[7:]+".journal"))
				if err == nil && connections == 1 && at > 17*mib && !bytes.Contains(b, []byte(`{"hash"`)) {
					err = errors.New("no digest was saved yet")
				}
				return err
			})
			for _, f := range files(t, s, "partial") {
				b, err := os.ReadFile(filepath.Join(s.Dir(), "partial", f))
				must.NoError(t, err)
				must.NoError(t, os.WriteFile(filepath.Join(next.Dir(), "partial", f), b, 0o600))
			}
		})
		return core.Errorf(core.Forbidden, "enough")
	}
	must.Error(t, s.EnsureBlob(t.Context(), fileSpec(body), from(p)))
	if between != nil {
		between(next)
	}
	return next
}

// S-01: a killed process loses at most one segment per connection, and only the last parts are
// hashed again.
func TestKilled(t *testing.T) {
	t.Parallel()
	body := noise(33*mib + 1)
	for _, connections := range []int{1, 4} {
		next := killed(t, body, connections, 24*mib, nil)
		p := &place{body: body, connections: connections}
		must.NoError(t, next.EnsureBlob(t.Context(), fileSpec(body), from(p)))
		published(t, next, body)
		must.LessEq(t, int64(len(body))-24*mib+int64(connections)*(mib+100_000), p.bytes.Load())
	}
}

// After a power cut the disk may have lost bytes that the journal records. Only damaged bytes are
// fetched again.
func TestPowerCut(t *testing.T) {
	t.Parallel()
	body := noise(24 * mib)
	partial := func(s *store.Store) string {
		return filepath.Join(s.Dir(), "partial", files(t, s, "partial")[0])
	}
	damage := func(at int64) func(*store.Store) {
		return func(s *store.Store) {
			f, err := os.OpenFile(partial(s), os.O_RDWR, 0)
			must.NoError(t, err)
			_, err = f.WriteAt(make([]byte, 4096), at)
			must.NoError(t, errors.Join(err, f.Close()))
		}
	}
	for name, tc := range map[string]struct {
		between func(*store.Store)
		boot    string
		again   int64
	}{
		"nothing lost":            {nil, "another", 0},
		"a part lost":             {damage(3*mib + 5), "another", mib},
		"a part lost, unknown":    {damage(3*mib + 5), "", mib},
		"behind the saved digest": {damage(18 * mib), "", mib}, // found without another boot, too
		"the end lost": {func(s *store.Store) {
			must.NoError(t, os.Truncate(partial(s), 17*mib+100))
		}, "another", 3 * mib},
		"the journal lost": {func(s *store.Store) { must.NoError(t, os.Remove(partial(s)+".journal")) }, "another", 0},
		"half a line": {func(s *store.Store) {
			f, err := os.OpenFile(partial(s)+".journal", os.O_RDWR|os.O_APPEND, 0)
			must.NoError(t, err)
			_, err = f.WriteString(`0000abcd {"seg":{"i":20,"n":1048`)
			must.NoError(t, errors.Join(err, f.Close()))
		}, "another", 0},
		"another journal": {func(s *store.Store) {
			must.NoError(t, os.WriteFile(partial(s)+".journal", []byte("hello"), 0o600))
		}, "another", 20 * mib},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := killed(t, body, 1, 20*mib, tc.between)
			s.AtBoot(tc.boot)
			p := &place{body: body}
			must.NoError(t, s.EnsureBlob(t.Context(), fileSpec(body), from(p)))
			published(t, s, body)
			must.SliceEmpty(t, files(t, s, "quarantine"))
			must.LessEq(t, 4*mib+tc.again+mib+100_000, p.bytes.Load())
		})
	}
}

// Hives read from a file that is still arriving, and are notified when more has arrived.
func TestReadAlong(t *testing.T) {
	t.Parallel()
	body := noise(6*mib + 3)
	s := open(t, t.TempDir())
	_, err := s.OpenBlob(sha256Of(body))
	must.Eq(t, core.NotFound, core.KindOf(err))
	step, began := make(chan struct{}), make(chan struct{})
	p := &place{body: body}
	p.stop = func(at int64) error {
		if at == 0 {
			close(began)
		}
		if at >= 2*mib {
			<-step
		}
		return nil
	}
	done := make(chan error, 1)
	go func() { done <- s.EnsureBlob(t.Context(), fileSpec(body), from(p)) }()
	<-began
	b, err := s.OpenBlob(sha256Of(body))
	must.NoError(t, err)
	defer b.Close()
	must.True(t, b.Arriving())
	must.Eq(t, int64(len(body)), b.SizeBytes())
	var got []byte
	for at := int64(0); ; {
		end, err := b.Wait(t.Context(), at)
		if errors.Is(err, io.EOF) {
			break
		}
		must.NoError(t, err)
		must.Greater(t, at, end)
		part := make([]byte, end-at)
		_, err = b.ReadAt(part, at)
		must.NoError(t, err)
		got = append(got, part...)
		at = end
		if at >= 2*mib-100_000 {
			select {
			case <-step:
			default:
				close(step)
			}
		}
	}
	must.True(t, bytes.Equal(body, got))
	must.NoError(t, <-done)
	published(t, s, body)
}

func TestReadAlongEnds(t *testing.T) {
	t.Parallel()
	body := noise(3 * mib)
	for kind, want := range map[core.Kind]core.Kind{core.Forbidden: core.Unavailable, core.Integrity: core.Conflict} {
		s := open(t, t.TempDir())
		at, let := make(chan struct{}), make(chan struct{})
		p := &place{body: body}
		p.stop = func(pos int64) error {
			if pos < 2*mib {
				return nil
			}
			close(at)
			<-let
			return core.Errorf(kind, "lost")
		}
		done := make(chan error, 1)
		go func() { done <- s.EnsureBlob(t.Context(), fileSpec(body), from(p)) }()
		<-at
		b, err := s.OpenBlob(sha256Of(body))
		must.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err = b.Wait(ctx, 2*mib+mib/2)
		must.ErrorIs(t, err, context.Canceled)
		close(let)
		_, err = b.Wait(t.Context(), 2*mib+mib/2)
		must.Eq(t, want, core.KindOf(err))
		must.Error(t, <-done)
		must.NoError(t, b.Close())
	}
}

// Two processes cannot fetch one file at the same time, and what a source does after it has been
// stopped changes nothing.
func TestNoSource(t *testing.T) {
	t.Parallel()
	body := noise(100)
	s := open(t, t.TempDir())
	must.Eq(t, core.Unavailable, core.KindOf(s.EnsureBlob(t.Context(), fileSpec(body), from())))
	nothingPublished(t, s)
	must.SliceEmpty(t, files(t, s, "partial"))
}

func FuzzJournal(f *testing.F) {
	f.Add([]byte(""))
	f.Add([]byte("hello\n"))
	f.Add([]byte(`a 00000000 {}` + "\n"))
	s, err := os.ReadFile("testdata/journal")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(s)
	f.Add(s[:len(s)-5])
	f.Fuzz(func(t *testing.T, b []byte) {
		lines, end := store.Journal(b)
		if end < 0 || end > int64(len(b)) || (lines == 0) != (end == 0) {
			t.Fatalf("%d lines in %d of %d bytes", lines, end, len(b))
		}
		// The accepted lines stand on their own, whatever follows them.
		if again, e := store.Journal(b[:end]); again != lines || e != end {
			t.Fatalf("%d lines became %d", lines, again)
		}
		// No byte of them may change.
		if end > 0 {
			changed := bytes.Clone(b[:end])
			changed[end-4] ^= 1
			if again, _ := store.Journal(changed); again >= lines {
				t.Fatalf("a changed line is believed")
			}
		}
		const fileSize = 5*mib + 7
		for _, size := range []int64{fileSize, 20 * mib, 0} {
			there, front := store.Replay(b, size, fileSize)
			if there < 0 || there > fileSize || front > there || front < 0 {
				t.Fatalf("%d bytes are there, %d of them from the beginning", there, front)
			}
		}
	})
}
