package pluginhost

import (
	"path/filepath"
	"slices"
	"strings"

	"github.com/rbee-project/rbee/plugins/sdk"
)

// allowedEnv lists the variables that a plugin may see; a trailing * matches any suffix. executable
// is the name of its file: some plugins read the variables of their origin's tools, including
// credentials, which other plugins must not see.
func allowedEnv(kind sdk.Kind, executable string) []string {
	own := map[string][]string{
		"rbee-catalog-huggingface": {"HF_*", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"},
		"rbee-catalog-github":      {"GITHUB_TOKEN", "GH_TOKEN", "GH_HOST"},
	}
	return append(allowedEnvOf(kind), own[executable]...)
}

func allowedEnvOf(kind sdk.Kind) []string {
	if kind == sdk.KindWorker {
		return []string{"PATH", "HOME", "TMPDIR", "LANG", "LC_*", "LD_LIBRARY_PATH", "CUDA_*", "NVIDIA_*"}
	}
	return []string{
		"PATH", "HOME", "USER", "TMPDIR", "LANG", "LC_*",
		"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
		"SSL_CERT_FILE", "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS", "NPM_CONFIG_*", "npm_config_*",
	}
}

// pickEnv returns the entries of environ that a plugin may see, including those that its block
// names.
func pickEnv(s Spec, environ []string) []string {
	allowed := append(allowedEnv(s.Kind, filepath.Base(s.Executable)), s.Env...)
	var out []string
	for _, entry := range environ {
		name, _, _ := strings.Cut(entry, "=")
		if slices.ContainsFunc(allowed, func(a string) bool {
			prefix, many := strings.CutSuffix(a, "*")
			return name == a || many && strings.HasPrefix(name, prefix)
		}) {
			out = append(out, entry)
		}
	}
	return out
}
