package admission

import (
	"maps"
	"slices"
	"time"
)

const (
	// MaxAccounts bounds the keys of a Ledger; the least recently used one is evicted.
	MaxAccounts = 20_000
	// holderLife is how long a holder's running requests count after its last report.
	holderLife = 15 * time.Second
	// concurrentRetry is the retry delay when too many requests run: their ends cannot be
	// predicted.
	concurrentRetry = time.Second
)

// The quantities that a Rate bounds.
const (
	Requests   = "requests"
	Tokens     = "tokens"
	Concurrent = "concurrent"
)

// Rate bounds what one key uses.
type Rate struct {
	Of    string // Requests, Tokens, Concurrent
	Count int64
	Per   time.Duration // 0 for Concurrent
}

// RateState is the usage of a key against a Rate.
type RateState struct {
	Rate
	Remaining int64
	Reset     time.Duration // until nothing counts any longer; 0 for Concurrent
}

// Refusal names the rate that refuses a request, and when it will allow it.
type Refusal struct {
	Rate  Rate
	Retry time.Duration
}

// Ledger counts the usage of keys. Holders run requests on their behalf.
type Ledger struct {
	accounts map[string]*account
	heard    map[string]time.Time // holders
}

type account struct {
	windows map[Rate]*Window // by Rate with Count 0: the limit does not matter here
	running map[string]int64 // by holder
	told    map[string]bool  // holders whose history is already in windows
	used    time.Time
}

// NewLedger returns an empty ledger.
func NewLedger() *Ledger {
	return &Ledger{accounts: map[string]*account{}, heard: map[string]time.Time{}}
}

// Len returns the number of accounts.
func (l *Ledger) Len() int { return len(l.accounts) }

func (l *Ledger) account(key string, now time.Time) *account {
	a := l.accounts[key]
	if a == nil {
		if len(l.accounts) >= MaxAccounts {
			l.makeRoom()
		}
		a = &account{windows: map[Rate]*Window{}, running: map[string]int64{}, told: map[string]bool{}}
		l.accounts[key] = a
	}
	a.used = now
	return a
}

// makeRoom evicts the least recently used tenth of the accounts.
func (l *Ledger) makeRoom() {
	keys := slices.SortedFunc(maps.Keys(l.accounts), func(a, b string) int { return l.accounts[a].used.Compare(l.accounts[b].used) })
	for _, key := range keys[:max(1, len(keys)/10)] {
		delete(l.accounts, key)
	}
}

func (a *account) window(r Rate) *Window {
	r.Count = 0
	w := a.windows[r]
	if w == nil {
		w = NewWindow(r.Per)
		a.windows[r] = w
	}
	return w
}

// active returns the number of running requests of the account.
func (l *Ledger) active(a *account, now time.Time) (n int64) {
	for holder, running := range a.running {
		if now.Sub(l.heard[holder]) > holderLife {
			delete(a.running, holder) // the holder is gone, and its requests with it
			continue
		}
		n += running
	}
	return n
}

// cost returns how much of a rate a request of the given tokens uses. A request larger than the
// rate uses all of it, so that it is admitted when nothing else counts.
func cost(r Rate, tokens int64) int64 {
	if r.Of == Tokens {
		return min(max(tokens, 0), r.Count)
	}
	return 1
}

// Take counts a request of a key if all rates allow it, and returns the state of each rate.
func (l *Ledger) Take(key, holder string, rates []Rate, tokens int64, now time.Time) ([]RateState, *Refusal) {
	a := l.account(key, now)
	l.heard[holder] = now
	var refused *Refusal
	refuse := func(r Rate, retry time.Duration) {
		if refused == nil || retry > refused.Retry {
			refused = &Refusal{Rate: r, Retry: retry}
		}
	}
	for _, r := range rates {
		n := cost(r, tokens)
		switch {
		case r.Of == Concurrent && l.active(a, now)+n > r.Count:
			refuse(r, concurrentRetry)
		case r.Of == Concurrent:
		case a.window(r).Sum(now)+n > r.Count:
			refuse(r, a.window(r).Until(r.Count-n, now))
		}
	}
	if refused == nil {
		l.Note(key, holder, rates, tokens, now, now)
	}
	return l.states(a, rates, now), refused
}

// Note counts a request that another ledger admitted at the given time.
func (l *Ledger) Note(key, holder string, rates []Rate, tokens int64, at, now time.Time) {
	a := l.account(key, now)
	l.heard[holder] = now
	for _, r := range rates {
		if r.Of != Concurrent {
			a.window(r).Add(cost(r, tokens), at, now)
		}
	}
	a.running[holder]++
}

func (l *Ledger) states(a *account, rates []Rate, now time.Time) []RateState {
	out := make([]RateState, 0, len(rates))
	for _, r := range rates {
		s := RateState{Rate: r}
		if r.Of == Concurrent {
			s.Remaining = r.Count - l.active(a, now)
		} else {
			s.Remaining, s.Reset = r.Count-a.window(r).Sum(now), a.window(r).Until(0, now)
		}
		s.Remaining = max(0, s.Remaining)
		out = append(out, s)
	}
	return out
}

// Settle ends a request that was counted at the given time for tokens, and replaces that estimate
// by used.
func (l *Ledger) Settle(key, holder string, rates []Rate, at time.Time, tokens, used int64, now time.Time) {
	a := l.accounts[key]
	if a == nil {
		return
	}
	l.heard[holder] = now
	for _, r := range rates {
		if r.Of == Tokens {
			a.window(r).Add(max(used, 0)-cost(r, tokens), at, now)
		}
	}
	if a.running[holder]--; a.running[holder] <= 0 {
		delete(a.running, holder)
	}
}

// Running sets how many requests a holder runs, by key. The holder itself reports it, which
// corrects for lost messages.
func (l *Ledger) Running(holder string, running map[string]int64, now time.Time) {
	l.heard[holder] = now
	for key, a := range l.accounts {
		delete(a.running, holder)
		if n := running[key]; n > 0 {
			a.running[holder] = n
		}
	}
	maps.DeleteFunc(l.heard, func(_ string, at time.Time) bool { return now.Sub(at) > holderLife })
}

// Told reports whether the ledger has the holder's history of a key.
func (l *Ledger) Told(key, holder string) bool {
	a := l.accounts[key]
	return a != nil && a.told[holder]
}

// History returns what was counted for a key, a list per rate.
func (l *Ledger) History(key string, rates []Rate, now time.Time) [][]Slot {
	out := make([][]Slot, len(rates))
	if a := l.accounts[key]; a != nil {
		for i, r := range rates {
			if r.Of != Concurrent {
				out[i] = a.window(r).Slots(now)
			}
		}
	}
	return out
}

// Tell adds a holder's history of a key, once.
func (l *Ledger) Tell(key, holder string, rates []Rate, history [][]Slot, now time.Time) {
	a := l.account(key, now)
	if a.told[holder] {
		return
	}
	a.told[holder] = true
	for i, r := range rates {
		if i < len(history) && r.Of != Concurrent {
			a.window(r).Merge(history[i], now)
		}
	}
}
