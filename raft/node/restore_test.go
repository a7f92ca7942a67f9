package node_test

import (
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/raft/logstore"
)

// restoreCommittedLogs starts raft itself on the files of a node, and returns the members of the
// cluster that raft then knows.
func restoreCommittedLogs(t *testing.T, dir string) []raft.Server {
	t.Helper()
	store, err := logstore.Open(filepath.Join(dir, "log.db"), logstore.Options{})
	must.NoError(t, err)
	defer func() { must.NoError(t, store.Close()) }()
	conf := raft.DefaultConfig()
	conf.LocalID = "queen-a"
	conf.Logger = logger(t)
	conf.RestoreCommittedLogs = true
	_, trans := raft.NewInmemTransport("")
	r, err := raft.NewRaft(conf, discard{}, store, store, raft.NewDiscardSnapshotStore(), trans)
	must.NoError(t, err)
	f := r.GetConfiguration()
	must.NoError(t, f.Error())
	servers := f.Configuration().Servers
	must.NoError(t, r.Shutdown().Error())
	return servers
}

// bootstrapPlain creates state as it was before raft ids.
func bootstrapPlain(t *testing.T, dir, id string) {
	t.Helper()
	store, err := logstore.Open(filepath.Join(dir, "log.db"), logstore.Options{})
	must.NoError(t, err)
	defer func() { must.NoError(t, store.Close()) }()
	conf := raft.DefaultConfig()
	conf.LocalID = raft.ServerID(id)
	_, trans := raft.NewInmemTransport("")
	must.NoError(t, raft.BootstrapCluster(conf, store, store, raft.NewDiscardSnapshotStore(), trans, raft.Configuration{
		Servers: []raft.Server{{ID: raft.ServerID(id), Address: raft.ServerAddress("in-process/" + id)}},
	}))
}
