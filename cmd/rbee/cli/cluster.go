package cli

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rbee-project/rbee/cmd/rbee/cli/term"
	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/agent"
	"github.com/rbee-project/rbee/core/client"
	"github.com/rbee-project/rbee/core/config"
	"github.com/rbee-project/rbee/core/pki"
	"github.com/rbee-project/rbee/core/token"
)

func clusterCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cluster",
		Short: "Begin, join, show and leave a cluster",
		Long: `Begin, join, show and leave a cluster. Three machines:
  a$ export RBEE_TOKEN=$(rbee cluster init)
  a$ rbee agent
  a$ rbee token create --type join --role queen   once for each queen that joins; without --role for a hive
  b$ rbee agent -join TOKEN@a`,
	}
	cmd.AddCommand(clusterInitCommand(a), clusterJoinCommand(a), clusterInfoCommand(a), clusterLeaveCommand(a))
	return cmd
}

// loadSettings reads the configuration and prints its problems.
func loadSettings(a *app, cmd *cobra.Command, source *configSource) (*config.Config, error) {
	if err := source.check(); err != nil {
		return nil, err
	}
	cfg, diags := source.load(a, cmd, "")
	if err := writeDiagnostics(a, diags); err != nil {
		return nil, err
	}
	if diags.HasErrors() {
		return nil, errShown
	}
	return cfg, nil
}

// startHint returns the command that starts the agent with the same settings.
func startHint(cmd *cobra.Command, source *configSource) string {
	words := []string{"rbee agent"}
	for _, p := range source.paths {
		words = append(words, "-config", p)
	}
	for _, x := range settingFlags {
		if f := cmd.Flags().Lookup(x.flag); f.Changed && x.flag != "name" {
			words = append(words, "-"+x.flag, f.Value.String())
		}
	}
	return strings.Join(words, " ")
}

func clusterInitCommand(a *app) *cobra.Command {
	var (
		source      configSource
		clusterName string
	)
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Begin a cluster on this machine",
		Long: `Begin a cluster on this machine, its first queen: make the certificates' CA, this machine's certificate, the gossip key and the first
operator token, and write them below the data folder. Nothing is started. A registry that this machine has already is kept.

The operator token has all scopes. It is shown once, and is all that goes to stdout.`,
		Example: "  export RBEE_TOKEN=$(rbee cluster init)\n  rbee cluster init --advertise 10.0.0.1 --queen-only",
		Args:    exactly(),
	}
	cmd.RunE = do(func(ctx context.Context, cmd *cobra.Command, _ []string) error {
		if source.hiveOnly {
			return usageHint("The first machine of a cluster holds its registry. Others may join as hives.", "a cluster begins with a queen, not with --hive-only")
		}
		cfg, err := loadSettings(a, cmd, &source)
		if err != nil {
			return err
		}
		made, err := agent.Init(ctx, cfg, clusterName, a.now())
		if err != nil {
			return err
		}
		return a.show(made, func(w io.Writer) error {
			f := &term.Facts{}
			f.Add("Cluster", named(made.ClusterName, made.Cluster))
			f.Addf("This machine", "%s, a %s, at %s", named(made.Name, made.Node), rolesText(made.Roles), made.RPCAddress)
			f.Add("Files", made.DataDir+"/"+pki.Folder)
			if err := f.Write(a.stderr); err != nil {
				return err
			}
			if made.Doubt != "" {
				fmt.Fprintf(a.stderr, "\nWarning: other machines may not reach this one: %s. To have it otherwise: \"rbee cluster leave --forget\", then \"rbee cluster init --advertise HOST\".\n", term.Line(made.Doubt))
			}
			fmt.Fprintf(a.stderr, `
Next:
  export RBEE_TOKEN=…                    the token below: it is shown now and never again
  %s
  rbee token create --type join          once for each machine that joins; with --role queen it is one more queen

`, startHint(cmd, &source))
			_, err := fmt.Fprintln(w, made.Token)
			return err
		})
	})
	source.fileFlags(cmd)
	cmd.Flags().StringVar(&clusterName, "cluster-name", "", "`NAME` of the cluster, for people")
	return cmd
}

// named returns a name with its id, or the id alone.
func named(name, id string) string {
	if name == "" || name == id {
		return id
	}
	return name + " (" + id + ")"
}

// roleList returns the names of roles, the queen's first.
func roleList(roles []core.Role) []string {
	var names []string
	for _, r := range []core.Role{core.RoleQueen, core.RoleHive} {
		if slices.Contains(roles, r) {
			names = append(names, string(r))
		}
	}
	return names
}

func rolesText(roles []core.Role) string {
	return strings.Join(roleList(roles), " and ")
}

