// Package token handles the text of API and join tokens, and the hashes that the registry stores
// instead of them.
//
// An API token is rbee_<id>_<secret>, a join token is rbeejoin_<id>_<secret>_<fingerprint>: ID,
// secret and the fingerprint of the CA certificate are lower-case base32 (RFC 4648, no padding).
// The ID is public, the secret has 160 random bits, and a hash of it is enough to verify it: a
// secret this random cannot be guessed from its hash, so the hash needs no salt and no work factor.
package token

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/rbee-project/rbee/core"
)

// DefaultPort is the RPC port that ParseJoin assumes for a queen without a port.
const DefaultPort = 7834

const (
	apiPrefix  = "rbee"
	joinPrefix = "rbeejoin"

	idChars          = 10 // 50 random bits: enough to stay unique within a registry
	secretBytes      = 20
	secretChars      = secretBytes * 8 / 5
	fingerprintChars = (sha256.Size*8 + 4) / 5
)

const alphabet = "abcdefghijklmnopqrstuvwxyz234567"

func encoding() *base32.Encoding { return base32.NewEncoding(alphabet).WithPadding(base32.NoPadding) }

// Parsed is a parsed token. It is safe to format and log: its secret hides itself.
type Parsed struct {
	Kind        core.TokenKind
	ID          string
	Secret      Secret
	Fingerprint string // fingerprint of the CA certificate; join tokens only
}

// New makes an API token. The text holds the only copy of its secret: show it once and keep only
// the ID and the hash.
func New() (id string, secretHash []byte, text string) {
	p := fresh(core.TokenAPI)
	return p.ID, Hash(p.Secret), p.Text()
}

// Renew makes another secret for the API token with this ID, which must come from New.
func Renew(id string) (secretHash []byte, text string) {
	p := fresh(core.TokenAPI)
	p.ID = id
	return Hash(p.Secret), p.Text()
}

// NewJoin makes a join token for the cluster whose CA certificate has the fingerprint (see
// pki.Fingerprint). It panics on an invalid fingerprint.
func NewJoin(fingerprint string) (id string, secretHash []byte, text string) {
	if !is(fingerprint, fingerprintChars) {
		panic("token: not the fingerprint of a CA certificate")
	}
	p := fresh(core.TokenJoin)
	p.Fingerprint = fingerprint
	return p.ID, Hash(p.Secret), p.Text()
}

func fresh(kind core.TokenKind) Parsed {
	b := make([]byte, secretBytes+7) // 7 bytes give 12 characters, of which the ID takes 10
	_, _ = rand.Read(b)              // never fails
	return Parsed{
		Kind:   kind,
		ID:     encoding().EncodeToString(b[secretBytes:])[:idChars],
		Secret: Secret(encoding().EncodeToString(b[:secretBytes])),
	}
}

// Parse parses a token. It does not check it against a registry. Errors: Unauthenticated; they
// never repeat the text.
func Parse(text string) (Parsed, error) {
	parts := strings.Split(text, "_")
	var p Parsed
	switch {
	case len(parts) == 3 && parts[0] == apiPrefix:
		p = Parsed{Kind: core.TokenAPI, ID: parts[1], Secret: Secret(parts[2])}
	case len(parts) == 4 && parts[0] == joinPrefix:
		p = Parsed{Kind: core.TokenJoin, ID: parts[1], Secret: Secret(parts[2]), Fingerprint: parts[3]}
	default:
		return Parsed{}, malformed("it is not a token of rbee")
	}
	switch {
	case !is(p.ID, idChars):
		return Parsed{}, malformed("its second part is not an id")
	case !is(string(p.Secret), secretChars):
		return Parsed{}, malformed("its third part is not a secret")
	case p.Kind == core.TokenJoin && !is(p.Fingerprint, fingerprintChars):
		return Parsed{}, malformed("its last part is not the fingerprint of a certificate")
	}
	return p, nil
}

// ParseJoin parses TOKEN@host, TOKEN@host:port or TOKEN@[v6]:port, the argument of "rbee agent
// -join" and "rbee cluster join". The address is host:port, with DefaultPort if none is given.
// Errors: Invalid; they never repeat the token.
func ParseJoin(text string) (Parsed, string, error) {
	tok, address, found := strings.Cut(text, "@")
	if !found {
		return Parsed{}, "", badJoin("it does not say which queen to join through")
	}
	p, err := Parse(tok)
	if err != nil {
		return Parsed{}, "", badJoin(err.Error())
	}
	if p.Kind != core.TokenJoin {
		return Parsed{}, "", badJoin("this is an API token")
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil { // no port, or no address at all
		host, port = strings.TrimSuffix(strings.TrimPrefix(address, "["), "]"), strconv.Itoa(DefaultPort)
		if strings.Contains(host, ":") && net.ParseIP(host) == nil {
			return Parsed{}, "", badJoin("the address after @ is neither host nor host:port")
		}
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return Parsed{}, "", badJoin("the port is not a number from 1 to 65535")
	}
	if host == "" || len(host) > 253 || strings.ContainsAny(host, " \t\r\n/\\@[]") {
		return Parsed{}, "", badJoin("there is no host name or address after @")
	}
	return p, net.JoinHostPort(host, port), nil
}

// Text returns the whole token: show it once, or send it to a queen within TLS. Never log it.
func (p Parsed) Text() string {
	if p.Kind == core.TokenJoin {
		return strings.Join([]string{joinPrefix, p.ID, string(p.Secret), p.Fingerprint}, "_")
	}
	return strings.Join([]string{apiPrefix, p.ID, string(p.Secret)}, "_")
}

// Matches reports, in constant time, whether the registry's hash is the hash of the token's secret.
// An empty hash matches nothing.
func (p Parsed) Matches(hash []byte) bool {
	return subtle.ConstantTimeCompare(Hash(p.Secret), hash) == 1
}

// Hash returns the hash of a secret that the registry stores: SHA-256 of its text.
func Hash(s Secret) []byte {
	h := sha256.Sum256([]byte(s))
	return h[:]
}

// is reports whether s consists of n characters of the alphabet.
func is(s string, n int) bool {
	return len(s) == n && strings.Trim(s, alphabet) == ""
}

func malformed(why string) error {
	return core.Errorf(core.Unauthenticated, "the token is malformed: %s", why).Hint(
		"Copy the whole token, as it was shown when it was made; \"rbee token create\" makes a new one.")
}

func badJoin(why string) error {
	return core.Errorf(core.Invalid, "cannot join with this: %s", why).Hint(
		"Join with TOKEN@host or TOKEN@host:port, where the token is from \"rbee token create --type join\" and the host is any queen.")
}

// Secret is the secret part of a token. Format verbs, JSON and loggers hide it; string(s) is the
// secret itself.
type Secret string

const hidden = "[secret]"

// Format hides the secret from every verb.
func (Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(hidden)) }

// String hides the secret.
func (Secret) String() string { return hidden }

// MarshalText hides the secret in JSON.
func (Secret) MarshalText() ([]byte, error) { return []byte(hidden), nil }

// Clip shortens a name from outside so that it fits in an error. It hides anything that looks like
// a whole token.
func Clip(s string) string {
	if _, err := Parse(s); err == nil {
		return "…"
	}
	return s[:min(len(s), 40)]
}
