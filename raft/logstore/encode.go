package logstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"time"

	"github.com/hashicorp/raft"
)

// An entry is: format (1 byte), type (1), index (8), term (8), append time in Unix nanoseconds (8,
// 0: none), length of data (4), data, extensions, CRC-32C of all before (4). Numbers are big
// endian. bbolt itself has no checksums below its meta pages.
const (
	entryFormat = 1
	headBytes   = 1 + 1 + 8 + 8 + 8 + 4
	sumBytes    = 4
)

func encode(l *raft.Log) []byte {
	b := make([]byte, 0, headBytes+len(l.Data)+len(l.Extensions)+sumBytes)
	b = append(b, entryFormat, byte(l.Type))
	b = binary.BigEndian.AppendUint64(b, l.Index)
	b = binary.BigEndian.AppendUint64(b, l.Term)
	var at int64
	if !l.AppendedAt.IsZero() {
		at = l.AppendedAt.UnixNano()
	}
	b = binary.BigEndian.AppendUint64(b, uint64(at)) //nolint:gosec // the bits, back again in decode
	b = binary.BigEndian.AppendUint32(b, uint32(len(l.Data)))
	b = append(b, l.Data...)
	b = append(b, l.Extensions...)
	return appendSum(b)
}

func appendSum(b []byte) []byte { return binary.BigEndian.AppendUint32(b, sum(b)) }

// decode fills l; its slices are copies.
func decode(b []byte, l *raft.Log) error {
	if len(b) < headBytes+sumBytes {
		return errors.New("too short")
	}
	body, tail := b[:len(b)-sumBytes], b[len(b)-sumBytes:]
	if sum(body) != binary.BigEndian.Uint32(tail) {
		return errors.New("wrong checksum")
	}
	if body[0] != entryFormat {
		return fmt.Errorf("unknown format %d", body[0])
	}
	n := binary.BigEndian.Uint32(body[headBytes-4:])
	rest := body[headBytes:]
	if uint64(n) > uint64(len(rest)) {
		return errors.New("its data is longer than the entry")
	}
	*l = raft.Log{
		Type:  raft.LogType(body[1]),
		Index: binary.BigEndian.Uint64(body[2:]),
		Term:  binary.BigEndian.Uint64(body[10:]),
	}
	if at := int64(binary.BigEndian.Uint64(body[18:])); at != 0 { //nolint:gosec // see encode
		l.AppendedAt = time.Unix(0, at)
	}
	if n > 0 {
		l.Data = append([]byte(nil), rest[:n]...)
	}
	if len(rest) > int(n) {
		l.Extensions = append([]byte(nil), rest[n:]...)
	}
	return nil
}

func sum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }
