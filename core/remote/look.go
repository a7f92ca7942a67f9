package remote

import (
	"path"
	"strconv"
	"strings"
)

// look holds a machine's description of itself.
type look struct {
	// os and arch are as GOOS and GOARCH; the machine's own names if rbee does not run there.
	os, arch      string
	home, user    string
	root          bool
	sudo          bool // without a password
	systemdSystem bool
	systemdUser   bool
	sum           string   // the tool that computes SHA-256 sums; empty: none
	freeBytes     int64    // in the file system of the home folder; -1: unknown
	manifests     []string // paths of manifests of installations
	version       string   // version of the installed rbee; empty: none
}

// parseLook reads the output of scriptLook. It skips unknown lines, such as a shell's greeting, and
// invalid values.
func parseLook(text string) look {
	m := look{freeBytes: -1}
	for line := range strings.Lines(text) {
		key, value, ok := strings.Cut(strings.TrimRight(line, "\r\n"), "=")
		if !ok || !printable(value) {
			continue
		}
		switch key {
		case "os":
			m.os = strings.ToLower(value)
		case "arch":
			m.arch = map[string]string{"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}[value]
			if m.arch == "" {
				m.arch = clip(value)
			}
		case "home":
			if path.IsAbs(value) && path.Clean(value) == value && value != "/" {
				m.home = value
			}
		case "user":
			m.user = clip(value)
		case "uid":
			m.root = value == "0"
		case "disk":
			if n, err := strconv.ParseInt(value, 10, 64); err == nil && n >= 0 && n < 1<<50 {
				m.freeBytes = n << 10
			}
		case "sudo":
			m.sudo = value == "1"
		case "systemd":
			m.systemdSystem = value == "1"
		case "systemd_user":
			m.systemdUser = value == "1"
		case "sum":
			if value == "sha256sum" || value == "shasum" {
				m.sum = value
			}
		case "manifest":
			m.manifests = append(m.manifests, value)
		case "version":
			m.version = clip(strings.TrimSpace(strings.TrimPrefix(value, "rbee ")))
		}
	}
	return m
}

func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\uFFFD' })
}

func clip(s string) string {
	const most = 80
	if len(s) > most {
		return strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}

// runs reports whether rbee is built for the machine's platform.
func (m look) runs() bool {
	switch m.os + "/" + m.arch {
	case "linux/amd64", "linux/arm64", "darwin/arm64":
		return true
	}
	return false
}
