package operation

import "github.com/rbee-project/rbee/core"

// The operations on the models of a hive, its store and its catalog sources.
var ( // constant
	ModelDownload = of[core.Model](Spec{
		Name: core.OpModelDownload, Number: 10, Title: "ModelDownload", Summary: "Fetch a model into the hive's store.",
		Runs: RunsOnChosenHive, CLI: []string{"model download", "pull"}, Test: "TestOperations",
		Fields: []Field{
			{Name: "model", Required: true, Doc: "catalog reference, or the name of a model in a catalog source"},
			{Name: "name", Doc: "id that the model gets in the store; empty: one that says where it is from"},
		},
	})

	ModelList = of[[]core.Model](Spec{
		Name: core.OpModelList, Number: 11, Title: "ModelList", Summary: "List the models of a hive, or of the whole cluster.",
		Runs: RunsOnQueen, Get: "/v1/hives/{hive}/models", CLI: []string{"model list", "ls"}, Test: "TestOperations",
		Fields: []Field{{Name: "hive", Doc: "id or name of a hive; empty: the whole cluster"}},
	})

	ModelGet = of[core.Model](Spec{
		Name: core.OpModelGet, Number: 12, Title: "ModelGet", Summary: "Show a model with its facts and files.",
		Runs: RunsOnQueen, Get: "/v1/hives/{hive}/models/{model...}", CLI: []string{"model get"}, Test: "TestOperations",
		Fields: []Field{
			{Name: "model", Required: true, Doc: "id or alias of a model"},
			{Name: "hive", Doc: "id or name of a hive; empty: any that has it"},
		},
	})

	ModelDelete = of[core.ModelDeleteResult](Spec{
		Name: core.OpModelDelete, Number: 13, Title: "ModelDelete", Summary: "Delete a model from the hive's store, and those of its files that no other model needs.",
		Runs: RunsOnHive, CLI: []string{"model delete", "rm"}, Test: "TestOperations",
		Fields: []Field{
			{Name: "model", Required: true, Doc: "id or alias of a model of the hive"},
			{Name: "dry_run", Doc: "word to only report what would be freed"},
		},
	})

	AliasSet = of[core.Alias](Spec{
		Name: core.OpAliasSet, Title: "AliasSet", Summary: "Set an alias for a model, or move it to another model.",
		Runs: RunsOnQueen, CLI: []string{"alias set"}, Test: "TestOperations",
		Fields: []Field{
			{Name: "name", Required: true, Doc: "name that the model gets"},
			{Name: "model", Required: true, Doc: "any name of the model"},
		},
	})

	AliasList = of[[]core.Alias](Spec{
		Name: core.OpAliasList, Title: "AliasList", Summary: "List the names that the cluster has for models.",
		Runs: RunsOnQueen, Registry: true, Get: "/v1/aliases", CLI: []string{"alias list"}, Test: "TestOperations",
	})

	AliasRemove = of[core.Alias](Spec{
		Name: core.OpAliasRemove, Title: "AliasRemove", Summary: "Remove an alias of a model. The model stays.",
		Runs: RunsOnQueen, CLI: []string{"alias remove"}, Test: "TestOperations",
		Fields: []Field{{Name: "name", Required: true, Doc: "alias to remove"}},
	})

	CatalogSearch = of[[]core.CatalogItem](Spec{
		Name: core.OpCatalogSearch, Title: "CatalogSearch", Summary: "Search the catalog sources of a hive.",
		Runs: RunsOnQueen, AsksHive: true, Slow: true, Get: "/v1/hives/{hive}/catalog", CLI: []string{"catalog search"}, Test: "TestOperations",
		Fields: []Field{
			hiveField(),
			{Name: "q", Doc: "text to search for; empty: everything"},
			{Name: "kind", Doc: "kind of what is searched for, such as model; empty: any"},
			{Name: "limit", Max: 1000, Doc: "number of items at most; 0: the source's default"},
			{Name: "source", Doc: "name of the only source that is asked; empty: all"},
		},
	})

	StoreVerify = of[core.StoreVerifyResult](Spec{
		Name: core.OpStoreVerify, Title: "StoreVerify", Summary: "Read all models and worker binaries of a hive's store and name those that are damaged.",
		Runs: RunsOnHive, CLI: []string{"store verify"}, Test: "TestOperations",
	})

	StoreGC = of[core.StoreGCResult](Spec{
		Name: core.OpStoreGC, Title: "StoreGC", Summary: "Remove everything unneeded from a hive's store.",
		Runs: RunsOnHive, CLI: []string{"store gc"}, Test: "TestOperations",
		Fields: []Field{{Name: "dry_run", Doc: "word to only report what would be removed"}},
	})
)

func models() []Spec {
	return []Spec{
		ModelDownload.Spec, ModelList.Spec, ModelGet.Spec, ModelDelete.Spec,
		AliasSet.Spec, AliasList.Spec, AliasRemove.Spec, CatalogSearch.Spec, StoreVerify.Spec, StoreGC.Spec,
	}
}
