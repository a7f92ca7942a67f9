package remote

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/rbee-project/rbee/core"
)

// The ways to keep rbee running on a machine.
const (
	ServiceAuto          = "auto"
	ServiceSystemdUser   = "systemd-user"
	ServiceSystemdSystem = "systemd-system"
	ServiceLaunchd       = "launchd"
	ServiceNone          = "none" // a background process that is not restarted
)

// Services returns the values of a request's service.
func Services() []string {
	return []string{ServiceAuto, ServiceSystemdUser, ServiceSystemdSystem, ServiceLaunchd, ServiceNone}
}

// layout holds the paths on the machine, all absolute.
type layout struct {
	system  bool
	service string
	lib     string // holds one folder per build
	link    string // link to the program, in a folder of PATH
	conf    string
	data    string
	store   string
	unit    string // systemd's or launchd's; empty: none
}

const (
	unitName    = "rbee.service"
	launchdName = "org.rbee.agent"
	systemUser  = "rbee" // user of a system service
)

func layoutOf(home string, system bool, service string) layout {
	if system {
		return layout{
			system: true, service: service, lib: "/usr/local/lib/rbee", link: "/usr/local/bin/rbee", conf: "/etc/rbee/rbee.hcl",
			data: "/var/lib/rbee", store: "/var/lib/rbee/store", unit: "/etc/systemd/system/" + unitName,
		}
	}
	l := layout{
		service: service, lib: path.Join(home, ".local/lib/rbee"), link: path.Join(home, ".local/bin/rbee"), conf: path.Join(home, ".config/rbee/rbee.hcl"),
		data: path.Join(home, ".local/share/rbee"), store: path.Join(home, ".cache/rbee"),
	}
	switch service {
	case ServiceSystemdUser:
		l.unit = path.Join(home, ".config/systemd/user", unitName)
	case ServiceLaunchd:
		l.unit = path.Join(home, "Library/LaunchAgents", launchdName+".plist")
	}
	return l
}

func (l layout) manifest() string           { return path.Join(l.lib, "installed") }
func (l layout) build(name string) string   { return path.Join(l.lib, name) }
func (l layout) staging(name string) string { return path.Join(l.lib, ".partial-"+name) }
func (l layout) pidFile() string            { return path.Join(l.lib, "agent.pid") }
func (l layout) logFile() string            { return path.Join(l.lib, "agent.log") }

// umask returns the umask for the program's folders: any user may run a system-wide installation.
func (l layout) umask() string {
	if l.system {
		return "022"
	}
	return "077"
}

// folders lists the required folders, each after its parent.
func (l layout) folders() []string {
	var list []string
	add := func(dir string) {
		var up []string
		for d := dir; d != "/" && d != "."; d = path.Dir(d) {
			up = append(up, d)
		}
		for _, d := range slices.Backward(up) {
			if !slices.Contains(list, d) {
				list = append(list, d)
			}
		}
	}
	add(l.lib)
	add(path.Dir(l.link))
	add(path.Dir(l.conf))
	add(l.data)
	add(l.store)
	if l.unit != "" {
		add(path.Dir(l.unit))
	}
	return list
}

// settings hold the contents of a new hive's configuration.
type settings struct {
	name      string // name of the machine; empty: its host name
	bind      string // address to listen on; empty: all
	advertise string // empty: detected
	queen     bool   // it is also a queen
}

// configText returns the hive's configuration.
func (l layout) configText(s settings) string {
	var b strings.Builder
	b.WriteString("# Written by \"rbee hive install\". It is yours from now on: an upgrade leaves it as it is.\n")
	if s.name != "" {
		fmt.Fprintf(&b, "name      = %s\n", hclString(s.name))
	}
	fmt.Fprintf(&b, "data_dir  = %s\nstore_dir = %s\n", hclString(l.data), hclString(l.store))
	if s.bind != "" || s.advertise != "" {
		b.WriteString("\nbind {\n")
		if s.bind != "" {
			fmt.Fprintf(&b, "  address   = %s\n", hclString(s.bind))
		}
		if s.advertise != "" {
			fmt.Fprintf(&b, "  advertise = %s\n", hclString(s.advertise))
		}
		b.WriteString("}\n")
	}
	fmt.Fprintf(&b, "\nqueen {\n  enabled = %t\n}\n\nhive {\n  enabled = true\n}\n", s.queen)
	return b.String()
}

