package store

import (
	"context"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
)

func TestHumanBytes(t *testing.T) {
	t.Parallel()
	for n, want := range map[int64]string{
		0: "0 bytes", 1023: "1023 bytes", 1 << 10: "1.0 KiB", 1536: "1.5 KiB", 1<<20 - 1: "1024.0 KiB", 1 << 20: "1.0 MiB", 3 << 30: "3.0 GiB", 5 << 40: "5.0 TiB",
		1 << 50: "1.0 PiB", 1 << 60: "1.0 EiB", math.MaxInt64: "8.0 EiB",
	} {
		must.Eq(t, want, humanBytes(n))
	}
}

// A waiting caller gets the newest progress of each phase, once.
func TestWatcher(t *testing.T) {
	t.Parallel()
	w := &watcher{news: make(chan struct{}, 1)}
	for _, p := range []core.Progress{{Phase: "a", Done: 1}, {Phase: "a", Done: 2}, {Phase: "b", Done: 1}} {
		w.add(p)
	}
	must.Eq(t, 1, len(w.news))
	must.Eq(t, []core.Progress{{Phase: "a", Done: 2}, {Phase: "b", Done: 1}}, w.take())
	must.SliceEmpty(t, w.take())
	w.add(core.Progress{Phase: "b", Done: 2})
	must.Eq(t, []core.Progress{{Phase: "b", Done: 2}}, w.take())
}

// A caller that stops waiting gets no more progress, and work that no caller waits for is
// forgotten.
func TestFlightsForget(t *testing.T) {
	t.Parallel()
	var g flights[int]
	started, finish, done := make(chan struct{}), make(chan struct{}), make(chan int)
	go func() {
		v, err := g.do(t.Context(), "key", "", nil, func(_ context.Context, report func(core.Progress)) (int, error) {
			close(started)
			<-finish
			report(core.Progress{Phase: "late"})
			return 7, nil
		})
		must.NoError(t, err)
		done <- v
	}()
	<-started
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	f := g.all["key"]
	for range 3 {
		_, err := g.do(ctx, "key", "", nil, nil)
		must.ErrorIs(t, err, context.Canceled)
	}
	must.MapLen(t, 0, f.watchers)
	close(finish)
	must.Eq(t, 7, <-done)
	must.MapLen(t, 0, g.all)
}

// Readers cannot join a transfer that has ended.
func TestArrived(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	d := sha256Digest([]byte("x"))
	p, next := &partial{}, &partial{}
	s.arriving(d, p)
	s.arriving(d, next)
	s.arrived(d, p) // another transfer has begun in the meantime
	must.MapLen(t, 1, s.incoming)
	s.arrived(d, next)
	must.MapLen(t, 0, s.incoming)
	s.arriving(digest{}, p)
	must.MapLen(t, 0, s.incoming)
}

// A file that was pinned for one caller is released with it.
func TestUnpin(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	d := sha256Digest([]byte("x"))
	var a, b pins
	s.pin(&a, d)
	s.pin(&a, d) // once for each caller
	s.pin(&b, d)
	must.Eq(t, 2, s.pinned[d])
	s.unpin(a, false)
	must.Eq(t, 1, s.pinned[d])
	s.unpin(b, true)
	must.MapLen(t, 0, s.pinned)
}

// The records of a folder's files are dropped with the folder: another may take its place.
func TestForgetFolder(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	for _, name := range []string{"workers/a/1/x", "workers/a/1/y", "workers/a/10/x"} {
		s.noteOther(name, "sha256:0", stamp{})
	}
	s.forgetFolder("workers/a/1")
	must.MapLen(t, 1, s.checked.others)
	must.MapContainsKey(t, s.checked.others, "workers/a/10/x\x00sha256:0")
	must.Eq(t, filepath.Join(s.dir, "a", "b"), s.abs("a/b"))
}

// A file that was read since the program began and has not changed is not read again before each
// start.
func TestCheckReadsOnce(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	exe := filepath.Join(t.TempDir(), "plugin")
	must.NoError(t, os.WriteFile(exe, []byte("code"), 0o600))
	_, err := s.PutBinary(t.Context(), BinarySpec{Type: "x", Version: "1.0.0", Executable: exe, Source: "local"}, nil, nil)
	must.NoError(t, err)
	r, err := s.binary("x")
	must.NoError(t, err)
	for _, want := range []int64{4, 0, 0} {
		read := int64(0)
		must.NoError(t, s.verifyBinary(t.Context(), r, true, func(n int64) { read += n }))
		must.Eq(t, want, read)
	}
	read := int64(0)
	must.NoError(t, s.verifyBinary(t.Context(), r, false, func(n int64) { read += n }))
	must.Eq(t, 4, read)
}

// A plain name is one entry of a folder on every system that a store may be copied to.
func TestPlainName(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]bool{
		"a": true, "libllama.so": true, "a b": true, "ü": true, "...": true, strings.Repeat("a", 255): true,
		"": false, ".": false, "..": false, "a/b": false, "/a": false, "a/": false, `a\b`: false, "a:b": false, "a\nb": false, "a\x1fb": false, "a\x7fb": false, "a\x00": false,
		strings.Repeat("a", 256): false,
	} {
		must.Eq(t, want, plainName(name), must.Sprintf("%q", name))
	}
	for s, want := range map[string][2]string{"a+b+c": {"a+b", "c"}, "a": {"a", ""}, "+a": {"", "a"}, "a+": {"a", ""}} {
		before, after, found := cutLast(s, "+")
		must.Eq(t, want, [2]string{before, after})
		must.Eq(t, strings.Contains(s, "+"), found)
	}
}
