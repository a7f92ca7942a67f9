package router

import (
	"hash/maphash"

	"github.com/rbee-project/rbee/core"
)

const (
	// maxMarks is the number of marks in each half of a memory: those of some thousand
	// conversations.
	maxMarks = 1 << 17
	// maxHolders is the number of workers remembered per mark.
	maxHolders = 4
)

// holders are the hashes of the workers that most recently received a mark, latest first; 0: none.
type holders [maxHolders]uint64

// memory records which prompt prefixes this queen has sent to which workers. It is an estimate of
// the workers' caches, as workers do not report evictions. Marks unused for long are dropped, one
// half of the memory at a time.
type memory struct {
	seed       maphash.Seed
	young, old map[uint64]holders // by mark: see inference.Terms
	most       int                // marks in each half
}

func newMemory(most int) memory {
	return memory{seed: maphash.MakeSeed(), young: map[uint64]holders{}, most: most}
}

// hash returns the hash of a worker's start. A hive cannot choose a nonce that collides with
// another's.
func (m *memory) hash(w *core.Worker) uint64 { return maphash.Comparable(m.seed, instanceOf(w)) | 1 }

// sent records that a prompt with these marks is sent to a worker.
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

// have returns how many of a prompt's marks each worker has received, by its hash; nil: none has
// any.
func (m *memory) have(marks []uint64) map[uint64]int {
	var found map[uint64]int
	for i, mark := range marks {
		h, ok := m.young[mark]
		if !ok {
			if h, ok = m.old[mark]; !ok {
				break // no worker received a longer prefix
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
