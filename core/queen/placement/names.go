package placement

import (
	"sync"
	"time"
)

// alias is another name of a model, learned from a hive.
type alias struct {
	id    string
	until time.Time
	known knowledge
}

// knowledge is what a name was found by: where it is another one, the name is looked up again.
type knowledge struct {
	turn  uint64 // of the hives' stores
	alias string // the model that the cluster has the name for; the name itself where it is no alias
}

// names are other names of models, learned from hives.
type names struct {
	mu      sync.Mutex // guards below
	aliases map[string]alias
}

// canonical gives the model id for a name as far as it is known without asking a hive; otherwise
// the name itself.
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
