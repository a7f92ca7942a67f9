package job

import (
	"io"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/shoenig/test/must"
)

// scarce has one ID for each millisecond.
type scarce struct {
	io.Reader
	last uint64
}

func (s *scarce) MonotonicRead(ms uint64, _ []byte) error {
	if ms == s.last {
		return ulid.ErrMonotonicOverflow
	}
	s.last = ms
	return nil
}

// IDs sort in the order of their creation, even when a millisecond has none left or the clock is
// set back.
func TestIDsAscend(t *testing.T) {
	t.Parallel()
	now := time.UnixMilli(1_000_000_000_000)
	m := New(Options{Owner: "h", Now: func() time.Time { return now }})
	m.entropy = &scarce{}
	last := ""
	for _, step := range []time.Duration{0, 0, time.Second, -time.Hour, 0} {
		now = now.Add(step)
		id := m.newIDLocked()
		must.Less(t, id, last)
		_, err := Owner(id)
		must.NoError(t, err)
		last = id
	}
}
