package pki

import "fmt"

// Secret is key material. Format verbs and JSON hide it; it is a []byte for code that needs the
// bytes. hclog prints slices element by element: never pass it one.
type Secret []byte

// Secrets are several keys, the one in use first. They hide themselves as Secret does.
type Secrets [][]byte

const hidden = "[secret]"

// Format hides the secret from every verb.
func (Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(hidden)) }

// String hides the secret.
func (Secret) String() string { return hidden }

// MarshalText hides the secret in JSON.
func (Secret) MarshalText() ([]byte, error) { return []byte(hidden), nil }

// Format hides the secrets from every verb.
func (Secrets) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(hidden)) }

// String hides the secrets.
func (Secrets) String() string { return hidden }

// MarshalText hides the secrets in JSON.
func (Secrets) MarshalText() ([]byte, error) { return []byte(hidden), nil }
