package remote

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/ssh"
)

// machine is a connected remote machine.
type machine struct {
	conn *ssh.Conn
	name string
	look look
	free func() // releases the host for other operations; nil: the host was not reserved
}

func (m *machine) close() {
	m.conn.Close()
	if m.free != nil {
		m.free()
	}
}

// run runs one of the scripts as the login user.
func (m *machine) run(ctx context.Context, script string, args ...string) (string, error) {
	return m.feed(ctx, nil, "", script, args...)
}

// root runs one of the scripts with the rights that the layout needs.
func (m *machine) root(ctx context.Context, l layout, script string, args ...string) (string, error) {
	return m.feed(ctx, nil, m.sudo(l), script, args...)
}

func (m *machine) sudo(l layout) string {
	if l.system && !m.look.root {
		return "sudo -n "
	}
	return ""
}

func (m *machine) feed(ctx context.Context, stdin io.Reader, prefix, script string, args ...string) (string, error) {
	line, err := ssh.Command(append([]string{"sh", "-c", script, "rbee"}, args...)...)
	if err != nil {
		return "", err
	}
	return m.conn.Run(ctx, prefix+line, stdin)
}

// explain classifies the failure of a command: a full disk, missing rights, or else the machine's
// own message.
func (m *machine) explain(op string, err error) error {
	exit, ok := errors.AsType[*ssh.ExitError](err)
	if !ok {
		return core.Prefix(err, op)
	}
	switch {
	case strings.Contains(exit.Stderr, "No space left") || strings.Contains(exit.Stderr, "Disk quota exceeded"):
		return core.Errorf(core.TooLarge, "%s: the disk of %s is full: %w", op, m.name, err).Hint("Make room there and try again: what was sent stays and is not sent again.")
	case strings.Contains(exit.Stderr, "sudo:"):
		return core.Errorf(core.Forbidden, "%s: %s: %w", op, m.name, err).Hint("Let sudo work without a password there, or leave --system-wide out.")
	case strings.Contains(exit.Stderr, "ermission denied") || strings.Contains(exit.Stderr, "Read-only file system"):
		return core.Errorf(core.Forbidden, "%s: %s: %w", op, m.name, err).Hint("The files there must belong to the user who logs in.")
	}
	return core.Errorf(core.Internal, "%s: %s: %w", op, m.name, err).Hint("Log in there and look; \"rbee hive ssh-test %s\" shows what rbee sees.", m.name)
}

// installed returns the manifest of an earlier installation; ok reports whether there is one.
// Errors: Integrity, Unavailable.
func (m *machine) installed(ctx context.Context) (man manifest, l layout, ok bool, err error) {
	if m.look.home == "" {
		return manifest{}, layout{}, false, core.Errorf(core.Unsupported, "look for rbee: %s has no home folder for %s", m.name, m.conn.User).Hint("Name another user.")
	}
	for _, known := range []layout{layoutOf(m.look.home, false, ServiceNone), layoutOf(m.look.home, true, ServiceSystemdSystem)} {
		if !slices.Contains(m.look.manifests, known.manifest()) {
			continue
		}
		text, err := m.run(ctx, scriptRead, known.manifest())
		if err != nil {
			return manifest{}, layout{}, false, m.explain("look for rbee", err)
		}
		man, l, err = parseManifest(text, m.look.home)
		return man, l, err == nil, err
	}
	return manifest{}, layout{}, false, nil
}

func (m *machine) write(ctx context.Context, l layout, file, mode, text string) error {
	_, err := m.feed(ctx, strings.NewReader(text), m.sudo(l), scriptWrite, file, mode)
	if err != nil {
		return m.explain("write "+file, err)
	}
	return nil
}

// sums returns the SHA-256 sums of files on the machine, "-" for a missing one.
func (m *machine) sums(ctx context.Context, l layout, files []string) ([]string, error) {
	out, err := m.root(ctx, l, scriptSums, append([]string{m.look.sum}, files...)...)
	if err != nil {
		return nil, m.explain("check what was sent", err)
	}
	got := strings.Fields(out)
	if len(got) != len(files) {
		return nil, core.Errorf(core.Integrity, "check what was sent: %s answered %d sums for %d files", m.name, len(got), len(files))
	}
	return got, nil
}

