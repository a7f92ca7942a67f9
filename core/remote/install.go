package remote

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/ssh"
)

// alone refuses operations that need a cluster.
func (r *Remote) alone() error {
	if r.o.Cluster != nil {
		return nil
	}
	return core.Errorf(core.Unsupported, "%s is in no cluster that another machine could join", r.o.Name).Hint("Begin one: \"rbee cluster init\", then start the agent.")
}

// Install runs hive_install: it copies rbee to a machine, joins it to the cluster, and keeps it
// running there. On an installed machine, it upgrades.
func (r *Remote) Install(ctx context.Context, req core.Request, run Run) (core.InstallResult, error) {
	if err := r.alone(); err != nil {
		return core.InstallResult{}, err
	}
	for field, v := range map[string]string{"bind": req.Bind, "advertise": req.Advertise} {
		if err := checkAddress(field, v); err != nil {
			return core.InstallResult{}, err
		}
	}
	m, host, err := r.reach(ctx, req, run)
	if err != nil {
		return core.InstallResult{}, err
	}
	defer m.close()
	i := &installation{r: r, m: m, host: host, req: req, run: run}
	if err := i.prepare(ctx); err != nil {
		return core.InstallResult{}, err
	}
	temp, remove, err := r.tempDir()
	if err != nil {
		return core.InstallResult{}, err
	}
	defer remove()
	if i.build, err = r.o.Program.pick(ctx, m.look.os, m.look.arch, req.From, temp); err != nil {
		return core.InstallResult{}, err
	}
	return i.install(ctx)
}

// installation is one run of hive_install.
type installation struct {
	r     *Remote
	m     *machine
	host  core.HiveHost
	req   core.Request
	run   Run
	l     layout
	old   manifest // zero: no earlier installation
	had   bool     // there is an earlier installation
	build build
	notes []string
}

func (i *installation) note(format string, args ...any) {
	i.run.Log(format, args...)
	i.notes = append(i.notes, fmt.Sprintf(format, args...))
}

// prepare checks the machine before it changes anything there.
func (i *installation) prepare(ctx context.Context) error {
	m, k := i.m, i.m.look
	switch {
	case !k.runs():
		return core.Errorf(core.Unsupported, "platform: %s is %s/%s", m.name, k.os, k.arch).Hint("rbee is built for linux/amd64, linux/arm64 and darwin/arm64.")
	case k.sum == "":
		return core.Errorf(core.Unsupported, "check: %s has neither sha256sum nor shasum", m.name).Hint("Install one of them there: what is copied must be checked.")
	}
	var err error
	if i.old, i.l, i.had, err = m.installed(ctx); err != nil {
		return err
	}
	if i.had {
		if i.req.System != i.old.system {
			return core.Errorf(core.Conflict, "rbee is installed on %s already, %s", m.name, modeText(i.old.system)).Hint("Uninstall it first, or repeat that kind of installation.")
		}
		if s := i.req.Service; s != "" && s != ServiceAuto && s != i.old.service {
			return core.Errorf(core.Conflict, "rbee is installed on %s already, with the service %s", m.name, i.old.service).Hint("Uninstall it first, or leave --service out.")
		}
		if i.l.system && !k.root && !k.sudo {
			_, err := chooseService(ServiceAuto, true, k)
			return err
		}
		return nil
	}
	service, err := chooseService(i.req.Service, i.req.System, k)
	if err != nil {
		return err
	}
	i.l = layoutOf(k.home, i.req.System, service)
	out, err := m.root(ctx, i.l, scriptStrangers, i.l.link, i.l.lib, i.l.data)
	if err != nil {
		return m.explain("look for rbee", err)
	}
	if found, _, _ := strings.Cut(out, "\n"); found != "" {
		return core.Errorf(core.Conflict, "%s is on %s already, and \"rbee hive install\" did not put it there", clip(ssh.Clean(found)), m.name).Hint(
			"If that machine is in a cluster, have it leave (\"rbee cluster leave\" there); then move the file or folder away.")
	}
	return nil
}

