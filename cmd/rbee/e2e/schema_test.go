package e2e

import (
	"net/http"
	"slices"
	"sync"

	"github.com/rbee-project/rbee/core/coretest/apischema"
)

// validateAnswers has all that tests read by Go's default transport, as the SDKs do, checked
// against the schemas of the APIs. wrong returns what was not as they say, each kind of answer
// once.
func validateAnswers() (wrong func() []string, err error) {
	schemas, err := apischema.New()
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex // guards below
	var problems []string
	http.DefaultTransport = &apischema.Transport{Base: http.DefaultTransport, Schemas: schemas, Report: func(err error) {
		mu.Lock()
		defer mu.Unlock()
		if text := err.Error(); len(problems) < 20 && !slices.Contains(problems, text) {
			problems = append(problems, text)
		}
	}}
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(problems)
	}, nil
}
