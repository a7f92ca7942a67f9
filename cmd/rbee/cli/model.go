package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rbee-project/rbee/cmd/rbee/cli/term"
	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/client"
)

func modelCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "model",
		Aliases: []string{"models"},
		Short:   "Models: fetch, look at and delete them",
	}
	ls := lsCommand(a)
	ls.Use, ls.Aliases = "list", []string{"ls"}
	pull := pullCommand(a)
	pull.Use, pull.Aliases = "download REF", []string{"pull"}
	rm := rmCommand(a)
	rm.Use, rm.Aliases = "delete ID...", []string{"rm"}
	get := showCommand(a)
	get.Use, get.Aliases = "get ID", []string{"show"}
	cmd.AddCommand(ls, get, pull, rm)
	return cmd
}

func lsCommand(a *app) *cobra.Command {
	var hive string
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List the models",
		Long:  "List the models of the whole cluster, or of one hive. \"rbee catalog search\" lists those that can be fetched.",
		Args:  exactly(),
	}
	cmd.RunE = a.asking(func(ctx context.Context, c *client.Client, _ []string) error {
		var models []core.Model
		var err error
		if hive == "" {
			models, err = c.Models(ctx)
		} else {
			models, err = c.HiveModels(ctx, hive)
		}
		if err != nil {
			return err
		}
		hives, err := c.Hives(ctx)
		if err != nil && core.KindOf(err) != core.Forbidden { // without names, hives are shown by id
			return err
		}
		models = slices.DeleteFunc(models, func(m core.Model) bool { return m.State == core.ModelOffered })
		sortModels(models)
		return a.show(list(models), modelTable(models, hives).Write)
	})
	a.hiveFlag(cmd, &hive, "", "only those of this `HIVE`")
	return cmd
}

func sortModels(models []core.Model) {
	slices.SortFunc(models, func(x, y core.Model) int { return strings.Compare(x.ID, y.ID) })
}

func modelTable(models []core.Model, hives []core.Hive) *term.Table {
	t := term.NewTable("No models yet. \"rbee pull REF\" fetches one, \"rbee catalog search\" lists what there is; rbee-tiny is always there.",
		"ID", "ALIASES", "SIZE", "QUANT", "PARAMETERS", "CONTEXT", "LOADED BY", "HIVES", "STATUS")
	for _, m := range models {
		status := string(m.State)
		switch {
		case m.Damaged != "":
			status = "damaged"
		case m.Progress != nil && m.Progress.Total > 0:
			status += fmt.Sprintf(" (%s, %d %%)", m.Progress.Phase, 100*m.Progress.Done/m.Progress.Total)
		case status == "": // a single hive's own answer
			status = "ok"
		}
		t.Add(m.ID, strings.Join(m.Aliases, ","), term.Bytes(m.SizeBytes), m.Quantization, term.Count(m.Parameters), term.Number(m.ContextTokens),
			strings.Join(m.LoadedBy, ","), strings.Join(hiveNamesOf(m.Hives, hives), ","), status)
	}
	return t
}

// hiveNamesOf returns the names of the hives with these ids, as far as they are known.
func hiveNamesOf(ids []string, hives []core.Hive) []string {
	names := slices.Clone(ids)
	for i, id := range ids {
		for _, h := range hives {
			if h.ID == id {
				names[i] = h.Name
			}
		}
	}
	return names
}

func showCommand(a *app) *cobra.Command {
	var hive string
	cmd := &cobra.Command{
		Use:               "show ID",
		Short:             "Show a model",
		Args:              exactly("ID"),
		ValidArgsFunction: first(a.names(modelIDs)),
	}
	cmd.RunE = a.asking(func(ctx context.Context, c *client.Client, args []string) error {
		m, hives, err := getModel(ctx, c, hive, args[0])
		if err != nil {
			return err
		}
		return a.show(m, func(w io.Writer) error { return writeModel(a, w, m, hives) })
	})
	a.hiveFlag(cmd, &hive, "", "as this `HIVE` has it (default: as the cluster knows it)")
	return cmd
}

// getModel returns a model as one hive has it, or as the cluster knows it, with its files and what
// it takes on each device of the hives that have it.
func getModel(ctx context.Context, c *client.Client, hive, id string) (core.Model, []core.Hive, error) {
	hives, err := c.Hives(ctx)
	if err != nil {
		return core.Model{}, nil, err
	}
	if hive != "" {
		m, err := c.HiveModel(ctx, hive, id)
		return m, hives, err
	}
	m, err := c.Model(ctx, id)
	if err != nil {
		return core.Model{}, nil, err
	}
	for _, h := range m.Hives {
		one, err := c.HiveModel(ctx, h, m.ID)
		if core.KindOf(err) == core.Unavailable || core.KindOf(err) == core.NotFound {
			continue // the other hives' answers are still worth showing
		}
		if err != nil {
			return core.Model{}, nil, err
		}
		if m.Facts == nil {
			m.Facts, m.Files = one.Facts, one.Files
		}
		m.Fits = append(m.Fits, one.Fits...)
	}
	return m, hives, nil
}

