package ssh

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"time"

	gossh "golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

const (
	maxKeyBytes = 64 << 10
	// agentTimeout bounds the wait for the agent, which may prompt a person.
	agentTimeout = 30 * time.Second
)

// identities returns the keys to offer to a server and, for messages, the names of these and of the
// skipped ones. close ends the connection to the agent; keep it open while the keys are in use.
func (d *Dialer) identities(ctx context.Context, r route) (signers []gossh.Signer, tried []string, closeAgent func()) {
	closeAgent = func() {}
	var files []gossh.Signer
	var wanted [][]byte // public keys of the identity files
	for _, f := range r.identities {
		if b, err := readKey(f + ".pub"); err == nil {
			if k, _, _, _, err := gossh.ParseAuthorizedKey(b); err == nil {
				wanted = append(wanted, k.Marshal())
			}
		}
		s, problem := fileSigner(f)
		switch {
		case s != nil:
			files = append(files, s)
			wanted = append(wanted, s.PublicKey().Marshal())
			tried = append(tried, fmt.Sprintf("%s (%s)", f, gossh.FingerprintSHA256(s.PublicKey())))
		case problem != "":
			tried = append(tried, f+" (not tried: "+problem+")")
		}
	}
	if d.AgentSocket == "" {
		return files, append(tried, "no SSH agent (SSH_AUTH_SOCK is not set)"), closeAgent
	}
	conn, err := (&net.Dialer{Timeout: agentTimeout}).DialContext(ctx, "unix", d.AgentSocket)
	if err != nil {
		return files, append(tried, "no SSH agent (it does not answer)"), closeAgent
	}
	closeAgent = func() { conn.Close() }
	_ = conn.SetDeadline(time.Now().Add(agentTimeout)) // sockets support deadlines
	held, err := agent.NewClient(conn).Signers()
	if err != nil {
		return files, append(tried, "no SSH agent (it does not answer)"), closeAgent
	}
	for _, s := range held {
		key := s.PublicKey().Marshal()
		only := false
		for _, w := range wanted {
			only = only || bytes.Equal(w, key)
		}
		if r.identitiesOnly && !only {
			continue
		}
		signers = append(signers, s)
		tried = append(tried, "agent's "+gossh.FingerprintSHA256(s.PublicKey()))
	}
	return append(signers, files...), tried, closeAgent
}

// fileSigner returns the key of a file; a missing file is not an error.
func fileSigner(file string) (s gossh.Signer, problem string) {
	b, err := readKey(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ""
	}
	if err != nil {
		return nil, "it cannot be read"
	}
	s, err = gossh.ParsePrivateKey(b)
	if _, locked := errors.AsType[*gossh.PassphraseMissingError](err); locked {
		return nil, "it is encrypted: add it to the SSH agent"
	}
	if err != nil {
		return nil, "it is no private key"
	}
	return s, ""
}

func readKey(file string) ([]byte, error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxKeyBytes {
		return nil, errors.New("no key file")
	}
	return os.ReadFile(file)
}

func triedText(tried []string) string {
	if len(tried) == 0 {
		return "there was none to try"
	}
	return "tried " + strings.Join(tried, ", ")
}
