package client

import (
	"context"
	"encoding/json"
	"io"
	"net/http"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/operation"
)

// Cluster returns what all nodes of the cluster share.
func (c *Client) Cluster(ctx context.Context, opts ...ReadOption) (core.Cluster, error) {
	return fetchOne[core.Cluster](ctx, c, "/v1/cluster", opts...)
}

// Queens lists the members of raft and the queens that are about to become one.
func (c *Client) Queens(ctx context.Context, opts ...ReadOption) ([]core.Queen, error) {
	return fetchList[core.Queen](ctx, c, "/v1/queens", opts...)
}

// RaftServers lists the members of raft.
func (c *Client) RaftServers(ctx context.Context, opts ...ReadOption) ([]core.Queen, error) {
	return fetchList[core.Queen](ctx, c, "/v1/operator/raft", opts...)
}

// RemoveQueen takes a queen out of raft, by node id, name or raft id.
func (c *Client) RemoveQueen(ctx context.Context, id string) error {
	_, err := change[struct{}](ctx, c, http.MethodDelete, "/v1/operator/raft/"+segment(id), nil, false)
	return err
}

// TransferLeadership gives the leadership to a queen by node id or name; empty: to whoever is most
// up to date.
func (c *Client) TransferLeadership(ctx context.Context, to string) error {
	_, err := change[struct{}](ctx, c, http.MethodPost, "/v1/operator/raft/transfer", map[string]string{"to": to}, to == "")
	return err
}

// Nodes lists the machines that were taken into the cluster.
func (c *Client) Nodes(ctx context.Context, opts ...ReadOption) ([]core.Node, error) {
	return fetchList[core.Node](ctx, c, "/v1/nodes", opts...)
}

// RevokeNode has a node's certificates refused by everybody, for ever.
func (c *Client) RevokeNode(ctx context.Context, id string) (core.Node, error) {
	return change[core.Node](ctx, c, http.MethodDelete, "/v1/nodes/"+segment(id), nil, false)
}

// LeaveNode has a node leave the cluster for good.
func (c *Client) LeaveNode(ctx context.Context, id string) (core.Node, error) {
	return change[core.Node](ctx, c, http.MethodPost, "/v1/nodes/"+segment(id)+"/leave", struct{}{}, false)
}

// Tokens lists the tokens, without their secrets.
func (c *Client) Tokens(ctx context.Context, opts ...ReadOption) ([]core.Token, error) {
	return fetchList[core.Token](ctx, c, "/v1/tokens", opts...)
}

// CreateToken makes a token. Its secret is in the answer and nowhere else, so a request whose
// answer is lost is not sent again.
func (c *Client) CreateToken(ctx context.Context, r core.TokenRequest) (core.NewToken, error) {
	return change[core.NewToken](ctx, c, http.MethodPost, "/v1/tokens", r, true)
}

// RotateToken gives an API token another secret. It is in the answer and nowhere else, so a request
// whose answer is lost is not sent again.
func (c *Client) RotateToken(ctx context.Context, id string, r core.RotateRequest) (core.NewToken, error) {
	return change[core.NewToken](ctx, c, http.MethodPost, "/v1/tokens/"+segment(id)+"/rotate", r, true)
}

// RevokeToken deletes a token by its id.
func (c *Client) RevokeToken(ctx context.Context, id string) (core.Token, error) {
	return change[core.Token](ctx, c, http.MethodDelete, "/v1/tokens/"+segment(id), nil, false)
}

// DrainHive says whether a hive gets no new worker and its workers no new request.
func (c *Client) DrainHive(ctx context.Context, hive string, drain bool) (core.Hive, error) {
	return change[core.Hive](ctx, c, http.MethodPost, hivePath(hive)+"/drain", map[string]bool{"drain": drain}, false)
}

// RefreshHive has a hive look at its devices and worker types anew.
func (c *Client) RefreshHive(ctx context.Context, hive string) (core.RefreshResult, error) {
	return change[core.RefreshResult](ctx, c, http.MethodPost, hivePath(hive)+"/refresh", struct{}{}, false)
}

// HiveHealth returns a hive as every queen sees it.
func (c *Client) HiveHealth(ctx context.Context, hive string, opts ...ReadOption) (core.HiveHealth, error) {
	return operation.HiveStatus.Ask(ctx, c.Reading(opts...), core.Request{Hive: hive})
}

// Keyring returns the fingerprints of the keys that encrypt gossip.
func (c *Client) Keyring(ctx context.Context) (core.Keyring, error) {
	return fetchOne[core.Keyring](ctx, c, "/v1/operator/keyring")
}

// ChangeKeyring makes one step of a key rotation.
func (c *Client) ChangeKeyring(ctx context.Context, k core.KeyringChange) (core.Keyring, error) {
	return change[core.Keyring](ctx, c, http.MethodPost, "/v1/operator/keyring", k, k.Action == "install" && k.Key == "")
}

// SaveSnapshot writes the leader's registry to w. After an error w may have a part of it, which is
// of no use. An error of w is returned as it is.
func (c *Client) SaveSnapshot(ctx context.Context, w io.Writer) error {
	resp, n, err := c.do(ctx, call{method: http.MethodGet, path: "/v1/operator/snapshot", accept: "application/octet-stream", slow: true})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if t := resp.Header.Get("Content-Type"); t != "application/octet-stream" {
		return notRbee(resp, c.queens[n], nil)
	}
	to := &writing{w: w}
	_, err = io.Copy(to, resp.Body)
	switch {
	case to.err != nil:
		return to.err
	case ctx.Err() != nil:
		return core.FromContext(ctx)
	case err != nil:
		return core.Errorf(core.Unavailable, "the snapshot was cut: %w", err).Hint("Ask again; what came is of no use.")
	}
	return nil
}

// writing remembers the error of its writer.
type writing struct {
	w   io.Writer
	err error
}

func (w *writing) Write(b []byte) (int, error) {
	n, err := w.w.Write(b)
	if err != nil {
		w.err = err
	}
	return n, err
}

// RestoreSnapshot replaces the registry by a snapshot of the same cluster, which is read to its
// end. It is sent to one queen only.
func (c *Client) RestoreSnapshot(ctx context.Context, r io.Reader) (core.SnapshotInfo, error) {
	return fetch[core.SnapshotInfo](ctx, c, call{method: http.MethodPost, path: "/v1/operator/snapshot", upload: r, once: true})
}

// change makes a request that changes something. once: it must not be carried out twice.
func change[T any](ctx context.Context, c *Client, method, path string, body any, once bool) (T, error) {
	var data []byte
	if body != nil {
		var err error
		if data, err = json.Marshal(body); err != nil {
			var zero T
			return zero, core.WithKind(err, core.Invalid)
		}
	}
	return fetch[T](ctx, c, call{method: method, path: path, body: data, once: once})
}
