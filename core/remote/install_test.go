package remote

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest/sshserver"
)

func TestInstallUpgradeStopStartUninstall(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	g.cluster.probing = 3
	must.NoError(t, os.MkdirAll(filepath.Join(g.home, ".local/share/other"), 0o700))
	before := g.tree()

	first, err := g.install(func(r *core.Request) { r.Name = "gpu" })
	must.NoError(t, err)
	must.Eq(t, "feedbeef", first.Hive)
	must.Len(t, 1, first.Devices)
	must.Eq(t, ServiceNone, first.Service)
	must.StrHasPrefix(t, "1.0-", first.Build)
	must.False(t, first.Already)
	must.Len(t, 1, first.Notes, must.Sprint("nothing starts it at boot: that must be said"))
	conf, err := os.ReadFile(filepath.Join(g.home, ".config/rbee/rbee.hcl"))
	must.NoError(t, err)
	must.StrContains(t, string(conf), "name      = \"gpu\"\n")
	must.Eq(t, []string{"token for hive_install box: [hive]"}, g.cluster.called())
	pid := g.cluster.alive()
	must.NotEq(t, 0, pid)
	host, ok := g.r.Hosts().Find("box")
	must.True(t, ok)
	must.Eq(t, "feedbeef", host.Hive)

	again, err := g.install()
	must.NoError(t, err)
	must.True(t, again.Already, must.Sprint("the same version: says so"))
	must.Eq(t, pid, g.cluster.alive())

	must.NoError(t, os.WriteFile(filepath.Join(g.home, ".config/rbee/rbee.hcl"), append(conf, "# mine\n"...), 0o600))
	g.r.o.Program = g.program("1.1", "b", "")
	up, err := g.install()
	must.NoError(t, err)
	must.False(t, up.Already)
	must.Eq(t, first.Build, up.Before)
	must.StrHasPrefix(t, "1.1-", up.Build)
	must.NotEq(t, pid, g.cluster.alive())
	must.Len(t, 1, g.cluster.called(), must.Sprint("an upgrade needs no token"))
	kept, err := os.ReadFile(filepath.Join(g.home, ".config/rbee/rbee.hcl"))
	must.NoError(t, err)
	must.StrContains(t, string(kept), "# mine")
	builds, err := filepath.Glob(filepath.Join(g.home, ".local/lib/rbee/*-*"))
	must.NoError(t, err)
	must.Eq(t, []string{filepath.Join(g.home, ".local/lib/rbee", up.Build)}, builds, must.Sprint("the old build is removed"))

	started, err := g.r.Start(t.Context(), request(core.OpHiveStart), g.run)
	must.NoError(t, err)
	must.True(t, started.Already)

	stopped, err := g.r.Stop(t.Context(), request(core.OpHiveStop), g.run)
	must.NoError(t, err)
	must.False(t, stopped.Already)
	must.Eq(t, 0, g.cluster.alive())
	stopped, err = g.r.Stop(t.Context(), request(core.OpHiveStop), g.run)
	must.NoError(t, err)
	must.True(t, stopped.Already, must.Sprint("stop is idempotent"))

	started, err = g.r.Start(t.Context(), request(core.OpHiveStart), g.run)
	must.NoError(t, err)
	must.False(t, started.Already)
	must.Eq(t, "gpu", started.Name)

	g.cluster.workers = []core.Worker{{ID: "w1", Hive: "feedbeef"}, {ID: "w2", Hive: "another"}}
	byName := request(core.OpHiveUninstall)
	byName.Host = "gpu" // the hive's name leads to its host as well
	gone, err := g.r.Uninstall(t.Context(), byName, g.run)
	must.NoError(t, err)
	must.Eq(t, "box", gone.Host)
	must.Eq(t, []string{"drain feedbeef: true", "active_worker_retire w1", "leave feedbeef"}, g.cluster.called()[1:])
	must.Eq(t, before, g.tree())
	_, ok = g.r.Hosts().Find("box")
	must.False(t, ok)

	gone, err = g.r.Uninstall(t.Context(), request(core.OpHiveUninstall), g.run)
	must.NoError(t, err)
	must.True(t, gone.Already)

	for _, line := range g.commands() {
		must.StrNotContains(t, line, "rbeejoin_", must.Sprint("the token must never be an argument"))
	}
	must.StrNotContains(t, g.run.text(), "rbeejoin_")
}

