package cli

import (
	"testing"

	"github.com/shoenig/test/must"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func TestNormalizeArgs(t *testing.T) {
	t.Parallel()
	cases := map[string]struct{ in, want []string }{
		"none":                     {nil, []string{}},
		"bool":                     {[]string{"agent", "-dev"}, []string{"agent", "--dev"}},
		"value":                    {[]string{"agent", "-config", "x.hcl"}, []string{"agent", "--config", "x.hcl"}},
		"value with equals":        {[]string{"agent", "-http-port=0"}, []string{"agent", "--http-port=0"}},
		"json":                     {[]string{"ps", "-json"}, []string{"ps", "--json"}},
		"two dashes stay":          {[]string{"agent", "--dev"}, []string{"agent", "--dev"}},
		"value looks like a flag":  {[]string{"infer", "--prompt", "-dev", "-model", "m"}, []string{"infer", "--prompt", "-dev", "--model", "m"}},
		"short value":              {[]string{"infer", "-p", "-dev"}, []string{"infer", "-p", "-dev"}},
		"behind two dashes":        {[]string{"run", "m", "--", "-dev"}, []string{"run", "m", "--", "-dev"}},
		"lone dash":                {[]string{"infer", "-p", "-"}, []string{"infer", "-p", "-"}},
		"short with glued value":   {[]string{"infer", "-mtiny"}, []string{"infer", "--mtiny"}},
		"unknown becomes long":     {[]string{"agent", "-bogus"}, []string{"agent", "--bogus"}},
		"shell completion is left": {[]string{cobra.ShellCompRequestCmd, "agent", "-d"}, []string{cobra.ShellCompRequestCmd, "agent", "-d"}},
		"bool takes no value":      {[]string{"ps", "-json", "-addr", "x"}, []string{"ps", "--json", "--addr", "x"}},
		"prompt with dash as word": {[]string{"run", "m", "a - b"}, []string{"run", "m", "a - b"}},
		"optional value":           {[]string{"agent", "-log-json", "-dev"}, []string{"agent", "--log-json", "--dev"}},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			must.Eq(t, tc.want, normalizeArgs(rootCommand(newApp(build{})), tc.in))
		})
	}
}

// A flag name must mean the same everywhere: normalizeArgs does not know the command.
func TestFlagsTakeValuesEverywhereOrNowhere(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	var visit func(cmd *cobra.Command)
	visit = func(cmd *cobra.Command) {
		cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
			takes := f.NoOptDefVal == ""
			if before, ok := seen[f.Name]; ok {
				must.Eq(t, before, takes, must.Sprintf("--%s of %s", f.Name, cmd.CommandPath()))
			}
			seen[f.Name] = takes
		})
		for _, sub := range cmd.Commands() {
			visit(sub)
		}
	}
	visit(rootCommand(newApp(build{})))
	must.MapContainsKey(t, seen, "config")
}

// Every command has a description, and none prints an English default that cobra adds.
func TestEveryCommandIsDescribed(t *testing.T) {
	t.Parallel()
	var visit func(cmd *cobra.Command)
	visit = func(cmd *cobra.Command) {
		must.NotEq(t, "", cmd.Short, must.Sprint(cmd.CommandPath()))
		for _, sub := range cmd.Commands() {
			visit(sub)
		}
	}
	visit(rootCommand(newApp(build{})))
}

func FuzzNormalizeArgs(f *testing.F) {
	f.Add("-dev", "x", "--")
	f.Add("-p", "-", "-=")
	f.Add("--=", "-config", "")
	root := rootCommand(newApp(build{}))
	f.Fuzz(func(t *testing.T, a, b, c string) {
		got := normalizeArgs(root, []string{a, b, c})
		must.Len(t, 3, got) // nothing is dropped or added
	})
}

func TestNearest(t *testing.T) {
	t.Parallel()
	names := []string{"list", "get", "spawn", "retire", "process", "binary"}
	cases := map[string]string{"lst": "list", "lsit": "list", "gte": "get", "proc": "process", "spwan": "spawn", "zzz": "", "x": "", "LIST": "list"}
	for in, want := range cases {
		must.Eq(t, want, nearest(in, names), must.Sprint(in))
	}
}
