package hive

import (
	"cmp"
	"sync/atomic"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/sched"
)

// settings are the current settings for workers, from the configuration and the cluster.
type settings struct {
	defaults atomic.Pointer[Defaults]
	cluster  atomic.Pointer[rules] // never nil
}

func newSettings(d Defaults) *settings {
	s := &settings{}
	s.setDefaults(d)
	s.cluster.Store(&rules{keepAlive: core.DefaultKeepAlive, swap: sched.Swap{MaxWait: core.DefaultSwapWait, MinWarm: core.DefaultSwapWarm}})
	return s
}

// Defaults are the settings of a hive that may change while it runs. The fields are those of
// Options.
type Defaults struct {
	Slots, ContextTokens, Threads int
	MemoryLimit                   int64
	StopGrace                     time.Duration
	Engines                       []string
}

func (s *settings) setDefaults(d Defaults) {
	d.Slots, d.StopGrace = cmp.Or(d.Slots, defaultSlots), cmp.Or(d.StopGrace, defaultStopGrace)
	s.defaults.Store(&d)
}

// rules are the cluster's settings for unloading and replacing workers.
type rules struct {
	keepAlive time.Duration
	swap      sched.Swap
}

// rules returns the cluster's settings, as last reported by a queen.
func (s *settings) rules() *rules { return s.cluster.Load() }

// wantedContext returns the positions per slot for a spawn that asks for so many; 0: as many as
// fit.
func (s *settings) wantedContext(asked int, m core.Model) int {
	if asked > 0 || s.defaults.Load().ContextTokens == 0 {
		return asked
	}
	if m.ContextTokens > 0 {
		return min(s.defaults.Load().ContextTokens, m.ContextTokens)
	}
	return s.defaults.Load().ContextTokens
}
