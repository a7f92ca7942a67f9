package cli

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rbee-project/rbee/cmd/rbee/cli/term"
	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/client"
	"github.com/rbee-project/rbee/core/token"
)

// maxJoinTTL bounds the lifetime of a join token: anybody who has it can join a machine to the
// cluster.
const maxJoinTTL = 24 * time.Hour

func tokenCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "token",
		Aliases: []string{"tokens"},
		Short:   "Tokens: who may use the API, and which machines may join",
	}
	cmd.AddCommand(tokenCreateCommand(a), tokenListCommand(a), tokenRotateCommand(a), tokenRevokeCommand(a))
	return cmd
}

func scopeNames() []string {
	var names []string
	for _, s := range core.Scopes() {
		names = append(names, string(s))
	}
	return names
}

func roleNames() []string { return []string{string(core.RoleQueen), string(core.RoleHive)} }

func tokenCreateCommand(a *app) *cobra.Command {
	var (
		kind, name    string
		scopes, roles []string
		models        []string
		limits        []string
		priority      string
		ttl           days
		local         bool
	)
	cmd := &cobra.Command{
		Use:   "create [--type join|api]",
		Short: "Make a token, and show it once",
		Long: `Make a token, and show it once: the registry keeps only a hash of it. The token is all that goes to stdout.

A join token takes one machine into the cluster, once, within --ttl (default 1h, at most 24h). It makes a hive, which runs workers. With
--role queen it makes a queen, which may be a hive as well: a queen holds the cluster's keys, so give such a token only to a machine that you
trust with all of it.
An API token is sent with requests, as RBEE_TOKEN, or as the key of an OpenAI client. It allows what --scope lists, and nothing else:
  infer    ask models
  read     look
  operate  change what runs and what is stored
  admin    change who may do what
--scope, --model, --limit and --priority are for API tokens, so that --type can be left out with them; the scope is infer where only they are given.
A token with --model or --limit can have only the scopes infer and read: a stronger one could raise its own limits.

--model names a model that it may ask, by any of its names; with none it may ask all. An alias means the model that it has now.
--limit bounds what is done with it at all queens together, within rolling windows of a second, minute, hour or day:
  --limit "100 requests/minute" --limit "1000000 tokens/day" --limit "4 concurrent"
Tokens are those of prompts and answers. What goes beyond a limit is refused with 429 and the time to wait.
--priority says how much of a busy model it gets beside others: high has four times the share of normal, normal four times that of low.

No token is needed on a queen's machine for those who may read its data folder, such as root: with --local, or where neither RBEE_TOKEN nor
RBEE_ADDR is set, the queen of this machine is asked through its local socket. So the loss of the operator token is mended. The queen logs it.`,
		Example: "  rbee token create --type join --ttl 15m\n  rbee token create --type join --role queen\n  rbee token create --type api --scope infer --name alice --expires 30d\n  rbee token create --name team --model rbee-tiny --limit \"100 requests/minute\" --limit \"4 concurrent\"",
		Args:    exactly(),
	}
	cmd.RunE = do(func(ctx context.Context, _ *cobra.Command, _ []string) error {
		bounds := core.TokenRequest{Models: models}
		if err := boundsOf(&bounds, limits, priority); err != nil {
			return err
		}
		if kind == "" && (len(scopes)+len(models)+len(limits) > 0 || priority != "") {
			kind = string(core.TokenAPI)
		}
		if len(models)+len(limits) > 0 && len(scopes) == 0 && kind == string(core.TokenAPI) {
			scopes = []string{string(core.ScopeInfer)}
		}
		r, err := tokenRequest(kind, name, scopes, roles, time.Duration(ttl), cmd.Flags().Changed("ttl") || cmd.Flags().Changed("expires"), bounds)
		if err != nil {
			return err
		}
		c, host, err := tokenMaker(ctx, a, local)
		if err != nil {
			return err
		}
		t, err := c.CreateToken(ctx, r)
		switch {
		case err == nil:
		case host != "" && core.KindOf(err) == core.Unavailable:
			return core.WithHint(err, "The agent of this machine makes the token: look whether it runs, and whether a majority of the queens does.")
		case host != "":
			return err
		default:
			return a.explainUnreachable(ctx, c, err)
		}
		return a.show(t, func(w io.Writer) error {
			if host == "" && t.Kind == core.TokenJoin {
				host = joinHost(ctx, a, c)
			}
			explainToken(a, t, host)
			_, err := fmt.Fprintln(w, t.Secret)
			return err
		})
	})
	f := cmd.Flags()
	f.StringVar(&kind, "type", "", "`join|api`")
	f.StringSliceVar(&scopes, "scope", nil, "`SCOPES` of an API token: "+strings.Join(scopeNames(), ", ")+"; may be repeated")
	f.StringSliceVar(&roles, "role", nil, "`ROLE` of the machine that joins: hive, or queen, which may be a hive as well (default: hive)")
	f.StringVar(&name, "name", "", "`NAME` to know it by in \"rbee token list\"")
	f.BoolVar(&local, "local", false, "ask the queen of this machine through its local socket, without a token")
	f.StringArrayVar(&models, "model", nil, "`MODEL` that an API token may ask (default: all); may be repeated")
	f.StringArrayVar(&limits, "limit", nil, "`LIMIT` of an API token, such as \"100 requests/minute\"; may be repeated")
	f.StringVar(&priority, "priority", "", "`low|normal|high` of an API token (default: normal)")
	f.Var(&ttl, "ttl", "how long it is good for, such as 90m or 30d (default: 1h for join, for ever for api)")
	f.Var(&ttl, "expires", "the same as --ttl")
	_ = cmd.RegisterFlagCompletionFunc("model", a.names(modelsToUse))
	_ = cmd.RegisterFlagCompletionFunc("priority", cobra.FixedCompletions(core.Priorities(), cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("type", cobra.FixedCompletions([]string{string(core.TokenJoin), string(core.TokenAPI)}, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("scope", cobra.FixedCompletions(scopeNames(), cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("role", cobra.FixedCompletions(roleNames(), cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// boundsOf parses the limits and the priority of an API token.
func boundsOf(r *core.TokenRequest, limits []string, priority string) error {
	for _, text := range limits {
		l, err := core.ParseLimit(text)
		if err != nil {
			return usageHint(core.HintOf(err), "--limit: %s", err)
		}
		r.Limits = append(r.Limits, l)
	}
	if err := core.CheckLimits(r.Limits); err != nil {
		return usageHint(core.HintOf(err), "--limit: %s", err)
	}
	var err error
	if r.Priority, err = core.ParsePriority(priority); err != nil {
		return usageHint(core.HintOf(err), "--priority: %s", err)
	}
	return nil
}

// tokenRequest validates the flags of "rbee token create". bounds are those of an API token.
func tokenRequest(kind, name string, scopes, roles []string, ttl time.Duration, ttlGiven bool, bounds core.TokenRequest) (core.TokenRequest, error) {
	r := bounds
	r.Kind, r.Name, r.TTL = core.TokenKind(kind), name, core.Duration(ttl)
	if ttl < 0 || ttlGiven && ttl == 0 {
		return r, usageHint("Leave --ttl out for the default.", "--ttl must be positive, not %s", ttl)
	}
	switch r.Kind {
	case core.TokenJoin:
		if len(scopes) > 0 {
			return r, usageHint("--role says what a machine may join as; an API token has scopes.", "a join token has no --scope")
		}
		if len(r.Models)+len(r.Limits) > 0 || r.Priority != core.PriorityNormal {
			return r, usageHint("They are for API tokens.", "a join token has no --model, --limit or --priority")
		}
		if ttl > maxJoinTTL {
			return r, usageHint("Make a new token when you need it: it is for one machine anyway.", "--ttl of a join token is at most %s, not %s", maxJoinTTL, ttl)
		}
		for _, role := range roles {
			if !slices.Contains(roleNames(), role) {
				return r, usageHint("It is hive, or queen, which may be a hive as well.", "unknown role %q", role)
			}
		}
		r.Roles = []core.Role{core.RoleHive} // explicit, as older queens default to a queen's token
		if slices.Contains(roles, string(core.RoleQueen)) {
			r.Roles = []core.Role{core.RoleQueen, core.RoleHive}
		}
	case core.TokenAPI:
		if len(roles) > 0 {
			return r, usageHint("--scope says what an API token allows; a join token has roles.", "an API token has no --role")
		}
		if len(scopes) == 0 {
			return r, usageHint("It is one or more of "+strings.Join(scopeNames(), ", ")+"; none includes another.", "--scope is missing: an API token allows nothing else")
		}
		for _, scope := range scopes {
			if !slices.Contains(scopeNames(), scope) {
				hint := "It is one of " + strings.Join(scopeNames(), ", ") + "."
				if n := nearest(scope, scopeNames()); n != "" {
					hint = fmt.Sprintf("Did you mean %s? %s", n, hint)
				}
				return r, usageHint(hint, "unknown scope %q", scope)
			}
			r.Scopes = append(r.Scopes, core.Scope(scope))
		}
	case "":
		return r, usageHint("\"--type join\" is for a machine that joins the cluster, \"--type api\" for people and programs.", "--type is missing")
	default:
		return r, usageHint("It is join or api.", "unknown type %q", kind)
	}
	return r, nil
}

// tokenMaker returns a client for creating a token. host is where machines join, if this machine's
// queen creates it, through its local socket; otherwise empty.
func tokenMaker(ctx context.Context, a *app, local bool) (c *client.Client, host string, err error) {
	t, err := a.target()
	if err != nil {
		return nil, "", err
	}
	bearer, err := a.bearer(ctx)
	if err != nil {
		return nil, "", err
	}
	id := t.local.identity
	queen := id != nil && id.Has(core.RoleQueen)
	switch {
	case local && !queen:
		return nil, "", core.Errorf(core.NotFound, "there is no queen in the data folder %s that this user may read", t.local.dir).Hint(
			"Run it on a queen's machine as the user of its agent, or as root; RBEE_DATA_DIR names another data folder.")
	case !local && (t.named || bearer != "" || !queen):
		c, err = a.connectTo(ctx, t)
		return c, "", err
	}
	fmt.Fprintln(a.stderr, "Asking the queen of this machine through its local socket, which it logs.")
	c, err = t.local.client()
	return c, joinAddress(id.RPCAddress()), err
}

// explainToken explains on stderr what to do with a new token; host is where a machine joins.
func explainToken(a *app, t core.NewToken, host string) {
	until := "It does not expire"
	if t.TTL > 0 {
		until = fmt.Sprintf("It is good for %s", term.Duration(time.Duration(t.TTL)))
	}
	const once = "; it is shown now and never again. \"rbee token revoke %s\" ends it."
	if t.Kind == core.TokenAPI {
		fmt.Fprintf(a.stderr, "%s"+once+" Send it as RBEE_TOKEN, or as the key of an OpenAI client:\n", until, t.ID)
		return
	}
	as := "a hive"
	if slices.Contains(t.Roles, core.RoleQueen) {
		as = "a queen"
	}
	fmt.Fprintf(a.stderr, "%s and takes one machine into the cluster, as %s"+once+" On that machine:\n  rbee agent -join %s@%s\nThe token alone:\n",
		until, as, t.ID, t.Secret, host)
}

// joinHost returns where a machine can join the cluster, in the shortest form.
func joinHost(ctx context.Context, a *app, c *client.Client) string {
	address := ""
	queens, err := c.Queens(ctx, client.Consistency(core.ConsistencyStale))
	for _, q := range queens {
		if host, _, err := net.SplitHostPort(q.Address); err == nil && host != "" && (q.Leader || address == "") {
			address = q.Address
		}
	}
	if err != nil || address == "" {
		u, err := url.Parse(c.Address())
		if err != nil || u.Hostname() == "" {
			return "HOST"
		}
		address = net.JoinHostPort(u.Hostname(), strconv.Itoa(token.DefaultPort))
	}
	return joinAddress(address)
}

// joinAddress returns the address of an RPC port in the shortest form.
func joinAddress(address string) string {
	if host, port, err := net.SplitHostPort(address); err == nil && port == strconv.Itoa(token.DefaultPort) {
		if strings.Contains(host, ":") {
			return "[" + host + "]"
		}
		return host
	}
	return address
}

func tokenListCommand(a *app) *cobra.Command {
	return a.reads(&cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the tokens, without their secrets",
		Args:    exactly(),
	}, func(ctx context.Context, c *client.Client, _ []string, read ...client.ReadOption) error {
		tokens, err := c.Tokens(ctx, read...)
		if err != nil {
			return err
		}
		slices.SortFunc(tokens, func(x, y core.Token) int { return x.CreatedAt.Compare(y.CreatedAt) })
		return a.show(list(tokens), tokenTable(a, tokens).Write)
	})
}

func tokenTable(a *app, tokens []core.Token) *term.Table {
	t := term.NewTable("No tokens.", "ID", "TYPE", "NAME", "ALLOWS", "MODELS", "LIMITS", "CREATED", "EXPIRES", "LAST USED")
	for _, k := range tokens {
		var allows []string
		for _, s := range k.Scopes {
			allows = append(allows, string(s))
		}
		switch {
		case k.Kind == core.TokenJoin && len(k.Roles) == 0:
			allows = append(allows, "join as queen, hive")
		case k.Kind == core.TokenJoin:
			allows = append(allows, "join as "+strings.Join(roleList(k.Roles), ", "))
		}
		expires := "never"
		if k.TTL > 0 {
			expires = "now"
			if left := k.CreatedAt.Add(time.Duration(k.TTL)).Sub(a.now()); left > 0 {
				expires = "in " + term.Duration(left)
			}
		}
		models, used := "", "never"
		if k.Kind == core.TokenAPI {
			models = "all"
			if len(k.Models) > 0 {
				models = strings.Join(k.Models, ", ")
			}
		}
		switch {
		case k.UsedBy != "":
			used = "by " + k.UsedBy
		case !k.LastUsedAt.IsZero():
			used = a.ago(k.LastUsedAt)
		}
		t.Add(k.ID, string(k.Kind), k.Name, strings.Join(allows, ", "), models, limitTexts(k), a.ago(k.CreatedAt), expires, used)
	}
	return t
}

// limitTexts formats the bounds of a token for a table.
func limitTexts(k core.Token) string {
	var texts []string
	for _, l := range k.Limits {
		texts = append(texts, l.String())
	}
	if k.Priority != core.PriorityNormal {
		texts = append(texts, string(k.Priority)+" priority")
	}
	return strings.Join(texts, ", ")
}

func tokenIDs(ctx context.Context, c *client.Client) ([]string, error) {
	tokens, err := c.Tokens(ctx)
	var ids []string
	for _, t := range tokens {
		ids = append(ids, t.ID)
	}
	return ids, err
}

func tokenRotateCommand(a *app) *cobra.Command {
	overlap := days(core.DefaultTokenOverlap)
	cmd := &cobra.Command{
		Use:   "rotate ID",
		Short: "Give an API token a new secret, and show it once",
		Long: `Give an API token a new secret, and show it once. Its id, scopes, models, limits and end stay as they are, and so does what was counted for it.
The new token is all that goes to stdout. The former one is good for --overlap more (default 24h, at most 30d), so that programs can be changed
one after the other; with --overlap 0 every queen refuses it as soon as it has heard of it. A rotation within an overlap ends the older of the two.`,
		Example:           "  rbee token rotate aaaaaaaaaa --overlap 2h",
		Args:              exactly("ID"),
		ValidArgsFunction: first(a.names(tokenIDs)),
	}
	cmd.RunE = a.asking(func(ctx context.Context, c *client.Client, args []string) error {
		id := args[0]
		if p, err := token.Parse(id); err == nil { // the whole token was given
			id = p.ID
		}
		t, err := c.RotateToken(ctx, id, core.RotateRequest{Overlap: new(core.Duration(overlap))})
		if err != nil {
			return err
		}
		return a.show(t, func(w io.Writer) error {
			former := "the former one is refused from now on"
			if t.Overlap > 0 {
				former = "the former one is good for " + term.Duration(time.Duration(t.Overlap)) + " more"
			}
			fmt.Fprintf(a.stderr, "Token %s has a new secret, which is shown now and never again; %s:\n", t.ID, former)
			_, err := fmt.Fprintln(w, t.Secret)
			return err
		})
	})
	cmd.Flags().Var(&overlap, "overlap", "how long the former secret is good for as well, such as 2h or 7d; 0: not at all")
	return cmd
}

func tokenRevokeCommand(a *app) *cobra.Command {
	var yes, dryRun bool
	cmd := &cobra.Command{
		Use:               "revoke ID",
		Aliases:           []string{"delete", "rm"},
		Short:             "End a token: every queen refuses it within a second",
		Args:              exactly("ID"),
		ValidArgsFunction: first(a.names(tokenIDs)),
	}
	cmd.RunE = a.asking(func(ctx context.Context, c *client.Client, args []string) error {
		id := args[0]
		if p, err := token.Parse(id); err == nil { // the whole token was given
			id = p.ID
		}
		tokens, err := c.Tokens(ctx)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(tokens, func(t core.Token) bool { return t.ID == id })
		if i < 0 {
			hint := `"rbee token list" shows the tokens by id.`
			if j := slices.IndexFunc(tokens, func(t core.Token) bool { return t.Name == id }); j >= 0 {
				hint = fmt.Sprintf("A token with that name has the id %s.", tokens[j].ID)
			}
			return core.Errorf(core.NotFound, "no token %q", id).Hint("%s", hint)
		}
		t := tokens[i]
		if dryRun {
			fmt.Fprintln(a.stderr, "Would revoke this token:")
			return a.show(t, tokenTable(a, []core.Token{t}).Write)
		}
		what := t.ID
		if t.Name != "" {
			what += " (" + t.Name + ")"
		}
		if p, err := token.Parse(a.getenv("RBEE_TOKEN")); err == nil && p.ID == t.ID {
			what += ", which this command uses itself"
		}
		if err := a.confirm(ctx, yes, fmt.Sprintf("Revoke the %s token %s?", t.Kind, what)); err != nil {
			return err
		}
		if t, err = c.RevokeToken(ctx, id); err != nil {
			return err
		}
		return a.show(t, func(w io.Writer) error {
			_, err := fmt.Fprintf(w, "Token %s is revoked.\n", t.ID)
			return err
		})
	})
	destructiveFlags(cmd, &yes, &dryRun)
	return cmd
}
