package gateway

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/client"
	"github.com/rbee-project/rbee/core/coretest/fakecluster"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

func newClient(t testing.TB, addresses ...string) *client.Client {
	t.Helper()
	c, err := client.New(client.Options{Addresses: addresses})
	must.NoError(t, err)
	t.Cleanup(c.Close)
	return c
}

// The project's own client decodes every route.
func TestClientReads(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.cluster.Change(func(s *fakecluster.State) {
		s.Models = []core.Model{{ID: "org/tiny:Q4", SizeBytes: 7, Aliases: []string{"tiny"}}}
	})
	c, ctx := newClient(t, r.addr), t.Context()
	must.NoError(t, c.Healthy(ctx))
	must.NoError(t, c.Ready(ctx))
	version, err := c.Version(ctx)
	must.NoError(t, err)
	must.Eq(t, "1.2.3", version.Version)
	metrics, err := c.Metrics(ctx)
	must.NoError(t, err)
	must.StrContains(t, string(metrics), "rbee_gateway_")
	status, err := c.Status(ctx)
	must.NoError(t, err)
	must.Eq(t, "h1", status.Hives[0].ID)
	hives, err := c.Hives(ctx)
	must.NoError(t, err)
	must.Len(t, 1, hives)
	hive, err := c.Hive(ctx, "")
	must.NoError(t, err)
	must.Eq(t, "desk", hive.Name)
	workers, err := c.Workers(ctx)
	must.NoError(t, err)
	must.Len(t, 1, workers)
	worker, err := c.Worker(ctx, "w1")
	must.NoError(t, err)
	must.Eq(t, "w1", worker.ID)
	models, err := c.Models(ctx)
	must.NoError(t, err)
	must.Eq(t, "org/tiny:Q4", models[0].ID)
	must.Eq(t, 7, models[0].SizeBytes)
	for _, id := range []string{"org/tiny:Q4", "tiny"} {
		m, err := c.Model(ctx, id)
		must.NoError(t, err)
		must.Eq(t, "org/tiny:Q4", m.ID)
	}
	models, err = c.HiveModels(ctx, "h1")
	must.NoError(t, err)
	must.Len(t, 1, models)
	for _, id := range []string{"org/tiny:Q4", "a b?c#d%2F"} {
		m, err := c.HiveModel(ctx, "h1", id)
		must.NoError(t, err)
		must.Eq(t, id, m.ID)
	}
	processes, err := c.Processes(ctx, "h1")
	must.NoError(t, err)
	must.Len(t, 1, processes)
	process, err := c.Process(ctx, "h1", 12)
	must.NoError(t, err)
	must.Eq(t, 12, process.PID)
	binaries, err := c.Binaries(ctx, "h1")
	must.NoError(t, err)
	must.Eq(t, "cpu@1", binaries[0].ID)
	binary, err := c.Binary(ctx, "h1", "cpu@1")
	must.NoError(t, err)
	must.Eq(t, "cpu@1", binary.ID)
	items, err := c.Catalog(ctx, "h1", client.CatalogQuery{Text: "a&b", Kind: "model", Limit: 3})
	must.NoError(t, err)
	must.Eq(t, core.CatalogItem{Ref: "builtin:a&b", Kind: "model", SizeBytes: 3}, items[0])

	_, err = c.Hive(ctx, "h9")
	must.Eq(t, core.NotFound, core.KindOf(err))
	must.Eq(t, "Did you mean desk?", core.HintOf(err))
	must.Eq(t, `no hive "h9"`, err.Error())
	for _, name := range []string{"..", ".", "../workers"} {
		_, err = c.Hive(ctx, name)
		must.Eq(t, core.NotFound, core.KindOf(err), must.Sprint(name))
	}
	_, err = c.Process(ctx, "h1", 0)
	must.Eq(t, core.Invalid, core.KindOf(err))
}

func TestErrorKindRoundTrip(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	c := newClient(t, r.url)
	for kind := range answers {
		r.router.wait = func(context.Context, func(core.Progress)) error {
			return core.Errorf(kind, "because").Hint("Do this.")
		}
		_, _, err := c.Chat(t.Context(), openai.ChatRequest{Model: "tiny"})
		must.Eq(t, kind, core.KindOf(err))
		must.Eq(t, "Do this.", core.HintOf(err))
		must.StrContains(t, err.Error(), "because")
		err = c.ChatStream(t.Context(), openai.ChatRequest{Model: "tiny"}, func(openai.ChatChunk) error { return nil })
		must.Eq(t, kind, core.KindOf(err))
	}
}

