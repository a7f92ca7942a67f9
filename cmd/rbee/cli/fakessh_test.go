package cli

import (
	"time"

	"github.com/rbee-project/rbee/core"
)

const fakeFingerprint = "SHA256:nThbg6kXUpJWGl7E1IGOCspRomTxdCARLviKw6E5SY8"

// fakeOverSSH fakes the operations that reach other machines: the key of "box" is unknown, "gone"
// does not answer.
func fakeOverSSH(r core.Request) (any, error) {
	ms := core.Duration(2 * time.Millisecond)
	switch {
	case r.Operation == core.OpHiveImportSSH:
		return core.ImportResult{
			File: "/home/bee/.ssh/config", Added: []core.HiveHost{{Name: "gpu1", HostName: "10.0.0.7", User: "bee", Port: 2222}}, Kept: []string{"box"}, Problems: []string{"config, line 3: a value is missing"},
		}, nil
	case r.Host == "gone" && r.Operation == core.OpSSHTest:
		return core.SSHTest{Host: r.Host, Via: "desk", Failed: "connect", Steps: []core.SSHStep{
			{Name: "resolve", OK: true, Detail: "10.0.0.9", Took: ms}, {Name: "connect", Detail: "connection refused", Hint: "Is the machine on?", Took: ms},
		}}, nil
	case r.Host == "gone":
		return nil, core.Errorf(core.Unavailable, "connect: connection refused").Hint("Is the machine on?")
	case !r.AcceptNew && r.HostKey != fakeFingerprint && r.Operation == core.OpSSHTest:
		return core.SSHTest{
			Host: r.Host, Via: "desk", Failed: "host key", HostKey: &core.HostKey{Type: "ssh-ed25519", Fingerprint: fakeFingerprint, State: core.HostKeyUnknown},
			Steps: []core.SSHStep{{Name: "host key", Detail: "the host key " + fakeFingerprint + " is not known", Hint: "Compare it.", Took: ms}},
		}, nil
	case !r.AcceptNew && r.HostKey != fakeFingerprint:
		return nil, core.Errorf(core.Unauthenticated, "host key: the host key %s is not known", fakeFingerprint).Hint("Accept it with --host-key %s.", fakeFingerprint)
	}
	done := core.InstallResult{Host: r.Host, Hive: "h9", Name: "box", Version: "0.1.0", Build: "0.1.0-abc", Service: "none", Path: "/home/bee/.local/bin/rbee"}
	switch r.Operation {
	case core.OpSSHTest:
		return core.SSHTest{Host: r.Host, Via: "desk", OK: true, OS: "linux", Arch: "amd64", Steps: []core.SSHStep{{Name: "platform", OK: true, Detail: "linux/amd64", Took: ms}}}, nil
	case core.OpHiveInstall:
		done.Devices, done.Notes = []core.Device{{ID: "cpu", Name: "Some CPU"}}, []string{"nothing starts the hive again"}
		if r.Force {
			done.Before = "0.0.9-def"
		}
	case core.OpHiveStart:
		done.Already = true
	case core.OpHiveUninstall:
		return core.UninstallResult{Host: r.Host, Hive: "h9", Removed: []string{"/home/bee/.local/lib/rbee"}, Kept: []string{"/home/bee/.cache/rbee"}}, nil
	}
	return done, nil
}
