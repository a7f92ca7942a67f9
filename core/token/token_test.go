package token_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/token"
)

var fingerprint = strings.Repeat("abcdefghijklmnopqrstuvwxyz234567", 2)[:52]

func TestAPITokenRoundTrip(t *testing.T) {
	t.Parallel()
	id, hash, text := token.New()
	must.StrHasPrefix(t, "rbee_"+id+"_", text)
	must.Len(t, 10, []byte(id))
	p, err := token.Parse(text)
	must.NoError(t, err)
	must.Eq(t, core.TokenAPI, p.Kind)
	must.Eq(t, id, p.ID)
	must.Eq(t, "", p.Fingerprint)
	must.Eq(t, text, p.Text())
	must.True(t, p.Matches(hash))
	must.Len(t, 32, hash)
	otherID, otherHash, _ := token.New()
	must.NotEq(t, id, otherID)
	must.False(t, p.Matches(otherHash))
	must.False(t, p.Matches(nil))
	must.False(t, p.Matches(hash[:31]))
	must.False(t, p.Matches([]byte(p.Secret)))
}

func TestJoinTokenRoundTrip(t *testing.T) {
	t.Parallel()
	id, hash, text := token.NewJoin(fingerprint)
	p, address, err := token.ParseJoin(text + "@queen.example:1234")
	must.NoError(t, err)
	must.Eq(t, "queen.example:1234", address)
	must.Eq(t, core.TokenJoin, p.Kind)
	must.Eq(t, id, p.ID)
	must.Eq(t, fingerprint, p.Fingerprint)
	must.True(t, p.Matches(hash))
	must.Eq(t, text, p.Text())
	must.Panic(t, func() { token.NewJoin("no fingerprint") })
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	_, _, api := token.New()
	_, _, join := token.NewJoin(fingerprint)
	for name, text := range map[string]string{
		"empty":                "",
		"no prefix":            strings.TrimPrefix(api, "rbee_"),
		"another prefix":       "sk-1234567890abcdef",
		"upper case":           strings.ToUpper(api),
		"cut":                  api[:len(api)-1],
		"longer":               api + "a",
		"space":                api + " ",
		"not base32":           api[:len(api)-1] + "0",
		"id cut":               strings.Replace(api, "rbee_", "rbee_a", 1),
		"api with fingerprint": api + "_" + fingerprint,
		"join without":         join[:strings.LastIndex(join, "_")],
		"join cut":             join[:len(join)-1],
		"join as api":          "rbee" + strings.TrimPrefix(join, "rbeejoin"),
		"one more part":        join + "_a",
		"not UTF-8":            api[:20] + "\xff" + api[21:],
		"long":                 strings.Repeat("_", 1<<20),
	} {
		_, err := token.Parse(text)
		must.Eq(t, core.Unauthenticated, core.KindOf(err), must.Sprint(name))
		must.NotEq(t, "", core.HintOf(err))
		if len(text) > 30 && len(text) < 1000 {
			must.StrNotContains(t, err.Error()+core.HintOf(err), text[20:30], must.Sprint(name))
		}
	}
}

func TestParseJoinAddresses(t *testing.T) {
	t.Parallel()
	_, _, join := token.NewJoin(fingerprint)
	_, _, api := token.New()
	for text, want := range map[string]string{
		join + "@10.0.0.1":        "10.0.0.1:7834",
		join + "@10.0.0.1:99":     "10.0.0.1:99",
		join + "@queen":           "queen:7834",
		join + "@queen.example:1": "queen.example:1",
		join + "@[fe80::1]:7":     "[fe80::1]:7",
		join + "@[fe80::1]":       "[fe80::1]:7834",
		join + "@fe80::1":         "[fe80::1]:7834",
		join:                      "",
		join + "@":                "",
		join + "@:7834":           "",
		join + "@host:0":          "",
		join + "@host:65536":      "",
		join + "@host:https":      "",
		join + "@a:b:c":           "",
		join + "@a b":             "",
		join + "@host/path":       "",
		join + "@user@host":       "",
		api + "@host":             "",
		"@host":                   "",
		join[:30] + "@host":       "",
	} {
		_, got, err := token.ParseJoin(text)
		must.Eq(t, want, got, must.Sprint(text))
		if want == "" {
			must.Eq(t, core.Invalid, core.KindOf(err), must.Sprint(text))
			must.NotEq(t, "", core.HintOf(err))
			must.StrNotContains(t, err.Error(), join[21:40])
		} else {
			must.NoError(t, err)
		}
	}
}

func TestSecretHidesItself(t *testing.T) {
	t.Parallel()
	_, _, text := token.New()
	p, err := token.Parse(text)
	must.NoError(t, err)
	secret := string(p.Secret)
	var b bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d", "%t"} {
		fmt.Fprintf(&b, verb+verb+verb, p, &p, p.Secret)
	}
	b.WriteString(p.Secret.String() + fmt.Sprint(p.Secret))
	j, err := json.Marshal(p)
	must.NoError(t, err)
	b.Write(j)
	for _, asJSON := range []bool{false, true} {
		hclog.New(&hclog.LoggerOptions{Output: &b, JSONFormat: asJSON}).Info("token", "token", p, "secret", p.Secret)
	}
	must.StrNotContains(t, b.String(), secret)
	must.StrNotContains(t, b.String(), fmt.Sprintf("%x", secret))
	must.StrContains(t, b.String(), p.ID)
}

func FuzzParse(f *testing.F) {
	_, _, api := token.New()
	_, _, join := token.NewJoin(fingerprint)
	for _, s := range []string{"", api, join, join + "@h:1", "rbee__", "rbeejoin___", "@", join + "@[::1]"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if p, err := token.Parse(text); err == nil && p.Text() != text {
			t.Fatalf("%q was read as %q", text, p.Text())
		}
		p, address, err := token.ParseJoin(text)
		if err != nil {
			return
		}
		if p.Kind != core.TokenJoin || address == "" || !strings.HasPrefix(text, p.Text()+"@") {
			t.Fatalf("%q was read as a token for %q", text, address)
		}
		if _, again, err := token.ParseJoin(p.Text() + "@" + address); err != nil || again != address {
			t.Fatalf("address %q does not survive: %q, %v", address, again, err)
		}
	})
}
