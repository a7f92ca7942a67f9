package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"strconv"
	"sync"
)

// A journal is stored next to a partial file and records which of its segments have arrived:
// partial/sha256-<hex>.journal.
//
// It has a line for each event: eight hexadecimal digits of the line's own CRC-32C, a space, and
// JSON. Lines are only ever appended. A line is written after its bytes, and a killed process loses
// neither. After a power cut the disk may have lines without their bytes, or half a line: the
// reader ignores what follows an incomplete line, and compares segments with their sums.
//
// The sums of segments detect damage, not malice; the digest of the whole file detects malice.
// CRC-32C is twenty times as fast as SHA-256, which processes every byte only once.
const (
	segmentBytes    = 1 << 20 // the most that a killed process loses, per connection
	journalFormat   = 1
	maxJournalBytes = 64 << 20 // enough for a file of 1 TB, whose segments take 50 MB
	maxLineBytes    = 4 << 10
	journalSuffix   = ".journal"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// journalLine is one line; exactly one field is set and determines its kind.
type journalLine struct {
	Begin   *journalBegin   `json:"begin,omitempty"`
	Segment *journalSegment `json:"seg,omitempty"`
	Hash    *journalHash    `json:"hash,omitempty"`
	Origin  *journalOrigin  `json:"origin,omitempty"`
	// number of a segment that was dropped
	Dropped *int64 `json:"dropped,omitempty"`
}

// journalBegin is the first line; each process that continues writes it again.
type journalBegin struct {
	Format  int   `json:"format"`
	Size    int64 `json:"size"`
	Segment int64 `json:"segment"` // bytes
	// boot of the machine; after another boot the segments must be read back
	Boot string `json:"boot"`
}

// journalSegment records that a segment has arrived, or its first N bytes if N is less than its
// size.
type journalSegment struct {
	Index int64  `json:"i"`
	N     int64  `json:"n"`
	Sum   uint32 `json:"c"` // CRC-32C
}

// journalHash is the state of the digests after the file's first At bytes.
type journalHash struct {
	At     int64  `json:"at"`
	SHA256 []byte `json:"sha256"`
	SHA512 []byte `json:"sha512,omitempty"`
}

// journalOrigin is the version of the file that a source serves.
type journalOrigin struct {
	Origin  string `json:"origin"`
	Version string `json:"version"`
}

// journal is the open file. It is safe for concurrent use.
type journal struct {
	file *os.File

	mu  sync.Mutex // held while a line is written, so that lines do not mix
	end int64      // end of the last complete line
}

// append adds a line. If it fails, the journal stays as it was.
func (j *journal) append(l journalLine) error {
	b, err := encodeLine(l)
	if err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if _, err := j.file.WriteAt(b, j.end); err != nil {
		return errors.Join(err, j.file.Truncate(j.end))
	}
	j.end += int64(len(b))
	return nil
}

func encodeLine(l journalLine) ([]byte, error) {
	text, err := json.Marshal(l)
	if err != nil {
		return nil, err
	}
	return fmt.Appendf(nil, "%08x %s\n", crc32.Checksum(text, castagnoli), text), nil
}

// readJournal returns the lines up to the first incomplete one, and where they end.
func readJournal(r io.Reader) (lines []journalLine, end int64, err error) {
	b, err := io.ReadAll(io.LimitReader(r, maxJournalBytes))
	if err != nil {
		return nil, 0, err
	}
	for {
		text, rest, ok := bytes.Cut(b[end:], []byte("\n"))
		if !ok {
			return lines, end, nil
		}
		l, ok := decodeLine(text)
		if !ok {
			return lines, end, nil
		}
		lines = append(lines, l)
		end = int64(len(b) - len(rest))
	}
}

// decodeLine reads a line that encodeLine wrote; ok is false for anything else.
func decodeLine(text []byte) (l journalLine, ok bool) {
	if len(text) > maxLineBytes || len(text) < 9 || text[8] != ' ' {
		return l, false
	}
	sum, err := strconv.ParseUint(string(text[:8]), 16, 32)
	if err != nil || uint32(sum) != crc32.Checksum(text[9:], castagnoli) {
		return l, false
	}
	return l, json.Unmarshal(text[9:], &l) == nil
}
