// Command proofs undoes defences one after the other, each in a copy of its file that replaces the
// original for the compiler, and checks that the test that should notice fails.
//
// contributing/proofs.json lists what is undone for which test.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
)

// proof describes how to see a test fail. A proof without edits explains why there are none.
type proof struct {
	Test   string `json:"test"` // "core/store.TestWrongBytes"
	Undo   []edit `json:"undo,omitempty"`
	Unseen string `json:"unseen,omitempty"`
}

// edit replaces a text that occurs exactly once in a file.
type edit struct {
	File string `json:"file"` // relative to the repository
	From string `json:"from"`
	To   string `json:"to"`
}

func main() {
	list := flag.String("list", "contributing/proofs.json", "`FILE` of the proofs")
	pattern := flag.String("run", "", "`REGEXP` of the tests")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, *list, *pattern)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, list, pattern string) error {
	wanted, err := regexp.Compile(pattern)
	if err != nil {
		return err
	}
	text, err := os.ReadFile(list)
	if err != nil {
		return err
	}
	var proofs []proof
	if err := json.Unmarshal(text, &proofs); err != nil {
		return fmt.Errorf("%s: %w", list, err)
	}
	var bad error
	for _, p := range proofs {
		if len(p.Undo) == 0 || !wanted.MatchString(p.Test) {
			continue
		}
		err := p.try(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			err = fmt.Errorf("%s: %w", p.Test, err)
			fmt.Println(err)
		} else {
			fmt.Printf("%s fails\n", p.Test)
		}
		bad = errors.Join(bad, err)
	}
	return bad
}

// try returns nil if the test fails as expected.
func (p proof) try(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "proof")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	overlay, err := p.overlay(dir)
	if err != nil {
		return err
	}
	i := strings.LastIndex(p.Test, ".")
	pkg, name := "./"+p.Test[:i], p.Test[i+1:]
	// Through the environment, because tests build programs themselves.
	env := append(os.Environ(), "GOFLAGS="+strings.TrimSpace(os.Getenv("GOFLAGS")+" -overlay="+overlay))
	goTool := func(args ...string) ([]byte, error) {
		cmd := exec.CommandContext(ctx, "go", args...)
		cmd.Env = env
		return cmd.CombinedOutput()
	}
	if out, err := goTool("vet", pkg); err != nil {
		return fmt.Errorf("what is undone does not compile: %s", bytes.TrimSpace(out))
	}
	if bin := os.Getenv("RBEE_TEST_BIN"); bin != "" && strings.HasSuffix(pkg, "/e2e") { // another binary is under test
		own := filepath.Join(dir, "bin")
		if err := os.CopyFS(own, os.DirFS(bin)); err != nil {
			return err
		}
		if out, err := goTool("build", "-o", filepath.Join(own, "rbee"), "./cmd/rbee"); err != nil {
			return fmt.Errorf("build rbee: %s", bytes.TrimSpace(out))
		}
		env = append(env, "RBEE_TEST_BIN="+own)
	}
	out, err := goTool("test", "-count=1", "-run", "^"+name+"$", pkg)
	switch {
	case err == nil:
		return errors.New("it passes although what it is to notice is undone")
	case !bytes.Contains(out, []byte("--- FAIL: "+name)) && !bytes.Contains(out, []byte("panic:")):
		return fmt.Errorf("it did not run to its end: %s", bytes.TrimSpace(out))
	}
	return nil
}

// overlay writes the changed copies, and the file that lists them for the go command.
func (p proof) overlay(dir string) (string, error) {
	replace := map[string]string{}
	for i, e := range p.Undo {
		original, err := filepath.Abs(filepath.FromSlash(e.File))
		if err != nil {
			return "", err
		}
		from := original
		if changed, ok := replace[original]; ok {
			from = changed
		}
		text, err := os.ReadFile(from)
		if err != nil {
			return "", err
		}
		if n := strings.Count(string(text), e.From); n != 1 {
			return "", fmt.Errorf("%s has %q %d times, not once", e.File, e.From, n)
		}
		copied := filepath.Join(dir, fmt.Sprintf("%d.go", i))
		if err := os.WriteFile(copied, []byte(strings.Replace(string(text), e.From, e.To, 1)), 0o600); err != nil {
			return "", err
		}
		replace[original] = copied
	}
	b, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "overlay.json")
	return path, os.WriteFile(path, b, 0o600)
}
