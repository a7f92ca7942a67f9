// Package jinja renders chat templates as Hugging Face's transformers does: Jinja2's immutable
// sandbox with trim_blocks and lstrip_blocks, loop controls, the generation tag, Python's way to
// print values, and JSON as json.dumps writes it.
//
// It differs from a general template engine in two ways. Rendering is bounded in steps, bytes,
// depth and time, so that a hostile template costs an error and nothing else. And every byte of the
// result records whether a client wrote it, through every filter and method, so that a caller can
// keep clients from writing control tokens.
package jinja

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Template is a compiled template. It is immutable and safe for concurrent use.
type Template struct{ body []stmt }

// MaxSource is the size of the largest source that Compile takes, in bytes. The largest templates
// in use have 30 kB.
const MaxSource = 128 << 10

// Compile parses a template. An error is an *Error of class TemplateSyntaxError or
// TemplateAssertionError.
func Compile(source string) (*Template, error) {
	if len(source) > MaxSource {
		return nil, &Error{Class: classLimit, Message: fmt.Sprintf("the template has %d bytes; %d are allowed", len(source), MaxSource)}
	}
	tokens, err := lex(source)
	if err != nil {
		return nil, err
	}
	return parse(tokens)
}

// Limits bounds one call of Render. A zero field takes its default.
type Limits struct {
	// Steps bounds evaluated nodes, loop rounds and touched list items; reading 16 bytes of text
	// counts as one. Default 500,000, and one for each byte of text in the variables. A turn of a
	// usual chat template takes 50 to 500.
	Steps int
	// Bytes bounds all text and lists that the template makes, its output included, in bytes.
	// Dropped values count as well. Default 12 MiB, and 16 for each byte of text in the variables.
	Bytes int
	// Depth bounds nested expressions and calls of macros. Default 800.
	Depth int
	// Now is the time that strftime_now prints, in its own location. The zero value is the start of
	// 1970 in UTC.
	Now time.Time
}

const (
	defaultSteps = 500_000
	defaultBytes = 12 << 20
	defaultDepth = 800
	bytesPerByte = 16
)

// Render renders the template with the variables of vars. A variable is nil, a bool, an int, an
// int64, a float64, a string (trusted as the template's own text), a Text, a []any, []Entry (a dict
// in that order) or map[string]any (keys in alphabetical order) of these, or what ParseJSON
// returned. Render does not change them. An error is an *Error, or the context's error.
func (t *Template) Render(ctx context.Context, vars map[string]any, limits Limits) (Text, error) {
	size := 0
	for _, v := range vars {
		size += textSize(v, 0)
	}
	in := newInterp(ctx, limits, size)
	root := &scope{}
	for name, v := range vars {
		value, err := in.fromGo(v, 0)
		if err != nil {
			return Text{}, fmt.Errorf("variable %s: %w", name, err)
		}
		root.set(name, value)
	}
	var out textBuilder
	in.out = &out
	if err := in.run(t.body, &scope{parent: root}); err != nil && !errors.Is(err, errBreak) && !errors.Is(err, errContinue) {
		return Text{}, err
	}
	return out.text(), nil
}

// The classes of errors that neither Python nor Jinja has.
const (
	classLimit = "LimitError"
	classRaise = "TemplateError"
)

// Error is the reason why a template was refused. Class is the name of the exception that Python
// would raise, "TemplateError" for raise_exception, or "LimitError" if the work exceeded a bound of
// this package.
type Error struct {
	Class   string
	Message string
	Line    int // 1 and up; 0: unknown
}

// Error returns class and message, without the class for errors that the template raised itself.
func (e *Error) Error() string {
	text := e.Message
	if e.Class != classRaise {
		text = e.Class + ": " + text
	}
	if e.Line > 0 {
		text = fmt.Sprintf("line %d: %s", e.Line, text)
	}
	return text
}

// IsLimit reports whether err means that the render reached a bound of Limits.
func IsLimit(err error) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && e.Class == classLimit
}

// Raised reports whether the template refused its input by raise_exception, and returns its
// message.
func Raised(err error) (message string, ok bool) {
	e, ok := errors.AsType[*Error](err)
	if !ok || e.Class != classRaise {
		return "", false
	}
	return e.Message, true
}

func fail(class, format string, args ...any) error { return failAt(0, class, format, args...) }

func failAt(line int, class, format string, args ...any) error {
	return &Error{Class: class, Message: fmt.Sprintf(format, args...), Line: line}
}

func typeError(format string, args ...any) error { return fail("TypeError", format, args...) }
