package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/confine"
	"github.com/rbee-project/rbee/core/coretest/fakecluster"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"rbee": func() { os.Exit(Main(Program{}, os.Args[1:])) }})
}

type queenKey struct{}

// TestScript runs each script's command lines against its own in-memory cluster.
func TestScript(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireUniqueNames:  true,
		RequireExplicitExec: true,
		UpdateScripts:       os.Getenv("UPDATE_SCRIPTS") != "",
		Condition: func(name string) (bool, error) {
			if name == "landlock" {
				return confine.Problem() == "", nil
			}
			return false, fmt.Errorf("there is no condition %q", name)
		},
		Setup: func(env *testscript.Env) error {
			q := newFakeQueen(env.T().(testing.TB))
			env.Values[queenKey{}] = q
			env.Setenv("RBEE_ADDR", q.http.URL)
			env.Setenv("QUEEN", q.http.URL)
			env.Setenv("HOME", env.WorkDir)
			env.Setenv("XDG_STATE_HOME", env.WorkDir+"/state")
			env.Setenv("XDG_DATA_HOME", env.WorkDir+"/data")
			env.Setenv("XDG_CACHE_HOME", env.WorkDir+"/cache")
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			// worker ID MODEL [STATE]: adds an active worker
			"worker": func(ts *testscript.TestScript, _ bool, args []string) {
				w := fakeWorker(args[0], args[1])
				if len(args) > 2 {
					w.State = core.WorkerState(args[2])
				}
				queenOf(ts).addWorker(w)
			},
			// prefix ID: sets PREFIX to the shortest unique prefix of this job's id
			"prefix": func(ts *testscript.TestScript, _ bool, args []string) {
				for n := 1; n <= len(args[0]); n++ {
					if same := slices.DeleteFunc(queenOf(ts).jobs.List(), func(j core.Job) bool { return !strings.HasPrefix(j.ID, args[0][:n]) }); len(same) == 1 {
						ts.Setenv("PREFIX", args[0][:n])
						return
					}
				}
				ts.Fatalf("no job %s", args[0])
			},
			// waitlog JOB TEXT: waits until the job has logged TEXT
			"waitlog": func(ts *testscript.TestScript, _ bool, args []string) {
				found := errors.New("found")
				ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
				defer cancel()
				if err := queenOf(ts).jobs.Events(ctx, args[0], 0, func(e core.Event) error {
					if strings.Contains(e.Message, args[1]) {
						return found
					}
					return nil
				}); !errors.Is(err, found) {
					ts.Fatalf("%q was not logged: %v", args[1], err)
				}
			},
			// silent: takes the hive down
			"silent": func(ts *testscript.TestScript, _ bool, _ []string) {
				queenOf(ts).Change(func(s *fakecluster.State) { s.Hives[0].Status = core.HiveDown })
			},
			// trouble: makes the queen unable to serve
			"trouble": func(ts *testscript.TestScript, _ bool, _ []string) {
				queenOf(ts).trouble(true)
			},
			// asked TEXT: the last chat request, as JSON in one line, contains TEXT
			"asked": func(ts *testscript.TestScript, neg bool, args []string) {
				q := queenOf(ts)
				q.mu.Lock()
				defer q.mu.Unlock()
				if len(q.asked) == 0 {
					ts.Fatalf("nothing was asked")
				}
				check(ts, neg, fakecluster.JSON(q.asked[len(q.asked)-1]), args[0])
			},
			// requested TEXT: an operation was requested whose JSON in one line contains TEXT
			"requested": func(ts *testscript.TestScript, neg bool, args []string) {
				q := queenOf(ts)
				q.mu.Lock()
				defer q.mu.Unlock()
				var all []string
				for _, r := range q.requests {
					all = append(all, fakecluster.JSON(r))
				}
				check(ts, neg, strings.Join(all, "\n"), args[0])
			},
			// changed TEXT: a change by an administrator was requested that contains TEXT
			"changed": func(ts *testscript.TestScript, neg bool, args []string) {
				check(ts, neg, strings.Join(queenOf(ts).State().Asked, "\n"), args[0])
			},
			// consistency NAME: the last read asked for it
			"consistency": func(ts *testscript.TestScript, neg bool, args []string) {
				reads := queenOf(ts).State().Reads
				if n := len(reads); n == 0 || (string(reads[n-1]) == args[0]) == neg {
					ts.Fatalf("reads were %v", reads)
				}
			},
			// secure: makes the queen serve a cluster whose identity is in the data folder; sets
			// $SECURE to its address
			"secure": func(ts *testscript.TestScript, _ bool, _ []string) { queenOf(ts).secure(ts) },
			// setenv NAME FILE: sets the variable to the content of the file (or stdout), without
			// surrounding spaces
			"setenv": func(ts *testscript.TestScript, _ bool, args []string) {
				ts.Setenv(args[0], strings.TrimSpace(ts.ReadFile(args[1])))
			},
			// tofile FILE NAME: writes the variable's value to the file
			"tofile": func(ts *testscript.TestScript, _ bool, args []string) {
				ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(ts.Getenv(args[1])+"\n"), 0o600))
			},
			// fingerprint FILE: sets FINGERPRINT to that of the first certificate in the output of
			// "rbee tls info" in the file (or stdout)
			"fingerprint": func(ts *testscript.TestScript, _ bool, args []string) {
				var list []certificateJSON
				ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[0])), &list))
				ts.Setenv("FINGERPRINT", list[0].Fingerprint)
			},
			// exit N COMMAND...: runs the command, which must exit with that code
			"exit": func(ts *testscript.TestScript, _ bool, args []string) {
				err := ts.Exec(args[1], args[2:]...)
				got := "0"
				if err != nil {
					got = strings.TrimPrefix(err.Error(), "exit status ")
				}
				if got != args[0] {
					ts.Fatalf("exit code %s, want %s", got, args[0])
				}
			},
			// fewer N FILE: the file (or stdout, stderr) has fewer than N lines
			"fewer": func(ts *testscript.TestScript, _ bool, args []string) {
				limit, err := strconv.Atoi(args[0])
				ts.Check(err)
				if n := strings.Count(ts.ReadFile(args[1]), "\n"); n >= limit {
					ts.Fatalf("%s has %d lines, want fewer than %d", args[1], n, limit)
				}
			},
			// setrequest FILE: sets REQUEST to the first request id in the JSON of the file (or
			// stdout)
			"setrequest": func(ts *testscript.TestScript, _ bool, args []string) {
				_, rest, found := strings.Cut(ts.ReadFile(args[0]), `"request_id": "`)
				id, _, _ := strings.Cut(rest, `"`)
				if !found || id == "" {
					ts.Fatalf("no request id")
				}
				ts.Setenv("REQUEST", id)
			},
			// setjob FILE: sets JOB to the id in the file (or stdout)
			"setjob": func(ts *testscript.TestScript, _ bool, args []string) {
				ts.Setenv("JOB", strings.TrimSpace(ts.ReadFile(args[0])))
			},
		},
	})
}

func queenOf(ts *testscript.TestScript) *fakeQueen { return ts.Value(queenKey{}).(*fakeQueen) }

func check(ts *testscript.TestScript, neg bool, text, want string) {
	if strings.Contains(text, want) == neg {
		ts.Fatalf("want %q (negated: %v) in %s", want, neg, text)
	}
}
