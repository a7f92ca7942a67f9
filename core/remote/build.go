package remote

import (
	"archive/tar"
	"bufio"
	"cmp"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"

	"github.com/rbee-project/rbee/core"
)

// Bounds of a release archive.
const (
	maxReleaseFiles = 100
	maxReleaseBytes = 8 << 30
	maxSumsBytes    = 1 << 20
)

var (
	buildName  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9.+_-]{0,100}$`)
	hiveID     = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)
	pluginFile = regexp.MustCompile(`^rbee-(worker|catalog)-[a-z0-9][a-z0-9-]{0,40}$`)
)

// Program is this machine's rbee program.
type Program struct {
	Version    string
	Executable string // path
	PluginDir  string
	// OS and Arch are the program's platform; empty: this machine's.
	OS, Arch string
}

// build holds the files to install: the program and its plugins.
type build struct {
	version string
	name    string // version and digest of the whole build
	files   []buildFile
	bytes   int64
}

type buildFile struct {
	path   string // "rbee", "plugins/rbee-worker-cpu"
	source string // on this machine
	size   int64
	digest string // SHA-256, hex
}

// pick finds the build for a system: this machine's own, or one in a folder of releases in the
// layout of "make release". It unpacks into temp. Errors: Unsupported if there is none, Integrity
// for an archive that does not match SHA256SUMS, Invalid, Internal.
func (p Program) pick(ctx context.Context, goos, arch, from, temp string) (build, error) {
	if from != "" {
		return fromRelease(ctx, goos, arch, from, temp)
	}
	if own := [2]string{cmp.Or(p.OS, runtime.GOOS), cmp.Or(p.Arch, runtime.GOARCH)}; own != [2]string{goos, arch} {
		return build{}, core.Errorf(core.Unsupported, "that machine is %s/%s, and the rbee here is built for %s/%s", goos, arch, own[0], own[1]).Hint(
			"Name a folder with releases, as \"make release\" makes them in dist/, on the machine that installs: --from DIR.")
	}
	return fromFolder(ctx, p.Version, p.Executable, p.PluginDir)
}

func fromFolder(ctx context.Context, version, executable, plugins string) (build, error) {
	b := build{version: version}
	add := func(name, source string) error {
		f := buildFile{path: name, source: source}
		in, err := os.Open(source)
		if err != nil {
			return core.Wrap(err, core.Internal, "read the build")
		}
		defer in.Close()
		h := sha256.New()
		if f.size, err = io.Copy(h, contextReader{ctx, in}); err != nil {
			return core.Wrap(err, core.Internal, "read the build")
		}
		f.digest = hex.EncodeToString(h.Sum(nil))
		b.files, b.bytes = append(b.files, f), b.bytes+f.size
		return nil
	}
	if err := add("rbee", executable); err != nil {
		return build{}, err
	}
	entries, err := os.ReadDir(plugins)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return build{}, core.Wrap(err, core.Internal, "read the plugins")
	}
	for _, e := range entries {
		info, err := os.Stat(filepath.Join(plugins, e.Name()))
		if err != nil || !info.Mode().IsRegular() || !pluginFile.MatchString(e.Name()) {
			continue
		}
		if err := add("plugins/"+e.Name(), filepath.Join(plugins, e.Name())); err != nil {
			return build{}, err
		}
	}
	all := sha256.New()
	for _, f := range b.files { // already sorted by ReadDir
		fmt.Fprintf(all, "%s %s\n", f.digest, f.path)
	}
	b.name = b.version + "-" + hex.EncodeToString(all.Sum(nil))[:12]
	if !buildName.MatchString(b.name) {
		return build{}, core.Errorf(core.Invalid, "read the build: the version %q cannot be the name of a folder", clip(version))
	}
	return b, nil
}

// contextReader aborts a long read when its context ends.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

func fromRelease(ctx context.Context, goos, arch, dir, temp string) (build, error) {
	const what = "read the releases"
	if !filepath.IsAbs(dir) {
		return build{}, core.Errorf(core.Invalid, "%s: %q is not an absolute path", what, clip(dir)).Hint("The folder is on the machine that installs: write its whole path.")
	}
	suffix := "-" + goos + "-" + arch + ".tar.gz"
	// If dir contains pattern characters, nothing matches.
	found, err := filepath.Glob(filepath.Join(dir, "rbee-*"+suffix))
	if err != nil || len(found) != 1 {
		var names []string
		for _, f := range found {
			names = append(names, filepath.Base(f))
		}
		if len(found) > 1 {
			return build{}, core.Errorf(core.Conflict, "%s: %s has several releases for %s/%s: %s", what, dir, goos, arch, strings.Join(names, ", ")).Hint("Name a folder with one.")
		}
		return build{}, core.Errorf(core.Unsupported, "%s: %s has no release for %s/%s, rbee-VERSION%s", what, dir, goos, arch, suffix).Hint("\"make release\" makes them in dist/.")
	}
	archive := found[0]
	want, err := sumOf(filepath.Join(dir, "SHA256SUMS"), filepath.Base(archive))
	if err != nil {
		return build{}, err
	}
	in, err := os.Open(archive)
	if err != nil {
		return build{}, core.Wrap(err, core.Internal, what)
	}
	defer in.Close()
	h := sha256.New()
	if _, err := io.Copy(h, contextReader{ctx, in}); err != nil {
		return build{}, core.Wrap(err, core.Internal, what)
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != want {
		return build{}, core.Errorf(core.Integrity, "%s: %s has the digest %s, and SHA256SUMS says %s", what, filepath.Base(archive), got, want).Hint("Fetch or make the release again.")
	}
	if _, err := in.Seek(0, io.SeekStart); err != nil {
		return build{}, core.Wrap(err, core.Internal, what)
	}
	if err := unpack(contextReader{ctx, in}, temp); err != nil {
		return build{}, core.Prefix(err, what)
	}
	version := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(archive), "rbee-"), suffix)
	return fromFolder(ctx, version, filepath.Join(temp, "rbee"), filepath.Join(temp, "plugins"))
}

// sumOf returns the sum that SHA256SUMS has for a file. Errors: Integrity.
func sumOf(sums, name string) (string, error) {
	const what = "read SHA256SUMS"
	f, err := os.Open(sums)
	if err != nil {
		return "", core.WithHint(core.Wrap(err, core.Integrity, what), "It stands beside the releases; \"make release\" writes it.")
	}
	defer f.Close()
	s := bufio.NewScanner(io.LimitReader(f, maxSumsBytes))
	for s.Scan() {
		digest, file, _ := strings.Cut(s.Text(), " ")
		if strings.TrimLeft(file, " *") == name && len(digest) == sha256.Size*2 {
			return strings.ToLower(digest), nil
		}
	}
	return "", core.Errorf(core.Integrity, "%s: it does not name %s", what, name).Hint("\"make release\" writes it.")
}

// unpack extracts only the program and its plugins from a release archive. Errors: Integrity,
// TooLarge, Internal.
func unpack(r io.Reader, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return core.Wrap(err, core.Internal, "unpack")
	}
	defer root.Close()
	if err := root.Mkdir("plugins", 0o700); err != nil {
		return core.Wrap(err, core.Internal, "unpack")
	}
	z, err := gzip.NewReader(r)
	if err != nil {
		return core.Wrap(err, core.Integrity, "unpack")
	}
	left := int64(maxReleaseBytes)
	t := tar.NewReader(z)
	var got []string
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return core.Wrap(err, core.Integrity, "unpack")
		}
		_, name, _ := strings.Cut(path.Clean(h.Name), "/")
		dir, base := path.Split(name)
		if h.Typeflag != tar.TypeReg || name != "rbee" && (dir != "plugins/" || !pluginFile.MatchString(base)) {
			continue
		}
		if len(got) == maxReleaseFiles || h.Size > left {
			return core.Errorf(core.TooLarge, "unpack: the release is larger than any can be")
		}
		if slices.Contains(got, name) {
			return core.Errorf(core.Integrity, "unpack: %s is in it twice", name)
		}
		got, left = append(got, name), left-h.Size
		out, err := root.OpenFile(filepath.FromSlash(name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o700)
		if err != nil {
			return core.Wrap(err, core.Internal, "unpack")
		}
		_, err = io.Copy(out, t)
		if err = errors.Join(err, out.Close()); err != nil {
			return core.Wrap(err, core.Internal, "unpack")
		}
	}
	if !slices.Contains(got, "rbee") {
		return core.Errorf(core.Integrity, "unpack: no rbee in the archive")
	}
	return nil
}
