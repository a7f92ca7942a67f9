// Package logstore keeps raft's log, votes and commit index in one bbolt file.
package logstore

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/rbee-project/rbee/core"
)

// tipSuffix is appended to the log's file name for the file with the number of the last seal.
const tipSuffix = ".tip"

var (
	bucketLog    = []byte("log")    // index, big endian → entry
	bucketStable = []byte("stable") // raft's own keys
	bucketMeta   = []byte("meta")

	keyCommit = []byte("commit")
)

// Lost is the hint for a queen whose raft folder is damaged.
const Lost = "If there are other queens, move the raft folder away and start again: they bring this one up to date. The only queen of a cluster goes back to a " +
	"snapshot: \"rbee operator snapshot restore --offline FILE\". An agent in no cluster starts with an empty registry when the folder is moved away."

// Options configure a Store.
type Options struct {
	// LockTimeout is how long to wait for another process to release the file; 0: one second.
	LockTimeout time.Duration

	openFile func(string, int, os.FileMode) (*os.File, error) // for tests
}

// Store is a bbolt file with raft's log and votes. Every write is on disk when it returns. After
// one failed write every later one fails, until the file is opened again: a disk that lost a write
// once cannot be trusted. Reads continue. Methods may be called concurrently.
//
// A missing log entry returns raft.ErrLogNotFound, and a missing stable key an empty value. Other
// errors: Unavailable after a failed write or Close, Integrity for a damaged entry.
type Store struct {
	path   string
	db     *bbolt.DB
	tip    tip
	staged atomic.Uint64
	failed atomic.Pointer[error]
	down   chan struct{} // closed at the first failure
}

var (
	_ raft.CommitTrackingLogStore = (*Store)(nil)
	_ raft.StableStore            = (*Store)(nil)
)

// Open opens or creates the file at path, whose folder must exist, and reads all of it to check its
// integrity. Only one process can have it open. Errors: InUse, Integrity for a damaged file or one
// of another kind, Unavailable.
func Open(path string, opts Options) (s *Store, err error) {
	opts.LockTimeout = cmp.Or(opts.LockTimeout, time.Second)
	if err := verify(path, opts); err != nil {
		return nil, err
	}
	db, err := openFile(path, opts, false)
	if err != nil {
		return nil, err
	}
	s = &Store{path: path, db: db, down: make(chan struct{})}
	if s.tip, err = openTip(path + tipSuffix); err != nil {
		return nil, core.Wrap(errors.Join(err, db.Close()), core.Unavailable, "open raft log")
	}
	err = s.update("create raft log", func(tx *txn) error {
		for _, name := range [][]byte{bucketLog, bucketStable, bucketMeta} {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		// if the folder's entry is lost, so is the file with all its votes and acknowledgements
		err = syncFolder(filepath.Dir(path))
	}
	if err != nil {
		_ = errors.Join(s.tip.close(), db.Close()) // the first error tells more
		return nil, err
	}
	return s, nil
}

func syncFolder(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return core.Wrap(err, core.Unavailable, "open raft log")
	}
	defer d.Close()
	if runtime.GOOS == "windows" {
		return nil // this system cannot sync folders
	}
	return core.Wrap(d.Sync(), core.Unavailable, "open raft log")
}

// verify reads an existing file before bbolt does so in its own goroutines, where a damaged page
// ends the process.
func verify(path string, opts Options) (err error) {
	tip := readTip(path + tipSuffix)
	if info, statErr := os.Stat(path); statErr != nil || info.Size() == 0 {
		if tip > 0 && (statErr == nil || errors.Is(statErr, fs.ErrNotExist)) {
			return damaged(path, errors.New("it is missing or empty"))
		}
		return nil // it will be created, or opening it reports the error
	}
	// A malformed page causes a panic, and a missing one a fault, because the file is mapped.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if value := recover(); value != nil {
			err = damaged(path, fmt.Errorf("%v", value))
		}
	}()
	db, err := openFile(path, opts, true)
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }() // nothing was written
	if err := verifyPages(path); err != nil {
		return damaged(path, err)
	}
	return db.View(func(tx *bbolt.Tx) error {
		err := tx.ForEach(func(name []byte, b *bbolt.Bucket) error {
			return b.ForEach(func(k, v []byte) error {
				if !bytes.Equal(name, bucketLog) {
					return nil
				}
				return checkEntry(path, number(k), v, &raft.Log{})
			})
		})
		if err != nil {
			return err
		}
		if first, _ := tx.Cursor().First(); first == nil && tip == 0 {
			return nil // created, but nothing was written yet
		}
		if err := checkSeal(tx, tip); err != nil {
			return damaged(path, err)
		}
		return nil
	})
}

func verifyPages(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err == nil {
		err = checkPages(f, info.Size())
	}
	return errors.Join(err, f.Close())
}

