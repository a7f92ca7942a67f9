// Command mutants measures how much of a package its tests check: it makes many small edits of the
// package, one at a time, and prints those that no test notices.
//
// All edits go into one test binary. Each is a copy of its function, and the function calls the
// copy whose number is in a file. Every test is first run alone, to see which edits it reaches and
// how long it takes; then, for each edit, the tests that reach it run, the fastest first, until one
// fails. Edits outside functions (constants, tables) get a separate test binary each.
//
// An edit may do anything, such as kill every process that it can see or remove files: each run has
// its own process namespace, in which the module's folder is read-only.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	pkg := flag.String("pkg", "", "`FOLDER` of the package below the module, such as core/sched")
	n := flag.Int("n", 20, "edits for each seed; 0: all that there are")
	seeds := flag.String("seed", "1", "`NUMBERS` that choose the edits, with commas between")
	kind := flag.String("kind", "any", "any, or promises: fsyncs, modes, releases, deadlines, digests, scopes")
	tests := flag.String("tests", "", "`FOLDERS` whose tests are to notice, with commas between; none: the package's own")
	before := flag.String("before", "", "`FILE` with what an earlier run printed with -v: what was noticed then is not tried again")
	list := flag.Bool("list", false, "print the edits, and try none")
	verbose := flag.Bool("v", false, "print the noticed edits too, with the test that noticed")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, options{*pkg, *kind, *seeds, *tests, *before, *n, *list, *verbose})
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// options hold the flags.
type options struct {
	folder, kind, seeds, tests, before string
	n                                  int
	list, verbose                      bool
}

func run(ctx context.Context, o options) error {
	module, err := os.Getwd()
	if err != nil {
		return err
	}
	if _, err := os.Stat("go.mod"); err != nil {
		return fmt.Errorf("run this in the module's folder: %w", err)
	}
	var find finder
	switch o.kind {
	case "any":
		find = anyEdits
	case "promises":
		find = promises
	default:
		return fmt.Errorf("unknown -kind %q", o.kind)
	}
	known, err := noticedIn(o.before)
	if err != nil {
		return err
	}
	temp, err := os.MkdirTemp("", "mutants")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temp)
	if err := os.Chmod(temp, 0o755); err != nil { //nolint:gosec // tests run as other users, too
		return err
	}
	box, err := newSandbox(ctx, module, o.folder)
	if err != nil {
		return err
	}
	p, err := load(ctx, module, o.folder)
	if err != nil {
		return err
	}
	rounds, edits, err := p.rounds(find, o.seeds, o.n)
	if err != nil {
		return err
	}
	if o.list {
		for _, e := range edits {
			fmt.Println(e)
		}
		return nil
	}
	t := &trial{pkg: p, box: box, temp: temp, edits: edits, known: known, folders: []string{o.folder}}
	if o.tests != "" {
		t.folders = strings.Split(o.tests, ",")
	}
	if err := t.prepare(ctx); err != nil {
		return err
	}
	for _, f := range t.failing {
		fmt.Printf("fails without an edit, and is left out: %s\n", f)
	}
	err = t.run(ctx, func(e *edit, r result) {
		switch {
		case !r.noticed:
			fmt.Printf("survived  %s  (%s)\n", e, r.by)
		case o.verbose:
			fmt.Printf("noticed   %s  (%s)\n", e, r.by)
		}
	})
	for _, r := range rounds { // even after an interrupt, for the edits tried so far
		fmt.Printf("%s: %s (%s, seed %d, of %d candidates)\n", o.folder, count(r.edits, t.results), o.kind, r.seed, r.candidates)
	}
	return err
}

// count formats how many of some edits were noticed.
func count(edits []*edit, results map[*edit]result) string {
	tried, noticed, late := 0, 0, 0
	for _, e := range edits {
		r, ok := results[e]
		if ok {
			tried++
		}
		if r.noticed {
			noticed++
		}
		if r.late {
			late++
		}
	}
	text := fmt.Sprintf("%d of %d edits were noticed", noticed, tried)
	if late > 0 {
		text += fmt.Sprintf(", %d by tests that took too long", late)
	}
	if tried < len(edits) {
		text += fmt.Sprintf(", %d were not tried", len(edits)-tried)
	}
	return text
}

// noticedIn returns the edits that an earlier run printed as noticed.
func noticedIn(file string) (map[string]bool, error) {
	if file == "" {
		return nil, nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	known := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "noticed   "); ok {
			if i := strings.LastIndex(rest, "  ("); i >= 0 {
				known[rest[:i]] = true
			}
		}
	}
	return known, nil
}

// round is the edits that one seed chose.
type round struct {
	seed       int64
	edits      []*edit
	candidates int
}

// rounds chooses edits for each seed. An edit that several seeds choose is tried once.
func (p *goPackage) rounds(find finder, seeds string, n int) ([]round, []*edit, error) {
	var rounds []round
	var all []*edit
	for s := range strings.SplitSeq(seeds, ",") {
		seed, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return nil, nil, fmt.Errorf("seed %q: %w", s, err)
		}
		found := p.candidates(find)
		r := round{seed: seed, candidates: len(found)}
		for _, e := range p.choose(found, seed, n) {
			i := slices.IndexFunc(all, func(a *edit) bool { return a.same(e) })
			if i < 0 {
				all = append(all, e)
				i = len(all) - 1
			}
			r.edits = append(r.edits, all[i])
		}
		rounds = append(rounds, r)
	}
	if len(all) == 0 {
		return nil, nil, errors.New("nothing to edit")
	}
	return rounds, all, nil
}

// needNamespace lists the packages whose edits may kill other processes of the machine.
var needNamespace = []string{"core/hostinfo", "core/pluginhost", "core/hive"}

// sandbox is the environment in which tests run.
type sandbox struct {
	module   string
	isolated bool
}

// newSandbox fails if the package's edits need a namespace and none is available.
func newSandbox(ctx context.Context, module, folder string) (sandbox, error) {
	b := sandbox{module: module, isolated: true}
	_, err := b.exec(ctx, time.Minute, ".", "true")
	if err == nil {
		return b, nil
	}
	if slices.Contains(needNamespace, folder) {
		return b, fmt.Errorf("edits of %s may kill every process of this machine, and a namespace of their own is refused: %w", folder, err)
	}
	fmt.Println("without namespaces: edits run as any test does")
	b.isolated = false
	return b, nil
}

// enter makes the module read-only and runs the rest of its arguments in a folder of it. The shell
// remains the first process of the namespace, where it collects orphans.
const enter = `mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && cd "$1/$2" && shift 2 && { "$@"; exit $?; }`

var errLate = errors.New("took too long")

// exec runs a program in a folder of the module and returns its output.
func (b sandbox) exec(ctx context.Context, limit time.Duration, folder string, args ...string) (string, error) {
	if b.isolated {
		args = append([]string{
			"unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child",
			"sh", "-c", enter, "sh", b.module, folder,
		}, args...)
	}
	limited, stop := context.WithTimeout(ctx, limit)
	defer stop()
	cmd := command(limited, args...)
	cmd.Dir = filepath.Join(b.module, folder)
	out, err := cmd.CombinedOutput()
	if limited.Err() != nil && ctx.Err() == nil {
		err = errLate
	}
	return string(out), err
}