// joined is this machine's membership in the cluster.
type joined struct {
	Cluster     string      `json:"cluster"`
	ClusterName string      `json:"cluster_name"`
	Node        string      `json:"node"`
	Name        string      `json:"name"`
	Roles       []core.Role `json:"roles"`
	RPCAddress  string      `json:"rpc_address"`
	Expires     time.Time   `json:"certificate_expires_at"`
	Already     bool        `json:"already"` // it had joined before
}

func joinedOf(id *pki.Identity) joined {
	n := id.Node()
	return joined{Cluster: id.Cluster(), ClusterName: id.ClusterName(), Node: n.ID, Name: n.Name, Roles: n.Roles, RPCAddress: id.RPCAddress(), Expires: n.NotAfter}
}

// joinCluster makes this machine join the cluster of tokenAtHost, and reports it on stderr. It
// leaves a machine that is already in that cluster as it is.
func joinCluster(ctx context.Context, a *app, cfg *config.Config, tokenAtHost string) (joined, error) {
	parsed, address, err := token.ParseJoin(tokenAtHost)
	if err != nil {
		return joined{}, err
	}
	if cfg.TLS.Given() {
		return joined{}, core.Errorf(core.Invalid, "join a cluster: the configuration names certificates that were made elsewhere").Hint(
			"Such a machine finds the others with gossip { retry_join = … } and needs no token. Take the block tls out of the configuration to join with one.")
	}
	id, err := pki.Load(cfg.DataDir)
	switch {
	case err == nil:
		have, err := pki.Fingerprint(id.CAPEM())
		if err != nil {
			return joined{}, err
		}
		if have != parsed.Fingerprint {
			return joined{}, core.Errorf(core.Conflict, "join a cluster: this machine is in cluster %s already, and the token is of another one", named(id.ClusterName(), id.Cluster())).Hint(
				"Leave that cluster first with \"rbee cluster leave\", or choose another folder with -data-dir.")
		}
		if agent.Ended(id, parsed.Fingerprint, a.now()) {
			fmt.Fprintf(a.stderr, "This machine's certificate ended on %s: it joins its cluster again, as %s.\n", id.Node().NotAfter.UTC().Format(time.DateOnly), named(id.Node().Name, id.Node().ID))
			break
		}
		j := joinedOf(id)
		j.Already = true
		fmt.Fprintf(a.stderr, "This machine is in cluster %s already, as %s, a %s: the join token is not needed any more.\n", named(j.ClusterName, j.Cluster), named(j.Name, j.Node), rolesText(j.Roles))
		return j, nil
	case core.KindOf(err) != core.NotFound:
		return joined{}, err
	}
	fmt.Fprintf(a.stderr, "Joining the cluster of %s …\n", address)
	if err := agent.Join(ctx, cfg, tokenAtHost); err != nil {
		return joined{}, err
	}
	if id, err = pki.Load(cfg.DataDir); err != nil {
		return joined{}, err
	}
	j := joinedOf(id)
	fmt.Fprintf(a.stderr, "This machine is in cluster %s now, as %s, a %s.\n", named(j.ClusterName, j.Cluster), named(j.Name, j.Node), rolesText(j.Roles))
	return j, nil
}

func clusterJoinCommand(a *app) *cobra.Command {
	var source configSource
	cmd := &cobra.Command{
		Use:   "join TOKEN@HOST[:PORT]|-",
		Short: "Join a cluster with this machine, without starting the agent",
		Long: `Join a cluster with this machine, without starting the agent: "rbee agent -join" does both. The token is from
"rbee token create --type join"; the host is any queen, and the port that of its machines' talk (default 7834). The token carries the
fingerprint of the cluster's CA, so no stranger can answer in the queen's place. With "-" it is read from stdin, and so is in no list of processes.`,
		Args: exactly("TOKEN@HOST"),
	}
	cmd.RunE = do(func(ctx context.Context, cmd *cobra.Command, args []string) error {
		tokenAtHost := args[0]
		if tokenAtHost == "-" {
			line, err := a.readLine(ctx)
			if err != nil {
				return err
			}
			tokenAtHost = strings.TrimSpace(line)
		}
		if _, _, err := token.ParseJoin(tokenAtHost); err != nil {
			return &usageError{err: err, hint: core.HintOf(err)}
		}
		cfg, err := loadSettings(a, cmd, &source)
		if err != nil {
			return err
		}
		j, err := joinCluster(ctx, a, cfg, tokenAtHost)
		if err != nil {
			return err
		}
		return a.show(j, func(io.Writer) error {
			fmt.Fprintf(a.stderr, "Start it with:\n  %s\n", startHint(cmd, &source))
			return nil
		})
	})
	source.fileFlags(cmd)
	return cmd
}

