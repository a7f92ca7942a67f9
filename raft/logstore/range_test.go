package logstore_test

import (
	"bytes"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/raft/logstore"
)

// Deleting the end of a log of several pages terminates: bbolt's cursor would look for the last key
// endlessly among pages that were just emptied.
func TestDeleteRangeOfSeveralPages(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct{ min, max, first, last uint64 }{
		"all":           {1, 200, 0, 0},
		"more than all": {0, 1 << 40, 0, 0},
		"the end":       {21, 200, 1, 20},
		"the beginning": {1, 180, 181, 200},
		"the middle":    {50, 150, 1, 200},
		"beyond":        {201, 300, 1, 200},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, err := logstore.Open(filepath.Join(t.TempDir(), "log.db"), logstore.Options{})
			must.NoError(t, err)
			defer s.Close()
			var logs []*raft.Log
			for i := range 200 {
				logs = append(logs, &raft.Log{Index: uint64(i + 1), Term: 1, Data: bytes.Repeat([]byte("x"), 700)})
			}
			must.NoError(t, s.StoreLogs(logs))
			done := make(chan error, 1)
			go func() { done <- s.DeleteRange(tt.min, tt.max) }()
			select {
			case err := <-done:
				must.NoError(t, err)
			case <-time.After(30 * time.Second):
				t.Fatal("DeleteRange does not end")
			}
			first, err := s.FirstIndex()
			must.NoError(t, err)
			last, err := s.LastIndex()
			must.NoError(t, err)
			must.Eq(t, []uint64{tt.first, tt.last}, []uint64{first, last})
		})
	}
}
