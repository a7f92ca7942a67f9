package dialect_test

import (
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core/gateway/dialect/anthropic"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// What the server cannot do is not reported as the client's error.
func TestAnthropicErrorTypes(t *testing.T) {
	t.Parallel()
	for status, want := range map[int]string{
		400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large",
		429: "rate_limit_error", 500: "api_error", 501: "api_error", 502: "api_error", 504: "timeout_error",
	} {
		got, body := anthropic.Fail(openai.NewError(status, "x", "", "", "text"), about())
		must.Eq(t, status, got)
		must.True(t, strings.Contains(string(body), `"type":"`+want+`"`), must.Sprintf("%d: %s", status, body))
	}
}
