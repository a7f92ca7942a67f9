package sdk

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"
)

func TestSlogHandler(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	log := slog.New(&slogHandler{log: hclog.New(&hclog.LoggerOptions{Name: "mine", Level: hclog.Debug, JSONFormat: true, Output: &out})})
	log.Log(t.Context(), slog.LevelDebug-1, "not written")
	for level, name := range map[slog.Level]string{slog.LevelDebug: "debug", slog.LevelInfo: "info", slog.LevelWarn: "warn", slog.LevelError: "error"} {
		out.Reset()
		log.With("model", "tiny").WithGroup("answer").Log(t.Context(), level, "it failed", "tokens", 3, slog.Group("of", "worker", "w1"), "error", errors.New("no room"))
		var line map[string]any
		must.NoError(t, json.Unmarshal(out.Bytes(), &line))
		must.NotEq(t, nil, line["@timestamp"])
		delete(line, "@timestamp")
		must.Eq(t, map[string]any{
			"@level": name, "@module": "mine", "@message": "it failed", "model": "tiny", "answer.tokens": 3.0, "answer.of.worker": "w1", "answer.error": "no room",
		}, line)
	}
}
