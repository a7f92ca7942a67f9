package remote

import (
	"archive/tar"
	"compress/gzip"
	"crypto/sha256"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/ssh"
)

func ownArch() string { return runtime.GOARCH }

func TestChooseService(t *testing.T) {
	t.Parallel()
	linux := look{os: "linux", systemdSystem: true, systemdUser: true, sudo: true}
	for _, c := range []struct {
		name   string
		wanted string
		system bool
		m      look
		want   string // empty: refused
	}{
		{"a user with systemd", "", false, linux, ServiceSystemdUser},
		{"auto", ServiceAuto, false, linux, ServiceSystemdUser},
		{"no systemd for users", "", false, look{os: "linux", systemdSystem: true}, ServiceNone},
		{"a container", "", false, look{os: "linux"}, ServiceNone},
		{"a Mac", "", false, look{os: "darwin"}, ServiceLaunchd},
		{"none", ServiceNone, false, linux, ServiceNone},
		{"the whole machine", "", true, linux, ServiceSystemdSystem},
		{"the whole machine as root", "", true, look{os: "linux", systemdSystem: true, root: true}, ServiceSystemdSystem},
		{"the whole machine without sudo", "", true, look{os: "linux", systemdSystem: true}, ""},
		{"the whole machine without systemd", "", true, look{os: "linux", root: true}, ""},
		{"the whole machine and another service", ServiceNone, true, linux, ""},
		{"systemd where there is none", ServiceSystemdUser, false, look{os: "linux"}, ""},
		{"a system service without saying so", ServiceSystemdSystem, false, linux, ""},
		{"launchd on Linux", ServiceLaunchd, false, linux, ""},
		{"nonsense", "cron", false, linux, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			got, err := chooseService(c.wanted, c.system, c.m)
			must.Eq(t, c.want, got)
			if c.want == "" {
				must.Eq(t, core.Unsupported, core.KindOf(err))
				must.NotEq(t, "", core.HintOf(err))
			}
		})
	}
}

// systemd accepts the units without a warning, even for a home folder with every special character.
func TestUnitsAreVerified(t *testing.T) {
	t.Parallel()
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("systemd-analyze is not here: the Debian package systemd has it")
	}
	for _, l := range []layout{
		layoutOf("/home/bee", false, ServiceSystemdUser), layoutOf("/home/b ee/%h/$HOME/\"q", false, ServiceSystemdUser), layoutOf("/root", true, ServiceSystemdSystem),
	} {
		// The program must exist for the check to pass.
		text := strings.Replace(l.systemdText(), unitWord(l.link), "/bin/true", 1)
		text = strings.ReplaceAll(text, "User="+systemUser, "User=daemon")
		text = strings.ReplaceAll(text, "Group="+systemUser, "Group=root")
		file := filepath.Join(t.TempDir(), unitName)
		must.NoError(t, os.WriteFile(file, []byte(text), 0o600))
		args := []string{"verify", "--man=no"}
		if !l.system {
			args = append(args, "--user")
		}
		cmd := exec.CommandContext(t.Context(), analyze, append(args, file)...)
		cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+t.TempDir())
		out, err := cmd.CombinedOutput()
		must.NoError(t, err, must.Sprint(string(out)+text))
		must.Eq(t, "", strings.TrimSpace(string(out)), must.Sprint(text))
		must.StrContains(t, text, "Type=notify\n")
		must.StrContains(t, text, "KillMode=process\n")
	}
}

func TestLaunchdTextIsXML(t *testing.T) {
	t.Parallel()
	d := xml.NewDecoder(strings.NewReader(layoutOf("/Users/a & <b>", false, ServiceLaunchd).unitText()))
	for {
		_, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		must.NoError(t, err)
	}
}

func TestScriptsAreShell(t *testing.T) {
	t.Parallel()
	for _, s := range []string{
		scriptLook, scriptRead, scriptIdentity, scriptOthers, scriptStrangers, scriptFolders, scriptWrite, scriptSums, scriptPublish, scriptLink, scriptBuilds, scriptRemove,
		scriptRemoveFolders, scriptUser, scriptRemoveUser, scriptOwn, scriptJoin, scriptService,
	} {
		out, err := exec.CommandContext(t.Context(), "sh", "-n", "-c", s).CombinedOutput()
		must.NoError(t, err, must.Sprint(string(out)))
		_, err = ssh.Quote(s)
		must.NoError(t, err)
	}
}

