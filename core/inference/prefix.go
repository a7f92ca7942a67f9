package inference

import "hash/maphash"

// firstMark is the shortest prefix worth routing by, in bytes: about as much as an engine caches as
// one unit.
const firstMark = 256

// nextMark returns the length of the prefix after one of n bytes. The steps grow, so that a prompt
// of any length has few marks.
func nextMark(n int) int { return n + max(firstMark, n/16) }

// prefix returns the marks of the request: see Terms.Prefix. The next turn of a conversation has
// the same marks and more, as the bytes of its messages start with those of this turn.
func (s *Service) prefix(r *Request, f *facts) []uint64 {
	if len(f.prompt) < firstMark {
		return nil
	}
	var h maphash.Hash
	h.SetSeed(s.seed)
	for _, part := range [][]byte{[]byte(r.Key), []byte(r.Path), f.tools} { // templates write tools first
		_, _ = h.Write(part) // hash writes never fail
		_ = h.WriteByte(0)
	}
	marks := make([]uint64, 0, min(len(f.prompt)/firstMark, 64))
	for from, to := 0, firstMark; to <= len(f.prompt); from, to = to, nextMark(to) {
		_, _ = h.Write(f.prompt[from:to])
		marks = append(marks, h.Sum64())
	}
	return marks
}
