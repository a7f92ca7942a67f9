package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	ownLimit = 2 * time.Minute // limit of a test run alone, without an edit
	slack    = 10 * time.Second
	// A group of tests may take this many times as long as its tests take alone; beyond that it
	// counts as failed.
	patience = 4
	// The first group consists of the fastest tests that take this long together; each further
	// group takes growth times as long.
	firstGroup = 500 * time.Millisecond
	growth     = 4
)

// trial tries edits of one package.
type trial struct {
	pkg     *goPackage
	box     sandbox
	temp    string
	folders []string // folders whose tests run
	edits   []*edit
	known   map[string]bool // texts of edits that an earlier run noticed
	failing []string
	results map[*edit]result

	now, hits string // paths of files
	tests     []test
	alone     []int
}

// test is a test of the package.
type test struct {
	folder  string
	name    string
	took    time.Duration
	reaches map[int]bool // edits, by number
}

// result reports whether a test noticed an edit, and which one.
type result struct {
	noticed bool
	late    bool
	by      string
}

// number returns the number of an edit in the binary: 0 means no edit.
func (t *trial) number(i int) int { return i + 1 }

// prepare compiles the tests with all edits, and runs each test once without any.
func (t *trial) prepare(ctx context.Context) error {
	t.results = map[*edit]result{}
	t.now, t.hits = filepath.Join(t.temp, "now"), filepath.Join(t.temp, "hits")
	replace := map[string]string{}
	for i, f := range t.pkg.files {
		edits := map[int]*edit{}
		for j, e := range t.edits {
			if e.file == f {
				edits[t.number(j)] = e
			}
		}
		if len(edits) == 0 {
			continue
		}
		text, alone := t.pkg.weave(f, edits)
		t.alone = append(t.alone, alone...)
		if err := t.replace(replace, fmt.Sprintf("f%d.go", i), f.name, text); err != nil {
			return err
		}
	}
	code := fmt.Sprintf(switchFile, t.pkg.types.Name(), len(t.edits)+1, t.now)
	if err := t.replace(replace, "switch.go", "mutants_switch.go", []byte(code)); err != nil {
		return err
	}
	for _, folder := range t.folders {
		if err := t.compile(ctx, folder, t.binary("all", folder), replace); err != nil {
			return err
		}
		if err := t.record(ctx, folder); err != nil {
			return err
		}
	}
	slices.SortStableFunc(t.tests, func(a, b test) int { return cmp.Compare(a.took, b.took) })
	return nil
}

// binary returns the path of a folder's test binary, with all edits or with one.
func (t *trial) binary(edits, folder string) string {
	return filepath.Join(t.temp, edits+"-"+strings.ReplaceAll(folder, "/", "-")+".test")
}

// replace writes the text of one of the package's files for the compiler.
func (t *trial) replace(overlay map[string]string, as, name string, text []byte) error {
	path := filepath.Join(t.temp, as)
	overlay[filepath.Join(t.pkg.dir, name)] = path
	return os.WriteFile(path, text, 0o600)
}

func (t *trial) compile(ctx context.Context, folder, binary string, replace map[string]string) error {
	b, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return err
	}
	overlay := binary + ".json"
	if err := os.WriteFile(overlay, b, 0o600); err != nil {
		return err
	}
	cmd := command(ctx, "go", "test", "-c", "-vet=off", "-overlay", overlay, "-o", binary, "./"+folder)
	cmd.Dir = t.pkg.module
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("compile the tests of %s: %w\n%s", folder, err, out)
	}
	return nil
}

// record measures which edits each test of a folder reaches and how long it takes.
func (t *trial) record(ctx context.Context, folder string) error {
	binary := t.binary("all", folder)
	if err := os.WriteFile(t.now, []byte("0"), 0o644); err != nil { //nolint:gosec // tests run as other users, too
		return err
	}
	out, err := t.box.exec(ctx, ownLimit, folder, binary, "-test.list", "^(Test|Fuzz|Example)")
	if err != nil {
		return fmt.Errorf("list the tests: %w\n%s", err, out)
	}
	if err := os.WriteFile(t.now, []byte("0 "+t.hits), 0o644); err != nil { //nolint:gosec // as above
		return err
	}
	for name := range strings.FieldsSeq(out) {
		if err := os.WriteFile(t.hits, nil, 0o666); err != nil { //nolint:gosec // as above
			return err
		}
		if err := os.Chmod(t.hits, 0o666); err != nil { //nolint:gosec // as above
			return err
		}
		start := time.Now()
		out, err := t.box.exec(ctx, ownLimit, folder, binary, "-test.run", "^"+name+"$")
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			t.failing = append(t.failing, fmt.Sprintf("%s (%v): %s", name, err, failed(out)))
			continue
		}
		x := test{folder: folder, name: name, took: time.Since(start), reaches: map[int]bool{}}
		hits, err := os.ReadFile(t.hits)
		if err != nil {
			return err
		}
		for n := range strings.FieldsSeq(string(hits)) {
			if n, err := strconv.Atoi(n); err == nil {
				x.reaches[n] = true
			}
		}
		t.tests = append(t.tests, x)
	}
	return nil
}

