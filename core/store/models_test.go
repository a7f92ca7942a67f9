package store_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/store"
)

func TestPutModel(t *testing.T) {
	t.Parallel()
	body := tinyModel(t)
	for name, digest := range map[string]string{"sha256": sha256Of(body), "sha512": sha512Of(body), "no digest": ""} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := open(t, t.TempDir())
			o := &origin{body: body}
			var last core.Progress
			in := spec("rbee-tiny", body, digest)
			in.Aliases = []string{"tiny:latest"}
			m, err := s.PutModel(t.Context(), in, store.Fetch(o.fetch), func(p core.Progress) { last = p })
			must.NoError(t, err)
			must.Eq(t, core.Progress{Phase: "download rbee-tiny.gguf", Done: int64(len(body)), Total: int64(len(body)), Unit: "bytes"}, last)
			must.Eq(t, sha256Of(body), m.Digest)
			must.Eq(t, "llama", m.Architecture)
			must.Eq(t, "Q8_0", m.Quantization)
			must.Eq(t, 2755008, m.Parameters)
			must.Eq(t, 1024, m.ContextTokens)
			must.Eq(t, int64(len(body)), m.SizeBytes)
			must.Greater(t, m.SizeBytes, m.EstimateBytes)
			must.StrContains(t, strings.ToLower(m.License), "apache")
			must.Eq(t, "", m.Damaged)

			for _, name := range []string{"rbee-tiny", "tiny:latest", "test:rbee-tiny"} {
				got, path, err := s.Model(name)
				must.NoError(t, err)
				must.Eq(t, m, got)
				b, err := os.ReadFile(path)
				must.NoError(t, err)
				must.True(t, bytes.Equal(body, b))
				info, err := os.Stat(path)
				must.NoError(t, err)
				must.Eq(t, 0o600, info.Mode().Perm())
			}
			h, err := s.Header("rbee-tiny")
			must.NoError(t, err)
			must.Greater(t, h.EstimateBytes(1, 512), h.EstimateBytes(8, 1024))
			list, err := s.Models()
			must.NoError(t, err)
			must.Eq(t, []core.Model{m}, list)
			must.SliceEmpty(t, files(t, s, "partial"))
			must.NoError(t, s.VerifyModel(t.Context(), "rbee-tiny"))

			in.Aliases = []string{"other"}
			again, err := s.PutModel(t.Context(), in, store.Fetch(o.fetch), nil)
			must.NoError(t, err)
			must.Eq(t, []string{"tiny:latest", "other"}, again.Aliases)
			must.Eq(t, 1, o.fetches.Load())
		})
	}
}

