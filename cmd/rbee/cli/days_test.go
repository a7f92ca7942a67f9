package cli

import (
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

func TestDays(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	for text, want := range map[string]time.Duration{"30d": 30 * day, "0d": 0, "0": 0, "90m": 90 * time.Minute, "36h": 36 * time.Hour, "-1h": -time.Hour} {
		var d days
		must.NoError(t, d.Set(text), must.Sprint(text))
		must.Eq(t, want, time.Duration(d))
		again := days(0)
		must.NoError(t, again.Set(d.String()))
		must.Eq(t, d, again)
	}
	for _, text := range []string{"", "d", "-1d", "1.5d", "999999999999d", "99999999999999999999d", "soon", "1w"} {
		must.Error(t, new(days).Set(text), must.Sprint(text))
	}
}
