package pluginhost_test

import (
	"bytes"
	"context"
	"encoding/json"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/rbee-project/rbee/core/pluginhost"
	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/worker"
)

// Another process of the worker's user, such as another worker, can reach its sockets but is served
// on neither.
func TestSocketsServeTheHostOnly(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	w, other := launched(t, h, ""), launched(t, h, "")
	must.NoError(t, w.Start(t.Context(), startSpec(t), nil))
	must.NoError(t, other.Start(t.Context(), startSpec(t), nil))

	_, err := ask(t.Context(), w, "hello")
	must.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for name, opening := range map[string]string{"none": "", "another worker's": other.DataOpening()} {
		_, err := askOver(ctx, w.DataSocket(), opening, "hello")
		must.Error(t, err, must.Sprint(name))
		must.NoError(t, ctx.Err(), must.Sprint(name))
	}

	conn, err := grpc.NewClient("unix:"+w.Attachment().Address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	must.NoError(t, err)
	defer conn.Close()
	_, err = worker.NewClient(conn).Status(ctx)
	must.ErrorIs(t, err, sdk.ErrUnavailable)
	foreign := w.Attachment()
	foreign.Control = other.Attachment().Control
	_, err = h.Reattach(t.Context(), foreign)
	must.Error(t, err)
	_, err = w.Status(t.Context())
	must.NoError(t, err)
}

// Only the host keeps the secrets of both sockets: the plugin's environment has none.
func TestSocketSecretsOutlastTheHost(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	w := launched(t, h, "")
	must.NoError(t, w.Start(t.Context(), startSpec(t), nil))
	text, err := json.Marshal(w.Attachment())
	must.NoError(t, err)
	must.True(t, bytes.Contains(text, []byte("data_opening")))
	must.NoError(t, w.Close())
	var a pluginhost.Attachment
	must.NoError(t, json.Unmarshal(text, &a))
	must.NotNil(t, a.Control)
	again, err := newHost(t).Reattach(t.Context(), a)
	must.NoError(t, err)
	must.Eq(t, a.DataOpening, again.DataOpening())
	_, err = ask(t.Context(), again, "still there?")
	must.NoError(t, err)
	a.Control = nil
	_, err = h.Reattach(t.Context(), a)
	must.Error(t, err)
}
