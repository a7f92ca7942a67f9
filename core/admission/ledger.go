package admission

import (
	"maps"
	"slices"
	"time"
)

const (
	// MaxAccounts bounds the keys of a Ledger; the one that was used longest ago makes room.
	MaxAccounts = 20_000
	// holderLife is how long what a holder runs counts after it was heard of last.
	holderLife = 15 * time.Second
	// concurrentRetry is when to ask again where too many requests run: nobody knows their ends.
	concurrentRetry = time.Second
)

// What is counted.
const (
	Requests   = "requests"
	Tokens     = "tokens"
	Concurrent = "concurrent"
)

// Rate bounds what one key does.
type Rate struct {
	Of    string // Requests, Tokens, Concurrent
	Count int64
	Per   time.Duration // 0: Concurrent
}

// RateState is how far a key is with a Rate.
type RateState struct {
	Rate
	Remaining int64
	Reset     time.Duration // until nothing counts any more; 0 for Concurrent
}

// Refusal says which rate does not allow a request, and when it will.
type Refusal struct {
	Rate  Rate
	Retry time.Duration
}

// Ledger counts what keys do. A holder runs requests for them.
type Ledger struct {
	accounts map[string]*account
	heard    map[string]time.Time // holders
}

type account struct {
	windows map[Rate]*Window // by rates with a Count of 0: whatever the limit, it counts the same
	running map[string]int64 // by holder
	told    map[string]bool  // holders whose history is in windows
	used    time.Time
}

// NewLedger returns a ledger without any account.
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

// makeRoom forgets the tenth of the accounts that was used longest ago.
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

// active returns how many requests of the account run.
func (l *Ledger) active(a *account, now time.Time) (n int64) {
	for holder, running := range a.running {
		if now.Sub(l.heard[holder]) > holderLife {
			delete(a.running, holder) // it is gone, and its requests with it
			continue
		}
		n += running
	}
	return n
}

// cost returns what a request of some tokens takes of a rate. One that is larger than the rate
// takes all of it, so that it is let in when nothing else counts.
func cost(r Rate, tokens int64) int64 {
	if r.Of == Tokens {
		return min(max(tokens, 0), r.Count)
	}
	return 1
}

// Take counts a request of a key, if all rates allow it, and says how far the key is with each.
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

// Note counts a request that another ledger allowed at a time.
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

// Settle ends a request that was counted at a time for some tokens, and really had used ones.
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

// Running sets how many requests a holder runs, by key. It is told by the holder itself, and
// mends what was lost on the way.
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

// Told reports whether the ledger has what a holder counted of a key before.
func (l *Ledger) Told(key, holder string) bool {
	a := l.accounts[key]
	return a != nil && a.told[holder]
}

// History returns what was counted of a key, a list for each rate.
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

// Tell adds what a holder counted of a key before, once.
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
