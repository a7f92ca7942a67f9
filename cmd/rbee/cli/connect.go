package cli

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/rbee-project/rbee/cmd/rbee/cli/term"
	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/client"
	"github.com/rbee-project/rbee/core/pki"
	"github.com/rbee-project/rbee/core/setting"
)

// connector finds queens and connects to them.
type connector struct {
	console
	machine

	build     build  // version of this program
	addr      string // --addr
	caCert    string // --cacert
	tokenFile string // --token-file

	warnInClear sync.Once // warns once that a token is sent without encryption
}

// target is which queens to ask, and how to verify them.
type target struct {
	addresses []string
	named     bool   // addresses were named by the user
	ca        []byte // PEM; empty: the system's
	caNamed   bool   // ca was named by the user
	local     local
}

// target finds the queens to ask: those that the user names, otherwise the agent of this machine.
func (cn *connector) target() (target, error) {
	var t target
	if path := cmp.Or(cn.caCert, cn.getenv("RBEE_CACERT")); path != "" {
		b, err := os.ReadFile(path)
		if err != nil {
			return t, core.WithHint(core.Wrap(err, core.Invalid, "read the CA's certificate"), "RBEE_CACERT and --cacert name a PEM file: cluster/ca.pem in the data folder of any machine of the cluster.")
		}
		if _, err := pki.Fingerprint(b); err != nil {
			return t, core.Errorf(core.Invalid, "read the CA's certificate: %s: %w", path, err).Hint("RBEE_CACERT and --cacert name a PEM file: cluster/ca.pem in the data folder of any machine of the cluster.")
		}
		t.ca, t.caNamed = b, true
	}
	t.local = cn.localAgent()
	if t.local.identity != nil && !t.caNamed {
		t.ca = t.local.identity.CAPEM()
	}
	for _, list := range []string{cn.addr, cn.getenv("RBEE_ADDR")} {
		for addr := range strings.SplitSeq(list, ",") {
			if addr = strings.TrimSpace(addr); addr != "" {
				t.addresses = append(t.addresses, addr)
			}
		}
		if len(t.addresses) > 0 {
			t.named = true
			return t, nil
		}
	}
	t.addresses = t.local.addresses()
	if r := cn.backgroundAgent(); r != nil && t.local.identity == nil {
		t.addresses = append([]string{"http://" + r.Address}, t.addresses...)
	}
	usual := t.local.usualAddress()
	if t.caNamed { // naming a CA implies a cluster
		usual = strings.Replace(usual, "http://", "https://", 1)
	}
	if t.local.identity == nil && !slices.Contains(t.addresses, usual) {
		t.addresses = append(t.addresses, usual)
	}
	return t, nil
}

// bearer returns the token that is sent to queens.
func (cn *connector) bearer(ctx context.Context) (string, error) {
	if cn.tokenFile == "" {
		return strings.TrimSpace(cn.getenv("RBEE_TOKEN")), nil
	}
	return cn.secretFile(ctx, cn.tokenFile)
}

// connect returns a client of the named queens. It sends nothing yet.
func (cn *connector) connect(ctx context.Context) (*client.Client, error) {
	t, err := cn.target()
	if err != nil {
		return nil, err
	}
	return cn.connectTo(ctx, t)
}

func (cn *connector) connectTo(ctx context.Context, t target) (*client.Client, error) {
	bearer, err := cn.bearer(ctx)
	if err != nil {
		return nil, err
	}
	c, err := client.New(client.Options{
		// An agent without TLS needs no token. At an address named with http:// there may be a
		// proxy that takes one.
		Addresses: t.addresses, Token: bearer, TokenInClear: t.named, CACert: t.ca, UserAgent: "rbee/" + cn.build.Version,
	})
	if err != nil {
		return nil, core.WithHint(err, "An address looks like 127.0.0.1:7833 or https://queen.example:7833; see --addr and RBEE_ADDR.")
	}
	if open := c.InClear(); len(open) > 0 {
		cn.warnInClear.Do(func() {
			fmt.Fprintf(cn.stderr, "Warning: the token goes to %s without encryption, where everybody on the way can read it. Write the address with https://.\n", strings.Join(open, ", "))
		})
	}
	return c, nil
}

// ask is the body of a command that needs an agent.
type ask func(ctx context.Context, c *client.Client, args []string) error

// asking turns an ask into a command's RunE.
func (cn *connector) asking(f ask) func(*cobra.Command, []string) error {
	return do(func(ctx context.Context, _ *cobra.Command, args []string) error {
		c, err := cn.connect(ctx)
		if err != nil {
			return err
		}
		return cn.explainUnreachable(ctx, c, f(ctx, c, args))
	})
}

