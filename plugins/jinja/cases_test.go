package jinja_test

import (
	"encoding/json"
	"os"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/jinja"
)

// jinjaCase is a template with the text or the error that transformers gives.
type jinjaCase struct {
	Name     string          `json:"name"`
	Template string          `json:"template"`
	Vars     json.RawMessage `json:"vars"`
	Want     string          `json:"want"`
	Refused  string          `json:"refused"`
}

// readCases reads test data from beside the repository.
func readCases(t *testing.T) []jinjaCase {
	t.Helper()
	path := os.Getenv("RBEE_JINJA_CASES")
	if path == "" {
		path = "../../../shared/data/jinja-cases.json"
	}
	data, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		t.Skip("no file of cases beside the repository; RBEE_JINJA_CASES names another one")
	}
	must.NoError(t, err)
	var cases []jinjaCase
	must.NoError(t, json.Unmarshal(data, &cases))
	must.Positive(t, len(cases))
	return cases
}

// vars reads the variables of a case; every string in them is a client's.
func vars(t testing.TB, data []byte) map[string]any {
	t.Helper()
	var raw map[string]json.RawMessage
	must.NoError(t, json.Unmarshal(data, &raw))
	out := map[string]any{}
	for name, value := range raw {
		v, err := jinja.ParseJSON(value, true)
		must.NoError(t, err)
		out[name] = v
	}
	return out
}

func TestRenderAsTransformers(t *testing.T) {
	t.Parallel()
	for _, c := range readCases(t) {
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			var text jinja.Text
			tmpl, err := jinja.Compile(c.Template)
			if err == nil {
				text, err = tmpl.Render(t.Context(), vars(t, c.Vars), jinja.Limits{})
			}
			if c.Refused != "" {
				must.ErrorContains(t, err, c.Refused)
				return
			}
			must.NoError(t, err)
			must.Eq(t, c.Want, text.String())
		})
	}
}
