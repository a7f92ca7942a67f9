package hive

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
)

func TestDecodeRequest(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		in   string
		want core.Request
		says string // of the error; empty: none
	}{
		"spawn": {
			in:   `{"operation":"worker_spawn","model":"m","device":"cpu","slots":2,"context_tokens":64,"threads":1,"request_id":"a","hive":"h"}`,
			want: core.Request{Operation: core.OpWorkerSpawn, Model: "m", Device: "cpu", Slots: 2, ContextTokens: 64, Threads: 1, RequestID: "a", Hive: "h"},
		},
		"delete": {
			in:   `{"operation":"worker_process_delete","pid":7,"grace":"5s"}`,
			want: core.Request{Operation: core.OpWorkerProcessDelete, PID: 7, Grace: core.Duration(5 * time.Second)},
		},
		"download":               {in: `{"operation":"worker_download","type":"cpu","force":true}`, want: core.Request{Operation: core.OpWorkerDownload, Type: "cpu", Force: true}},
		"model":                  {in: `{"operation":"model_download","model":"file:/x"}`, want: core.Request{Operation: core.OpModelDownload, Model: "file:/x"}},
		"retire":                 {in: `{"operation":"active_worker_retire","worker":"ab"}`, want: core.Request{Operation: core.OpActiveWorkerRetire, Worker: "ab"}},
		"empty":                  {in: ``, says: "EOF"},
		"no JSON":                {in: `{`, says: "unexpected EOF"},
		"two objects":            {in: `{"operation":"model_download","model":"x"} {}`, says: "follows"},
		"unknown operation":      {in: `{"operation":"worker_fly"}`, says: `no operation "worker_fly"`},
		"no operation":           {in: `{}`, says: "no operation"},
		"unknown field":          {in: `{"operation":"worker_spawn","model":"m","colour":"red"}`, says: "colour"},
		"another's field":        {in: `{"operation":"worker_spawn","model":"m","pid":7}`, says: `no field "pid"`},
		"retire with pid":        {in: `{"operation":"active_worker_retire","worker":"a","pid":7}`, says: `no field "pid"`},
		"spawn without model":    {in: `{"operation":"worker_spawn"}`, says: "model"},
		"download without type":  {in: `{"operation":"worker_download"}`, says: "type"},
		"delete without pid":     {in: `{"operation":"worker_process_delete"}`, says: "pid"},
		"delete of a group":      {in: `{"operation":"worker_process_delete","pid":-7}`, says: "pid"},
		"retire without worker":  {in: `{"operation":"active_worker_retire"}`, says: "worker"},
		"negative slots":         {in: `{"operation":"worker_spawn","model":"m","slots":-1}`, says: "slots"},
		"many slots":             {in: `{"operation":"worker_spawn","model":"m","slots":1025}`, says: "slots"},
		"negative context":       {in: `{"operation":"worker_spawn","model":"m","context_tokens":-1}`, says: "context_tokens"},
		"huge context":           {in: `{"operation":"worker_spawn","model":"m","context_tokens":16777217}`, says: "context_tokens"},
		"negative threads":       {in: `{"operation":"worker_spawn","model":"m","threads":-1}`, says: "threads"},
		"negative grace":         {in: `{"operation":"worker_process_delete","pid":7,"grace":"-1s"}`, says: "grace"},
		"long grace":             {in: `{"operation":"worker_process_delete","pid":7,"grace":"25h"}`, says: "grace"},
		"bad grace":              {in: `{"operation":"worker_process_delete","pid":7,"grace":"soon"}`, says: "soon"},
		"number out of range":    {in: `{"operation":"worker_spawn","model":"m","slots":1e99}`, says: "slots"},
		"long request id":        {in: `{"operation":"model_download","model":"m","request_id":"` + strings.Repeat("a", 129) + `"}`, says: "request_id"},
		"control character":      {in: `{"operation":"model_download","model":"m\n"}`, says: "control"},
		"wrong type":             {in: `{"operation":"model_download","model":7}`, says: "model"},
		"more than can be meant": {in: `"` + strings.Repeat("a", maxRequestBytes) + `"`, says: "at most"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := decodeRequest([]byte(c.in))
			if c.says == "" {
				must.NoError(t, err)
				must.Eq(t, c.want, got)
				return
			}
			must.ErrorContains(t, err, c.says)
			must.Eq(t, core.Invalid, core.KindOf(err))
		})
	}
}

func TestUnknownOperationNamesTheKnownOnes(t *testing.T) {
	t.Parallel()
	hint := core.HintOf(checkRequest(core.Request{Operation: "worker_build"}))
	for _, op := range []core.Operation{core.OpWorkerDownload, core.OpWorkerSpawn, core.OpWorkerProcessDelete, core.OpModelDownload, core.OpActiveWorkerRetire} {
		must.StrContains(t, hint, string(op))
	}
}

func FuzzDecodeRequest(f *testing.F) {
	f.Add([]byte(`{"operation":"worker_spawn","model":"m","slots":2}`))
	f.Add([]byte(`{"operation":"worker_process_delete","pid":7,"grace":"5s"}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		r, err := decodeRequest(body)
		if err != nil {
			if core.KindOf(err) != core.Invalid {
				t.Fatalf("%v is %s", err, core.KindOf(err))
			}
			return
		}
		// What was taken is still taken when it is written down and read again.
		b, err := json.Marshal(r)
		must.NoError(t, err)
		again, err := decodeRequest(b)
		must.NoError(t, err)
		must.Eq(t, r, again)
	})
}