// explainUnreachable adds how to get an agent to an error that no agent answered.
func (cn *connector) explainUnreachable(ctx context.Context, c *client.Client, err error) error {
	if err == nil || ctx.Err() != nil {
		return err
	}
	t, terr := cn.target()
	if terr != nil {
		return err
	}
	if hint := certificateHint(err, t); hint != "" {
		return core.WithHint(err, "%s", hint)
	}
	if strings.Contains(core.HintOf(err), "?consistency=") { // that hint is for programs
		return core.WithHint(err, "Try again in a moment. If it stays so, no majority of the queens is there: \"rbee status\" says who is missing.")
	}
	if _, foreign := errors.AsType[*client.ForeignError](err); foreign && !t.named && t.local.identity == nil {
		return core.WithHint(err, "Another program uses the port of rbee. End it, or give rbee another port: set RBEE_BIND_HTTP_PORT, for this command and for the agent.")
	}
	if core.KindOf(err) != core.Unavailable {
		return err
	}
	probe, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if c.Healthy(probe) == nil {
		return err // something answers: the error has another cause
	}
	return unreachable(t, err)
}

// unreachable returns the error for queens that do not answer. For a refused connection it gives no
// cause; it names any other cause.
func unreachable(t target, cause error) error {
	where := strings.Join(t.addresses, ", ")
	if op, ok := errors.AsType[*net.OpError](cause); ok && !errors.Is(cause, syscall.ECONNREFUSED) {
		where += ": " + op.Err.Error()
	}
	switch {
	case t.named:
		return core.Errorf(core.Unavailable, "no agent answers at %s", where).Hint(
			"Start one there with \"rbee agent\", or name another address with --addr or RBEE_ADDR; several may be named, with commas between them.")
	case t.local.identity != nil && !t.local.identity.Has(core.RoleQueen):
		return core.Errorf(core.Unavailable, "this machine is a hive, and no queen of its cluster answers at %s", where).Hint(
			"Name one with --addr or RBEE_ADDR; several may be named, with commas between them.")
	case t.local.identity != nil:
		return core.Errorf(core.Unavailable, "the agent of this machine does not run (nothing answers at %s)", where).Hint(
			"Start it with \"rbee agent\", or name another queen of the cluster with --addr or RBEE_ADDR.")
	}
	return core.Errorf(core.Unavailable, "no agent runs on this machine (nothing answers at %s)", where).Hint(
		"Start one with \"rbee agent -dev\", or name one elsewhere with --addr or RBEE_ADDR.")
}

// certificateHint returns what to do about an untrusted certificate; empty for every other error.
func certificateHint(err error, t target) string {
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		if len(t.ca) == 0 {
			return "Name the cluster's CA with RBEE_CACERT or --cacert: cluster/ca.pem in the data folder of any machine of the cluster."
		}
		return "That is a queen of another cluster, or the CA is another one: look at RBEE_CACERT and RBEE_ADDR."
	}
	if _, ok := errors.AsType[x509.HostnameError](err); ok {
		return "Name the queen as its certificate does; \"rbee cluster init\" and \"rbee cluster join\" put the name of --advertise into it."
	}
	if e, ok := errors.AsType[x509.CertificateInvalidError](err); ok && e.Reason == x509.Expired {
		return "Look at the clocks of both machines. A queen that was away for too long must join again."
	}
	return ""
}

// connectOrStart returns a client of an agent that can serve. When no address was named and no
// agent runs on this machine, it starts one in the background and reports that on stderr.
func (cn *connector) connectOrStart(ctx context.Context) (*client.Client, error) {
	t, err := cn.target()
	if err != nil {
		return nil, err
	}
	c, err := cn.connectTo(ctx, t)
	if err != nil {
		return nil, err
	}
	probe, cancel := context.WithTimeout(ctx, 5*time.Second)
	err = c.Healthy(probe)
	cancel()
	if err == nil {
		return c, cn.awaitServing(ctx, c)
	}
	// A machine of a cluster gets no second agent: start its own instead.
	if t.named || t.local.identity != nil || ctx.Err() != nil || core.KindOf(err) != core.Unavailable {
		return nil, cn.explainUnreachable(ctx, c, err)
	}
	fmt.Fprintln(cn.stderr, "No agent runs on this machine: starting one in the background.")
	addr, err := cn.startBackground(ctx, func(ctx context.Context, addr string) error {
		c, err := cn.connectTo(ctx, target{addresses: []string{"http://" + addr}})
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		return c.Ready(ctx)
	})
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(cn.stderr, "It listens on %s. \"rbee agent stop\" ends it and its workers.\n", addr)
	return cn.connectTo(ctx, target{addresses: []string{"http://" + addr}})
}

