package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest/badgguf"
	"github.com/rbee-project/rbee/core/store"
)

// putSplit puts a model of three parts, and returns the path of the first.
func putSplit(t *testing.T, s *store.Store) string {
	t.Helper()
	put(t, s, "split", badgguf.Split()...)
	_, path, err := s.Model("split")
	must.NoError(t, err)
	return path
}

// An engine's folder of links is repaired if its links were changed, and left alone otherwise: an
// engine may be reading there.
func TestLinksOfASplitModel(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	first := putSplit(t, s)
	second := strings.Replace(first, "00001", "00002", 1)
	before, err := os.Lstat(second)
	must.NoError(t, err)
	_, _, err = s.Model("split")
	must.NoError(t, err)
	after, err := os.Lstat(second)
	must.NoError(t, err)
	must.True(t, os.SameFile(before, after))

	right, err := os.Readlink(second)
	must.NoError(t, err)
	must.NoError(t, os.Remove(second))
	must.NoError(t, os.Symlink("/etc/passwd", second))
	_, _, err = s.Model("split")
	must.NoError(t, err)
	now, err := os.Readlink(second)
	must.NoError(t, err)
	must.Eq(t, right, now)

	must.NoError(t, os.RemoveAll(filepath.Join(s.Dir(), "parts")))
	must.NoError(t, os.WriteFile(filepath.Join(s.Dir(), "parts"), nil, 0o600))
	_, _, err = s.Model("split")
	must.ErrorContains(t, err, "link the parts of model split")
}

// A quarantined file is removed once the file has been fetched again.
func TestRepairRemovesTheDamaged(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	put(t, s, "m", another(1))
	_, path, err := s.Model("m")
	must.NoError(t, err)
	spoil(t, path)
	must.Eq(t, core.Integrity, core.KindOf(s.VerifyModel(t.Context(), "m")))
	must.StrContains(t, files(t, s, "blobs")[0], "damaged-")
	put(t, s, "m", another(1))
	must.Eq(t, []string{filepath.Base(path)}, files(t, s, "blobs"))
}

// A record that is removed while the others are read does not count as a damaged model.
func TestRecordRemovedMeanwhile(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	put(t, s, "there", another(1))
	// A dangling link can be listed but not opened.
	must.NoError(t, os.Symlink("nothing", filepath.Join(s.Dir(), "models", "gone.json")))
	list, err := s.Models()
	must.NoError(t, err)
	must.Len(t, 1, list)
	must.Eq(t, "there", list[0].ID)
}

// If the disk fails, the caller gets the error, and nothing of the attempt remains.
func TestDiskRefuses(t *testing.T) {
	t.Parallel()
	body := another(1)
	fetch := store.Fetch((&origin{body: body}).fetch)
	t.Run("no folder for what arrives", func(t *testing.T) {
		t.Parallel()
		s := open(t, t.TempDir())
		partial := filepath.Join(s.Dir(), "partial")
		must.NoError(t, os.Remove(partial))
		must.NoError(t, os.WriteFile(partial, nil, 0o600))
		for _, digest := range []string{sha256Of(body), ""} {
			_, err := s.PutModel(t.Context(), spec("m", body, digest), fetch, nil)
			must.ErrorContains(t, err, "fetch m.gguf: ")
		}
		nothingPublished(t, s)
	})
	t.Run("no journal", func(t *testing.T) {
		t.Parallel()
		s := open(t, t.TempDir())
		name := filepath.Join(s.Dir(), "partial", strings.Replace(sha256Of(body), ":", "-", 1)+".journal")
		must.NoError(t, os.Mkdir(name, 0o700))
		_, err := s.PutModel(t.Context(), spec("m", body, sha256Of(body)), fetch, nil)
		must.Error(t, err)
		must.NoError(t, os.Remove(name))
		// The file is no longer locked.
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_, err = s.PutModel(ctx, spec("m", body, sha256Of(body)), fetch, nil)
		must.NoError(t, err)
	})
	t.Run("no record", func(t *testing.T) {
		t.Parallel()
		s := open(t, t.TempDir())
		must.NoError(t, os.MkdirAll(filepath.Join(s.Dir(), "models", "m.json", "x"), 0o700))
		_, err := s.PutModel(t.Context(), spec("m", body, sha256Of(body)), fetch, nil)
		must.Error(t, err)
		must.SliceEmpty(t, files(t, s, "partial"))
		must.SliceEmpty(t, files(t, s, "models"))
	})
	t.Run("a store that cannot be one", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		must.NoError(t, os.WriteFile(filepath.Join(dir, "blobs"), nil, 0o600))
		_, err := store.Open(dir, nil)
		must.Error(t, err)
		must.StrContains(t, core.HintOf(err), dir)
	})
}

