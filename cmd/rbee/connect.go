package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/client"
)

// addresses are the queens to ask, and whether the user named them.
func (a *app) addresses() (addrs []string, named bool) {
	for _, list := range []string{a.addr, a.getenv("RBEE_ADDR")} {
		for addr := range strings.SplitSeq(list, ",") {
			if addr = strings.TrimSpace(addr); addr != "" {
				addrs = append(addrs, addr)
			}
		}
		if len(addrs) > 0 {
			return addrs, true
		}
	}
	if r := a.backgroundAgent(); r != nil {
		addrs = append(addrs, "http://"+r.Address)
	}
	if !slices.Contains(addrs, client.DefaultAddress) {
		addrs = append(addrs, client.DefaultAddress)
	}
	return addrs, false
}

// connect returns a client of the named queens. Nothing is sent yet.
func (a *app) connect() (*client.Client, error) {
	addrs, _ := a.addresses()
	return a.connectTo(addrs)
}

func (a *app) connectTo(addrs []string) (*client.Client, error) {
	c, err := client.New(client.Options{Addresses: addrs, Token: a.getenv("RBEE_TOKEN"), UserAgent: "rbee/" + thisBuild().Version})
	if err != nil {
		return nil, core.WithHint(err, "An address looks like 127.0.0.1:7833 or https://queen.example:7833; see --addr and RBEE_ADDR.")
	}
	return c, nil
}

// ask is the body of a command that needs an agent.
type ask func(ctx context.Context, c *client.Client, args []string) error

// asking makes a command's RunE of an ask.
func (a *app) asking(f ask) func(*cobra.Command, []string) error {
	return a.do(func(ctx context.Context, _ *cobra.Command, args []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		return a.explainUnreachable(ctx, c, f(ctx, c, args))
	})
}

// explainUnreachable says how to get an agent when err is that none answered.
func (a *app) explainUnreachable(ctx context.Context, c *client.Client, err error) error {
	if core.KindOf(err) != core.Unavailable || ctx.Err() != nil {
		return err
	}
	probe, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if c.Healthy(probe) == nil {
		return err // somebody is there: the error is about something else
	}
	addrs, named := a.addresses()
	if named {
		return core.WithHint(core.Errorf("", core.Unavailable, "no agent answers at %s", strings.Join(addrs, ", ")),
			"Start one there with \"rbee agent\", or name another address with --addr or RBEE_ADDR.")
	}
	return core.WithHint(core.Errorf("", core.Unavailable, "no agent runs on this machine (nothing answers at %s)", strings.Join(addrs, ", ")),
		"Start one with \"rbee agent -dev\", or name one elsewhere with --addr or RBEE_ADDR.")
}

// connectOrStart returns a client of an agent that can serve. When no address was named and no agent runs on this machine,
// it starts one in the background and says so on stderr.
func (a *app) connectOrStart(ctx context.Context) (*client.Client, error) {
	addrs, named := a.addresses()
	c, err := a.connectTo(addrs)
	if err != nil {
		return nil, err
	}
	probe, cancel := context.WithTimeout(ctx, 5*time.Second)
	err = c.Healthy(probe)
	cancel()
	if err == nil {
		return c, a.awaitServing(ctx, c)
	}
	if named || ctx.Err() != nil || core.KindOf(err) != core.Unavailable {
		return nil, a.explainUnreachable(ctx, c, err)
	}
	fmt.Fprintln(a.stderr, "No agent runs on this machine: starting one in the background.")
	addr, err := a.startBackground(ctx, func(ctx context.Context, addr string) error {
		c, err := a.connectTo([]string{addr})
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
	fmt.Fprintf(a.stderr, "It listens on %s. \"rbee agent stop\" ends it and its workers.\n", addr)
	return a.connectTo([]string{addr})
}

// serveTimeout is what is waited for an agent that answers but cannot serve yet, since it is just starting or electing a leader.
const serveTimeout = 10 * time.Second

func (a *app) awaitServing(ctx context.Context, c *client.Client) error {
	deadline := a.now().Add(serveTimeout)
	for told := false; ; {
		err := c.Ready(ctx)
		if err == nil || ctx.Err() != nil || core.KindOf(err) != core.Unavailable || a.now().After(deadline) {
			return err
		}
		if !told {
			fmt.Fprintf(a.stderr, "The agent is not ready yet (%s): waiting.\n", cleanLine(err.Error()))
			told = true
		}
		if err := sleep(ctx, loadPoll); err != nil {
			return err
		}
	}
}

// completeTimeout bounds what a person waits for after the tab key.
const completeTimeout = time.Second

// names completes arguments or flags with live names, when an agent answers. It never complains: there is nobody to read it.
func (a *app) names(f func(ctx context.Context, c *client.Client) ([]string, error)) cobra.CompletionFunc {
	return func(cmd *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
		ctx, cancel := context.WithTimeout(cmd.Context(), completeTimeout)
		defer cancel()
		c, err := a.connect()
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
		names = append(names, h.Name)
	}
	return names, err
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

// modelsToUse are the models of the cluster and those of the catalog sources.
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
func (a *app) hiveFlag(cmd *cobra.Command, hive *string, value, usage string) {
	cmd.Flags().StringVar(hive, "hive", value, usage)
	_ = cmd.RegisterFlagCompletionFunc("hive", a.names(hiveNames))
}