// hclString quotes a text for HCL, without interpolation.
func hclString(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "${", "$${", "%{", "%%{", "\n", `\n`, "\r", `\r`, "\t", `\t`).Replace(s) + `"`
}

// unitText returns the systemd unit or the launchd property list; empty if the service has none.
func (l layout) unitText() string {
	switch l.service {
	case ServiceSystemdUser, ServiceSystemdSystem:
		return l.systemdText()
	case ServiceLaunchd:
		return l.launchdText()
	}
	return ""
}

// systemdText returns the systemd unit. It leaves out settings that break graphics cards or
// compilers at run time: PrivateDevices, MemoryDenyWriteExecute, ProcSubset.
func (l layout) systemdText() string {
	hardening, who, target := "", "", "default.target"
	if l.system {
		who, target = "User="+systemUser+"\nGroup="+systemUser+"\n", "multi-user.target"
		hardening = `ProtectSystem=full
ProtectHome=true
ProtectKernelModules=true
ProtectKernelLogs=true
ProtectControlGroups=true
ProtectHostname=true
RestrictSUIDSGID=true
`
	}
	return `# Written by "rbee hive install": an upgrade writes it anew. Changes belong into a drop-in ("systemctl edit rbee").
[Unit]
Description=rbee agent
Wants=network-online.target
After=network-online.target

[Service]
Type=notify
NotifyAccess=main
ExecStart=` + unitWord(l.link) + " agent -config " + unitWord(l.conf) + `
` + who + `Restart=on-failure
RestartSec=2
# Workers outlive the agent, which takes them over when it starts again.
KillMode=process
TimeoutStartSec=60
TimeoutStopSec=60
LimitNOFILE=65536
UMask=0077
NoNewPrivileges=true
LockPersonality=true
` + hardening + `
[Install]
WantedBy=` + target + "\n"
}

// unitWord quotes one word of a systemd command line.
func unitWord(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "%", "%%", "$", "$$").Replace(s) + `"`
}

func (l layout) launchdText() string {
	x := strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;").Replace
	return `<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0">
<dict>
  <key>Label</key><string>` + launchdName + `</string>
  <key>ProgramArguments</key>
  <array>
    <string>` + x(l.link) + `</string>
    <string>agent</string>
    <string>-config</string>
    <string>` + x(l.conf) + `</string>
  </array>
  <key>RunAtLoad</key><true/>
  <key>KeepAlive</key><dict><key>SuccessfulExit</key><false/></dict>
  <key>AbandonProcessGroup</key><true/>
  <key>SoftResourceLimits</key><dict><key>NumberOfFiles</key><integer>65536</integer></dict>
  <key>StandardOutPath</key><string>` + x(l.logFile()) + `</string>
  <key>StandardErrorPath</key><string>` + x(l.logFile()) + `</string>
</dict>
</plist>
`
}

// chooseService returns how to keep rbee running on a machine. Errors: Unsupported.
func chooseService(wanted string, system bool, m look) (string, error) {
	no := func(hint, format string, args ...any) (string, error) {
		return "", core.Errorf(core.Unsupported, format, args...).Hint("%s", hint)
	}
	if system {
		switch {
		case !m.root && !m.sudo:
			return no("Let sudo work without a password there, or leave --system-wide out: an installation for one user needs no rights.", "%s may not use sudo without a password", m.user)
		case m.os != "linux" || !m.systemdSystem:
			return no("Leave --system-wide out.", "a system service needs systemd, which does not run there")
		case wanted != "" && wanted != ServiceAuto && wanted != ServiceSystemdSystem:
			return no("Leave --service or --system-wide out.", "--system-wide does not go with the service %s", wanted)
		}
		return ServiceSystemdSystem, nil
	}
	switch wanted {
	case "", ServiceAuto:
		switch {
		case m.systemdUser:
			return ServiceSystemdUser, nil
		case m.os == "darwin":
			return ServiceLaunchd, nil
		}
		return ServiceNone, nil
	case ServiceSystemdUser:
		if !m.systemdUser {
			return no("Use --service none, or --system-wide.", "systemd does not run services of users there")
		}
	case ServiceSystemdSystem:
		return no("Say --system-wide.", "a system service is an installation for the whole machine")
	case ServiceLaunchd:
		if m.os != "darwin" {
			return no("Leave --service out.", "launchd is of macOS")
		}
	case ServiceNone:
	default:
		return no("The services are "+strings.Join(Services(), ", ")+".", "there is no service %q", wanted)
	}
	return wanted, nil
}
