package gateway

import (
	"hash/maphash"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

const (
	maxWrong    = 20          // wrong tokens from one address within wrongWindow
	wrongWindow = time.Minute // from the first of them
	maxGuessers = 4096        // addresses that are remembered
	maxRight    = 4096        // right tokens that are remembered, by a hash of 8 bytes
)

// guesses bounds how many wrong tokens one client can have looked at. A client whose bound is reached is refused without a look, unless the token was
// right before: others behind the same address go on. Memory is bounded as well: with very many addresses some are forgotten too early.
type guesses struct {
	seed maphash.Seed

	mu     sync.Mutex // guards below
	wrongs map[netip.Prefix]wrongs
	rights map[uint64]struct{}
}

// wrongs are the wrong tokens of one address.
type wrongs struct {
	first time.Time
	n     int
}

func newGuesses() *guesses {
	return &guesses{seed: maphash.MakeSeed(), wrongs: map[netip.Prefix]wrongs{}, rights: map[uint64]struct{}{}}
}

// wait is how long a client must wait before its token is looked at; 0: not at all.
func (g *guesses) wait(from netip.Prefix, token string, now time.Time) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	w, ok := g.wrongs[from]
	if !ok || w.n < maxWrong {
		return 0
	}
	left := w.first.Add(wrongWindow).Sub(now)
	if left <= 0 {
		delete(g.wrongs, from)
		return 0
	}
	if _, ok := g.rights[maphash.String(g.seed, token)]; ok {
		return 0
	}
	return left
}

// wrong notes a wrong token.
func (g *guesses) wrong(from netip.Prefix, token string, now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.rights, maphash.String(g.seed, token)) // it was revoked
	w, ok := g.wrongs[from]
	if !ok || now.Sub(w.first) >= wrongWindow {
		w = wrongs{first: now}
	}
	if !ok && len(g.wrongs) >= maxGuessers {
		g.makeRoomLocked(now)
	}
	w.n++
	g.wrongs[from] = w
}

// makeRoomLocked looks at a few addresses, whichever they are, and forgets those whose window is over, or else the one with the fewest wrong tokens.
func (g *guesses) makeRoomLocked(now time.Time) {
	looked, forgot := 0, false
	var least netip.Prefix
	fewest := 0
	for from, w := range g.wrongs {
		if now.Sub(w.first) >= wrongWindow {
			delete(g.wrongs, from)
			forgot = true
		} else if fewest == 0 || w.n < fewest {
			least, fewest = from, w.n
		}
		if looked++; looked == 8 {
			break
		}
	}
	if !forgot {
		delete(g.wrongs, least)
	}
}

// right notes a right token.
func (g *guesses) right(token string) {
	key := maphash.String(g.seed, token)
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, ok := g.rights[key]; ok {
		return
	}
	if len(g.rights) >= maxRight {
		clear(g.rights)
	}
	g.rights[key] = struct{}{}
}

// clientOf is where a request comes from: an IPv4 address, or the 64 bits of an IPv6 address that one customer gets. Unix sockets share one.
func clientOf(r *http.Request) netip.Prefix {
	addr, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Prefix{}
	}
	ip, bits := addr.Addr().Unmap().WithZone(""), 64
	if ip.Is4() {
		bits = 32
	}
	p, _ := ip.Prefix(bits)
	return p
}
