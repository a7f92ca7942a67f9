package cli

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/rbee-project/rbee/cmd/rbee/cli/term"
	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/client"
)

func keyringCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "keyring",
		Short: "The keys that encrypt gossip",
		Long: `The keys that encrypt gossip. A rotation is three steps, each known to every machine before the next one:
  rbee operator keyring install              a new key, understood but not used yet
  rbee operator keyring use FINGERPRINT      encrypt with it
  rbee operator keyring remove FINGERPRINT   forget the old one
Keys are shown by their fingerprints only.`,
	}
	list := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the keys by their fingerprints",
		Args:    exactly(),
		RunE: a.asking(func(ctx context.Context, c *client.Client, _ []string) error {
			k, err := c.Keyring(ctx)
			if err != nil {
				return err
			}
			return showKeyring(a, k)
		}),
	}
	var keyFile string
	install := &cobra.Command{
		Use:   "install",
		Short: "Have every machine understand a new key",
		Long:  "Have every machine understand a new key, which is made on the leader. --key-file takes one of your own: 32 bytes in base64, \"-\" is stdin.",
		Args:  exactly(),
		RunE: a.asking(func(ctx context.Context, c *client.Client, _ []string) error {
			change := core.KeyringChange{Action: "install"}
			if keyFile != "" {
				key, err := a.secretFile(ctx, keyFile)
				if err != nil {
					return err
				}
				change.Key = key
			}
			k, err := c.ChangeKeyring(ctx, change)
			if err != nil {
				return err
			}
			fmt.Fprintln(a.stderr, "Every machine learns the new key within seconds. \"rbee operator keyring use FINGERPRINT\" has it used.")
			return showKeyring(a, k)
		}),
	}
	install.Flags().StringVar(&keyFile, "key-file", "", "`FILE` with the key, or - for stdin (default: a new one is made)")
	use := &cobra.Command{
		Use:               "use FINGERPRINT",
		Short:             "Encrypt with a key that is installed",
		Args:              exactly("FINGERPRINT"),
		ValidArgsFunction: first(a.names(keyFingerprints)),
		RunE: a.asking(func(ctx context.Context, c *client.Client, args []string) error {
			k, err := c.ChangeKeyring(ctx, core.KeyringChange{Action: "use", Fingerprint: args[0]})
			if err != nil {
				return err
			}
			return showKeyring(a, k)
		}),
	}
	cmd.AddCommand(list, install, use, keyringRemoveCommand(a))
	return cmd
}

func keyringRemoveCommand(a *app) *cobra.Command {
	var yes, dryRun bool
	cmd := &cobra.Command{
		Use:               "remove FINGERPRINT",
		Aliases:           []string{"rm"},
		Short:             "Forget a key that is not used any more",
		Args:              exactly("FINGERPRINT"),
		ValidArgsFunction: first(a.names(keyFingerprints)),
	}
	cmd.RunE = a.asking(func(ctx context.Context, c *client.Client, args []string) error {
		if dryRun {
			k, err := c.Keyring(ctx)
			if err != nil {
				return err
			}
			fmt.Fprintf(a.stderr, "Would remove %s from these keys:\n", term.Line(args[0]))
			return showKeyring(a, k)
		}
		if err := a.confirm(ctx, yes, fmt.Sprintf("Remove the gossip key %s? A machine that was away since the last rotation finds the others by their addresses only.", args[0])); err != nil {
			return err
		}
		k, err := c.ChangeKeyring(ctx, core.KeyringChange{Action: "remove", Fingerprint: args[0]})
		if err != nil {
			return err
		}
		return showKeyring(a, k)
	})
	destructiveFlags(cmd, &yes, &dryRun)
	return cmd
}

func keyFingerprints(ctx context.Context, c *client.Client) ([]string, error) {
	k, err := c.Keyring(ctx)
	return k.Keys, err
}

func showKeyring(a *app, k core.Keyring) error {
	k.Keys = list(k.Keys)
	return a.show(k, func(w io.Writer) error {
		t := term.NewTable("No keys.", "FINGERPRINT", "USE")
		for _, key := range k.Keys {
			use := "understood"
			if key == k.Primary {
				use = "encrypts"
			}
			t.Add(key, use)
		}
		return t.Write(w)
	})
}
