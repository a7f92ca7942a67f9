package node

import (
	"errors"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

const (
	// logAgain is the interval between two lines about a lasting problem.
	logAgain = time.Minute
	// logForget is the silence after which a problem counts as new.
	logForget = 2 * logAgain
)

// raftLog is raft's logger. Raft repeats its problems several times a second, with ids and
// addresses. raftLog writes one line when a queen becomes unreachable, one a minute while that
// lasts, and one when it ends; any other warning is at most one line a minute. Queens appear by
// name. The rest becomes debug.
type raftLog struct {
	hclog.Logger
	s *logState
}

// logState is shared by all loggers derived from one raftLog.
type logState struct {
	name    func(raft.ServerID) string // for people
	servers func() []raft.Server       // servers of the cluster, as far as known

	mu       sync.Mutex // guards below
	troubles map[raft.ServerID]*trouble
	said     map[string]*trouble // by level, message and queen
}

// trouble is a lasting problem.
type trouble struct {
	since, told, last time.Time
	count             int // since the last line
}

func newRaftLog(to hclog.Logger, name func(raft.ServerID) string, servers func() []raft.Server) raftLog {
	return raftLog{to, &logState{name: name, servers: servers, troubles: map[raft.ServerID]*trouble{}, said: map[string]*trouble{}}}
}

// Named implements hclog.Logger and keeps the state.
func (l raftLog) Named(name string) hclog.Logger { return raftLog{l.Logger.Named(name), l.s} }

// ResetNamed implements hclog.Logger and keeps the state.
func (l raftLog) ResetNamed(name string) hclog.Logger { return raftLog{l.Logger.ResetNamed(name), l.s} }

// With implements hclog.Logger and keeps the state.
func (l raftLog) With(args ...any) hclog.Logger { return raftLog{l.Logger.With(args...), l.s} }

func (l raftLog) Info(msg string, args ...any)  { l.Log(hclog.Info, msg, args...) }
func (l raftLog) Warn(msg string, args ...any)  { l.Log(hclog.Warn, msg, args...) }
func (l raftLog) Error(msg string, args ...any) { l.Log(hclog.Error, msg, args...) }

// Log implements hclog.Logger.
func (l raftLog) Log(level hclog.Level, msg string, args ...any) {
	queen, args := l.s.named(args)
	switch msg {
	case "failed to accept connection":
		// The listener is closed when this node shuts down.
		if slices.ContainsFunc(args, func(v any) bool { err, ok := v.(error); return ok && errors.Is(err, net.ErrClosed) }) {
			l.Debug(msg, args...)
			return
		}
	case "pipelining replication":
		l.reached(queen)
		l.Debug(msg, args...)
		return
	case "failed to heartbeat to", "failed to appendEntries to", "failed to contact", "failed to pipeline appendEntries", "failed to start pipeline replication to",
		"failed to send snapshot to", "failed to install snapshot", "failed to make requestVote RPC", "aborting pipeline replication":
		if msg != "aborting pipeline replication" && queen != "" {
			l.unreached(queen, args)
		}
		l.Debug(msg, args...)
		return
	case "entering follower state", "entering candidate state", "election won", "entering leader state",
		"pre-vote campaign failed, waiting for election timeout", "pre-vote successful, starting election":
	default:
		if level < hclog.Warn {
			l.Logger.Log(level, msg, args...)
			return
		}
	}
	first, repeated := l.s.allow(level.String()+msg+string(queen), time.Now())
	switch {
	case !first && repeated == 0:
		l.Debug(msg, args...)
	case repeated > 0:
		l.Logger.Log(level, msg, append(args, "repeated", repeated)...)
	default:
		l.Logger.Log(level, msg, args...)
	}
}

// allow reports whether to log something: the first time, and later with the number of dropped
// lines.
func (s *logState) allow(what string, now time.Time) (first bool, repeated int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.said[what]
	if t == nil || now.Sub(t.last) >= logForget {
		s.said[what] = &trouble{since: now, told: now, last: now}
		return true, 0
	}
	t.last = now
	t.count++
	if now.Sub(t.told) < logAgain {
		return false, 0
	}
	repeated = t.count
	t.told, t.count = now, 0
	return false, repeated
}

// unreached logs an unreachable queen, at a bounded rate.
func (l raftLog) unreached(queen raft.ServerID, args []any) {
	var cause any
	for i := 0; i+1 < len(args); i += 2 {
		if args[i] == "error" {
			cause = args[i+1]
		}
	}
	now := time.Now()
	l.s.mu.Lock()
	t := l.s.troubles[queen]
	begins := t == nil || now.Sub(t.last) >= logForget
	if begins {
		t = &trouble{since: now, told: now}
		l.s.troubles[queen] = t
	}
	t.last = now
	again := now.Sub(t.told) >= logAgain
	if again {
		t.told = now
	}
	since := t.since
	l.s.mu.Unlock()
	pairs := []any{"queen", l.s.name(queen)}
	if cause != nil {
		pairs = append(pairs, "error", cause)
	}
	switch {
	case begins:
		l.Logger.Warn("queen cannot be reached", pairs...)
	case again:
		l.Logger.Warn("queen still cannot be reached", append(pairs, "since", now.Sub(since).Round(time.Second))...)
	}
}

// reached logs that an unreachable queen answers again.
func (l raftLog) reached(queen raft.ServerID) {
	l.s.mu.Lock()
	t := l.s.troubles[queen]
	delete(l.s.troubles, queen)
	l.s.mu.Unlock()
	if t != nil {
		l.Logger.Info("queen is reachable again", "queen", l.s.name(queen), "after", time.Since(t.since).Round(time.Millisecond))
	}
}

// observe is raft's filter of observations: some recoveries appear only there. It accepts none.
func (l raftLog) observe(o *raft.Observation) bool {
	switch v := o.Data.(type) {
	case raft.ResumedHeartbeatObservation:
		l.reached(v.PeerID)
	case raft.PeerObservation:
		if v.Removed {
			l.forget(v.Peer.ID)
		}
	case raft.LeaderObservation:
		if v.LeaderID != "" { // another node, or this one, now monitors the queens
			l.forget("")
		}
	}
	return false
}

// forget drops the problems of one queen, or of all.
func (l raftLog) forget(queen raft.ServerID) {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	if queen == "" {
		clear(l.s.troubles)
	}
	delete(l.s.troubles, queen)
}

// named replaces ids and addresses of queens with names in the pairs, and returns the queen that
// they concern; empty: none.
func (s *logState) named(pairs []any) (queen raft.ServerID, out []any) {
	out = make([]any, len(pairs))
	for i, v := range pairs {
		var id raft.ServerID
		switch v := v.(type) {
		case raft.Server:
			id = v.ID
		case raft.ServerID:
			id = v
		case raft.ServerAddress:
			id = s.at(v)
		case hclog.Format: // the servers of a configuration
			if len(v) == 2 {
				if servers, ok := v[1].([]raft.Server); ok {
					out[i] = s.all(servers)
					continue
				}
			}
		}
		if id == "" {
			out[i] = v
			continue
		}
		out[i] = s.name(id)
		if i > 0 && (pairs[i-1] == "peer" || pairs[i-1] == "server-id" || pairs[i-1] == "target") {
			queen = id
		}
	}
	return queen, out
}

// all returns the names of servers.
func (s *logState) all(servers []raft.Server) []string {
	names := make([]string, 0, len(servers))
	for _, server := range servers {
		names = append(names, s.name(server.ID))
	}
	return names
}

// at returns the queen with an address, or an empty id if there is none.
func (s *logState) at(address raft.ServerAddress) raft.ServerID {
	for _, server := range s.servers() {
		if server.Address == address {
			return server.ID
		}
	}
	return ""
}
