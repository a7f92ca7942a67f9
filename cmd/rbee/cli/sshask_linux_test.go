package cli

import (
	"slices"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
)

// A person at a terminal judges an unknown host key: yes installs with that fingerprint, any other
// answer installs nothing.
func TestUnknownHostKeyOnATerminal(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, keys string
		code       int
		see        string
	}{
		{"yes", "yes\r", 0, "Hive box is installed on box"},
		{"enter", "\r", 1, "nothing was done"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			q := newFakeQueen(t)
			r, keys, screen := onTerminal(t, q.http.URL, "hive", "install", "box")
			eventually(t, contains(screen.String, "The key of box is not known: "+fakeFingerprint))
			eventually(t, contains(screen.String, "Is it the right machine? [y/N]"))
			_, err := keys.WriteString(c.keys)
			must.NoError(t, err)
			must.Eq(t, c.code, r.code(t), must.Sprint(screen.String()))
			eventually(t, contains(screen.String, c.see))
			q.mu.Lock()
			defer q.mu.Unlock()
			i := slices.IndexFunc(q.requests, func(r core.Request) bool { return r.Operation == core.OpHiveInstall })
			must.Eq(t, c.code == 0, i >= 0)
			if i >= 0 {
				must.Eq(t, fakeFingerprint, q.requests[i].HostKey)
				must.False(t, q.requests[i].AcceptNew)
			}
		})
	}
}