func TestClientChat(t *testing.T) {
	t.Parallel()
	request := openai.ChatRequest{Model: "tiny", Messages: []openai.Message{{Role: "user", Content: openai.TextContent("hi")}}}
	ask := func(t *testing.T, worker func(r *rig)) (string, []string, client.Answer, error) {
		r := newRig(t, func(o *rigOptions) { o.inf.ProgressAfter, o.inf.ProgressInterval = time.Millisecond, time.Millisecond })
		worker(r)
		text, comments, answer := "", []string{}, client.Answer{}
		err := newClient(t, r.addr).ChatStream(t.Context(), request, func(c openai.ChatChunk) error {
			if content := c.Choices[0].Delta.Content; content != nil {
				text += *content
			}
			return nil
		}, client.OnComment(func(s string) { comments = append(comments, s) }), client.OnAnswer(func(a client.Answer) { answer = a }))
		return text, comments, answer, err
	}
	t.Run("whole", func(t *testing.T) {
		t.Parallel()
		text, _, answer, err := ask(t, func(r *rig) { r.serve("w1", streamOf(roleEvent, tokenEvent(1), tokenEvent(2), doneEvent)) })
		must.NoError(t, err)
		must.Eq(t, "t1t2", text)
		must.Eq(t, "w1", answer.Worker)
		must.Eq(t, "test", answer.Route)
		must.NotEq(t, "", answer.RequestID)
	})
	t.Run("progress", func(t *testing.T) {
		t.Parallel()
		text, comments, _, err := ask(t, func(r *rig) {
			r.serve("w1", streamOf(tokenEvent(1), doneEvent))
			r.router.wait = func(_ context.Context, progress func(core.Progress)) error {
				progress(core.Progress{Phase: "download tiny", Done: 1, Total: 2})
				<-time.After(30 * time.Millisecond)
				return nil
			}
		})
		must.NoError(t, err)
		must.Eq(t, "t1", text)
		must.SliceContains(t, comments, "rbee: download tiny 50%")
	})
	t.Run("worker lost", func(t *testing.T) {
		t.Parallel()
		text, _, _, err := ask(t, func(r *rig) { r.serve("w1", streamOf(tokenEvent(1))) })
		must.Eq(t, "t1", text)
		must.Eq(t, core.WorkerLost, core.KindOf(err))
		must.NotEq(t, "", core.HintOf(err))
	})
	t.Run("emit refuses", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, nil)
		r.serve("w1", streamOf(tokenEvent(1), tokenEvent(2), doneEvent))
		enough := errors.New("enough")
		err := newClient(t, r.addr).ChatStream(t.Context(), request, func(openai.ChatChunk) error { return enough })
		must.ErrorIs(t, err, enough)
	})
	t.Run("completions", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, nil)
		r.serve("w1", streamOf(`data: {"choices":[{"text":"a","index":0}]}`+"\n\n", doneEvent))
		text := ""
		err := newClient(t, r.addr).CompleteStream(t.Context(), openai.CompletionRequest{Model: "tiny", Prompt: openai.TextPrompt("x")}, func(c openai.CompletionResponse) error {
			text += c.Choices[0].Text
			return nil
		})
		must.NoError(t, err)
		must.Eq(t, "a", text)
	})
	t.Run("not streamed", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, nil)
		r.serve("w1", answerJSON(200, `{"id":"c1","choices":[{"message":{"role":"assistant","content":"hello"}}]}`))
		c := newClient(t, r.addr)
		chat, answer, err := c.Chat(t.Context(), request)
		must.NoError(t, err)
		must.Eq(t, "hello", *chat.Choices[0].Message.Content)
		must.Eq(t, "w1", answer.Worker)
		_, _, err = c.Complete(t.Context(), openai.CompletionRequest{Model: "no", Prompt: openai.TextPrompt("x")})
		must.Eq(t, core.NotFound, core.KindOf(err))
	})
}

