package cli

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rbee-project/rbee/cmd/rbee/cli/term"
	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/client"
)

// sshHelp is the help text common to all commands over SSH.
const sshHelp = `
HOST is an alias of ~/.ssh/config, a host name or an IP address, of which "rbee hive import-ssh" makes a list. The queen that is asked reaches it,
with the SSH identity of whoever runs its agent: --addr names another queen. Its keys and known hosts are used; the key of an unknown host is
shown to a person at a terminal, and refused elsewhere unless --host-key or --accept-new says otherwise. A changed key is always refused.`

// sshFlags adds the flags of all commands that reach a host.
func sshFlags(cmd *cobra.Command, r *core.Request) {
	f := cmd.Flags()
	f.StringVar(&r.User, "user", "", "`USER` to log in as (default: what ~/.ssh/config says)")
	f.IntVar(&r.Port, "port", 0, "`PORT` of the SSH server (default: what ~/.ssh/config says)")
	f.StringVar(&r.HostKey, "host-key", "", "`FINGERPRINT` (SHA256:…) of an unknown host key to accept")
	f.BoolVar(&r.AcceptNew, "accept-new", false, "accept any unknown host key")
}

// sshCommand returns a command about one host.
func sshCommand(a *app, use, short, long string, r *core.Request, do func(ctx context.Context, c *client.Client) error) *cobra.Command {
	cmd := &cobra.Command{Use: use + " HOST", Short: short, Long: long + "\n" + sshHelp, Args: exactly("HOST"), ValidArgsFunction: first(a.names(hostNames))}
	cmd.RunE = a.asking(func(ctx context.Context, c *client.Client, args []string) error {
		r.Host = args[0]
		return do(ctx, c)
	})
	sshFlags(cmd, r)
	return cmd
}

// hostNames returns the hives and the machines on which one can be installed.
func hostNames(ctx context.Context, c *client.Client) ([]string, error) {
	hives, err := c.Hives(ctx)
	var names []string
	for _, h := range hives {
		names = append(names, h.Name)
	}
	return names, err
}

// trustHost asks a person at a terminal to judge an unknown host key, so that the request can name
// it.
func trustHost(ctx context.Context, a *app, c *client.Client, r *core.Request) error {
	if r.HostKey != "" || r.AcceptNew || !a.stdinTerminal || !a.stderrTerminal {
		return nil
	}
	res, err := sshTest(ctx, a, c, *r)
	if err != nil {
		return err
	}
	return trustKey(ctx, a, res, r)
}

func trustKey(ctx context.Context, a *app, res core.SSHTest, r *core.Request) error {
	if res.HostKey == nil || res.HostKey.State != core.HostKeyUnknown {
		return nil
	}
	fmt.Fprintf(a.stderr, "The key of %s is not known: %s, %s.\n", term.Line(res.Host), term.Line(res.HostKey.Fingerprint), term.Line(res.HostKey.Type))
	if err := a.confirm(ctx, false, "Is it the right machine?"); err != nil {
		return err
	}
	r.HostKey = res.HostKey.Fingerprint
	return nil
}

func sshTest(ctx context.Context, a *app, c *client.Client, r core.Request) (core.SSHTest, error) {
	job, err := a.runJob(ctx, c, core.Request{Operation: core.OpSSHTest, Host: r.Host, User: r.User, Port: r.Port, HostKey: r.HostKey, AcceptNew: r.AcceptNew})
	if err != nil {
		return core.SSHTest{}, err
	}
	return client.Result[core.SSHTest](job)
}

func hiveSSHTestCommand(a *app) *cobra.Command {
	r := core.Request{Operation: core.OpSSHTest}
	return sshCommand(a, "ssh-test", "Try to reach a machine over SSH, and say how far that gets",
		"Try to reach a machine over SSH, and say how far that gets: name, connection, host key, login, shell, system, free disk, sudo, rbee. It takes 5 seconds at most.",
		&r, func(ctx context.Context, c *client.Client) error {
			res, err := sshTest(ctx, a, c, r)
			if err != nil {
				return err
			}
			if res.HostKey != nil && res.HostKey.State == core.HostKeyUnknown && a.stdinTerminal && a.stderrTerminal {
				if err := trustKey(ctx, a, res, &r); err != nil {
					return err
				}
				if res, err = sshTest(ctx, a, c, r); err != nil {
					return err
				}
			}
			if err := a.show(res, func(w io.Writer) error { return writeSSHTest(w, res) }); err != nil {
				return err
			}
			if !res.OK {
				return errShown
			}
			return nil
		})
}

