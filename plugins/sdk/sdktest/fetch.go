package sdktest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"strings"
	"testing"

	"github.com/rbee-project/rbee/plugins/sdk/catalog"
)

func catalogFetch(t *testing.T, s catalog.Source, o CatalogOptions) {
	m, err := s.Resolve(t.Context(), o.Ref)
	if err != nil {
		brokenNow(t, "resolve", "Resolve(%q): %v", o.Ref, err)
	}
	for _, f := range m.Files {
		var whole bytes.Buffer
		if err := s.Fetch(t.Context(), f, 0, &whole); err != nil {
			brokenNow(t, "fetch", "Fetch(%s): %v", f.Path, err)
		}
		size := int64(whole.Len())
		if f.SizeBytes != 0 && f.SizeBytes != size {
			broken(t, "file-digest", "%s has %d bytes, the manifest says %d", f.Path, size, f.SizeBytes)
		}
		if want := f.Digest; want != "" && digest(want, whole.Bytes()) != want {
			broken(t, "file-digest", "%s has the digest %s, the manifest says %s", f.Path, digest(want, whole.Bytes()), want)
		}
		for _, offset := range []int64{1, size / 2, size - 1, size} {
			if offset < 0 || offset > size {
				continue
			}
			var rest bytes.Buffer
			if err := s.Fetch(t.Context(), f, offset, &rest); err != nil || !bytes.Equal(rest.Bytes(), whole.Bytes()[offset:]) {
				broken(t, "fetch", "Fetch(%s) from %d of %d gives %d bytes, which are not the rest (%v)", f.Path, offset, size, rest.Len(), err)
			}
		}
		full := errors.New("full")
		if err := within(t, "fetch-ends", patience, "Fetch into a full disk", func() error { return s.Fetch(t.Context(), f, 0, failing{full}) }); size > 0 && !errors.Is(err, full) {
			broken(t, "fetch-ends", "Fetch hides the writer's error: %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := within(t, "fetch-ends", patience, "Fetch after its context ended", func() error { return s.Fetch(ctx, f, 0, &whole) }); err == nil {
			broken(t, "fetch-ends", "Fetch succeeds after its context ended")
		}
	}
	unknown := m.Files[0]
	unknown.Locator, unknown.Path, unknown.Ref = "no-such-file", "no-such-file", "no-such-ref"
	if err := s.Fetch(t.Context(), unknown, 0, &bytes.Buffer{}); err == nil {
		broken(t, "fetch", "Fetch of a file that does not exist succeeds")
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

// digest returns the digest of b with the algorithm of like.
func digest(like string, b []byte) string {
	name, _, _ := strings.Cut(like, ":")
	newHash := sha256.New
	if name == "sha512" {
		newHash = sha512.New
	}
	h := newHash()
	h.Write(b)
	return name + ":" + hex.EncodeToString(h.Sum(nil))
}
