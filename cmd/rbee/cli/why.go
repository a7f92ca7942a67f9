package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rbee-project/rbee/cmd/rbee/cli/term"
	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/client"
)

func whyCommand(a *app) *cobra.Command {
	var limit int
	cmd := &cobra.Command{
		Use:   "why [REQUEST-ID]",
		Short: "Show how a request was routed: which workers could answer, which not, who was asked",
		Long: `Show how an inference request was routed: which workers could answer, in which order and why, which could not, who was asked, and how it
ended. Its id is in the header x-request-id of the answer. Without an id, the latest requests are listed.

A queen remembers the latest requests that it took itself; the other queens are asked where the first does not know it.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usagef("one argument too many: %q", args[1])
			}
			return nil
		},
		ValidArgsFunction: first(a.names(func(ctx context.Context, c *client.Client) ([]string, error) {
			routes, err := c.Routes(ctx, 0)
			var ids []string
			for _, r := range routes {
				ids = append(ids, r.RequestID)
			}
			return ids, err
		})),
	}
	cmd.RunE = a.asking(func(ctx context.Context, c *client.Client, args []string) error {
		if limit < 0 {
			return usagef("--limit must not be negative")
		}
		hives, err := c.Hives(ctx, client.Consistency(core.ConsistencyStale))
		if err != nil {
			return err
		}
		if len(args) == 0 {
			routes, err := c.Routes(ctx, limit)
			if err != nil {
				return err
			}
			return a.show(list(routes), routeTable(a, routes, hives).Write)
		}
		r, err := findRoute(ctx, a, c, args[0])
		if err != nil {
			return err
		}
		return a.show(r, func(w io.Writer) error { return writeRoute(a, w, r, hives) })
	})
	cmd.Flags().IntVar(&limit, "limit", 0, "at most this many requests (default: the queen's)")
	return cmd
}

// findRoute asks the queen that answers, then the others.
func findRoute(ctx context.Context, a *app, c *client.Client, id string) (core.RouteRecord, error) {
	r, err := c.Route(ctx, id)
	if core.KindOf(err) != core.NotFound {
		return r, err
	}
	t, terr := a.target()
	queens, qerr := c.Queens(ctx, client.Consistency(core.ConsistencyStale))
	if terr != nil || qerr != nil {
		return r, err
	}
	others := slices.Clone(t.addresses)
	for _, q := range queens {
		if q.HTTPAddress != "" {
			others = append(others, q.HTTPAddress)
		}
	}
	for _, address := range others {
		one := t
		one.addresses = []string{address}
		other, oerr := a.connectTo(ctx, one)
		if oerr != nil {
			continue
		}
		if other.Address() == c.Address() {
			other.Close()
			continue
		}
		limited, cancel := context.WithTimeout(ctx, answerTimeout)
		found, oerr := other.Route(limited, id)
		cancel()
		other.Close()
		if oerr == nil {
			return found, nil
		}
	}
	return r, err
}

func routeTable(a *app, routes []core.RouteRecord, hives []core.Hive) *term.Table {
	t := term.NewTable("No requests yet.", "REQUEST", "WHEN", "MODEL", "WORKER", "HIVE", "ASKED", "STATE", "FIRST", "TOOK", "TOKENS")
	for _, r := range routes {
		worker, hive := "", ""
		if n := len(r.Attempts); n > 0 {
			worker, hive = r.Attempts[n-1].Worker, hiveNamesOf([]string{r.Attempts[n-1].Hive}, hives)[0]
		}
		t.Add(r.RequestID, a.ago(r.At), r.Model, worker, hive, fmt.Sprint(len(r.Attempts)), routeStateText(r), millis(r.FirstToken), millis(r.Took), term.Count(r.Tokens))
	}
	return t
}

func routeStateText(r core.RouteRecord) string {
	if r.Problem != "" {
		return fmt.Sprintf("%s (%s)", r.State, r.Problem)
	}
	return string(r.State)
}

// millis formats a short time; empty for none.
func millis(d core.Duration) string {
	if d <= 0 {
		return ""
	}
	return time.Duration(d).Round(time.Millisecond).String()
}

func writeRoute(a *app, w io.Writer, r core.RouteRecord, hives []core.Hive) error {
	f := &term.Facts{}
	f.Add("Request", r.RequestID)
	f.Add("When", a.ago(r.At))
	f.Add("Path", r.Path)
	f.Add("Model", r.Model)
	f.Add("State", routeStateText(r))
	if r.Status != 0 {
		f.Addf("Status", "%d", r.Status)
	}
	f.Add("Waited", millis(r.Waited))
	f.Add("Waited for", strings.Join(r.WaitedFor, "; "))
	f.Add("First token", millis(r.FirstToken))
	f.Add("Took", millis(r.Took))
	f.Add("Tokens", term.Count(r.Tokens))
	name := func(hive string) string { return hiveNamesOf([]string{hive}, hives)[0] }

	attempts := term.NewTable("Nobody was asked.", "ASKED", "HIVE", "TOOK", "ANSWERED")
	for _, x := range r.Attempts {
		answer := "yes"
		if x.Problem != "" {
			answer = "no: " + string(x.Problem)
		}
		attempts.Add(x.Worker, name(x.Hive), millis(x.Took), answer)
	}
	candidates := term.NewTable("No worker could answer.", "COULD ANSWER", "HIVE", "DEVICE", "BUSY", "QUEUE", "PLACE")
	for _, x := range r.Candidates {
		candidates.Add(x.Worker, name(x.Hive), x.Device, fmt.Sprintf("%d/%d", x.Active, x.Slots), fmt.Sprint(x.Queued), x.Reason)
	}
	err := errors.Join(f.Write(w), line(w), attempts.Write(w), line(w), candidates.Write(w))
	if len(r.Refused) == 0 {
		return err
	}
	refused := term.NewTable("", "COULD NOT", "WHY")
	for _, x := range r.Refused {
		refused.Add(x.Worker, x.Reason)
	}
	return errors.Join(err, line(w), refused.Write(w))
}

func line(w io.Writer) error {
	_, err := fmt.Fprintln(w)
	return err
}