// clusterInfo is the output of "rbee cluster info".
type clusterInfo struct {
	Cluster *core.Cluster `json:"cluster"` // null: no queen answered
	Queens  []core.Queen  `json:"queens"`
	Nodes   []core.Node   `json:"nodes"`
	Local   *joined       `json:"local"` // null: this machine is in no cluster, or its files are unreadable
}

func clusterInfoCommand(a *app) *cobra.Command {
	return a.reads(&cobra.Command{
		Use:   "info",
		Short: "Show the cluster, its machines, and what this machine is in it",
		Args:  exactly(),
	}, func(ctx context.Context, c *client.Client, _ []string, read ...client.ReadOption) error {
		var info clusterInfo
		if l := a.localAgent(); l.identity != nil {
			j := joinedOf(l.identity)
			j.Already = true
			info.Local = &j
		}
		err := func() error {
			cluster, err := c.Cluster(ctx, read...)
			if err != nil {
				return err
			}
			if info.Queens, err = c.Queens(ctx, read...); err != nil {
				return err
			}
			info.Nodes, err = c.Nodes(ctx, read...)
			info.Cluster = &cluster
			return err
		}()
		if err != nil && (info.Local == nil || ctx.Err() != nil) {
			return err
		}
		if err != nil {
			fmt.Fprintf(a.stderr, "The cluster was not asked: %s. What follows is from this machine's disk.\n", term.Line(err.Error()))
		}
		info.Queens, info.Nodes = list(info.Queens), list(info.Nodes)
		sortQueens(info.Queens)
		sortNodes(info.Nodes)
		return a.show(info, func(w io.Writer) error { return writeClusterInfo(a, w, info) })
	})
}

func writeClusterInfo(a *app, w io.Writer, info clusterInfo) error {
	f := &term.Facts{}
	if info.Cluster != nil {
		f.Add("Cluster", named(info.Cluster.Name, info.Cluster.ID))
	} else {
		f.Add("Cluster", named(info.Local.ClusterName, info.Local.Cluster))
	}
	if l := info.Local; l != nil {
		f.Addf("This machine", "%s, a %s, at %s", named(l.Name, l.Node), rolesText(l.Roles), l.RPCAddress)
		f.Add("Certificate", expiryText(a, l.Expires))
	}
	if err := f.Write(w); err != nil || info.Cluster == nil {
		return err
	}
	return term.InOrder(
		func() error { return term.Heading(w, "Queens") },
		func() error { return queenTable(info.Queens).Write(w) },
		func() error { return term.Heading(w, "Machines") },
		func() error { return nodeTable(a, info.Nodes).Write(w) },
	)
}

