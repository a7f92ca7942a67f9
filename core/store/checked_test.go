package store_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/store"
)

// spoil changes the last byte of a file and restores its modification time.
func spoil(t *testing.T, path string) {
	t.Helper()
	info, err := os.Stat(path)
	must.NoError(t, err)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must.NoError(t, err)
	b := make([]byte, 1)
	_, err = f.ReadAt(b, info.Size()-1)
	must.NoError(t, err)
	b[0] ^= 1
	_, err = f.WriteAt(b, info.Size()-1)
	must.NoError(t, err)
	must.NoError(t, f.Close())
	must.NoError(t, os.Chtimes(path, info.ModTime(), info.ModTime()))
}

func TestPutBinaryOtherCode(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	archive := goodArchive(t)
	o := &origin{body: archive}
	in := binarySpec(t, archive)
	first, err := s.PutBinary(t.Context(), in, store.Fetch(o.fetch), nil)
	must.NoError(t, err)
	other := in
	other.Executable = pluginExecutable(t, "#!plugin, other code")
	second, err := s.PutBinary(t.Context(), other, store.Fetch(o.fetch), nil)
	must.NoError(t, err)
	must.NotEq(t, first.ID, second.ID)
	must.StrHasPrefix(t, first.ID+"+", second.ID)
	still, err := s.Binary(first.ID)
	must.NoError(t, err)
	must.Eq(t, first.Digest, still.Digest)
	must.Eq(t, first.Path, still.Path)
	newest, err := s.Binary("cpu")
	must.NoError(t, err)
	must.Eq(t, second.ID, newest.ID)

	// Each entry is found by its code, whether it is put again or not, and renewed under its own
	// id.
	for _, tc := range []struct {
		spec store.BinarySpec
		want core.WorkerBinary
	}{{in, first}, {other, second}} {
		tc.spec.Digest = tc.want.Digest
		b, err := s.InstalledBinary(tc.spec)
		must.NoError(t, err)
		must.Eq(t, tc.want.ID, b.ID)
		b, err = s.PutBinary(t.Context(), tc.spec, store.Fetch(o.fetch), nil)
		must.NoError(t, err)
		must.Eq(t, tc.want.Path, b.Path)
		tc.spec.Force = true
		b, err = s.PutBinary(t.Context(), tc.spec, store.Fetch(o.fetch), nil)
		must.NoError(t, err)
		must.Eq(t, tc.want.ID, b.ID)
		must.Eq(t, tc.want.Path+"~2", b.Path)
	}
	_, err = s.InstalledBinary(store.BinarySpec{Type: in.Type, Version: in.Version, EngineName: in.EngineName, EngineVersion: in.EngineVersion, Digest: "sha256:00"})
	must.Eq(t, core.NotFound, core.KindOf(err))

	// An executable other than the one that was inspected is not installed.
	other.Digest = first.Digest
	_, err = s.PutBinary(t.Context(), other, store.Fetch(o.fetch), nil)
	must.Eq(t, core.Conflict, core.KindOf(err))
}

func TestRemoveSupersededRebuilt(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	archive := goodArchive(t)
	o := &origin{body: archive}
	in := binarySpec(t, archive)
	first, err := s.PutBinary(t.Context(), in, store.Fetch(o.fetch), nil)
	must.NoError(t, err)
	kept := in
	kept.Version = "0.9.0"
	_, err = s.PutBinary(t.Context(), kept, store.Fetch(o.fetch), nil)
	must.NoError(t, err)
	in.Executable = pluginExecutable(t, "#!plugin, rebuilt")
	second, err := s.PutBinary(t.Context(), in, store.Fetch(o.fetch), nil)
	must.NoError(t, err)
	ids := func() (out []string) {
		all, err := s.Binaries()
		must.NoError(t, err)
		for _, b := range all {
			out = append(out, b.ID)
		}
		return out
	}
	must.NoError(t, s.RemoveSuperseded(func(folder string) bool { return folder == first.Path }))
	must.Eq(t, []string{kept.ID(), first.ID, second.ID}, ids())
	must.NoError(t, s.RemoveSuperseded(func(string) bool { return false }))
	must.Eq(t, []string{kept.ID(), second.ID}, ids())
}

func TestCheckBinaryChangedFile(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"rbee-worker-cpu", "engine/libggml.so"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := open(t, t.TempDir())
			archive := goodArchive(t)
			b, err := s.PutBinary(t.Context(), binarySpec(t, archive), store.Fetch((&origin{body: archive}).fetch), nil)
			must.NoError(t, err)
			must.NoError(t, s.CheckBinary(t.Context(), b.Path))
			must.NoError(t, s.CheckBinary(t.Context(), b.Path))
			spoil(t, filepath.Join(b.Path, name))
			must.Eq(t, core.Integrity, core.KindOf(s.CheckBinary(t.Context(), b.Path)))
			after, err := s.Binary("cpu")
			must.NoError(t, err)
			must.StrContains(t, after.Damaged, name)
		})
	}
	s := open(t, t.TempDir())
	must.Eq(t, core.Conflict, core.KindOf(s.CheckBinary(t.Context(), "/elsewhere")))
}

func TestCheckModelOncePerBoot(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	boot := "first"
	reopen := func() *store.Store {
		s := open(t, dir)
		s.SetBoot(func() string { return boot })
		return s
	}
	s := reopen()
	body := tinyModel(t)
	m, err := s.PutModel(t.Context(), store.ModelSpec{ID: "m", Ref: "x:m", Files: []store.FileSpec{fileSpec(body)}}, from(&place{body: body}), nil)
	must.NoError(t, err)
	read := func(s *store.Store) (bytes int64) {
		must.NoError(t, s.CheckModel(t.Context(), "m", func(p core.Progress) { bytes = p.Done }))
		return bytes
	}
	must.Eq(t, int64(0), read(s), must.Sprint("it was checked when it came"))
	must.Eq(t, int64(0), read(reopen()), must.Sprint("nor does another process of this boot read it again"))
	boot = "second"
	s = reopen()
	must.Eq(t, int64(len(body)), read(s))
	must.Eq(t, int64(0), read(s))
	must.Eq(t, int64(0), read(reopen()))

	spoil(t, filepath.Join(dir, "blobs", "sha256-"+m.Digest[len("sha256:"):]))
	must.Eq(t, core.Integrity, core.KindOf(s.CheckModel(t.Context(), "m", func(core.Progress) {})))
	list, err := s.Models()
	must.NoError(t, err)
	must.NotEq(t, "", list[0].Damaged)
}
