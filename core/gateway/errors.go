package gateway

import (
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/gateway/dialect"
	"github.com/rbee-project/rbee/core/inference"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// answer is the HTTP form of an error kind.
type answer struct {
	status     int
	typ        string // OpenAI's error type
	retryAfter int    // seconds; 0: no Retry-After
	final      bool   // OpenAI's own clients retry 409 and every 5xx unless told that it is pointless
}

// statusClientGone is nginx's status: no client reads the answer, but logs and metrics show it.
const statusClientGone = 499

// answers has an entry for every kind. TooLarge is a model that does not fit; a request that is too
// long has its own status, 413.
var answers = map[core.Kind]answer{
	core.Internal:         {status: http.StatusInternalServerError, typ: openai.TypeServer},
	core.Invalid:          {status: http.StatusBadRequest, typ: openai.TypeInvalidRequest},
	core.NotFound:         {status: http.StatusNotFound, typ: openai.TypeNotFound},
	core.Conflict:         {status: http.StatusConflict, typ: openai.TypeInvalidRequest, final: true},
	core.InUse:            {status: http.StatusConflict, typ: openai.TypeInvalidRequest, final: true},
	core.Unavailable:      {status: http.StatusServiceUnavailable, typ: openai.TypeUnavailable, retryAfter: 1},
	core.Overloaded:       {status: http.StatusTooManyRequests, typ: openai.TypeRateLimit, retryAfter: 1},
	core.TooLarge:         {status: http.StatusInsufficientStorage, typ: openai.TypeServer, final: true},
	core.Integrity:        {status: http.StatusInternalServerError, typ: openai.TypeServer, final: true},
	core.Unsupported:      {status: http.StatusNotImplemented, typ: openai.TypeNotSupported, final: true},
	core.Unauthenticated:  {status: http.StatusUnauthorized, typ: openai.TypeAuthentication},
	core.Forbidden:        {status: http.StatusForbidden, typ: openai.TypePermission},
	core.Cancelled:        {status: statusClientGone, typ: openai.TypeServer},
	core.DeadlineExceeded: {status: http.StatusGatewayTimeout, typ: openai.TypeTimeout, retryAfter: 10},
	core.WorkerLost:       {status: http.StatusBadGateway, typ: openai.TypeServer, retryAfter: 1},
}

// apiError overrides the status, code or field that an error's kind implies.
type apiError struct {
	err    error // classified
	status int   // 0: the kind's
	code   string
	param  string

	retryAfter int // seconds; 0: the kind's
}

func (e *apiError) Error() string { return e.err.Error() }
func (e *apiError) Unwrap() error { return e.err }

// envelope converts err to OpenAI's error object. Its code is the kind unless err is more specific.
func envelope(err error) (*openai.Error, answer) {
	if e, ok := errors.AsType[*openai.Error](err); ok { // from a translation, about the request
		return e, answer{status: e.Status, typ: e.Type}
	}
	kind := core.KindOf(err)
	a, ok := answers[kind]
	if !ok {
		kind, a = core.Internal, answers[core.Internal]
	}
	code, param := string(kind), ""
	if special, ok := errors.AsType[*apiError](err); ok {
		if special.status != 0 {
			a.status = special.status
		}
		if special.code != "" {
			code = special.code
		}
		param = special.param
		if special.retryAfter != 0 {
			a.retryAfter = special.retryAfter
		}
	}
	if field, ok := errors.AsType[*inference.FieldError](err); ok {
		param = field.Param
		if field.Code != "" {
			code = field.Code
		}
	}
	if limit, ok := errors.AsType[*inference.LimitError](err); ok {
		code, a.retryAfter = limit.Code(), wholeSeconds(limit.RetryAfter)
	}
	if full, ok := errors.AsType[*inference.OverloadError](err); ok {
		code, a.retryAfter = full.Code, wholeSeconds(full.RetryAfter)
		if kind == core.Overloaded { // 429 is for limits of a key
			a.status, a.typ = http.StatusServiceUnavailable, openai.TypeUnavailable
		}
	}
	e := openai.NewError(a.status, a.typ, param, code, "%s", err.Error())
	e.Kind, e.Hint = string(kind), core.HintOf(err)
	if _, ok := errors.AsType[*concealed](err); ok {
		e.Hint = conceal(e.Hint)
	}
	return e, a
}

// wholeSeconds returns a delay for Retry-After: rounded up, and at least a second.
func wholeSeconds(d time.Duration) int { return max(1, int((d+time.Second-1)/time.Second)) }

// fail answers with err. Nothing may have been written yet.
func fail(w http.ResponseWriter, err error) {
	e, a := envelope(err)
	if a.retryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(a.retryAfter))
	}
	if a.final {
		w.Header().Set("X-Should-Retry", "false")
	}
	if rw, ok := w.(*response); ok && rw.fail != nil {
		e.Status = a.status
		status, body := rw.fail(e, dialect.About{Request: rw.id})
		writeBody(w, status, body)
		return
	}
	openai.WriteError(w, a.status, e)
}

func noRoute(r *http.Request) error {
	return core.Errorf(core.NotFound, "no route %s %s", r.Method, clip(r.URL.Path, 100)).Hint(
		"OpenAI's routes are POST /v1/chat/completions, /v1/completions, /v1/responses and GET /v1/models, Anthropic's POST /v1/messages, Ollama's POST /api/chat and /api/generate; the others are in the documentation.")
}

// clip truncates client text for use in an error.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && s[n]&0xc0 == 0x80 {
		n--
	}
	return s[:n] + "…"
}
