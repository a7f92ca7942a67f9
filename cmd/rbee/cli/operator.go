package cli

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rbee-project/rbee/cmd/rbee/cli/term"
	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/client"
)

func operatorCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "operator", Short: "Raft, snapshots, gossip keys and settings of the cluster: for days when something is broken"}
	raft := &cobra.Command{Use: "raft", Short: "The queens as raft knows them"}
	raft.AddCommand(raftListCommand(a), raftRemoveCommand(a), raftTransferCommand(a))
	cmd.AddCommand(raft, snapshotCommand(a), recoveryKeyCommand(a), keyringCommand(a), settingCommand(a))
	return cmd
}

func raftListCommand(a *app) *cobra.Command {
	return a.reads(&cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the members of raft",
		Long: `List the members of raft. A majority of the voters must be there to change anything.
With --stale it is what the queen that is asked knows, also without a leader.`,
		Args: exactly(),
	}, func(ctx context.Context, c *client.Client, _ []string, read ...client.ReadOption) error {
		servers, err := c.RaftServers(ctx, read...)
		if err != nil {
			return err
		}
		sortQueens(servers)
		return a.show(list(servers), raftTable(servers).Write)
	})
}

func raftTable(servers []core.Queen) *term.Table {
	t := term.NewTable("Raft has no members.", "RAFT ID", "ROLE", "NAME", "ADDRESS", "GOSSIP", "QUEEN")
	for _, q := range servers {
		t.Add(orElse(q.RaftID, q.ID), queenRole(q), q.Name, q.Address, q.Gossip, q.ID)
	}
	return t
}

// findServer finds the raft member with a raft id, node id or name.
func findServer(servers []core.Queen, id string) (core.Queen, error) {
	var (
		matches []core.Queen
		names   []string
	)
	for _, q := range servers {
		if q.RaftID == id {
			return q, nil
		}
		if q.ID == id || q.Name == id {
			matches = append(matches, q)
		}
		names = append(names, orElse(q.Name, q.ID), orElse(q.RaftID, q.ID))
	}
	switch len(matches) {
	case 1:
		return matches[0], nil
	case 0:
		hint := `"rbee operator raft list" shows the members.`
		if n := nearest(id, names); n != "" {
			hint = fmt.Sprintf("Did you mean %s? %s", n, hint)
		}
		return core.Queen{}, core.Errorf(core.NotFound, "raft has no member %q", id).Hint("%s", hint)
	}
	var ids []string
	for _, q := range matches {
		ids = append(ids, q.RaftID)
	}
	return core.Queen{}, core.Errorf(core.Conflict, "%q is several members of raft", id).Hint("Name one by its raft id: %s.", strings.Join(ids, ", "))
}

func raftRemoveCommand(a *app) *cobra.Command {
	var yes, dryRun bool
	cmd := &cobra.Command{
		Use:     "remove ID",
		Aliases: []string{"rm"},
		Short:   "Take a queen out of raft that will not come back",
		Long: `Take a queen out of raft that will not come back, by raft id, node id or name. Dead queens are removed by themselves as long as a majority
is left; this is for those that are not. A queen that still runs joins again: end it first, or use "rbee cluster leave".`,
		Args:              exactly("ID"),
		ValidArgsFunction: first(a.names(queenNames)),
	}
	cmd.RunE = a.asking(func(ctx context.Context, c *client.Client, args []string) error {
		servers, err := c.RaftServers(ctx, client.Consistency(core.ConsistencyStale)) // there may be no leader
		if err != nil {
			return err
		}
		q, err := findServer(servers, args[0])
		if err != nil {
			return err
		}
		what := fmt.Sprintf("%s (%s, %s)", orElse(q.Name, q.ID), queenRole(q), orElse(q.RaftID, q.ID))
		voters := 0
		for _, s := range servers {
			voters += b2i(s.Voter)
		}
		if q.Voter && voters == 1 {
			return core.Errorf(core.Conflict, "%s is the only voter: without it there is no registry", what).Hint("Let another queen join first.")
		}
		if dryRun {
			fmt.Fprintln(a.stderr, "Would take this queen out of raft:")
			return a.show(q, raftTable([]core.Queen{q}).Write)
		}
		question := "Take queen " + what + " out of raft?"
		if q.Gossip == "alive" {
			question = "Queen " + what + " is alive. Take it out of raft?"
		}
		if err := a.confirm(ctx, yes, question); err != nil {
			return err
		}
		if err := c.RemoveQueen(ctx, orElse(q.RaftID, q.ID)); err != nil {
			if core.KindOf(err) == core.Unavailable {
				return core.WithHint(err, "%s", recoverHint(servers, q))
			}
			return err
		}
		return a.show(map[string]core.Queen{"removed": q}, func(w io.Writer) error {
			_, err := fmt.Fprintf(w, "Queen %s is out of raft.\n", term.Line(what))
			return err
		})
	})
	destructiveFlags(cmd, &yes, &dryRun)
	return cmd
}

// recoverHint explains what to do when a queen cannot be removed because there is no majority to
// agree to it.
func recoverHint(servers []core.Queen, gone core.Queen) string {
	var left []string
	for _, q := range servers {
		if q.ID != gone.ID && (q.Gossip == "alive" || q.Gossip == "") {
			left = append(left, fmt.Sprintf("{\"id\": %q}", orElse(q.RaftID, q.ID)))
		}
	}
	return fmt.Sprintf("A majority of the queens must agree to it: have the others back. If they are gone for ever, stop the agents of the queens that are left, "+
		"write [%s] into the file raft/peers.json in the data folder of each, and start them again. What only the lost queens knew is lost.", strings.Join(left, ", "))
}

func raftTransferCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "transfer [QUEEN]",
		Short: "Give the leadership to another queen",
		Long:  "Give the leadership to a queen by node id or name, or without one to whoever is most up to date. Nothing is lost by it.",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usagef("one argument too many: %q", args[1])
			}
			return nil
		},
		ValidArgsFunction: first(a.names(queenNames)),
	}
	cmd.RunE = a.asking(func(ctx context.Context, c *client.Client, args []string) error {
		to := strings.Join(args, "")
		if err := c.TransferLeadership(ctx, to); err != nil {
			return err
		}
		// Ask the new leader itself before reporting success.
		servers, err := c.RaftServers(ctx)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(servers, func(q core.Queen) bool { return q.Leader })
		if i < 0 {
			return core.Errorf(core.Unavailable, "the leadership was given up, and no queen has it yet").Hint(`"rbee operator raft list" shows who has it.`)
		}
		return a.show(map[string]core.Queen{"leader": servers[i]}, func(w io.Writer) error {
			_, err := fmt.Fprintf(w, "The leader is %s (%s).\n", term.Line(orElse(servers[i].Name, servers[i].ID)), servers[i].Address)
			return err
		})
	})
	return cmd
}