func TestUninstallKeepsModels(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	_, err := g.install()
	must.NoError(t, err)
	must.NoError(t, os.WriteFile(filepath.Join(g.home, ".cache/rbee/model"), []byte("weights"), 0o600))
	req := request(core.OpHiveUninstall)
	req.KeepModels = true
	res, err := g.r.Uninstall(t.Context(), req, g.run)
	must.NoError(t, err)
	must.Eq(t, []string{filepath.Join(g.home, ".cache/rbee")}, res.Kept)
	must.Eq(t, []string{".cache", ".cache/rbee", ".cache/rbee/model"}, g.tree())
}

// A store that existed before the installation belongs to the user.
func TestUninstallKeepsExistingFiles(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	must.NoError(t, os.MkdirAll(filepath.Join(g.home, ".cache/rbee/models"), 0o700))
	before := g.tree()
	_, err := g.install()
	must.NoError(t, err)
	res, err := g.r.Uninstall(t.Context(), request(core.OpHiveUninstall), g.run)
	must.NoError(t, err)
	must.Eq(t, []string{filepath.Join(g.home, ".cache/rbee")}, res.Kept)
	must.Eq(t, before, g.tree())
}

func TestStopDrains(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	_, err := g.install()
	must.NoError(t, err)
	g.cluster.workers = []core.Worker{{ID: "w1", Hive: "feedbeef"}}
	req := request(core.OpHiveStop)
	req.Drain = true
	_, err = g.r.Stop(t.Context(), req, g.run)
	must.NoError(t, err)
	must.Eq(t, []string{"drain feedbeef: true", "active_worker_retire w1", "drain feedbeef: false"}, g.cluster.called()[1:])
	must.Eq(t, 0, g.cluster.alive())
}

// The only queen cannot leave: nothing is removed.
func TestUninstallOnlyQueen(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	_, err := g.install()
	must.NoError(t, err)
	before := g.tree()
	g.cluster.stays = true
	_, err = g.r.Uninstall(t.Context(), request(core.OpHiveUninstall), g.run)
	must.Eq(t, core.Conflict, core.KindOf(err))
	must.Eq(t, before, g.tree())
	must.NotEq(t, 0, g.cluster.alive())
}

// Install fails if the hive runs but does not reach the queens.
func TestInstallWaitsForHive(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	g.cluster.gone = true
	g.r.o.Patience = 500 * time.Millisecond
	_, err := g.install()
	must.Eq(t, core.DeadlineExceeded, core.KindOf(err))
	must.StrContains(t, err.Error(), "did not become ready")
}

// A stopped hive is started once more to leave: only its agent can end its workers.
func TestUninstallStoppedHive(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	_, err := g.install()
	must.NoError(t, err)
	_, err = g.r.Stop(t.Context(), request(core.OpHiveStop), g.run)
	must.NoError(t, err)
	_, err = g.r.Uninstall(t.Context(), request(core.OpHiveUninstall), g.run)
	must.NoError(t, err)
	must.StrContains(t, g.run.text(), "starting the hive once more")
	must.Eq(t, []string{}, g.tree())
}

