package pluginhost

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"
)

// A plugin gets a variable for a file in the user's home folder only if the file exists.
func TestOriginFiles(t *testing.T) {
	t.Parallel()
	home := t.TempDir()
	file, hub := filepath.Join(home, ".npmrc"), filepath.Join(home, ".cache", "huggingface")
	environ := []string{"HOME=" + home}
	must.Nil(t, originFiles("rbee-catalog-npm", environ))
	must.Nil(t, originFiles("rbee-worker-openai", environ))
	must.NoError(t, os.WriteFile(file, nil, 0o600))
	must.NoError(t, os.MkdirAll(hub, 0o700))
	must.Eq(t, []string{"npm_config_userconfig=" + file}, originFiles("rbee-catalog-npm", environ))
	must.Eq(t, []string{"HF_HOME=" + hub}, originFiles("rbee-worker-openai", environ))
	must.Nil(t, originFiles("rbee-catalog-npm", append(environ, "NPM_CONFIG_USERCONFIG=/other")))
	must.Nil(t, originFiles("rbee-catalog-npm", nil))
}