// Everything required of a model is checked before anything is published.
func TestPutModelRefuses(t *testing.T) {
	t.Parallel()
	good := tinyModel(t)
	flipped := bytes.Clone(good)
	flipped[len(flipped)/2] ^= 1
	lying := bytes.Clone(good)
	copy(lying[8:16], bytes.Repeat([]byte{0xff}, 8)) // as many tensors as can be written
	cut := good[:len(good)-1]
	tests := map[string]struct {
		announced []byte // size and digest of the spec
		served    []byte
		digest    string // empty: that of announced
		size      int64  // 0: that of announced
		kind      core.Kind
		says      string
	}{
		"a flipped bit":             {announced: good, served: flipped, kind: core.Integrity, says: "digest mismatch"},
		"an HTML page":              {announced: []byte("GGUF" + strings.Repeat("x", 30)), served: []byte("\n<!DOCTYPE html><p>Please sign in."), kind: core.Integrity, says: "m.gguf is an HTML page of 34 bytes"},
		"compressed":                {announced: []byte("GGUF" + strings.Repeat("x", 30)), served: append([]byte{0x1f, 0x8b, 8}, make([]byte, 31)...), kind: core.Integrity, says: "compressed with gzip: 34 bytes received"},
		"truncated":                 {announced: good, served: cut, kind: core.Integrity, says: "ended after 2983679 bytes"},
		"extended":                  {announced: good, served: append(bytes.Clone(good), 0), kind: core.Integrity, says: "longer than the announced"},
		"nothing at all":            {announced: good, served: nil, kind: core.Integrity, says: "ended after 0 bytes"},
		"right digest, size bigger": {announced: good, served: good, size: int64(len(good)) + 1, kind: core.Integrity, says: "ended after"},
		"right digest, size less":   {announced: good, served: good, size: int64(len(good)) - 1, kind: core.Integrity, says: "longer than"},
		"no GGUF":                   {announced: []byte("hello, world"), served: []byte("hello, world"), kind: core.Integrity, says: "does not start with GGUF"},
		"a GGUF cut by its maker":   {announced: cut, served: cut, kind: core.Integrity, says: "beyond the end of the file"},
		"a lying header":            {announced: lying, served: lying, kind: core.Integrity, says: "more than fit"},
		"digest too short":          {announced: good, served: good, digest: "sha256:abcd", kind: core.Invalid, says: "not a digest"},
		"digest that is a path":     {announced: good, served: good, digest: "sha256:../../../../../../../../../../../../etc/passwd", kind: core.Invalid, says: "not a digest"},
		"digest in capitals":        {announced: good, served: good, digest: strings.ToUpper(sha256Of(good)), kind: core.Invalid, says: "not a digest"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := open(t, t.TempDir())
			in := spec("m", tc.announced, sha256Of(tc.announced))
			if tc.digest != "" {
				in.Files[0].Digest = tc.digest
			}
			if tc.size != 0 {
				in.Files[0].SizeBytes = tc.size
			}
			_, err := s.PutModel(t.Context(), in, store.Fetch((&origin{body: tc.served}).fetch), nil)
			must.ErrorContains(t, err, tc.says)
			must.Eq(t, tc.kind, core.KindOf(err))
			must.NotEq(t, "", core.HintOf(err))
			nothingPublished(t, s)
			must.SliceEmpty(t, files(t, s, "partial"))
			_, _, err = s.Model("m")
			must.Eq(t, core.NotFound, core.KindOf(err))
		})
	}
}

func TestDigests(t *testing.T) {
	t.Parallel()
	hex64 := strings.Repeat("0f", 32)
	for _, ok := range []string{"sha256:" + hex64, "sha512:" + hex64 + hex64, ""} {
		got, err := store.ParseDigest(ok)
		must.NoError(t, err)
		must.Eq(t, ok, got)
	}
	for _, bad := range []string{
		"sha256:", "sha256", hex64, "sha256:" + hex64[1:], "sha256:" + hex64 + "0", "sha256-" + hex64, "SHA256:" + hex64, "sha256:" + strings.ToUpper(hex64),
		"sha512:" + hex64, "md5:" + hex64[:32], "sha256:" + hex64[:63] + "g", "sha256:../" + hex64[3:], "sha256: " + hex64[1:], "sha256:" + hex64 + "\n",
	} {
		_, err := store.ParseDigest(bad)
		must.Eq(t, core.Invalid, core.KindOf(err), must.Sprintf("%q", bad))
	}
}

