package openai

import (
	"errors"
	"net/http"
	"testing"

	"github.com/shoenig/test/must"
)

func TestCheckAbility(t *testing.T) {
	t.Parallel()
	for fields, want := range map[string]struct{ param, ability string }{
		`"tools":[{"type":"function","function":{"name":"f"}}]`:             {"tools", "tools"},
		`"functions":[{"name":"f"}]`:                                        {"functions", "tools"},
		`"response_format":{"type":"json_object"}`:                          {"response_format", "json_schema"},
		`"logprobs":true`:                                                   {"logprobs", "logprobs"},
		`"response_format":{"type":"text"},"logprobs":false,"functions":[]`: {},
	} {
		r, err := DecodeChat([]byte(`{"model":"m","messages":[{"role":"user","content":"x"}],` + fields + `}`))
		must.NoError(t, err, must.Sprint(fields))
		err = r.CheckAbility([]string{"chat"})
		if want.param == "" {
			must.NoError(t, err)
			continue
		}
		e, ok := errors.AsType[*Error](err)
		must.True(t, ok, must.Sprint(fields))
		must.Eq(t, http.StatusBadRequest, e.Status)
		must.Eq(t, want.param, *e.Param)
		must.NoError(t, r.CheckAbility([]string{"chat", want.ability}))
	}
	r, err := DecodeChat([]byte(`{"model":"m","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:"}}]}]}`))
	must.NoError(t, err)
	must.Error(t, r.CheckAbility(nil))
	must.NoError(t, r.CheckAbility([]string{"vision"}))
	c, err := DecodeCompletion([]byte(`{"model":"m","prompt":"x","logprobs":1}`))
	must.NoError(t, err)
	must.Error(t, c.CheckAbility(nil))
	must.NoError(t, c.CheckAbility([]string{"logprobs"}))
}