func TestClientJobs(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	c := newClient(t, r.addr)
	r.jobs.add(core.Event{Kind: core.EventLog, Message: "a"}, core.Event{Kind: core.EventLog, Message: "b"})
	job, err := c.Submit(t.Context(), core.Request{Operation: core.OpModelDownload, Model: "x", Grace: core.Duration(time.Second)})
	must.NoError(t, err)
	must.Eq(t, "j1-h1", job.ID)
	must.NotEq(t, "", r.jobs.submitted[0].RequestID)
	must.Eq(t, core.Duration(time.Second), r.jobs.submitted[0].Grace)
	job, err = c.Job(t.Context(), "j1-h1")
	must.NoError(t, err)
	must.Eq(t, core.JobRunning, job.State)
	_, err = c.CancelJob(t.Context(), "j1-h1")
	must.NoError(t, err)
	_, err = c.Jobs(t.Context())
	must.NoError(t, err)
	_, err = c.Submit(t.Context(), core.Request{})
	must.Eq(t, core.Invalid, core.KindOf(err))
	must.Eq(t, core.NotFound, core.KindOf(c.FollowJob(t.Context(), "j9", 0, nil)))

	var seen []int64
	err = c.FollowJob(t.Context(), "j1-h1", 1, func(e core.Event) error {
		seen = append(seen, e.Seq)
		if e.Seq == 2 {
			r.jobs.add(core.Event{Kind: core.EventResult, Result: []byte(`{"pid":3}`)}, core.Event{Kind: core.EventEnd, State: core.JobSucceeded})
		}
		return nil
	})
	must.NoError(t, err)
	must.Eq(t, []int64{2, 3, 4}, seen)
	enough := errors.New("enough")
	must.ErrorIs(t, c.FollowJob(t.Context(), "j1-h1", 0, func(core.Event) error { return enough }), enough)
}

// The queen being followed goes down: the client continues at another one, without losing or
// repeating an event.
func TestFollowAtOtherQueen(t *testing.T) {
	t.Parallel()
	first, second := newRig(t, nil), newRig(t, nil)
	first.jobs.add(core.Event{Kind: core.EventLog, Message: "a"}, core.Event{Kind: core.EventLog, Message: "b"})
	second.jobs.add(core.Event{Kind: core.EventLog, Message: "a"}, core.Event{Kind: core.EventLog, Message: "b"}, core.Event{Kind: core.EventEnd, State: core.JobSucceeded})
	c := newClient(t, first.addr, second.addr)
	var seen []int64
	err := c.FollowJob(t.Context(), "j1-h1", 0, func(e core.Event) error {
		seen = append(seen, e.Seq)
		if e.Seq == 2 {
			first.stop()
		}
		return nil
	})
	must.NoError(t, err)
	must.Eq(t, []int64{1, 2, 3}, seen)
	must.Eq(t, second.url, c.Address())
}

func TestClientWithoutAgent(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must.NoError(t, err)
	l.Close()
	c := newClient(t, l.Addr().String())
	_, err = c.Status(t.Context())
	must.Eq(t, core.Unavailable, core.KindOf(err))
	must.StrContains(t, core.HintOf(err), "rbee agent -dev")
	must.StrContains(t, err.Error(), l.Addr().String())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = c.Status(ctx)
	must.Eq(t, core.Cancelled, core.KindOf(err))
	r := newRig(t, nil)
	_, err = newClient(t, l.Addr().String(), r.addr).Status(t.Context()) // the second queen answers
	must.NoError(t, err)
}

// The client distinguishes a foreign server, or a proxy's error page, from a valid answer.
func TestClientForeignServer(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.raw("x", func(c net.Conn) {})
	for name, answer := range map[string]string{
		"page":     "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>",
		"redirect": "HTTP/1.1 302 Found\r\nLocation: http://evil.example/\r\nContent-Length: 0\r\n\r\n",
	} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		must.NoError(t, err)
		done := make(chan struct{})
		go func() {
			defer close(done)
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			_, _ = c.Read(make([]byte, 64<<10))
			_, _ = io.WriteString(c, answer)
		}()
		_, err = newClient(t, l.Addr().String()).Status(t.Context())
		must.Eq(t, core.Invalid, core.KindOf(err), must.Sprint(name))
		must.True(t, strings.Contains(err.Error(), "is not rbee"))
		<-done
		l.Close()
	}
}
