package gateway

import (
	"net/http"
	"net/netip"
	"sync"
	"time"
)

const (
	maxWrong    = 20          // wrong tokens from one address within wrongWindow
	wrongWindow = time.Minute // from the first of them
	maxGuessers = 4096        // addresses remembered
)

// guesses counts wrong tokens by address, so that a client that sends many of them is told to wait.
// It changes the answers, not the checks: a valid token from the same address is admitted. Memory
// is bounded as well: with very many addresses some are forgotten too early.
type guesses struct {
	mu     sync.Mutex // guards below
	wrongs map[netip.Prefix]wrongs
}

// wrongs are the wrong tokens of one address.
type wrongs struct {
	first time.Time
	n     int
}

func newGuesses() *guesses { return &guesses{wrongs: map[netip.Prefix]wrongs{}} }

// wrong counts a wrong token and returns how long the client must wait before the next one; 0: no
// wait.
func (g *guesses) wrong(from netip.Prefix, now time.Time) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	w, ok := g.wrongs[from]
	if !ok || now.Sub(w.first) >= wrongWindow {
		w = wrongs{first: now}
	}
	if !ok && len(g.wrongs) >= maxGuessers {
		g.makeRoomLocked(now)
	}
	w.n = min(w.n+1, maxWrong+1)
	g.wrongs[from] = w
	if w.n <= maxWrong {
		return 0
	}
	return w.first.Add(wrongWindow).Sub(now)
}

// makeRoomLocked looks at a few arbitrary addresses and forgets those whose window has ended, or
// else the one with the fewest wrong tokens.
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

// clientOf returns the origin of a request: an IPv4 address, or the /64 of an IPv6 address, which
// one customer gets. Unix sockets share one.
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
