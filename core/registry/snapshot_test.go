package registry

import (
	"bytes"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
)

// A snapshot file that was truncated or altered anywhere is rejected.
func TestSealedSnapshots(t *testing.T) {
	t.Parallel()
	var file bytes.Buffer
	s := NewSealing(&file)
	for _, part := range []string{"the registry, ", "", "in parts"} {
		_, err := s.Write([]byte(part))
		must.NoError(t, err)
	}
	must.NoError(t, s.Seal())
	sealed := file.Bytes()
	data, err := unsealed(sealed)
	must.NoError(t, err)
	must.Eq(t, "the registry, in parts", string(data))
	// An empty snapshot has a seal as well.
	var none bytes.Buffer
	must.NoError(t, NewSealing(&none).Seal())
	data, err = unsealed(none.Bytes())
	must.NoError(t, err)
	must.SliceEmpty(t, data)
	for n := range sealed {
		_, err := unsealed(sealed[:n])
		must.Eq(t, core.Integrity, core.KindOf(err), must.Sprint(n))
		changed := bytes.Clone(sealed)
		changed[n] ^= 1
		_, err = unsealed(changed)
		must.Eq(t, core.Integrity, core.KindOf(err), must.Sprint(n))
		must.NotEq(t, "", core.HintOf(err))
	}
}
