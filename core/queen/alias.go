package queen

import (
	"cmp"
	"context"
	"slices"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/job"
	"github.com/rbee-project/rbee/core/modelname"
	"github.com/rbee-project/rbee/raft/fsm"
)

// aliasSet adds an alias for a model that a hive has, or can fetch by its bare name. Errors:
// Invalid for an invalid name, NotFound for an unknown model, Conflict for the id of another model.
func (q *Queen) aliasSet(ctx context.Context, r core.Request, run *job.Run) (core.Alias, error) {
	if err := modelname.Check(r.Name, "a model's alias"); err != nil {
		return core.Alias{}, err
	}
	if _, ok := modelname.Repository(r.Name); ok {
		return core.Alias{}, core.Errorf(core.Invalid, "%q cannot be a model's alias: it says where a model is from", r.Name).Hint("Choose a name of your own.")
	}
	if err := q.Registry.CatchUp(ctx); err != nil {
		return core.Alias{}, err
	}
	id, err := q.placer.Target(ctx, r.Model)
	if err != nil {
		return core.Alias{}, err
	}
	models, err := q.Models(ctx)
	if err != nil {
		return core.Alias{}, err
	}
	if slices.ContainsFunc(models, func(m core.Model) bool { return m.ID == r.Name }) {
		return core.Alias{}, core.Errorf(core.Conflict, "%s is the id of a model, which comes before an alias", r.Name).Hint("Choose another name.")
	}
	if old, ok := q.Registry.View().Alias(nil, r.Name); ok && old.Model != id {
		run.Log("%s was %s until now", r.Name, old.Model)
	}
	if err := q.Registry.Write(ctx, cmp.Or(r.RequestID, "alias "+r.Name), fsm.PutAlias(core.Alias{Name: r.Name, Model: id})); err != nil {
		return core.Alias{}, err
	}
	q.log.Info("alias of a model set", "alias", r.Name, "model", id)
	if now, ok := q.Registry.View().Alias(nil, r.Name); ok {
		return now, nil
	}
	return core.Alias{Name: r.Name, Model: id}, nil
}

func (q *Queen) aliasList(context.Context, core.Request) ([]core.Alias, error) {
	return q.Registry.View().Aliases(nil), nil
}

// aliasRemove removes an alias. Errors: NotFound with the nearest names.
func (q *Queen) aliasRemove(ctx context.Context, r core.Request, _ *job.Run) (core.Alias, error) {
	if err := q.Registry.CatchUp(ctx); err != nil {
		return core.Alias{}, err
	}
	old, ok := q.Registry.View().Alias(nil, r.Name)
	if !ok {
		return core.Alias{}, core.Errorf(core.NotFound, "there is no alias %q", r.Name).Hint(
			"%sSee all with `rbee alias list`.", core.NearestHint(r.Name, modelname.All(nil, q.Registry.View().Aliases(nil))))
	}
	if err := q.Registry.Write(ctx, cmp.Or(r.RequestID, "no alias "+r.Name), fsm.DeleteAlias(r.Name)); err != nil {
		return core.Alias{}, err
	}
	q.log.Info("alias of a model removed", "alias", r.Name, "model", old.Model)
	return old, nil
}
