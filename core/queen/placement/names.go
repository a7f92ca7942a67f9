package placement

import (
	"sync"
	"time"
)

// alias is another name of a model, as learned from a hive.
type alias struct {
	id    string
	until time.Time
	known knowledge
}

// knowledge is the state that a name was resolved with: if it has changed, the name is looked up
// again.
type knowledge struct {
	turn  uint64 // version of the hives' stores
	alias string // model that the alias stands for; the name itself if it is not an alias
}

// names are other names of models, learned from hives.
type names struct {
	mu      sync.Mutex // guards below
	aliases map[string]alias
}

// canonical returns the model id for a name if it is known without asking a hive; otherwise the
// name itself.
func (n *names) canonical(name string, now knowledge) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if a, ok := n.aliases[name]; ok && time.Now().Before(a.until) && a.known == now {
		return a.id
	}
	return name
}

func (n *names) learn(name, id string, now knowledge) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.aliases) >= maxAliases {
		clear(n.aliases)
	}
	n.aliases[name] = alias{id: id, until: time.Now().Add(AliasTTL), known: now}
}
