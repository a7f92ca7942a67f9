package gateway

import (
	"fmt"
	"net"
	"os"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
)

func TestConceal(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"the worker cannot be reached: dial tcp 10.0.0.2:7834: connect: connection refused":           "the worker cannot be reached: connect: connection refused",
		"the worker cannot be reached: dial unix /var/lib/rbee/run/w1/data.sock: no such file":        "the worker cannot be reached: no such file",
		"read tcp 10.0.0.1:4711->10.0.0.2:7834: i/o timeout":                                          "i/o timeout",
		"fetch: lookup hub.example on 192.168.1.1:53: no such host":                                   "fetch: name lookup: no such host",
		"fetch: lookup hub.example: no such host":                                                     "fetch: name lookup: no such host",
		"open /home/vince/.cache/rbee/blobs/sha256-ab: permission denied":                             "open (file): permission denied",
		`model "/srv/models/a.gguf" is damaged`:                                                       `model "(file)" is damaged`,
		"hive at queen-b:7834 or [fe80::1%eth0]:7834, fd00:1:2:3::4":                                  "hive at (address) or (address), (address)",
		"socket data.sock is gone":                                                                    "socket (file) is gone",
		`Set "model" to one of those that GET /v1/models lists, or POST /v1/chat/completions.`:        `Set "model" to one of those that GET /v1/models lists, or POST /v1/chat/completions.`,
		"model rbee-tiny:42 and hf:org/repo:Q4_K_M and a/b are not here; 1/2 of them, 3 MiB at 12:30": "model rbee-tiny:42 and hf:org/repo:Q4_K_M and a/b are not here; 1/2 of them, 3 MiB at 12:30",
		"lacks 100 bytes: 500 needed, 400 of 800 free":                                                "lacks 100 bytes: 500 needed, 400 of 800 free",
	} {
		must.Eq(t, want, conceal(text))
		must.Eq(t, want, conceal(conceal(text)))
	}
}

// TestConcealedError checks that kind and hint are kept, the hint with secrets removed.
func TestConcealedError(t *testing.T) {
	t.Parallel()
	_, err := net.Dial("unix", "/nowhere/at/all.sock")
	must.Error(t, err)
	err = core.Errorf(core.Unavailable, "the worker cannot be reached: %w", fmt.Errorf("%w, see %s", err, os.DevNull)).Hint("Look at /var/log/rbee/agent.log on 10.0.0.2.")
	e, a := envelope(&concealed{err})
	must.Eq(t, 503, a.status)
	must.Eq(t, "unavailable", e.Kind)
	must.Eq(t, "Look at (file) on (address).", e.Hint)
	must.StrNotContains(t, e.Message, "nowhere")

	e, _ = envelope(err) // operators see the full text
	must.StrContains(t, e.Message, "/nowhere/at/all.sock")
}
