package node

import (
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/shoenig/test/must"
)

type fakePipeline struct{ answers chan raft.AppendFuture }

func (fakePipeline) AppendEntries(*raft.AppendEntriesRequest, *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	return nil, nil //nolint:nilnil // not asked
}
func (f fakePipeline) Consumer() <-chan raft.AppendFuture { return f.answers }
func (fakePipeline) Close() error                         { return nil }

type fakeFuture struct {
	resp raft.AppendEntriesResponse
	req  raft.AppendEntriesRequest
}

func (*fakeFuture) Error() error                            { return nil }
func (*fakeFuture) Start() time.Time                        { return time.Time{} }
func (f *fakeFuture) Request() *raft.AppendEntriesRequest   { return &f.req }
func (f *fakeFuture) Response() *raft.AppendEntriesResponse { return &f.resp }

// Raft's transport hands over each answer before it takes the next request. If the answers are not
// taken, because one was bad, a further request from raft would wait forever, and with it Shutdown
// and everything sent to this follower.
func TestPipelineTakesAnswers(t *testing.T) {
	t.Parallel()
	inner := fakePipeline{answers: make(chan raft.AppendFuture)}
	trans := &transport{contacts: map[raft.ServerID]contact{}, strangers: map[raft.ServerID]string{}}
	p := &pipeline{AppendPipeline: inner, t: trans, id: "b", out: make(chan raft.AppendFuture), done: make(chan struct{})}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		p.run()
	}()
	answers := []*fakeFuture{}
	for _, id := range []string{"b", "", "c", "b"} {
		f := &fakeFuture{resp: raft.AppendEntriesResponse{RPCHeader: raft.RPCHeader{ID: []byte(id)}, Term: 1, Success: true}, req: raft.AppendEntriesRequest{Term: 1}}
		answers = append(answers, f)
		select {
		case inner.answers <- f:
		case <-time.After(10 * time.Second):
			t.Fatal("an answer was not taken")
		}
	}
	// an answer of another server does not count
	for i, want := range []bool{true, true, false, true} {
		f := <-p.Consumer()
		must.True(t, f == raft.AppendFuture(answers[i]))
		must.Eq(t, want, f.Response().Success)
	}
	must.NoError(t, p.Close())
	<-ended
}
