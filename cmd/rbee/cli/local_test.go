package cli

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/client"
	"github.com/rbee-project/rbee/core/pki"
	"github.com/rbee-project/rbee/core/token"
)

// identityOf creates an identity with the roles in a new data folder.
func identityOf(t *testing.T, roles ...core.Role) (dir string, id *pki.Identity) {
	t.Helper()
	dir = t.TempDir()
	ca, err := pki.NewCA("00112233", "", time.Now())
	must.NoError(t, err)
	key, err := pki.NewKey()
	must.NoError(t, err)
	csr, err := pki.NewRequest(key, "aaaaaaaa")
	must.NoError(t, err)
	cert, _, err := ca.Sign(csr, pki.Node{Cluster: "00112233", ID: "aaaaaaaa", Roles: roles}, nil, 0, time.Now())
	must.NoError(t, err)
	id, err = pki.Create(dir, pki.Material{Name: "ant", RPCAddress: "10.0.0.1:7834", CAPEM: ca.CertPEM(), NodePEM: cert, Key: key})
	must.NoError(t, err)
	return dir, id
}

func appWith(env map[string]string) *app {
	a := newApp(build{})
	a.env = func(name string) (string, bool) {
		v, ok := env[name]
		return v, ok
	}
	return a
}

func TestRunningAddress(t *testing.T) {
	t.Parallel()
	self := os.Getpid()
	for name, tc := range map[string]struct {
		record    string
		inCluster bool
		want      string
	}{
		"alone":            {fmt.Sprintf(`{"pid":%d,"http_address":"127.0.0.1:1"}`, self), false, "http://127.0.0.1:1"},
		"in a cluster":     {fmt.Sprintf(`{"pid":%d,"http_address":"10.0.0.1:1"}`, self), true, "https://10.0.0.1:1"},
		"says its scheme":  {fmt.Sprintf(`{"pid":%d,"http_address":"10.0.0.1:1","scheme":"http"}`, self), true, "http://10.0.0.1:1"},
		"everywhere":       {fmt.Sprintf(`{"pid":%d,"http_address":"[::]:1"}`, self), true, "https://127.0.0.1:1"},
		"everywhere, IPv4": {fmt.Sprintf(`{"pid":%d,"http_address":"0.0.0.0:1"}`, self), true, "https://127.0.0.1:1"},
		"a hive alone":     {fmt.Sprintf(`{"pid":%d,"rpc_address":"0.0.0.0:1"}`, self), true, ""},
		"gone":             {`{"pid":2147483646,"http_address":"127.0.0.1:1"}`, false, ""},
		"no process":       {`{"http_address":"127.0.0.1:1"}`, false, ""},
		"no address":       {fmt.Sprintf(`{"pid":%d,"http_address":"x"}`, self), false, ""},
		"broken":           {`{`, false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			must.NoError(t, os.WriteFile(filepath.Join(dir, "agent.json"), []byte(tc.record), 0o600))
			must.Eq(t, tc.want, runningAddress(dir, tc.inCluster))
		})
	}
	must.Eq(t, "", runningAddress(t.TempDir(), true))
}

func TestTargetOfAMachineInACluster(t *testing.T) {
	t.Parallel()
	dir, id := identityOf(t, core.RoleQueen)
	env := map[string]string{"RBEE_DATA_DIR": dir, "HOME": t.TempDir()}
	got, err := appWith(env).target()
	must.NoError(t, err)
	must.Eq(t, []string{"https://127.0.0.1:7833", "https://10.0.0.1:7833"}, got.addresses)
	must.Eq(t, id.CAPEM(), got.ca)
	must.False(t, got.named)

	// A hive has no API: use the queens that it knows.
	dir, _ = identityOf(t, core.RoleHive)
	must.NoError(t, os.WriteFile(filepath.Join(dir, pki.Folder, "queens.json"), []byte(`{"queens":[{"id":"b","rpc_address":"10.0.0.2:9"},{"id":"c","rpc_address":"[fd00::3]:7834"},{"id":"d"}]}`), 0o600))
	env["RBEE_DATA_DIR"], env["RBEE_BIND_HTTP_PORT"] = dir, "9000"
	got, err = appWith(env).target()
	must.NoError(t, err)
	must.Eq(t, []string{"https://10.0.0.2:9000", "https://[fd00::3]:9000"}, got.addresses)
	must.StrContains(t, unreachable(got, nil).Error(), "this machine is a hive")

	// What the user names takes precedence; the CA of the cluster is still known.
	env["RBEE_ADDR"] = " q1:1, ,q2:2 "
	got, err = appWith(env).target()
	must.NoError(t, err)
	must.Eq(t, []string{"q1:1", "q2:2"}, got.addresses)
	must.True(t, got.named)
	must.NotNil(t, got.ca)

	// Without a cluster nothing changes.
	env["RBEE_DATA_DIR"], env["RBEE_ADDR"] = t.TempDir(), ""
	got, err = appWith(env).target()
	must.NoError(t, err)
	must.Eq(t, []string{"http://127.0.0.1:9000"}, got.addresses) // where its agent would listen
	must.Nil(t, got.ca)
	env["RBEE_BIND_HTTP_PORT"] = "0"
	got, err = appWith(env).target()
	must.NoError(t, err)
	must.Eq(t, []string{"http://127.0.0.1:1"}, got.addresses) // an unused port: not the default one, where another agent may listen
	delete(env, "RBEE_BIND_HTTP_PORT")
	got, err = appWith(env).target()
	must.NoError(t, err)
	must.Eq(t, []string{"http://127.0.0.1:7833"}, got.addresses)
}

