package llamacpp

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/rbee-project/rbee/plugins/jinja"
	"github.com/rbee-project/rbee/plugins/llamacpp/internal/constraint"
	"github.com/rbee-project/rbee/plugins/llamacpp/internal/dialogue"
	"github.com/rbee-project/rbee/plugins/llamacpp/internal/native"
	"github.com/rbee-project/rbee/plugins/llamacpp/internal/sampler"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// model is a loaded model with the data needed for every token.
type model struct {
	native *native.Model

	pieces   []string // the text of each token; empty for control tokens
	ends     []bool   // tokens that end a generation
	endList  []token  // the same tokens as a list
	maxPiece int      // bytes of the longest piece

	control  *controlTokens
	gaps     native.Infill
	bos      token
	addBOS   bool
	trained  int // context length the model was trained for
	template *chatTemplate
	noChat   string // why there is no chat template
	defaults sampler.Params

	vocabulary *constraint.Vocabulary // the same tokens, for grammars

	prepareMarks              sync.Once // guards the fields below, which chats use
	thoughtPieces, callPieces []string

	spokenThoughts, spokenCalls spokenVocabulary
}

// spokenVocabulary is built on first use: it takes a while and not all chats need it.
type spokenVocabulary struct {
	prepare    sync.Once
	vocabulary *dialogue.Vocabulary
}

// describe collects the data of a loaded model.
func describe(loaded *native.Model) *model {
	m := &model{native: loaded, trained: loaded.TrainedTokens()}
	n := loaded.VocabSize()
	m.pieces, m.ends = make([]string, n), make([]bool, n)
	var control []string
	for i := range n {
		t := token(i)
		m.pieces[i] = loaded.Piece(t)
		if loaded.Ends(t) {
			m.ends[i] = true
			m.endList = append(m.endList, t)
		}
		text := ""
		if loaded.Control(t) {
			text = loaded.Text(t)
			control = append(control, text)
		}
		m.maxPiece = max(m.maxPiece, len(m.pieces[i]), len(text))
	}
	m.bos, m.addBOS = loaded.BOS(), loaded.AddsBOS()
	m.control = newControlTokens(control)
	m.gaps = loaded.Infill()
	m.defaults = m.samplingDefaults()
	m.vocabulary = constraint.NewVocabulary(m.pieces, m.ends, m.tokenText)
	if loaded.Reads() {
		m.noChat = "this model only reads: it makes vectors or scores of texts, and writes none"
		return m
	}
	source := loaded.ChatTemplate()
	if source == "" {
		has := 0
		for _, c := range control {
			if c == "<|im_start|>" || c == "<|im_end|>" {
				has++
			}
		}
		if has == 2 {
			source = chatML
		}
	}
	if source == "" {
		m.noChat = "this model has no chat template, so that it cannot be used for chat; send the whole prompt to /v1/completions instead"
	} else if t, err := newChatTemplate(source, m.tokenText(m.bos), m.tokenText(loaded.EOS()), m.control); err != nil {
		m.noChat = fmt.Sprintf("this model's %v; send the whole prompt to /v1/completions instead", err)
	} else {
		m.template = t
	}
	return m
}

func (m *model) tokenText(t token) string { return m.native.Text(t) }

// samplingDefaults returns OpenAI's defaults for what its API has, temperature and top_p of 1, and
// llama.cpp's for all else, unless the model's file recommends others.
func (m *model) samplingDefaults() sampler.Params {
	p := sampler.Defaults()
	p.TopK, p.MinP = 40, 0.05
	read := func(name string, lo, hi float64, set func(float64)) {
		text, ok := m.native.SamplingDefault(name)
		if !ok {
			return
		}
		if v, err := strconv.ParseFloat(strings.TrimSpace(text), 64); err == nil && v >= lo && v <= hi {
			set(v)
		}
	}
	read("temp", 0, 2, func(v float64) { p.Temperature = v })
	read("top_k", 0, math.MaxInt32, func(v float64) { p.TopK = int(v) })
	read("top_p", 0, 1, func(v float64) { p.TopP = v })
	read("min_p", 0, 1, func(v float64) { p.MinP = v })
	read("penalty_repeat", 0.01, 10, func(v float64) { p.Repeat = v })
	return p
}

// chatPrompt returns the tokens of a conversation, and what its answer may contain. limit is the
// context size; a much longer prompt is rejected before it costs time. now is the time for the
// template.
func (m *model) chatPrompt(ctx context.Context, req *openai.ChatRequest, limit int, now time.Time) ([]token, *speech, error) {
	prompt, err := m.chatText(ctx, req, now)
	if err != nil {
		return nil, nil, err
	}
	if err := m.checkLength(len(prompt.String()), limit); err != nil {
		return nil, nil, err
	}
	t := &speech{format: m.template.dialogue, tools: toolsOf(req.Offered()), opened: m.template.dialogue.OpensThinking(prompt.String()), old: req.OldFunctions()}
	return m.chatTokens(prompt), t, nil
}

// chatText renders a conversation.
func (m *model) chatText(ctx context.Context, req *openai.ChatRequest, now time.Time) (jinja.Text, error) {
	if m.template == nil {
		return jinja.Text{}, openai.NotSupported("messages", "%s", m.noChat)
	}
	return m.template.render(ctx, req, now)
}

// chatTokens tokenizes a rendered conversation.
func (m *model) chatTokens(prompt jinja.Text) []token {
	var tokens []token
	for _, s := range m.control.segments(prompt) {
		tokens = append(tokens, m.tokens(s.text, false, s.trusted)...)
	}
	// The first token must appear exactly once, whether the template writes it or leaves it to the
	// engine.
	if m.addBOS && m.bos >= 0 && !slices.Contains(tokens, m.bos) {
		tokens = append([]token{m.bos}, tokens...)
	}
	return tokens
}

// textPrompt tokenizes a legacy prompt, which is one text or one list of tokens. Control tokens in
// it are real, so that a client can write its own template.
func (m *model) textPrompt(p openai.Prompt, limit int) ([]token, error) {
	if p.Tokens != nil {
		tokens := make([]token, len(p.Tokens[0]))
		for i, t := range p.Tokens[0] {
			if t < 0 || int(t) >= len(m.pieces) {
				return nil, openai.Invalid("prompt", "prompt has the token %d; this model's tokens go from 0 to %d", t, len(m.pieces)-1)
			}
			tokens[i] = t
		}
		return tokens, nil
	}
	if err := m.checkLength(len(p.Texts[0]), limit); err != nil {
		return nil, err
	}
	tokens := m.tokens(p.Texts[0], true, true)
	if m.addBOS && len(tokens) > 1 && tokens[0] == m.bos && tokens[1] == m.bos { // both the client and the engine added it
		tokens = tokens[1:]
	}
	return tokens, nil
}

// checkLength rejects a text that cannot fit, whatever its tokens.
func (m *model) checkLength(bytes, limit int) error {
	if least := bytes / max(1, m.maxPiece); least > limit {
		return contextExceeded(least, limit, "at least ")
	}
	return nil
}

func contextExceeded(prompt, limit int, about string) *openai.Error {
	return openai.NewError(400, openai.TypeContextExceeded, "messages", openai.CodeContextLength,
		"the prompt has %s%d tokens, and the context of this worker holds %d with at least one for the answer; shorten the prompt or start the worker with a larger context", about, prompt, limit)
}
