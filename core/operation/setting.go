package operation

import "github.com/rbee-project/rbee/core"

// The operations on settings of the cluster. Package core/setting lists the settings.
var ( // constant
	SettingList = of[[]core.Setting](Spec{
		Name: core.OpSettingList, Title: "SettingList", Summary: "List the settings that all queens share.",
		Runs: RunsOnQueen, Registry: true, Get: "/v1/settings", CLI: []string{"operator setting list"}, Test: "TestOperations",
	})

	SettingSet = of[core.Setting](Spec{
		Name: core.OpSettingSet, Title: "SettingSet", Summary: "Set a setting that all queens share, or return it to its default.",
		Runs: RunsOnQueen, Scope: core.ScopeAdmin, CLI: []string{"operator setting set", "operator setting reset"}, Test: "TestOperations",
		Fields: []Field{
			{Name: "setting", Required: true, Doc: "name of a setting", Max: 128},
			{Name: "value", Doc: "value as text"},
			{Name: "unset", Doc: "word to return the setting to its default; value is empty then"},
		},
	})
)

func settings() []Spec { return []Spec{SettingList.Spec, SettingSet.Spec} }
