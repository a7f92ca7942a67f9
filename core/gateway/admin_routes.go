package gateway

import (
	"context"
	"net/http"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/operation"
)

// maxAdminBody bounds an admin request's body, in bytes; snapshots are excluded.
const maxAdminBody = 64 << 10

// done is the answer of operations that return no result.
var done = struct {
	Status string `json:"status"`
}{"done"}

// admin wraps the handler of an admin route.
func admin(handle func(*Gateway, Admin, *response, *http.Request) error) handler {
	return func(g *Gateway, w *response, r *http.Request) error {
		if g.o.Admin == nil {
			return noCluster()
		}
		return handle(g, g.o.Admin, w, r)
	}
}

func noCluster() error {
	return core.Errorf(core.Unsupported, "this agent is in no cluster").Hint("`rbee cluster init` makes one, `rbee cluster join` has this machine join one.")
}

// ask returns the handler of a read-only admin route that is called with the path values.
func ask[T any](f func(ctx context.Context, a Admin, r *http.Request) (T, error)) handler {
	return admin(func(_ *Gateway, a Admin, w *response, r *http.Request) error {
		v, err := f(r.Context(), a, r)
		return answerOne(w, v, err)
	})
}

// askList is ask for lists.
func askList[T any](f func(ctx context.Context, a Admin) ([]T, error)) handler {
	return admin(func(_ *Gateway, a Admin, w *response, r *http.Request) error {
		v, err := f(r.Context(), a)
		return answerList(w, v, err)
	})
}

// adminRoutes returns the routes of Admin.
func adminRoutes() []route {
	queens := fresh(askList(func(ctx context.Context, a Admin) ([]core.Queen, error) { return a.Queens(ctx) }))
	return []route{
		{"GET", "/v1/cluster", core.ScopeRead, fresh((*Gateway).clusterInfo)},
		{"GET", "/v1/queens", core.ScopeRead, queens},
		{"GET", "/v1/nodes", core.ScopeRead, fresh(askList(func(ctx context.Context, a Admin) ([]core.Node, error) { return a.Nodes(ctx) }))},
		{"DELETE", "/v1/nodes/{id}", core.ScopeAdmin, ask(func(ctx context.Context, a Admin, r *http.Request) (core.Node, error) {
			return a.RevokeNode(ctx, r.PathValue("id"))
		})},
		{"POST", "/v1/nodes/{id}/leave", core.ScopeAdmin, ask(func(ctx context.Context, a Admin, r *http.Request) (core.Node, error) {
			return a.LeaveNode(ctx, r.PathValue("id"))
		})},
		{"GET", "/v1/tokens", core.ScopeAdmin, fresh(askList(func(ctx context.Context, a Admin) ([]core.Token, error) { return a.Tokens(ctx) }))},
		{"POST", "/v1/tokens", core.ScopeAdmin, admin((*Gateway).createToken)},
		{"POST", "/v1/tokens/{id}/rotate", core.ScopeAdmin, admin((*Gateway).rotateToken)},
		{"DELETE", "/v1/tokens/{id}", core.ScopeAdmin, ask(func(ctx context.Context, a Admin, r *http.Request) (core.Token, error) {
			return a.RevokeToken(ctx, r.PathValue("id"))
		})},
		{"POST", "/v1/hives/{hive}/drain", core.ScopeOperate, admin((*Gateway).drainHive)},
		{"POST", "/v1/hives/{hive}/refresh", core.ScopeOperate, (*Gateway).refreshHive},
		{"GET", "/v1/operator/raft", core.ScopeRead, queens},
		{"DELETE", "/v1/operator/raft/{id}", core.ScopeAdmin, admin((*Gateway).removeQueen)},
		{"POST", "/v1/operator/raft/transfer", core.ScopeAdmin, admin((*Gateway).transferLeadership)},
		{"GET", "/v1/operator/snapshot", core.ScopeAdmin, admin((*Gateway).saveSnapshot)},
		{"POST", "/v1/operator/snapshot", core.ScopeAdmin, admin((*Gateway).restoreSnapshot)},
		{"GET", "/v1/operator/keyring", core.ScopeAdmin, ask(func(ctx context.Context, a Admin, _ *http.Request) (core.Keyring, error) {
			return a.Keyring(ctx)
		})},
		{"POST", "/v1/operator/keyring", core.ScopeAdmin, admin((*Gateway).changeKeyring)},
	}
}

// clusterInfo answers with what all nodes share.
func (g *Gateway) clusterInfo(w *response, r *http.Request) error {
	v, err := g.o.Cluster.Status(r.Context())
	if err == nil && v.Cluster == nil {
		err = noCluster()
	}
	return answerOne(w, v.Cluster, err)
}

func (g *Gateway) createToken(a Admin, w *response, r *http.Request) error {
	var request core.TokenRequest
	if err := g.readObject(w, r, &request, "a token"); err != nil {
		return err
	}
	v, err := a.CreateToken(r.Context(), request)
	if err != nil {
		return err
	}
	w.Header().Set("Cache-Control", "no-store")
	return writeJSON(w, http.StatusCreated, v)
}

func (g *Gateway) rotateToken(a Admin, w *response, r *http.Request) error {
	var request core.RotateRequest
	if err := g.readObject(w, r, &request, "a rotation"); err != nil {
		return err
	}
	v, err := a.RotateToken(r.Context(), r.PathValue("id"), request)
	w.Header().Set("Cache-Control", "no-store")
	return answerOne(w, v, err)
}

func (g *Gateway) refreshHive(w *response, r *http.Request) error {
	v, err := operation.HiveRefreshCapabilities.Ask(r.Context(), g.o.Cluster, core.Request{Hive: r.PathValue("hive")})
	return answerOne(w, v, err)
}

func (g *Gateway) drainHive(a Admin, w *response, r *http.Request) error {
	var request struct {
		Drain *bool `json:"drain"`
	}
	if err := g.readObject(w, r, &request, "a drain"); err != nil {
		return err
	}
	if request.Drain == nil {
		return &apiError{param: "drain", err: core.Errorf(core.Invalid, "drain is missing").Hint(`Send {"drain":true} or {"drain":false}.`)}
	}
	v, err := a.DrainHive(r.Context(), r.PathValue("hive"), *request.Drain)
	return answerOne(w, v, err)
}

func (g *Gateway) removeQueen(a Admin, w *response, r *http.Request) error {
	return answerOne(w, done, a.RemoveQueen(r.Context(), r.PathValue("id")))
}

func (g *Gateway) transferLeadership(a Admin, w *response, r *http.Request) error {
	var request struct {
		To string `json:"to"`
	}
	if err := g.readObject(w, r, &request, "a transfer"); err != nil {
		return err
	}
	return answerOne(w, done, a.TransferLeadership(r.Context(), request.To))
}

func (g *Gateway) changeKeyring(a Admin, w *response, r *http.Request) error {
	var request core.KeyringChange
	if err := g.readObject(w, r, &request, "a keyring change"); err != nil {
		return err
	}
	v, err := a.ChangeKeyring(r.Context(), request)
	return answerOne(w, v, err)
}

// readObject reads the body of an admin request into v.
func (g *Gateway) readObject(w *response, r *http.Request, v any, what string) error {
	body, err := g.readBody(w, r, maxAdminBody)
	if err != nil {
		return err
	}
	return decodeObject(body, v, what)
}