// serveTimeout is how long to wait for an agent that answers but cannot serve yet, because it is
// starting or electing a leader.
const serveTimeout = 10 * time.Second

func (cn *connector) awaitServing(ctx context.Context, c *client.Client) error {
	deadline := cn.now().Add(serveTimeout)
	for told := false; ; {
		err := c.Ready(ctx)
		if err == nil || ctx.Err() != nil || core.KindOf(err) != core.Unavailable || cn.now().After(deadline) {
			return err
		}
		if !told {
			fmt.Fprintf(cn.stderr, "The agent is not ready yet (%s): waiting.\n", term.Line(err.Error()))
			told = true
		}
		if err := sleep(ctx, loadPoll); err != nil {
			return err
		}
	}
}

// completeTimeout bounds the wait after the tab key.
const completeTimeout = time.Second

// names completes arguments or flags with live names, if an agent answers. It reports no errors:
// the shell could not show them.
func (cn *connector) names(f func(ctx context.Context, c *client.Client) ([]string, error)) cobra.CompletionFunc {
	return func(cmd *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
		ctx, cancel := context.WithTimeout(cmd.Context(), completeTimeout)
		defer cancel()
		c, err := cn.connect(ctx)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		all, err := f(ctx, c)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		all = slices.DeleteFunc(all, func(s string) bool { return !strings.HasPrefix(s, prefix) || strings.ContainsAny(s, "\n\t") })
		slices.Sort(all)
		return slices.Compact(all), cobra.ShellCompDirectiveNoFileComp
	}
}

// first completes the first argument only.
func first(f cobra.CompletionFunc) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return f(cmd, args, prefix)
	}
}

func hiveNames(ctx context.Context, c *client.Client) ([]string, error) {
	hives, err := c.Hives(ctx)
	names := []string{core.LocalHive}
	for _, h := range hives {
		if h.Status != core.HiveConfigured {
			names = append(names, h.Name)
		}
	}
	return names, err
}

func settingNames(context.Context, *client.Client) ([]string, error) {
	var names []string
	for _, s := range setting.All() {
		names = append(names, s.Name)
	}
	return names, nil
}

func workerIDs(ctx context.Context, c *client.Client) ([]string, error) {
	workers, err := c.Workers(ctx)
	var ids []string
	for _, w := range workers {
		ids = append(ids, w.ID)
	}
	return ids, err
}

func modelIDs(ctx context.Context, c *client.Client) ([]string, error) {
	models, err := c.Models(ctx)
	var ids []string
	for _, m := range models {
		ids = append(append(ids, m.ID), m.Aliases...)
	}
	return ids, err
}

// modelsToUse returns the models of the cluster and those of the catalog sources.
func modelsToUse(ctx context.Context, c *client.Client) ([]string, error) {
	ids, err := modelIDs(ctx, c)
	if err != nil {
		return nil, err
	}
	items, err := c.Catalog(ctx, core.LocalHive, client.CatalogQuery{Kind: "model", Limit: 50})
	if err != nil {
		return ids, nil //nolint:nilerr // a catalog source that does not answer takes nothing from the others
	}
	for _, item := range items {
		ids = append(ids, item.Name)
	}
	return ids, nil
}

// hiveFlag adds --hive to a command.
func (cn *connector) hiveFlag(cmd *cobra.Command, hive *string, value, usage string) {
	cmd.Flags().StringVar(hive, "hive", value, usage)
	_ = cmd.RegisterFlagCompletionFunc("hive", cn.names(hiveNames))
}

// maxSecretBytes bounds a file that contains one secret.
const maxSecretBytes = 4096

// secretFile reads a file, or stdin for "-", that contains one secret.
func (cn *connector) secretFile(ctx context.Context, path string) (string, error) {
	var (
		b   []byte
		err error
	)
	if path == "-" {
		var text string
		text, err = cn.reading(ctx, func() (string, error) {
			all, err := io.ReadAll(io.LimitReader(cn.stdin, maxSecretBytes+1))
			return string(all), err
		})
		b = []byte(text)
	} else {
		b, err = os.ReadFile(path)
	}
	if err != nil {
		return "", core.WithHint(core.Wrap(err, core.Invalid, "read the secret"), "Name a file that you may read, or - for stdin.")
	}
	s := strings.TrimSpace(string(b))
	if s == "" || len(b) > maxSecretBytes || strings.ContainsAny(s, " \t\r\n") {
		return "", core.Errorf(core.Invalid, "%s has not just one secret in it", path).Hint("Write the secret alone into it, in one line.")
	}
	return s, nil
}
