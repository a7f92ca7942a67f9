package origin_test

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/net/dns/dnsmessage"
)

// dns is an in-memory name server. It returns a name's answers in turn and repeats the last one; a
// name without answers does not exist.
type dns struct {
	mu      sync.Mutex // guards below
	answers map[string][][]netip.Addr
	asked   map[string]int
}

func newDNS(answers map[string][][]netip.Addr) *dns {
	return &dns{answers: answers, asked: map[string]int{}}
}

func addrs(texts ...string) []netip.Addr {
	var out []netip.Addr
	for _, text := range texts {
		out = append(out, netip.MustParseAddr(text))
	}
	return out
}

// resolver returns the client's side. Its connections are pipes that carry DNS in its TCP framing.
func (d *dns) resolver(t *testing.T) *net.Resolver {
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait)
	return &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		ours, theirs := net.Pipe()
		wg.Go(func() {
			defer theirs.Close()
			for d.answer(theirs) == nil {
			}
		})
		return ours, nil
	}}
}

func (d *dns) answer(conn net.Conn) error {
	var size [2]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil {
		return err
	}
	query := make([]byte, binary.BigEndian.Uint16(size[:]))
	if _, err := io.ReadFull(conn, query); err != nil {
		return err
	}
	var m dnsmessage.Message
	if err := m.Unpack(query); err != nil {
		return err
	}
	q := m.Questions[0]
	reply := dnsmessage.Message{Header: dnsmessage.Header{ID: m.ID, Response: true, RecursionAvailable: true}, Questions: m.Questions}
	found, known := d.next(strings.TrimSuffix(q.Name.String(), "."), q.Type)
	if !known {
		reply.RCode = dnsmessage.RCodeNameError
	}
	for _, a := range found {
		h := dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, TTL: 0}
		switch {
		case q.Type == dnsmessage.TypeA && a.Is4():
			reply.Answers = append(reply.Answers, dnsmessage.Resource{Header: h, Body: &dnsmessage.AResource{A: a.As4()}})
		case q.Type == dnsmessage.TypeAAAA && !a.Is4():
			reply.Answers = append(reply.Answers, dnsmessage.Resource{Header: h, Body: &dnsmessage.AAAAResource{AAAA: a.As16()}})
		}
	}
	packed, err := reply.Pack()
	if err != nil {
		return err
	}
	_, err = conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(packed))), packed...))
	return err
}

// next returns a name's current answer. An A question advances to the next answer; an AAAA question
// does not.
func (d *dns) next(name string, kind dnsmessage.Type) ([]netip.Addr, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	turns, ok := d.answers[name]
	if !ok {
		return nil, false
	}
	n := min(d.asked[name], len(turns)-1)
	if kind == dnsmessage.TypeA {
		d.asked[name]++
	}
	return turns[n], true
}

func TestDNS(t *testing.T) {
	t.Parallel()
	r := newDNS(map[string][][]netip.Addr{"a.example": {addrs("192.0.2.1"), addrs("192.0.2.2", "2001:db8::1")}}).resolver(t)
	first, err := r.LookupNetIP(t.Context(), "ip4", "a.example")
	must.NoError(t, err)
	must.Eq(t, addrs("192.0.2.1"), first)
	second, err := r.LookupNetIP(t.Context(), "ip4", "a.example")
	must.NoError(t, err)
	must.Eq(t, addrs("192.0.2.2"), second)
	_, err = r.LookupNetIP(t.Context(), "ip4", "b.example")
	must.ErrorContains(t, err, "no such host")
}