func TestInstallFailures(t *testing.T) {
	t.Parallel()
	full := func(c sshserver.Command) (int, bool) {
		if strings.Contains(c.Line, "plugins/rbee-worker-cpu") && strings.Contains(c.Line, "cat >") {
			_, _ = io.Copy(io.Discard, c.Stdin)
			fmt.Fprintln(c.Stderr, "cat: write error: No space left on device")
			return 1, true
		}
		return 0, false
	}
	cut := func(c sshserver.Command) (int, bool) {
		if strings.Contains(c.Line, "plugins/rbee-worker-cpu") && strings.Contains(c.Line, "cat >") {
			c.Cut()
			return 1, true
		}
		return 0, false
	}
	noJoin := func(c sshserver.Command) (int, bool) {
		if strings.Contains(c.Line, "cluster join") {
			_, _ = io.Copy(io.Discard, c.Stdin)
			fmt.Fprintln(c.Stderr, "error: no queen answers at 127.0.0.1:7834")
			return 1, true
		}
		return 0, false
	}
	for _, c := range []struct {
		name string
		hook func(sshserver.Command) (int, bool)
		kind core.Kind
		want string
	}{
		{"disk full", full, core.TooLarge, "disk of box is full"},
		{"copy cut half-way", cut, core.Unavailable, "the connection broke"},
		{"join fails", noJoin, core.Internal, "no queen answers"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			g := newRig(t)
			g.onCommand(c.hook)
			_, err := g.install()
			must.Eq(t, c.kind, core.KindOf(err), must.Sprint(err))
			must.StrContains(t, err.Error(), c.want)
			must.NotEq(t, "", core.HintOf(err))
			must.Eq(t, 0, g.cluster.alive())
			_, statErr := os.Lstat(filepath.Join(g.home, ".local/bin/rbee"))
			must.ErrorIs(t, statErr, os.ErrNotExist)
			if c.name == "join fails" {
				must.Eq(t, "revoke t1", g.cluster.called()[1])
			}

			// A repeated installation continues from there.
			g.onCommand(nil)
			sent := len(g.commands())
			_, err = g.install()
			must.NoError(t, err)
			for _, line := range g.commands()[sent:] {
				if strings.Contains(line, "cat >") {
					must.StrNotContains(t, line, "-file'", must.Sprint("what was there is not sent again"))
				}
			}
			_, err = g.r.Uninstall(t.Context(), request(core.OpHiveUninstall), g.run)
			must.NoError(t, err)
			must.Eq(t, []string{}, g.tree())
		})
	}
}

// After a failure, everything that was written can still be removed.
func TestUninstallPartialInstallation(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	g.onCommand(func(c sshserver.Command) (int, bool) {
		return 1, strings.Contains(c.Line, "plugins/rbee-worker-cpu") && strings.Contains(c.Line, "cat >")
	})
	_, err := g.install()
	must.Error(t, err)
	g.onCommand(nil)
	must.NotEq(t, []string{}, g.tree())
	_, err = g.r.Uninstall(t.Context(), request(core.OpHiveUninstall), g.run)
	must.NoError(t, err)
	must.Eq(t, []string{}, g.tree())
}

func TestInstallWrongDigest(t *testing.T) {
	t.Parallel()
	// The disk returns other bytes than were written.
	g := newRig(t, pathWith(t, map[string]string{"sha256sum": `cat >/dev/null; echo "` + strings.Repeat("0", 64) + `  -"`}))
	_, err := g.install()
	must.Eq(t, core.Integrity, core.KindOf(err))
	must.StrContains(t, err.Error(), "arrived with the digest 0000")
	_, statErr := os.Lstat(filepath.Join(g.home, ".local/bin/rbee"))
	must.ErrorIs(t, statErr, os.ErrNotExist)
	must.Eq(t, 0, g.cluster.alive())
}

func TestInstallSystemWideNeedsRights(t *testing.T) {
	t.Parallel()
	g := newRig(t, pathWith(t, map[string]string{"id": `case $1 in -u) echo 1000 ;; *) echo someone ;; esac`, "sudo": `echo "sudo: a password is required" >&2; exit 1`}))
	_, err := g.install(func(r *core.Request) { r.System, r.Service = true, "" })
	must.Eq(t, core.Unsupported, core.KindOf(err))
	must.StrContains(t, err.Error(), "may not use sudo without a password")
	must.StrContains(t, core.HintOf(err), "leave --system-wide out")
	must.Eq(t, []string{}, g.tree())
}

