package gossip

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/memberlist"
	"github.com/shoenig/test/must"
	"google.golang.org/protobuf/proto"

	"github.com/rbee-project/rbee/core/coretest/gossipnet"
	gossipv1 "github.com/rbee-project/rbee/proto/gossip/v1"
)

func fullMember() Member {
	return Member{
		ID: "0a0b0c0d", Name: "box", Queen: true, Hive: true, RPCAddress: "10.0.0.1:7834", HTTPAddress: "10.0.0.1:7833", Version: "1.2.3", FSM: 2,
		BootstrapExpect: 3, RaftID: "0a0b0c0d.01020304", HasState: true, Incarnation: 9,
	}
}

func TestMetaRoundTrip(t *testing.T) {
	t.Parallel()
	b, err := fullMember().encode()
	must.NoError(t, err)
	must.LessEq(t, memberlist.MetaMaxSize, len(b))
	must.Eq(t, memberlist.MetaMaxSize, maxMetaBytes)
	m, err := decodeMember("0a0b0c0d", b)
	must.NoError(t, err)
	must.Eq(t, fullMember(), m)
	_, err = decodeMember("ffffffff", b)
	must.Error(t, err)
	_, err = decodeMember("0a0b0c0d", b[:len(b)-1])
	must.Error(t, err)
	_, err = decodeMember("0a0b0c0d", make([]byte, 513))
	must.Error(t, err)
}

func FuzzDecodeMember(f *testing.F) {
	b, err := fullMember().encode()
	must.NoError(f, err)
	f.Add("0a0b0c0d", b)
	f.Add("", []byte{})
	f.Add("x", bytes.Repeat([]byte{0xff}, 512))
	f.Fuzz(func(t *testing.T, name string, meta []byte) {
		m, err := decodeMember(name, meta)
		if err != nil {
			return
		}
		if m.ID != name || m.check() != nil || len(meta) > maxMetaBytes {
			t.Fatalf("%+v was taken as %q", m, name)
		}
		if again, err := m.encode(); err == nil {
			if n, err := decodeMember(name, again); err != nil || n != m {
				t.Fatalf("%+v became %+v, %v", m, n, err)
			}
		}
	})
}

// The pool survives whatever memberlist passes it, in any order.
func FuzzDelegate(f *testing.F) {
	b, err := fullMember().encode()
	must.NoError(f, err)
	f.Add("0a0b0c0d", b, []byte{10, 1, 'x', 16, 3}, []byte{10, 5, 10, 1, 'x', 16, 3})
	f.Add("x", []byte{}, []byte("garbage"), []byte("garbage"))
	f.Fuzz(func(t *testing.T, name string, meta, note, state []byte) {
		p := idlePool()
		d := delegate{p}
		n := &memberlist.Node{Name: name, Addr: []byte{10, 0, 0, 1}, Port: 1, Meta: meta}
		if d.NotifyAlive(n) == nil {
			d.NotifyJoin(n)
		}
		d.NotifyUpdate(n)
		d.NotifyMsg(note)
		d.MergeRemoteState(state, true)
		d.NotifyConflict(n, n)
		_ = d.NotifyMerge([]*memberlist.Node{n})
		d.NotifyLeave(n)
		d.NotifyLeave(n)
		d.MergeRemoteState(d.LocalState(false), false)
		d.GetBroadcasts(2, 1000)
		if len(p.Members()) > 2 || len(p.left) > 1 {
			t.Fatalf("%d members, %d notes", len(p.Members()), len(p.left))
		}
	})
}

