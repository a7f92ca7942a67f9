package agent

import (
	"context"
	"crypto/tls"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/pki"
)

// twinTimeout bounds the probe for another agent with this node's identity. Usually there is none,
// and the connection is refused at once.
const twinTimeout = 500 * time.Millisecond

// noTwin refuses to start a second agent with one identity, as from a copy of a data folder: two
// queens with one vote could make two leaders. It probes before this agent itself listens. Errors:
// InUse.
func noTwin(ctx context.Context, id *pki.Identity) error {
	ctx, cancel := context.WithTimeout(ctx, twinTimeout)
	defer cancel()
	n := id.Node()
	role := core.RoleHive
	if n.Has(core.RoleQueen) {
		role = core.RoleQueen
	}
	d := tls.Dialer{Config: id.ClientConfig("h2", role, n.ID)}
	conn, err := d.DialContext(ctx, "tcp", id.RPCAddress())
	if err != nil {
		return nil // no agent answers, or an unrelated process does
	}
	conn.Close()
	return core.Errorf(core.InUse, "another agent runs with this machine's identity, node %s, at %s", n.ID, id.RPCAddress()).Hint(
		"One of the two data folders is a copy of the other. Stop that agent, or give this machine an empty data_dir and a join token of its own.")
}
