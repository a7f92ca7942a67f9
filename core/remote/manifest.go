package remote

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/rbee-project/rbee/core"
)

// manifest records what an installation wrote, in a file on the machine.
type manifest struct {
	system  bool
	service string
	version string
	build   string   // folder below lib
	hive    string   // Hive.ID, once it has joined
	user    bool     // the installation created the user of the system service
	folders []string // created by the installation, each after its parent
}

const manifestHead = "rbee-installed 1"

func (m manifest) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\nsystem %t\nservice %s\nversion %s\nbuild %s\nhive %s\nuser %t\n", manifestHead, m.system, m.service, m.version, m.build, m.hive, m.user)
	for _, f := range m.folders {
		fmt.Fprintf(&b, "folder %s\n", f)
	}
	return b.String()
}

// parseManifest parses a manifest, whose folders must be among those of the layout: whatever the
// manifest lists, only those are ever removed. Errors: Integrity.
func parseManifest(text, home string) (manifest, layout, error) {
	bad := func(format string, args ...any) (manifest, layout, error) {
		return manifest{}, layout{}, core.Errorf(core.Integrity, "read what is installed there: "+format, args...).
			Hint("Remove rbee there by hand: its files are in ~/.local/lib/rbee, or in /usr/local/lib/rbee.")
	}
	head, rest, _ := strings.Cut(text, "\n")
	if head != manifestHead {
		return bad("its first line is not %q", manifestHead)
	}
	var m manifest
	for line := range strings.Lines(rest) {
		key, value, _ := strings.Cut(strings.TrimRight(line, "\n"), " ")
		if !printable(value) || len(value) > 4096 {
			return bad("it has a value that cannot be")
		}
		switch key {
		case "system":
			m.system = value == "true"
		case "service":
			m.service = value
		case "version":
			m.version = value
		case "build":
			m.build = value
		case "hive":
			m.hive = value
		case "user":
			m.user = value == "true"
		case "folder":
			m.folders = append(m.folders, value)
		}
	}
	if !slices.Contains(Services(), m.service) || m.service == ServiceAuto || m.system != (m.service == ServiceSystemdSystem) {
		return bad("it names no service")
	}
	if !buildName.MatchString(m.build) {
		return bad("it names no build")
	}
	if m.hive != "" && !hiveID.MatchString(m.hive) {
		return bad("it names no hive")
	}
	l := layoutOf(home, m.system, m.service)
	ours := l.folders()
	for _, f := range m.folders {
		if !slices.Contains(ours, f) || path.Clean(f) != f {
			return bad("it names a folder that is no part of rbee")
		}
	}
	return m, l, nil
}