func FuzzPeers(f *testing.F) {
	f.Add([]byte(`{"starts":3,"peers":[{"id":"a","address":"10.0.0.1:1","queen":true},{"id":"b","address":"nowhere"}]}`))
	f.Add([]byte("}garbage"))
	f.Add([]byte(`{"peers":null}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		must.NoError(t, os.WriteFile(filepath.Join(dir, peersName), data, 0o600))
		p, err := openPeers(dir, hclog.NewNullLogger())
		must.NoError(t, err)
		for _, a := range p.addresses() {
			if _, _, err := splitAddress(a); err != nil && !strings.HasSuffix(a, ":0") {
				t.Fatalf("remembers %q", a)
			}
		}
		p.save([]peer{{ID: "z", Address: "10.0.0.9:1"}})
		must.LessEq(t, maxPeers, len(p.addresses()))
		again, err := openPeers(dir, hclog.NewNullLogger())
		must.NoError(t, err)
		must.SliceContains(t, again.addresses(), "10.0.0.9:1")
	})
}

func TestPeersAreBoundedQueensFirst(t *testing.T) {
	t.Parallel()
	p, err := openPeers("", hclog.NewNullLogger())
	must.NoError(t, err)
	var all []peer
	for i := range 1000 {
		all = append(all, peer{ID: string(rune('a' + i)), Address: joinIP([]byte{10, 0, byte(i >> 8), byte(i)}, 1), Queen: i >= 997})
	}
	p.save(all)
	got := p.addresses()
	must.Len(t, maxPeers, got)
	for _, queen := range []string{"10.0.3.229:1", "10.0.3.230:1", "10.0.3.231:1"} {
		must.SliceContains(t, got[:3], queen)
	}
	p.forgetAll()
	must.SliceEmpty(t, p.addresses())
}

func TestSplitAddress(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"10.0.0.1": "10.0.0.1|7835", "10.0.0.1:9": "10.0.0.1|9", "queen": "queen|7835", "queen.lan:9": "queen.lan|9", "fe80::1": "fe80::1|7835",
		"[fe80::1]": "fe80::1|7835", "[fe80::1]:9": "fe80::1|9", "": "", ":9": "", "a:0": "", "a:b": "", "a:b:c": "", "a b": "", "name/10.0.0.1": "", "a:99999": "",
	} {
		host, port, err := splitAddress(in)
		if want == "" {
			must.Error(t, err, must.Sprint(in))
			continue
		}
		must.NoError(t, err, must.Sprint(in))
		must.Eq(t, want, host+"|"+port)
	}
}

// While keys change, goroutines that decrypt with an earlier slice still see whole keys; the race
// detector checks it.
func TestChangeRingWhileOthersRead(t *testing.T) {
	t.Parallel()
	k := func(b byte) []byte { return bytes.Repeat([]byte{b}, 32) }
	ring, err := memberlist.NewKeyring(nil, k(1))
	must.NoError(t, err)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
			}
			for _, key := range ring.GetKeys() {
				if len(key) != 32 || key[0] != key[31] {
					panic("half a key")
				}
			}
		}
	}()
	for range 10 {
		for _, want := range []Keys{{k(1), k(2), k(3), k(4)}, {k(2), k(1), k(4)}, {k(4), k(2)}, {k(5)}, {k(5), k(6), k(1)}, {k(1)}} {
			must.NoError(t, changeRing(ring, want))
			got := slices.Clone(ring.GetKeys())
			must.Eq(t, want[0], got[0])
			must.SliceContainsAll(t, [][]byte(want), got)
		}
	}
	close(stop)
	<-done
}

func TestLibraryLogIsLevelledAndBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		l := libraryLog(hclog.New(&hclog.LoggerOptions{Output: &b, Level: hclog.Info}), nil)
		l.Print("[DEBUG] memberlist: a detail")
		l.Print("[INFO] memberlist: an event")
		must.Eq(t, "", b.String())
		l.Print("[ERR] memberlist: a packet was bad")
		l.Print("no level")
		must.StrContains(t, b.String(), "[WARN]  memberlist: a packet was bad")
		must.StrContains(t, b.String(), "[WARN]  no level")
		must.StrNotContains(t, b.String(), "[ERROR]")
		for i := range 100_000 {
			l.Print("[ERR] memberlist: garbage " + strings.Repeat("x", i%1000))
		}
		must.LessEq(t, logBurst+2, strings.Count(b.String(), "\n"))
		time.Sleep(logPeriod)
		l.Print("[WARN] memberlist: later")
		must.StrContains(t, b.String(), "left out: count=")
		must.StrContains(t, b.String(), "later")
	})
}

// A lasting problem is logged once a minute, with a count.
func TestLibraryLogRepeats(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		l := libraryLog(hclog.New(&hclog.LoggerOptions{Output: &b, Level: hclog.Info, DisableTime: true}), nil)
		for i := range 5 * 60 {
			l.Printf("[ERR] memberlist: Failed to send gossip to 10.0.0.%d:7835: write udp %d", i%200, i)
			time.Sleep(time.Second)
		}
		lines := strings.Split(strings.TrimSpace(b.String()), "\n")
		must.Len(t, 5, lines)
		must.StrContains(t, lines[4], "repeated=59")
	})
}

// The library prints the bytes it received: they must not reach the log, and nodes appear with
// their names.
func TestLibraryLogIsReadable(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	names := func(id string) string { return map[string]string{"0a0b0c0d": "ant"}[id] }
	l := libraryLog(hclog.New(&hclog.LoggerOptions{Output: &b, Level: hclog.Info, DisableTime: true}), names)
	meta, err := fullMember().encode()
	must.NoError(t, err)
	l.Printf("[WARN] memberlist: Refuting an alive message for '%s' (%v:%d) meta:(%v VS %v), vsn:(%v VS %v)", "0a0b0c0d", net.IP{10, 0, 0, 1}, 7835, meta, meta, []byte{1, 5, 2, 2, 5, 2}, []byte{1, 5, 2, 2, 5, 2})
	l.Printf("[ERR] memberlist: Conflicting address. Old state: %s", string(meta)+"\x00\xff\x1b[2J")
	l.Printf("[ERR] memberlist: discarding packet with unacceptable label %q: %s", string(meta), strings.Repeat("long ", 1000))
	must.StrContains(t, b.String(), "for 'ant (0a0b0c0d)' (10.0.0.1:7835)")
	must.StrContains(t, b.String(), "vsn:((6 bytes) VS (6 bytes))")
	for line := range strings.Lines(b.String()) {
		must.Less(t, maxLine+20, utf8.RuneCountInString(line))
		for _, r := range strings.TrimSuffix(line, "\n") {
			must.True(t, unicode.IsPrint(r), must.Sprintf("%q", r))
		}
	}
}

// A dropped line is never formatted: otherwise anyone could cause that work by sending packets.
func TestLibraryLogDropsFirst(t *testing.T) {
	t.Parallel()
	made := 0
	names := func(string) string { made++; return "" }
	l := libraryLog(hclog.New(&hclog.LoggerOptions{Output: io.Discard, Level: hclog.Info}), names)
	for i := range 1000 {
		l.Printf("[ERR] memberlist: garbage from '0a0b0c0d' %d", i)
		l.Printf("[DEBUG] memberlist: garbage from '0a0b0c0d' %d", i)
	}
	must.Eq(t, 1, made)
	for i := range 1000 {
		l.Printf("[ERR] memberlist: garbage of kind %s from '0a0b0c0d'", strings.Repeat("x", i+1))
	}
	must.Eq(t, logBurst, made)
}

// idlePool returns a pool that is not run.
func idlePool() *Pool {
	p := &Pool{
		self: Member{ID: "ffffffff"}, members: map[string]*entry{}, left: map[string]uint64{}, changed: make(chan struct{}),
		wake: make(chan struct{}, 1), log: hclog.NewNullLogger(), peers: &peerFile{},
		deaf: map[string]*deaf{},
	}
	p.opts.Self = p.self
	p.leaves = &memberlist.TransmitLimitedQueue{RetransmitMult: retransmitMult, NumNodes: p.size}
	return p
}

// When a large part of the pool dies at once, not every death is verified.
func TestManyDeathsBelieved(t *testing.T) {
	t.Parallel()
	p := idlePool()
	d := delegate{p}
	var nodes []*memberlist.Node
	for i := range maxLooking + 10 {
		m := Member{ID: string(rune('A' + i)), Hive: true, Incarnation: 1}
		meta, err := m.encode()
		must.NoError(t, err)
		n := &memberlist.Node{Name: m.ID, Addr: []byte{10, 0, 0, byte(i)}, Port: 1, Meta: meta}
		must.NoError(t, d.NotifyAlive(n))
		d.NotifyJoin(n)
		nodes = append(nodes, n)
	}
	changed := p.Changed()
	for _, n := range nodes {
		d.NotifyLeave(n)
	}
	failed := 0
	for _, m := range p.Members() {
		if m.Status == Failed {
			failed++
		}
	}
	must.Eq(t, 10, failed)
	must.Len(t, maxLooking, p.deaths)
	<-changed

	// A verification whose node has returned is discarded: its result is not believed.
	first := p.deaths[0]
	d.NotifyJoin(nodes[0])
	must.Eq(t, 0, p.members[first.id].doubt)
	must.False(t, p.doubts(first))
	d.NotifyLeave(nodes[0]) // a second death gets its own verification
	must.False(t, p.doubts(first))
}

// An attacker with the key forges members and their leaves without end: the pool keeps a bounded
// number and still hears the known nodes. Not parallel: it measures the heap.
func TestForgedMembersBounded(t *testing.T) {
	p := idlePool()
	d := delegate{p}
	join := func(id string, incarnation uint64) error {
		m := Member{ID: id, Name: strings.Repeat("n", maxNameBytes), Hive: true, RPCAddress: strings.Repeat("a", 200), Incarnation: incarnation}
		meta, err := m.encode()
		must.NoError(t, err)
		n := &memberlist.Node{Name: id, Addr: []byte{10, 0, 0, 1}, Port: 1, Meta: meta}
		if err := d.NotifyAlive(n); err != nil {
			return err
		}
		d.NotifyJoin(n)
		return nil
	}
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	must.NoError(t, join("known", 1))
	refused := 0
	for i := range 50_000 {
		id := fmt.Sprintf("forged%d", i)
		if join(id, 1) != nil {
			refused++
		}
		l, err := proto.Marshal(&gossipv1.Leave{Id: id, Incarnation: 1})
		must.NoError(t, err)
		d.NotifyMsg(l)
	}
	must.Eq(t, 50_000-maxMembers+1, refused)
	must.Len(t, maxMembers+1, p.Members()) // plus this node
	must.LessEq(t, maxMembers, len(p.left))
	must.LessEq(t, maxMembers, p.leaves.NumQueued())
	if after := heap(); after > before {
		must.Less(t, 32<<20, after-before)
	}
	must.NoError(t, join("known", 2))
	known, _ := p.Member("known")
	must.Eq(t, 2, known.Incarnation)
	runtime.KeepAlive(p)

	// Nodes of the registry still get a place, and strangers no more than before.
	must.Error(t, join("0a0b0c0d", 1))
	p.Expect([]string{"0a0b0c0d", "0a0b0c0e", "known"})
	must.NoError(t, join("0a0b0c0d", 1))
	must.NoError(t, join("0a0b0c0e", 1))
	_, there := p.Member("0a0b0c0d")
	must.True(t, there)
	must.NoError(t, join("one more for the place of a known one", 1))
	must.Error(t, join("stranger", 1))
}

// An attacker with the key forges an incarnation of this node, so that the others refuse its own as
// outdated. The node moves to a higher one, also at its next start; it can exceed every forged one.
func TestForgedIncarnation(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		start := func() *Pool {
			p, err := New(Options{
				Self: Member{ID: "0a0b0c0d", Queen: true}, Keys: Keys{bytes.Repeat([]byte{1}, 32)}, ClusterID: "c", Dir: dir,
				Transport: gossipnet.New(1).Listen("10.0.0.1:7835"),
			})
			must.NoError(t, err)
			p.self.GossipAddress = "10.0.0.1:7835"
			return p
		}
		p := start()
		forge := func(address string, incarnation uint64) error {
			m := p.Self()
			m.Incarnation = incarnation
			meta, err := m.encode()
			must.NoError(t, err)
			return delegate{p}.NotifyAlive(&memberlist.Node{Name: m.ID, Addr: net.ParseIP(address), Port: 7835, Meta: meta})
		}
		before := p.Self().Incarnation
		must.NoError(t, forge("10.0.0.9", before+1000)) // a twin is a different case
		must.Eq(t, before, p.Self().Incarnation)
		must.NoError(t, forge("10.0.0.1", before+1000))
		must.Eq(t, before+1001, p.Self().Incarnation)
		told, err := decodeMember("0a0b0c0d", delegate{p}.NodeMeta(0))
		must.NoError(t, err)
		must.Eq(t, before+1001, told.Incarnation)
		must.Error(t, forge("10.0.0.1", math.MaxUint64))
		must.Eq(t, before+1001, p.Self().Incarnation)
		p.peers.save(nil)
		must.NoError(t, p.Close())
		p = start()
		must.Greater(t, before+1001, p.Self().Incarnation)
		must.NoError(t, p.Close())
	})
}
