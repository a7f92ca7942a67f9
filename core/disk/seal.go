package disk

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
)

// ErrChanged reports that a sealed file differs from what was written.
var ErrChanged = errors.New("it has changed on the disk since it was written: its checksum is wrong")

// sealOpening starts a sealed object; eight hexadecimal digits follow.
const (
	sealOpening = "{\n  \"checksum\": \"crc32c:"
	sealDigits  = 8
	sealClosing = "\",\n"
	// sealWithin is how many leading bytes of a file are searched for a damaged seal.
	sealWithin = 64
)

// Seal returns a struct or map as JSON whose first member is a checksum (CRC-32C) of the rest.
// Programs that do not know the checksum read the same object as without it. The checksum detects
// damage, not tampering.
func Seal(v any) ([]byte, error) {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return nil, err
	}
	rest, ok := bytes.CutPrefix(b, []byte("{\n"))
	if !ok {
		return nil, fmt.Errorf("seal %T: not an object with members", v)
	}
	head, tail := []byte(sealOpening), append([]byte(sealClosing), append(rest, '\n')...)
	return bytes.Join([][]byte{head, tail}, fmt.Appendf(nil, "%0*x", sealDigits, sealSum(head, tail))), nil
}

func sealSum(head, tail []byte) uint32 {
	table := crc32.MakeTable(crc32.Castagnoli)
	return crc32.Update(crc32.Checksum(head, table), table, tail)
}

// CheckSeal returns ErrChanged if any bit of a file that Seal wrote has changed. A file without a
// seal, written by an earlier version of rbee, passes.
func CheckSeal(content []byte) error {
	rest, sealed := bytes.CutPrefix(content, []byte(sealOpening))
	if !sealed {
		begin := content[:min(len(content), sealWithin)]
		if bytes.Contains(begin, []byte("checksum")) || bytes.Contains(begin, []byte("crc32c")) {
			return ErrChanged // a bit of the seal itself has changed
		}
		return nil
	}
	if len(rest) < sealDigits {
		return ErrChanged
	}
	sum := fmt.Sprintf("%0*x", sealDigits, sealSum([]byte(sealOpening), rest[sealDigits:]))
	if string(rest[:sealDigits]) != sum {
		return ErrChanged
	}
	return nil
}
