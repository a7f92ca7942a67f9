package operation

import "github.com/rbee-project/rbee/core"

// The operations on the cluster as a whole.
var ( // constant
	Infer = of[core.InferResult](Spec{
		Name: core.OpInfer, Number: 27, Title: "Infer", Summary: "Answer a prompt, starting what is missing. The answer is the result; POST /v1/chat/completions streams it.",
		Runs: RunsOnQueen, Private: true, CLI: []string{"infer", "run", "chat"}, Test: "TestInferAsJob",
		Fields: []Field{
			{Name: "model", Required: true, Doc: "id, alias or catalog reference of a model"},
			{Name: "prompt", Required: true, Max: core.MaxPromptBytes, Lines: true, Doc: "text to answer"},
			{Name: "system_prompt", Max: core.MaxPromptBytes, Lines: true, Doc: "text that says how to answer"},
			{Name: "max_tokens", Max: core.MaxContextTokens, Doc: "number of tokens to answer with at most; 0: what fits"},
		},
	})

	Status = of[core.Status](Spec{
		Name: core.OpStatus, Number: 28, Title: "Status", Summary: "Show queens, hives, workers, models, jobs and problems.",
		Runs: RunsOnQueen, Get: "/v1/status", CLI: []string{"status"}, Test: "TestOperations",
	})
)

func clusters() []Spec {
	return []Spec{
		Infer.Spec, Status.Spec,
	}
}
