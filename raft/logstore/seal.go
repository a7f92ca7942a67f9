package logstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"

	"go.etcd.io/bbolt"
)

// bbolt has a checksum over each of its two meta pages and none below. When the newest meta page is
// damaged it silently uses the older one, which loses the last transaction: a vote, or acknowledged
// entries. So every transaction writes a seal over everything that the file holds, the number of
// the seal goes to a second file, and opening checks that both meta pages are intact, that the
// contents match their seal, and that no later seal is known.

var keySeal = []byte("seal")

const (
	sealFormat = 1
	sealBytes  = 1 + 8 + 8 + 8 + 4 + sumBytes

	tipSlot = 512 // one sector: it is written whole or not at all
)

// seal summarises the contents of the file. The number of entries and the sum of their checksums
// change with each entry, so that no transaction reads the whole log.
type seal struct {
	number  uint64 // number of the transaction, from 1
	entries uint64
	sum     uint64 // sum of the CRC-32C of all entries; each covers its index
	rest    uint32 // CRC-32C of stable values and commit index
}

func (s seal) encode() []byte {
	b := make([]byte, 0, sealBytes)
	b = append(b, sealFormat)
	b = binary.BigEndian.AppendUint64(b, s.number)
	b = binary.BigEndian.AppendUint64(b, s.entries)
	b = binary.BigEndian.AppendUint64(b, s.sum)
	b = binary.BigEndian.AppendUint32(b, s.rest)
	return appendSum(b)
}

func decodeSeal(b []byte) (seal, error) {
	if len(b) != sealBytes || sum(b[:sealBytes-sumBytes]) != binary.BigEndian.Uint32(b[sealBytes-sumBytes:]) || b[0] != sealFormat {
		return seal{}, errors.New("its seal is damaged")
	}
	return seal{
		number: binary.BigEndian.Uint64(b[1:]), entries: binary.BigEndian.Uint64(b[9:]), sum: binary.BigEndian.Uint64(b[17:]),
		rest: binary.BigEndian.Uint32(b[25:]),
	}, nil
}

// txn is a transaction that maintains the seal.
type txn struct {
	*bbolt.Tx
	seal seal
}

// begin reads the seal. A file written by a version without seals gets one.
func begin(tx *bbolt.Tx) (*txn, error) {
	t := &txn{Tx: tx}
	meta := tx.Bucket(bucketMeta)
	if meta == nil {
		return t, nil // a new file
	}
	if b := meta.Get(keySeal); b != nil {
		var err error
		t.seal, err = decodeSeal(b)
		return t, err
	}
	t.seal = count(tx)
	return t, nil
}

// finish writes the seal.
func (t *txn) finish() error {
	t.seal.number++
	t.seal.rest = rest(t.Tx)
	return t.Bucket(bucketMeta).Put(keySeal, t.seal.encode())
}

func (t *txn) putEntry(index uint64, data []byte) error {
	b := t.Bucket(bucketLog)
	t.seal.drop(b.Get(key(index)))
	t.seal.add(data)
	return b.Put(key(index), data)
}

func (t *txn) deleteEntry(k []byte) error {
	b := t.Bucket(bucketLog)
	t.seal.drop(b.Get(k))
	return b.Delete(k)
}

func (s *seal) add(entry []byte) {
	s.entries++
	s.sum += uint64(sum(entry))
}

func (s *seal) drop(entry []byte) {
	if entry != nil {
		s.entries--
		s.sum -= uint64(sum(entry))
	}
}

// count computes the seal of a file from all its contents, with the number 0.
func count(tx *bbolt.Tx) (s seal) {
	// it fails only if the callback does
	_ = tx.Bucket(bucketLog).ForEach(func(_, v []byte) error {
		s.add(v)
		return nil
	})
	s.rest = rest(tx)
	return s
}

// rest returns the checksum of everything outside the log.
func rest(tx *bbolt.Tx) uint32 {
	h := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	put := func(b []byte) {
		// a hash never returns an error
		_, _ = h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(b))))
		_, _ = h.Write(b)
	}
	_ = tx.Bucket(bucketStable).ForEach(func(k, v []byte) error {
		put(k)
		put(v)
		return nil
	})
	put(tx.Bucket(bucketMeta).Get(keyCommit))
	return h.Sum32()
}

// checkSeal compares the contents of a file with their seal, and the seal's number with the highest
// known one. A file without a seal was written by an older version, unless a number is known.
func checkSeal(tx *bbolt.Tx, tip uint64) error {
	for _, name := range [][]byte{bucketLog, bucketStable, bucketMeta} {
		if tx.Bucket(name) == nil {
			return fmt.Errorf("it has no %s", name)
		}
	}
	b := tx.Bucket(bucketMeta).Get(keySeal)
	if b == nil {
		if tip > 0 {
			return errors.New("its seal is missing")
		}
		return nil
	}
	s, err := decodeSeal(b)
	if err != nil {
		return err
	}
	have := count(tx)
	have.number = s.number
	switch {
	case have.entries != s.entries:
		return fmt.Errorf("it has %d entries, but %d were written", have.entries, s.entries)
	case have != s:
		return errors.New("its contents are not what was written")
	case s.number < tip:
		return fmt.Errorf("its last writes are missing: it is at %d, but %d was on the disk", s.number, tip)
	}
	return nil
}

// tip is the file with the number of the last seal. It is not synced with each transaction, which
// would double the time of a vote: it may lag behind but is never ahead. It has two slots, so that
// a torn write leaves the previous number.
type tip struct{ f *os.File }

// openTip opens or creates the file.
func openTip(path string) (tip, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	return tip{f}, err
}

// readTip returns the highest number in the file, or 0 if there is none.
func readTip(path string) (highest uint64) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	for at := 0; at+12 <= len(b); at += tipSlot {
		if sum(b[at:at+8]) == binary.BigEndian.Uint32(b[at+8:]) {
			highest = max(highest, binary.BigEndian.Uint64(b[at:]))
		}
	}
	return highest
}

func (t tip) set(number uint64) error {
	_, err := t.f.WriteAt(appendSum(key(number)), int64(number%2)*tipSlot)
	return err
}

func (t tip) close() error { return errors.Join(t.f.Sync(), t.f.Close()) }
