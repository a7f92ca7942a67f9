package llamacpp

import (
	"net/http"
	"slices"

	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// gapless is the error for models that cannot fill gaps.
const gapless = "this model was not trained to fill gaps: it has no tokens for the text before and behind one; leave out %s, or use a model for code that has them"

// unsnippet separates extra texts when the model has no token for file names.
const unsnippet = "\n\n--- snippet ---\n\n"

// reserve is the number of tokens kept for the filling when the request sets none.
const reserve = 128

// infill answers POST /infill.
func (s *server) infill(w http.ResponseWriter, r *http.Request) {
	s.answer(w, r, func(body []byte) (*ask, error) {
		req, err := openai.DecodeInfill(body)
		if err != nil {
			return nil, err
		}
		if !s.model.gaps.Can() {
			return nil, openai.NotSupported("input_suffix", gapless, "the request to /infill")
		}
		if err := s.fits(len(req.Prefix) + len(req.Prompt) + len(req.Suffix)); err != nil {
			return nil, err
		}
		req.StreamOptions = nil // the last event has the usage
		out := newRequest()
		a := &ask{request: out, sampling: &req.Sampling}
		if a.count, a.best, err = s.count(&req.Sampling, nil, 1); err != nil {
			return nil, err
		}
		out.maxTokens, out.noOutput = req.MaxOutput(), req.NoOutput()
		if out.shape, err = req.Shape(); err != nil {
			return nil, err
		}
		prefix, suffix := s.model.tokens(req.Prefix+req.Prompt, false, false), s.model.tokens(req.Suffix, false, false)
		prompt, cut := s.model.around(prefix, suffix, s.model.extras(req.Extra, s.engine.limit), room(s.engine.limit, out.maxTokens))
		a.prompts = [][]token{prompt}
		f := newNativeFormat(s.modelID, a)
		f.truncated = cut
		a.format = f
		return a, nil
	})
}

// fits rejects a text that would take long to tokenize.
func (s *server) fits(bytes int) error {
	if bytes > maxSpelled {
		return tooLong("input_prefix", bytes, "bytes")
	}
	return nil
}

// room returns how many tokens of a context the prompt may use when the filling has at most
// maxTokens; 0: not set.
func room(limit, maxTokens int) int {
	if maxTokens == 0 {
		maxTokens = reserve
	}
	return limit - max(1, min(maxTokens, limit/4))
}

// extras tokenizes extra texts; of those beyond a context it keeps the last tokens.
func (m *model) extras(list []openai.ExtraText, limit int) []token {
	var out []token
	for _, x := range slices.Backward(list) {
		var one []token
		head, text := unsnippet, x.Text
		if m.gaps.File >= 0 {
			one, head = append(one, m.gaps.File), x.Filename+"\n"
		}
		if most := limit * m.maxPiece; len(text) > most { // the end of it would not fit
			text = text[:most]
		}
		one = append(one, m.tokens(head+text, false, false)...)
		out = append(one, out...)
		if len(out) >= limit {
			break
		}
	}
	return out
}

// around builds the prompt of a gap: the text before and after it, and extra texts if there is
// room. Overlong text is cut at the end away from the gap; when both sides are too long, three
// quarters of the room go to the text before it. cut reports whether text was cut.
func (m *model) around(prefix, suffix, extra []token, room int) (prompt []token, cut bool) {
	room -= 4 // the three control tokens and the BOS
	after := min(len(suffix), max(room/4, room-len(prefix)))
	before := min(len(prefix), max(0, room-after))
	cut = before < len(prefix) || after < len(suffix)
	prefix, suffix = prefix[len(prefix)-before:], suffix[:after]
	if m.addBOS && m.bos >= 0 {
		prompt = append(prompt, m.bos)
	}
	if left := room - before - after; len(extra) > 0 && left > 0 {
		if m.gaps.Repo >= 0 {
			extra = append(append([]token{m.gaps.Repo}, m.tokens("repository\n", false, false)...), extra...)
		}
		if m.gaps.File >= 0 { // name of the text with the gap
			extra = append(append(extra, m.gaps.File), m.tokens("filename\n", false, false)...)
		}
		prompt = append(prompt, extra[max(0, len(extra)-left):]...)
	}
	prompt = append(append(prompt, m.gaps.Prefix), prefix...)
	prompt = append(append(prompt, m.gaps.Suffix), suffix...)
	return append(prompt, m.gaps.Middle), cut
}

// gapPrompts builds the prompts of completions with a suffix, without cutting any text.
func (m *model) gapPrompts(p openai.Prompt, suffix string, limit int) ([][]token, error) {
	if !m.gaps.Can() {
		return nil, openai.NotSupported("suffix", gapless, "suffix")
	}
	if err := m.checkLength(len(suffix), limit); err != nil {
		return nil, err
	}
	list, err := m.textPrompts(p, limit)
	if err != nil {
		return nil, err
	}
	behind := m.tokens(suffix, false, false)
	for i, before := range list {
		if m.addBOS && len(before) > 0 && before[0] == m.bos {
			before = before[1:]
		}
		list[i], _ = m.around(before, behind, nil, len(before)+len(behind)+4)
		if err := checkPrompt(list[i], limit); err != nil {
			return nil, err
		}
	}
	return list, nil
}
