package remote

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/rbee-project/rbee/core"
)

var errNotInstalled = errors.New("rbee is not installed")

// installedHive connects to the machine of a request, which must have rbee installed.
func (r *Remote) installedHive(ctx context.Context, req core.Request, run Run) (*machine, core.HiveHost, manifest, layout, error) {
	if err := r.alone(); err != nil {
		return nil, core.HiveHost{}, manifest{}, layout{}, err
	}
	m, host, err := r.reach(ctx, req, run)
	if err != nil {
		return nil, host, manifest{}, layout{}, err
	}
	man, l, ok, err := m.installed(ctx)
	if err == nil && !ok {
		err = core.Errorf(core.NotFound, "%w on %s for %s", errNotInstalled, m.name, m.conn.User).Hint("Install it: \"rbee hive install %s\".", m.name)
	}
	if err == nil && l.system && !m.look.root && !m.look.sudo {
		_, err = chooseService(ServiceAuto, true, m.look)
	}
	if err != nil {
		m.close()
		return nil, host, man, l, err
	}
	return m, host, man, l, nil
}

// installed describes the rbee that is installed on a machine, for a result.
func installed(host core.HiveHost, man manifest, l layout) core.InstallResult {
	return core.InstallResult{Host: host.Name, Hive: man.hive, Version: man.version, Build: man.build, Service: l.service, Path: l.link}
}

// Start runs hive_start: it starts the service of a machine and waits until its hive is ready.
func (r *Remote) Start(ctx context.Context, req core.Request, run Run) (core.InstallResult, error) {
	m, host, man, l, err := r.installedHive(ctx, req, run)
	if err != nil {
		return core.InstallResult{}, err
	}
	defer m.close()
	res := installed(host, man, l)
	up, err := m.running(ctx, l)
	if err != nil {
		return res, err
	}
	before, err := r.o.Cluster.Hive(ctx, man.hive)
	if err == nil && up && before.Status == core.HiveReady {
		res.Already, res.Name, res.Devices = true, before.Name, before.Devices
		return res, nil
	}
	if up { // it runs and will be ready soon
		before = core.Hive{}
	}
	run.Progress(core.Progress{Phase: "start"})
	if _, err := m.service(ctx, l, "start"); err != nil {
		return res, err
	}
	h, err := r.awaitReady(ctx, m, l, man.hive, before, run)
	if err != nil {
		return res, err
	}
	res.Name, res.Devices = h.Name, h.Devices
	return res, nil
}

// Stop runs hive_stop: it stops the service of a machine. Workers stay for the next start to adopt,
// unless the hive is drained: then running requests finish and the workers end.
func (r *Remote) Stop(ctx context.Context, req core.Request, run Run) (core.InstallResult, error) {
	m, host, man, l, err := r.installedHive(ctx, req, run)
	if err != nil {
		return core.InstallResult{}, err
	}
	defer m.close()
	res := installed(host, man, l)
	up, err := m.running(ctx, l)
	if err != nil {
		return res, err
	}
	h, hiveErr := r.o.Cluster.Hive(ctx, man.hive)
	res.Name, res.Already = h.Name, !up
	if !up {
		return res, nil
	}
	if req.Drain && hiveErr == nil {
		if err := r.drain(ctx, h, time.Duration(req.Grace), run); err != nil {
			return res, err
		}
		if !h.Draining { // after the next start the hive gets work again
			defer func() {
				limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
				defer cancel()
				if _, err := r.o.Cluster.DrainHive(limited, h.ID, false); err != nil {
					run.Log("the hive is still marked as draining: \"rbee hive drain %s --undo\" ends that", h.Name)
				}
			}()
		}
	}
	run.Progress(core.Progress{Phase: "stop"})
	if _, err := m.service(ctx, l, "stop"); err != nil {
		return res, err
	}
	if up, err = m.running(ctx, l); err == nil && up {
		err = core.Errorf(core.Internal, "stop the service: it still runs on %s", m.name).Hint("Log in there and look.")
	}
	return res, err
}

// drain stops new work for a hive, waits for running requests, and ends its workers.
func (r *Remote) drain(ctx context.Context, h core.Hive, grace time.Duration, run Run) error {
	if grace == 0 {
		grace = drainPatience
	}
	if _, err := r.o.Cluster.DrainHive(ctx, h.ID, true); err != nil {
		return err
	}
	workers, err := r.workersOf(ctx, h.ID)
	if err != nil {
		return err
	}
	run.Log("hive %s gets no more work; %d workers end when their requests have", h.Name, len(workers))
	var jobs []string
	for _, w := range workers {
		j, err := r.o.Cluster.Submit(ctx, core.Request{Operation: core.OpActiveWorkerRetire, Worker: w.ID, Grace: core.Duration(grace)}, false)
		switch core.KindOf(err) {
		case "":
			jobs = append(jobs, j.ID)
		case core.NotFound: // it has ended
		default:
			return err
		}
	}
	deadline := time.Now().Add(grace + time.Minute)
	for len(jobs) > 0 {
		run.Progress(core.Progress{Phase: "drain", Done: int64(len(workers) - len(jobs)), Total: int64(len(workers))})
		j, err := r.o.Cluster.Job(ctx, jobs[0])
		switch {
		case err == nil && j.State == core.JobFailed && core.KindOf(j.Error.Err()) != core.NotFound:
			return core.Wrap(j.Error.Err(), j.Error.Kind, "drain")
		case err == nil && j.State != core.JobRunning:
			jobs = jobs[1:]
			continue
		case time.Now().After(deadline):
			return core.Errorf(core.DeadlineExceeded, "drain: workers of hive %s did not end", h.Name)
		}
		if err := pause(ctx, poll); err != nil {
			return err
		}
	}
	return nil
}

