package gateway

import (
	"net/http/httptest"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"
)

// slowWriter is a client's connection on which a write takes the time that the test sets, or until
// its deadline.
type slowWriter struct {
	*httptest.ResponseRecorder
	takes time.Duration
	cut   chan struct{} // receives the deadlines that have passed
}

func (s *slowWriter) Write(b []byte) (int, error) {
	select {
	case <-time.After(s.takes):
		return len(b), nil
	case <-s.cut:
		return 0, os.ErrDeadlineExceeded
	}
}

func (s *slowWriter) SetWriteDeadline(t time.Time) error {
	if !t.After(time.Now()) {
		s.cut <- struct{}{}
	}
	return nil
}

// Each write has the full limit from its own start, and pauses are not limited.
func TestWriteLimit(t *testing.T) {
	t.Parallel()
	const limit = time.Minute
	for _, pause := range []time.Duration{0, time.Second, limit - 1, limit, limit * 3 / 2, 10*limit + 1} {
		synctest.Test(t, func(t *testing.T) {
			s := &slowWriter{ResponseRecorder: httptest.NewRecorder(), takes: limit - 1, cut: make(chan struct{})}
			w := newResponse(s, limit)
			for range 3 {
				_, err := w.Write([]byte("token"))
				must.NoError(t, err)
				time.Sleep(pause)
			}
			s.takes = 5 * limit
			began := time.Now()
			_, err := w.Write([]byte("token"))
			must.ErrorIs(t, err, os.ErrDeadlineExceeded)
			must.Eq(t, limit, time.Since(began), must.Sprint(pause))
			w.end()
			time.Sleep(10 * limit) // no check remains, otherwise the bubble would not end
		})
	}
}
