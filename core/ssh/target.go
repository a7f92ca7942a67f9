// Package ssh reaches other machines as the ssh program would, using ~/.ssh/config, known hosts,
// the agent and key files, and runs commands there.
package ssh

import (
	"regexp"

	"github.com/rbee-project/rbee/core"
)

// Target says which machine to reach, and overrides values of ~/.ssh/config. For zero fields, that
// file applies.
type Target struct {
	Host         string // alias in ~/.ssh/config, host name or IP address
	HostName     string // actual host name or address of Host
	User         string
	Port         int
	IdentityFile string // a private key
}

var (
	hostWord = regexp.MustCompile(`^[A-Za-z0-9_:][A-Za-z0-9_.:-]{0,252}$`)
	userWord = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.+@-]{0,63}$`)
)

// Check refuses invalid hosts, users and ports, so that they are never looked up, dialled or shown.
// Errors: Invalid.
func (t Target) Check() error {
	switch {
	case !hostWord.MatchString(t.Host):
		return core.Errorf(core.Invalid, "%q is not a host", clip(t.Host)).Hint("Write a host name, an IP address, or an alias of ~/.ssh/config: letters, digits, dots, dashes, colons and underscores.")
	case t.HostName != "" && !hostWord.MatchString(t.HostName):
		return core.Errorf(core.Invalid, "%q is not a host name", clip(t.HostName)).Hint("Write a host name or an IP address.")
	case t.User != "" && !userWord.MatchString(t.User):
		return core.Errorf(core.Invalid, "%q is not a user name", clip(t.User)).Hint("Write letters, digits, dots, dashes and underscores.")
	case t.Port < 0 || t.Port > 65535:
		return core.Errorf(core.Invalid, "%d is not a port", t.Port).Hint("It is between 1 and 65535; 0 leaves it to ~/.ssh/config.")
	}
	return nil
}

func clip(s string) string {
	const most = 60
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}