// run tries each edit, those with slow tests last, and calls tell for each.
func (t *trial) run(ctx context.Context, tell func(*edit, result)) error {
	type job struct {
		number int
		tests  []test
		took   time.Duration
	}
	var jobs []job
	for i := range t.edits {
		n := t.number(i)
		j := job{number: n}
		for _, x := range t.tests {
			if slices.Contains(t.alone, n) || x.reaches[n] {
				j.tests, j.took = append(j.tests, x), j.took+x.took
			}
		}
		jobs = append(jobs, j)
	}
	slices.SortStableFunc(jobs, func(a, b job) int { return cmp.Compare(a.took, b.took) })
	for _, j := range jobs {
		e := t.edits[j.number-1]
		r, err := t.try(ctx, j.number, e, j.tests)
		if err != nil {
			return err
		}
		t.results[e] = r
		tell(e, r)
	}
	return nil
}

// try runs the tests with one edit until one fails.
func (t *trial) try(ctx context.Context, number int, e *edit, tests []test) (result, error) {
	if t.known[e.String()] {
		return result{noticed: true, by: "before"}, nil
	}
	binaries := "all"
	if slices.Contains(t.alone, number) {
		binaries = "one"
		replace := map[string]string{}
		if err := t.replace(replace, "one.go", e.file.name, e.apply()); err != nil {
			return result{}, err
		}
		for _, folder := range t.folders {
			if err := t.compile(ctx, folder, t.binary(binaries, folder), replace); err != nil {
				return result{}, err
			}
		}
	}
	if err := os.WriteFile(t.now, []byte(strconv.Itoa(number)), 0o644); err != nil { //nolint:gosec // tests run as other users, too
		return result{}, err
	}
	for _, folder := range t.folders {
		for _, g := range groups(slices.DeleteFunc(slices.Clone(tests), func(x test) bool { return x.folder != folder })) {
			args := []string{t.binary(binaries, folder), "-test.failfast", "-test.run", g.pattern}
			out, err := t.box.exec(ctx, g.limit, folder, args...)
			if errors.Is(err, errLate) && ctx.Err() == nil { // maybe the machine was busy: retry once
				out, err = t.box.exec(ctx, g.limit, folder, args...)
			}
			switch {
			case ctx.Err() != nil:
				return result{}, ctx.Err()
			case errors.Is(err, errLate):
				return result{noticed: true, late: true, by: "took too long"}, nil
			case err != nil:
				return result{noticed: true, by: failed(out)}, nil //nolint:nilerr // that it fails is what was asked
			}
		}
	}
	if len(tests) == 0 {
		return result{by: "no test reaches it"}, nil
	}
	return result{by: fmt.Sprintf("%d tests reach it", len(tests))}, nil
}

var failLine = regexp.MustCompile(`(?m)^--- FAIL: (\S+)|^(panic: .*|fatal error: .*)`)

// failed returns the first test that failed, or what ended the program, from its output.
func failed(out string) string {
	if m := failLine.FindStringSubmatch(out); m != nil {
		return short(m[1]+m[2], 80)
	}
	return "no test failed by itself"
}

// group is a set of tests that run in one process.
type group struct {
	pattern string
	limit   time.Duration
}

// groups divides tests, the fastest first, into groups that take longer and longer.
func groups(tests []test) []group {
	var all []group
	var names []string
	var sum time.Duration
	until := firstGroup
	end := func() {
		if len(names) > 0 {
			all = append(all, group{pattern: "^(" + strings.Join(names, "|") + ")$", limit: slack + patience*sum})
		}
		names, sum, until = nil, 0, until*growth
	}
	for _, x := range tests {
		if sum+x.took > until {
			end()
		}
		names, sum = append(names, x.name), sum+x.took
	}
	end()
	return all
}
