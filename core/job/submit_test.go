package job_test

import (
	"context"
	"testing"

	"github.com/shoenig/test/must"
	"google.golang.org/grpc"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest"
	"github.com/rbee-project/rbee/core/job"
	"github.com/rbee-project/rbee/core/operation"
	"github.com/rbee-project/rbee/core/rpc"
	jobv1 "github.com/rbee-project/rbee/proto/job/v1"
)

// served returns the JobService of a manager.
func served(t *testing.T, m *job.Manager) jobv1.JobServiceClient {
	t.Helper()
	pipe := rpc.NewPipe()
	s := rpc.NewServer(coretest.Logger(t))
	m.Register(s)
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(pipe.Listener()) }()
	conn, err := rpc.Client(pipe)
	must.NoError(t, err)
	t.Cleanup(func() {
		must.NoError(t, conn.Close())
		s.Stop()
		must.NoError(t, pipe.Close())
		<-done
	})
	var c grpc.ClientConnInterface = conn
	return jobv1.NewJobServiceClient(c)
}

func TestUnknownOperation(t *testing.T) {
	t.Parallel()
	m := job.New(job.Options{Owner: "h1", Version: "0.1"})
	funcs := job.Funcs{}
	job.Does(funcs, operation.ModelDownload, func(context.Context, core.Request, *job.Run) (core.Model, error) {
		return core.Model{ID: "m"}, nil
	})
	m.Handle(funcs)
	c := served(t, m)
	// Sent by a newer queen: neither the operation nor its field is known here.
	_, err := c.Submit(t.Context(), &jobv1.SubmitRequest{Operation: "worker_fly", RequestJson: []byte(`{"operation":"worker_fly","wings":2}`)})
	err = rpc.FromStatus(err)
	must.ErrorContains(t, err, `node h1, which runs rbee 0.1, does not know the operation "worker_fly"`)
	must.Eq(t, core.Unsupported, core.KindOf(err))
	must.StrContains(t, core.HintOf(err), "same version")
	// In the table, but without a registered function.
	_, err = m.Submit(core.Request{Operation: core.OpStatus})
	must.Eq(t, core.Unsupported, core.KindOf(err))

	for name, r := range map[string]*jobv1.SubmitRequest{
		"of another operation": {Operation: "model_download", RequestJson: []byte(`{"operation":"status"}`)},
		"without its field":    {Operation: "model_download", RequestJson: []byte(`{"operation":"model_download"}`)},
		"no JSON":              {Operation: "model_download", RequestJson: []byte(`{`)},
	} {
		_, err := c.Submit(t.Context(), r)
		must.Eq(t, core.Invalid, core.KindOf(rpc.FromStatus(err)), must.Sprint(name))
	}
	must.SliceEmpty(t, m.List())

	resp, err := c.Submit(t.Context(), &jobv1.SubmitRequest{Operation: "model_download", RequestJson: []byte(`{"operation":"model_download","model":"m","request_id":"r"}`)})
	must.NoError(t, err)
	list, err := c.List(t.Context(), &jobv1.ListRequest{RequestId: "r"})
	must.NoError(t, err)
	must.Len(t, 1, list.GetJobs())
	must.Eq(t, resp.GetJob().GetId(), list.GetJobs()[0].GetId())
	list, err = c.List(t.Context(), &jobv1.ListRequest{RequestId: "other"})
	must.NoError(t, err)
	must.SliceEmpty(t, list.GetJobs())
	must.NoError(t, m.Close(t.Context()))
}
