package store_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core/coretest"
	"github.com/rbee-project/rbee/core/store"
)

func open(t *testing.T, dir string) *store.Store {
	t.Helper()
	s, err := store.Open(dir, coretest.Logger(t))
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, s.Close()) })
	return s
}

func tinyModel(t *testing.T) []byte {
	t.Helper()
	b, err := os.ReadFile("../../plugins/catalog-builtin/rbee-tiny.gguf")
	must.NoError(t, err)
	return b
}

func sha256Of(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }
func sha512Of(b []byte) string { return fmt.Sprintf("sha512:%x", sha512.Sum512(b)) }

// origin is a source of one file that counts its requests.
type origin struct {
	body    []byte
	fetches atomic.Int64
	bytes   atomic.Int64
	offsets []int64 // only set in tests with one fetch at a time
}

func (o *origin) fetch(_ context.Context, _ store.FileSpec, offset int64, w io.Writer) error {
	o.fetches.Add(1)
	o.offsets = append(o.offsets, offset)
	n, err := io.Copy(w, bytes.NewReader(o.body[min(offset, int64(len(o.body))):]))
	o.bytes.Add(n)
	return err
}

// spec returns a model of one file.
func spec(id string, b []byte, digest string) store.ModelSpec {
	return store.ModelSpec{ID: id, Ref: "test:" + id, Files: []store.FileSpec{{Path: id + ".gguf", SizeBytes: int64(len(b)), Digest: digest, Ref: id}}}
}

// files returns the names below a folder of the store, sorted.
func files(t *testing.T, s *store.Store, folder string) []string {
	t.Helper()
	var out []string
	must.NoError(t, filepath.WalkDir(filepath.Join(s.Dir(), folder), func(p string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, relErr := filepath.Rel(filepath.Join(s.Dir(), folder), p)
			must.NoError(t, relErr)
			out = append(out, filepath.ToSlash(rel))
		}
		return err
	}))
	return out
}

// nothingPublished fails the test if the store has a model or a worker binary.
func nothingPublished(t *testing.T, s *store.Store) {
	t.Helper()
	for _, folder := range []string{"blobs", "models", "workers"} {
		must.SliceEmpty(t, files(t, s, folder), must.Sprint(folder))
	}
}

// item is an entry of an archive.
type item struct {
	name string
	body string
	typ  byte // 0: a file
	link string
	mode int64
}

func targz(t *testing.T, items ...item) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for _, i := range items {
		h := &tar.Header{Name: i.name, Typeflag: i.typ, Linkname: i.link, Mode: i.mode, Size: int64(len(i.body))}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			h = &tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "g", PAXRecords: map[string]string{"comment": "x"}}
		}
		must.NoError(t, w.WriteHeader(h))
		_, err := io.WriteString(w, i.body)
		must.NoError(t, err)
	}
	must.NoError(t, w.Close())
	must.NoError(t, z.Close())
	return b.Bytes()
}

// pluginExecutable writes a file that stands in for a plugin.
func pluginExecutable(t *testing.T, content string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "rbee-worker-cpu")
	must.NoError(t, os.WriteFile(name, []byte(content), 0o700))
	return name
}

// binarySpec returns a worker binary whose engine is the archive.
func binarySpec(t *testing.T, archive []byte) store.BinarySpec {
	t.Helper()
	return store.BinarySpec{
		Type: "cpu", Version: "1.0.0", Executable: pluginExecutable(t, "#!plugin"), EngineName: "llama.cpp", EngineVersion: "v0.5.0",
		Source: "npm:pkg@1", Prefix: "package/bins/x/", Links: map[string]string{"libllama.so": "libllama.v0.5.0.so"},
		Engine: &store.FileSpec{Path: "pkg-1.tgz", SizeBytes: int64(len(archive)), Digest: sha512Of(archive), Ref: "pkg@1"},
	}
}

func goodArchive(t *testing.T) []byte {
	t.Helper()
	return targz(t,
		item{typ: 'g'},
		item{name: "package/", typ: '5'},
		item{name: "package/package.json", body: "{}"},
		item{name: "./package/bins/x/libllama.v0.5.0.so", body: "llama"},
		item{name: "package/bins/x/libggml.so", body: "ggml", mode: 0o755},
		item{name: "package/bins/x/more/deep.txt", body: "deep"},
		item{name: "package/bins/y/other.so", body: "other"},
	)
}

var goodFiles = []string{
	"engine/libggml.so", "engine/libllama.so", "engine/libllama.v0.5.0.so", "engine/more/deep.txt", "manifest.json", "rbee-worker-cpu",
}
