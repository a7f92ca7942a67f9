package rpc

import (
	"container/list"
	"net"
	"net/netip"
)

// crowd holds at most max members in the order of arrival. When it is full, a newcomer replaces the
// oldest member of the host with the most members, so that one host crowds out only itself. It is
// not safe for concurrent use.
type crowd[T any] struct {
	max   int
	order *list.List // elements are member[T], oldest first
	hosts map[string]int
}

type member[T any] struct {
	host  string
	value T
}

func newCrowd[T any](most int) *crowd[T] {
	return &crowd[T]{max: most, order: list.New(), hosts: map[string]int{}}
}

// enter adds a member. It returns the evicted one, if any; the caller closes it.
func (c *crowd[T]) enter(host string, value T) (place *list.Element, out T, evicted bool) {
	if c.order.Len() >= c.max {
		out, evicted = c.evict()
	}
	c.hosts[host]++
	return c.order.PushBack(member[T]{host, value}), out, evicted
}

// leave frees a place. It may be called more than once, and after an eviction.
func (c *crowd[T]) leave(place *list.Element) {
	before := c.order.Len()
	m, ok := c.order.Remove(place).(member[T])
	if !ok || c.order.Len() == before {
		return // it left before
	}
	if c.hosts[m.host]--; c.hosts[m.host] == 0 {
		delete(c.hosts, m.host)
	}
}

// evict removes the oldest member of the host with the most members. It returns false if the crowd
// is empty.
func (c *crowd[T]) evict() (out T, ok bool) {
	most := 0
	for _, n := range c.hosts {
		most = max(most, n)
	}
	for place := c.order.Front(); place != nil; place = place.Next() {
		if m, ok := place.Value.(member[T]); ok && c.hosts[m.host] == most {
			c.leave(place)
			return m.value, true
		}
	}
	return out, false
}

// hostOf returns the key by which connections are counted: the address, or for IPv6 its /64, which
// one machine usually has to itself.
func hostOf(a net.Addr) string {
	if a == nil {
		return ""
	}
	host, _, err := net.SplitHostPort(a.String())
	if err != nil {
		return a.String()
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return host
	}
	if ip = ip.Unmap(); ip.Is6() {
		if p, err := ip.WithZone("").Prefix(64); err == nil {
			return p.String()
		}
	}
	return ip.String()
}
