package cli

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/rbee-project/rbee/cmd/rbee/cli/term"
	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/client"
)

// These bound how much of a long list fits the one screen.
const (
	statusModels = 8
	statusJobs   = 5
	watchEvery   = 2 * time.Second
)

func statusCommand(a *app) *cobra.Command {
	var watch bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the cluster on one screen, problems first",
		Long: `Show the cluster on one screen, problems first: from the leader where there is one, else what the queen that is asked knows by itself, and how
old that is. Where several addresses are named, each is asked whether it answers.`,
		Args: exactly(),
	}
	a.reads(cmd, func(ctx context.Context, c *client.Client, _ []string, read ...client.ReadOption) error {
		for {
			s, err := c.Status(ctx, read...)
			out := standingOf(ctx, a)
			if err == nil && s.Cluster != nil && s.Cluster.ID == out.Cluster && out.Problem != "" {
				s.Problems = append([]string{out.Problem + "; " + out.Hint}, s.Problems...)
			}
			switch {
			case err != nil && out.Problem != "":
				return core.Errorf(core.Forbidden, "%s", out.Problem).Hint("%s", out.Hint)
			case err == nil:
				answers := whoAnswers(ctx, a, c)
				if watch && a.stdoutTerminal && !a.wantJSON() {
					fmt.Fprint(a.stdout, "\x1b[H\x1b[2J")
				}
				if err := a.show(s, func(w io.Writer) error { return writeStatus(a, w, s, c.Address(), answers) }); err != nil {
					return err
				}
			case !watch || ctx.Err() != nil || core.KindOf(err) != core.Unavailable:
				return err
			default:
				fmt.Fprintf(a.stderr, "rbee: %s; trying again\n", term.Line(err.Error()))
			}
			if !watch {
				return nil
			}
			if err := sleep(ctx, watchEvery); err != nil {
				return err
			}
		}
	})
	cmd.Flags().BoolVar(&watch, "watch", false, "show it again every "+watchEvery.String()+", until ^C")
	return cmd
}

