package store

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"io"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
)

// packed returns an archive of one folder and one file, and its unpacked size.
func packed(t *testing.T) (zipped []byte, size int64) {
	t.Helper()
	var plain, out bytes.Buffer
	w := tar.NewWriter(&plain)
	must.NoError(t, w.WriteHeader(&tar.Header{Name: "top/", Typeflag: tar.TypeDir, Mode: 0o755}))
	must.NoError(t, w.WriteHeader(&tar.Header{Name: "top/file", Typeflag: tar.TypeReg, Mode: 0o644, Size: 700}))
	_, err := w.Write(make([]byte, 700))
	must.NoError(t, err)
	must.NoError(t, w.Close())
	size = int64(plain.Len())
	z := gzip.NewWriter(&out)
	_, err = z.Write(plain.Bytes())
	must.NoError(t, err)
	must.NoError(t, z.Close())
	return out.Bytes(), size
}

// An archive may be exactly as large as its bound, wherever the bound falls: in a header, in a file
// that is read or skipped, or in what follows the last file. The end of an archive counts.
func TestArchiveBound(t *testing.T) {
	t.Parallel()
	zipped, size := packed(t)
	for _, read := range []bool{true, false} {
		walk := func(limit int64) error {
			a := archive{file: bytes.NewReader(zipped), prefix: "top/", size: int64(len(zipped)), limits: unpackLimits{entries: 10, bytes: limit, nameBytes: 100, depth: 5}}
			return a.walk(t.Context(), func(name string, _ *tar.Header, r io.Reader) error {
				must.Eq(t, "file", name)
				if !read {
					return nil
				}
				_, err := io.Copy(io.Discard, r)
				return err
			})
		}
		must.NoError(t, walk(size))
		for limit := int64(0); limit < size; limit += 100 {
			must.Eq(t, core.TooLarge, core.KindOf(walk(limit)), must.Sprint(limit))
		}
		must.Eq(t, core.TooLarge, core.KindOf(walk(size-1)))
	}
	// The space it needs on the disk is the sum of its files.
	a := archive{file: bytes.NewReader(zipped), prefix: "top/", size: int64(len(zipped)), limits: unpackLimits{entries: 10, bytes: size, nameBytes: 100, depth: 5}}
	_, total, err := a.measure(t.Context())
	must.NoError(t, err)
	must.Eq(t, 700, total)
	// The same holds for its entries.
	for entries, want := range map[int]core.Kind{1: core.TooLarge, 2: "", 3: ""} {
		a := archive{file: bytes.NewReader(zipped), prefix: "top/", size: int64(len(zipped)), limits: unpackLimits{entries: entries, bytes: size, nameBytes: 100, depth: 5}}
		must.Eq(t, want, core.KindOf(a.walk(t.Context(), func(string, *tar.Header, io.Reader) error { return nil })))
	}
}
