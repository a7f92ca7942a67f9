package openai

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

// The values of Error.Type that this project writes.
const (
	TypeInvalidRequest  = "invalid_request_error"     // 400, 404, 413
	TypeContextExceeded = "exceed_context_size_error" // 400: the prompt does not fit in the context
	TypeAuthentication  = "authentication_error"      // 401
	TypePermission      = "permission_error"          // 403
	TypeNotFound        = "not_found_error"           // 404
	TypeRateLimit       = "rate_limit_error"          // 429
	TypeServer          = "server_error"              // 500, 502
	// 400, 501: a feature that this model or worker lacks
	TypeNotSupported  = "not_supported_error"
	TypeUnavailable   = "unavailable_error"       // 503
	TypeTimeout       = "timeout_error"           // 504
	CodeModelNotFound = "model_not_found"         // code of an unknown model
	CodeContextLength = "context_length_exceeded" // code of TypeContextExceeded
	CodeNotSupported  = "not_supported"           // code of TypeNotSupported
	CodeOverloaded    = "overloaded"              // code of a full queue
	CodeTooLarge      = "request_too_large"       // code of a body over the limit
	// how much of an error response DecodeError reads, in bytes
	maxErrorBody = 64 << 10
)

// Error is OpenAI's error object. It implements error. On the wire it is wrapped in an envelope:
// {"error":{…}}.
type Error struct {
	Message string  `json:"message"` // what is wrong and what to do about it, for people
	Type    string  `json:"type"`    // one of the Type constants
	Param   *string `json:"param"`   // the wrong field of the request; nil: none
	Code    *string `json:"code"`    // for programs; nil: none
	// Kind tells a program how to react to the error, and Hint tells a person what to do next, if
	// the sender sets them. Both are rbee's own; other senders omit them.
	Kind string `json:"kind,omitempty"`
	Hint string `json:"hint,omitempty"`
	// Status is the matching HTTP status; 0: unknown. It is not part of the body.
	Status int `json:"-"`
}

func (e *Error) Error() string {
	if e.Param != nil && *e.Param != "" && !strings.Contains(e.Message, *e.Param) {
		return *e.Param + ": " + e.Message
	}
	return e.Message
}

// NewError returns an Error. An empty param or code is written as null.
func NewError(status int, typ, param, code, format string, args ...any) *Error {
	e := &Error{Message: fmt.Sprintf(format, args...), Type: typ, Status: status}
	if param != "" {
		e.Param = &param
	}
	if code != "" {
		e.Code = &code
	}
	return e
}

// Invalid returns an Error of status 400 about one field of the request; param may be empty.
func Invalid(param, format string, args ...any) *Error {
	return NewError(http.StatusBadRequest, TypeInvalidRequest, param, "", format, args...)
}

// NotSupported returns an Error of status 400 about a known field that cannot be honoured.
func NotSupported(param, format string, args ...any) *Error {
	return NewError(http.StatusBadRequest, TypeNotSupported, param, CodeNotSupported, format, args...)
}

type envelope struct {
	Error *Error `json:"error"`
}

// WriteError responds with e in OpenAI's envelope. A status of 0 means e.Status, or 500 if that is
// 0 as well. It keeps headers set before, such as Retry-After. Nothing may have been written yet;
// inside an event stream use EventWriter.Error.
func WriteError(w http.ResponseWriter, status int, e *Error) {
	if status == 0 {
		status = e.Status
	}
	if status == 0 {
		status = http.StatusInternalServerError
	}
	body, err := json.Marshal(envelope{e})
	if err != nil { // strings always marshal
		body = []byte(`{"error":{"message":"internal error","type":"server_error","param":null,"code":null}}`)
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(body)+1))
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n')) // an error means the client disconnected
}

// DecodeError returns an Error from the body of a failed response of any sender. A numeric code
// becomes a string; a body without an envelope becomes the message, cut to a sensible length.
func DecodeError(status int, body []byte) *Error {
	if len(body) > maxErrorBody {
		body = body[:maxErrorBody]
	}
	if e, ok := decodeEnvelope(body); ok {
		e.Status = status
		return &e
	}
	msg := strings.TrimSpace(strings.ToValidUTF8(string(body), "�"))
	if r := []rune(msg); len(r) > 500 {
		msg = string(r[:500]) + "…"
	}
	if msg == "" {
		msg = fmt.Sprintf("the server answered %d %s without a message", status, http.StatusText(status))
	}
	typ := TypeServer
	if status >= 400 && status < 500 {
		typ = TypeInvalidRequest
	}
	return &Error{Message: msg, Type: typ, Status: status}
}

// ErrorIn returns the error in an event's data, or nil if there is none.
func ErrorIn(data []byte) *Error {
	// Every chunk of a stream passes through here, so check cheaply before parsing. "error" is the
	// envelope's only key and comes first.
	s := data
	for len(s) > 0 && (s[0] == ' ' || s[0] == '{' || s[0] == '\t') {
		s = s[1:]
	}
	if len(s) < 7 || string(s[:7]) != `"error"` {
		return nil
	}
	if e, ok := decodeEnvelope(data); ok {
		return &e
	}
	return nil
}

// decodeEnvelope returns the error in an envelope, and reports whether body is one.
func decodeEnvelope(body []byte) (e Error, ok bool) {
	var env struct {
		Error json.RawMessage `json:"error"`
	}
	if json.Unmarshal(body, &env) != nil || len(env.Error) == 0 || string(env.Error) == "null" {
		return Error{}, false
	}
	if env.Error[0] == '"' {
		var text string
		if json.Unmarshal(env.Error, &text) != nil {
			return Error{}, false
		}
		return Error{Message: text, Type: TypeServer}, true
	}
	var obj struct {
		Message string          `json:"message"`
		Type    string          `json:"type"`
		Param   *string         `json:"param"`
		Code    json.RawMessage `json:"code"`
		Kind    string          `json:"kind"`
		Hint    string          `json:"hint"`
	}
	if json.Unmarshal(env.Error, &obj) != nil || obj.Message == "" && obj.Type == "" {
		return Error{}, false
	}
	e = Error{Message: obj.Message, Type: obj.Type, Param: obj.Param, Kind: obj.Kind, Hint: obj.Hint}
	if c := strings.Trim(string(obj.Code), `"`); c != "" && c != "null" {
		e.Code = &c
	}
	return e, true
}
