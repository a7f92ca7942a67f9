package core

import (
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

func TestKeepAlive(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		value string
		want  time.Duration
	}{
		{`300`, 5 * time.Minute},
		{`0`, 0},
		{`-1`, KeepForever},
		{`"5m"`, 5 * time.Minute},
		{`"1.5s"`, 1500 * time.Millisecond},
		{`0.5`, 500 * time.Millisecond},
		{`"300"`, 5 * time.Minute},
		{`"-1m"`, KeepForever},
		{`"0"`, 0},
		{`1e300`, KeepForever},
	} {
		d, set, err := ReadKeepAlive([]byte(c.value))
		must.NoError(t, err, must.Sprint(c.value))
		must.True(t, set)
		must.Eq(t, c.want, d, must.Sprint(c.value))
	}
	for _, absent := range []string{"", "null"} {
		_, set, err := ReadKeepAlive([]byte(absent))
		must.NoError(t, err)
		must.False(t, set)
	}
	for _, bad := range []string{`"soon"`, `true`, `{}`, `[5]`, `"NaN"`, `"Inf"`, `""`} {
		_, set, err := ReadKeepAlive([]byte(bad))
		must.Eq(t, Invalid, KindOf(err), must.Sprint(bad))
		must.False(t, set)
	}
}