func writeModel(a *app, w io.Writer, m core.Model, hives []core.Hive) error {
	f := &term.Facts{}
	f.Add("ID", m.ID)
	f.Add("Aliases", strings.Join(m.Aliases, ", "))
	f.Add("Damaged", m.Damaged)
	f.Add("From", m.Ref)
	f.Add("Licence", m.License)
	f.Add("Architecture", m.Architecture)
	f.Add("Parameters", term.Count(m.Parameters))
	f.Add("Quantisation", m.Quantization)
	f.Add("Context", term.Number(m.ContextTokens))
	f.Add("Size", term.Bytes(m.SizeBytes))
	if x := m.Facts; x != nil {
		f.Add("Name", x.Name)
		f.Addf("Shape", "%s, %d wide, %d heads (%d for keys and values), vocabulary %d, %s", term.Plural(x.Layers, "layer"), x.Embedding, x.Heads, x.KVHeads, x.Vocabulary, term.Plural(x.Tensors, "tensor"))
		f.Add("Chat", map[bool]string{true: "has a template", false: "no template"}[x.ChatTemplate])
		if x.Parts > 1 {
			f.Addf("Parts", "%d", x.Parts)
		}
	}
	f.Add("Digest", m.Digest)
	if m.EstimateBytes > 0 {
		f.Addf("Memory", "about %s with one slot", term.Size(m.EstimateBytes))
	}
	f.Add("State", string(m.State))
	f.Add("Fetched", a.ago(m.CreatedAt))
	f.Add("Hives", strings.Join(hiveNamesOf(m.Hives, hives), ", "))
	f.Add("Loaded by", strings.Join(m.LoadedBy, ", "))
	f.Add("Can do", strings.Join(m.Capabilities.List(), ", "))
	return errors.Join(f.Write(w), writeFits(w, m.Fits, hives), writeFiles(w, m.Files))
}

// writeFits prints what a worker with a model would take of each device.
func writeFits(w io.Writer, fits []core.ModelFit, hives []core.Hive) error {
	if len(fits) == 0 {
		return nil
	}
	if err := term.Heading(w, "Memory"); err != nil {
		return err
	}
	t := term.NewTable("", "HIVE", "DEVICE", "SLOTS", "CONTEXT", "WEIGHTS", "CACHE", "REST", "NEEDS", "FREE", "FITS")
	for _, f := range fits {
		verdict := "yes"
		switch {
		case f.Problem != "":
			verdict = "no: " + f.Problem
		case f.MissingBytes > 0:
			verdict = fmt.Sprintf("no: %s (%d bytes) are missing", term.Size(f.MissingBytes), f.MissingBytes)
		}
		t.Add(strings.Join(hiveNamesOf([]string{f.Hive}, hives), ""), f.Device, fmt.Sprint(f.Slots), fmt.Sprint(f.ContextTokens), term.Bytes(f.WeightsBytes), term.Bytes(f.CacheBytes),
			term.Bytes(f.ComputeBytes+f.OverheadBytes), term.Bytes(f.NeedBytes), term.Bytes(f.FreeBytes), verdict)
	}
	return t.Write(w)
}

func pullCommand(a *app) *cobra.Command {
	r := core.Request{Operation: core.OpModelDownload}
	var detach bool
	cmd := &cobra.Command{
		Use:     "pull REF",
		Short:   "Fetch a model",
		Long:    "Fetch a model from a catalog source and check it. ^C cancels it; a later attempt goes on where it was.\n\nORG/REPO and ORG/REPO:QUANTIZATION are repositories of the Hugging Face Hub.",
		Example: "  rbee pull rbee-tiny\n  rbee pull ORG/REPO:Q4_K_M --name chat\n  rbee pull file:/models/some.gguf",
		Args:    exactly("REF"),
		ValidArgsFunction: first(a.names(func(ctx context.Context, c *client.Client) ([]string, error) {
			items, err := c.Catalog(ctx, orElse(r.Hive, core.LocalHive), client.CatalogQuery{Kind: "model", Limit: 100})
			var refs []string
			for _, item := range items {
				refs = append(refs, item.Ref)
			}
			return refs, err
		})),
	}
	cmd.RunE = a.asking(func(ctx context.Context, c *client.Client, args []string) error {
		r.Model = args[0]
		return a.submit(ctx, c, r, detach, func(job core.Job) error {
			m, err := client.Result[core.Model](job)
			if err != nil {
				return err
			}
			return a.show(m, func(w io.Writer) error { return writeModel(a, w, m, nil) })
		})
	})
	cmd.Flags().StringVar(&r.Name, "name", "", "`NAME` for the model (default: one that says where it is from)")
	_ = cmd.RegisterFlagCompletionFunc("name", cobra.NoFileCompletions)
	cmd.Flags().BoolVar(&detach, "detach", false, "do not wait: show the job's id")
	a.hiveFlag(cmd, &r.Hive, "", "`HIVE` to fetch it on (default: chosen)")
	return cmd
}
