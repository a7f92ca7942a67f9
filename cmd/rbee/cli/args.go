package cli

import (
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// normalizeArgs rewrites long flags with a single dash, such as -dev and -config=FILE, to the
// two-dash form that the flag parser understands. It leaves arguments after "--" and the values of
// flags alone. More than one letter after a single dash is always a long flag: otherwise -mod would
// be -m with the value "od".
func normalizeArgs(root *cobra.Command, args []string) []string {
	if len(args) > 0 && strings.HasPrefix(args[0], cobra.ShellCompRequestCmd) {
		return args
	}
	long, short := flagTable(root)
	out := make([]string, 0, len(args))
	for i := 0; i < len(args); i++ {
		arg := args[i]
		if arg == "--" {
			return append(out, args[i:]...)
		}
		if len(arg) < 2 || arg[0] != '-' {
			out = append(out, arg)
			continue
		}
		name, _, hasValue := strings.Cut(strings.TrimPrefix(arg, "-"), "=")
		takesValue := false
		switch {
		case strings.HasPrefix(name, "-"):
			takesValue = long[name[1:]]
		case name == "": // "-=…": the flag parser complains
		case len(name) == 1:
			takesValue = short[name]
		default:
			arg = "-" + arg
			takesValue = long[name]
		}
		out = append(out, arg)
		if takesValue && !hasValue && i+1 < len(args) {
			i++
			out = append(out, args[i])
		}
	}
	return out
}

// flagTable lists the flags of all commands by long and by one-letter name, and whether they take a
// value. A name means the same in every command, as a test checks.
func flagTable(root *cobra.Command) (long, short map[string]bool) {
	long = map[string]bool{"help": false, "version": false}
	short = map[string]bool{"h": false}
	var visit func(cmd *cobra.Command)
	visit = func(cmd *cobra.Command) {
		note := func(f *pflag.Flag) {
			long[f.Name] = f.NoOptDefVal == ""
			if f.Shorthand != "" {
				short[f.Shorthand] = f.NoOptDefVal == ""
			}
		}
		cmd.Flags().VisitAll(note)
		cmd.PersistentFlags().VisitAll(note)
		for _, sub := range cmd.Commands() {
			visit(sub)
		}
	}
	visit(root)
	return long, short
}
