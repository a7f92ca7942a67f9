package inference

import "hash/maphash"

// firstMark is how long a beginning of a prompt is that is worth reading only once, in bytes: about
// as much as an engine keeps together.
const firstMark = 256

// nextMark returns the beginning after one of so many bytes. They grow, so that a prompt of any
// length has few.
func nextMark(n int) int { return n + max(firstMark, n/16) }

// prefix returns the marks of the request: see Terms.Prefix. The next turn of a conversation has
// the same ones and more, as the bytes of its messages begin with those of this turn's.
func (s *Service) prefix(r *Request, f *facts) []uint64 {
	if len(f.prompt) < firstMark {
		return nil
	}
	var h maphash.Hash
	h.SetSeed(s.seed)
	for _, part := range [][]byte{[]byte(r.Key), []byte(r.Path), f.tools} { // a template writes tools first
		_, _ = h.Write(part) // it never fails
		_ = h.WriteByte(0)
	}
	marks := make([]uint64, 0, min(len(f.prompt)/firstMark, 64))
	for from, to := 0, firstMark; to <= len(f.prompt); from, to = to, nextMark(to) {
		_, _ = h.Write(f.prompt[from:to])
		marks = append(marks, h.Sum64())
	}
	return marks
}
