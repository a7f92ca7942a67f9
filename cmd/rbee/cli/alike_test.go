package cli

import (
	"slices"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
	"github.com/spf13/cobra"
)

// The verbs are uniform: destructive ones ask first and have a dry run, arguments that name
// something of the cluster are completed, and everything is described.
func TestCommandsAreAlike(t *testing.T) {
	t.Parallel()
	destroys := []string{"delete", "rm", "retire", "stop", "remove", "revoke", "uninstall", "leave"}
	mild := []string{"rbee agent stop", "rbee alias remove"} // one ends what "rbee run" started by itself; "rbee alias set" undoes the other
	// The shell completes file names; free text is not completed.
	free := []string{"[TEXT]", "FILE", "[FILE]", "FILE...", "[FILE...]", "FILE|DIR...", "[FILE|DIR...]", "PATH", "PATH|PLUGIN", "SOURCE", "TOKEN@HOST[:PORT]", "[PROMPT]"}
	byName := []string{"rbee cluster join", "rbee infer", "rbee config fmt", "rbee config show", "rbee config validate"}
	seen := 0
	var visit func(c *cobra.Command)
	visit = func(c *cobra.Command) {
		for _, sub := range c.Commands() {
			if sub.Name() == "help" || sub.Name() == "completion" || sub.Hidden {
				continue
			}
			visit(sub)
			path := sub.CommandPath()
			must.NotEq(t, "", sub.Short, must.Sprint(path))
			if sub.HasSubCommands() {
				continue
			}
			seen++
			if slices.Contains(destroys, sub.Name()) && !slices.Contains(mild, path) {
				if sub.Flags().Lookup("yes") == nil {
					t.Errorf("%s has no --yes", path)
				}
				if sub.Flags().Lookup("dry-run") == nil {
					t.Errorf("%s has no --dry-run", path)
				}
			}
			if _, args, takes := strings.Cut(sub.Use, " "); takes && !strings.HasPrefix(strings.TrimPrefix(args, "["), "--") && !slices.Contains(free, args) && !slices.Contains(byName, path) {
				if sub.ValidArgsFunction == nil && len(sub.ValidArgs) == 0 {
					t.Errorf("%s does not complete %s", path, args)
				}
			}
		}
	}
	visit(rootCommand(&app{}))
	must.Greater(t, 40, seen)
}
