package placement

import (
	"sync"
	"time"
)

// alias is another name of a model, learned from a hive.
type alias struct {
	id    string
	until time.Time
}

// names are other names of models, learned from hives.
type names struct {
	mu      sync.Mutex // guards below
	aliases map[string]alias
}

// canonical gives the model id for a name as far as it is known without asking a hive; otherwise
// the name itself.
func (n *names) canonical(name string) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if a, ok := n.aliases[name]; ok && time.Now().Before(a.until) {
		return a.id
	}
	return name
}

func (n *names) learn(name, id string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.aliases) >= maxAliases {
		clear(n.aliases)
	}
	n.aliases[name] = alias{id: id, until: time.Now().Add(AliasTTL)}
}
