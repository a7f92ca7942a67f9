package llamacpp

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"

	"github.com/rbee-project/rbee/plugins/llamacpp/internal/batch"
)

// blockHash returns the hash of token blocks under a key: the first 8 bytes of HMAC-SHA256 over the
// previous hash, the adapters and the tokens. Without the key, nobody can test guesses of what was
// read. It returns nil without a key.
func blockHash(key []byte) batch.HashFunc {
	if len(key) == 0 {
		return nil
	}
	return func(before uint64, adapters string, block []token) uint64 {
		text := binary.LittleEndian.AppendUint64(nil, before)
		text = binary.LittleEndian.AppendUint32(text, uint32(len(adapters)))
		text = append(text, adapters...)
		for _, t := range block {
			text = binary.LittleEndian.AppendUint32(text, uint32(t))
		}
		mac := hmac.New(sha256.New, key)
		_, _ = mac.Write(text) // never fails
		return binary.LittleEndian.Uint64(mac.Sum(nil))
	}
}