// An archive that is damaged although its digest matches is removed: fetching it again would not
// help.
func TestDamagedArchiveRemoved(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	archive := goodArchive(t)
	archive = archive[:len(archive)/2]
	_, err := s.PutBinary(t.Context(), binarySpec(t, archive), store.Fetch((&origin{body: archive}).fetch), nil)
	must.Eq(t, core.Integrity, core.KindOf(err))
	must.SliceEmpty(t, files(t, s, "partial"))
}

func TestOpenBlobRefuses(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	hex := strings.Repeat("0f", 32)
	must.NoError(t, os.Mkdir(filepath.Join(s.Dir(), "blobs", "sha256-"+hex), 0o700))
	for name, kind := range map[string]core.Kind{
		"": core.Invalid, "sha256:x": core.Invalid, "../x": core.Invalid, "sha256:" + hex: core.Integrity,
		"sha256:" + strings.Repeat("00", 32): core.NotFound, "sha512:" + hex + hex: core.NotFound,
	} {
		b, err := s.OpenBlob(name)
		must.Eq(t, kind, core.KindOf(err), must.Sprintf("%q", name))
		must.Nil(t, b)
	}
}

// versioned is a source whose file has versions.
type versioned struct {
	place
	version  string
	expected []string
}

func (v *versioned) Version() string       { return v.version }
func (v *versioned) Expect(version string) { v.expected = append(v.expected, version) }
func (v *versioned) Origin() string        { return "origin" }

// A later process asks the same address for the version that it has a part of, and expects no
// version at an address from which it has nothing.
func TestVersionIsRemembered(t *testing.T) {
	t.Parallel()
	body := noise(3 * mib)
	dir := t.TempDir()
	try := func(v *versioned, others ...store.Source) error {
		return open(t, dir).EnsureBlob(t.Context(), fileSpec(body), from(append([]store.Source{v}, others...)...))
	}
	v := &versioned{place: place{body: body, stop: stopAt(2_000_000, core.Unavailable)}, version: "etag 1"}
	must.Error(t, try(v))
	must.SliceEmpty(t, v.expected)
	for _, name := range files(t, open(t, dir), "partial") { // the journal as well
		info, err := os.Stat(filepath.Join(dir, "partial", name))
		must.NoError(t, err)
		must.Eq(t, 0o600, info.Mode(), must.Sprint(name))
	}
	none := &versioned{place: place{body: body, stop: stopAt(0, core.Conflict)}, version: "etag 2"}
	must.Eq(t, core.Conflict, core.KindOf(try(none)))
	must.Eq(t, "etag 1", none.expected[0])
	last := &versioned{place: place{body: body}}
	must.NoError(t, try(last))
	must.SliceEmpty(t, last.expected, must.Sprint("all of the old version was dropped"))
	published(t, open(t, dir), body)
}

// If a source reports a file of unknown size as empty, the digest decides, and the next source is
// still asked.
func TestEmptySource(t *testing.T) {
	t.Parallel()
	body := noise(12345)
	f := fileSpec(body)
	f.SizeBytes = 0
	s := open(t, t.TempDir())
	sup := from(&place{}, &place{body: body})
	must.NoError(t, s.EnsureBlob(t.Context(), f, sup))
	published(t, s, body)
	must.Len(t, 1, sup.failed)
	must.ErrorContains(t, sup.failed[0], "empty: 0 bytes received")

	empty := store.FileSpec{Path: "nothing", Digest: sha256Of(nil)}
	must.NoError(t, s.EnsureBlob(t.Context(), empty, from(&place{})))
	must.Len(t, 2, files(t, s, "blobs"))
}

