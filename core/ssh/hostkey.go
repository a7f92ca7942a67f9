package ssh

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	gossh "golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/disk"
)

// hostKeys verifies the key of a server, and records the key that it saw.
type hostKeys struct {
	known     gossh.HostKeyCallback // nil: no file
	own       string                // file to add accepted keys to
	name      string                // address in the format of known_hosts, "host:port"
	accept    string                // fingerprint to accept; empty: none
	acceptNew bool

	seen  *core.HostKey // nil: the server has shown none
	taken error
}

func (d *Dialer) hostKeys(r route) (*hostKeys, error) {
	k := &hostKeys{
		own: d.KnownHosts, accept: d.Accept, acceptNew: d.AcceptNew,
		name: net.JoinHostPort(cmp.Or(r.hostKeyAlias, r.hostName), strconv.Itoa(r.port)),
	}
	if r.hostKeyAlias != "" {
		// OpenSSH looks an alias up without the port.
		k.name = net.JoinHostPort(r.hostKeyAlias, "22")
	}
	var files []string
	for _, f := range append(r.knownHosts, "/etc/ssh/ssh_known_hosts", d.KnownHosts) {
		if info, err := os.Stat(f); err == nil && info.Mode().IsRegular() {
			files = append(files, f)
		}
	}
	if len(files) == 0 {
		return k, nil
	}
	var err error
	if k.known, err = knownhosts.New(files...); err != nil {
		return nil, core.WithHint(core.Wrap(err, core.Invalid, "read the known hosts"), "Correct or remove that line: without the file rbee cannot verify hosts.")
	}
	return k, nil
}

// algorithms returns the host key algorithms to request: those of known keys first, so that another
// key of the same host does not look like a change.
func (k *hostKeys) algorithms() []string {
	if k.known == nil {
		return nil
	}
	var want []string
	unknown, _ := errors.AsType[*knownhosts.KeyError](k.known(k.name, &net.TCPAddr{}, noKey{}))
	if unknown == nil || len(unknown.Want) == 0 {
		return nil
	}
	for _, w := range unknown.Want {
		if w.Key.Type() == gossh.KeyAlgoRSA {
			want = append(want, gossh.KeyAlgoRSASHA512, gossh.KeyAlgoRSASHA256)
		}
		want = append(want, w.Key.Type())
	}
	for _, a := range []string{
		gossh.KeyAlgoED25519, gossh.KeyAlgoECDSA256, gossh.KeyAlgoECDSA384, gossh.KeyAlgoECDSA521, gossh.KeyAlgoRSASHA512, gossh.KeyAlgoRSASHA256,
	} {
		if !slices.Contains(want, a) {
			want = append(want, a)
		}
	}
	return want
}

// noKey is a key that no host has.
type noKey struct{}

func (noKey) Type() string                          { return "none" }
func (noKey) Marshal() []byte                       { return []byte("none") }
func (noKey) Verify([]byte, *gossh.Signature) error { return errors.New("no key") }

func (k *hostKeys) refuse(err error, hint string) error {
	k.taken = core.WithHint(err, "%s", hint)
	return k.taken
}

// check is a gossh.HostKeyCallback. Errors: Unauthenticated for an unknown key, Integrity for a
// changed or revoked one.
func (k *hostKeys) check(_ string, remote net.Addr, key gossh.PublicKey) error {
	k.seen = &core.HostKey{Type: key.Type(), Fingerprint: gossh.FingerprintSHA256(key), State: core.HostKeyUnknown}
	var err error = &knownhosts.KeyError{}
	if k.known != nil {
		err = k.known(k.name, remote, key)
	}
	if err == nil {
		k.seen.State = core.HostKeyKnown
		return nil
	}
	unknown, ok := errors.AsType[*knownhosts.KeyError](err)
	if !ok {
		k.seen.State = core.HostKeyChanged
		return k.refuse(core.Errorf(core.Integrity, "the host key %s is marked as revoked", k.seen.Fingerprint), "Another machine may answer in the host's place. Ask the host's administrator.")
	}
	if len(unknown.Want) > 0 {
		k.seen.State = core.HostKeyChanged
		var places []string
		for _, w := range unknown.Want {
			k.seen.Expected = append(k.seen.Expected, gossh.FingerprintSHA256(w.Key))
			places = append(places, fmt.Sprintf("%s, line %d", w.Filename, w.Line))
		}
		return k.refuse(core.Errorf(core.Integrity, "the host key has changed: %s is known, the host shows %s", strings.Join(k.seen.Expected, " or "), k.seen.Fingerprint),
			"Somebody else may answer in the host's place. If the host was set up anew, remove the old key: "+strings.Join(places, "; ")+".")
	}
	if !k.acceptNew && k.accept != k.seen.Fingerprint {
		err := core.Errorf(core.Unauthenticated, "the host key %s (%s) is not known", k.seen.Fingerprint, k.seen.Type)
		if k.accept != "" {
			err = core.Errorf(core.Integrity, "the host key is %s, and %s was to be accepted", k.seen.Fingerprint, clip(k.accept))
		}
		return k.refuse(err, "Compare it with what the host itself says (ssh-keygen -lf on its /etc/ssh/*.pub), then accept it with --host-key "+k.seen.Fingerprint+", or any key with --accept-new.")
	}
	if err := appendLine(k.own, knownhosts.Line([]string{k.name}, key)); err != nil {
		return k.refuse(err, "The data folder of the agent must be writable.")
	}
	k.seen.State = core.HostKeyAccepted
	return nil
}

// appendLine adds a line to a file and creates the file if it is missing.
func appendLine(file, line string) error {
	err := disk.MakeFolder(filepath.Dir(file))
	if err == nil {
		err = disk.Append(file, line)
	}
	return core.Wrap(err, core.Internal, "remember the host key")
}
