package cli

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rbee-project/rbee/core"
)

// exported is one variable for the programs that a shell starts.
type exported struct {
	name  string
	value string // quoted for a shell
}

// noToken is the key for programs that require one where rbee does not.
const noToken = "rbee"

// dialects maps the APIs that "rbee env" supports to the variables by which their clients find a
// server.
var dialects = map[string]func(base, token string) []exported{
	"openai": func(base, token string) []exported {
		return []exported{{"OPENAI_BASE_URL", quoteShell(base + "/v1")}, {"OPENAI_API_KEY", token}}
	},
	"anthropic": func(base, token string) []exported {
		return []exported{{"ANTHROPIC_BASE_URL", quoteShell(base)}, {"ANTHROPIC_AUTH_TOKEN", token}}
	},
	"ollama": func(base, _ string) []exported {
		return []exported{{"OLLAMA_HOST", quoteShell(base)}}
	},
}

func dialectNames() []string { return []string{"openai", "anthropic", "ollama"} }

func envCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "env [openai|anthropic|ollama]",
		Short: "Print the variables that point other programs here",
		Long: `Print the variables that point programs of other APIs at rbee, for a shell to read. Without an argument those of all APIs.

The token is not printed: the variables take it from RBEE_TOKEN, or from the file of --token-file, when the shell reads them.`,
		Example:           "  eval \"$(rbee env openai)\"\n  rbee env",
		Args:              cobra.MaximumNArgs(1),
		ValidArgs:         dialectNames(),
		ValidArgsFunction: cobra.FixedCompletions(dialectNames(), cobra.ShellCompDirectiveNoFileComp),
		RunE: do(func(ctx context.Context, _ *cobra.Command, args []string) error {
			names := dialectNames()
			if len(args) == 1 {
				if names = args; dialects[args[0]] == nil {
					return usageHint("It is one of "+strings.Join(dialectNames(), ", ")+".", "unknown API %q", args[0])
				}
			}
			vars, err := environmentOf(ctx, a, names)
			if err != nil {
				return err
			}
			values := map[string]string{}
			for _, v := range vars {
				values[v.name] = v.value
			}
			return a.show(values, func(w io.Writer) error {
				for _, v := range vars {
					if _, err := fmt.Fprintf(w, "export %s=%s\n", v.name, v.value); err != nil {
						return err
					}
				}
				return nil
			})
		}),
	}
}

// environmentOf returns the variables for programs that use these APIs.
func environmentOf(ctx context.Context, a *app, names []string) ([]exported, error) {
	c, err := a.connect(ctx)
	if err != nil {
		return nil, err
	}
	token := noToken
	switch {
	case a.tokenFile != "":
		path, err := filepath.Abs(a.tokenFile)
		if err != nil {
			return nil, core.Wrap(err, core.Invalid, "find the token file")
		}
		token = `"$(cat ` + quoteShell(path) + `)"`
	case a.getenv("RBEE_TOKEN") != "":
		token = `"$RBEE_TOKEN"`
	}
	var vars []exported
	for _, name := range names {
		vars = append(vars, dialects[name](c.Base(), token)...)
	}
	if ca := caFileOf(a); ca != "" && strings.HasPrefix(c.Base(), "https://") {
		// Programs on Node use it in addition to the system's. Others have their own settings, or
		// need the certificate in the system's store.
		vars = append(vars, exported{"NODE_EXTRA_CA_CERTS", quoteShell(ca)})
	}
	return vars, nil
}

// caFileOf returns the file of the CA that signs the queens' certificates; empty: the system's.
func caFileOf(a *app) string {
	for _, path := range []string{a.caCert, a.getenv("RBEE_CACERT")} {
		if path == "" {
			continue
		}
		if abs, err := filepath.Abs(path); err == nil {
			return abs
		}
	}
	if l := a.localAgent(); l.identity != nil {
		return filepath.Join(l.dir, "cluster", "ca.pem")
	}
	return ""
}

// quoteShell returns s as one word of a POSIX shell.
func quoteShell(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_./:@%+,=", r)
	}
	if s != "" && !strings.ContainsFunc(s, func(r rune) bool { return !plain(r) }) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
