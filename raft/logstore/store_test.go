package logstore

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/shoenig/test/must"
	"go.etcd.io/bbolt"

	"github.com/rbee-project/rbee/core"
)

func open(t testing.TB, path string) *Store {
	t.Helper()
	s, err := Open(path, Options{})
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, s.Close()) })
	return s
}

func path(t testing.TB) string { return filepath.Join(t.TempDir(), "log.db") }

func entry(index, term uint64) *raft.Log {
	return &raft.Log{Index: index, Term: term, Type: raft.LogCommand, Data: fmt.Appendf(nil, "entry %d", index), AppendedAt: time.Unix(int64(index), 5)}
}

func entries(from, to, term uint64) (logs []*raft.Log) {
	for i := from; i <= to; i++ {
		logs = append(logs, entry(i, term))
	}
	return logs
}

// check checks the first and last index and every entry in between.
func check(t *testing.T, s *Store, first, last uint64) {
	t.Helper()
	f, err := s.FirstIndex()
	must.NoError(t, err)
	l, err := s.LastIndex()
	must.NoError(t, err)
	must.Eq(t, []uint64{first, last}, []uint64{f, l})
	for i := first; i > 0 && i <= last; i++ {
		var got raft.Log
		if err := s.GetLog(i, &got); err != nil || got.Index != i || string(got.Data) != fmt.Sprint("entry ", i) {
			t.Fatalf("entry %d: %v, %v", i, got, err)
		}
	}
	var none raft.Log
	must.ErrorIs(t, s.GetLog(last+1, &none), raft.ErrLogNotFound)
	if first > 0 {
		must.ErrorIs(t, s.GetLog(first-1, &none), raft.ErrLogNotFound)
	}
}

func TestLog(t *testing.T) {
	t.Parallel()
	p := path(t)
	s := open(t, p)
	check(t, s, 0, 0)
	must.NoError(t, s.DeleteRange(1, 10)) // of an empty log
	must.NoError(t, s.StoreLogs(entries(1, 300, 1)))
	check(t, s, 1, 300)
	must.NoError(t, s.StoreLog(entry(301, 2)))
	must.NoError(t, s.DeleteRange(1, 256)) // compaction, across a byte's border
	check(t, s, 257, 301)
	must.NoError(t, s.DeleteRange(290, 301)) // a suffix that another leader replaces
	check(t, s, 257, 289)
	must.NoError(t, s.StoreLogs(entries(290, 295, 3)))
	must.NoError(t, s.DeleteRange(100, 256)) // already deleted
	check(t, s, 257, 295)

	must.NoError(t, s.Close())
	s = open(t, p)
	check(t, s, 257, 295)
	var got raft.Log
	must.NoError(t, s.GetLog(290, &got))
	must.Eq(t, 3, got.Term)
	must.Eq(t, *entry(290, 3), got)
	must.NoError(t, s.StoreLog(entry(290, 4))) // overwrites
	must.NoError(t, s.GetLog(290, &got))
	must.Eq(t, 4, got.Term)

	must.NoError(t, s.DeleteRange(0, 1000))
	check(t, s, 0, 0)
	must.NoError(t, s.StoreLogs(entries(500, 501, 4))) // a gap, as after an installed snapshot
	check(t, s, 500, 501)

	info, err := os.Stat(p)
	must.NoError(t, err)
	must.Eq(t, 0o600, info.Mode().Perm())
}