// A machine of a cluster keeps the roles it joined with, unless they are configured: a block with
// another setting does not set its role.
func TestRolesAreTheIdentitys(t *testing.T) {
	t.Parallel()
	member, _ := identityOf(t, core.RoleHive)
	queen, _ := identityOf(t, core.RoleQueen, core.RoleHive)
	alone := t.TempDir()
	for name, tc := range map[string]struct {
		dir, env, file string
		queen, hive    bool
	}{
		"joined as a hive":         {member, "", "", false, true},
		"told otherwise":           {member, "true", "", true, true},
		"a hive's other setting":   {member, "", "hive {\n slots = 2\n}\n", false, true},
		"a queen's other setting":  {queen, "", "hive {\n download {\n  connections = 2\n }\n}\n", true, true},
		"the hive of a queen":      {queen, "", "hive {\n enabled = true\n}\n", true, true},
		"a queen that gives it up": {queen, "", "queen {\n enabled = false\n}\nhive {\n enabled = true\n}\n", false, true},
		"alone":                    {alone, "", "hive {\n slots = 2\n}\n", true, true},
		"alone, said":              {alone, "", "hive {\n enabled = true\n}\n", false, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := appWith(map[string]string{"RBEE_DATA_DIR": tc.dir, "HOME": t.TempDir(), "RBEE_QUEEN_ENABLED": tc.env})
			root := rootCommand(a)
			cmd, _, err := root.Find([]string{"agent"})
			must.NoError(t, err)
			source := &configSource{}
			if tc.file != "" {
				path := filepath.Join(t.TempDir(), "rbee.hcl")
				must.NoError(t, os.WriteFile(path, []byte(tc.file), 0o600))
				source.paths = []string{path}
			}
			cfg, diags := source.load(a, cmd, "")
			must.NoError(t, diags.Err())
			must.Eq(t, tc.queen, cfg.Queen.Enabled)
			must.Eq(t, tc.hive, cfg.Hive.Enabled)
		})
	}
}

func TestMissing(t *testing.T) {
	t.Parallel()
	s := core.Status{
		Queens: []core.Queen{{ID: "a", Gossip: "alive"}, {ID: "b", Name: "bat", Gossip: "failed"}, {ID: "c"}, {ID: "d", Gossip: "unknown"}},
		Hives:  []core.Hive{{ID: "a", Status: core.HiveReady}, {ID: "e", Name: "eel", Status: core.HiveDown}, {ID: "f", Status: core.HiveSuspect}},
	}
	must.Eq(t, []string{"hive eel (down)", "hive f (suspect)", "queen bat (gossip: failed)", "queen d (gossip: unknown)"}, missing(s))
}

// The instructions for a lost majority name the remaining queens, and no others.
func TestRecoverHint(t *testing.T) {
	t.Parallel()
	servers := fakeState().Queens
	must.StrContains(t, recoverHint(servers, servers[1]), `write [{"id": "aaaaaaaa.11111111"}] into`)
}

func TestTokenRequestIsWhatTheFlagsSay(t *testing.T) {
	t.Parallel()
	r, err := tokenRequest("join", "", nil, nil, 0, false, core.TokenRequest{})
	must.NoError(t, err)
	must.Eq(t, core.TokenRequest{Kind: core.TokenJoin, Roles: []core.Role{core.RoleHive}}, r) // the queen's default lifetime
	_, err = tokenRequest("api", "", []string{"admin", "amdin"}, nil, 0, false, core.TokenRequest{})
	must.StrContains(t, err.Error(), "amdin")
}

// No message may repeat a token.
func TestTokensAreNotRepeated(t *testing.T) {
	t.Parallel()
	_, _, text := token.New()
	a := appWith(map[string]string{"HOME": t.TempDir(), "RBEE_TOKEN": text})
	got, err := a.bearer(t.Context())
	must.NoError(t, err)
	must.Eq(t, text, got)
	a.tokenFile = filepath.Join(t.TempDir(), "token")
	must.NoError(t, os.WriteFile(a.tokenFile, []byte(text+"\n"+text+"\n"), 0o600))
	_, err = a.bearer(t.Context())
	must.Error(t, err)
	must.StrNotContains(t, err.Error(), text)
}