func modeText(system bool) string {
	if system {
		return "for the whole machine"
	}
	return "for one user"
}

func (i *installation) install(ctx context.Context) (core.InstallResult, error) {
	m, l, b := i.m, i.l, i.build
	before := core.Hive{}
	if i.had && i.old.hive != "" {
		// Without one, the hive joins again or reports why it cannot.
		before, _ = i.r.o.Cluster.Hive(ctx, i.old.hive)
	}
	up := false
	if i.had {
		var err error
		if up, err = m.running(ctx, l); err != nil {
			return core.InstallResult{}, err
		}
	}
	if i.had && i.old.build == b.name && up && before.Status == core.HiveReady && !i.req.Force {
		return i.result(before, true), i.remember(before.ID)
	}
	have := m.look.freeBytes
	if need := b.bytes + b.bytes/4 + 16<<20; have >= 0 && have < need && !(i.had && i.old.build == b.name) {
		return core.InstallResult{}, core.Errorf(core.TooLarge, "disk: %s has %s free, and %s are needed", m.name, sizeText(have), sizeText(need)).Hint("Make room there.")
	}
	man, err := i.claim(ctx)
	if err != nil {
		return core.InstallResult{}, err
	}
	sums, err := i.present(ctx)
	if err != nil {
		return core.InstallResult{}, err
	}
	if !sums {
		if err := m.send(ctx, l, b, i.run); err != nil {
			return core.InstallResult{}, err
		}
	}
	i.run.Progress(core.Progress{Phase: "configure"})
	if err := i.configure(ctx); err != nil {
		return core.InstallResult{}, err
	}
	i.run.Progress(core.Progress{Phase: "join"})
	if err := i.join(ctx); err != nil {
		return core.InstallResult{}, err
	}
	id, err := m.nodeID(ctx, l)
	if err != nil {
		return core.InstallResult{}, err
	}
	man.hive = id
	if err := m.write(ctx, l, l.manifest(), "644", man.text()); err != nil {
		return core.InstallResult{}, err
	}
	if err := i.remember(id); err != nil {
		return core.InstallResult{}, err
	}
	h, err := i.start(ctx, id, before)
	if err != nil {
		return core.InstallResult{}, err
	}
	man.version, man.build = b.version, b.name
	if err := m.write(ctx, l, l.manifest(), "644", man.text()); err != nil {
		return core.InstallResult{}, err
	}
	return i.result(h, false), i.sweep(ctx)
}

// claim creates the folders and records the installation in advance, so that it can be removed from
// here on.
func (i *installation) claim(ctx context.Context) (manifest, error) {
	m, l := i.m, i.l
	man := i.old
	man.system, man.service = l.system, l.service
	if !i.had { // an upgrade keeps its old record until the new program runs
		man.version, man.build = i.build.version, i.build.name
	}
	if l.system {
		out, err := m.root(ctx, l, scriptUser, systemUser, l.data)
		if err != nil {
			return man, m.explain("make the user "+systemUser, err)
		}
		man.user = man.user || strings.TrimSpace(out) == "made"
	}
	out, err := m.root(ctx, l, scriptFolders, append([]string{l.umask()}, l.folders()...)...)
	if err != nil {
		return man, m.explain("make the folders", err)
	}
	for dir := range strings.SplitSeq(strings.TrimSpace(out), "\n") {
		if dir != "" && !slices.Contains(man.folders, dir) {
			man.folders = append(man.folders, dir)
		}
	}
	if l.system {
		if _, err := m.root(ctx, l, scriptOwn, systemUser, l.data); err != nil {
			return man, m.explain("give the data folder to "+systemUser, err)
		}
	}
	return man, m.write(ctx, l, l.manifest(), "644", man.text())
}

