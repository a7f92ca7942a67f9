package llamacpp

import (
	"strings"
	"unicode/utf8"

	"github.com/rbee-project/rbee/plugins/llamacpp/internal/batch"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// shownToken is a token of which the client has seen a part at least.
type shownToken struct {
	piece string
	list  []batch.LogProb // of the token itself and then of the likeliest ones
}

// tokenQueue holds back tokens until their text is sent. A token is shown with the text that holds
// its first byte; one that is cut away as part of a stop string is not shown, nor is the token that
// ends the answer.
type tokenQueue struct {
	waiting []shownToken
	next    int // where the first waiting token begins, in bytes of pieces
}

// take adds the token of an event, if it has one, and returns those that the event's text shows.
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

// leastLogProb stands for the log probability of what is impossible, as in OpenAI's API: JSON has
// no infinity.
const leastLogProb = -9999

func logProb(p batch.LogProb) float64 { return max(float64(p.LogProb), leastLogProb) }

// tokenName returns how a token is shown: as its text, or as the vocabulary spells it where it has
// none.
func (m *model) tokenName(t token) string {
	piece := m.pieces[t]
	if piece == "" {
		piece = m.tokenText(t)
	}
	return strings.ToValidUTF8(piece, "\uFFFD")
}

// tokenBytes returns the bytes of a token's text as numbers; nil: it has none.
func (m *model) tokenBytes(t token) []int {
	var out []int
	for _, b := range []byte(m.pieces[t]) {
		out = append(out, int(b))
	}
	return out
}

// chatLogProbs puts tokens into the shape of chat completions.
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

// textLogProbs puts tokens into the shape of the legacy completions. offset is how many characters
// were shown before.
func (m *model) textLogProbs(tokens []shownToken, offset int) (*openai.CompletionLogProbs, int) {
	out := &openai.CompletionLogProbs{Tokens: []string{}, TokenLogProbs: []float64{}, TextOffset: []int{}}
	for _, t := range tokens {
		own := t.list[0]
		out.Tokens = append(out.Tokens, m.tokenName(own.Token))
		out.TokenLogProbs = append(out.TokenLogProbs, logProb(own))
		out.TextOffset = append(out.TextOffset, offset)
		for _, c := range []byte(t.piece) { // a character is counted where it begins
			if utf8.RuneStart(c) {
				offset++
			}
		}
		if len(t.list) == 1 {
			continue
		}
		top := map[string]float64{m.tokenName(own.Token): logProb(own)}
		for _, o := range t.list[1:] {
			name := m.tokenName(o.Token) // several tokens may look alike: the likeliest counts
			if _, ok := top[name]; !ok {
				top[name] = logProb(o)
			}
		}
		out.TopLogProbs = append(out.TopLogProbs, top)
	}
	return out, offset
}
