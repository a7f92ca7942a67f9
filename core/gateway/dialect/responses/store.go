package responses

import (
	"container/list"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/rbee-project/rbee/core/gateway/dialect"
)

const (
	maxKept      = 64 << 20 // bytes of all conversations that are kept
	maxKeptOne   = 4 << 20  // bytes of one
	maxKeptCount = 10_000
	maxExported  = 3 << 20        // bytes of one that another queen is given; a message between queens has 4 MiB
	keptFor      = 12 * time.Hour // after the last use
)

// Room is memory that a Store shares with others. Its methods are safe for concurrent use, and call
// nothing of the Store.
type Room interface {
	// Take takes bytes, or none and reports false.
	Take(bytes int64) bool
	// Give gives bytes back.
	Give(bytes int64)
}

// Store keeps the conversations of answers, so that a request can go on from one by its id. It
// holds them in memory, the least recently used are dropped first, and gives one only to the key
// that made it. The zero value is empty. It is safe for concurrent use.
type Store struct {
	// Room is what the conversations are counted in, beside the store's own bounds; nil: nowhere.
	// It is set before use.
	Room Room

	mu    sync.Mutex // guards below
	byID  map[string]*list.Element
	order list.List // of *kept, the most recently used first
	bytes int
}

type kept struct {
	id, key string
	answer
	bytes int
	used  time.Time // last
}

// answer is what is kept of one answer.
type answer struct {
	Items    []item          `json:"items"`    // the conversation, with the answer
	Inputs   int             `json:"inputs"`   // how many of Items came before the answer
	Response json.RawMessage `json:"response"` // as the client got it
}

// put keeps an answer. One that is too large is not kept.
func (s *Store) put(id, key string, a answer) {
	k := &kept{id: id, key: key, answer: a, bytes: sizeOf(a.Items) + len(a.Response), used: time.Now()}
	if k.bytes > maxKeptOne {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byID == nil {
		s.byID = map[string]*list.Element{}
	}
	s.dropLocked(s.byID[id])
	for s.Room != nil && !s.Room.Take(int64(k.bytes)) {
		if s.order.Len() == 0 {
			return
		}
		s.dropLocked(s.order.Back())
	}
	s.byID[id] = s.order.PushFront(k)
	s.bytes += k.bytes
	for s.bytes > maxKept || s.order.Len() > maxKeptCount {
		s.dropLocked(s.order.Back())
	}
}

func (s *Store) dropLocked(e *list.Element) {
	if e == nil {
		return
	}
	k, _ := s.order.Remove(e).(*kept)
	delete(s.byID, k.id)
	s.bytes -= k.bytes
	if s.Room != nil {
		s.Room.Give(int64(k.bytes))
	}
}

// Spare drops conversations until so many bytes are given back, the least recently used first, and
// reports whether any were.
func (s *Store) Spare(bytes int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.bytes
	for s.order.Len() > 0 && int64(before-s.bytes) < bytes {
		s.dropLocked(s.order.Back())
	}
	return s.bytes < before
}

// Expire drops the conversations that nobody has used for half a day.
func (s *Store) Expire(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for e := s.order.Back(); e != nil; e = s.order.Back() {
		if k, _ := e.Value.(*kept); now.Sub(k.used) < keptFor {
			return
		}
		s.dropLocked(e)
	}
}

// get returns an answer. It must not be changed.
func (s *Store) get(id, key string) (answer, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.findLocked(id, key)
	if k == nil {
		return answer{}, false
	}
	k.used = time.Now()
	s.order.MoveToFront(s.byID[id])
	return k.answer, true
}

// findLocked returns what is kept under an id; nil: nothing that this key made.
func (s *Store) findLocked(id, key string) *kept {
	e, ok := s.byID[id]
	if !ok {
		return nil
	}
	if k, _ := e.Value.(*kept); k.key == key {
		return k
	}
	return nil
}

// Has reports whether an answer that the key made is kept.
func (s *Store) Has(id, key string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.findLocked(id, key) != nil
}

// Response returns the body of an answer, as its client got it. It must not be changed.
func (s *Store) Response(id, key string) ([]byte, bool) {
	a, ok := s.get(id, key)
	return a.Response, ok
}

// Delete forgets an answer and reports whether it was kept.
func (s *Store) Delete(id, key string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.findLocked(id, key) == nil {
		return false
	}
	s.dropLocked(s.byID[id])
	return true
}

// Export returns all that is kept under an id, for the Import of another store.
func (s *Store) Export(id, key string) ([]byte, bool) {
	a, ok := s.get(id, key)
	if !ok {
		return nil, false
	}
	b, err := dialect.Marshal(a)
	return b, err == nil && len(b) <= maxExported
}

// Import keeps what another store has exported.
func (s *Store) Import(id, key string, exported []byte) error {
	var a answer
	if len(exported) > maxExported {
		return fmt.Errorf("an answer of %d bytes is too large", len(exported))
	}
	if err := json.Unmarshal(exported, &a); err != nil {
		return fmt.Errorf("read an answer: %w", err)
	}
	if a.Inputs < 0 || a.Inputs > len(a.Items) {
		return fmt.Errorf("an answer of %d items has %d inputs", len(a.Items), a.Inputs)
	}
	s.put(id, key, a)
	return nil
}

// sizeOf is about what items take.
func sizeOf(items []item) int {
	n := 0
	for _, it := range items {
		n += 200 + len(it.Content) + len(it.Arguments) + len(it.Output) + len(it.CallID) + len(it.Name) + len(it.ID)
		for _, p := range it.Summary {
			n += 64 + len(p.Text) + len(p.ImageURL)
		}
	}
	return n
}
