package e2e

import (
	"net/http"
	"slices"
	"sync"

	"github.com/rbee-project/rbee/core/coretest/apischema"
)

// validateAnswers makes Go's default transport, which the SDKs use, validate everything that tests
// read against the schemas of the APIs. wrong returns the violations, each kind of answer once.
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
