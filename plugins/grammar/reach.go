package grammar

// alive reports whether r matches any text. It reports false when the work is exhausted.
func (s *rxSet) alive(r rx) bool {
	if l := s.nodes[r].live; l != 0 {
		return l > 0
	}
	// A depth-first search for an expression that is known to be live or matches the empty text.
	type step struct {
		at   rx
		next int
	}
	seen := map[rx]bool{r: true}
	path := []step{{at: r}}
	for len(path) > 0 {
		if s.exhausted() {
			return false
		}
		top := &path[len(path)-1]
		if n := &s.nodes[top.at]; n.nullable || n.live > 0 {
			for _, p := range path {
				s.nodes[p.at].live = 1
			}
			return true
		}
		e := s.edges(top.at)
		if top.next == len(e.next) {
			path = path[:len(path)-1]
			continue
		}
		d := e.next[top.next]
		top.next++
		if !seen[d] && s.nodes[d].live >= 0 {
			seen[d] = true
			path = append(path, step{at: d})
		}
	}
	for d := range seen { // everything reachable was visited without a match
		s.nodes[d].live = -1
	}
	return false
}

// free reports whether every character leads from r to the same live expression.
func (s *rxSet) free(r rx) bool {
	if r == rxAll {
		return true
	}
	e := s.edges(r)
	return len(e.next) == 1 && s.alive(e.next[0])
}

// open reports whether no character leads to a dead end, neither from r nor from anything reachable
// from it, as in a search for a substring. It reports false when unsure.
func (s *rxSet) open(r rx) bool {
	if ok, known := s.opens[r]; known {
		return ok
	}
	whole := s.work
	s.work = min(whole, reachWork)
	ok := s.searchOpen(r)
	known := !s.exhausted()
	s.work += whole - min(whole, reachWork)
	if !known {
		ok = false
		if whole > reachWork {
			s.opens[r] = false
		}
	}
	return ok
}

// searchOpen searches depth first for a dead end. All expressions on the way to one lead to it.
func (s *rxSet) searchOpen(r rx) bool {
	type step struct {
		at   rx
		next int
	}
	seen := map[rx]bool{r: true}
	path := []step{{at: r}}
	for len(path) > 0 && !s.exhausted() {
		top := &path[len(path)-1]
		e := s.edges(top.at)
		if top.next == len(e.next) {
			path = path[:len(path)-1]
			continue
		}
		next := e.next[top.next]
		top.next++
		ok, known := s.opens[next]
		if known && ok || seen[next] {
			continue
		}
		if known || next == rxNone || !s.alive(next) {
			for _, x := range path {
				s.opens[x.at] = false
			}
			return false
		}
		seen[next] = true
		path = append(path, step{at: next})
	}
	for x := range seen {
		if len(path) == 0 {
			s.opens[x] = true
		}
	}
	return len(path) == 0
}

// count returns how many texts r matches, if fewer than enough.
func (s *rxSet) count(r rx, enough int) (int, bool) {
	if r == rxNone {
		return 0, true
	}
	count := 0
	type step struct {
		at  rx
		len int
	}
	queue := []step{{r, 0}}
	for i := 0; i < len(queue); i++ {
		if count >= enough || len(queue) > 1<<12 || queue[i].len > 1<<10 || s.exhausted() {
			return 0, false
		}
		if s.nullable(queue[i].at) {
			count++
		}
		e := s.edges(queue[i].at)
		for k, next := range e.next {
			if next == rxNone || !s.alive(next) {
				continue
			}
			if hi := k + 1; hi == len(e.from) || e.from[hi]-e.from[k] > 16 {
				return 0, false // many
			}
			for range e.from[k+1] - e.from[k] {
				queue = append(queue, step{next, queue[i].len + 1})
			}
		}
	}
	return count, true
}

// match reports whether r matches the whole text.
func (s *rxSet) match(r rx, text string) bool {
	for _, c := range text {
		if r = s.edges(r).by(c); r == rxNone {
			return false
		}
	}
	return s.nodes[r].nullable
}