// A Store behaves like raft's own in-memory store, for random calls.
func TestLikeInmemStore(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(7, 7))
	s, want := open(t, path(t)), raft.NewInmemStore()
	next := uint64(1)
	for range 60 {
		switch r.IntN(3) {
		case 0, 1:
			n := uint64(r.IntN(5))
			logs := entries(next, next+n, uint64(r.IntN(9)))
			must.NoError(t, errors.Join(s.StoreLogs(logs), want.StoreLogs(logs)))
			next += n + 1
		case 2:
			first, _ := want.FirstIndex()
			last, _ := want.LastIndex()
			if first == 0 || last-first < 4 {
				continue
			}
			from, to := first, first+2 // compaction
			if r.IntN(2) == 0 {
				from, to = last-2, last // truncation
				next = last - 2
			}
			must.NoError(t, errors.Join(s.DeleteRange(from, to), want.DeleteRange(from, to)))
		}
		for i := uint64(1); i <= next; i++ {
			var a, b raft.Log
			errA, errB := s.GetLog(i, &a), want.GetLog(i, &b)
			if (errA == nil) != (errB == nil) || !bytes.Equal(encode(&a), encode(&b)) {
				t.Fatalf("entry %d: %v %v, want %v %v", i, a, errA, b, errB)
			}
		}
	}
}

// A gap is skipped in one step: counting through it would take hours.
func TestWideGap(t *testing.T) {
	t.Parallel()
	s := open(t, path(t))
	must.NoError(t, s.StoreLogs(append(entries(1, 10, 1), entry(1<<40, 2), entry(1<<40+1, 2))))
	must.NoError(t, s.DeleteRange(5, 1<<40))
	first, err := s.FirstIndex()
	must.NoError(t, err)
	must.Eq(t, 1, first)
	var l raft.Log
	must.ErrorIs(t, s.GetLog(1<<40, &l), raft.ErrLogNotFound)
	must.NoError(t, s.GetLog(1<<40+1, &l))
	must.NoError(t, s.DeleteRange(0, 1<<63))
	check(t, s, 0, 0)
}

func TestStartAt(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name        string
		from, to    uint64 // entries before; 0: none
		at          uint64
		first, last uint64
	}{
		{"an empty log", 0, 0, 7, 7, 7},
		{"among the entries", 1, 20, 7, 7, 20},
		{"at the first", 7, 20, 7, 7, 20},
		{"at the last", 1, 7, 7, 7, 7},
		{"beyond the last", 1, 5, 7, 7, 7},
		{"before the first", 9, 20, 7, 7, 20},
	} {
		p := path(t)
		s := open(t, p)
		if tt.from > 0 {
			must.NoError(t, s.StageCommitIndex(tt.from))
			must.NoError(t, s.StoreLogs(entries(tt.from, tt.to, 1)))
		}
		must.NoError(t, s.StartAt(entry(tt.at, 9)))
		must.NoError(t, s.Close())
		s = open(t, p)
		first, err := s.FirstIndex()
		must.NoError(t, err)
		last, err := s.LastIndex()
		must.NoError(t, err)
		must.Eq(t, []uint64{tt.first, tt.last}, []uint64{first, last}, must.Sprint(tt.name))
		var l raft.Log
		must.NoError(t, s.GetLog(tt.at, &l))
		must.Eq(t, 9, l.Term)
		for i := max(tt.from, tt.at+1); i <= tt.to; i++ {
			must.NoError(t, s.GetLog(i, &l))
			must.Eq(t, 1, l.Term)
		}
	}
}

func TestStable(t *testing.T) {
	t.Parallel()
	p := path(t)
	s := open(t, p)
	v, err := s.Get([]byte("k"))
	must.NoError(t, err)
	must.Len(t, 0, v)
	n, err := s.GetUint64([]byte("k"))
	must.NoError(t, err)
	must.Eq(t, 0, n)
	must.NoError(t, s.Set([]byte("k"), []byte("value")))
	must.NoError(t, s.SetUint64([]byte("n"), 1<<63))
	must.NoError(t, s.Close())
	s = open(t, p)
	v, err = s.Get([]byte("k"))
	must.NoError(t, err)
	must.Eq(t, []byte("value"), v)
	n, err = s.GetUint64([]byte("n"))
	must.NoError(t, err)
	must.Eq(t, 1<<63, n)

	must.NoError(t, s.SetBoth([]byte("n"), 7, []byte("k"), []byte("both")))
	n, err = s.GetUint64([]byte("n"))
	must.NoError(t, err)
	must.Eq(t, 7, n)
	v, err = s.Get([]byte("k"))
	must.NoError(t, err)
	must.Eq(t, []byte("both"), v)
	must.Error(t, s.SetBoth([]byte("n"), 8, nil, nil))
	n, err = s.GetUint64([]byte("n"))
	must.NoError(t, err)
	must.Eq(t, 7, n) // neither was stored

	must.Error(t, s.Set(nil, nil)) // refused by bbolt, which does not make the store fail
	must.NoError(t, s.Err())
	must.NoError(t, s.Set([]byte("k"), nil))
}