// File names are for people: odd names are fine, names that are dangerous to show or to use are
// refused.
func TestFileNames(t *testing.T) {
	t.Parallel()
	body := another(1)
	for name, good := range map[string]bool{
		"a.gguf": true, "my model.gguf": true, "a/b.gguf": true, "ü.gguf": true, "a:b.gguf": true, "~.gguf": true,
		"": false, ".": false, "a/": false, "/a": false, "a//b": false, "../a": false, "a\\b": false, "a\nb": false, "a\x1fb": false, "a\x7fb": false, "a\x00": false,
	} {
		s := open(t, t.TempDir())
		in := spec("m", body, sha256Of(body))
		in.Files[0].Path = name
		_, err := s.PutModel(t.Context(), in, store.Fetch((&origin{body: body}).fetch), nil)
		must.Eq(t, good, err == nil, must.Sprintf("%q: %v", name, err))
	}
	in := spec("m", body, sha256Of(body))
	s := open(t, t.TempDir())
	for size, good := range map[int64]bool{-1: false, 0: true} {
		in.Files[0].SizeBytes = size
		_, err := s.PutModel(t.Context(), in, store.Fetch((&origin{body: body}).fetch), nil)
		must.Eq(t, good, err == nil, must.Sprint(size))
	}
	_, err := s.PutModel(t.Context(), store.ModelSpec{ID: "n"}, nil, nil)
	must.Eq(t, core.Invalid, core.KindOf(err))
}

// For a slow transfer, only the actual phase is reported: checking begins only after all bytes have
// arrived.
func TestPhases(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := open(t, t.TempDir())
		body := another(1)
		phases := map[string]int{}
		_, err := s.PutModel(t.Context(), spec("m", body, sha256Of(body)), store.Fetch(func(_ context.Context, _ store.FileSpec, offset int64, w io.Writer) error {
			for _, part := range [][]byte{body[offset : len(body)/2], body[len(body)/2:]} {
				time.Sleep(3 * time.Second)
				if _, err := w.Write(part); err != nil {
					return err
				}
			}
			return nil
		}), func(p core.Progress) { phases[p.Phase]++ })
		must.NoError(t, err)
		must.MapLen(t, 1, phases, must.Sprint(phases))
		must.Greater(t, 50, phases["download m.gguf"]) // ten per second
	})
}

// waiting is a source that sends nothing until its context ends, after its first connection has
// failed.
type waiting struct{}

func (w *waiting) Name() string     { return "waiting" }
func (w *waiting) Connections() int { return 4 }

func (w *waiting) Fetch(ctx context.Context, from, _ int64, to io.Writer) error {
	if from == 0 {
		if _, err := to.Write(make([]byte, 1000)); err != nil { // from now on, more connections help
			return err
		}
		time.Sleep(time.Second)
		return errors.New("broken")
	}
	select {
	case <-ctx.Done():
	case <-time.After(time.Hour):
	}
	return ctx.Err()
}

// One broken connection gives up the source: the others are not waited for.
func TestOneBrokenConnection(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := open(t, t.TempDir())
		began := time.Now()
		f := store.FileSpec{Path: "big.bin", SizeBytes: 40 * mib, Digest: sha256Of(nil)}
		err := s.EnsureBlob(t.Context(), f, from(&waiting{}))
		must.ErrorContains(t, err, "broken")
		must.Eq(t, time.Second, time.Since(began))
	})
}