// send copies a build to the machine, into the folder where it is complete. It skips files that are
// already there with the right digest. Errors: TooLarge for a full disk, Integrity, Unavailable.
func (m *machine) send(ctx context.Context, l layout, b build, run Run) error {
	dir := l.staging(b.name)
	if _, err := m.root(ctx, l, scriptFolders, l.umask(), dir, path.Join(dir, "plugins")); err != nil {
		return m.explain("make the folder of the build", err)
	}
	var paths []string
	for _, f := range b.files {
		paths = append(paths, path.Join(dir, f.path))
	}
	have, err := m.sums(ctx, l, paths)
	if err != nil {
		return err
	}
	sent := int64(0)
	tell := func(n int64) {
		sent += n
		run.Progress(core.Progress{Phase: "copy to " + m.name, Done: sent, Total: b.bytes, Unit: "bytes"})
	}
	for i, f := range b.files {
		if have[i] == f.digest {
			tell(f.size)
			continue
		}
		if err := m.sendFile(ctx, l, f, paths[i], tell); err != nil {
			return err
		}
	}
	got, err := m.sums(ctx, l, paths)
	if err != nil {
		return err
	}
	for i, f := range b.files {
		if got[i] != f.digest {
			// Best effort: the next run overwrites it.
			_, _ = m.root(ctx, l, scriptRemove, paths[i])
			return core.Errorf(core.Integrity, "check what was sent: %s arrived with the digest %s instead of %s", f.path, clip(got[i]), f.digest).Hint(
				"Nothing was changed there. Try again; if it stays so, that machine's disk or memory is damaged.")
		}
	}
	if _, err := m.root(ctx, l, scriptPublish, dir, l.build(b.name)); err != nil {
		return m.explain("put the build in its place", err)
	}
	return nil
}

func (m *machine) sendFile(ctx context.Context, l layout, f buildFile, to string, tell func(int64)) error {
	in, err := os.Open(f.source)
	if err != nil {
		return core.Wrap(err, core.Internal, "read the build")
	}
	defer in.Close()
	h := sha256.New()
	r := &counting{r: io.TeeReader(io.LimitReader(in, f.size), h), tell: tell}
	if _, err := m.feed(ctx, r, m.sudo(l), scriptWrite, to, "755"); err != nil {
		return m.explain("send "+f.path, err)
	}
	if fmt.Sprintf("%x", h.Sum(nil)) != f.digest {
		return core.Errorf(core.Conflict, "%s: %s changed while it was read", "send "+f.path, f.source).Hint("Try again.")
	}
	return nil
}

type counting struct {
	r    io.Reader
	tell func(int64)
}

func (c *counting) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.tell(int64(n))
	return n, err
}

// service runs an action of the service: start, restart, stop, state, log, remove, linger.
func (m *machine) service(ctx context.Context, l layout, action string) (string, error) {
	out, err := m.root(ctx, l, scriptService, l.service, action, l.link, l.conf, l.pidFile(), l.logFile(), l.unit)
	if err != nil {
		return "", m.explain(action+" the service", err)
	}
	return strings.TrimSpace(out), nil
}

func (m *machine) running(ctx context.Context, l layout) (bool, error) {
	state, err := m.service(ctx, l, "state")
	return state == "running", err
}

// nodeID returns the ID that the remote agent chose; empty: none yet.
func (m *machine) nodeID(ctx context.Context, l layout) (string, error) {
	out, err := m.root(ctx, l, scriptRead, path.Join(l.data, "node-id"))
	if err != nil {
		return "", m.explain("read the id of the hive", err)
	}
	id := strings.TrimSpace(out)
	if id != "" && !hiveID.MatchString(id) {
		return "", core.Errorf(core.Integrity, "read the id of the hive: invalid id %q", clip(id))
	}
	return id, nil
}

// pause waits between two polls of a remote state.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return core.FromContext(ctx)
	}
}
