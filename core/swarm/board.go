package swarm

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/rbee-project/rbee/core"
)

const (
	// ClaimTTL is how long a claim holds without renewal. A busy hive is not a dead one: a hive
	// that is not suspect gets the full time.
	ClaimTTL = 10 * time.Second
	// suspectTTL is how long a hive's claim holds while its connection to the leader is broken or
	// silent.
	suspectTTL = 2 * time.Second
	// stallAfter is how long a hive may hold the origin without receiving a byte while others wait.
	stallAfter = 30 * time.Second
	// RenewEvery is the pause between two claims of a working hive, askAgain that of a waiting
	// hive.
	RenewEvery = time.Second
	askAgain   = 300 * time.Millisecond
	// keepFile is how long the board remembers a file's owners after the last claim.
	keepFile = 30 * time.Second

	maxSeeders      = 8
	maxFiles        = 4096
	maxFilesPerHive = 64
	// partialSurcharge is the number of readers at which a hive with the whole file is no longer
	// preferred to one with a part.
	partialSurcharge = 3
)

// Hive is what the Board uses of a hive.
type Hive struct {
	Name    string
	Address string // host:port of its RPC port
	Suspect bool   // its connection is broken or silent
}

// Holding is a hive's answer about a file.
type Holding struct {
	Whole      bool
	HaveBytes  int64 // counted from the file's beginning
	FromOrigin bool  // it is fetching the file from the origin
	Fetching   bool  // it is fetching the file
}

// Board tracks which hives have or fetch which file: soft state of the leader. It is safe for
// concurrent use.
type Board struct {
	// look finds a hive that is not down. It must not call the Board.
	look func(hive string) (Hive, bool)

	mu    sync.Mutex // guards below
	files map[string]*file
	swept time.Time // when unused files were last dropped
}

// NewBoard returns an empty board. look finds a hive of the registry that is not down.
func NewBoard(look func(hive string) (Hive, bool)) *Board {
	return &Board{look: look, files: map[string]*file{}}
}

// file holds what the board knows about one file.
type file struct {
	asked   chan struct{} // closed once the hives were asked
	holders map[string]bool
	claims  map[string]*claim // by hive
	lease   string            // the hive that fetches the file from the origin; empty: none
	touched time.Time
}

type claim struct {
	Claim
	at   time.Time // time of the last renewal
	grew time.Time // when HaveBytes last grew or the lease was granted
}

// Begin reports whether the caller must ask the hives for the file, since nobody has recently; if
// so, the caller asks them and then calls Asked. Otherwise asked closes when the caller that asks
// has called Asked. Errors: Overloaded.
func (b *Board) Begin(now time.Time, digest string) (ask bool, asked <-chan struct{}, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if f, ok := b.files[digest]; ok && now.Sub(f.touched) <= keepFile {
		return false, f.asked, nil
	}
	if now.Sub(b.swept) > keepFile {
		b.swept = now
		for d, f := range b.files {
			if now.Sub(f.touched) > keepFile {
				f.doneLocked()
				delete(b.files, d)
			}
		}
	}
	if old, ok := b.files[digest]; ok {
		old.doneLocked()
		delete(b.files, digest)
	}
	if len(b.files) >= maxFiles {
		return false, nil, core.Errorf(core.Overloaded, "%d files are on their way", maxFiles)
	}
	f := &file{asked: make(chan struct{}), holders: map[string]bool{}, claims: map[string]*claim{}, touched: now}
	b.files[digest] = f
	return true, f.asked, nil
}

// Asked records the hives' answers, by node ID. A claim made in the meantime is newer and wins.
func (b *Board) Asked(now time.Time, digest string, answers map[string]Holding) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f, ok := b.files[digest]
	if !ok {
		return
	}
	for _, hive := range sortedKeys(answers) {
		h := answers[hive]
		if _, claimed := f.claims[hive]; claimed {
			continue
		}
		switch {
		case h.Whole:
			f.holders[hive] = true
		case h.Fetching:
			c := &claim{Claim: Claim{Hive: hive, Digest: digest, HaveBytes: h.HaveBytes, Stage: FromHive}, at: now, grew: now}
			if h.FromOrigin {
				c.Stage = FromOrigin
				if f.lease == "" {
					f.lease = hive
				}
			}
			f.claims[hive] = c
		}
	}
	f.doneLocked()
}

// doneLocked wakes the callers that wait for the hives' answers.
func (f *file) doneLocked() {
	select {
	case <-f.asked:
	default:
		close(f.asked)
	}
}

// Clear forgets everything: for a node that lost or gained the leadership.
func (b *Board) Clear() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, f := range b.files {
		f.doneLocked()
	}
	clear(b.files)
}

