package gateway

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest/fakecluster"
)

// portions accepts up to most writes and records their sizes.
type portions struct {
	sizes []int
	bytes.Buffer
	most int
}

func (p *portions) Write(b []byte) (int, error) {
	if len(p.sizes) == p.most {
		return 0, errors.New("gone")
	}
	p.sizes = append(p.sizes, len(b))
	return p.Buffer.Write(b)
}

// A snapshot is sent in pieces, and a failed write returns how far it got.
func TestPieces(t *testing.T) {
	t.Parallel()
	data := bytes.Repeat([]byte("0123456789"), writePiece/5)
	p := &portions{most: 3}
	n, err := pieces{p}.Write(data)
	must.NoError(t, err)
	must.Eq(t, len(data), n)
	must.Eq(t, []int{writePiece, len(data) - writePiece}, p.sizes)
	must.True(t, bytes.Equal(data, p.Bytes()))
	p.most = 3
	n, err = pieces{p}.Write(data)
	must.Eq(t, core.Cancelled, core.KindOf(err))
	must.Eq(t, writePiece, n)
}

// Other queens are asked only about well-formed answer ids.
func TestElsewhereBounds(t *testing.T) {
	t.Parallel()
	asked := 0
	g := New(Options{Cluster: newCluster(), Elsewhere: func(context.Context, core.KeptAct, string, string) ([]byte, bool, error) {
		asked++
		return []byte("damaged"), true, nil
	}})
	for id, want := range map[string]int{
		"resp_" + strings.Repeat("a", maxAnswerID-5): 1, "resp_" + strings.Repeat("a", maxAnswerID-4): 0, "msg_1": 0, "": 0,
	} {
		asked = 0
		_, found, err := g.elsewhere(t.Context(), core.KeptGet, id, "key")
		must.NoError(t, err)
		must.Eq(t, want, asked, must.Sprint(id))
		must.Eq(t, want == 1, found)
	}
	// Their answers are validated before they are stored.
	must.Eq(t, core.Internal, core.KindOf(g.fetchKept(t.Context(), &response{}, "resp_1")))
	must.False(t, g.answers.Has("resp_1", ""))
}

// withoutModels is a cluster whose model list is unavailable.
type withoutModels struct{ *fakecluster.Cluster }

func (withoutModels) Models(context.Context) ([]core.Model, error) {
	return nil, core.Errorf(core.Unavailable, "no hive answers")
}

// An unavailable model list is an error, not an empty list.
func TestModelsUnavailable(t *testing.T) {
	t.Parallel()
	g := New(Options{Cluster: withoutModels{newCluster()}})
	for _, path := range []string{"/v1/models", "/api/tags"} {
		w := served(g, http.MethodGet, path, "")
		must.Eq(t, http.StatusServiceUnavailable, w.Code, must.Sprint(path))
		must.StrContains(t, w.Body.String(), "no hive answers")
	}
}
