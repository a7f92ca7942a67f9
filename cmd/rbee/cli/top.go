package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	xterm "golang.org/x/term"

	"github.com/rbee-project/rbee/cmd/rbee/cli/term"
	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/client"
)

// topView is what "rbee top" shows at one moment.
type topView struct {
	At              time.Time     `json:"at"`
	TokensPerSecond float64       `json:"tokens_per_second"` // of all workers together
	Active          int           `json:"active"`            // running requests
	Queued          int           `json:"queued"`
	Slots           int           `json:"slots"` // of ready workers
	Hives           []core.Hive   `json:"hives"`
	Workers         []core.Worker `json:"workers"` // the busiest first
}

// These are the escape sequences for a screen that is redrawn.
const (
	screenBegin = "\x1b[?1049h\x1b[?25l" // alternate screen, no cursor
	screenEnd   = "\x1b[?25h\x1b[?1049l"
	screenHome  = "\x1b[H"
	lineEnd     = "\x1b[K\n" // the terminal adds the carriage return
	screenRest  = "\x1b[J"
)

func topCommand(a *app) *cobra.Command {
	var interval time.Duration
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Watch the workers: requests, tokens per second, memory of the devices",
		Long: `Show what the cluster does at this moment: requests, tokens per second and the memory of every device, the busiest workers first. On a
terminal it goes on until ^C; elsewhere it is shown once.`,
		Args: exactly(),
	}
	cmd.RunE = a.asking(func(ctx context.Context, c *client.Client, _ []string) error {
		if interval < 100*time.Millisecond {
			return usagef("--interval must be at least 100ms")
		}
		v, err := lookTop(ctx, a, c)
		if err != nil {
			return err
		}
		if !a.stdoutTerminal || a.wantJSON() {
			return a.show(v, func(w io.Writer) error { return writeTop(a, w, v) })
		}
		return watchTop(ctx, a, c, v, interval)
	})
	cmd.Flags().DurationVar(&interval, "interval", time.Second, "time between two looks")
	return cmd
}

// lookTop reads the answering queen's own view, so that watching puts no load on the leader.
func lookTop(ctx context.Context, a *app, c *client.Client) (topView, error) {
	v := topView{At: a.now()}
	var err error
	if v.Hives, err = c.Hives(ctx, client.Consistency(core.ConsistencyStale)); err != nil {
		return v, err
	}
	if v.Workers, err = c.Workers(ctx, client.Consistency(core.ConsistencyStale)); err != nil {
		return v, err
	}
	v.Hives, v.Workers = list(v.Hives), list(v.Workers)
	sortHives(v.Hives)
	slices.SortFunc(v.Workers, func(x, y core.Worker) int {
		return cmp.Or(cmp.Compare(y.Load.TokensPerSecond, x.Load.TokensPerSecond), cmp.Compare(y.Load.Active+y.Load.Queued, x.Load.Active+x.Load.Queued), cmp.Compare(x.ID, y.ID))
	})
	for _, w := range v.Workers {
		v.TokensPerSecond += w.Load.TokensPerSecond
		v.Active += w.Load.Active
		v.Queued += w.Load.Queued
		if w.State == core.WorkerReady {
			v.Slots += w.Slots
		}
	}
	return v, nil
}

// watchTop draws until ^C, its regular end. A queen that does not answer for a while does not end
// it.
func watchTop(ctx context.Context, a *app, c *client.Client, v topView, interval time.Duration) error {
	fmt.Fprint(a.stdout, screenBegin)
	defer fmt.Fprint(a.stdout, screenEnd)
	problem := ""
	for {
		var text strings.Builder
		if problem != "" {
			fmt.Fprintf(&text, "%s\n", problem)
		}
		if err := writeTop(a, &text, v); err != nil {
			return err
		}
		width, height := a.screenSize()
		if _, err := io.WriteString(a.stdout, frame(text.String(), width, height)); err != nil {
			return err
		}
		if sleep(ctx, interval) != nil {
			return nil
		}
		now, err := lookTop(ctx, a, c)
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			v, problem = now, ""
		case core.KindOf(err) == core.Unavailable:
			problem = fmt.Sprintf("As it was %s: %s", a.ago(v.At), term.Line(err.Error()))
		default:
			return err
		}
	}
}

// screenSize returns the size of the terminal at stdout, or the usual size if unknown.
func (con *console) screenSize() (width, height int) {
	out, _ := con.stdout.(*output)
	if f, ok := out.to.(*os.File); ok {
		if width, height, err := xterm.GetSize(int(f.Fd())); err == nil && width > 0 && height > 0 {
			return width, height
		}
	}
	return 80, 24
}

// frame returns text as one picture of that many columns and lines, which overwrites the previous
// one.
func frame(text string, width, height int) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	if len(lines) > height-1 {
		more := len(lines) - (height - 2)
		lines = append(lines[:max(height-2, 0)], fmt.Sprintf("… and %d more lines", more))
	}
	var sb strings.Builder
	sb.WriteString(screenHome)
	for _, line := range lines {
		if utf8.RuneCountInString(line) > width {
			line = string([]rune(line)[:max(width-1, 0)]) + "…"
		}
		sb.WriteString(line)
		sb.WriteString(lineEnd)
	}
	sb.WriteString(screenRest)
	return sb.String()
}

func writeTop(a *app, w io.Writer, v topView) error {
	devices := term.NewTable("No hives.", "HIVE", "STATUS", "DEVICE", "MEMORY", "USED", "OF")
	for _, h := range v.Hives {
		if len(h.Devices) == 0 {
			devices.Add(h.Name, string(h.Status), "", "", "", "")
		}
		for _, d := range h.Devices {
			used := max(d.TotalBytes-d.FreeBytes, 0)
			devices.Add(h.Name, string(h.Status), d.ID, gauge(used, d.TotalBytes), term.Bytes(used), term.Bytes(d.TotalBytes))
		}
	}
	workers := term.NewTable("No workers. \"rbee run MODEL\" starts one.", "WORKER", "MODEL", "HIVE", "DEVICE", "STATE", "BUSY", "QUEUE", "TOKENS/S", "TOKENS", "CONTEXT")
	for _, x := range v.Workers {
		name := hiveNamesOf([]string{x.Hive}, v.Hives)[0]
		workers.Add(x.ID, x.Model, name, x.Device, string(x.State), fmt.Sprintf("%d/%d", x.Load.Active, x.Slots), fmt.Sprint(x.Load.Queued),
			rateText(x.Load.TokensPerSecond), term.Count(x.Load.TokensTotal), gauge(int64(x.Load.KVUsedTokens), int64(x.Slots)*int64(x.ContextTokens)))
	}
	return term.InOrder(
		func() error {
			_, err := fmt.Fprintf(w, "%s  %s running, %d waiting, %d slots, %s tokens/s\n\n", v.At.Format(time.TimeOnly), term.Plural(v.Active, "request"), v.Queued, v.Slots,
				orElse(rateText(v.TokensPerSecond), "0"))
			return err
		},
		func() error { return devices.Write(w) },
		func() error { return line(w) },
		func() error { return workers.Write(w) },
	)
}

// gauge shows how much of a whole is used; empty if the whole is unknown.
func gauge(used, total int64) string {
	if total <= 0 {
		return ""
	}
	const width = 10
	used = min(max(used, 0), total)
	full := int(float64(used) / float64(total) * width)
	return fmt.Sprintf("%s%s %3d%%", strings.Repeat("#", full), strings.Repeat(".", width-full), int(float64(used)/float64(total)*100))
}