// Claim records a claim and returns the plan for its hive. Errors: Overloaded for too many files at
// once, Unavailable if Begin has not been called.
func (b *Board) Claim(now time.Time, c Claim) (Plan, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f, ok := b.files[c.Digest]
	if !ok && (c.Stage == Whole || c.Stage == Over) {
		return Plan{}, nil // later claimers ask the hives again
	}
	if !ok {
		return Plan{}, core.Errorf(core.Unavailable, "nothing is known of this file yet")
	}
	f.touched = now
	b.expireLocked(f, now)
	if c.Stage == Whole || c.Stage == Over {
		delete(f.claims, c.Hive)
		if f.lease == c.Hive {
			f.lease = ""
		}
		delete(f.holders, c.Hive)
		if c.Stage == Whole && !c.Mute {
			f.holders[c.Hive] = true
		}
		return Plan{}, nil
	}
	delete(f.holders, c.Hive) // otherwise it would not ask
	if err := b.noteLocked(f, now, c); err != nil {
		return Plan{}, err
	}
	if f.lease == c.Hive && (c.NoOrigin || c.Mute || c.Stage != FromOrigin) {
		f.lease = "" // it is not fetching: it restarted or switched to another source
	}
	return b.planLocked(f, now, c), nil
}

// noteLocked records the claim.
func (b *Board) noteLocked(f *file, now time.Time, c Claim) error {
	old, ok := f.claims[c.Hive]
	if !ok {
		n := 0
		for _, other := range b.files {
			if other.claims[c.Hive] != nil {
				n++
			}
		}
		if n >= maxFilesPerHive {
			return core.Errorf(core.Overloaded, "hive %s fetches %d files", c.Hive, n)
		}
		old = &claim{grew: now}
		f.claims[c.Hive] = old
	}
	if c.HaveBytes > old.HaveBytes {
		old.grew = now
	}
	old.Claim, old.at = c, now
	return nil
}

// expireLocked drops claims that were not renewed.
func (b *Board) expireLocked(f *file, now time.Time) {
	for hive, c := range f.claims {
		h, there := b.look(hive)
		if age := now.Sub(c.at); !there || age > ClaimTTL || h.Suspect && age > suspectTTL {
			delete(f.claims, hive)
		}
	}
	if l := f.claims[f.lease]; l == nil || now.Sub(l.grew) > stallAfter {
		f.lease = ""
	}
}

func (b *Board) planLocked(f *file, now time.Time, c Claim) Plan {
	p := Plan{Seeders: b.seedersLocked(f, c), Again: RenewEvery}
	if c.Stage == FromOrigin {
		// The hive claims to be at the origin: if no other hive is, it gets the lease, unless it
		// makes no progress.
		if f.lease == "" && !c.Mute && now.Sub(f.claims[c.Hive].grew) <= stallAfter {
			f.lease = c.Hive
		}
		p.Origin = true
		return p
	}
	if f.lease != "" {
		h, _ := b.look(f.lease)
		p.Waiting = h.Name
	}
	if c.Stage == FromHive || len(p.Seeders) > 0 {
		return p
	}
	p.Again = askAgain
	switch {
	case c.Mute && !c.NoOrigin:
		p.Origin = true // no hive could read the file from this one
	case c.NoOrigin:
		p.Nobody = f.lease == "" && !b.hopeLocked(f, c)
	case f.lease == "":
		f.lease = c.Hive
		f.claims[c.Hive].grew = now
		p.Origin = true
	}
	if p.Origin {
		p.Waiting, p.Again = "", RenewEvery
	}
	return p
}

// hopeLocked reports whether another hive may still go to the origin.
func (b *Board) hopeLocked(f *file, c Claim) bool {
	for hive, other := range f.claims {
		if hive != c.Hive && !other.NoOrigin && !slices.Contains(c.Avoid, hive) {
			return true
		}
	}
	return false
}

// seedersLocked returns the hives with bytes that c's hive lacks, in the order in which to ask
// them. It avoids cycles: a hive reads only from a hive that has more than itself, or from the one
// at the origin, which reads from none.
func (b *Board) seedersLocked(f *file, c Claim) []Seeder {
	type candidate struct {
		Seeder
		cost int
		have int64
	}
	load := map[string]int{}
	for hive, other := range f.claims {
		if hive != c.Hive && other.Source != "" {
			load[other.Source]++
		}
	}
	var all []candidate
	add := func(hive string, cost int, have int64) {
		h, there := b.look(hive)
		if hive == c.Hive || !there || h.Suspect || h.Address == "" || slices.Contains(c.Avoid, hive) {
			return
		}
		all = append(all, candidate{Seeder{Hive: hive, Name: h.Name, Address: h.Address}, load[hive] + cost, have})
	}
	for hive := range f.holders {
		add(hive, 0, 1<<62)
	}
	for hive, other := range f.claims {
		if !other.Mute && (other.HaveBytes > c.HaveBytes || hive == f.lease) {
			add(hive, partialSurcharge, other.HaveBytes)
		}
	}
	slices.SortFunc(all, func(x, y candidate) int {
		return cmp.Or(cmp.Compare(x.cost, y.cost), cmp.Compare(y.have, x.have), cmp.Compare(x.Hive, y.Hive))
	})
	var out []Seeder
	for _, x := range all[:min(len(all), maxSeeders)] {
		out = append(out, x.Seeder)
	}
	return out
}

func sortedKeys[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}
