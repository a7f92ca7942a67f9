package llamacpp

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/llamacpp/llamatest"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// talk is a conversation with a worker.
type talk struct {
	w        *testWorker
	loop     *llamatest.Loop
	messages []openai.Message
	held     int // tokens of the last prompt and answer in a cache
}

// turnTokens bounds an answer in a talk.
const turnTokens = 16

// respelled is how many tokens of the last answer the next prompt may spell differently: all of
// them.
const respelled = turnTokens

// say asks a question and checks the answer against a fresh read of the whole conversation. It
// returns the number of prompt tokens, how many the engine evaluated by its counters, and how many
// were new.
func (k *talk) say(t *testing.T, question string) (prompt, evaluated, fresh int) {
	t.Helper()
	k.messages = append(k.messages, openai.Message{Role: "user", Content: openai.TextContent(question)})
	req := &openai.ChatRequest{Messages: k.messages}
	tokens, _, err := k.w.served.model.chatPrompt(t.Context(), req, 1024, time.Time{})
	must.NoError(t, err)
	messages, err := json.Marshal(k.messages)
	must.NoError(t, err)
	before := k.w.served.engine.Stats()
	answer := k.w.chat(t, fmt.Sprintf(`{"temperature":0,"max_tokens":%d,"messages":%s}`, turnTokens, messages))
	after := k.w.served.engine.Stats()
	text := *answer.Choices[0].Message.Content
	must.NoError(t, k.loop.Check(t, tokens, turnTokens, text), must.Sprint(question))
	evaluated = int(after.PromptEvaluated - before.PromptEvaluated)
	must.Eq(t, len(tokens), evaluated+int(after.PromptReused-before.PromptReused))
	must.Eq(t, len(tokens)-evaluated, answer.Usage.PromptTokensDetails.CachedTokens)
	fresh = len(tokens) - k.held
	k.messages = append(k.messages, openai.Message{Role: "assistant", Content: openai.TextContent(text)})
	k.held = len(tokens) + answer.Usage.CompletionTokens - 1 // the last one was chosen but not evaluated
	return len(tokens), evaluated, fresh
}

// A conversation is read once. Each turn evaluates the new tokens, and those at the end of the
// previous answer that its text spells differently.
func TestConversationIsReadOnce(t *testing.T) {
	w := startWorker(t, 2, 1024, "")
	k := talk{w: w, loop: plainLoop(t)}
	questions := recordQuestions()
	sum, all := 0, 0
	for turn := range 20 {
		prompt, evaluated, fresh := k.say(t, questions[turn%len(questions)])
		t.Logf("turn %d: prompt of %d tokens, %d new, %d evaluated", turn, prompt, fresh, evaluated)
		must.Between(t, fresh, evaluated, fresh+respelled)
		sum, all = sum+evaluated, all+prompt
	}
	must.LessEq(t, all/5, sum)
}

// Four conversations with one system prompt take turns on two slots: the system prompt is evaluated
// once, and each turn evaluates only the new tokens of its conversation.
func TestConversationsShareSlots(t *testing.T) {
	w := startWorker(t, 2, 1024, `{"prefix_store_mib":64}`)
	loop := plainLoop(t)
	system := "You answer questions about bees, hives and queens. You are brief and exact, you say what you know and nothing else, and you never make up a number. Where a question is not about bees you answer it all the same, in one sentence."
	var talks [4]talk
	for i := range talks {
		talks[i] = talk{w: w, loop: loop, messages: []openai.Message{{Role: "system", Content: openai.TextContent(system)}}}
	}
	questions := recordQuestions()
	shared, sum, owed := 0, 0, 0
	for turn := range 5 {
		for i := range talks {
			prompt, evaluated, fresh := talks[i].say(t, questions[(turn+3*i)%len(questions)])
			t.Logf("turn %d of conversation %d: prompt of %d tokens, %d new, %d evaluated", turn, i, prompt, fresh, evaluated)
			switch {
			case turn > 0:
				must.Between(t, fresh, evaluated, fresh+respelled)
				sum, owed = sum+evaluated, owed+fresh
			case i == 0:
				must.Eq(t, prompt, evaluated)
				shared = prompt - 20
			default: // the system prompt is already cached
				must.LessEq(t, prompt-shared, evaluated)
			}
		}
	}
	must.LessEq(t, owed*3/2, sum)
}

// TestManyRequestsAsAlone sends requests with common prefixes, some of which are cancelled, to a
// worker with too few slots and too small a store for them: each greedy answer equals the plain
// loop's.
func TestManyRequestsAsAlone(t *testing.T) {
	const n = 60
	loop := plainLoop(t)
	w := startWorker(t, 4, 1024, `{"prefix_store_mib":1,"queue":1000}`)
	rnd := rand.New(rand.NewPCG(14, 14))
	questions := recordQuestions()
	type asked struct {
		messages []openai.Message
		tokens   []token
		limit    int
		text     string
		gone     bool
	}
	all := make([]asked, n)
	for i := range all {
		a := &all[i]
		for range rnd.IntN(4) {
			a.messages = append(a.messages,
				openai.Message{Role: "user", Content: openai.TextContent(questions[rnd.IntN(4)])},
				openai.Message{Role: "assistant", Content: openai.TextContent(questions[rnd.IntN(3)])})
		}
		a.messages = append(a.messages, openai.Message{Role: "user", Content: openai.TextContent(questions[rnd.IntN(len(questions))])})
		a.limit, a.gone = 1+rnd.IntN(20), rnd.IntN(5) == 0
		var err error
		a.tokens, _, err = w.served.model.chatPrompt(t.Context(), &openai.ChatRequest{Messages: a.messages}, 1024, time.Time{})
		must.NoError(t, err)
	}
	work := make(chan *asked)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for a := range work {
				messages, err := json.Marshal(a.messages)
				must.NoError(t, err)
				ctx, cancel := context.WithCancel(t.Context())
				s := w.stream(ctx, t, fmt.Sprintf(`{"temperature":0,"stream":true,"max_tokens":%d,"messages":%s}`, a.limit, messages), func(openai.ChatChunk) {
					if a.gone {
						cancel()
					}
				})
				cancel()
				a.text = s.text
			}
		})
	}
	for i := range all {
		work <- &all[i]
	}
	close(work)
	wg.Wait()
	w.idle(t)
	for i, a := range all {
		if !a.gone {
			must.NoError(t, loop.Check(t, a.tokens, a.limit, a.text), must.Sprintf("request %d", i))
		}
	}
	st := w.served.engine.Stats()
	must.Greater(t, st.PromptEvaluated/5, st.PromptReused) // some share a prefix
	t.Logf("%d prompt tokens evaluated, %d reused", st.PromptEvaluated, st.PromptReused)
}