func TestCommitIndex(t *testing.T) {
	t.Parallel()
	p := path(t)
	s := open(t, p)
	want := func(index uint64) {
		t.Helper()
		got, err := s.GetCommitIndex()
		must.NoError(t, err)
		must.Eq(t, index, got)
	}
	reopen := func() {
		must.NoError(t, s.Close())
		s = open(t, p)
	}
	want(0)
	must.NoError(t, s.StageCommitIndex(3))
	want(0) // only staged
	reopen()
	want(0)
	must.NoError(t, s.StageCommitIndex(3))
	must.NoError(t, s.StoreLogs(entries(1, 5, 1)))
	want(3)
	reopen()
	want(3)
	must.NoError(t, s.StoreLogs(entries(6, 6, 1))) // nothing was staged: the index never decreases
	want(3)
	must.NoError(t, s.StageCommitIndex(100))
	must.NoError(t, s.StoreLogs(entries(7, 10, 1)))
	want(10) // never beyond the last entry
	must.NoError(t, s.DeleteRange(8, 10))
	want(7)
	must.NoError(t, s.StageCommitIndex(7))
	must.NoError(t, s.StoreLogs(entries(8, 12, 2)))
	want(7) // the new entries are different ones
	must.NoError(t, s.DeleteRange(1, 5))
	want(7)
	must.NoError(t, s.DeleteRange(20, 30)) // no entry exists there
	want(7)
	reopen()
	want(7)
}

func TestEncode(t *testing.T) {
	t.Parallel()
	for _, l := range []raft.Log{
		{Index: 1, Term: 2, Type: raft.LogConfiguration, Data: []byte("data"), Extensions: []byte("ext"), AppendedAt: time.Unix(3, 4)},
		{Index: 1<<64 - 1, Term: 1<<64 - 1, Type: 255},
		{Index: 5, Extensions: []byte("only")},
		{Index: 6, Data: bytes.Repeat([]byte{1}, 1<<16)},
		{Index: 7, AppendedAt: time.Unix(-3, 0)},
	} {
		var got raft.Log
		data := encode(&l)
		must.NoError(t, decode(data, &got))
		must.Eq(t, l, got)
		for range 50 {
			bad := bytes.Clone(data)
			bad[rand.IntN(len(bad))] ^= 1 << rand.IntN(8)
			must.Error(t, decode(bad, &got)) // every flipped bit is detected
		}
		must.Error(t, decode(data[:len(data)-1], &got))
	}
}

// This version reads what an earlier one wrote, and the reverse: these are the bytes.
func TestFormats(t *testing.T) {
	t.Parallel()
	l := raft.Log{Index: 1, Term: 2, Type: raft.LogBarrier, Data: []byte("d"), Extensions: []byte("e"), AppendedAt: time.Unix(0, 3)}
	must.Eq(t, "01"+"04"+"0000000000000001"+"0000000000000002"+"0000000000000003"+"00000001"+"64"+"65"+"6ded3c1c", hex.EncodeToString(encode(&l)))
	must.Eq(t, "01"+"0000000000000001"+"0000000000000002"+"0000000000000003"+"00000004"+"5f2233d1", hex.EncodeToString(seal{1, 2, 3, 4}.encode()))
}

// A correct checksum alone does not make an entry valid.
func TestDecodeWrongContent(t *testing.T) {
	t.Parallel()
	entry := func(at int, v byte) []byte {
		b := encode(&raft.Log{Index: 1, Data: []byte("data")})
		b = b[:len(b)-sumBytes]
		b[at] = v
		return appendSum(b)
	}
	var l raft.Log
	must.NoError(t, decode(entry(headBytes-1, 4), &l))
	must.ErrorContains(t, decode(entry(headBytes-1, 5), &l), "longer than the entry")
	must.ErrorContains(t, decode(entry(0, 2), &l), "unknown format 2")
	b := seal{number: 1}.encode()
	b[0] = 2
	_, err := decodeSeal(appendSum(b[:len(b)-sumBytes]))
	must.Error(t, err)
}

