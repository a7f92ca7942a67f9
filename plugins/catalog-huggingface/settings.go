package main

import (
	"cmp"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/catalog"
)

const publicHub = "https://huggingface.co"

// settings come from the config block and from the environment variables that Hugging Face's own
// tools read.
type settings struct {
	endpoint  *url.URL
	token     string // from the config block
	tokenFile string // from the config block
	envToken  string
	tokenPath string // where Hugging Face's tools store it
	cache     string // folder of the Hub's cache; empty: not used
	offline   bool
}

// environ looks up the first set one of several variables.
type environ []string

func (e environ) get(names ...string) string {
	for _, name := range names {
		for _, entry := range e {
			if v, ok := strings.CutPrefix(entry, name+"="); ok && strings.TrimSpace(v) != "" {
				return strings.TrimSpace(v)
			}
		}
	}
	return ""
}

func (e environ) on(name string) bool {
	switch strings.ToUpper(e.get(name)) {
	case "1", "ON", "YES", "TRUE":
		return true
	}
	return false
}

// fromEnviron reads the variables that Hugging Face's tools read.
func fromEnviron(e environ) settings {
	home := e.get("HF_HOME")
	if home == "" {
		if cache := cmp.Or(e.get("XDG_CACHE_HOME"), under(e.get("HOME"), ".cache")); cache != "" {
			home = filepath.Join(cache, "huggingface")
		}
	}
	s := settings{
		cache:   cmp.Or(e.get("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"), under(home, "hub")),
		offline: e.on("HF_HUB_OFFLINE"),
	}
	if !e.on("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
		s.envToken = e.get("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
		s.tokenPath = cmp.Or(e.get("HF_TOKEN_PATH"), under(home, "token"))
	}
	return s
}

func under(dir, name string) string {
	if dir == "" {
		return ""
	}
	return filepath.Join(dir, name)
}

// parseEndpoint reads the address of a Hub.
func parseEndpoint(text string) (*url.URL, error) {
	u, err := url.Parse(strings.TrimRight(text, "/"))
	if err != nil || (u.Scheme != "https" && u.Scheme != "http") || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("%q is not an address of a Hub: %w", text, catalog.ErrInvalid)
	}
	return u, nil
}

// bearer returns the token to send, read anew each time so that a renewed one takes effect. Empty:
// none.
func (s *settings) bearer() (string, error) {
	token := s.token
	if token == "" && s.tokenFile != "" {
		b, err := os.ReadFile(s.tokenFile)
		if err != nil {
			return "", sdk.WithHint(fmt.Errorf("the token file cannot be read: %w: %w", err, catalog.ErrUnauthenticated), "Correct token_file in the block catalog \"huggingface\".")
		}
		token = string(b)
	}
	if token == "" {
		token = s.envToken
	}
	if token == "" && s.tokenPath != "" {
		// A missing file is not an error: the user has not logged in.
		if b, err := os.ReadFile(s.tokenPath); err == nil {
			token = string(b)
		}
	}
	token = strings.TrimSpace(token)
	for _, r := range token {
		if r <= ' ' || r > '~' {
			return "", sdk.WithHint(fmt.Errorf("the token for the Hub is not one line of letters and digits: %w", catalog.ErrInvalid), "Set it again; it begins with hf_.")
		}
	}
	return token, nil
}
