package client

import (
	"context"
	"encoding/json"
	"io"
	"net/http"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/operation"
)

// Cluster returns the settings that all nodes of the cluster share.
func (c *Client) Cluster(ctx context.Context, opts ...ReadOption) (core.Cluster, error) {
	return fetchOne[core.Cluster](ctx, c, "/v1/cluster", opts...)
}

// Queens lists the members of raft and the queens that are about to join it.
func (c *Client) Queens(ctx context.Context, opts ...ReadOption) ([]core.Queen, error) {
	return fetchList[core.Queen](ctx, c, "/v1/queens", opts...)
}

// RaftServers lists the members of raft.
func (c *Client) RaftServers(ctx context.Context, opts ...ReadOption) ([]core.Queen, error) {
	return fetchList[core.Queen](ctx, c, "/v1/operator/raft", opts...)
}

// RemoveQueen removes a queen from raft, by node ID, name or raft ID.
func (c *Client) RemoveQueen(ctx context.Context, id string) error {
	_, err := change[struct{}](ctx, c, http.MethodDelete, "/v1/operator/raft/"+segment(id), nil, false)
	return err
}

// TransferLeadership transfers the leadership to a queen by node ID or name; empty: to the most
// up-to-date one.
func (c *Client) TransferLeadership(ctx context.Context, to string) error {
	_, err := change[struct{}](ctx, c, http.MethodPost, "/v1/operator/raft/transfer", map[string]string{"to": to}, to == "")
	return err
}

// Nodes lists the machines that have joined the cluster.
func (c *Client) Nodes(ctx context.Context, opts ...ReadOption) ([]core.Node, error) {
	return fetchList[core.Node](ctx, c, "/v1/nodes", opts...)
}

// RevokeNode revokes a node: all nodes refuse its certificates permanently.
func (c *Client) RevokeNode(ctx context.Context, id string) (core.Node, error) {
	return change[core.Node](ctx, c, http.MethodDelete, "/v1/nodes/"+segment(id), nil, false)
}

// LeaveNode makes a node leave the cluster permanently.
func (c *Client) LeaveNode(ctx context.Context, id string) (core.Node, error) {
	return change[core.Node](ctx, c, http.MethodPost, "/v1/nodes/"+segment(id)+"/leave", struct{}{}, false)
}

// Tokens lists the tokens, without their secrets.
func (c *Client) Tokens(ctx context.Context, opts ...ReadOption) ([]core.Token, error) {
	return fetchList[core.Token](ctx, c, "/v1/tokens", opts...)
}

// CreateToken creates a token. The answer holds the only copy of its secret, so a request whose
// answer is lost is not sent again.
func (c *Client) CreateToken(ctx context.Context, r core.TokenRequest) (core.NewToken, error) {
	return change[core.NewToken](ctx, c, http.MethodPost, "/v1/tokens", r, true)
}

// RotateToken replaces the secret of an API token. The answer holds the only copy, so a request
// whose answer is lost is not sent again.
func (c *Client) RotateToken(ctx context.Context, id string, r core.RotateRequest) (core.NewToken, error) {
	return change[core.NewToken](ctx, c, http.MethodPost, "/v1/tokens/"+segment(id)+"/rotate", r, true)
}

// RevokeToken deletes a token by its ID.
func (c *Client) RevokeToken(ctx context.Context, id string) (core.Token, error) {
	return change[core.Token](ctx, c, http.MethodDelete, "/v1/tokens/"+segment(id), nil, false)
}

// DrainHive starts or stops draining a hive: a draining hive gets no new workers, and its workers
// get no new requests.
func (c *Client) DrainHive(ctx context.Context, hive string, drain bool) (core.Hive, error) {
	return change[core.Hive](ctx, c, http.MethodPost, hivePath(hive)+"/drain", map[string]bool{"drain": drain}, false)
}

// RefreshHive makes a hive probe its devices and worker types again.
func (c *Client) RefreshHive(ctx context.Context, hive string) (core.RefreshResult, error) {
	return change[core.RefreshResult](ctx, c, http.MethodPost, hivePath(hive)+"/refresh", struct{}{}, false)
}

// HiveHealth returns how each queen sees a hive.
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

// SaveSnapshot writes the leader's registry to w. After an error, w may hold a useless part of it.
// An error of w is returned unchanged.
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
		return core.Errorf(core.Unavailable, "the snapshot was cut off: %w", err).Hint("Try again; the partial snapshot is useless.")
	}
	return nil
}

// writing records the error of its writer.
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

// RestoreSnapshot replaces the registry with a snapshot of the same cluster, which it reads to the
// end. It sends it to one queen only.
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