func openFile(path string, opts Options, readOnly bool) (*bbolt.DB, error) {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{
		ReadOnly:       readOnly,
		Timeout:        opts.LockTimeout,
		NoFreelistSync: true,
		FreelistType:   bbolt.FreelistMapType,
		NoStatistics:   true,
		OpenFile:       opts.openFile,
	})
	_, system := errors.AsType[syscall.Errno](err)
	switch {
	case err == nil:
		return db, nil
	case errors.Is(err, bolterrors.ErrTimeout):
		return nil, core.Errorf(core.InUse, "open raft log: another process has %s open", path).Hint(
			"Another rbee agent runs on the same data folder: stop it, or give this one its own data_dir.")
	case system:
		return nil, core.WithHint(core.Wrap(err, core.Unavailable, "open raft log"), "Check that the folder %s exists and that this user may write there.", filepath.Dir(path))
	}
	return nil, damaged(path, err)
}

// Close closes the file; every call afterwards fails.
func (s *Store) Close() error {
	err := s.db.Close()
	if tipErr := s.tip.close(); !errors.Is(tipErr, fs.ErrClosed) {
		err = errors.Join(err, tipErr)
	}
	return core.Wrap(err, core.Unavailable, "close raft log")
}

// Failed returns a channel that closes when a write fails, after which all writes fail; Err then
// returns the reason.
func (s *Store) Failed() <-chan struct{} { return s.down }

// Err returns the first failed write's error, or nil.
func (s *Store) Err() error {
	if e := s.failed.Load(); e != nil {
		return *e
	}
	return nil
}

// update runs one durable transaction. An error of fn, which precedes any write to the disk, does
// not make the store fail.
func (s *Store) update(op string, fn func(*txn) error) error {
	var (
		refused error
		sealed  uint64
	)
	err := s.db.Update(func(tx *bbolt.Tx) error {
		if refused = s.Err(); refused != nil {
			return refused
		}
		t, err := begin(tx)
		if err == nil {
			err = fn(t)
		}
		if err == nil {
			err = t.finish()
		}
		refused, sealed = core.Wrap(err, core.Internal, op), t.seal.number
		if refused == nil {
			// without it, only a later rollback of this write would go unnoticed
			tx.OnCommit(func() { _ = s.tip.set(sealed) })
		}
		return refused
	})
	switch {
	case err == nil:
		return nil
	case refused != nil:
		return refused
	case errors.Is(err, bolterrors.ErrDatabaseNotOpen):
		return core.Wrap(errors.New("the raft log is closed"), core.Unavailable, op)
	}
	err = core.Errorf(core.Unavailable, "%s: write %s: %w", op, s.path, err).Hint(
		"Nothing more is written to this file until the agent restarts: check the disk and its free space first.")
	if s.failed.CompareAndSwap(nil, &err) {
		close(s.down)
	}
	return err
}

func (s *Store) view(op string, fn func(*bbolt.Tx) error) error {
	err := s.db.View(fn)
	if errors.Is(err, bolterrors.ErrDatabaseNotOpen) {
		return core.Wrap(errors.New("the raft log is closed"), core.Unavailable, op)
	}
	return err
}

// FirstIndex returns the index of the oldest entry, or 0 if the log is empty.
func (s *Store) FirstIndex() (uint64, error) {
	return s.edge("read first raft index", (*bbolt.Cursor).First)
}

// LastIndex returns the index of the newest entry, or 0 if the log is empty.
func (s *Store) LastIndex() (uint64, error) {
	return s.edge("read last raft index", (*bbolt.Cursor).Last)
}

func (s *Store) edge(op string, end func(*bbolt.Cursor) ([]byte, []byte)) (index uint64, err error) {
	err = s.view(op, func(tx *bbolt.Tx) error {
		index = edge(tx, end)
		return nil
	})
	return index, err
}

func edge(tx *bbolt.Tx, end func(*bbolt.Cursor) ([]byte, []byte)) uint64 {
	if k, _ := end(tx.Bucket(bucketLog).Cursor()); k != nil {
		return binary.BigEndian.Uint64(k)
	}
	return 0
}

// GetLog reads the entry at index into l.
func (s *Store) GetLog(index uint64, l *raft.Log) error {
	return s.view("read raft log", func(tx *bbolt.Tx) error {
		data := tx.Bucket(bucketLog).Get(key(index))
		if data == nil {
			return raft.ErrLogNotFound
		}
		return checkEntry(s.path, index, data, l)
	})
}

// checkEntry decodes the entry at index into l.
func checkEntry(path string, index uint64, data []byte, l *raft.Log) error {
	if err := decode(data, l); err != nil {
		return damaged(path, fmt.Errorf("entry %d: %w", index, err))
	}
	if l.Index != index {
		return damaged(path, fmt.Errorf("entry %d calls itself %d", index, l.Index))
	}
	return nil
}

// StoreLog calls StoreLogs with one entry.
func (s *Store) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

// StoreLogs writes entries and the staged commit index atomically. Indexes may leave a gap.
func (s *Store) StoreLogs(logs []*raft.Log) error {
	return s.update("append to raft log", func(tx *txn) error {
		for _, l := range logs {
			if err := tx.putEntry(l.Index, encode(l)); err != nil {
				return err
			}
		}
		return raiseCommit(tx.Tx, s.staged.Load())
	})
}

