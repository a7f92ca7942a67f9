package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rbee-project/rbee/cmd/rbee/cli/term"
	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/client"
	"github.com/rbee-project/rbee/core/operation"
)

// consistencies returns the values of --consistency.
func consistencies() []string {
	return []string{string(core.ConsistencyDefault), string(core.ConsistencyStale), string(core.ConsistencyLinearizable)}
}

// readAsk is the body of a command that reads the registry. It passes read to every call that
// accepts it.
type readAsk func(ctx context.Context, c *client.Client, args []string, read ...client.ReadOption) error

// reads makes cmd read the registry: it adds --consistency and --stale, and reports on stderr how
// old a possibly stale answer is.
func (cn *connector) reads(cmd *cobra.Command, f readAsk) *cobra.Command {
	var (
		consistency string
		stale       bool
	)
	cmd.Flags().StringVar(&consistency, "consistency", "", "how new the answer must be: `default|stale|linearizable`")
	cmd.Flags().BoolVar(&stale, "stale", false, "same as --consistency stale: what the queen that is asked knows, also without a leader")
	_ = cmd.RegisterFlagCompletionFunc("consistency", cobra.FixedCompletions(consistencies(), cobra.ShellCompDirectiveNoFileComp))
	cmd.RunE = cn.asking(func(ctx context.Context, c *client.Client, args []string) error {
		want := core.Consistency(consistency)
		switch {
		case consistency != "" && !slices.Contains(consistencies(), consistency):
			return usageHint("It is one of "+strings.Join(consistencies(), ", ")+".", "unknown consistency %q", consistency)
		case stale && consistency != "" && want != core.ConsistencyStale:
			return usageHint("Leave one of the two.", "--stale and --consistency %s do not go together", consistency)
		case stale:
			want = core.ConsistencyStale
		}
		var info core.ReadInfo
		read := []client.ReadOption{client.Report(&info)}
		if want != "" {
			read = append(read, client.Consistency(want))
		}
		if err := f(ctx, c, args, read...); err != nil {
			if core.KindOf(err) == core.Unavailable && want != core.ConsistencyStale && (core.HintOf(err) == "" || strings.Contains(core.HintOf(err), "consistency=stale")) {
				return core.WithHint(err, "--stale shows what the queen knows without asking a leader; \"rbee status\" shows what is wrong.")
			}
			return err
		}
		if info.Stale {
			fmt.Fprintln(cn.stderr, staleText(info))
		}
		return nil
	})
	return cmd
}

// staleText describes how old an answer may be.
func staleText(r core.ReadInfo) string {
	if r.Leader == "" {
		return fmt.Sprintf("Stale: this queen knows no leader%s. What is shown is its own copy, at index %d.", contactText(" and last heard of one %s ago", r.LastContact), r.Index)
	}
	return fmt.Sprintf("Stale: the leader was not asked%s. What is shown is this queen's own copy, at index %d.", contactText("; this queen last heard of it %s ago", r.LastContact), r.Index)
}

// contactText is empty if there was never any contact, or contact just now.
func contactText(format string, d core.Duration) string {
	if d <= 0 {
		return ""
	}
	return fmt.Sprintf(format, shortDuration(time.Duration(d)))
}

// shortDuration is term.Duration, but distinguishes 30 ms from 900.
func shortDuration(d time.Duration) string {
	if d < 10*time.Second {
		return d.Round(time.Millisecond).String()
	}
	return term.Duration(d)
}

// readCommand makes cmd show a hive's answer to an operation. If no queen answers, the agent of
// this machine answers for its own hive. fill puts the arguments into the request; nil: there are
// none.
func readCommand[R any](a *app, cmd *cobra.Command, o operation.Of[R], fill func(r *core.Request, args []string) error, show func(v R) error) *cobra.Command {
	var r core.Request
	cmd.RunE = a.asking(func(ctx context.Context, c *client.Client, args []string) error {
		if fill != nil {
			if err := fill(&r, args); err != nil {
				return err
			}
		}
		v, err := fromHive(ctx, a, c, r.Hive, func(c *client.Client) (R, error) { return o.Ask(ctx, c, r) })
		if err != nil {
			return err
		}
		return show(v)
	})
	a.hiveFlag(cmd, &r.Hive, core.LocalHive, "`HIVE` to look at")
	return cmd
}
