package llamacpp

import (
	"net/http"

	"github.com/rbee-project/rbee/plugins/llamacpp/internal/native"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// nativeFormat is the format of llama-server's own answers.
type nativeFormat struct {
	model   string
	index   int
	prompts []int           // tokens of each prompt
	each    int             // answers per prompt
	times   *openai.Timings // for the next chunk
	word    bool            // the answer ended at a stop string
	// truncated reports that part of the client's text was left out of the prompt.
	truncated bool
}

func newNativeFormat(model string, a *ask) *nativeFormat {
	f := &nativeFormat{model: model, each: a.count}
	for _, p := range a.prompts {
		f.prompts = append(f.prompts, len(p))
	}
	return f
}

func (f *nativeFormat) choice(index int) format {
	out := *f
	out.index = index
	return &out
}

func (f *nativeFormat) first() any { return nil }

func (f *nativeFormat) tokens([]shownToken) {}

func (f *nativeFormat) timings(t *openai.Timings) { f.times = t }

func (f *nativeFormat) response(text string) openai.NativeResponse {
	n := openai.NativeResponse{
		Index: f.index, Content: text, Tokens: []int32{}, IDSlot: -1, TokensEvaluated: f.prompts[min(f.index/f.each, len(f.prompts)-1)],
		Truncated: f.truncated, Timings: f.times,
	}
	if f.times != nil {
		n.TokensPredicted, n.TokensCached = f.times.PredictedN, f.times.CacheN+f.times.PromptN+f.times.PredictedN
	}
	f.times = nil
	return n
}

func (f *nativeFormat) text(text string, send func([]byte) error) error {
	return send(marshal(f.response(text)))
}

func (f *nativeFormat) finish(reason string) []any { return []any{f.whole("", reason, nil)} }

func (f *nativeFormat) usage(*openai.Usage) any { return nil }

func (f *nativeFormat) whole(text, reason string, _ *openai.Usage) any {
	n := f.response(text)
	n.Stop, n.Model, n.StopType = true, f.model, openai.StopLimit
	switch {
	case reason != openai.FinishStop:
	case f.word:
		n.StopType = openai.StopWord
	default:
		n.StopType = openai.StopEOS
	}
	return n
}

// native answers POST /completion.
func (s *server) native(w http.ResponseWriter, r *http.Request) {
	s.answer(w, r, func(body []byte) (*ask, error) {
		req, err := openai.DecodeNative(body)
		if err != nil {
			return nil, err
		}
		if err := unsupportedCompletion(&req.CompletionRequest); err != nil {
			return nil, err
		}
		req.StreamOptions = nil // the last event has the usage
		a, err := s.text(&req.CompletionRequest, req.MaxOutput())
		if err != nil {
			return nil, err
		}
		a.format = newNativeFormat(s.modelID, a)
		return a, nil
	})
}

// props answers GET /props.
func (s *server) props(w http.ResponseWriter, _ *http.Request) {
	p := openai.Props{
		ModelAlias: s.modelID, ModelPath: s.modelID, Modalities: map[string]bool{"vision": false, "audio": false},
		BOSToken: s.model.tokenText(s.model.bos), EOSToken: s.model.tokenText(s.model.native.EOS()), BuildInfo: "llama.cpp " + native.Version(), Slots: true,
	}
	if t := s.model.template; t != nil {
		p.ChatTemplate = t.source
		p.TemplateCaps = map[string]bool{
			"supports_tools": t.wants.tools, "supports_tool_calls": !t.wants.noCalls, "supports_system_role": !t.wants.noSystem, "supports_thinking": t.dialogue.Thinks(),
		}
	}
	if s.engine != nil {
		d := s.model.defaults
		p.TotalSlots, p.Settings.Context = s.engine.parallel, s.engine.limit
		p.Settings.Params = map[string]any{
			"temperature": d.Temperature, "top_k": d.TopK, "top_p": d.TopP, "min_p": d.MinP, "repeat_penalty": d.Repeat, "n_predict": -1, "max_tokens": -1, "stream": false,
		}
	}
	writeJSON(w, p)
}

// slots answers GET /slots. All slots are alike: the first ones are reported as busy.
func (s *server) slots(w http.ResponseWriter, _ *http.Request) {
	list := []openai.Slot{}
	if s.engine != nil {
		active, _, _ := s.engine.load()
		for i := range s.engine.parallel {
			list = append(list, openai.Slot{ID: i, Context: s.engine.limit, IsProcessing: i < active})
		}
	}
	writeJSON(w, list)
}
