package node

import (
	"bytes"
	"errors"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	"github.com/shoenig/test/must"
)

func quietLog(level hclog.Level) (raftLog, *bytes.Buffer) {
	var b bytes.Buffer
	names := map[raft.ServerID]string{"b.1": "bee", "c.1": "cat"}
	l := newRaftLog(hclog.New(&hclog.LoggerOptions{Output: &b, Level: level, DisableTime: true}), func(id raft.ServerID) string { return names[id] },
		func() []raft.Server {
			return []raft.Server{{ID: "b.1", Address: "10.0.0.2:1"}, {ID: "c.1", Address: "10.0.0.3:1"}}
		})
	return l, &b
}

// A queen that is away for ten minutes is logged when that begins, once a minute, and when it ends.
func TestRaftLogQueenAway(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l, b := quietLog(hclog.Info)
		refused := errors.New("connection refused")
		away := raft.Server{ID: "b.1", Address: "10.0.0.2:1"}
		for range 10 * 60 * 6 {
			l.Error("failed to heartbeat to", "peer", away.Address, "backoff time", time.Second, "error", refused)
			l.Error("failed to appendEntries to", "peer", away, "error", refused)
			l.Warn("failed to contact", "server-id", away.ID, "time", time.Second)
			time.Sleep(time.Second / 6)
		}
		lines := strings.Split(strings.TrimSpace(b.String()), "\n")
		must.Len(t, 10, lines)
		must.Eq(t, `[WARN]  queen cannot be reached: queen=bee error="connection refused"`, lines[0])
		must.StrContains(t, lines[9], `[WARN]  queen still cannot be reached: queen=bee`)
		must.StrContains(t, lines[9], `since=9m`)
		b.Reset()
		l.Info("pipelining replication", "peer", away)
		must.Eq(t, "[INFO]  queen is reachable again: queen=bee after=10m0s\n", b.String())
		b.Reset()
		l.Info("pipelining replication", "peer", away)
		must.Eq(t, "", b.String())
		l.Error("failed to heartbeat to", "peer", away.Address, "error", refused)
		must.StrContains(t, b.String(), "queen cannot be reached: queen=bee")
		b.Reset()
		must.False(t, l.observe(&raft.Observation{Data: raft.ResumedHeartbeatObservation{PeerID: away.ID}}))
		must.StrContains(t, b.String(), "queen is reachable again: queen=bee")
	})
}

// Two queens of three are away: elections fail several times a second, which is logged once a
// minute.
func TestRaftLogNoMajority(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l, b := quietLog(hclog.Info)
		for range 3 * 60 * 3 {
			l.Warn("Election timeout reached, restarting election")
			l.Info("entering candidate state", "node", "x", "term", 7)
			l.Named("deeper").Error("failed to make requestVote RPC", "target", raft.Server{ID: "b.1"}, "error", "refused", "term", 7)
			l.With("a", 1).Error("failed to make requestVote RPC", "target", raft.Server{ID: "c.1"}, "error", "refused", "term", 7)
			l.Info("pre-vote campaign failed, waiting for election timeout", "term", 7)
			time.Sleep(time.Second / 3)
		}
		must.Eq(t, 5*3, strings.Count(b.String(), "\n"), must.Sprint(b.String()))
		must.StrContains(t, b.String(), "Election timeout reached, restarting election: repeated=181")
		must.StrContains(t, b.String(), "queen=cat")
	})
}

// Messages that do not repeat stay unchanged, with names; the rest becomes debug.
func TestRaftLogOtherMessages(t *testing.T) {
	t.Parallel()
	l, b := quietLog(hclog.Debug)
	for range 2 {
		l.Info("added peer, starting replication", "peer", raft.ServerID("b.1"))
	}
	must.Eq(t, 2, strings.Count(b.String(), "[INFO]  added peer, starting replication: peer=bee"))
	l.Info("initial configuration", "index", 1, "servers", hclog.Fmt("%+v", []raft.Server{{ID: "b.1"}, {ID: "c.1"}}))
	must.StrContains(t, b.String(), "servers=[\"bee\", \"cat\"]")
	b.Reset()
	for range 3 {
		l.Error("failed to take snapshot", "error", "disk")
	}
	must.Eq(t, 1, strings.Count(b.String(), "[ERROR]"))
	must.Eq(t, 2, strings.Count(b.String(), "[DEBUG]"))
}

// A closed listener means that the queen is shutting down, and is not logged as a problem.
func TestRaftLogClosedListener(t *testing.T) {
	t.Parallel()
	l, b := quietLog(hclog.Info)
	l.Error("failed to accept connection", "error", &net.OpError{Op: "accept", Err: net.ErrClosed})
	must.Eq(t, "", b.String())
	l.Error("failed to accept connection", "error", errors.New("too many open files"))
	must.StrContains(t, b.String(), "[ERROR] failed to accept connection")
}
