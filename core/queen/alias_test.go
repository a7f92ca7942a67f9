package queen

import (
	"testing"
	"testing/synctest"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/inference"
	"github.com/rbee-project/rbee/core/operation"
)

// Two models of one name are distinguished by a longer name or by an alias. Requests, queries and a
// hive's jobs all accept the alias until it is removed.
func TestAliases(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "")
		a, b := c.newHive("h1"), c.newHive("h2")
		const alice, bob = "hf.co/alice/tiny:Q4_K_M", "hf.co/bob/tiny:Q4_K_M"
		for _, h := range []*fakeHive{a, b} {
			h.tells = true
			h.items = []core.CatalogItem{{Ref: "builtin:rbee-tiny", Name: "rbee-tiny", Kind: "model"}}
		}
		a.addModel(alice)
		b.addModel(bob)
		b.addModel("chat")
		defer a.keepBeating()()
		defer b.keepBeating()()
		set := func(name, model string) error {
			_, err := c.q.aliasSet(t.Context(), core.Request{Name: name, Model: model}, nil)
			return err
		}

		_, err := pick(t.Context(), c.q, inference.Query{Model: "tiny"})
		mustFail(t, err, core.Invalid, alice+", "+bob)
		mustFail(t, set("gpt", "tiny"), core.Invalid, alice)
		mustFail(t, set("gpt", "tinny"), core.NotFound, "tinny")
		mustFail(t, set("g p t", alice), core.Invalid, "cannot be a model's alias")
		mustFail(t, set("hf.co/gpt/x", alice), core.Invalid, "says where a model is from")
		mustFail(t, set("chat", alice), core.Conflict, "is the id of a model")
		must.NoError(t, set("gpt", "Alice/tiny"))
		must.NoError(t, set("small", "rbee-tiny"), must.Sprint("a request can fetch it"))

		found, err := pick(t.Context(), c.q, inference.Query{Model: "gpt"})
		must.NoError(t, err)
		must.EqOp(t, alice, found[0].Worker.Model)
		must.EqOp(t, "h1", found[0].Worker.Hive)
		found, err = pick(t.Context(), c.q, inference.Query{Model: "GPT"})
		must.NoError(t, err)
		must.EqOp(t, alice, found[0].Worker.Model)
		m, err := operation.ModelGet.Ask(t.Context(), c.q, core.Request{Model: "gpt"})
		must.NoError(t, err)
		must.EqOp(t, alice, m.ID)
		must.EqOp(t, core.ModelLoaded, m.State)
		must.Eq(t, []string{"gpt"}, m.Aliases)
		m, err = operation.ModelGet.Ask(t.Context(), c.q, core.Request{Model: "small"})
		must.NoError(t, err)
		must.EqOp(t, core.ModelOffered, m.State)
		must.EqOp(t, alice, c.q.placer.Dealias("Gpt"))

		// A name already looked up refers to another model as soon as it becomes an alias.
		_, err = c.q.aliasRemove(t.Context(), core.Request{Name: "gpt"}, nil)
		must.NoError(t, err)
		must.NoError(t, set("gpt", bob))
		for _, name := range []string{"gpt", "GPT"} {
			found, err = pick(t.Context(), c.q, inference.Query{Model: name})
			must.NoError(t, err)
			must.EqOp(t, bob, found[0].Worker.Model, must.Sprint(name))
		}
		// An id takes precedence over an alias, even if the model was added later and no worker
		// serves it yet.
		must.NoError(t, set("later", bob))
		a.addModel("later")
		a.mustBeat()
		for _, name := range []string{"later", "LATER"} {
			found, err = pick(t.Context(), c.q, inference.Query{Model: name})
			must.NoError(t, err)
			must.EqOp(t, "later", found[0].Worker.Model, must.Sprint(name))
		}

		_, err = c.q.aliasRemove(t.Context(), core.Request{Name: "gpt"}, nil)
		must.NoError(t, err)
		_, err = pick(t.Context(), c.q, inference.Query{Model: "gpt"})
		mustFail(t, err, core.NotFound, "gpt")
		_, err = c.q.aliasRemove(t.Context(), core.Request{Name: "gpt"}, nil)
		mustFail(t, err, core.NotFound, "there is no alias")
	})
}
