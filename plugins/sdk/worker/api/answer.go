package api

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// maxAnswer bounds the text of an answer that is not streamed, in bytes.
const maxAnswer = 16 << 20

// errEnough is what emit returns once the answer has ended.
var errEnough = errors.New("no more is wanted")

// answer is one valid request and the state of its answer.
type answer struct {
	request Request
	format  format
	stream  bool
	usage   bool // end the stream with a usage chunk
	none    bool // the client wants no tokens

	events *openai.EventWriter // set if streamed
	text   strings.Builder     // used if not streamed
	cut    cutter
	tokens int
	finish string // why the answer ended; empty: the model has not stopped it
	gone   error  // write error: the client is unreachable
}

// answer generates an answer in a slot and sends it.
func (s *server) answer(w http.ResponseWriter, r *http.Request, a *answer) {
	s.o.Gate.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		prompt, err := s.countTokens(a.request.Prompt)
		if err != nil {
			s.refuse(w, err)
			return
		}
		a.cut.stops = a.request.Sampling.Stop
		if a.stream {
			a.events = openai.NewEventWriter(w)
		}
		err = s.generate(r.Context(), a)
		switch {
		case a.gone != nil:
		case err != nil && a.stream && a.events.Started():
			_ = a.events.Error(s.shown(err)) // an error means that the client disconnected
		case err != nil:
			s.refuse(w, err)
		default:
			s.finish(w, a, &openai.Usage{PromptTokens: prompt, CompletionTokens: a.tokens, TotalTokens: prompt + a.tokens})
		}
	})).ServeHTTP(w, r)
}

// generate runs the model.
func (s *server) generate(ctx context.Context, a *answer) error {
	if a.none {
		a.finish = openai.FinishLength
		return nil
	}
	err := s.o.Model.Generate(ctx, a.request, func(token string) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if a.finish != "" || a.gone != nil {
			return errEnough
		}
		s.o.Gate.AddTokens(1)
		return a.add(token)
	})
	switch {
	case a.finish != "" || a.gone != nil:
		return nil //nolint:nilerr // the answer has ended, which is what stopped the model
	case ctx.Err() != nil:
		return openai.NewError(http.StatusServiceUnavailable, openai.TypeUnavailable, "", "draining", "this worker is stopping; send the request again")
	}
	return err
}

// add processes one token of the model. It fails once the answer has ended.
func (a *answer) add(token string) error {
	a.tokens++
	text, stopped := a.cut.push(token)
	switch {
	case stopped:
		a.finish = openai.FinishStop
	case a.tokens == a.request.MaxTokens || a.text.Len() > maxAnswer:
		a.finish = openai.FinishLength
	}
	if a.gone = a.send(text); a.gone != nil || a.finish != "" {
		return errEnough
	}
	return nil
}

// send adds text to the answer.
func (a *answer) send(text string) error {
	if !a.stream {
		a.text.WriteString(text)
		return nil
	}
	if err := a.start(); err != nil || text == "" {
		return err
	}
	return a.events.Data(a.format.text(text))
}

// start sends what precedes the first text of a stream. Until then an error can still have its own
// status.
func (a *answer) start() error {
	if first := a.format.first(); first != nil && !a.events.Started() {
		return a.events.JSON(first)
	}
	return nil
}

// finish sends the end of a streamed answer, or a whole answer.
func (s *server) finish(w http.ResponseWriter, a *answer, u *openai.Usage) {
	switch a.finish {
	case "":
		a.finish = openai.FinishStop
		fallthrough
	case openai.FinishLength:
		if a.send(a.cut.rest()) != nil {
			return
		}
	}
	if !a.stream {
		s.write(w, a.format.whole(a.text.String(), a.finish, u))
		return
	}
	if a.start() != nil || a.events.JSON(a.format.finish(a.finish)) != nil {
		return
	}
	if a.usage && a.events.JSON(a.format.usage(u)) != nil {
		return
	}
	_ = a.events.Done() // an error means that the client disconnected
}
