package dialogue

import (
	"context"
	"errors"

	"github.com/rbee-project/rbee/plugins/grammar"
)

// MaxMemory bounds the approximate memory of a constraint, in bytes; each tool's grammar may use at
// least minMemory of it.
const (
	MaxMemory = 32 << 20
	minMemory = 1 << 20
)

// Choice is how tools are to be called.
type Choice struct {
	Required bool // the answer must be a call of some tool; otherwise the model decides
	Parallel bool // several calls are allowed
	Thinking bool // the prompt has opened a block of thinking
	Form     Form // of an answer that is not a call; ignored with Required
}

// Form is the required form of content: at most one of its fields is set.
type Form struct {
	Schema     string // JSON Schema
	Regex      string
	Choices    []string
	Whitespace bool // allow whitespace between the tokens of JSON, in arguments as well
}

// Given reports whether a form is set.
func (f *Form) Given() bool { return f.Schema != "" || f.Regex != "" || len(f.Choices) > 0 }

func (f *Form) part() grammar.Part {
	switch {
	case f.Schema != "":
		return grammar.JSON([]byte(f.Schema))
	case f.Regex != "":
		return grammar.Regex(f.Regex)
	}
	var list []grammar.Part
	for _, c := range f.Choices {
		list = append(list, grammar.Literal(c))
	}
	return grammar.OneOf(list...)
}

// content is a complete answer that is not a call, as the format writes it.
func (f *Format) content(form Form) grammar.Part {
	switch {
	case f.syntax == recipients: // the prompt contains the first marker
		return grammar.Sequence(grammar.Literal("all\n"+f.afterName), form.part())
	case f.syntax == harmony:
		return grammar.Sequence(grammar.Literal("<|channel|>final<|message|>"), form.part())
	}
	return form.part()
}

// Constraint is the required form of calls. It is safe for concurrent use.
type Constraint struct {
	whole    *grammar.Grammar // for the whole answer; nil: any text
	triggers []trigger        // start the grammar of a call when whole is nil
	parallel bool
}

// trigger is a text after which a call is constrained.
type trigger struct {
	text   string
	begins bool // only at the beginning of an answer, or after a call
	call   *grammar.Grammar
}

// ToolError reports a strict tool whose schema cannot be enforced.
type ToolError struct {
	Index int // of the tool
	Err   error
}

func (e *ToolError) Error() string { return e.Err.Error() }

func (e *ToolError) Unwrap() error { return e.Err }

// Constrain returns the constraint on calls of tools, and on an answer without one. Arguments
// satisfy the tool's schema. Where that cannot be guaranteed, it returns a *ToolError for a strict
// tool and relaxes the schema of others. It checks ctx between tools.
func (f *Format) Constrain(ctx context.Context, tools []Tool, choice Choice) (*Constraint, error) {
	b := &callWriter{f: f}
	for i := range tools {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		schema, err := b.schema(&tools[i])
		if err != nil {
			return nil, &ToolError{i, err}
		}
		b.strict = tools[i].Strict
		call, err := b.call(&tools[i], schema)
		if err != nil {
			return nil, &ToolError{i, err}
		}
		b.calls = append(b.calls, call)
		b.names = append(b.names, tools[i].Name)
	}
	c := &Constraint{parallel: choice.Parallel}
	w := f.writing()
	if choice.Required || choice.Form.Given() {
		part := b.section(w, choice.Parallel)
		if f.syntax == recipients { // the prompt contains the first marker
			part = grammar.Sequence(grammar.OneOf(b.calls...), b.more(w, choice.Parallel))
		} else {
			part = grammar.Sequence(grammar.Literal(w.open), part)
		}
		opts := grammar.Options{MaxMemory: MaxMemory}
		if !choice.Required {
			if len(tools) > 0 {
				part = grammar.OneOf(part, f.content(choice.Form))
			} else {
				part = f.content(choice.Form)
			}
			if choice.Form.Whitespace {
				opts.Whitespace = grammar.AnyWhitespace
			}
		}
		var err error
		c.whole, err = grammar.CompileParts(grammar.Sequence(f.thinkingFirst(choice.Thinking), part), opts)
		return c, err
	}
	parts := b.triggers(w, choice.Parallel)
	for _, t := range parts {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		g, err := grammar.CompileParts(t.part, grammar.Options{MaxMemory: max(MaxMemory/len(parts), minMemory)})
		if err != nil {
			return nil, err
		}
		c.triggers = append(c.triggers, trigger{t.text, t.begins, g})
	}
	return c, nil
}

// thinkingFirst is the thinking that may begin an answer, as the parser reads it.
func (f *Format) thinkingFirst(opened bool) grammar.Part {
	if f.syntax == harmony {
		return grammar.Repeat(grammar.Sequence(
			grammar.Literal("<|channel|>analysis<|message|>"), grammar.Until(harmonyEnds...), grammar.Literal("<|end|><|start|>assistant"),
		), 0, 1)
	}
	if len(f.thinks) == 0 {
		return grammar.Part{}
	}
	space := grammar.Regex(`[ \n]{0,4}`)
	if opened {
		var closes []string
		var literals []grammar.Part
		for _, t := range f.thinks {
			closes = append(closes, t.close)
			literals = append(literals, grammar.Literal(t.close))
		}
		return grammar.Sequence(grammar.Until(f.endOfThinking(closes)...), grammar.OneOf(literals...), space)
	}
	t := f.thinks[0]
	return grammar.Repeat(grammar.Sequence(
		grammar.Literal(t.open), grammar.Until(f.endOfThinking([]string{t.close})...), grammar.Literal(t.close), space), 0, 1)
}

// Explain returns the part of a schema that could not be guaranteed, if err is about that.
func Explain(err error) (pointer, keyword, reason string, ok bool) {
	e, ok := errors.AsType[*grammar.Error](err)
	if !ok {
		return "", "", "", false
	}
	return e.Pointer, e.Keyword, e.Reason, true
}