func clusterLeaveCommand(a *app) *cobra.Command {
	var (
		source              configSource
		yes, dryRun, forget bool
	)
	cmd := &cobra.Command{
		Use:   "leave [NODE]",
		Short: "Take a machine out of the cluster for good",
		Long: `Take a machine out of the cluster for good, this one if none is named by id or name: a queen hands its leadership and its vote over, workers
are retired, the certificate is refused from then on, and the agent there forgets it and ends. It needs a new join token to come back.

--forget only has this machine forget its cluster, without telling anybody: for a cluster that is no more.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usagef("one argument too many: %q", args[1])
			}
			return nil
		},
		ValidArgsFunction: first(a.names(nodeNames)),
	}
	cmd.RunE = do(func(ctx context.Context, cmd *cobra.Command, args []string) error {
		if forget {
			if len(args) > 0 {
				return usageHint("A machine forgets its cluster where it stands.", "--forget is for this machine: it takes no NODE")
			}
			return forgetCluster(ctx, a, cmd, &source, yes, dryRun)
		}
		wanted := strings.Join(args, "")
		if wanted == "" {
			cfg, err := loadSettings(a, cmd, &source)
			if err != nil {
				return err
			}
			id, err := pki.Load(cfg.DataDir)
			if core.KindOf(err) == core.NotFound {
				return core.Errorf(core.NotFound, "this machine is in no cluster (%s)", cfg.DataDir).Hint("Name another machine of the cluster: \"rbee cluster leave NODE\"; \"rbee tls list\" shows them.")
			}
			if err != nil {
				return err
			}
			wanted = id.Node().ID
		}
		c, err := a.connect(ctx)
		if err != nil {
			return err
		}
		return a.explainUnreachable(ctx, c, leaveCluster(ctx, a, c, wanted, yes, dryRun))
	})
	source.fileFlags(cmd)
	cmd.Flags().BoolVar(&forget, "forget", false, "only forget the cluster on this machine's disk, and tell nobody")
	destructiveFlags(cmd, &yes, &dryRun)
	return cmd
}

func leaveCluster(ctx context.Context, a *app, c *client.Client, wanted string, yes, dryRun bool) error {
	n, err := findNode(ctx, c, wanted)
	if err != nil {
		return err
	}
	if dryRun {
		fmt.Fprintln(a.stderr, "Would take this machine out of the cluster:")
		return a.show(n, nodeTable(a, []core.Node{n}).Write)
	}
	if err := a.confirm(ctx, yes, fmt.Sprintf("Take %s, a %s, out of the cluster for good?", named(n.Name, n.ID), rolesText(n.Roles))); err != nil {
		return err
	}
	gone, err := c.LeaveNode(ctx, n.ID)
	if err != nil {
		if core.KindOf(err) == core.Unavailable && core.HintOf(err) == "" {
			return core.WithHint(err, "A machine that is gone cannot leave: \"rbee tls revoke %s\" has it refused, and \"rbee operator raft remove %s\" takes its vote.", n.ID, n.ID)
		}
		return err
	}
	return a.show(gone, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "%s is out of the cluster.\n", term.Line(named(n.Name, n.ID)))
		return err
	})
}

func forgetCluster(ctx context.Context, a *app, cmd *cobra.Command, source *configSource, yes, dryRun bool) error {
	cfg, err := loadSettings(a, cmd, source)
	if err != nil {
		return err
	}
	id, err := pki.Load(cfg.DataDir)
	if core.KindOf(err) == core.NotFound {
		return err
	}
	cluster := "whose files in " + cfg.DataDir + " are damaged"
	if err == nil {
		cluster = named(id.ClusterName(), id.Cluster())
	}
	if dryRun {
		fmt.Fprintf(a.stderr, "Would forget cluster %s: remove %s/%s, and put the registry aside.\n", term.Line(cluster), cfg.DataDir, pki.Folder)
		return nil
	}
	if err := a.confirm(ctx, yes, fmt.Sprintf("Forget cluster %s on this machine, and tell nobody?", cluster)); err != nil {
		return err
	}
	aside, err := agent.Forget(cfg)
	if err != nil {
		return err
	}
	return a.show(map[string]any{"forgotten": true, "registry": aside}, func(w io.Writer) error {
		text := fmt.Sprintf("This machine has forgotten cluster %s.", cluster)
		if aside != "" {
			text += " Its copy of the registry is in " + aside + "."
		}
		_, err := fmt.Fprintln(w, term.Line(text))
		return err
	})
}

// findNode finds the machine of the cluster by id, by a unique prefix of it, or by name. A revoked
// one is found by its name only if no other machine has it.
func findNode(ctx context.Context, c *client.Client, wanted string) (core.Node, error) {
	nodes, err := c.Nodes(ctx)
	if err != nil {
		return core.Node{}, err
	}
	slices.SortStableFunc(nodes, func(x, y core.Node) int { return b2i(x.Revoked) - b2i(y.Revoked) })
	if at := slices.IndexFunc(nodes, func(n core.Node) bool { return n.ID == wanted }); at >= 0 {
		return nodes[at], nil
	}
	var (
		matches []core.Node
		names   []string
	)
	for _, n := range nodes {
		if n.Name == wanted {
			return n, nil
		}
		if len(wanted) >= 3 && strings.HasPrefix(n.ID, wanted) {
			matches = append(matches, n)
		}
		names = append(names, n.Name, n.ID)
	}
	if len(matches) == 1 {
		return matches[0], nil
	}
	hint := `"rbee tls list" shows the machines of the cluster.`
	if near := nearest(wanted, names); near != "" {
		hint = fmt.Sprintf("Did you mean %s? %s", near, hint)
	}
	return core.Node{}, core.Errorf(core.NotFound, "no machine %q in this cluster", wanted).Hint("%s", hint)
}

func nodeNames(ctx context.Context, c *client.Client) ([]string, error) {
	nodes, err := c.Nodes(ctx)
	var names []string
	for _, n := range nodes {
		names = append(names, orElse(n.Name, n.ID))
	}
	return names, err
}

func sortNodes(nodes []core.Node) {
	slices.SortFunc(nodes, func(x, y core.Node) int { return strings.Compare(x.Name+"\x00"+x.ID, y.Name+"\x00"+y.ID) })
}

func nodeTable(a *app, nodes []core.Node) *term.Table {
	t := term.NewTable("No machines.", "NAME", "ROLES", "ADDRESS", "CERTIFICATE", "ID")
	for _, n := range nodes {
		state := expiryText(a, n.CertificateExpiresAt)
		if n.Revoked {
			state = "revoked"
		}
		t.Add(n.Name, rolesText(n.Roles), n.RPCAddress, state, n.ID)
	}
	return t
}

// expiryText returns when a certificate expires.
func expiryText(a *app, t time.Time) string {
	if t.IsZero() {
		return ""
	}
	left := t.Sub(a.now())
	if left <= 0 {
		return "expired " + a.ago(t)
	}
	return "expires in " + term.Duration(left)
}
