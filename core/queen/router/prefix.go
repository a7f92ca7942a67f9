package router

import (
	"hash/maphash"

	"github.com/rbee-project/rbee/core"
)

const (
	// maxMarks is how many marks a half of a memory has: those of some thousand conversations.
	maxMarks = 1 << 17
	// maxHolders is how many workers are remembered for a mark.
	maxHolders = 4
)

// holders is a worker's hash, of the workers that were sent a mark last, the latest first; 0: none.
type holders [maxHolders]uint64

// memory is which beginnings of prompts this queen has sent to which workers. It is a guess of what
// they have in their caches: nobody tells it what they forget. What was not looked at for long is
// forgotten by halves.
type memory struct {
	seed       maphash.Seed
	young, old map[uint64]holders // by mark: see inference.Terms
	most       int                // marks of each
}

func newMemory(most int) memory {
	return memory{seed: maphash.MakeSeed(), young: map[uint64]holders{}, most: most}
}

// hash of a worker's start. A hive cannot choose a nonce that has another's.
func (m *memory) hash(w *core.Worker) uint64 { return maphash.Comparable(m.seed, instanceOf(w)) | 1 }

// sent takes in that a worker is sent a prompt with these marks.
func (m *memory) sent(marks []uint64, w *core.Worker) {
	if len(marks) == 0 {
		return
	}
	hash := m.hash(w)
	for _, mark := range marks {
		if len(m.young) >= m.most {
			m.young, m.old = map[uint64]holders{}, m.young
		}
		h, ok := m.young[mark]
		if !ok {
			h = m.old[mark]
		}
		at := 0
		for at < maxHolders-1 && h[at] != hash && h[at] != 0 {
			at++
		}
		copy(h[1:at+1], h[:at])
		h[0] = hash
		m.young[mark] = h
	}
}

// have returns how many of a prompt's marks each worker was sent, by its hash; nil: none was sent
// any.
func (m *memory) have(marks []uint64) map[uint64]int {
	var found map[uint64]int
	for i, mark := range marks {
		h, ok := m.young[mark]
		if !ok {
			if h, ok = m.old[mark]; !ok {
				break // nobody was sent more
			}
		}
		if found == nil {
			found = map[uint64]int{}
		}
		for _, hash := range h {
			if hash != 0 {
				found[hash] = i + 1
			}
		}
	}
	return found
}