// A tip truncated anywhere counts as missing or returns the previous number.
func TestCutTip(t *testing.T) {
	t.Parallel()
	p := filepath.Join(t.TempDir(), "tip")
	f, err := openTip(p)
	must.NoError(t, err)
	must.NoError(t, f.set(4))
	must.NoError(t, f.set(5))
	must.NoError(t, f.close())
	whole, err := os.ReadFile(p)
	must.NoError(t, err)
	must.Eq(t, 5, readTip(p))
	info, err := os.Stat(p)
	must.NoError(t, err)
	must.Eq(t, os.FileMode(0o600), info.Mode().Perm())
	for n := range whole {
		must.NoError(t, os.WriteFile(p, whole[:n], 0o600))
		want := uint64(4)
		if n < 12 {
			want = 0
		}
		must.Eq(t, want, readTip(p), must.Sprint(n, " bytes"))
	}
}

// A tip with a flipped bit counts as missing.
func TestDamagedTip(t *testing.T) {
	t.Parallel()
	p := filepath.Join(t.TempDir(), "tip")
	f, err := openTip(p)
	must.NoError(t, err)
	must.NoError(t, f.set(4))
	must.NoError(t, f.set(5))
	must.NoError(t, f.close())
	whole, err := os.ReadFile(p)
	must.NoError(t, err)
	for at, want := range map[int]uint64{0: 5, 7: 5, 11: 5, tipSlot: 4, tipSlot + 7: 4, tipSlot + 11: 4} {
		b := bytes.Clone(whole)
		b[at] ^= 0x40
		must.NoError(t, os.WriteFile(p, b, 0o600))
		must.Eq(t, want, readTip(p), must.Sprint("byte ", at))
	}
}

// After one failed write no later write is acknowledged, even if the disk recovers; reads continue.
func TestFailedWriteIsPermanent(t *testing.T) {
	t.Parallel()
	p := path(t)
	var file *os.File
	s, err := Open(p, Options{openFile: func(name string, flag int, perm os.FileMode) (f *os.File, err error) {
		file, err = os.OpenFile(name, flag, perm)
		return file, err
	}})
	must.NoError(t, err)
	must.NoError(t, s.StoreLogs(entries(1, 3, 1)))
	must.NoError(t, s.Err())

	must.NoError(t, file.Close()) // every write to it fails from here on
	for range 2 {
		err = s.StoreLog(entry(4, 1))
		must.Eq(t, core.Unavailable, core.KindOf(err), must.Sprint(err))
		must.ErrorIs(t, err, os.ErrClosed)
		must.StrContains(t, core.HintOf(err), "check the disk")
	}
	<-s.Failed()
	must.ErrorIs(t, s.Err(), os.ErrClosed)
	must.ErrorIs(t, s.Set([]byte("k"), []byte("v")), os.ErrClosed)
	must.ErrorIs(t, s.DeleteRange(1, 1), os.ErrClosed)
	check(t, s, 1, 3)
	_ = s.Close() // the file is closed already

	s = open(t, p)
	check(t, s, 1, 3)
	must.NoError(t, s.StoreLog(entry(4, 1)))
}