// When the caller's context ends, a check ends with the context's error.
func TestVerifyEnds(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	_, err := s.PutBinary(t.Context(), pluginFolder(t), nil, nil)
	must.NoError(t, err)
	body := tinyModel(t)
	put(t, s, "m", body)
	for _, until := range []int64{1, int64(len(body)), int64(len(body)) + 1} { // in the model, then in the worker binary
		ctx, cancel := context.WithCancel(t.Context())
		_, err = s.Verify(ctx, func(p core.Progress) {
			if p.Done >= until {
				cancel()
			}
		})
		must.ErrorIs(t, err, context.Canceled, must.Sprint(until))
	}
	all, err := s.Verify(t.Context(), func(core.Progress) {})
	must.NoError(t, err)
	must.SliceEmpty(t, all.Damaged)
	must.Eq(t, 1, all.Models)
	must.Eq(t, 1, all.Binaries)
}

// A store does not read a huge record, which rbee did not write, into memory.
func TestHugeRecord(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	for size, says := range map[int64]string{16 << 20: "cannot be", 16<<20 + 1: "is larger than 16 MiB"} {
		name := filepath.Join(s.Dir(), "models", "m.json")
		must.NoError(t, os.WriteFile(name, bytes.Repeat([]byte{' '}, int(size)), 0o600))
		list, err := s.Models()
		must.NoError(t, err)
		must.StrContains(t, list[0].Damaged, says, must.Sprint(fmt.Sprint(size)))
	}
}

// A model whose source now lists other files is replaced, however many they are, and has each of
// its names once.
func TestModelOfOtherFiles(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	put(t, s, "m", another(1))
	parts := badgguf.Split()
	in := specOf("m", parts...)
	in.Aliases = []string{"n", "n", "m"}
	for range 2 {
		m, err := s.PutModel(t.Context(), in, serve(parts...), nil)
		must.NoError(t, err)
		must.Len(t, 3, m.Files)
		must.Eq(t, []string{"n"}, m.Aliases)
	}
	m := put(t, s, "m", another(1))
	must.Len(t, 1, m.Files)
	must.Eq(t, []string{"n"}, m.Aliases)
}

// All parts of a model that a worker has loaded stay, even if nothing in the catalog needs them any
// more.
func TestLoadedPartsStay(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	parts := badgguf.Split()
	put(t, s, "m", parts...)
	_, _, err := s.Model("m") // creates the folder of its parts
	must.NoError(t, err)
	put(t, s, "m", another(1))
	for _, loaded := range []string{sha256Of(parts[0]), ""} {
		r, err := s.GC(time.Now(), store.InUse{Models: []string{loaded, "no digest"}, Folder: nobody}, false)
		must.NoError(t, err)
		if loaded != "" {
			must.SliceEmpty(t, r.Removed)
			continue
		}
		must.Len(t, 3, r.Removed)
	}
	must.Len(t, 1, files(t, s, "blobs"))
}

// All transfers that have been idle too long are removed, each with its journal.
func TestGCOldPartials(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	for i := range 3 {
		body := noise(2*mib + i)
		must.Error(t, s.EnsureBlob(t.Context(), fileSpec(body), from(&place{body: body, stop: stopAt(mib, core.Unavailable)})))
	}
	must.Len(t, 6, files(t, s, "partial"))
	r, err := s.GC(time.Now().Add(25*time.Hour), store.InUse{Folder: nobody}, false)
	must.NoError(t, err)
	must.Len(t, 3, r.Removed)
	must.SliceEmpty(t, files(t, s, "partial"))
}

// If a record cannot even be read as text, no file is removed: it may belong to that record.
func TestDeleteBesideAnUnreadableRecord(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	put(t, s, "m", another(1))
	must.NoError(t, os.Mkdir(filepath.Join(s.Dir(), "models", "odd.json"), 0o700))
	_, err := s.DeleteModel("m", false)
	must.ErrorContains(t, err, "delete model m: ")
	must.Len(t, 1, files(t, s, "blobs"))
}

