package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/rbee-project/rbee/cmd/rbee/cli/term"
	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/client"
)

// launched is how a program is started.
type launched struct {
	args []string          // before the user's own
	env  map[string]string // in addition to this process's
}

// launchers are the programs that "rbee launch" supports, by their executables. dir is a folder
// that exists while the program runs: the program's settings are written to it, and the user's
// files are not touched.
var launchers = map[string]func(l launch, dir string) (launched, error){
	"claude":   launchClaude,
	"codex":    launchCodex,
	"opencode": launchOpencode,
}

func launcherNames() []string { return slices.Sorted(maps.Keys(launchers)) }

// launch is where a program is to connect.
type launch struct {
	base  string // of rbee's API, without /v1
	token string
	model string // Model.ID
}

// launchClaude configures Claude Code: it reads the server, the token and its models from the
// environment.
func launchClaude(l launch, _ string) (launched, error) {
	return launched{env: map[string]string{
		"ANTHROPIC_BASE_URL": l.base, "ANTHROPIC_AUTH_TOKEN": l.token, "ANTHROPIC_API_KEY": "",
		"ANTHROPIC_MODEL": l.model, "ANTHROPIC_SMALL_FAST_MODEL": l.model,
		"ANTHROPIC_DEFAULT_OPUS_MODEL": l.model, "ANTHROPIC_DEFAULT_SONNET_MODEL": l.model, "ANTHROPIC_DEFAULT_HAIKU_MODEL": l.model,
		"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
	}}, nil
}

// launchCodex configures Codex by settings on its command line, which take precedence over its
// file's.
func launchCodex(l launch, _ string) (launched, error) {
	settings := []string{
		"model_provider=" + tomlString("rbee"), "model=" + tomlString(l.model), "model_providers.rbee.name=" + tomlString("rbee"),
		"model_providers.rbee.base_url=" + tomlString(l.base+"/v1"), "model_providers.rbee.env_key=" + tomlString("RBEE_LAUNCH_KEY"),
		"model_providers.rbee.wire_api=" + tomlString("responses"),
	}
	out := launched{env: map[string]string{"RBEE_LAUNCH_KEY": l.token}}
	for _, s := range settings {
		out.args = append(out.args, "-c", s)
	}
	return out, nil
}

// tomlString returns s as a basic string of TOML, whose escapes are those of JSON.
func tomlString(s string) string {
	b, _ := json.Marshal(s) // a string always marshals
	return string(b)
}

// launchOpencode configures opencode by a separate configuration file, which it merges with the
// user's.
func launchOpencode(l launch, dir string) (launched, error) {
	config := map[string]any{
		"$schema": "https://opencode.ai/config.json", "model": "rbee/" + l.model, "small_model": "rbee/" + l.model,
		"provider": map[string]any{"rbee": map[string]any{
			"npm": "@ai-sdk/openai-compatible", "name": "rbee",
			"options": map[string]any{"baseURL": l.base + "/v1", "apiKey": "{env:RBEE_LAUNCH_KEY}"},
			"models":  map[string]any{l.model: map[string]any{"name": l.model}},
		}},
	}
	b, err := json.MarshalIndent(config, "", "  ")
	if err != nil {
		return launched{}, err
	}
	path := filepath.Join(dir, "opencode.json")
	if err := os.WriteFile(path, append(b, '\n'), 0o600); err != nil {
		return launched{}, err
	}
	// Otherwise it would ask a server on the internet for a list of all models, and wait for it.
	return launched{env: map[string]string{"OPENCODE_CONFIG": path, "RBEE_LAUNCH_KEY": l.token, "OPENCODE_DISABLE_MODELS_FETCH": "1"}}, nil
}

