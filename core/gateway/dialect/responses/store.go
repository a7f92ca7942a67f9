package responses

import (
	"container/list"
	"sync"
)

const (
	maxKept      = 64 << 20 // bytes of all conversations that are kept
	maxKeptOne   = 4 << 20  // bytes of one
	maxKeptCount = 10_000
)

// Store keeps the conversations of answers, so that a request can go on from one by its id. It
// holds them in memory, the least recently used are dropped first, and gives one only to the key
// that made it. The zero value is empty. It is safe for concurrent use.
type Store struct {
	mu    sync.Mutex // guards below
	byID  map[string]*list.Element
	order list.List // of *kept, the most recently used first
	bytes int
}

type kept struct {
	id, key string
	items   []item
	bytes   int
}

// put keeps a conversation. One that is too large is not kept.
func (s *Store) put(id, key string, items []item) {
	k := &kept{id: id, key: key, items: items, bytes: sizeOf(items)}
	if k.bytes > maxKeptOne {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byID == nil {
		s.byID = map[string]*list.Element{}
	}
	s.dropLocked(s.byID[id])
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
}

// get returns a conversation. It must not be changed.
func (s *Store) get(id, key string) ([]item, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.byID[id]
	if !ok {
		return nil, false
	}
	k, _ := e.Value.(*kept)
	if k.key != key {
		return nil, false
	}
	s.order.MoveToFront(e)
	return k.items, true
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