// The service script leaves alone a process that is not the agent.
func TestServiceKeepsForeignProcess(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	stranger := exec.CommandContext(t.Context(), "sleep", "600")
	must.NoError(t, stranger.Start())
	t.Cleanup(func() { _ = stranger.Process.Kill(); _ = stranger.Wait() })
	pid := filepath.Join(dir, "pid")
	for _, text := range []string{fmt.Sprint(stranger.Process.Pid), "1", "-1", "0", "", "x; rm", "999999999"} {
		must.NoError(t, os.WriteFile(pid, []byte(text), 0o600))
		service := func(action string) string {
			out, err := exec.CommandContext(t.Context(), "sh", "-c", scriptService, "rbee", "none", action, "/no/rbee", "/no/conf", pid, filepath.Join(dir, "log"), "").CombinedOutput()
			must.NoError(t, err, must.Sprint(string(out)))
			return strings.TrimSpace(string(out))
		}
		must.Eq(t, "stopped", service("state"), must.Sprint(text))
		must.Eq(t, "", service("stop"))
	}
	must.NoError(t, syscall.Kill(stranger.Process.Pid, 0))
}

// A fake systemctl records the service script's calls.
func TestServiceAsksSystemd(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		kind, action, active string
		want                 []string
		out                  string
	}{
		{ServiceSystemdUser, "start", "", []string{"--user daemon-reload", "--user enable rbee.service", "--user start --no-block rbee.service"}, ""},
		{ServiceSystemdUser, "restart", "", []string{"--user daemon-reload", "--user enable rbee.service", "--user restart --no-block rbee.service"}, ""},
		{ServiceSystemdSystem, "start", "", []string{"daemon-reload", "enable rbee.service", "start --no-block rbee.service"}, ""},
		{ServiceSystemdSystem, "stop", "", []string{"stop rbee.service"}, ""},
		{ServiceSystemdUser, "state", "active", []string{"--user is-active rbee.service"}, "running"},
		{ServiceSystemdUser, "state", "activating", []string{"--user is-active rbee.service"}, "running"},
		{ServiceSystemdUser, "state", "failed", []string{"--user is-active rbee.service"}, "stopped"},
		{ServiceSystemdSystem, "remove", "", []string{"disable --now rbee.service", "daemon-reload", "reset-failed rbee.service"}, ""},
	} {
		t.Run(c.kind+" "+c.action+" "+c.active, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			log, unit := filepath.Join(dir, "log"), filepath.Join(dir, "unit")
			must.NoError(t, os.WriteFile(unit, nil, 0o600))
			cmd := exec.CommandContext(t.Context(), "sh", "-c", scriptService, "rbee", c.kind, c.action, "/l", "/c", "/p", "/g", unit)
			cmd.Env = []string{pathWith(t, map[string]string{"systemctl": `echo "$*" >> "` + log + `"; case "$*" in *is-active*) echo "` + c.active + `"; [ "` + c.active + `" = active ] ;; esac`})}
			out, err := cmd.CombinedOutput()
			must.NoError(t, err, must.Sprint(string(out)))
			must.Eq(t, c.out, strings.TrimSpace(string(out)))
			asked, err := os.ReadFile(log)
			must.NoError(t, err)
			must.Eq(t, c.want, strings.Split(strings.TrimSpace(string(asked)), "\n"))
			_, err = os.Stat(unit)
			must.Eq(t, c.action == "remove", errors.Is(err, os.ErrNotExist))
		})
	}
}

func TestConfigText(t *testing.T) {
	t.Parallel()
	got := layoutOf("/home/${bee}", false, ServiceNone).configText(settings{name: "gpu1", bind: "10.0.0.7", advertise: "10.0.0.8", queen: true})
	must.Eq(t, `# Written by "rbee hive install". It is yours from now on: an upgrade leaves it as it is.
name      = "gpu1"
data_dir  = "/home/$${bee}/.local/share/rbee"
store_dir = "/home/$${bee}/.cache/rbee"

bind {
  address   = "10.0.0.7"
  advertise = "10.0.0.8"
}

queen {
  enabled = true
}

hive {
  enabled = true
}
`, got)
}

func TestHiveName(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ asked, host, want string }{
		{"", "gpu1", "gpu1"}, {"desk", "gpu1", "desk"}, {"", "10.0.0.1", ""}, {"", "fe80::1", ""}, {"", "localhost", ""},
	} {
		got, err := hiveName(core.Request{Name: c.asked}, core.HiveHost{Name: c.host})
		must.NoError(t, err)
		must.Eq(t, c.want, got)
	}
	for _, bad := range []string{"localhost", "a b", "-x", `x"`, "${x}"} {
		_, err := hiveName(core.Request{Name: bad}, core.HiveHost{})
		must.Eq(t, core.Invalid, core.KindOf(err), must.Sprint(bad))
	}
}

func FuzzParseLook(f *testing.F) {
	f.Add("os=Linux\narch=x86_64\nhome=/home/x\nuid=0\ndisk=12345\nsudo=1\nsum=sha256sum\nmanifest=/a\nversion=rbee 1.0\n")
	f.Add("home=relative\ndisk=-1\nsum=rm\n=\nos")
	f.Fuzz(func(t *testing.T, text string) {
		m := parseLook(text)
		must.True(t, m.home == "" || filepath.IsAbs(m.home) && printable(m.home))
		must.True(t, m.sum == "" || m.sum == "sha256sum" || m.sum == "shasum")
		must.True(t, m.freeBytes >= -1)
		must.True(t, printable(m.os+m.arch+m.version+m.user))
	})
}

