package store_test

import (
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core/coretest/disktrace"
	"github.com/rbee-project/rbee/core/store"
)

// C-08: a model and a worker binary that were reported as stored are on the disk: blobs before
// their record, every file and every folder. A deleted model durably loses its record before its
// files are removed.
func TestPowerLossStore(t *testing.T) {
	disktrace.Check(t, disktrace.Scenario{
		Ignore: func(path string) bool {
			return strings.HasPrefix(path, "store/partial/") || strings.HasPrefix(path, "store/checked")
		},
		Returns: func(path string) bool { return strings.HasPrefix(path, "store/blobs/") }, // nothing needs it
		Ordered: func(path string) bool { return strings.HasPrefix(path, "store/blobs/") },
		Run: func(t *testing.T, dir string, ack func(string)) {
			s := open(t, dir+"/store")
			ack("a store")
			body := tinyModel(t)
			o := &origin{body: body}
			_, err := s.PutModel(t.Context(), spec("m", body, sha256Of(body)), store.Fetch(o.fetch), nil)
			must.NoError(t, err)
			ack("a model")
			archive := goodArchive(t)
			a := &origin{body: archive}
			_, err = s.PutBinary(t.Context(), binarySpec(t, archive), store.Fetch(a.fetch), nil)
			must.NoError(t, err)
			ack("a worker binary")
			_, err = s.DeleteModel("m", false)
			must.NoError(t, err)
			_, err = s.DeleteBinary("cpu", func([]string) error { return nil })
			must.NoError(t, err)
			ack("a worker binary that is gone")
		},
	})
}
