package queen

import (
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/swarm"
	hivev1 "github.com/rbee-project/rbee/proto/hive/v1"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
)

var blobDigest = "sha256:" + strings.Repeat("ab", 32) // constant

// withAddresses gives every hive an RPC address and a link.
func (c *cluster) withAddresses(ids ...string) map[string]*fakeHive {
	c.t.Helper()
	out := map[string]*fakeHive{}
	for _, id := range ids {
		h := c.newHive(id)
		h.change(func(h *fakeHive) { h.hive.RPCAddress = id + ":7834" })
		h.keepBeating()
		out[id] = h
	}
	return out
}

func (c *cluster) claimBlob(hive string, stage queenv1.BlobStage, have int64) *queenv1.ClaimResponse {
	c.t.Helper()
	resp, err := c.q.blobs.claim(c.t.Context(), hive, &queenv1.ClaimRequest{Digest: blobDigest, Stage: stage, HaveBytes: have})
	must.NoError(c.t, err)
	return resp
}

func seedersOf(r *queenv1.ClaimResponse) (ids []string) {
	for _, s := range r.GetSeeders() {
		ids = append(ids, s.GetHive()+"@"+s.GetRpcAddress())
	}
	return ids
}

// Four hives want a file at once: the hives are asked once who has it, one fetches it from the
// origin, and the others take it from that one.
func TestBlobIsFetchedOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "")
		hives := c.withAddresses("h1", "h2", "h3", "h4")
		var mu sync.Mutex
		origins, from := []string{}, map[string][]string{}
		var wg sync.WaitGroup
		for id := range hives {
			wg.Go(func() {
				resp := c.claimBlob(id, queenv1.BlobStage_BLOB_STAGE_ASKING, 0)
				mu.Lock()
				defer mu.Unlock()
				if resp.GetOrigin() {
					origins = append(origins, id)
				}
				from[id] = seedersOf(resp)
			})
		}
		wg.Wait()
		must.Len(t, 1, origins)
		for id, h := range hives {
			must.Eq(t, 1, h.asked)
			if id != origins[0] {
				must.Eq(t, []string{origins[0] + "@" + origins[0] + ":7834"}, from[id])
			}
		}

		// The link of that hive breaks: another one soon continues.
		var next string
		for id := range hives {
			if id != origins[0] {
				next = id
				c.claimBlob(id, queenv1.BlobStage_BLOB_STAGE_FROM_HIVE, 5)
				break
			}
		}
		must.False(t, c.claimBlob(next, queenv1.BlobStage_BLOB_STAGE_ASKING, 5).GetOrigin())
		hives[origins[0]].hangUpFor()
		time.Sleep(3 * time.Second)
		must.True(t, c.claimBlob(next, queenv1.BlobStage_BLOB_STAGE_ASKING, 5).GetOrigin())
	})
}

// hangUpFor breaks the link permanently.
func (h *fakeHive) hangUpFor() {
	h.ends[0]()
	h.hangUp()
}

func TestBlobStoredOnHive(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "")
		hives := c.withAddresses("h1", "h2", "h3")
		hives["h2"].change(func(h *fakeHive) { h.blob = &hivev1.FindBlobResponse{Whole: true} })
		hives["h3"].change(func(h *fakeHive) { h.mute = core.Errorf(core.Internal, "broken") })
		must.Eq(t, []string{"h2@h2:7834"}, seedersOf(c.claimBlob("h1", queenv1.BlobStage_BLOB_STAGE_ASKING, 0)))

		// A new leader asks again, and a former leader does not answer.
		index := c.node.AppliedIndex()
		hives["h2"].change(func(h *fakeHive) { h.blob = nil })
		hives["h1"].change(func(h *fakeHive) { h.blob = &hivev1.FindBlobResponse{Fetching: true, FromOrigin: true, HaveBytes: 7} })
		c.q.blobs.board.Clear()
		must.Eq(t, []string{"h1@h1:7834"}, seedersOf(c.claimBlob("h3", queenv1.BlobStage_BLOB_STAGE_ASKING, 0)))
		must.Eq(t, index, c.node.AppliedIndex()) // nothing about it is in raft
		c.q.liveness.StepDown()
		_, err := c.q.blobs.claim(t.Context(), "h3", &queenv1.ClaimRequest{Digest: blobDigest, Stage: queenv1.BlobStage_BLOB_STAGE_ASKING})
		must.Eq(t, core.Unavailable, core.KindOf(err))
		c.q.liveness.TakeOver()
	})
}

func TestMalformedBlobClaims(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "")
		c.withAddresses("h1")
		asking := queenv1.BlobStage_BLOB_STAGE_ASKING
		for name, tt := range map[string]struct {
			hive string
			req  *queenv1.ClaimRequest
			kind core.Kind
		}{
			"nobody":          {"", &queenv1.ClaimRequest{Digest: blobDigest, Stage: asking}, core.Unauthenticated},
			"no digest":       {"h1", &queenv1.ClaimRequest{Stage: asking}, core.Invalid},
			"a path":          {"h1", &queenv1.ClaimRequest{Digest: "sha256:../../x", Stage: asking}, core.Invalid},
			"another digest":  {"h1", &queenv1.ClaimRequest{Digest: "sha512:" + strings.Repeat("ab", 64), Stage: asking}, core.Invalid},
			"no stage":        {"h1", &queenv1.ClaimRequest{Digest: blobDigest}, core.Invalid},
			"a later stage":   {"h1", &queenv1.ClaimRequest{Digest: blobDigest, Stage: 77}, core.Invalid},
			"less than none":  {"h1", &queenv1.ClaimRequest{Digest: blobDigest, Stage: asking, HaveBytes: -1}, core.Invalid},
			"a list too long": {"h1", &queenv1.ClaimRequest{Digest: blobDigest, Stage: asking, Avoid: make([]string, 2000)}, core.Invalid},
		} {
			_, err := c.q.blobs.claim(t.Context(), tt.hive, tt.req)
			must.Eq(t, tt.kind, core.KindOf(err), must.Sprint(name))
		}
		_, err := queenv1.NewBlobServiceClient(c.server).Claim(t.Context(), &queenv1.ClaimRequest{Digest: blobDigest, Stage: asking})
		must.Eq(t, core.Unauthenticated, core.KindOf(err)) // this server does not know the caller
		must.Eq(t, int(swarm.Over), int(queenv1.BlobStage_BLOB_STAGE_OVER))
	})
}