func FuzzParseManifest(f *testing.F) {
	f.Add(manifest{service: ServiceNone, version: "1", build: "1-abc", hive: "feed", folders: []string{"/home/x/.local"}}.text())
	f.Add(manifestHead + "\nservice none\nbuild ../..\nfolder /\n")
	f.Fuzz(func(t *testing.T, text string) {
		m, l, err := parseManifest(text, "/home/x")
		if err != nil {
			must.Eq(t, core.Integrity, core.KindOf(err))
			return
		}
		must.Eq(t, filepath.Join(l.lib, m.build), filepath.Clean(l.build(m.build)))
		must.True(t, filepath.Dir(l.build(m.build)) == l.lib)
		for _, d := range m.folders {
			must.SliceContains(t, l.folders(), d)
		}
		again, _, err := parseManifest(m.text(), "/home/x")
		must.NoError(t, err)
		must.Eq(t, m.text(), again.text())
	})
}

// release writes a folder with a release, as "make release" does.
func release(t *testing.T, names map[string]string) (dir, archive string) {
	t.Helper()
	dir = t.TempDir()
	archive = filepath.Join(dir, "rbee-3.1.4-linux-arm64.tar.gz")
	f, err := os.Create(archive)
	must.NoError(t, err)
	z := gzip.NewWriter(f)
	w := tar.NewWriter(z)
	for name, text := range names {
		h := &tar.Header{Name: name, Mode: 0o755, Size: int64(len(text)), Typeflag: tar.TypeReg}
		if strings.HasPrefix(text, "->") {
			h.Typeflag, h.Linkname, h.Size = tar.TypeSymlink, text[2:], 0
		}
		must.NoError(t, w.WriteHeader(h))
		if h.Size > 0 {
			_, err := w.Write([]byte(text))
			must.NoError(t, err)
		}
	}
	must.NoError(t, errors.Join(w.Close(), z.Close(), f.Close()))
	b, err := os.ReadFile(archive)
	must.NoError(t, err)
	must.NoError(t, os.WriteFile(filepath.Join(dir, "SHA256SUMS"), fmt.Appendf(nil, "%x  %s\n", sha256.Sum256(b), filepath.Base(archive)), 0o600))
	return dir, archive
}

func TestPickRelease(t *testing.T) {
	t.Parallel()
	dir, archive := release(t, map[string]string{
		"r/rbee": "program", "r/plugins/rbee-worker-cpu": "plugin", "r/plugins/evil": "x", "r/../../out": "x", "/abs/plugins/rbee-worker-x": "y", "r/plugins/rbee-worker-link": "->/etc/passwd", "r/README.md": "z",
	})
	b, err := (Program{}).pick(t.Context(), "linux", "arm64", dir, t.TempDir())
	must.NoError(t, err)
	must.Eq(t, "3.1.4", b.version)
	var names []string
	for _, f := range b.files {
		names = append(names, f.path)
	}
	must.Eq(t, []string{"rbee", "plugins/rbee-worker-cpu"}, names)
	must.Eq(t, fmt.Sprintf("%x", sha256.Sum256([]byte("program"))), b.files[0].digest)

	_, err = (Program{}).pick(t.Context(), "darwin", "arm64", dir, t.TempDir())
	must.Eq(t, core.Unsupported, core.KindOf(err))
	_, err = (Program{}).pick(t.Context(), "linux", "arm64", "relative", t.TempDir())
	must.Eq(t, core.Invalid, core.KindOf(err))

	text, err := os.ReadFile(archive)
	must.NoError(t, err)
	must.NoError(t, os.WriteFile(archive, append(text, 'x'), 0o600))
	_, err = (Program{}).pick(t.Context(), "linux", "arm64", dir, t.TempDir())
	must.Eq(t, core.Integrity, core.KindOf(err), must.Sprint("a release with another digest"))
	must.NoError(t, os.Remove(filepath.Join(dir, "SHA256SUMS")))
	_, err = (Program{}).pick(t.Context(), "linux", "arm64", dir, t.TempDir())
	must.Eq(t, core.Integrity, core.KindOf(err))

	dir, archive = release(t, map[string]string{"r/README.md": "z"})
	_, err = (Program{}).pick(t.Context(), "linux", "arm64", dir, t.TempDir())
	must.Eq(t, core.Integrity, core.KindOf(err), must.Sprint("a release without rbee"))
	must.NoError(t, os.Link(archive, filepath.Join(dir, "rbee-3.2-linux-arm64.tar.gz")))
	_, err = (Program{}).pick(t.Context(), "linux", "arm64", dir, t.TempDir())
	must.Eq(t, core.Conflict, core.KindOf(err), must.Sprint("two releases"))
}