// DeleteRange deletes the entries from minIndex to maxIndex, both included.
func (s *Store) DeleteRange(minIndex, maxIndex uint64) error {
	return s.update("truncate raft log", func(tx *txn) error {
		last := lastWithout(tx.Bucket(bucketLog), minIndex, maxIndex)
		if err := tx.deleteRange(minIndex, maxIndex); err != nil {
			return err
		}
		// A commit index beyond the end would mark different later entries as committed.
		return lowerCommit(tx.Tx, last)
	})
}

// lastWithout returns the last index that is left after the range is deleted, or 0 if none is. Call
// it before the deletion: bbolt's cursor never finds the last key of a bucket whose last pages were
// emptied in the same transaction (go.etcd.io/bbolt 1.5.0, Cursor.Last).
func lastWithout(b *bbolt.Bucket, minIndex, maxIndex uint64) uint64 {
	c := b.Cursor()
	k, _ := c.Last()
	if k == nil || number(k) < minIndex || number(k) > maxIndex {
		return number(k)
	}
	if k, _ = c.Seek(key(minIndex)); k != nil {
		k, _ = c.Prev()
	}
	return number(k)
}

// StartAt makes l the oldest entry: it replaces the one at its index, deletes those before it, and
// keeps those after it.
func (s *Store) StartAt(l *raft.Log) error {
	return s.update("begin raft log anew", func(tx *txn) error {
		if l.Index > 0 {
			if err := tx.deleteRange(0, l.Index-1); err != nil {
				return err
			}
		}
		return tx.putEntry(l.Index, encode(l))
	})
}

// deleteRange iterates over existing entries only: a log may have wide gaps.
func (t *txn) deleteRange(minIndex, maxIndex uint64) error {
	var keys [][]byte // a cursor skips entries when they are deleted under it
	c := t.Bucket(bucketLog).Cursor()
	for k, _ := c.Seek(key(minIndex)); k != nil && number(k) <= maxIndex; k, _ = c.Next() {
		keys = append(keys, bytes.Clone(k))
	}
	for _, k := range keys {
		if err := t.deleteEntry(k); err != nil {
			return err
		}
	}
	return nil
}

// StageCommitIndex keeps a commit index for the next StoreLogs, which writes it.
func (s *Store) StageCommitIndex(index uint64) error {
	s.staged.Store(index)
	return nil
}

// GetCommitIndex returns the commit index that the last StoreLogs wrote: known to be committed, and
// never beyond the last entry. It returns 0 if it is unknown.
func (s *Store) GetCommitIndex() (index uint64, err error) {
	err = s.view("read raft commit index", func(tx *bbolt.Tx) error {
		index = min(commit(tx), edge(tx, (*bbolt.Cursor).Last))
		return nil
	})
	return index, err
}

func commit(tx *bbolt.Tx) uint64 { return number(tx.Bucket(bucketMeta).Get(keyCommit)) }

func raiseCommit(tx *bbolt.Tx, index uint64) error {
	index = min(index, edge(tx, (*bbolt.Cursor).Last))
	if index <= commit(tx) {
		return nil
	}
	return tx.Bucket(bucketMeta).Put(keyCommit, key(index))
}

func lowerCommit(tx *bbolt.Tx, index uint64) error {
	if index >= commit(tx) {
		return nil
	}
	return tx.Bucket(bucketMeta).Put(keyCommit, key(index))
}

// Set stores one of raft's own values.
func (s *Store) Set(k, v []byte) error {
	return s.update("write raft vote", func(tx *txn) error { return tx.Bucket(bucketStable).Put(k, v) })
}

// Get returns one of raft's own values, or an empty one if it was never set.
func (s *Store) Get(k []byte) (v []byte, err error) {
	err = s.view("read raft vote", func(tx *bbolt.Tx) error {
		v = append(v, tx.Bucket(bucketStable).Get(k)...)
		return nil
	})
	return v, err
}

// SetUint64 stores a number with Set.
func (s *Store) SetUint64(k []byte, v uint64) error { return s.Set(k, key(v)) }

// SetBoth stores the first value with SetUint64 and the second with Set, atomically.
func (s *Store) SetBoth(numberKey []byte, n uint64, k, v []byte) error {
	return s.update("write raft vote", func(tx *txn) error {
		b := tx.Bucket(bucketStable)
		if err := b.Put(numberKey, key(n)); err != nil {
			return err
		}
		return b.Put(k, v)
	})
}

// GetUint64 returns a number stored with SetUint64, or 0 if it was never set.
func (s *Store) GetUint64(k []byte) (uint64, error) {
	v, err := s.Get(k)
	return number(v), err
}

func key(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

func number(b []byte) uint64 {
	if len(b) != 8 {
		return 0
	}
	return binary.BigEndian.Uint64(b)
}

func damaged(path string, err error) error {
	return core.Errorf(core.Integrity, "read raft log: %s is damaged: %w", path, err).Hint(
		Lost)
}