func writeSSHTest(w io.Writer, res core.SSHTest) error {
	t := term.NewTable("Nothing was tried.", "STEP", "RESULT", "DETAIL", "TOOK")
	for _, s := range res.Steps {
		result := "ok"
		if !s.OK {
			result = "FAILED"
		}
		t.Add(s.Name, result, s.Detail, shortDuration(time.Duration(s.Took)))
	}
	if err := t.Write(w); err != nil {
		return err
	}
	for _, s := range res.Steps {
		if !s.OK && s.Hint != "" {
			if _, err := fmt.Fprintln(w, term.Line(s.Hint)); err != nil {
				return err
			}
		}
	}
	return nil
}

func hiveInstallCommand(a *app) *cobra.Command {
	r := core.Request{Operation: core.OpHiveInstall}
	var detach bool
	cmd := sshCommand(a, "install", "Install a hive on another machine over SSH, or upgrade it",
		`Install a hive on another machine over SSH: rbee is copied there, below ~/.local for the user who logs in, joins the cluster, and is kept running
by systemd or launchd. It is done when the hive is ready. Repeated, it upgrades: the new version is put beside the old one and the service is
started again, while workers go on.

Without a service manager, in a container, it is a process in the background that nothing starts again ("rbee hive start" does).
For a machine of another kind than the queen's, --from names a folder with releases, as "make release" makes them.`,
		&r, func(ctx context.Context, c *client.Client) error {
			if err := trustHost(ctx, a, c, &r); err != nil {
				return err
			}
			return a.submit(ctx, c, r, detach, func(job core.Job) error {
				return showInstall(a, job, func(res core.InstallResult) string {
					switch {
					case res.Already:
						return fmt.Sprintf("Hive %s is installed on %s already, version %s, and ready: nothing was changed.", res.Name, res.Host, res.Version)
					case res.Before != "":
						return fmt.Sprintf("Hive %s on %s was upgraded from %s to %s, and is ready.", res.Name, res.Host, res.Before, res.Build)
					}
					return fmt.Sprintf("Hive %s is installed on %s, version %s, and ready.", res.Name, res.Host, res.Version)
				})
			})
		})
	f := cmd.Flags()
	f.BoolVar(&r.System, "system-wide", false, "install for the whole machine: /usr/local, /etc/rbee, /var/lib/rbee, user rbee; needs sudo without a password")
	f.StringVar(&r.Service, "service", "", "what keeps it running: `auto|systemd-user|systemd-system|launchd|none`")
	f.StringVar(&r.From, "from", "", "`FOLDER` with releases, on the queen's machine (default: the queen's own program)")
	f.BoolVar(&r.Force, "force", false, "install even if the same is installed already")
	f.StringVar(&r.Name, "name", "", "`NAME` of the new hive (default: HOST)")
	f.StringVar(&r.Bind, "bind", "", "`ADDRESS` that the new hive listens on (default: all)")
	f.StringVar(&r.Advertise, "advertise", "", "`ADDRESS` that others reach the new hive at (default: found out)")
	f.BoolVar(&r.Queen, "queen", false, "have it be a queen, too")
	f.BoolVar(&detach, "detach", false, "do not wait: show the job's id")
	_ = cmd.RegisterFlagCompletionFunc("service", cobra.FixedCompletions([]string{"auto", "systemd-user", "systemd-system", "launchd", "none"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func showInstall(a *app, job core.Job, text func(core.InstallResult) string) error {
	res, err := client.Result[core.InstallResult](job)
	if err != nil {
		return err
	}
	return a.show(res, func(w io.Writer) error {
		lines := []string{text(res)}
		for _, d := range res.Devices {
			lines = append(lines, fmt.Sprintf("  %s  %s", d.ID, d.Name))
		}
		for _, n := range res.Notes {
			lines = append(lines, "Note: "+n+".")
		}
		for _, l := range lines {
			if _, err := fmt.Fprintln(w, term.Line(l)); err != nil {
				return err
			}
		}
		return nil
	})
}

func hiveUninstallCommand(a *app) *cobra.Command {
	r := core.Request{Operation: core.OpHiveUninstall}
	var (
		yes, dryRun, detach bool
		grace               time.Duration
	)
	cmd := sshCommand(a, "uninstall", "Remove an installed hive: drain, leave the cluster, remove its files",
		`Remove a hive that "rbee hive install" installed: its running requests end, it leaves the cluster, and its program, configuration, data, models
and service are removed from the machine. Nothing else is.`,
		&r, func(ctx context.Context, c *client.Client) error {
			if grace < 0 {
				return usagef("--grace must not be negative")
			}
			r.Grace = core.Duration(grace)
			models := "its models"
			if r.KeepModels {
				models = "not its models"
			}
			if dryRun {
				return showRemoval(ctx, a, c, r, models)
			}
			if err := a.confirm(ctx, yes, fmt.Sprintf("Take the hive on %s out of the cluster and remove rbee from there, with its data and %s?", r.Host, models)); err != nil {
				return err
			}
			if err := trustHost(ctx, a, c, &r); err != nil {
				return err
			}
			return a.submit(ctx, c, r, detach, func(job core.Job) error {
				res, err := client.Result[core.UninstallResult](job)
				if err != nil {
					return err
				}
				return a.show(res, func(w io.Writer) error {
					text := fmt.Sprintf("rbee is removed from %s.", res.Host)
					if res.Already {
						text = fmt.Sprintf("rbee is not installed on %s: nothing to do.", res.Host)
					}
					if len(res.Kept) > 0 {
						text += " What stays: " + strings.Join(res.Kept, ", ") + "."
					}
					_, err := fmt.Fprintln(w, term.Line(text))
					return err
				})
			})
		})
	cmd.Flags().BoolVar(&r.KeepModels, "keep-models", false, "leave the models and worker binaries there")
	cmd.Flags().DurationVar(&grace, "grace", 0, "`TIME` that running requests may go on (default: 5m)")
	cmd.Flags().BoolVar(&detach, "detach", false, "do not wait: show the job's id")
	destructiveFlags(cmd, &yes, &dryRun)
	return cmd
}

// showRemoval shows what hive_uninstall would do, as far as the registry knows.
func showRemoval(ctx context.Context, a *app, c *client.Client, r core.Request, models string) error {
	hives, err := c.Hives(ctx)
	if err != nil {
		return err
	}
	workers, err := c.Workers(ctx)
	if err != nil {
		return err
	}
	plan := struct {
		Host    string   `json:"host"`
		Hive    string   `json:"hive"` // empty: the registry has none with that name
		Workers []string `json:"workers"`
		Keep    bool     `json:"keep_models"`
	}{Host: r.Host, Workers: []string{}, Keep: r.KeepModels}
	for _, h := range hives {
		if h.ID != "" && (h.Name == r.Host || h.ID == r.Host) {
			plan.Hive = h.ID
		}
	}
	for _, w := range workers {
		if plan.Hive != "" && w.Hive == plan.Hive {
			plan.Workers = append(plan.Workers, w.ID)
		}
	}
	return a.show(plan, func(w io.Writer) error {
		_, err := fmt.Fprintln(w, term.Line(fmt.Sprintf("Would drain %s, end %s, have it leave the cluster, and remove rbee from %s with its data and %s.",
			orElse(plan.Hive, "the hive"), term.Plural(len(plan.Workers), "worker"), r.Host, models)))
		return err
	})
}

func hiveStartCommand(a *app) *cobra.Command {
	r := core.Request{Operation: core.OpHiveStart}
	var detach bool
	cmd := sshCommand(a, "start", "Start an installed hive and wait until it is ready", "Start a hive that \"rbee hive install\" installed, and wait until it is ready.",
		&r, func(ctx context.Context, c *client.Client) error {
			if err := trustHost(ctx, a, c, &r); err != nil {
				return err
			}
			return a.submit(ctx, c, r, detach, func(job core.Job) error {
				return showInstall(a, job, func(res core.InstallResult) string {
					if res.Already {
						return fmt.Sprintf("Hive %s on %s runs already, and is ready.", res.Name, res.Host)
					}
					return fmt.Sprintf("Hive %s on %s is ready.", res.Name, res.Host)
				})
			})
		})
	cmd.Flags().BoolVar(&detach, "detach", false, "do not wait: show the job's id")
	return cmd
}

func hiveStopCommand(a *app) *cobra.Command {
	r := core.Request{Operation: core.OpHiveStop}
	var (
		yes, dryRun, detach bool
		grace               time.Duration
	)
	cmd := sshCommand(a, "stop", "Stop an installed hive; --drain ends its workers first",
		`Stop the service of a hive that "rbee hive install" installed. Its workers stay, unreachable, for the next start to take over. With --drain it gets no
more work, running requests end, and the workers with them, before it stops.`,
		&r, func(ctx context.Context, c *client.Client) error {
			if grace < 0 {
				return usagef("--grace must not be negative")
			}
			if grace > 0 && !r.Drain {
				return usageHint("Say --drain, too.", "--grace is for --drain")
			}
			r.Grace = core.Duration(grace)
			if dryRun {
				fmt.Fprintf(a.stderr, "Would stop the hive on %s.\n", term.Line(r.Host))
				return nil
			}
			if err := a.confirm(ctx, yes, fmt.Sprintf("Stop the hive on %s?", r.Host)); err != nil {
				return err
			}
			if err := trustHost(ctx, a, c, &r); err != nil {
				return err
			}
			return a.submit(ctx, c, r, detach, func(job core.Job) error {
				return showInstall(a, job, func(res core.InstallResult) string {
					if res.Already {
						return fmt.Sprintf("The hive on %s does not run: nothing to do.", res.Host)
					}
					return fmt.Sprintf("The hive on %s has stopped. \"rbee hive start %s\" starts it again.", res.Host, res.Host)
				})
			})
		})
	cmd.Flags().BoolVar(&r.Drain, "drain", false, "let running requests end, and then the workers, before it stops")
	cmd.Flags().DurationVar(&grace, "grace", 0, "`TIME` that running requests may go on with --drain (default: 5m)")
	cmd.Flags().BoolVar(&detach, "detach", false, "do not wait: show the job's id")
	destructiveFlags(cmd, &yes, &dryRun)
	return cmd
}

func hiveImportSSHCommand(a *app) *cobra.Command {
	r := core.Request{Operation: core.OpHiveImportSSH}
	cmd := &cobra.Command{
		Use:   "import-ssh [FILE]",
		Short: "Add the hosts of an OpenSSH configuration to those that hives can be installed on",
		Long: `Add the hosts of an OpenSSH configuration, ~/.ssh/config or FILE, to those that hives can be installed on; "rbee hive list" shows them. The file is read
on the machine of the queen that is asked, whose SSH identity reaches them. Include is followed; Match and patterns are skipped; of several names
of a host the first counts. Hosts that are in the list already stay as they are.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usagef("one argument too many: %q", args[1])
			}
			return nil
		},
	}
	cmd.RunE = a.asking(func(ctx context.Context, c *client.Client, args []string) error {
		r.File = strings.Join(args, "")
		job, err := a.runJob(ctx, c, r)
		if err != nil {
			return err
		}
		res, err := client.Result[core.ImportResult](job)
		if err != nil {
			return err
		}
		return a.show(res, func(w io.Writer) error {
			t := term.NewTable("No new hosts.", "HOST", "ADDRESS", "USER", "PORT")
			for _, h := range res.Added {
				port := ""
				if h.Port != 0 {
					port = fmt.Sprint(h.Port)
				}
				t.Add(h.Name, orElse(h.HostName, h.Name), h.User, port)
			}
			if len(res.Kept) > 0 {
				fmt.Fprintf(a.stderr, "In the list already: %s.\n", term.Line(strings.Join(res.Kept, ", ")))
			}
			return t.Write(w)
		})
	})
	return cmd
}
