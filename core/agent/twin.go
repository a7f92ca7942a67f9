package agent

import (
	"context"
	"crypto/tls"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/pki"
)

// twinTimeout is how long it is looked for another agent with this node's identity. Where none is,
// the connection is refused at once as a rule.
const twinTimeout = 500 * time.Millisecond

// noTwin refuses to be a second agent with one identity, as in a copy of a data folder: two queens
// with one vote could make two leaders. It is asked before this agent listens itself. Errors:
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
		return nil // nobody is there, or somebody else
	}
	conn.Close()
	return core.Errorf(core.InUse, "another agent runs with this machine's identity, node %s, at %s", n.ID, id.RPCAddress()).Hint(
		"One of the two data folders is a copy of the other. Stop that agent, or give this machine an empty data_dir and a join token of its own.")
}