func TestClosed(t *testing.T) {
	t.Parallel()
	s := open(t, path(t))
	must.NoError(t, s.Close())
	must.Eq(t, core.Unavailable, core.KindOf(s.StoreLog(entry(1, 1))))
	_, err := s.LastIndex()
	must.Eq(t, core.Unavailable, core.KindOf(err))
	must.NoError(t, s.Err()) // Close does not count as a failure of the disk
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	write := func(t *testing.T, change func([]byte) []byte) string {
		p := path(t)
		s := open(t, p)
		must.NoError(t, s.StoreLogs(entries(1, 2000, 1)))
		must.NoError(t, s.Close())
		data, err := os.ReadFile(p)
		must.NoError(t, err)
		must.NoError(t, os.WriteFile(p, change(data), 0o600))
		return p
	}
	for name, change := range map[string]func([]byte) []byte{
		"torn in the middle":     func(b []byte) []byte { return b[:len(b)/2] },
		"torn behind the metas":  func(b []byte) []byte { return b[:2*os.Getpagesize()] },
		"torn in the second":     func(b []byte) []byte { return b[:os.Getpagesize()+100] },
		"something else":         func([]byte) []byte { return bytes.Repeat([]byte("text"), 10000) },
		"zeroes":                 func(b []byte) []byte { return make([]byte, len(b)) },
		"no root":                func(b []byte) []byte { clear(b[2*os.Getpagesize():]); return b },
		"no first meta page":     func(b []byte) []byte { clear(b[:os.Getpagesize()]); return b },
		"no second meta page":    func(b []byte) []byte { clear(b[os.Getpagesize() : 2*os.Getpagesize()]); return b },
		"empty":                  func([]byte) []byte { return nil },
		"too short to be a page": func([]byte) []byte { return []byte("short") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := write(t, change)
			s, err := Open(p, Options{})
			must.Nil(t, s)
			must.Eq(t, core.Integrity, core.KindOf(err), must.Sprint(err))
			must.StrContains(t, core.HintOf(err), "move the raft folder away")
		})
	}
	t.Run("in use", func(t *testing.T) {
		t.Parallel()
		p := path(t)
		open(t, p)
		_, err := Open(p, Options{LockTimeout: time.Millisecond})
		must.Eq(t, core.InUse, core.KindOf(err), must.Sprint(err))
	})
	t.Run("no folder", func(t *testing.T) {
		t.Parallel()
		_, err := Open(filepath.Join(t.TempDir(), "none", "log.db"), Options{})
		must.Eq(t, core.Unavailable, core.KindOf(err))
	})
	t.Run("gone", func(t *testing.T) {
		t.Parallel()
		p := write(t, bytes.Clone)
		must.NoError(t, os.Remove(p))
		_, err := Open(p, Options{})
		must.Eq(t, core.Integrity, core.KindOf(err), must.Sprint(err))
	})
}

// A power cut between bbolt's creation of the file and the first transaction loses nothing. Later a
// write has a number, and the same file means that everything was lost.
func TestCreatedOnly(t *testing.T) {
	t.Parallel()
	p := path(t)
	db, err := bbolt.Open(p, 0o600, nil)
	must.NoError(t, err)
	must.NoError(t, db.Close())
	created, err := os.ReadFile(p)
	must.NoError(t, err)
	must.NoError(t, open(t, p).Close())
	must.NoError(t, os.WriteFile(p, created, 0o600))
	_, err = Open(p, Options{})
	must.Eq(t, core.Integrity, core.KindOf(err), must.Sprint(err))
	must.NoError(t, os.Remove(p))
	_, err = Open(p, Options{})
	must.Eq(t, core.Integrity, core.KindOf(err), must.Sprint(err))
}

// A flipped bit on the disk is noticed when the file is opened, or at the latest when the entry is
// read.
func TestDamagedEntry(t *testing.T) {
	t.Parallel()
	p := path(t)
	s := open(t, p)
	must.NoError(t, s.StoreLogs(entries(1, 3, 1)))
	must.NoError(t, s.db.Update(func(tx *bbolt.Tx) error {
		b := tx.Bucket(bucketLog)
		bad := bytes.Clone(b.Get(key(2)))
		bad[headBytes] ^= 1
		return errors.Join(b.Put(key(2), bad), b.Put(key(3), b.Get(key(1))))
	}))
	var l raft.Log
	must.NoError(t, s.GetLog(1, &l))
	for i, why := range map[uint64]string{2: "entry 2: wrong checksum", 3: "entry 3 calls itself 1"} {
		err := s.GetLog(i, &l)
		must.Eq(t, core.Integrity, core.KindOf(err), must.Sprint(err))
		must.StrContains(t, err.Error(), why)
	}
	must.NoError(t, s.Close())
	_, err := Open(p, Options{})
	must.Eq(t, core.Integrity, core.KindOf(err), must.Sprint(err))
	must.StrContains(t, err.Error(), "entry 2")
}

