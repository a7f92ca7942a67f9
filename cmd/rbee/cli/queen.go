package cli

import (
	"context"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rbee-project/rbee/cmd/rbee/cli/term"
	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/client"
)

func queenCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "queen",
		Aliases: []string{"queens"},
		Short:   "Queens: the machines that hold the registry and serve the API",
	}
	cmd.AddCommand(a.reads(&cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the queens",
		Args:    exactly(),
	}, func(ctx context.Context, c *client.Client, _ []string, read ...client.ReadOption) error {
		queens, err := c.Queens(ctx, read...)
		if err != nil {
			return err
		}
		sortQueens(queens)
		return a.show(list(queens), queenTable(queens).Write)
	}))
	return cmd
}

func sortQueens(queens []core.Queen) {
	slices.SortFunc(queens, func(x, y core.Queen) int { return strings.Compare(x.Name+"\x00"+x.ID, y.Name+"\x00"+y.ID) })
}

// queenRole returns a queen's role in raft.
func queenRole(q core.Queen) string {
	switch {
	case q.Leader:
		return "leader"
	case q.Voter:
		return "voter"
	}
	return "learner" // receives the log, and becomes a voter once it has kept up for a while
}

func queenTable(queens []core.Queen) *term.Table {
	t := term.NewTable("No queens.", "NAME", "ROLE", "GOSSIP", "ADDRESS", "API", "VERSION", "ID")
	for _, q := range queens {
		t.Add(q.Name, queenRole(q), q.Gossip, q.Address, q.HTTPAddress, q.Version, q.ID)
	}
	return t
}

func queenNames(ctx context.Context, c *client.Client) ([]string, error) {
	queens, err := c.Queens(ctx, client.Consistency(core.ConsistencyStale))
	var names []string
	for _, q := range queens {
		names = append(names, orElse(q.Name, q.ID))
	}
	return names, err
}
