package operation

import "github.com/rbee-project/rbee/core"

// The operations on hives.
var ( // constant
	HiveList = of[[]core.Hive](Spec{
		Name: core.OpHiveList, Number: 14, Title: "HiveList", Summary: "List the hives of the cluster.",
		Runs: RunsOnQueen, Registry: true, Get: "/v1/hives", CLI: []string{"hive list"}, Test: "TestOperations",
	})

	HiveGet = of[core.Hive](Spec{
		Name: core.OpHiveGet, Number: 15, Title: "HiveGet", Summary: "Show a hive with its devices.",
		Runs: RunsOnQueen, Registry: true, Get: "/v1/hives/{hive}", CLI: []string{"hive get"}, Test: "TestOperations",
		Fields: []Field{hiveField()},
	})

	HiveInstall = of[core.InstallResult](Spec{
		Name: core.OpHiveInstall, Number: 16, Title: "HiveInstall", Summary: "Install a hive on another machine, or upgrade it: copy, configure, join, start.",
		Runs: RunsOverSSH, Scope: core.ScopeAdmin, CLI: []string{"hive install"}, Test: "TestHivesOverSSH",
		Fields: append(overSSH(),
			Field{Name: "system", Doc: "word to install for the whole machine, with sudo; otherwise it is for the user who logs in"},
			Field{Name: "service", Enum: []string{"auto", "systemd-user", "systemd-system", "launchd", "none"}, Doc: "way in which the hive is kept running; empty: auto"},
			Field{Name: "from", Doc: "folder with releases, on the queen's machine; empty: the queen's own build", Max: 4096},
			Field{Name: "force", Doc: "word to install what is installed already"},
			Field{Name: "name", Doc: "name of the hive; empty: the host", Max: 63},
			Field{Name: "bind", Doc: "IP address that the hive listens on; empty: all", Max: 64},
			Field{Name: "advertise", Doc: "IP address that others reach the hive at; empty: it is found out", Max: 64},
			Field{Name: "queen", Doc: "word to have it be a queen, too"},
		),
	})

	HiveUninstall = of[core.UninstallResult](Spec{
		Name: core.OpHiveUninstall, Number: 17, Title: "HiveUninstall", Summary: "Remove an installed hive: drain, leave the cluster, remove what was installed.",
		Runs: RunsOverSSH, Scope: core.ScopeAdmin, CLI: []string{"hive uninstall"}, Test: "TestHivesOverSSH",
		Fields: append(overSSH(),
			Field{Name: "keep_models", Doc: "word to leave the models and worker binaries there"},
			Field{Name: "grace", Doc: "time that running requests may continue; 0: 5 minutes"},
		),
	})

	HiveStart = of[core.InstallResult](Spec{
		Name: core.OpHiveStart, Number: 18, Title: "HiveStart", Summary: "Start the service of an installed hive and wait until it is ready.",
		Runs: RunsOverSSH, Scope: core.ScopeAdmin, CLI: []string{"hive start"}, Test: "TestHivesOverSSH", Fields: overSSH(),
	})

	HiveStop = of[core.InstallResult](Spec{
		Name: core.OpHiveStop, Number: 19, Title: "HiveStop", Summary: "Stop the service of an installed hive; its workers stay unless it is drained.",
		Runs: RunsOverSSH, Scope: core.ScopeAdmin, CLI: []string{"hive stop"}, Test: "TestHivesOverSSH",
		Fields: append(overSSH(),
			Field{Name: "drain", Doc: "word to let running requests end, and then the workers"},
			Field{Name: "grace", Doc: "time that running requests may continue with drain; 0: 5 minutes"},
		),
	})

	HiveStatus = of[core.HiveHealth](Spec{
		Name: core.OpHiveStatus, Number: 20, Title: "HiveStatus", Summary: "Show how each queen sees a hive, and whether it answers.",
		Runs: RunsOnQueen, Registry: true, Get: "/v1/hives/{hive}/status", CLI: []string{"hive status"}, Test: "TestOperations",
		Fields: []Field{hiveField()},
	})

	HiveRefreshCapabilities = of[core.RefreshResult](Spec{
		Name: core.OpHiveRefreshCapabilities, Number: 21, Title: "HiveRefreshCapabilities", Summary: "Probe the devices and worker types of a hive again.",
		Runs: RunsOnQueen, AsksHive: true, Slow: true, CLI: []string{"hive refresh"}, Test: "TestOperations",
		Fields: []Field{hiveField()},
	})

	SSHTest = of[core.SSHTest](Spec{
		Name: core.OpSSHTest, Number: 22, Title: "SshTest", Summary: "Try to reach a machine over SSH and report how far that gets, within 5 seconds.",
		Runs: RunsOverSSH, Scope: core.ScopeAdmin, CLI: []string{"hive ssh-test"}, Test: "TestHivesOverSSH", Fields: overSSH(),
	})

	HiveImportSSH = of[core.ImportResult](Spec{
		Name: core.OpHiveImportSSH, Number: 23, Title: "HiveImportSsh", Summary: "Add the hosts of an OpenSSH configuration to those that hives can be installed on.",
		Runs: RunsOverSSH, Scope: core.ScopeAdmin, CLI: []string{"hive import-ssh"}, Test: "TestHivesOverSSH",
		Fields: []Field{{Name: "file", Doc: "path of the file on the queen's machine; empty: ~/.ssh/config there", Max: 4096}},
	})
)

func hives() []Spec {
	return []Spec{
		HiveList.Spec, HiveGet.Spec, HiveInstall.Spec, HiveUninstall.Spec,
		HiveStart.Spec, HiveStop.Spec, HiveStatus.Spec, HiveRefreshCapabilities.Spec,
		SSHTest.Spec, HiveImportSSH.Spec,
	}
}

// overSSH returns the fields that describe how to reach a machine over SSH. Callers who may add
// machines to the cluster may use the SSH identity of a queen.
func overSSH() []Field {
	return []Field{
		{Name: "host", Required: true, Doc: "alias of ~/.ssh/config, host name or IP address; or the name of a hive that was installed there", Max: 253},
		{Name: "user", Doc: "user to log in as; empty: what ~/.ssh/config says, else whoever runs the agent", Max: 64},
		{Name: "port", Doc: "port of the SSH server; 0: what ~/.ssh/config says, else 22", Max: 65535},
		{Name: "host_key", Doc: "fingerprint of an unknown host key that is accepted, SHA256:…", Max: 100},
		{Name: "accept_new", Doc: "word to accept any unknown host key; a changed one never is"},
	}
}

// hiveField returns the field for the hive that an operation reads from, where it is required.
func hiveField() Field { return Field{Name: "hive", Required: true, Doc: "id or name of a hive"} }
