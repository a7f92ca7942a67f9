package llamacpp

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"sync"

	"github.com/rbee-project/rbee/plugins/llamacpp/internal/constraint"
	"github.com/rbee-project/rbee/plugins/llamacpp/internal/dialogue"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// speech describes what a chat's answer may contain besides text.
type speech struct {
	format *dialogue.Format
	tools  []dialogue.Tool // tools that may be called
	opened bool            // the prompt ends within thinking
	old    bool            // the client expects a function_call
	form   dialogue.Form   // of an answer that is not a call
}

// parser returns a parser for the answer.
func (t *speech) parser() *dialogue.Parser {
	return t.format.NewParser(dialogue.Options{Tools: t.tools, Calls: len(t.tools) > 0, Thinking: t.opened, Formed: t.form.Given()})
}

// thinking returns the thinking of the answer, to which its form does not apply.
func (t *speech) thinking() constraint.Thinking {
	open, end, opened := t.format.Thinking(t.opened)
	return constraint.Thinking{Open: open, Close: end, Opened: opened}
}

// maxConstraints bounds the cached constraints: agents send the same tools again and again.
const maxConstraints = 8

// toolbox compiles tools into constraints and caches the last ones. It is safe for concurrent use.
type toolbox struct {
	places chan struct{} // semaphore: one place per concurrent compilation

	mu    sync.Mutex // guards below
	kept  map[[32]byte]*dialogue.Constraint
	order [][32]byte
}

func newToolbox() *toolbox {
	return &toolbox{places: make(chan struct{}, 1), kept: map[[32]byte]*dialogue.Constraint{}}
}

// constrain returns the constraint on calls. It runs in the request's own goroutine, so it delays
// no other request's tokens. Its error is the context's or a *dialogue.ToolError.
func (b *toolbox) constrain(ctx context.Context, f *dialogue.Format, tools []dialogue.Tool, choice dialogue.Choice) (*dialogue.Constraint, error) {
	text, err := json.Marshal(struct {
		Tools  []dialogue.Tool
		Choice dialogue.Choice
	}{tools, choice})
	if err != nil {
		return nil, err
	}
	key := sha256.Sum256(text)
	b.mu.Lock()
	c := b.kept[key]
	b.mu.Unlock()
	if c != nil {
		return c, nil
	}
	select {
	case b.places <- struct{}{}:
		defer func() { <-b.places }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	c, err = f.Constrain(ctx, tools, choice)
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.kept[key] == nil {
		if len(b.order) == maxConstraints {
			delete(b.kept, b.order[0])
			b.order = b.order[1:]
		}
		b.kept[key] = c
		b.order = append(b.order, key)
	}
	return c, nil
}

// guard returns a function that creates the guard of each answer to a chat, which enforces its
// tools, its form and its thinking budget; nil: not needed. The guard includes the form only if
// there are tools or a budget.
func (s *server) guard(ctx context.Context, req *openai.ChatRequest, t *speech, shape *openai.Shape) (func() *dialogue.Guard, error) {
	budget := -1
	if req.ThinkingBudget != nil && *req.ThinkingBudget >= 0 {
		budget = int(min(*req.ThinkingBudget, maxTokenBudget))
	}
	if len(t.tools) == 0 && budget < 0 {
		return nil, nil //nolint:nilnil // no guard is none
	}
	required := req.Choice().Mode == openai.ToolsRequired
	if shape.Kind != "" {
		form, err := s.formBeside(ctx, *shape)
		if err != nil {
			return nil, err
		}
		if len(t.tools) == 0 || !required {
			t.form = form
		}
		*shape = openai.Shape{}
	}
	var c *dialogue.Constraint
	if len(t.tools) > 0 || t.form.Given() {
		choice := dialogue.Choice{Required: required && len(t.tools) > 0, Parallel: req.Parallel(), Thinking: t.opened, Form: t.form}
		var err error
		if c, err = s.toolbox.constrain(ctx, t.format, t.tools, choice); err != nil {
			return nil, toolsRefused(err, t)
		}
	}
	vocabulary := s.model.spoken(len(t.tools) > 0)
	return func() *dialogue.Guard { return t.format.NewGuard(vocabulary, c, t.opened, budget) }, nil
}

// formBeside returns the form of content for a guard with tools or a thinking budget, after
// compiling it alone, so that its errors are reported.
func (s *server) formBeside(ctx context.Context, shape openai.Shape) (dialogue.Form, error) {
	if _, err := s.rule(ctx, shape); err != nil {
		return dialogue.Form{}, err
	}
	form := dialogue.Form{Whitespace: shape.Whitespace}
	switch shape.Kind {
	case openai.ShapeSchema:
		form.Schema = shape.Text
	case openai.ShapeRegex:
		form.Regex = shape.Text
	case openai.ShapeChoice:
		form.Choices = shape.Choices
	case openai.ShapeGrammar:
		return form, openai.NotSupported(shape.Param, "%s together with tools or a thinking budget is not supported by this worker; send a schema or an expression instead", shape.Param)
	}
	return form, nil
}

// maxTokenBudget exceeds any context.
const maxTokenBudget = 1 << 30

// toolsRefused converts an error about tools whose calls cannot be constrained to the API error for
// the client.
func toolsRefused(err error, t *speech) error {
	if e, ok := errors.AsType[*dialogue.ToolError](err); ok {
		pointer, keyword, reason, _ := dialogue.Explain(err)
		where := " at #" + pointer
		if keyword != "" {
			where += ", " + keyword
		}
		if r := []rune(reason); len(r) > maxReason {
			reason = string(r[:maxReason]) + "…"
		}
		return openai.NewError(http.StatusBadRequest, openai.TypeInvalidRequest, "tools", "invalid_schema",
			"the parameters of the strict function %q cannot be guaranteed%s: %s; change them or leave strict out", t.tools[e.Index].Name, where, reason)
	}
	if ctxErr := errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded); ctxErr {
		return openai.NewError(http.StatusServiceUnavailable, openai.TypeUnavailable, "tools", "", "the tools were not compiled: %v", err)
	}
	return openai.NewError(http.StatusBadRequest, openai.TypeInvalidRequest, "tools", "invalid_schema", "the tools cannot be compiled: %v; send fewer or simpler ones", err)
}

// spoken returns the vocabulary with the text of markers, including those of calls if calls is set.
func (m *model) spoken(calls bool) *dialogue.Vocabulary {
	v := &m.spokenThoughts
	if calls {
		v = &m.spokenCalls
	}
	v.prepare.Do(func() { v.vocabulary = dialogue.NewVocabulary(m.marked(calls), m.ends) })
	return v.vocabulary
}

// marked returns the texts of a chat's tokens: control tokens that are markers of the model's
// format have a text. Those of calls are shown only when calls are looked for.
func (m *model) marked(calls bool) []string {
	if m.template == nil {
		return m.pieces
	}
	m.prepareMarks.Do(func() {
		m.thoughtPieces = m.withMarks(m.template.dialogue.Markers(false))
		m.callPieces = m.withMarks(m.template.dialogue.Markers(true))
	})
	if calls {
		return m.callPieces
	}
	return m.thoughtPieces
}

func (m *model) withMarks(markers []string) []string {
	var out []string
	for i, p := range m.pieces {
		if p != "" {
			continue
		}
		text := m.tokenText(token(i))
		for _, mark := range markers {
			if text != "" && strings.Contains(mark, text) { // a marker may consist of a token and more
				if out == nil {
					out = append([]string{}, m.pieces...)
				}
				out[i] = text
				break
			}
		}
	}
	if out == nil {
		return m.pieces
	}
	return out
}