// present reports whether the complete build is already there.
func (i *installation) present(ctx context.Context) (bool, error) {
	var paths []string
	for _, f := range i.build.files {
		paths = append(paths, i.l.build(i.build.name)+"/"+f.path)
	}
	got, err := i.m.sums(ctx, i.l, paths)
	if err != nil {
		return false, err
	}
	for n, f := range i.build.files {
		if got[n] != f.digest {
			return false, nil
		}
	}
	return true, nil
}

// configure writes the configuration, unless there is one, and the unit.
func (i *installation) configure(ctx context.Context) error {
	m, l := i.m, i.l
	text, err := m.root(ctx, l, scriptRead, l.conf)
	if err != nil {
		return m.explain("read the configuration", err)
	}
	if text == "" {
		name, err := hiveName(i.req, i.host)
		if err != nil {
			return err
		}
		mode := "600"
		if l.system {
			mode = "644" // it holds no secret, and the service's user must read it
		}
		s := settings{name: name, bind: i.req.Bind, advertise: i.req.Advertise, queen: i.req.Queen}
		if err := m.write(ctx, l, l.conf, mode, l.configText(s)); err != nil {
			return err
		}
	} else if i.req.Name != "" || i.req.Bind != "" || i.req.Advertise != "" || i.req.Queen {
		i.note("%s is there and stays as it is: name, addresses and roles are what it says", l.conf)
	}
	if unit := l.unitText(); unit != "" {
		return m.write(ctx, l, l.unit, "644", unit)
	}
	return nil
}

// join gives the machine a certificate of the cluster, unless it has one. The token is passed on
// stdin and stored nowhere.
func (i *installation) join(ctx context.Context) error {
	m, l := i.m, i.l
	if out, err := m.root(ctx, l, scriptIdentity, l.data); err != nil {
		return m.explain("look for the cluster", err)
	} else if strings.TrimSpace(out) == "yes" {
		return nil
	}
	roles := []core.Role{core.RoleHive}
	if i.req.Queen {
		roles = []core.Role{core.RoleHive, core.RoleQueen}
	}
	token, id, err := i.r.o.Cluster.JoinToken(ctx, "hive_install "+clip(i.host.Name), roles)
	if err != nil {
		return err
	}
	_, err = m.feed(ctx, strings.NewReader(token+"\n"), m.sudo(l), scriptJoin, l.build(i.build.name)+"/rbee", l.conf)
	if err != nil {
		// Redeemed or not, the token is no longer needed.
		limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		_, _ = i.r.o.Cluster.RevokeToken(limited, id)
		return core.WithHint(m.explain("join the cluster", err), "The machine must reach this queen's RPC port (7834, TCP). What was installed stays: repeat the installation, or remove it with \"rbee hive uninstall %s\".", m.name)
	}
	if l.system {
		if _, err := m.root(ctx, l, scriptOwn, systemUser, l.data); err != nil {
			return m.explain("give the data folder to "+systemUser, err)
		}
	}
	return nil
}

// start switches to the new build and waits until the hive runs with it. If it does not, start
// restores the old build.
func (i *installation) start(ctx context.Context, id string, before core.Hive) (core.Hive, error) {
	m, l := i.m, i.l
	action := "start"
	if i.had {
		action = "restart"
	}
	if err := i.link(ctx, i.build.name); err != nil {
		return core.Hive{}, err
	}
	if l.service == ServiceSystemdUser {
		if out, err := m.service(ctx, l, "linger"); err != nil || out == "no" {
			i.note("the hive ends when %s logs out there, and does not start at boot: have an administrator run \"loginctl enable-linger %s\"", m.conn.User, m.conn.User)
		}
	}
	if l.service == ServiceNone {
		i.note("nothing starts the hive again after a crash or at boot: there is no service manager for it on %s; \"rbee hive start %s\" does", m.name, m.name)
	}
	i.run.Progress(core.Progress{Phase: "start"})
	_, err := m.service(ctx, l, action)
	var h core.Hive
	if err == nil {
		h, err = i.r.awaitReady(ctx, m, l, id, before, i.run)
	}
	if err == nil {
		return h, nil
	}
	if i.had && i.old.build != i.build.name && ctx.Err() == nil {
		i.run.Log("the new build does not run: going back to %s", i.old.build)
		if backErr := i.link(ctx, i.old.build); backErr == nil {
			_, backErr = m.service(ctx, l, "restart")
			if backErr == nil {
				return core.Hive{}, core.WithHint(err, "The machine runs %s again, as before.", i.old.build)
			}
		}
	}
	return core.Hive{}, err
}

