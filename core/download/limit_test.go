package download_test

import (
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core/download"
)

func TestLimiterSetRate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := download.NewLimiter(0)
		w := l.Writer(t.Context(), io.Discard)
		for _, tc := range []struct {
			rate int64
			want time.Duration
		}{{0, 0}, {4 << 10, 2 * time.Second}, {0, 0}, {8 << 10, time.Second}} {
			l.SetRate(tc.rate)
			began := time.Now()
			_, err := w.Write(make([]byte, 8<<10))
			must.NoError(t, err)
			must.Eq(t, tc.want, time.Since(began), must.Sprintf("at %d bytes per second", tc.rate))
		}
	})
}