func TestResume(t *testing.T) {
	t.Parallel()
	body := tinyModel(t)
	broken := errors.New("connection reset")
	half := int64(len(body) / 2)
	interrupted := func(body []byte) store.Fetch {
		return func(_ context.Context, _ store.FileSpec, offset int64, w io.Writer) error {
			_, err := w.Write(body[offset:half])
			return errors.Join(err, core.WithKind(broken, core.Unavailable))
		}
	}
	in := spec("m", body, sha256Of(body))

	t.Run("at the offset, also after a restart", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		s := open(t, dir)
		_, err := s.PutModel(t.Context(), in, interrupted(body), nil)
		must.ErrorIs(t, err, broken)
		must.Eq(t, core.Unavailable, core.KindOf(err))
		nothingPublished(t, s)

		s = open(t, dir)
		o := &origin{body: body}
		var first core.Progress
		_, err = s.PutModel(t.Context(), in, store.Fetch(o.fetch), func(p core.Progress) {
			if first.Phase == "" {
				first = p
			}
		})
		must.NoError(t, err)
		must.Eq(t, []int64{half}, o.offsets)
		must.Eq(t, half, first.Done)
		must.NoError(t, s.VerifyModel(t.Context(), "m"))
	})
	t.Run("all was there", func(t *testing.T) {
		t.Parallel()
		s := open(t, t.TempDir())
		must.NoError(t, os.WriteFile(filepath.Join(s.Dir(), "partial", strings.Replace(sha256Of(body), ":", "-", 1)), body, 0o600))
		o := &origin{body: body}
		_, err := s.PutModel(t.Context(), in, store.Fetch(o.fetch), nil)
		must.NoError(t, err)
		must.Eq(t, 0, o.fetches.Load())
	})
	t.Run("the earlier part was damaged", func(t *testing.T) {
		t.Parallel()
		s := open(t, t.TempDir())
		other := bytes.Clone(body)
		other[5] ^= 1
		_, err := s.PutModel(t.Context(), in, interrupted(other), nil)
		must.ErrorIs(t, err, broken)
		o := &origin{body: body}
		_, err = s.PutModel(t.Context(), in, store.Fetch(o.fetch), nil)
		must.NoError(t, err)
		must.Eq(t, []int64{half, 0}, o.offsets)
	})
	t.Run("not without a digest", func(t *testing.T) {
		t.Parallel()
		s := open(t, t.TempDir())
		_, err := s.PutModel(t.Context(), spec("m", body, ""), interrupted(body), nil)
		must.ErrorIs(t, err, broken)
		must.SliceEmpty(t, files(t, s, "partial"))
	})
}

// A source that continues to write after the sink failed, and hides the error.
func TestSinkErrorWins(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	_, err := s.PutModel(t.Context(), spec("m", []byte("12345"), ""), store.Fetch(func(_ context.Context, _ store.FileSpec, _ int64, w io.Writer) error {
		for range 10 {
			_, _ = w.Write([]byte("1234"))
		}
		return nil
	}), nil)
	must.ErrorContains(t, err, "longer than the announced 5 bytes")
	nothingPublished(t, s)
}

func TestNoRoom(t *testing.T) {
	t.Parallel()
	body := tinyModel(t)
	s := open(t, t.TempDir())
	s.SetFree(64<<20 + 1_000_000)
	o := &origin{body: body}
	_, err := s.PutModel(t.Context(), spec("m", body, sha256Of(body)), store.Fetch(o.fetch), nil)
	must.Eq(t, core.TooLarge, core.KindOf(err))
	must.ErrorContains(t, err, "1983680 bytes are missing")
	must.StrContains(t, core.HintOf(err), "store_dir")
	must.Eq(t, 0, o.fetches.Load())
	nothingPublished(t, s)

	s.SetFree(64<<20 + int64(len(body)))
	g := newGate(body)
	first := make(chan error, 1)
	go func() {
		_, err := s.PutModel(t.Context(), spec("m", body, sha256Of(body)), store.Fetch(g.fetch), nil)
		first <- err
	}()
	<-g.reached
	other := append(bytes.Clone(body), 0)
	_, err = s.PutModel(t.Context(), spec("n", other, sha256Of(other)), store.Fetch(o.fetch), nil)
	must.Eq(t, core.TooLarge, core.KindOf(err), must.Sprint("the room is promised to the first"))
	close(g.let)
	must.NoError(t, <-first)
}