// Uninstall runs hive_uninstall: it drains the hive, removes it from the cluster, and deletes what
// the installation wrote.
func (r *Remote) Uninstall(ctx context.Context, req core.Request, run Run) (core.UninstallResult, error) {
	m, host, man, l, err := r.installedHive(ctx, req, run)
	res := core.UninstallResult{Host: host.Name, Removed: []string{}}
	if errors.Is(err, errNotInstalled) {
		res.Already = true
		return res, r.hosts.uninstalled(host.Name)
	}
	if err != nil {
		return res, err
	}
	defer m.close()
	res.Hive = man.hive
	if err := r.leave(ctx, m, l, man, time.Duration(req.Grace), run); err != nil {
		return res, err
	}
	run.Progress(core.Progress{Phase: "remove"})
	if _, err := m.service(ctx, l, "stop"); err != nil {
		return res, err
	}
	if _, err := m.service(ctx, l, "remove"); err != nil {
		return res, err
	}
	if err := r.remove(ctx, m, l, man, req.KeepModels, &res); err != nil {
		return res, err
	}
	return res, r.hosts.uninstalled(host.Name)
}

// leave removes the hive from the cluster, if it is a member.
func (r *Remote) leave(ctx context.Context, m *machine, l layout, man manifest, grace time.Duration, run Run) error {
	if man.hive == "" {
		return nil
	}
	h, err := r.o.Cluster.Hive(ctx, man.hive)
	if core.KindOf(err) == core.NotFound {
		return nil
	}
	if err != nil {
		return err
	}
	up, err := m.running(ctx, l)
	if err != nil {
		return err
	}
	if !up {
		// Its workers may still run, and only its agent can end them.
		run.Log("starting the hive once more, so that it can end its workers and leave")
		if _, err = m.service(ctx, l, "start"); err == nil {
			h, err = r.awaitReady(ctx, m, l, man.hive, h, run)
		}
		if err != nil && ctx.Err() == nil {
			run.Log("it does not start: it is taken out of the cluster all the same, and workers of it may be left on %s", m.name)
		}
	}
	if err == nil {
		if err := r.drain(ctx, h, grace, run); err != nil {
			return err
		}
	}
	run.Progress(core.Progress{Phase: "leave"})
	_, err = r.o.Cluster.LeaveNode(ctx, man.hive)
	switch core.KindOf(err) {
	case core.NotFound:
		return nil
	case core.Conflict: // it has already left, or may not leave because it is the only queen
		if _, there := r.o.Cluster.Hive(ctx, man.hive); core.KindOf(there) == core.NotFound {
			return nil
		}
	}
	return err
}

// remove deletes the files. The manifest goes last, so that an interrupted removal can be repeated.
func (r *Remote) remove(ctx context.Context, m *machine, l layout, man manifest, keepModels bool, res *core.UninstallResult) error {
	var gone []string
	// A folder that existed before the installation belongs to the user.
	switch {
	case !slices.Contains(man.folders, l.data):
		res.Kept = append(res.Kept, l.data)
	case keepModels && strings.HasPrefix(l.store, l.data+"/"):
		out, err := m.root(ctx, l, scriptOthers, l.data, l.store)
		if err != nil {
			return m.explain("look at the data folder", err)
		}
		for p := range strings.SplitSeq(strings.TrimSpace(out), "\n") {
			if strings.HasPrefix(p, l.data+"/") && printable(p) {
				gone = append(gone, p)
			}
		}
	default:
		gone = append(gone, l.data)
	}
	if keepModels || !slices.Contains(man.folders, l.store) {
		res.Kept = append(res.Kept, l.store)
	} else {
		gone = append(gone, l.store)
	}
	gone = append(gone, l.link, l.conf)
	if l.unit != "" {
		res.Removed = append(res.Removed, l.unit) // removed together with the service
	}
	if _, err := m.root(ctx, l, scriptRemove, gone...); err != nil {
		return m.explain("remove the files", err)
	}
	if man.user {
		if _, err := m.root(ctx, l, scriptRemoveUser, systemUser); err != nil {
			return m.explain("remove the user "+systemUser, err)
		}
	}
	if _, err := m.root(ctx, l, scriptRemove, l.lib); err != nil {
		return m.explain("remove the program", err)
	}
	res.Removed = append(res.Removed, append(gone, l.lib)...)
	folders := slices.Clone(man.folders)
	slices.Reverse(folders)
	if len(folders) > 0 {
		if _, err := m.root(ctx, l, scriptRemoveFolders, folders...); err != nil {
			return m.explain("remove the folders", err)
		}
	}
	return nil
}
