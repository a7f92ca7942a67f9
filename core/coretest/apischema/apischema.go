// Package apischema checks an agent's answers against schemas of the APIs that it implements: whole
// answers, each event of a stream, and errors. The schemas are our own and cover what clients read;
// each names the reference that it follows.
package apischema

import (
	"bytes"
	"embed"
	"encoding/json"
	"fmt"
	"net/http"
	"path"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

//go:embed schemas/*.json
var files embed.FS

// Schemas are the compiled schemas. They are safe for concurrent use.
type Schemas struct {
	byName map[string]*jsonschema.Schema // "openai/chat"
}

// New compiles the schemas. It fails only if a schema is invalid.
func New() (*Schemas, error) {
	out := &Schemas{byName: map[string]*jsonschema.Schema{}}
	list, err := files.ReadDir("schemas")
	if err != nil {
		return nil, err
	}
	for _, f := range list {
		raw, err := files.ReadFile(path.Join("schemas", f.Name()))
		if err != nil {
			return nil, err
		}
		doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.Name(), err)
		}
		url := "https://rbee.test/" + f.Name()
		c := jsonschema.NewCompiler()
		if err := c.AddResource(url, doc); err != nil {
			return nil, err
		}
		var head struct {
			Defs map[string]json.RawMessage `json:"$defs"`
		}
		if err := json.Unmarshal(raw, &head); err != nil {
			return nil, err
		}
		for name := range head.Defs {
			s, err := c.Compile(url + "#/$defs/" + name)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			out.byName[strings.TrimSuffix(f.Name(), ".json")+"/"+name] = s
		}
	}
	return out, nil
}

// endpoint names the schemas of a route's answers: of a whole answer, and of the events or lines of
// a stream.
type endpoint struct{ whole, part string }

// endpoints maps routes to endpoints, by method and path without /v1. A path that ends in / is
// followed by an ID.
var endpoints = map[string]endpoint{
	"POST /chat/completions":       {"openai/chat", "openai/chunk"},
	"POST /completions":            {"openai/completion", "openai/completion"},
	"POST /embeddings":             {"openai/embeddings", ""},
	"GET /models":                  {"openai/models", ""},
	"GET /models/":                 {"openai/model", ""},
	"POST /responses":              {"responses/response", "responses/event"},
	"POST /responses/input_tokens": {"responses/size", ""},
	"POST /messages":               {"anthropic/message", "anthropic/event"},
	"POST /messages/count_tokens":  {"anthropic/size", ""},
	"POST /api/chat":               {"ollama/chat", "ollama/chat"},
	"POST /api/generate":           {"ollama/generate", "ollama/generate"},
	"POST /api/embed":              {"ollama/embed", ""},
	"POST /api/embeddings":         {"ollama/embeddings", ""},
	"POST /api/show":               {"ollama/show", ""},
	"POST /api/pull":               {"ollama/pull", "ollama/pull"},
	"GET /api/tags":                {"ollama/tags", ""},
	"GET /api/ps":                  {"ollama/ps", ""},
	"GET /api/version":             {"ollama/version", ""},
}

// endpointOf returns the endpoint of a request, and the error schema of its API.
func endpointOf(r *http.Request) (e endpoint, failure string, known bool) {
	name := strings.TrimPrefix(r.URL.Path, "/v1")
	key := r.Method + " " + name
	e, known = endpoints[key]
	if rest, ok := strings.CutPrefix(name, "/models/"); !known && ok && rest != "" {
		e, known = endpoints[r.Method+" /models/"]
	}
	if rest, ok := strings.CutPrefix(name, "/responses/"); !known && ok && rest != "" {
		switch {
		case r.Method == http.MethodDelete:
			e, known = endpoint{"responses/deleted", ""}, true
		case r.Method == http.MethodGet && strings.HasSuffix(rest, "/input_items"):
			e, known = endpoint{"responses/items", ""}, true
		case r.Method == http.MethodGet:
			e, known = endpoint{"responses/response", ""}, true
		}
	}
	failure = "openai/error"
	switch {
	case strings.HasPrefix(name, "/api/"):
		failure = "ollama/error"
	case strings.HasPrefix(name, "/messages"):
		failure = "anthropic/error"
	case strings.HasPrefix(name, "/models") && r.Header.Get("Anthropic-Version") != "":
		failure = "anthropic/error"
		e.whole = strings.Replace(e.whole, "openai", "anthropic", 1)
	}
	return e, failure, known
}

func (s *Schemas) check(name string, data []byte) error {
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
	if err == nil {
		err = s.byName[name].Validate(v)
	}
	if err != nil {
		return fmt.Errorf("not as %s: %w\n%s", name, err, data[:min(len(data), 2000)])
	}
	return nil
}
