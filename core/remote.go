package core

// HostKeyState tells what is known about the key that an SSH server presented.
type HostKeyState string

// The states of a host key.
const (
	HostKeyKnown    HostKeyState = "known"    // among the known hosts
	HostKeyUnknown  HostKeyState = "unknown"  // no key of the host is known
	HostKeyAccepted HostKeyState = "accepted" // it was unknown, and is known from now on
	HostKeyChanged  HostKeyState = "changed"  // a different key of the host is known, or this one is revoked: always refused
)

// HostKey is the key that an SSH server presented.
type HostKey struct {
	Type        string       `json:"type"`        // "ssh-ed25519"
	Fingerprint string       `json:"fingerprint"` // "SHA256:…"
	State       HostKeyState `json:"state"`
	Expected    []string     `json:"expected,omitempty"` // fingerprints of the known keys, if it changed
}

// SSHStep is one step of reaching a machine over SSH: resolve, connect, host key, authenticate,
// session, platform, disk, sudo, rbee.
type SSHStep struct {
	Name   string   `json:"name"`
	OK     bool     `json:"ok"`
	Detail string   `json:"detail,omitempty"` // finding, or description of the problem
	Hint   string   `json:"hint,omitempty"`   // what to do next, if it failed
	Took   Duration `json:"took"`
}

// SSHTest is the result of ssh_test.
type SSHTest struct {
	Host    string    `json:"host"`
	Via     string    `json:"via"` // name of the machine that tried
	OK      bool      `json:"ok"`  // all steps up to the platform succeeded: hives can be installed there
	Failed  string    `json:"failed,omitempty"`
	Steps   []SSHStep `json:"steps"`
	HostKey *HostKey  `json:"host_key,omitempty"`

	User          string `json:"user,omitempty"`
	OS            string `json:"os,omitempty"` // as GOOS has it
	Arch          string `json:"arch,omitempty"`
	FreeDiskBytes int64  `json:"free_disk_bytes,omitempty"`
	Sudo          bool   `json:"sudo"`              // root, or sudo without a password
	Service       string `json:"service,omitempty"` // the service manager that would start rbee there: systemd-user, systemd-system, launchd, none
	Version       string `json:"version,omitempty"` // version of the rbee installed there; empty: none
}

// InstallResult is the result of hive_install, hive_start and hive_stop.
type InstallResult struct {
	Host    string   `json:"host"`
	Hive    string   `json:"hive"` // Hive.ID
	Name    string   `json:"name"` // Hive.Name
	Version string   `json:"version,omitempty"`
	Before  string   `json:"before,omitempty"` // the build that an upgrade replaced
	Build   string   `json:"build,omitempty"`  // version and digest of the installed build
	Service string   `json:"service"`          // systemd-user, systemd-system, launchd, none
	Path    string   `json:"path,omitempty"`   // path of the installed program
	Already bool     `json:"already"`          // it was so already: nothing was changed
	Devices []Device `json:"devices,omitempty"`
	Notes   []string `json:"notes,omitempty"` // for people, such as that nothing starts it at boot
}

// UninstallResult is the result of hive_uninstall.
type UninstallResult struct {
	Host    string   `json:"host"`
	Hive    string   `json:"hive,omitempty"`
	Already bool     `json:"already"` // nothing was installed there
	Removed []string `json:"removed"` // paths on the machine
	Kept    []string `json:"kept,omitempty"`
}

// HiveHost is a machine that hives can be installed on, as the queen's machine remembers it.
type HiveHost struct {
	Name         string `json:"name"`                // its name in operations
	HostName     string `json:"host_name,omitempty"` // empty: Name
	User         string `json:"user,omitempty"`
	Port         int    `json:"port,omitempty"`          // 0: the SSH configuration's
	IdentityFile string `json:"identity_file,omitempty"` // path of a private key
	Hive         string `json:"hive,omitempty"`          // Hive.ID of the hive installed there; empty: none
	Imported     bool   `json:"imported,omitempty"`      // it stays in the list when its hive is uninstalled
}

// ImportResult is the result of hive_import_ssh.
type ImportResult struct {
	File     string     `json:"file"`
	Added    []HiveHost `json:"added"`
	Kept     []string   `json:"kept"`     // names that existed already
	Problems []string   `json:"problems"` // unreadable lines, by number
}
