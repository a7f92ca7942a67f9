package config_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/config"
)

func TestDeploymentFiles(t *testing.T) {
	t.Parallel()
	write := func(t *testing.T, files map[string]string) string {
		dir := t.TempDir()
		for name, text := range files {
			must.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
		}
		return dir
	}
	env := func(name string) (string, bool) { return "three", name == "MODEL" }

	list, diags := config.Deployments([]string{write(t, map[string]string{
		"a.hcl": `
deployment "chat" {
  model          = "tiny"
  replicas       = 2
  type           = "cuda"
  devices        = ["cuda:0", "cuda:1"]
  hives          = ["desk"]
  slots          = 3
  context_tokens = 4096
  priority       = 7
}
deployment "other" {
  model = env.MODEL
}
`,
		"b.json": `{"deployment": {"third": {"model": "m", "replicas": 0}}}`,
		"c.txt":  "not read",
	})}, env)
	must.NoError(t, diags.Err())
	must.Eq(t, []core.DeploymentSpec{
		{Name: "chat", Model: "tiny", Replicas: 2, Type: "cuda", Devices: []string{"cuda:0", "cuda:1"}, Hives: []string{"desk"}, Slots: 3, ContextTokens: 4096, Priority: 7},
		{Name: "other", Model: "three", Replicas: 1},
		{Name: "third", Model: "m"},
	}, list)

	for name, tt := range map[string]struct{ text, says string }{
		"no model":         {`deployment "a" {}`, `The argument "model" is required`},
		"twice":            {"deployment \"a\" {\n model = \"m\"\n}\ndeployment \"a\" {\n model = \"m\"\n}", "Block given twice"},
		"no whole number":  {"deployment \"a\" {\n model = \"m\"\n replicas = 1.5\n}", "replicas must be a whole number"},
		"too many":         {"deployment \"a\" {\n model = \"m\"\n replicas = 65\n}", "It must be between 0 and 64"},
		"a bad name":       {"deployment \"a/b\" {\n model = \"m\"\n}", "cannot be the name of a deployment"},
		"no list":          {"deployment \"a\" {\n model = \"m\"\n devices = \"cpu\"\n}", "a list of texts without commas"},
		"nothing":          {"", "There is no block deployment"},
		"something else":   {"hive {}", `Blocks of type "hive" are not expected`},
		"no such variable": {"deployment \"a\" {\n model = env.NOSUCH\n}", "Environment variable not set"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, diags := config.Deployments([]string{write(t, map[string]string{"a.hcl": tt.text})}, env)
			must.ErrorContains(t, diags.Err(), tt.says)
		})
	}
}
