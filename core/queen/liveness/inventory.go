package liveness

import (
	"cmp"
	"slices"
	"unicode"

	"google.golang.org/protobuf/proto"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/wire"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
	"github.com/rbee-project/rbee/raft/fsm"
)

// maxInventories bounds the inventories of all hives at one queen, in bytes of their messages. One
// that exceeds it is dropped, and its hive is asked instead.
const maxInventories = 64 << 20

// Inventory is the last reported contents of a hive's store. It is immutable.
type Inventory struct {
	core.Inventory
	bytes int
}

// inventoryOf reads an inventory, with texts made safe to display; nil for one that the hive marks
// as incomplete. Errors: Invalid.
func inventoryOf(p *queenv1.Inventory) (*Inventory, error) {
	size := proto.Size(p)
	switch {
	case p == nil || p.GetIncomplete():
		return nil, nil
	case size > core.MaxInventoryBytes, len(p.GetModels()) > core.MaxInventoryModels, len(p.GetOffers()) > core.MaxInventoryOffers:
		return nil, invalidReport("an inventory of %d models, %d offers and %d bytes", len(p.GetModels()), len(p.GetOffers()), size)
	}
	v := &Inventory{Inventory: wire.InventoryFromProto(p), bytes: size}
	seen := make(map[string]bool, len(v.Models))
	for i := range v.Models {
		m := &v.Models[i]
		if !isName(m.ID) || seen[m.ID] || len(m.Aliases) > core.MaxInventoryAliases || slices.ContainsFunc(m.Aliases, func(a string) bool { return !isName(a) }) {
			return nil, invalidReport("its store has a model with a name that no model has")
		}
		seen[m.ID] = true
		m.Aliases = slices.Clip(m.Aliases) // readers append to it
		for _, text := range []*string{&m.Ref, &m.Digest, &m.License, &m.Architecture, &m.Quantization, &m.Damaged} {
			*text = fit(*text)
		}
		m.SizeBytes, m.EstimateBytes, m.Parameters, m.ContextTokens = max(m.SizeBytes, 0), max(m.EstimateBytes, 0), max(m.Parameters, 0), max(m.ContextTokens, 0)
	}
	slices.SortFunc(v.Models, func(a, b core.Model) int { return cmp.Compare(a.ID, b.ID) })
	for i := range v.Offers {
		o := &v.Offers[i]
		for _, text := range []*string{&o.Ref, &o.Kind, &o.Name, &o.Summary, &o.License} {
			*text = fit(*text)
		}
		o.SizeBytes = max(o.SizeBytes, 0)
	}
	return v, nil
}

// isName reports whether a text is a valid model id or alias.
func isName(s string) bool {
	return s != "" && len(s) <= fsm.MaxTextBytes && !slices.ContainsFunc([]rune(s), unicode.IsControl)
}

// stock holds the inventories of all hives at one queen, within maxInventories.
type stock struct {
	of    map[string]*Inventory // by hive id
	bytes int                   // total size
	turn  uint64                // counts changes
	ids   map[string]int        // number of hives with a sound model, by its id
}

// put replaces a hive's inventory, or drops it if v is nil or does not fit.
func (s *stock) put(hive string, v *Inventory) {
	old := s.of[hive]
	if old == v {
		return
	}
	s.turn++
	if old != nil {
		s.bytes -= old.bytes
		delete(s.of, hive)
		s.count(old, -1)
	}
	if v != nil && s.bytes+v.bytes <= maxInventories {
		s.of[hive] = v
		s.bytes += v.bytes
		s.count(v, 1)
	}
}

// count adds a hive's models to ids, or removes them.
func (s *stock) count(v *Inventory, by int) {
	for _, m := range v.Models {
		if m.Damaged != "" {
			continue
		}
		if s.ids[m.ID] += by; s.ids[m.ID] == 0 {
			delete(s.ids, m.ID)
		}
	}
}

// Stores reports whether a hive has reported a sound model with exactly this id.
func (m *Monitor) Stores(id string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.stock.ids[id] > 0
}

// StockTurn returns a number that changes whenever a hive reports a change of its store.
func (m *Monitor) StockTurn() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.stock.turn
}
