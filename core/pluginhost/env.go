package pluginhost

import (
	"slices"
	"strings"

	"github.com/rbee-project/rbee/plugins/sdk"
)

// allowedEnv lists the variables that plugins of a kind may see; a name that ends in * stands for all that begin so.
func allowedEnv(kind sdk.Kind) []string {
	if kind == sdk.KindWorker {
		return []string{"PATH", "HOME", "TMPDIR", "LANG", "LC_*", "LD_LIBRARY_PATH", "CUDA_*", "NVIDIA_*"}
	}
	return []string{
		"PATH", "HOME", "USER", "TMPDIR", "LANG", "LC_*",
		"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
		"SSL_CERT_FILE", "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS", "NPM_CONFIG_*", "npm_config_*",
	}
}

// pickEnv returns the entries of environ that a plugin of the kind may see, and those that its block names.
func pickEnv(kind sdk.Kind, named, environ []string) []string {
	allowed := append(allowedEnv(kind), named...)
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
