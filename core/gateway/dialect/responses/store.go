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
	maxKept      = 64 << 20 // bytes of all stored conversations
	maxKeptOne   = 4 << 20  // bytes of one conversation
	maxKeptCount = 10_000
	maxExported  = 3 << 20        // bytes of one conversation sent to another queen; messages between queens are limited to 4 MiB
	keptFor      = 12 * time.Hour // since the last use
)

// Room is memory that a Store shares with others. Its methods are safe for concurrent use and do
// not call the Store.
type Room interface {
	// Take reserves all of the bytes and returns true, or none and returns false.
	Take(bytes int64) bool
	// Give returns bytes.
	Give(bytes int64)
}

// Store keeps the conversations of answers in memory, so that a request can continue one by its id.
// It drops the least recently used first, and returns a conversation only to the key that created
// it. The zero value is empty. It is safe for concurrent use.
type Store struct {
	// Room is charged for the conversations, in addition to the store's own bounds; nil: no shared
	// limit. It is set before use.
	Room Room

	mu    sync.Mutex // guards below
	byID  map[string]*list.Element
	order list.List // *kept values, most recently used first
	bytes int
}

type kept struct {
	id, key string
	answer
	bytes int
	used  time.Time // time of the last use
}

// answer is one stored answer.
type answer struct {
	Items    []item          `json:"items"`    // the conversation, including the answer
	Inputs   int             `json:"inputs"`   // number of Items before the answer
	Response json.RawMessage `json:"response"` // as sent to the client
}

// put stores an answer, unless it is too large.
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

// Spare drops the least recently used conversations until the given bytes are freed, and reports
// whether any were.
func (s *Store) Spare(bytes int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.bytes
	for s.order.Len() > 0 && int64(before-s.bytes) < bytes {
		s.dropLocked(s.order.Back())
	}
	return s.bytes < before
}

// Expire drops the conversations unused for half a day.
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

// get returns an answer, which callers must not change.
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

// findLocked returns the entry with an id; nil: this key has none.
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

// Has reports whether the key has an answer stored under the id.
func (s *Store) Has(id, key string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.findLocked(id, key) != nil
}

// Response returns the body of an answer, as sent to its client. Callers must not change it.
func (s *Store) Response(id, key string) ([]byte, bool) {
	a, ok := s.get(id, key)
	return a.Response, ok
}

// Delete removes an answer and reports whether it was stored.
func (s *Store) Delete(id, key string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.findLocked(id, key) == nil {
		return false
	}
	s.dropLocked(s.byID[id])
	return true
}

// Export returns everything stored under an id, for Import by another store.
func (s *Store) Export(id, key string) ([]byte, bool) {
	a, ok := s.get(id, key)
	if !ok {
		return nil, false
	}
	b, err := dialect.Marshal(a)
	return b, err == nil && len(b) <= maxExported
}

// Import stores what another store has exported.
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

// sizeOf returns the approximate size of items, in bytes.
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
