package operation

import (
	"math"

	"github.com/rbee-project/rbee/core"
)

// MaxSpecsBytes bounds the deployments of a request, in bytes of JSON.
const MaxSpecsBytes = 512 << 10

// The operations on deployments, which declare what should run, in how many workers.
var ( // constant
	DeploymentPlan = of[core.DeploymentPlan](Spec{
		Name: core.OpDeploymentPlan, Title: "DeploymentPlan", Summary: "Show what deployments would start, stop, fetch and unload, and what finds no place.",
		Runs: RunsOnQueen, Scope: core.ScopeRead, CLI: []string{"plan"}, Test: "TestDeployments",
		Fields: []Field{specsField()},
	})

	DeploymentApply = of[core.DeploymentPlan](Spec{
		Name: core.OpDeploymentApply, Title: "DeploymentApply", Summary: "Apply deployments, unless any changed since the plan.",
		Runs: RunsOnQueen, CLI: []string{"apply"}, Test: "TestDeployments",
		Fields: []Field{specsField(), {Name: "index", Max: math.MaxInt64, Doc: "index of the plan; 0: there was no deployment yet"}},
	})

	DeploymentList = of[[]core.DeploymentStatus](Spec{
		Name: core.OpDeploymentList, Title: "DeploymentList", Summary: "List the deployments.",
		Runs: RunsOnQueen, Registry: true, Get: "/v1/deployments", CLI: []string{"deployment list"}, Test: "TestDeployments",
	})

	DeploymentGet = of[core.DeploymentStatus](Spec{
		Name: core.OpDeploymentGet, Title: "DeploymentGet", Summary: "Show a deployment: its workers, problems and earlier versions.",
		Runs: RunsOnQueen, Registry: true, Get: "/v1/deployments/{deployment}", CLI: []string{"deployment status", "deployment history"}, Test: "TestDeployments",
		Fields: []Field{deploymentField()},
	})

	DeploymentStop = of[core.DeploymentStatus](Spec{
		Name: core.OpDeploymentStop, Title: "DeploymentStop", Summary: "Stop a deployment: its workers finish their requests and end.",
		Runs: RunsOnQueen, CLI: []string{"deployment stop"}, Test: "TestDeployments",
		Fields: []Field{deploymentField()},
	})

	DeploymentRevert = of[core.DeploymentStatus](Spec{
		Name: core.OpDeploymentRevert, Title: "DeploymentRevert", Summary: "Make a deployment what it was at an earlier version.",
		Runs: RunsOnQueen, CLI: []string{"deployment revert"}, Test: "TestDeployments",
		Fields: []Field{deploymentField(), {Name: "revision", Doc: "number of the version; 0: the one before"}},
	})
)

func specsField() Field {
	return Field{Name: "specs", Required: true, Max: MaxSpecsBytes, Lines: true, Doc: "list of deployments, as JSON"}
}

func deploymentField() Field {
	return Field{Name: "deployment", Required: true, Max: core.MaxDeploymentName, Doc: "name of a deployment"}
}

func deployments() []Spec {
	return []Spec{
		DeploymentPlan.Spec, DeploymentApply.Spec, DeploymentList.Spec, DeploymentGet.Spec, DeploymentStop.Spec, DeploymentRevert.Spec,
	}
}
