// Package gossipstub is a gossip pool for tests, whose members the test sets.
package gossipstub

import (
	"slices"
	"sync"

	"github.com/rbee-project/rbee/core/gossip"
)

// Pool is a gossip pool whose members the test sets. The zero value has none.
type Pool struct {
	mu      sync.Mutex // guards below
	members []gossip.Member
	keys    [][]byte
}

// Set replaces the members.
func (p *Pool) Set(members ...gossip.Member) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.members = members
}

// Members returns the members.
func (p *Pool) Members() []gossip.Member {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.members)
}

// Changed returns nil: changes are not announced.
func (p *Pool) Changed() <-chan struct{} { return nil }

// SetKeys replaces the keys, the primary first.
func (p *Pool) SetKeys(keys [][]byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.keys = keys
	return nil
}

// Primary returns the primary key; nil: there is none.
func (p *Pool) Primary() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.keys) == 0 {
		return nil
	}
	return p.keys[0]
}
