package logstore

import (
	"bytes"
	"fmt"
	"os"
	"testing"

	"github.com/shoenig/test/must"
	"go.etcd.io/bbolt"

	"github.com/rbee-project/rbee/core"
)

// contents returns everything that raft may ask the file for.
func contents(db *bbolt.DB) (text string, err error) {
	defer func() {
		if value := recover(); value != nil {
			err = fmt.Errorf("%v", value)
		}
	}()
	var b bytes.Buffer
	err = db.View(func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{bucketLog, bucketStable, bucketMeta} {
			if err := tx.Bucket(name).ForEach(func(k, v []byte) error {
				fmt.Fprintf(&b, "%s %x %x\n", name, k, v)
				return nil
			}); err != nil {
				return err
			}
		}
		return nil
	})
	return b.String(), err
}

// C-11: one bit is flipped anywhere in the file: a meta page, the votes, the commit index, an
// entry, bbolt's own data. Either the file is refused, or nothing that raft asks for has changed.
func TestEveryFlippedByte(t *testing.T) {
	t.Parallel()
	p := path(t)
	s := open(t, p)
	must.NoError(t, s.SetBoth([]byte("LastVoteTerm"), 7, []byte("LastVoteCand"), []byte("10.0.0.1:7834")))
	must.NoError(t, s.SetUint64([]byte("CurrentTerm"), 7))
	for i := uint64(1); i < 40; i += 4 {
		must.NoError(t, s.StageCommitIndex(i))
		must.NoError(t, s.StoreLogs(entries(i, i+3, 1)))
	}
	must.NoError(t, s.DeleteRange(1, 5))
	truth, err := contents(s.db)
	must.NoError(t, err)
	must.NoError(t, s.Close())
	data, err := os.ReadFile(p)
	must.NoError(t, err)
	f, err := os.OpenFile(p, os.O_WRONLY, 0)
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, f.Close()) })

	refused, page := map[int]int{}, os.Getpagesize()
	for at, was := range data {
		if was == 0 && at%page > 128 && at%13 != 0 {
			continue // most of these bytes are empty
		}
		_, err := f.WriteAt([]byte{was ^ 1<<(at%8)}, int64(at))
		must.NoError(t, err)
		err = verify(p, Options{LockTimeout: 1 << 30})
		if err != nil {
			must.Eq(t, core.Integrity, core.KindOf(err), must.Sprint(at, err))
			refused[at/page]++
		} else {
			db, err := openFile(p, Options{LockTimeout: 1 << 30}, true)
			must.NoError(t, err)
			now, err := contents(db)
			must.NoError(t, err, must.Sprint(at))
			must.Eq(t, truth, now, must.Sprintf("byte %d", at))
			must.NoError(t, db.Close())
		}
		_, err = f.WriteAt([]byte{was}, int64(at))
		must.NoError(t, err)
	}
	t.Logf("refused by page: %v of %d bytes", refused, len(data))
	for meta := range 2 {
		must.GreaterEq(t, metaSize, refused[meta]) // each byte of the meta page counts
	}
	must.NoError(t, verify(p, Options{LockTimeout: 1 << 30}))
}

// A file rolled back to its state before an acknowledged write is refused: this queen may have
// voted in between.
func TestRolledBack(t *testing.T) {
	t.Parallel()
	for name, write := range map[string]func(*Store) error{
		"a vote":  func(s *Store) error { return s.Set([]byte("LastVoteCand"), []byte("b")) },
		"entries": func(s *Store) error { return s.StoreLogs(entries(4, 6, 1)) },
	} {
		for _, closed := range []bool{true, false} {
			t.Run(fmt.Sprint(name, closed), func(t *testing.T) {
				t.Parallel()
				p := path(t)
				s := open(t, p)
				must.NoError(t, s.StoreLogs(entries(1, 3, 1)))
				before, err := os.ReadFile(p)
				must.NoError(t, err)
				must.NoError(t, write(s))
				number := readTip(p + tipSuffix)
				if !closed { // as after SIGKILL
					p = copied(t, p)
				}
				must.NoError(t, s.Close())
				must.Eq(t, number, readTip(p+tipSuffix))
				must.NoError(t, os.WriteFile(p, before, 0o600))
				_, err = Open(p, Options{})
				must.Eq(t, core.Integrity, core.KindOf(err), must.Sprint(err))
				must.ErrorContains(t, err, "last writes are missing")
			})
		}
	}
}

// copied copies the files of a store.
func copied(t *testing.T, from string) string {
	t.Helper()
	to := path(t)
	for _, suffix := range []string{"", tipSuffix} {
		data, err := os.ReadFile(from + suffix)
		must.NoError(t, err)
		must.NoError(t, os.WriteFile(to+suffix, data, 0o600))
	}
	return to
}

// The number of the last seal may be out of date, torn or lost: the log decides.
func TestTipBehind(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(t *testing.T, tip string, before []byte){
		"behind": func(t *testing.T, tip string, before []byte) {
			t.Helper()
			must.NoError(t, os.WriteFile(tip, before, 0o600))
		},
		"lost":  func(t *testing.T, tip string, _ []byte) { t.Helper(); must.NoError(t, os.Remove(tip)) },
		"empty": func(t *testing.T, tip string, _ []byte) { t.Helper(); must.NoError(t, os.Truncate(tip, 0)) },
		"torn":  func(t *testing.T, tip string, _ []byte) { t.Helper(); must.NoError(t, os.Truncate(tip, tipSlot+3)) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := path(t)
			s := open(t, p)
			must.NoError(t, s.StoreLogs(entries(1, 3, 1)))
			before, err := os.ReadFile(p + tipSuffix)
			must.NoError(t, err)
			must.NoError(t, s.StoreLogs(entries(4, 6, 1)))
			must.NoError(t, s.Close())
			change(t, p+tipSuffix, before)
			check(t, open(t, p), 1, 6)
		})
	}
}

// A file written by a version without seals is accepted as it is, once.
func TestUnsealed(t *testing.T) {
	t.Parallel()
	p := path(t)
	s := open(t, p)
	must.NoError(t, s.StoreLogs(entries(1, 3, 1)))
	must.NoError(t, s.db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(bucketMeta).Delete(keySeal) }))
	must.NoError(t, s.Close())
	_, err := Open(p, Options{})
	must.ErrorContains(t, err, "its seal is missing")
	must.NoError(t, os.Remove(p+tipSuffix))
	s = open(t, p)
	must.NoError(t, s.StoreLogs(entries(4, 6, 1)))
	must.NoError(t, s.DeleteRange(1, 2))
	must.NoError(t, s.StoreLogs(entries(5, 7, 2)))
	must.NoError(t, s.Close())
	check(t, open(t, p), 3, 7)
}