func TestDamagedModels(t *testing.T) {
	t.Parallel()
	body := tinyModel(t)
	in := spec("m", body, sha256Of(body))
	blobOf := func(s *store.Store) string {
		_, path, err := s.Model("m")
		must.NoError(t, err)
		return path
	}
	tests := map[string]struct {
		damage func(s *store.Store)
		says   string
	}{
		"missing":    {func(s *store.Store) { must.NoError(t, os.Remove(blobOf(s))) }, "its file is missing"},
		"wrong size": {func(s *store.Store) { must.NoError(t, os.Truncate(blobOf(s), 10)) }, "has 10 bytes and should have"},
		"a folder": {func(s *store.Store) {
			p := blobOf(s)
			must.NoError(t, os.Remove(p))
			must.NoError(t, os.Mkdir(p, 0o700))
		}, "not a regular file"},
		"a link": {func(s *store.Store) {
			p := blobOf(s)
			must.NoError(t, os.Rename(p, p+"x"))
			must.NoError(t, os.Symlink(p+"x", p))
		}, "not a regular file"},
		"record torn": {func(s *store.Store) { must.NoError(t, os.Truncate(filepath.Join(s.Dir(), "models", "m.json"), 30)) }, "its checksum is wrong"},
		"record of another": {func(s *store.Store) {
			must.NoError(t, os.WriteFile(filepath.Join(s.Dir(), "models", "m.json"), []byte(`{"format":1,"model":{"id":"n"}}`), 0o600))
		}, "not a record of this model"},
		"digest is a path": {func(s *store.Store) {
			name := filepath.Join(s.Dir(), "models", "m.json")
			b, err := os.ReadFile(name)
			must.NoError(t, err)
			_, b, _ = bytes.Cut(b, []byte("\n"))
			_, b, _ = bytes.Cut(b, []byte("\n")) // as written by a version of rbee without checksums
			b = append([]byte("{\n"), b...)
			must.NoError(t, os.WriteFile(name, bytes.ReplaceAll(b, []byte(sha256Of(body)), []byte("sha256:../../etc/passwd")), 0o600))
		}, "unusable digest"},
		"record with a flipped bit": {func(s *store.Store) {
			name := filepath.Join(s.Dir(), "models", "m.json")
			b, err := os.ReadFile(name)
			must.NoError(t, err)
			b[bytes.Index(b, []byte("size_bytes"))+len(`size_bytes": `)] ^= 1 // another number
			must.NoError(t, os.WriteFile(name, b, 0o600))
		}, "its checksum is wrong"},
		"content": {func(s *store.Store) {
			f, err := os.OpenFile(blobOf(s), os.O_RDWR, 0)
			must.NoError(t, err)
			_, err = f.WriteAt([]byte{0xee, 0xee}, 2_000_000)
			must.NoError(t, errors.Join(err, f.Close()))
			must.Eq(t, core.Integrity, core.KindOf(s.VerifyModel(t.Context(), "m")))
		}, "did not match its digest"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := open(t, t.TempDir())
			o := &origin{body: body}
			_, err := s.PutModel(t.Context(), in, store.Fetch(o.fetch), nil)
			must.NoError(t, err)
			tc.damage(s)
			list, err := s.Models()
			must.NoError(t, err)
			must.SliceLen(t, 1, list)
			must.Eq(t, "m", list[0].ID)
			must.StrContains(t, list[0].Damaged, tc.says)
			_, _, err = s.Model("m")
			must.Eq(t, core.Integrity, core.KindOf(err))
			must.NotEq(t, "", core.HintOf(err))
			if name == "a folder" {
				return // only a person should remove that
			}
			_, err = s.PutModel(t.Context(), in, store.Fetch(o.fetch), nil)
			must.NoError(t, err, must.Sprint("repair"))
			must.NoError(t, s.VerifyModel(t.Context(), "m"))
		})
	}
}

// A crash or a cancel at any point publishes nothing, and the next attempt succeeds.
func TestModelCrashPoints(t *testing.T) {
	t.Parallel()
	body := tinyModel(t)
	for _, step := range []string{"blob", "record"} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			s := open(t, t.TempDir())
			o := &origin{body: body}
			crash := errors.New("crash")
			s.FailAt(func(at string) error {
				if at == step {
					return crash
				}
				return nil
			})
			_, err := s.PutModel(t.Context(), spec("m", body, sha256Of(body)), store.Fetch(o.fetch), nil)
			must.ErrorIs(t, err, crash)
			list, err := s.Models()
			must.NoError(t, err)
			must.SliceEmpty(t, list)
			s.FailAt(nil)
			_, err = s.PutModel(t.Context(), spec("m", body, sha256Of(body)), store.Fetch(o.fetch), nil)
			must.NoError(t, err)
			must.Eq(t, 1, o.fetches.Load(), must.Sprint("what had arrived is used"))
		})
	}
}
