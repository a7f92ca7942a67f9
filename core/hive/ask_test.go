package hive

import (
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/rpc"
	hivev1 "github.com/rbee-project/rbee/proto/hive/v1"
)

// A hive checks every request when it arrives, also those of queens.
func TestAsk(t *testing.T) {
	t.Parallel()
	r := run(t, setup{})
	for name, c := range map[string]struct {
		operation, request string
		kind               core.Kind
		says               string
	}{
		"a newer queen's":      {"hive_fly", `{"operation":"hive_fly","wings":2}`, core.Unsupported, `node h1, which runs rbee 1, does not know the operation "hive_fly"`},
		"a job":                {"model_delete", `{"operation":"model_delete","model":"tiny"}`, core.Unsupported, "does not know"},
		"of another":           {"worker_process_list", `{"operation":"worker_binary_list","hive":"h1"}`, core.Invalid, "not for"},
		"with a newer field":   {"worker_process_list", `{"operation":"worker_process_list","hive":"h1","wings":2}`, core.Invalid, "wings"},
		"with another's field": {"worker_process_list", `{"operation":"worker_process_list","hive":"h1","pid":2}`, core.Invalid, `no field "pid"`},
		"without its field":    {"worker_process_get", `{"operation":"worker_process_get","hive":"h1"}`, core.Invalid, `needs "pid"`},
		"not JSON":             {"worker_process_list", `{`, core.Invalid, "unexpected EOF"},
		"too long":             {"worker_process_list", `{"hive":"` + strings.Repeat("x", core.MaxRequestBytes) + `"}`, core.Invalid, "at most"},
		"nothing":              {"", ``, core.Unsupported, "does not know"},
		"as it should be":      {"worker_process_list", `{"operation":"worker_process_list","hive":"any"}`, "", ""},
	} {
		resp, err := r.hives.Ask(t.Context(), &hivev1.AskRequest{Operation: c.operation, RequestJson: []byte(c.request)})
		err = rpc.FromStatus(err)
		must.Eq(t, c.kind, core.KindOf(err), must.Sprint(name))
		if c.kind == "" {
			must.Eq(t, "[]", string(resp.GetResultJson()))
			continue
		}
		must.ErrorContains(t, err, c.says, must.Sprint(name))
	}
	// The local socket is equally strict.
	_, err := r.hive.Answer(t.Context(), core.Request{Operation: core.OpWorkerProcessGet, Hive: "h1"})
	must.Eq(t, core.Invalid, core.KindOf(err))
}
