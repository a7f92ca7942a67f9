package pluginhost

import (
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/sdk"
)

func TestAllowedEnv(t *testing.T) {
	t.Parallel()
	environ := []string{
		"PATH=/bin", "HOME=/h", "HTTPS_PROXY=p", "HF_TOKEN=a", "HF_ENDPOINT=e", "HUGGING_FACE_HUB_TOKEN=b", "GITHUB_TOKEN=c", "NPM_CONFIG_REGISTRY=r", "RBEE_TOKEN=d",
		"AWS_SECRET_ACCESS_KEY=k", "MINE=m", "CUDA_VISIBLE_DEVICES=0",
	}
	for name, tc := range map[string]struct {
		spec Spec
		want []string
	}{
		"huggingface": {
			Spec{Kind: sdk.KindCatalog, Name: "mirror", Executable: "/p/rbee-catalog-huggingface"},
			[]string{"PATH=/bin", "HOME=/h", "HTTPS_PROXY=p", "HF_TOKEN=a", "HF_ENDPOINT=e", "HUGGING_FACE_HUB_TOKEN=b", "NPM_CONFIG_REGISTRY=r"},
		},
		"github":          {Spec{Kind: sdk.KindCatalog, Executable: "/p/rbee-catalog-github"}, []string{"PATH=/bin", "HOME=/h", "HTTPS_PROXY=p", "GITHUB_TOKEN=c", "NPM_CONFIG_REGISTRY=r"}},
		"another catalog": {Spec{Kind: sdk.KindCatalog, Name: "huggingface", Executable: "/p/rbee-catalog-mine"}, []string{"PATH=/bin", "HOME=/h", "HTTPS_PROXY=p", "NPM_CONFIG_REGISTRY=r"}},
		"asked for":       {Spec{Kind: sdk.KindCatalog, Executable: "/p/rbee-catalog-mine", Env: []string{"MINE", "HF_TOKEN"}}, []string{"PATH=/bin", "HOME=/h", "HTTPS_PROXY=p", "HF_TOKEN=a", "NPM_CONFIG_REGISTRY=r", "MINE=m"}},
		"worker":          {Spec{Kind: sdk.KindWorker, Executable: "/p/rbee-worker-cpu"}, []string{"PATH=/bin", "HOME=/h", "CUDA_VISIBLE_DEVICES=0"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			must.Eq(t, tc.want, pickEnv(tc.spec, environ))
		})
	}
}