func (i *installation) link(ctx context.Context, build string) error {
	if _, err := i.m.root(ctx, i.l, scriptLink, i.l.build(build)+"/rbee", i.l.link); err != nil {
		return i.m.explain("link the program", err)
	}
	return nil
}

// sweep removes the other builds and the leftovers of unfinished copies.
func (i *installation) sweep(ctx context.Context) error {
	out, err := i.m.root(ctx, i.l, scriptBuilds, i.l.lib, i.build.name)
	if err != nil {
		return i.m.explain("look for old builds", err)
	}
	var old []string
	for dir := range strings.SplitSeq(strings.TrimSpace(out), "\n") {
		if rest, ok := strings.CutPrefix(dir, i.l.lib+"/"); ok && buildName.MatchString(strings.TrimPrefix(rest, ".partial-")) {
			old = append(old, dir)
		}
	}
	if len(old) == 0 {
		return nil
	}
	if _, err := i.m.root(ctx, i.l, scriptRemove, old...); err != nil {
		return i.m.explain("remove old builds", err)
	}
	return nil
}

// remember records the installation in the list of hosts.
func (i *installation) remember(id string) error {
	x := i.host
	x.Hive = id
	return i.r.hosts.put(x)
}

func (i *installation) result(h core.Hive, already bool) core.InstallResult {
	res := core.InstallResult{
		Host: i.host.Name, Hive: h.ID, Name: h.Name, Version: i.build.version, Build: i.build.name, Service: i.l.service, Path: i.l.link, Already: already, Devices: h.Devices, Notes: i.notes,
	}
	if i.had && i.old.build != i.build.name {
		res.Before = i.old.build
	}
	return res
}

// tellLog copies the last lines of a hive's log into the job's log, if it can read them.
func (r *Remote) tellLog(ctx context.Context, m *machine, l layout, run Run) {
	text, _ := m.service(ctx, l, "log")
	for line := range strings.Lines(text) {
		run.Log("%s: %s", m.name, clip(ssh.Clean(line)))
	}
}

// awaitReady waits until the registry lists the hive as ready, after a start later than the given
// one, and the hive has probed its devices. It does not wait for the devices beyond the patience.
func (r *Remote) awaitReady(ctx context.Context, m *machine, l layout, id string, before core.Hive, run Run) (core.Hive, error) {
	deadline := time.Now().Add(r.o.Patience)
	stopped := 0 // how often the service was found stopped
	for n := 1; ; n++ {
		h, err := r.o.Cluster.Hive(ctx, id)
		ready := err == nil && h.Status == core.HiveReady && h.Incarnation != before.Incarnation
		if ready && (!h.Probing || time.Now().After(deadline)) {
			return h, nil
		}
		if n%lifePolls == 0 {
			if up, err := m.running(ctx, l); err != nil {
				return core.Hive{}, err
			} else if !up {
				stopped++
			}
		}
		if stopped == 2 {
			r.tellLog(ctx, m, l, run)
			return core.Hive{}, core.Errorf(core.Internal, "start the hive: the service was started on %s and has ended", m.name).Hint("The last lines of its log are above.")
		}
		if time.Now().After(deadline) {
			r.tellLog(ctx, m, l, run)
			return core.Hive{}, core.Errorf(core.DeadlineExceeded, "start the hive: the service was started on %s, and hive %s did not become ready within %s", m.name, id, r.o.Patience).Hint(
				"The last lines of its log are above. The machine must reach the queens' ports 7834 and 7835, and they its own.")
		}
		if err := pause(ctx, poll); err != nil {
			return core.Hive{}, err
		}
	}
}
