package main

import (
	"context"
	"net/http"
	"slices"

	"github.com/rbee-project/rbee/plugins/sdk/worker"
	"github.com/rbee-project/rbee/plugins/sdk/worker/forward"
)

// listed returns the models named by the settings, and those listed by the first server of url that
// answers. If the setting model is given, the servers are not asked.
func listed(ctx context.Context, s settings) []string {
	out := slices.Clone(s.Models)
	if s.Model != "" {
		if len(out) == 0 {
			out = []string{s.Model}
		}
		return out
	}
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	f := forward.New(forward.Options{Targets: s.targets})
	defer f.Close()
	for n := range f.Len() {
		status, body, err := f.Ask(ctx, n, http.MethodGet, "/v1/models", "", answerMax)
		if err != nil || status != http.StatusOK {
			continue
		}
		for _, m := range parseModels(body) {
			if m.ID != "" && len(m.ID) <= worker.MaxModelBytes && !slices.Contains(out, m.ID) && len(out) < worker.MaxModels {
				out = append(out, m.ID)
			}
		}
		break
	}
	return out
}
