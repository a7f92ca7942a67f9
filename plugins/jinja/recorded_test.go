package jinja_test

import (
	"encoding/json"
	"os"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/jinja"
)

// TestRenderAsRecorded compares with recorded output of Jinja2 for random templates;
// testdata/record.py recorded it.
func TestRenderAsRecorded(t *testing.T) {
	t.Parallel()
	path := os.Getenv("RBEE_JINJA_RECORDED")
	if path == "" {
		path = "testdata/recorded.json"
	}
	data, err := os.ReadFile(path)
	must.NoError(t, err)
	var recorded struct {
		Vars  json.RawMessage `json:"vars"`
		Cases []struct {
			Template string `json:"template"`
			Want     string `json:"want"`
			Refused  string `json:"refused"`
		} `json:"cases"`
	}
	must.NoError(t, json.Unmarshal(data, &recorded))
	must.Positive(t, len(recorded.Cases))
	variables := vars(t, recorded.Vars)
	differ := 0
	for _, c := range recorded.Cases {
		var text jinja.Text
		tmpl, err := jinja.Compile(c.Template)
		if err == nil {
			text, err = tmpl.Render(t.Context(), variables, jinja.Limits{})
		}
		switch {
		case c.Refused != "" && err == nil:
			t.Errorf("%q: refused with %s by Jinja2, rendered %q", c.Template, c.Refused, text)
		case c.Refused == "" && err != nil:
			t.Errorf("%q: %v, want %q", c.Template, err, c.Want)
		case c.Refused == "" && text.String() != c.Want:
			t.Errorf("%q:\n got %q\nwant %q", c.Template, text, c.Want)
		default:
			continue
		}
		differ++
	}
	t.Logf("%d of %d differ", differ, len(recorded.Cases))
}