// standingOf returns what the agent of this machine, if one runs and may be asked, knows of its
// membership.
func standingOf(ctx context.Context, a *app) core.Standing {
	l := a.localAgent()
	if l.identity == nil {
		return core.Standing{}
	}
	c, err := l.client()
	if err != nil {
		return core.Standing{}
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	s, err := c.Standing(ctx)
	if err != nil {
		return core.Standing{} // no agent runs, or an older one
	}
	return s
}

// answerTimeout is how long "rbee status" waits for each named queen.
const answerTimeout = time.Second

// whoAnswers pings every queen that the user named, if more than one: one line for each that does
// not answer.
func whoAnswers(ctx context.Context, a *app, c *client.Client) (silent []string) {
	t, err := a.target()
	if err != nil || !t.named || len(t.addresses) < 2 {
		return nil
	}
	problems := make([]error, len(t.addresses))
	var wg sync.WaitGroup
	for i, address := range t.addresses {
		wg.Go(func() {
			one := t
			one.addresses = []string{address}
			queen, err := a.connectTo(ctx, one)
			if err != nil {
				problems[i] = err
				return
			}
			defer queen.Close()
			if queen.Address() == c.Address() {
				return // it has just answered
			}
			ctx, cancel := context.WithTimeout(ctx, answerTimeout)
			defer cancel()
			problems[i] = queen.Healthy(ctx)
		})
	}
	wg.Wait()
	for i, address := range t.addresses {
		if problems[i] != nil && ctx.Err() == nil {
			silent = append(silent, address)
		}
	}
	return silent
}

func writeStatus(a *app, w io.Writer, s core.Status, address string, silent []string) error {
	for _, p := range s.Problems {
		if _, err := fmt.Fprintf(w, "PROBLEM: %s\n", term.Line(p)); err != nil {
			return err
		}
	}
	if len(s.Problems) > 0 {
		fmt.Fprintln(w)
	}
	voters, seen := 0, 0
	for _, q := range s.Queens {
		voters += b2i(q.Voter)
		seen += b2i(q.Voter && (q.Gossip == "alive" || q.Gossip == ""))
	}
	leader := s.Leader
	for _, q := range s.Queens {
		if q.ID == s.Leader {
			leader = orElse(q.Name, q.ID)
		}
	}
	f := &term.Facts{}
	if len(s.Problems) == 0 {
		f.Add("Problems", "none")
	}
	if s.Cluster != nil && s.Cluster.ID != "" {
		f.Add("Cluster", named(s.Cluster.Name, s.Cluster.ID))
	}
	f.Addf("Queen", "%s, rbee %s, at %s, up %s", s.Node, s.Version, address, orElse(a.since(s.StartedAt), "?"))
	f.Addf("Queens", "%d (%s), leader %s, index %d", len(s.Queens), term.Plural(voters, "voter"), orElse(leader, "unknown"), s.Index)
	if !s.CertificatesEnd.IsZero() {
		f.Addf("Certificates", "the first one ends on %s", s.CertificatesEnd.UTC().Format(time.DateOnly))
	}
	if seen < voters {
		f.Addf("Majority", "%d of %s seen, %d needed", seen, term.Plural(voters, "voter"), voters/2+1)
	}
	f.Add("Missing", strings.Join(missing(s), "\n"))
	f.Add("No answer", strings.Join(silent, "\n"))
	f.Add("Unconfined", strings.Join(unconfined(s.Hives), "\n"))
	f.Add("Settings", strings.Join(settingLines(s.Settings), "\n"))
	if s.Read.Stale {
		f.Addf("Age", "stale: %s", orElse(contactText("the leader was last heard of %s ago", s.Read.LastContact), "no leader was heard of"))
	}
	if err := f.Write(w); err != nil {
		return err
	}
	if len(s.Queens) > 1 {
		sortQueens(s.Queens)
		if err := term.Heading(w, "Queens"); err != nil {
			return err
		}
		if err := queenTable(s.Queens).Write(w); err != nil {
			return err
		}
	}
	sortHives(s.Hives)
	sortWorkers(s.Workers)
	sortModels(s.Models)
	sortJobs(s.Jobs)
	models, moreModels := cut(s.Models, statusModels, "rbee ls")
	jobs, moreJobs := cut(s.Jobs, statusJobs, "rbee job list")
	return term.InOrder(
		func() error { return term.Heading(w, "Hives") },
		func() error { return hiveTable(a, s.Hives, s.Workers).Write(w) },
		func() error { return term.Heading(w, "Workers") },
		func() error { return workerTable(a, s.Workers, s.Hives, false).Write(w) },
		func() error { return term.Heading(w, "Models") },
		func() error { return modelTable(models, s.Hives).Write(w) },
		func() error { return moreLine(w, moreModels) },
		func() error { return term.Heading(w, "Jobs") },
		func() error { return jobTable(a, jobs).Write(w) },
		func() error { return moreLine(w, moreJobs) },
	)
}

// settingLines lists the settings that were changed, each with the reason if it has no effect.
func settingLines(set []core.Setting) []string {
	var out []string
	for _, s := range set {
		line := s.Name + " = " + term.Line(s.Value)
		if s.Problem != "" {
			line += " (" + term.Line(s.Problem) + ")"
		}
		out = append(out, line)
	}
	return out
}

// missing lists the queens and hives of the registry that are unreachable, by gossip and by their
// own reports.
func missing(s core.Status) []string {
	var out []string
	for _, q := range s.Queens {
		if q.Gossip != "" && q.Gossip != "alive" {
			out = append(out, fmt.Sprintf("queen %s (gossip: %s)", orElse(q.Name, q.ID), q.Gossip))
		}
	}
	for _, h := range s.Hives {
		if h.Status == core.HiveSuspect || h.Status == core.HiveDown {
			out = append(out, fmt.Sprintf("hive %s (%s)", orElse(h.Name, h.ID), h.Status))
		}
	}
	slices.Sort(out)
	return out
}

// unconfined lists the hives whose plugins are not confined as far as possible.
func unconfined(hives []core.Hive) []string {
	var out []string
	for _, h := range hives {
		if h.Unconfined != "" {
			out = append(out, fmt.Sprintf("plugins of hive %s are not fully confined: %s", orElse(h.Name, h.ID), term.Line(h.Unconfined)))
		}
	}
	slices.Sort(out)
	return out
}

// cut returns the first n of all and, if there are more, a line that explains how to see them.
func cut[T any](all []T, n int, command string) (some []T, more string) {
	if len(all) <= n {
		return all, ""
	}
	return all[:n], fmt.Sprintf("… and %d more: %s", len(all)-n, command)
}

func moreLine(w io.Writer, line string) error {
	if line == "" {
		return nil
	}
	_, err := fmt.Fprintln(w, strings.TrimSpace(line))
	return err
}
