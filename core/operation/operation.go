// Package operation registers the operations: each one's name, its request's fields, the type of
// its result, who runs it, and how it can be reached. The check of a request, its JSON schema, the
// job, the GET route, the client's call and the tables of the documentation follow from the
// registration. The function that runs an operation is bound to it where it runs, by Answer or
// job.Does; the compiler checks its result type.
//
// To add an operation, see contributing/add-an-operation.md.
package operation

import (
	"cmp"
	"context"
	"encoding/json"
	"reflect"
	"slices"
	"strings"

	"github.com/rbee-project/rbee/core"
)

// Runs tells who runs an operation as a job, and how the runner is found if the request does not
// name it.
type Runs string

// Who runs an operation.
const (
	RunsOnHive       Runs = "hive"        // the hive that the request names, or else the only one
	RunsOnChosenHive Runs = "chosen_hive" // the hive that the request names, or that the scheduler chooses
	RunsOnWorker     Runs = "worker_hive" // the hive of the worker that the request names
	// RunsOnQueen is the machine of the queen that is asked. The operation's fields define what
	// "hive" means there, if anything.
	RunsOnQueen Runs = "queen"
	// RunsOverSSH is the machine of the queen that is asked, which connects to another one with the
	// SSH identity of the user who runs its agent.
	RunsOverSSH Runs = "ssh"
)

// OnQueen reports whether the queen that is asked runs the operation on its own machine.
func (r Runs) OnQueen() bool { return r == RunsOnQueen || r == RunsOverSSH }

// Text describes who runs the operation, for people.
func (r Runs) Text() string {
	switch r {
	case RunsOnHive:
		return "the hive that is named; the only one where none is"
	case RunsOnChosenHive:
		return "the hive that is named, or that the scheduler chooses"
	case RunsOnWorker:
		return "the worker's hive"
	case RunsOverSSH:
		return "the queen that is asked, over SSH"
	case RunsOnQueen:
		return "the queen that is asked"
	}
	return string(r)
}

// Spec describes one operation: what POST /v1/jobs accepts for it, and how else it can be reached.
type Spec struct {
	Name    core.Operation
	Number  int    // number of its row in contributing/operations.md; 0: not among the contract's 28
	Title   string // its name there
	Summary string // one sentence
	Runs    Runs
	Scope   core.Scope // scope that a token needs to run it as a job; empty: core.ScopeOperate
	Fields  []Field    // besides operation, request_id and, unless it runs on a queen, hive, which all accept
	// Get is the pattern of the GET route with the same result without a job, for tokens with
	// core.ScopeRead; empty: none. A wildcard has the name of a field; the other fields are query
	// parameters.
	Get string
	CLI []string // the commands for it, the main one first, without "rbee"
	// AsksHive makes the queen forward the request to the hive that it names, which answers it
	// (HiveService.Ask).
	AsksHive bool
	Slow     bool // the answer waits for other machines, such as a catalog's, or for started programs
	Registry bool // it reads the registry, with the consistency that the client asks for
	Private  bool // its request and result are private: neither is ever written to disk
	Test     string

	result any // a zero value of the result's type
	decode func(text []byte) (any, error)
}

// Of is the registration of an operation whose result is an R. Every request is a core.Request,
// whose fields mean the same in all operations that accept them.
type Of[R any] struct{ Spec }

func of[R any](s Spec) Of[R] {
	o := Of[R]{s}
	var zero R
	o.result = zero
	o.decode = func(text []byte) (any, error) {
		var v R
		err := json.Unmarshal(text, &v)
		return v, err
	}
	return o
}

// Answerer answers requests without a job: a queen, a hive, a client of the public API.
type Answerer interface {
	// Answer answers a request whose operation only reads. The value has the type of the
	// operation's result. Errors: Invalid for a bad request; Unsupported for an operation that this
	// Answerer does not answer.
	Answer(ctx context.Context, r core.Request) (any, error)
}

// Ask makes a answer the operation with the fields of r. Errors: a's.
func (o Of[R]) Ask(ctx context.Context, a Answerer, r core.Request) (R, error) {
	var none R
	r.Operation = o.Name
	v, err := a.Answer(ctx, r)
	if err != nil {
		return none, err
	}
	typed, ok := v.(R)
	if !ok {
		return none, core.Errorf(core.Internal, "the answer of %s is a %T, not a %T", o.Name, v, none)
	}
	return typed, nil
}

// Answers holds the functions that answer operations on one machine. It must not change once the
// machine serves.
type Answers map[core.Operation]func(ctx context.Context, r core.Request) (any, error)

// Answer adds the function that answers an operation on this machine.
func Answer[R any](to Answers, o Of[R], f func(ctx context.Context, r core.Request) (R, error)) {
	to[o.Name] = func(ctx context.Context, r core.Request) (any, error) {
		v, err := f(ctx, r)
		if err != nil {
			return nil, err
		}
		return v, nil
	}
}

// Unsupported returns the error of a machine that does not know the requested operation: the asking
// queen may be newer.
func Unsupported(node, version string, op core.Operation) error {
	return core.Errorf(core.Unsupported, "node %s, which runs rbee %s, does not know the operation %q", node, version, op).Hint(
		"Install the same version of rbee there as on the queens.")
}

// ResultType names the type of the result: "WorkerBinary", "[]Process".
func (s Spec) ResultType() string {
	return strings.NewReplacer("core.", "", "operation.", "").Replace(reflect.TypeOf(s.result).String())
}

// Zero returns an empty result.
func (s Spec) Zero() any { return s.result }

// AsksOnlyHive reports whether a hive answers the operation and needs no fields for it.
func (s Spec) AsksOnlyHive() bool { return s.AsksHive && len(s.Fields) == 1 }

// IsList reports whether the result is a list, which a GET route answers as {"data": […]}.
func (s Spec) IsList() bool { return reflect.TypeOf(s.result).Kind() == reflect.Slice }

// Find returns the registration of an operation. Errors: Invalid, with the most similar names.
func Find(name core.Operation) (Spec, error) {
	var names []string
	for _, s := range all {
		if s.Name == name {
			return s, nil
		}
		names = append(names, string(s.Name))
	}
	slices.Sort(names)
	if name == "" {
		return Spec{}, core.Errorf(core.Invalid, "the request names no operation").Hint("The operations are %s.", strings.Join(names, ", "))
	}
	err := core.Errorf(core.Invalid, "there is no operation %q", clip(string(name)))
	if near := core.Nearest(string(name), names); len(near) > 0 {
		return Spec{}, core.WithHint(err, "Did you mean %s? The operations are %s.", near[0], strings.Join(names, ", "))
	}
	return Spec{}, core.WithHint(err, "The operations are %s.", strings.Join(names, ", "))
}

// maxName bounds what an error repeats of an unknown operation's name, in bytes.
const maxName = 64

func clip(s string) string {
	if len(s) > maxName {
		return strings.ToValidUTF8(s[:maxName], "") + "…"
	}
	return s
}

// all is sorted by number; operations outside the contract are last.
var all = slices.SortedStableFunc(slices.Values(slices.Concat(workers(), models(), hives(), clusters(), settings(), deployments())), func(a, b Spec) int { // constant
	return cmp.Compare(uint(a.Number-1), uint(b.Number-1)) // 0 wraps around to the largest
})

// All lists every operation, in the order of the contract, contributing/operations.md.
func All() []Spec { return slices.Clone(all) }