func TestInstallRollsBack(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	first, err := g.install()
	must.NoError(t, err)
	g.r.o.Program = g.program("2.0", "bad", "echo 'panic: it is broken'; exit 1")
	_, err = g.install()
	must.StrContains(t, err.Error(), "has ended")
	must.StrContains(t, core.HintOf(err), "runs "+first.Build+" again")
	must.StrContains(t, g.run.text(), "box: panic: it is broken")
	link, err := os.Readlink(filepath.Join(g.home, ".local/bin/rbee"))
	must.NoError(t, err)
	must.StrContains(t, link, first.Build)
	must.NotEq(t, 0, g.cluster.alive())
}

func TestInstallKeepsForeignFiles(t *testing.T) {
	t.Parallel()
	for name, lay := range map[string]string{"a program of somebody else": ".local/bin/rbee/x", "an agent of a cluster": ".local/share/rbee/cluster/node.pem"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := newRig(t)
			must.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(g.home, lay)), 0o700))
			must.NoError(t, os.WriteFile(filepath.Join(g.home, lay), nil, 0o600))
			before := g.tree()
			_, err := g.install()
			must.Eq(t, core.Conflict, core.KindOf(err), must.Sprint(err))
			must.Eq(t, before, g.tree())
		})
	}
}

func TestInstallOnAnotherPlatform(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, machine, want string
	}{
		{"another architecture", "riscv64", "is linux/riscv64"},
		{"no build of it here", map[bool]string{true: "aarch64", false: "x86_64"}[ownArch() == "amd64"], "and the rbee here is built for"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			g := newRig(t, pathWith(t, map[string]string{"uname": `case $1 in -s) echo Linux ;; *) echo ` + c.machine + ` ;; esac`}))
			_, err := g.install()
			must.Eq(t, core.Unsupported, core.KindOf(err))
			must.StrContains(t, err.Error(), c.want)
			must.Eq(t, []string{}, g.tree())
		})
	}
}

func TestConcurrentOperationsOnHost(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	arrived, goOn := make(chan struct{}), make(chan struct{})
	g.onCommand(func(sshserver.Command) (int, bool) {
		g.onCommand(nil)
		close(arrived)
		<-goOn
		return 0, false
	})
	done := make(chan error)
	go func() {
		_, err := g.install()
		done <- err
	}()
	<-arrived
	_, err := g.install()
	must.Eq(t, core.InUse, core.KindOf(err))
	close(goOn)
	must.NoError(t, <-done)
}

func TestInstallCancelled(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	ctx, cancel := context.WithCancel(t.Context())
	g.onCommand(func(c sshserver.Command) (int, bool) {
		if strings.Contains(c.Line, "plugins/rbee-worker-cpu") && strings.Contains(c.Line, "cat >") {
			cancel()
			<-c.Context.Done()
			return 1, true
		}
		return 0, false
	})
	_, err := g.r.Install(ctx, request(core.OpHiveInstall), g.run)
	must.Eq(t, core.Cancelled, core.KindOf(err))
}

func TestInstallNeedsCluster(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	g.r.o.Cluster = nil
	_, err := g.install()
	must.Eq(t, core.Unsupported, core.KindOf(err))
	must.StrContains(t, core.HintOf(err), "rbee cluster init")
	must.SliceEmpty(t, g.commands())
}

func TestInvalidHosts(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	for _, host := range []string{"-oProxyCommand=reboot", "a b", "$(reboot)", "a\nb", "a;b"} {
		for _, op := range []func(context.Context, core.Request, Run) error{
			func(ctx context.Context, r core.Request, run Run) error {
				_, err := g.r.Install(ctx, r, run)
				return err
			},
			func(ctx context.Context, r core.Request, run Run) error {
				_, err := g.r.Uninstall(ctx, r, run)
				return err
			},
			func(ctx context.Context, r core.Request, run Run) error { _, err := g.r.Start(ctx, r, run); return err },
			func(ctx context.Context, r core.Request, run Run) error { _, err := g.r.Stop(ctx, r, run); return err },
			func(ctx context.Context, r core.Request, run Run) error { _, err := g.r.Test(ctx, r, run); return err },
		} {
			must.Eq(t, core.Invalid, core.KindOf(op(t.Context(), core.Request{Host: host, AcceptNew: true}, g.run)), must.Sprintf("%q", host))
		}
	}
	must.SliceEmpty(t, g.commands())
}

