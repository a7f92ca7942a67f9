package membership

import (
	"net"
	"net/netip"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/raft/state"
)

// checkSameMachine refuses a machine that could not reach the cluster, or be reached: one side has
// a loopback address and the other does not. Errors: Invalid.
func (m *Members) checkSameMachine(s *state.Snapshot, n core.Node) error {
	own, ok := s.Node(nil, m.opts.ID)
	here, known := loopback(own.RPCAddress)
	there, alsoKnown := loopback(n.RPCAddress)
	switch {
	case !ok || !known || !alsoKnown || here == there:
		return nil
	case there:
		return core.Errorf(core.Invalid, "the cluster cannot reach a machine at the loopback address %s", n.RPCAddress).Hint(
			"Set bind { advertise = … } on the machine that joins to an address that the others reach it at.")
	}
	return core.Errorf(core.Invalid, "this cluster is on one machine alone: its queen %s is at the loopback address %s", own.Name, own.RPCAddress).Hint(
		"Set bind { advertise = … } on the queen to an address that the others reach it at, restart it, and join again.")
}

// loopback reports whether an address is a loopback one; known is false for a name.
func loopback(address string) (is, known bool) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false, false
	}
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.Unmap().IsLoopback(), err == nil || host == "localhost"
}