// C-10: the power fails while a batch is written: any of its sectors may be on the disk, in any
// order. The file opens with everything up to the previous batch, or with the batch, and accepts
// writes. bbolt writes to unused pages, then writes one meta page.
func TestTornLastWrite(t *testing.T) {
	t.Parallel()
	const sector = 512
	p := path(t)
	s := open(t, p)
	must.NoError(t, s.StoreLogs(entries(1, 40, 1)))
	must.NoError(t, s.DeleteRange(1, 5)) // some pages are free
	must.NoError(t, s.StoreLogs(entries(41, 45, 1)))
	must.NoError(t, s.Close())
	before, err := os.ReadFile(p)
	must.NoError(t, err)
	s = open(t, p)
	afterOpen, err := os.ReadFile(p)
	must.NoError(t, err)
	must.NoError(t, s.StoreLogs(entries(46, 60, 1)))
	must.NoError(t, s.Close())
	after, err := os.ReadFile(p)
	must.NoError(t, err)
	before = append(afterOpen, make([]byte, max(0, len(after)-len(before)))...)[:len(after)]

	metas := 2 * os.Getpagesize()
	var data, meta []int // the sectors written for the batch
	for at := 0; at < len(after); at += sector {
		if !bytes.Equal(before[at:min(at+sector, len(after))], after[at:min(at+sector, len(after))]) {
			if at < metas {
				meta = append(meta, at)
			} else {
				data = append(data, at)
			}
		}
	}
	must.Greater(t, 3, len(data))
	must.Positive(t, len(meta))
	try := func(written []int, last uint64) {
		t.Helper()
		torn := bytes.Clone(before)
		for _, at := range written {
			copy(torn[at:], after[at:min(at+sector, len(after))])
		}
		p := path(t)
		must.NoError(t, os.WriteFile(p, torn, 0o600))
		s := open(t, p)
		check(t, s, 6, last)
		must.NoError(t, s.StoreLogs(entries(last+1, last+3, 2)))
	}
	for n := range len(data) + 1 { // cut after each sector
		try(data[:n], 45)
		try(data[n:], 45)
	}
	r := rand.New(rand.NewPCG(3, 3))
	for range 50 { // any subset of them
		some := []int{}
		for _, at := range data {
			if r.IntN(2) == 0 {
				some = append(some, at)
			}
		}
		try(some, 45)
	}
	try(append(slices.Clone(data), meta...), 60)
}

func FuzzDecode(f *testing.F) {
	f.Add(encode(entry(1, 2)))
	f.Add(encode(&raft.Log{Index: 1, Extensions: []byte("e")}))
	f.Fuzz(func(t *testing.T, data []byte) {
		var l raft.Log
		if decode(data, &l) == nil {
			must.Eq(t, data, encode(&l))
		}
		// Correct the checksum, so that the fuzzer gets past it.
		if n := len(data) - sumBytes; n >= 0 {
			fixed := appendSum(bytes.Clone(data[:n]))
			if decode(fixed, &l) == nil {
				must.Eq(t, fixed, encode(&l))
			}
		}
	})
}

func BenchmarkStoreLog(b *testing.B) {
	for _, n := range []uint64{1, 64} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := open(b, path(b))
			index := uint64(1)
			for b.Loop() {
				must.NoError(b, s.StoreLogs(entries(index, index+n-1, 1)))
				index += n
			}
		})
	}
}

func BenchmarkGetLog(b *testing.B) {
	s := open(b, path(b))
	must.NoError(b, s.StoreLogs(entries(1, 1000, 1)))
	var l raft.Log
	for b.Loop() {
		must.NoError(b, s.GetLog(500, &l))
	}
}
