package llamacpp

import (
	"strings"
	"unicode/utf8"

	"github.com/rbee-project/rbee/plugins/llamacpp/internal/batch"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// shownToken is a token that the client has seen, at least in part.
type shownToken struct {
	piece string
	list  []batch.LogProb // of the token itself, then of the likeliest ones
}

// tokenQueue holds back tokens until their text is sent. A token is shown with the text that
// contains its first byte. Tokens cut away as part of a stop string, and the token that ends the
// answer, are not shown.
type tokenQueue struct {
	waiting []shownToken
	next    int // where the first waiting token begins, in bytes of pieces
}

// take adds the token of an event, if any, and returns the tokens that the event's text shows.
func (q *tokenQueue) take(e event, pieces []string) []shownToken {
	if len(e.logprobs) > 0 {
		q.waiting = append(q.waiting, shownToken{pieces[e.logprobs[0].Token], e.logprobs})
	}
	n := 0
	for n < len(q.waiting) && q.next < e.sent {
		q.next += len(q.waiting[n].piece)
		n++
	}
	shown := q.waiting[:n:n]
	q.waiting = q.waiting[n:]
	return shown
}

// leastLogProb represents negative infinity, as in OpenAI's API: JSON has no infinity.
const leastLogProb = -9999

func logProb(p batch.LogProb) float64 { return max(float64(p.LogProb), leastLogProb) }

// tokenName returns how a token is shown: its text, or the vocabulary's spelling if it has none.
func (m *model) tokenName(t token) string {
	piece := m.pieces[t]
	if piece == "" {
		piece = m.tokenText(t)
	}
	return strings.ToValidUTF8(piece, "\uFFFD")
}

// tokenBytes returns the bytes of a token's text as numbers; nil without text.
func (m *model) tokenBytes(t token) []int {
	var out []int
	for _, b := range []byte(m.pieces[t]) {
		out = append(out, int(b))
	}
	return out
}

// chatLogProbs converts tokens to the shape of chat completions.
func (m *model) chatLogProbs(tokens []shownToken) *openai.LogProbs {
	out := &openai.LogProbs{Content: make([]openai.TokenLogProb, len(tokens))}
	for i, t := range tokens {
		own := t.list[0]
		x := openai.TokenLogProb{Token: m.tokenName(own.Token), LogProb: logProb(own), Bytes: m.tokenBytes(own.Token), TopLogProbs: []openai.TopLogProb{}}
		for _, o := range t.list[1:] {
			x.TopLogProbs = append(x.TopLogProbs, openai.TopLogProb{Token: m.tokenName(o.Token), LogProb: logProb(o), Bytes: m.tokenBytes(o.Token)})
		}
		out.Content[i] = x
	}
	return out
}

// textLogProbs converts tokens to the shape of legacy completions. offset is the number of
// characters shown before.
func (m *model) textLogProbs(tokens []shownToken, offset int) (*openai.CompletionLogProbs, int) {
	out := &openai.CompletionLogProbs{Tokens: []string{}, TokenLogProbs: []float64{}, TextOffset: []int{}}
	for _, t := range tokens {
		own := t.list[0]
		out.Tokens = append(out.Tokens, m.tokenName(own.Token))
		out.TokenLogProbs = append(out.TokenLogProbs, logProb(own))
		out.TextOffset = append(out.TextOffset, offset)
		for _, c := range []byte(t.piece) { // count the first byte of each character
			if utf8.RuneStart(c) {
				offset++
			}
		}
		if len(t.list) == 1 {
			continue
		}
		top := map[string]float64{m.tokenName(own.Token): logProb(own)}
		for _, o := range t.list[1:] {
			name := m.tokenName(o.Token) // several tokens may look alike: keep the likeliest
			if _, ok := top[name]; !ok {
				top[name] = logProb(o)
			}
		}
		out.TopLogProbs = append(out.TopLogProbs, top)
	}
	return out, offset
}
