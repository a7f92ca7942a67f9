package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rbee-project/rbee/cmd/rbee/cli/term"
	"github.com/rbee-project/rbee/core/client"
	"github.com/rbee-project/rbee/core/config"
)

// These are the groups of the commands in "rbee --help".
const (
	groupUse    = "use"
	groupManage = "manage"
	groupAgent  = "agent"
)

// rootCommand builds the tree of commands. It is cheap and has no side effects.
func rootCommand(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "rbee",
		Short: "One private LLM cloud from every machine you own",
		Long: `rbee turns the machines you own into one private, OpenAI-compatible LLM cloud.

Start here:
  rbee run rbee-tiny "What is a queen?"     ask a model; an agent is started if none runs
  rbee agent -dev                           an agent in this terminal
  rbee status                               the cluster on one screen
  rbee cluster init                         begin a cluster of several machines

Environment:
  RBEE_ADDR     addresses of queens, separated by commas (default: the agent of this machine, then ` + client.DefaultAddress + `)
  RBEE_TOKEN    token that is sent to them, over TLS alone unless an address says http://; a cluster answers nobody without one
  RBEE_CACERT   file with the CA's certificate that theirs must be signed by (default: that of the cluster that this machine is in)
  RBEE_JOIN     TOKEN@host for "rbee agent", as -join has it
  NO_COLOR      no colour

Exit codes: 0 it worked, 1 it failed, 2 it was called wrongly, 130 it was interrupted.
Long flags work with one dash, too: -dev is --dev.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if a.wantJSON() {
				return usagef("no command")
			}
			return cmd.Help()
		},
	}
	root.PersistentFlags().StringVar(&a.addr, "addr", "", "`ADDRESSES` of queens, separated by commas (default: RBEE_ADDR, then this machine's agent)")
	root.PersistentFlags().StringVar(&a.tokenFile, "token-file", "", "`FILE` with the token to send (default: RBEE_TOKEN)")
	root.PersistentFlags().StringVar(&a.caCert, "cacert", "", "`FILE` with the certificate of the queens' CA (default: RBEE_CACERT, then this machine's cluster)")
	root.PersistentFlags().StringVar(&a.format, "format", formatTable, "output as `table|json`")
	root.PersistentFlags().BoolVar(&a.json, "json", false, "same as --format json")
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		if a.environ != nil && !strings.HasPrefix(cmd.Name(), cobra.ShellCompRequestCmd) {
			for _, warning := range config.Misspelt(a.environ(), "RBEE_ADDR", "RBEE_TOKEN", "RBEE_CACERT", "RBEE_JOIN") {
				fmt.Fprintln(a.stderr, "Warning: "+term.Line(warning))
			}
		}
		if a.format != formatTable && a.format != formatJSON {
			return usageHint(`It is "table" or "json".`, "unknown format %q", a.format)
		}
		return nil
	}
	root.SetFlagErrorFunc(flagError)
	root.Version = a.build.Version
	root.SetCompletionCommandGroupID(groupAgent)
	root.SetHelpCommandGroupID(groupAgent)
	root.AddGroup(
		&cobra.Group{ID: groupUse, Title: "Use models:"},
		&cobra.Group{ID: groupManage, Title: "Look after the cluster:"},
		&cobra.Group{ID: groupAgent, Title: "This machine:"},
	)
	group := func(id string, commands ...*cobra.Command) {
		for _, c := range commands {
			c.GroupID = id
			root.AddCommand(c)
		}
	}
	group(groupUse, inferCommand(a), runCommand(a), chatCommand(a), pullCommand(a), lsCommand(a), showCommand(a), rmCommand(a), aliasCommand(a), whyCommand(a), envCommand(a), launchCommand(a))
	group(groupManage, statusCommand(a), topCommand(a), psCommand(a), stopCommand(a), planCommand(a), applyCommand(a), deploymentCommand(a), workerCommand(a), modelCommand(a), storeCommand(a), jobCommand(a), operationsCommand(a), hiveCommand(a), queenCommand(a),
		catalogCommand(a), tokenCommand(a), operatorCommand(a))
	group(groupAgent, agentCommand(a), clusterCommand(a), tlsCommand(a), pluginCommand(a), configCommand(a), versionCommand(a))
	_ = root.RegisterFlagCompletionFunc("format", cobra.FixedCompletions([]string{formatTable, formatJSON}, cobra.ShellCompDirectiveNoFileComp))
	_ = root.RegisterFlagCompletionFunc("addr", cobra.NoFileCompletions)

	root.SetOut(a.stdout) // before cobra creates the command that writes completion scripts
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	classifyUsage(root)
	return root
}

// classifyUsage turns errors in the arguments of any command, and a noun without a known verb, into
// usage errors.
func classifyUsage(cmd *cobra.Command) {
	check := cmd.Args
	switch {
	case cmd.HasSubCommands() && (cmd.RunE == nil || !cmd.HasParent() || check == nil):
		check = unknownVerb
	case check == nil:
		check = cobra.ArbitraryArgs
	}
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		err := check(cmd, args)
		if err == nil {
			return nil
		}
		if _, ok := err.(*usageError); ok { //nolint:errorlint // made right here
			return err
		}
		return &usageError{err: err}
	}
	if cmd.HasSubCommands() && cmd.RunE == nil && cmd.Run == nil {
		cmd.RunE = func(cmd *cobra.Command, _ []string) error {
			return usageHint(cmd.CommandPath()+" knows: "+strings.Join(verbs(cmd), ", "), "%s needs a command", cmd.CommandPath())
		}
	}
	for _, sub := range cmd.Commands() {
		classifyUsage(sub)
	}
}

func unknownVerb(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	names := verbs(cmd)
	for _, sub := range cmd.Commands() {
		if !sub.Hidden {
			names = append(names, sub.Aliases...)
		}
	}
	if n := nearest(args[0], names); n != "" {
		return usageHint(fmt.Sprintf("Did you mean %q?", cmd.CommandPath()+" "+n), "unknown command %q", cmd.CommandPath()+" "+args[0])
	}
	return usageHint(cmd.CommandPath()+" knows: "+strings.Join(verbs(cmd), ", "), "unknown command %q", cmd.CommandPath()+" "+args[0])
}

func verbs(cmd *cobra.Command) []string {
	var names []string
	for _, sub := range cmd.Commands() {
		if !sub.Hidden {
			names = append(names, sub.Name())
		}
	}
	return names
}

// exactly requires one argument for each name and reports which one is missing.
func exactly(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < len(names) {
			return usagef("%s is missing: %s %s", names[len(args)], cmd.CommandPath(), strings.Join(names, " "))
		}
		if len(args) > len(names) {
			return usagef("one argument too many: %q", args[len(names)])
		}
		return nil
	}
}

// atLeast is exactly, but the last argument may be repeated.
func atLeast(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		return exactly(names...)(cmd, args[:min(len(args), len(names))])
	}
}