// Naming only a CA implies a cluster: no request, and no token, goes to a port without TLS.
func TestTargetWithOnlyACA(t *testing.T) {
	t.Parallel()
	ca, err := pki.NewCA("0123456789abcdef", "", time.Now())
	must.NoError(t, err)
	path := filepath.Join(t.TempDir(), "ca.pem")
	must.NoError(t, os.WriteFile(path, ca.CertPEM(), 0o600))
	_, _, text := token.New()
	env := map[string]string{"HOME": t.TempDir(), "RBEE_TOKEN": text, "RBEE_CACERT": path}
	a := appWith(env)
	c, err := a.connect(t.Context())
	must.NoError(t, err)
	must.Eq(t, client.DefaultSecureAddress, c.Address())
	got, err := a.target()
	must.NoError(t, err)
	must.Eq(t, []string{client.DefaultSecureAddress}, got.addresses)

	// Without a CA it is an agent to try rbee out with, which needs no token and gets none.
	delete(env, "RBEE_CACERT")
	c, err = a.connect(t.Context())
	must.NoError(t, err)
	must.Eq(t, client.DefaultAddress, c.Address())
	must.SliceEmpty(t, c.InClear())
}

// If another server has the port, no command takes it for an agent or starts one.
func TestForeignServerOnThePort(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		_, _ = io.WriteString(w, strings.Repeat("<p>welcome</p>", 1000))
	}))
	t.Cleanup(srv.Close)
	_, port, err := net.SplitHostPort(srv.Listener.Addr().String())
	must.NoError(t, err)
	for _, command := range []string{"run rbee-tiny hi", "infer --model rbee-tiny --prompt hi", "chat rbee-tiny", "ls", "status", "pull rbee-tiny"} {
		t.Run(command, func(t *testing.T) {
			t.Parallel()
			env := map[string]string{"HOME": t.TempDir(), "RBEE_BIND_HTTP_PORT": port}
			var stdout, stderr bytes.Buffer
			a := testApp(console{stdin: strings.NewReader("hi\n"), stdout: &stdout, stderr: &stderr, now: time.Now}, func(name string) (string, bool) { v, ok := env[name]; return v, ok })
			must.Eq(t, exitFailed, a.run(strings.Fields(command)))
			must.Eq(t, "", stdout.String())
			must.StrContains(t, stderr.String(), "the server at "+srv.URL+" is not rbee: it answered 200 OK with an HTML page")
			must.StrContains(t, stderr.String(), "RBEE_BIND_HTTP_PORT")
			must.Less(t, 500, stderr.Len())
			entries, err := os.ReadDir(env["HOME"])
			must.NoError(t, err)
			must.Len(t, 0, entries)
		})
	}
}

// An agent that was started in another way is not stopped, but the error explains how to.
func TestStopOfAnotherAgent(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	must.NoError(t, os.WriteFile(filepath.Join(dir, "agent.json"), fmt.Appendf(nil, `{"pid": %d}`, os.Getpid()), 0o600))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "{}") }))
	t.Cleanup(srv.Close)
	_, port, err := net.SplitHostPort(srv.Listener.Addr().String())
	must.NoError(t, err)
	for name, tc := range map[string]struct {
		env  map[string]string
		code int
		says string
	}{
		"its folder":    {map[string]string{"RBEE_DATA_DIR": dir, "RBEE_BIND_HTTP_PORT": "1"}, exitFailed, fmt.Sprintf("process %d, was not started in the background", os.Getpid())},
		"its port":      {map[string]string{"RBEE_BIND_HTTP_PORT": port}, exitFailed, srv.URL + " was not started in the background"},
		"none is there": {map[string]string{"RBEE_BIND_HTTP_PORT": "1"}, exitOK, "nothing to stop"},
	} {
		var out bytes.Buffer
		env := tc.env
		env["HOME"] = t.TempDir()
		a := testApp(console{stdout: &out, stderr: &out, now: time.Now}, func(name string) (string, bool) { v, ok := env[name]; return v, ok })
		must.Eq(t, tc.code, a.run([]string{"agent", "stop"}), must.Sprint(name, out.String()))
		must.StrContains(t, out.String(), tc.says)
	}
}

func TestHowToStop(t *testing.T) {
	t.Parallel()
	for cgroup, want := range map[string]string{
		"0::/system.slice/rbee.service\n":                                           "systemctl stop rbee.service",
		"12:memory:/system.slice/rbee.service\n0::/system.slice/rbee.service\n":     "systemctl stop rbee.service",
		"0::/user.slice/user-1000.slice/user@1000.service/app.slice/rbee.service\n": "systemctl --user stop rbee.service",
		"0::/user.slice/user-1000.slice/user@1000.service/app.slice/term-1.scope\n": "kill 42",
		"0::/user.slice/user-1000.slice/session-3.scope\n":                          "kill 42",
		"": "kill 42",
	} {
		must.StrContains(t, howToStop(42, cgroup), want)
	}
}
