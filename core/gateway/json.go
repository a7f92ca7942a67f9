package gateway

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/inference"
	"github.com/rbee-project/rbee/core/operation"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// list is the form of every list in the API, as in OpenAI's.
type list[T any] struct {
	Object string `json:"object"` // "list"
	Data   []T    `json:"data"`
}

func listOf[T any](items []T) list[T] { return list[T]{Object: openai.ObjectList, Data: items} }

// writeJSON answers with v; nil slices in it become [].
func writeJSON(w http.ResponseWriter, status int, v any) error {
	body, err := json.Marshal(operation.Filled(v))
	if err != nil {
		return core.Wrap(err, core.Internal, "write answer")
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(body)+1))
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n')) // if the client has disconnected, there is no one to inform
	return nil
}

// decodeObject reads a request's body into v. It is strict: a misspelled field would otherwise
// silently be ignored.
func decodeObject(body []byte, v any, what string) error {
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		if te, ok := errors.AsType[*json.UnmarshalTypeError](err); ok && te.Field != "" {
			return badBody(te.Field, "%s cannot be a %s", te.Field, te.Value)
		}
		if field, ok := strings.CutPrefix(err.Error(), "json: unknown field "); ok {
			return &apiError{param: strings.Trim(clip(field, 60), `"`), err: core.Errorf(core.Invalid, "unknown field %s", clip(field, 60)).Hint("See the documentation for the fields of %s.", what)}
		}
		return badBody("", "the request's body is not valid JSON of %s: %v", what, err)
	}
	if !inference.ValidJSON(body) {
		return badBody("", "the request's body has something after the JSON object")
	}
	return nil
}
