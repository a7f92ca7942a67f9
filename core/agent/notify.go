package agent

import (
	"context"
	"net"
	"strings"
	"time"

	"github.com/rbee-project/rbee/core"
)

// notify sends the service manager a state, in the format of sd_notify(3): "READY=1", "STOPPING=1".
// socket is NOTIFY_SOCKET; if it is empty, notify does nothing.
func notify(ctx context.Context, socket, state string) error {
	if socket == "" {
		return nil
	}
	if name, ok := strings.CutPrefix(socket, "@"); ok {
		socket = "\x00" + name // an abstract socket
	}
	conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "unixgram", socket)
	if err != nil {
		return core.Wrap(err, core.Internal, "notify the service manager")
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Second)) // sockets support deadlines
	_, err = conn.Write([]byte(state))
	return core.Wrap(err, core.Internal, "notify the service manager")
}
