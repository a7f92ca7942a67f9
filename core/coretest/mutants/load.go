package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// goPackage is a type-checked package.
type goPackage struct {
	module string // folder of the module
	folder string // relative to the module, with slashes
	path   string // import path
	dir    string
	fset   *token.FileSet
	files  []*source
	info   *types.Info
	types  *types.Package
	from   types.Importer
}

// source is one file of a package.
type source struct {
	name string // without its folder
	text []byte
	tree *ast.File
}

// command returns a command whose pipes close shortly after it ends.
func command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.WaitDelay = 2 * time.Second
	return cmd
}

// load reads the package's files, without tests, and type-checks them.
func load(ctx context.Context, module, folder string) (*goPackage, error) {
	cmd := command(ctx, "go", "list", "-export", "-deps", "-json=Dir,ImportPath,Export,GoFiles", "./"+folder)
	var stderr bytes.Buffer
	cmd.Dir, cmd.Stderr = module, &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, stderr.Bytes())
	}
	p := &goPackage{module: module, folder: folder, dir: filepath.Join(module, folder), fset: token.NewFileSet()}
	exports := map[string]string{}
	var names []string
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var x struct {
			Dir, ImportPath, Export string
			GoFiles                 []string
		}
		if err := d.Decode(&x); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, err
		}
		exports[x.ImportPath] = x.Export
		if x.Dir == p.dir {
			p.path, names = x.ImportPath, x.GoFiles
		}
	}
	p.from = importer.ForCompiler(p.fset, "gc", func(path string) (io.ReadCloser, error) { return os.Open(exports[path]) })
	for _, name := range names {
		text, err := os.ReadFile(filepath.Join(p.dir, name))
		if err != nil {
			return nil, err
		}
		if err := p.add(name, text); err != nil {
			return nil, err
		}
	}
	return p, p.check()
}

func (p *goPackage) add(name string, text []byte) error {
	tree, err := parser.ParseFile(p.fset, name, text, parser.ParseComments)
	if err != nil {
		return err
	}
	p.files = append(p.files, &source{name: name, text: text, tree: tree})
	return nil
}

func (p *goPackage) check() error {
	p.info = &types.Info{Types: map[ast.Expr]types.TypeAndValue{}, Uses: map[*ast.Ident]types.Object{}, Defs: map[*ast.Ident]types.Object{}}
	var err error
	p.types, err = (&types.Config{Importer: p.from}).Check(p.path, p.fset, p.trees(nil, nil), p.info)
	return err
}

// trees returns the package's files, one of them changed.
func (p *goPackage) trees(changed *source, to *ast.File) []*ast.File {
	var all []*ast.File
	for _, f := range p.files {
		if f == changed {
			all = append(all, to)
		} else {
			all = append(all, f.tree)
		}
	}
	return all
}

// compiles reports whether the package compiles with another text for one file.
func (p *goPackage) compiles(f *source, text []byte) bool {
	tree, err := parser.ParseFile(p.fset, f.name, text, 0)
	if err != nil {
		return false
	}
	_, err = (&types.Config{Importer: p.from}).Check(p.path, p.fset, p.trees(f, tree), nil)
	return err == nil
}

func (p *goPackage) offset(pos token.Pos) int { return p.fset.Position(pos).Offset }

func (p *goPackage) text(f *source, n ast.Node) string {
	return string(f.text[p.offset(n.Pos()):p.offset(n.End())])
}

// edited returns the files that are worth editing: all but generated ones.
func (p *goPackage) edited() []*source {
	var some []*source
	for _, f := range p.files {
		if !ast.IsGenerated(f.tree) && !strings.HasSuffix(f.name, ".pb.go") {
			some = append(some, f)
		}
	}
	return some
}