// Of several damaged worker binaries the newest is shown. A damaged one is never superseded: a
// person may want to inspect it.
func TestDamagedBinariesOfAType(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	var all []core.WorkerBinary
	for _, version := range []string{"2.0.0", "1.0.0", "3.0.0"} {
		b, err := s.PutBinary(t.Context(), store.BinarySpec{Type: "x", Version: version, Executable: pluginExecutable(t, version), Source: "local"}, nil, nil)
		must.NoError(t, err)
		all = append(all, b)
		timer := time.NewTimer(2 * time.Millisecond) // ages are in milliseconds
		<-timer.C
	}
	newest := func() string {
		b, err := s.Binary("x")
		must.NoError(t, err)
		return b.Version
	}
	must.Eq(t, "3.0.0", newest())
	damage := func(b core.WorkerBinary) { must.NoError(t, os.Truncate(filepath.Join(b.Path, "rbee-worker-x"), 1)) }
	damage(all[2])
	must.Eq(t, "1.0.0", newest()) // the later of the sound ones
	damage(all[0])
	damage(all[1])
	must.Eq(t, "3.0.0", newest())

	rebuilt := store.BinarySpec{Type: "x", Version: "3.0.0", Executable: pluginExecutable(t, "other code"), Source: "local"}
	_, err := s.PutBinary(t.Context(), rebuilt, nil, nil)
	must.NoError(t, err)
	must.NoError(t, s.RemoveSuperseded(nobody))
	_, err = os.Stat(all[2].Path)
	must.NoError(t, err)
}

// Verify reads the whole store each time, whatever was checked before.
func TestVerifyReadsAll(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	b, err := s.PutBinary(t.Context(), pluginFolder(t), nil, nil)
	must.NoError(t, err)
	m := put(t, s, "m", another(1))
	must.NoError(t, s.CheckBinary(t.Context(), b.Path))
	for range 2 {
		r, err := s.Verify(t.Context(), func(core.Progress) {})
		must.NoError(t, err)
		must.Eq(t, b.SizeBytes+m.SizeBytes, r.CheckedBytes)
	}
}

// After a digest mismatch, the bytes of the next source are hashed anew, with either algorithm, and
// no logger is needed.
func TestNextSourceAfterWrongBytes(t *testing.T) {
	t.Parallel()
	body := noise(12345)
	for _, digest := range []string{sha256Of(body), sha512Of(body)} {
		s, err := store.Open(t.TempDir(), nil)
		must.NoError(t, err)
		f := fileSpec(body)
		f.Digest = digest
		must.NoError(t, s.EnsureBlob(t.Context(), f, from(&place{body: noise(12346)[1:]}, &place{body: body})))
		published(t, s, body)
		must.NoError(t, s.Close())
	}
}

// A file of unknown size that fills the disk is given up: another source would not make room.
func TestUnknownSizeFillsTheDisk(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	s.SetFree(64 << 20)
	body := make([]byte, 70*mib)
	second := &place{body: body}
	err := s.EnsureBlob(t.Context(), store.FileSpec{Path: "big.bin", Digest: sha256Of(body)}, from(&place{body: body}, second))
	must.Eq(t, core.TooLarge, core.KindOf(err))
	must.SliceEmpty(t, second.asked)
}

// TestOnlyModels checks that a GGUF file whose contents are not a model is refused, and that
// nothing of it is kept.
func TestOnlyModels(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	for what, entry := range map[string][2]string{
		"an adapter": {"general.type", "adapter"}, "a projector": {"general.type", "mmproj"}, "projector": {"general.architecture", "clip"},
		"an importance matrix": {"general.type", "imatrix"}, "": {"general.type", "model"},
	} {
		body := badgguf.File(badgguf.With(badgguf.GoodEntries(), entry[0], entry[1]), badgguf.GoodTensors(), badgguf.GoodData)
		o := &origin{body: body}
		_, err := s.PutModel(t.Context(), spec("m", body, sha256Of(body)), store.Fetch(o.fetch), nil)
		if what == "" {
			must.NoError(t, err)
			continue
		}
		must.Eq(t, core.Unsupported, core.KindOf(err), must.Sprint(what, err))
		must.StrContains(t, err.Error(), what)
		must.StrNotContains(t, err.Error(), s.Dir())
	}
}
