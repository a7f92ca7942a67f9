package store_test

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/store"
)

func ignore(core.Progress) {}

func nobody(string) bool { return false }

// damage changes a byte of a file.
func damage(t *testing.T, name string, at int64) {
	t.Helper()
	b, err := os.ReadFile(name)
	must.NoError(t, err)
	b[at] ^= 1
	must.NoError(t, os.Chmod(name, 0o600))
	must.NoError(t, os.WriteFile(name, b, 0o600))
}

func TestVerify(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	tiny := tinyModel(t)
	other := append(bytes.Clone(tiny), 0)
	for id, body := range map[string][]byte{"m": tiny, "same": tiny, "other": other} {
		_, err := s.PutModel(t.Context(), spec(id, body, sha256Of(body)), store.Fetch((&origin{body: body}).fetch), nil)
		must.NoError(t, err)
	}
	loose := noise(1000)
	must.NoError(t, s.EnsureBlob(t.Context(), fileSpec(loose), from(&place{body: loose})))
	archive := goodArchive(t)
	b, err := s.PutBinary(t.Context(), binarySpec(t, archive), store.Fetch((&origin{body: archive}).fetch), nil)
	must.NoError(t, err)

	var last core.Progress
	r, err := s.Verify(t.Context(), func(p core.Progress) { last = p })
	must.NoError(t, err)
	must.SliceEmpty(t, r.Damaged)
	must.Eq(t, 3, r.Models)
	must.Eq(t, 1, r.Binaries)
	must.Eq(t, int64(len(tiny)+len(other)+len(loose))+b.SizeBytes, r.CheckedBytes, must.Sprint("each file once"))
	must.Eq(t, last.Total, last.Done)

	blob := func(body []byte) string {
		return filepath.Join(s.Dir(), "blobs", strings.Replace(sha256Of(body), ":", "-", 1))
	}
	damage(t, blob(tiny), 2_000_000)
	damage(t, blob(loose), 3)
	damage(t, filepath.Join(b.Path, "engine", "libggml.so"), 0)
	r, err = s.Verify(t.Context(), ignore)
	must.NoError(t, err)
	var names []string
	for _, d := range r.Damaged {
		names = append(names, string(d.Kind)+" "+d.Name)
		must.NotEq(t, "", d.Reason)
	}
	must.Eq(t, []string{"model m", "model same", "file " + sha256Of(loose), "worker binary " + b.ID}, names)
	_, _, err = s.Model("m")
	must.Eq(t, core.Integrity, core.KindOf(err), must.Sprint("it is not used any more"))
	_, _, err = s.BinaryPaths(b.ID)
	must.Eq(t, core.Integrity, core.KindOf(err))
	_, _, err = s.Model("other")
	must.NoError(t, err)
}

func TestGC(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	tiny := tinyModel(t)
	put := func(id string, body []byte) {
		in := spec(id, body, sha256Of(body))
		_, err := s.PutModel(t.Context(), in, store.Fetch((&origin{body: body}).fetch), nil)
		must.NoError(t, err)
	}
	replaced, loaded := append(bytes.Clone(tiny), 1), append(bytes.Clone(tiny), 2)
	put("a", replaced)
	put("b", loaded)
	put("a", tiny)
	put("b", tiny)
	wrong := noise(1000)
	must.Error(t, s.EnsureBlob(t.Context(), store.FileSpec{Path: "x", SizeBytes: 1000, Digest: sha256Of(tiny[:1000])}, from(&place{body: wrong})))
	body := noise(3 * mib)
	must.Error(t, s.EnsureBlob(t.Context(), fileSpec(body), from(&place{body: body, stop: stopAt(mib, core.Unavailable)})))
	archive := goodArchive(t)
	in := binarySpec(t, archive)
	o := store.Fetch((&origin{body: archive}).fetch)
	first, err := s.PutBinary(t.Context(), in, o, nil)
	must.NoError(t, err)
	in.Force = true
	second, err := s.PutBinary(t.Context(), in, o, nil)
	must.NoError(t, err)
	in.Force = true
	third, err := s.PutBinary(t.Context(), in, o, nil)
	must.NoError(t, err)

	// A running transfer is kept, however long it has received nothing.
	busy := noise(2*mib + 5)
	at, let := make(chan struct{}), make(chan struct{})
	done := make(chan error, 1)
	running := &place{body: busy}
	running.stop = func(pos int64) error {
		if pos == mib/100_000*100_000 {
			close(at)
			<-let
		}
		return nil
	}
	go func() { done <- s.EnsureBlob(t.Context(), fileSpec(busy), from(running)) }()
	<-at

	use := store.InUse{Models: []string{sha256Of(loaded), ""}, Folder: func(folder string) bool { return folder == first.Path }}
	names := func(r core.StoreGCResult) (out []string) {
		total := int64(0)
		for _, i := range r.Removed {
			name := i.Name
			if i.Kind == core.StoreQuarantine {
				name, _, _ = strings.Cut(name, "-")
			}
			out = append(out, string(i.Kind)+" "+name)
			total += i.SizeBytes
			must.NotEq(t, "", i.Reason)
		}
		must.Eq(t, total, r.FreedBytes)
		return out
	}
	now := time.Now()
	fresh := []string{"file " + sha256Of(replaced), "quarantine sha256", "worker binary " + second.ID + "~2"}
	old := []string{fresh[0], "partial " + strings.Replace(sha256Of(body), ":", "-", 1), fresh[1], fresh[2]}
	r, err := s.GC(now, use, true)
	must.NoError(t, err)
	must.Eq(t, fresh, names(r), must.Sprint("a transfer may still be gone on with"))
	r, err = s.GC(now.Add(25*time.Hour), use, true)
	must.NoError(t, err)
	must.Eq(t, old, names(r))
	must.True(t, r.DryRun)
	again, err := s.GC(now.Add(25*time.Hour), use, false)
	must.NoError(t, err)
	must.Eq(t, r.Removed, again.Removed, must.Sprint("a dry run had done nothing"))
	r, err = s.GC(now.Add(25*time.Hour), use, false)
	must.NoError(t, err)
	must.SliceEmpty(t, r.Removed)

	close(let)
	must.NoError(t, <-done, must.Sprint("the running transfer was left alone"))
	for _, f := range []string{first.Path, third.Path} {
		_, err = os.Stat(f)
		must.NoError(t, err)
	}
	must.SliceEmpty(t, files(t, s, "quarantine"))
	for _, id := range []string{"a", "b"} {
		must.NoError(t, s.VerifyModel(t.Context(), id))
	}
	blob, err := s.OpenBlob(sha256Of(loaded))
	must.NoError(t, err, must.Sprint("a worker has it loaded"))
	must.NoError(t, blob.Close())

	r, err = s.GC(now, store.InUse{Folder: nobody}, false)
	must.NoError(t, err)
	must.Eq(t, []string{"file " + sha256Of(busy), "file " + sha256Of(loaded), "worker binary " + first.ID}, sorted(names(r)))
}

func sorted(s []string) []string { return slices.Sorted(slices.Values(s)) }