func launchCommand(a *app) *cobra.Command {
	var model string
	cmd := &cobra.Command{
		Use:   "launch PROGRAM [-- ARGUMENT...]",
		Short: "Start a coding agent that uses rbee",
		Long: `Start claude, codex or opencode with a configuration that points it here, in its environment, on its command line or in a temporary file. No file of
yours is changed. What follows -- are the program's own arguments; its exit code is rbee's.`,
		Example:           "  rbee launch codex --model ORG/REPO -- exec \"explain this folder\"\n  rbee launch opencode",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: first(cobra.FixedCompletions(launcherNames(), cobra.ShellCompDirectiveNoFileComp)),
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if dash := cmd.ArgsLenAtDash(); dash == 0 || dash > 1 || dash < 0 && len(args) > 1 {
			return usageHint("rbee launch PROGRAM -- ARGUMENT...", "the program's own arguments follow --")
		}
		configure := launchers[args[0]]
		if configure == nil {
			return usageHint("It is one of "+strings.Join(launcherNames(), ", ")+".", "rbee cannot launch %q", args[0])
		}
		program, err := exec.LookPath(args[0])
		if err != nil {
			return core.WithHint(core.Wrap(err, core.NotFound, "find "+args[0]), "Install it, or put its folder into PATH.")
		}
		var to launch
		find := do(func(ctx context.Context, _ *cobra.Command, _ []string) (err error) {
			to, err = launchTo(ctx, a, model)
			return err
		})
		if err := find(cmd, args); err != nil {
			return err
		}
		dir, err := os.MkdirTemp("", "rbee-launch-")
		if err != nil {
			return core.Wrap(err, core.Unavailable, "make a folder for the program's settings")
		}
		defer os.RemoveAll(dir)
		with, err := configure(to, dir)
		if err != nil {
			return core.Wrap(err, core.Unavailable, "write the program's settings")
		}
		if ca := caFileOf(a); ca != "" && strings.HasPrefix(to.base, "https://") {
			with.env["NODE_EXTRA_CA_CERTS"] = ca
		}
		fmt.Fprintf(a.stderr, "Starting %s with %s.\n", args[0], term.Line(to.model))
		return runProgram(a, program, append(with.args, args[1:]...), with.env) // the signals are for the program
	}
	cmd.Flags().StringVarP(&model, "model", "m", "", "`MODEL` to use (default: the only one, or the only one that is loaded)")
	_ = cmd.RegisterFlagCompletionFunc("model", a.names(modelsToUse))
	return cmd
}

// launchTo finds the agent and the model for a program.
func launchTo(ctx context.Context, a *app, model string) (launch, error) {
	c, err := a.connect(ctx)
	if err != nil {
		return launch{}, err
	}
	to := launch{base: c.Base(), token: cmp.Or(a.getenv("RBEE_TOKEN"), noToken)}
	if a.tokenFile != "" {
		if to.token, err = a.secretFile(ctx, a.tokenFile); err != nil {
			return launch{}, err
		}
	}
	to.model, err = launchModel(ctx, c, model)
	return to, a.explainUnreachable(ctx, c, err)
}

// launchModel returns the id of the model that a program is to use: the named one; otherwise the
// only loaded one, or the only one.
func launchModel(ctx context.Context, c *client.Client, name string) (string, error) {
	if name != "" {
		m, err := c.Model(ctx, name)
		return m.ID, err
	}
	models, err := c.Models(ctx)
	if err != nil {
		return "", err
	}
	models = slices.DeleteFunc(models, func(m core.Model) bool { return m.Damaged != "" })
	loaded := slices.DeleteFunc(slices.Clone(models), func(m core.Model) bool { return m.State != core.ModelLoaded })
	for _, among := range [][]core.Model{loaded, models} {
		if len(among) == 1 {
			return among[0].ID, nil
		}
	}
	if len(models) == 0 {
		return "", core.Errorf(core.NotFound, "there is no model").Hint("\"rbee pull REF\" fetches one.")
	}
	var ids []string
	for _, m := range models[:min(len(models), 8)] {
		ids = append(ids, m.ID)
	}
	return "", usageHint("There are "+strings.Join(ids, ", ")+".", "say with --model which of %d models to use", len(models))
}

// runProgram runs a program in place of this one: with its terminal and its signals, until it ends.
func runProgram(a *app, program string, args []string, env map[string]string) error {
	cmd := exec.Command(program, args...) //nolint:noctx // it ends by itself, as the person tells it to
	cmd.Stdin, cmd.Stdout, cmd.Stderr = a.stdin, a.stdout, a.stderr
	cmd.Env = os.Environ()
	for _, name := range slices.Sorted(maps.Keys(env)) {
		cmd.Env = append(cmd.Env, name+"="+env[name])
	}
	// A terminal sends ^C to the program as well, which handles it.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		return core.Wrap(err, core.Unavailable, "start "+filepath.Base(program))
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		select {
		case err := <-ended:
			if exit, ok := errors.AsType[*exec.ExitError](err); ok {
				return &launchedError{code: max(exit.ExitCode(), 1)}
			}
			return err
		case s := <-signals:
			if s != syscall.SIGINT {
				_ = cmd.Process.Signal(s) // it may have exited
			}
		}
	}
}

// launchedError ends rbee with the exit code of the program that it started, which has reported the
// reason.
type launchedError struct{ code int }

func (e *launchedError) Error() string {
	return fmt.Sprintf("the program ended with exit code %d", e.code)
}
