package disk_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core/disk"
)

// CheckSeal notices every flipped bit, every truncation and every extra byte.
func TestCheckSeal(t *testing.T) {
	t.Parallel()
	type object struct {
		Name string
		N    int
	}
	b, err := disk.Seal(object{"some \"name\"", 7})
	must.NoError(t, err)
	must.NoError(t, disk.CheckSeal(b))
	var read object
	must.NoError(t, json.Unmarshal(b, &read)) // as a program that does not know the checksum does
	must.Eq(t, object{"some \"name\"", 7}, read)
	for i := range b {
		for bit := range 8 {
			bad := bytes.Clone(b)
			bad[i] ^= 1 << bit
			must.True(t, errors.Is(disk.CheckSeal(bad), disk.ErrChanged), must.Sprintf("bit %d of byte %d: %q", bit, i, bad))
		}
	}
	for n := len("{\n  \"checksum"); n < len(b); n++ {
		must.Error(t, disk.CheckSeal(b[:n]), must.Sprint(n))
	}
	must.Error(t, disk.CheckSeal(append(b, '\n')))

	must.NoError(t, disk.CheckSeal([]byte("{\n  \"format\": 1\n}\n"))) // of an earlier version
	must.NoError(t, disk.CheckSeal(nil))
	for _, v := range []any{7, struct{}{}, []int{1}, nil} {
		_, err = disk.Seal(v)
		must.Error(t, err)
	}
}