func TestSSHTest(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	req := core.Request{Operation: core.OpSSHTest, Host: "box"}
	res, err := g.r.Test(t.Context(), req, g.run)
	must.NoError(t, err)
	must.False(t, res.OK)
	must.Eq(t, "host key", res.Failed)
	must.Eq(t, core.HostKeyUnknown, res.HostKey.State)

	req.HostKey = res.HostKey.Fingerprint
	res, err = g.r.Test(t.Context(), req, g.run)
	must.NoError(t, err)
	must.True(t, res.OK, must.Sprint(res))
	var names []string
	for _, s := range res.Steps {
		names = append(names, s.Name)
	}
	must.Eq(t, []string{"resolve", "connect", "host key", "authenticate", "session", "platform", "disk", "sudo", "rbee"}, names)
	must.Eq(t, "desk", res.Via)
	must.Positive(t, res.FreeDiskBytes)
	must.Eq(t, "", res.Version)

	_, err = g.install()
	must.NoError(t, err)
	res, err = g.r.Test(t.Context(), req, g.run)
	must.NoError(t, err)
	must.Eq(t, "1.0", res.Version)

	// The test of a machine whose shell hangs is aborted in time.
	g.onCommand(func(c sshserver.Command) (int, bool) { <-c.Context.Done(); return 1, true })
	res, err = g.r.Test(t.Context(), req, g.run)
	must.NoError(t, err)
	must.Eq(t, "session", res.Failed)
}

func TestImport(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	must.NoError(t, g.r.hosts.put(core.HiveHost{Name: "box", User: "mine", Imported: true}))
	file := filepath.Join(t.TempDir(), "config")
	must.NoError(t, os.WriteFile(file, []byte("Host box\n User other\nHost gpu1 gpu1.lan\n HostName 10.0.0.7\n Port 2222\nHost *.lan\n User wild\nMatch all\n Host x\nPort nonsense\nHost bad\n HostName -x\nHost *\n User bee\n IdentityFile ~/.ssh/k\n"), 0o600))
	res, err := g.r.Import(t.Context(), core.Request{File: file}, g.run)
	must.NoError(t, err)
	must.Eq(t, []string{"box"}, res.Kept, must.Sprint("existing entries win"))
	must.Eq(t, []core.HiveHost{
		{Name: "gpu1", HostName: "10.0.0.7", User: "bee", Port: 2222, IdentityFile: "~/.ssh/k", Imported: true},
		{Name: "x", User: "bee", IdentityFile: "~/.ssh/k", Imported: true},
	}, res.Added)
	must.Len(t, 2, res.Problems)
	must.StrContains(t, res.Problems[0], "config, line 10: ")
	must.StrContains(t, res.Problems[1], "host bad: ")

	// The list survives a restart, and an imported host survives its uninstallation.
	again, err := openHosts(g.r.hosts.file)
	must.NoError(t, err)
	must.Eq(t, g.r.hosts.List(), again.List())
	must.NoError(t, again.uninstalled("gpu1"))
	_, ok := again.Find("gpu1")
	must.True(t, ok)

	_, err = g.r.Import(t.Context(), core.Request{File: filepath.Join(t.TempDir(), "none")}, g.run)
	must.Eq(t, core.NotFound, core.KindOf(err))
	_, err = g.r.Import(t.Context(), core.Request{File: "relative"}, g.run)
	must.Eq(t, core.Invalid, core.KindOf(err))
}

func TestRemoveOnlyOwnFiles(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	_, err := g.install()
	must.NoError(t, err)
	file := filepath.Join(g.home, ".local/lib/rbee/installed")
	text, err := os.ReadFile(file)
	must.NoError(t, err)
	must.NoError(t, os.WriteFile(file, append(text, "folder /etc\n"...), 0o600))
	before := g.tree()
	_, err = g.r.Uninstall(t.Context(), request(core.OpHiveUninstall), g.run)
	must.Eq(t, core.Integrity, core.KindOf(err))
	must.Eq(t, before, g.tree())
	must.False(t, slices.Contains(g.cluster.called(), "leave feedbeef"))
}
