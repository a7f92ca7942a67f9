package store_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/store"
)

func TestPutBinary(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	archive := goodArchive(t)
	o := &origin{body: archive}
	in := binarySpec(t, archive)
	var phases []string
	b, err := s.PutBinary(t.Context(), in, store.Fetch(o.fetch), func(p core.Progress) {
		if len(phases) == 0 || phases[len(phases)-1] != p.Phase {
			phases = append(phases, p.Phase)
		}
	})
	must.NoError(t, err)
	must.Eq(t, []string{"download pkg-1.tgz", "unpack pkg-1.tgz"}, phases)
	must.Eq(t, "cpu@1.0.0-llama.cpp-v0.5.0", b.ID)
	must.Eq(t, in.ID(), b.ID)
	must.Eq(t, "npm:pkg@1", b.Source)
	must.Eq(t, sha256Of([]byte("#!plugin")), b.Digest)
	must.Eq(t, int64(len("#!plugin")+len("llama")+len("ggml")+len("deep")), b.SizeBytes)
	must.Eq(t, "", b.Damaged)
	must.Eq(t, core.File{Path: "engine/libggml.so", SizeBytes: 4, Digest: sha256Of([]byte("ggml"))}, b.Files[1])
	must.Eq(t, goodFiles, files(t, s, "workers/cpu/1.0.0-llama.cpp-v0.5.0"))
	must.SliceEmpty(t, files(t, s, "partial"))
	must.NoError(t, s.VerifyBinary(t.Context(), "cpu"))

	exe, engine, err := s.BinaryPaths("cpu")
	must.NoError(t, err)
	must.Eq(t, b.Path, filepath.Dir(exe))
	content, err := os.ReadFile(filepath.Join(engine, "libllama.so"))
	must.NoError(t, err)
	must.Eq(t, "llama", string(content))
	for name, mode := range map[string]os.FileMode{exe: 0o755, filepath.Join(engine, "libggml.so"): 0o700, filepath.Join(engine, "libllama.v0.5.0.so"): 0o600, engine: 0o700 | os.ModeDir} {
		info, err := os.Stat(name)
		must.NoError(t, err)
		must.Eq(t, mode, info.Mode(), must.Sprint(name))
	}

	again, err := s.PutBinary(t.Context(), in, store.Fetch(o.fetch), nil)
	must.NoError(t, err)
	must.Eq(t, b, again)
	must.Eq(t, 1, o.fetches.Load())

	probe := store.Probe{
		Devices: []core.Device{{ID: "cpu", Kind: "cpu"}}, Problem: "no problem at all", Warnings: []string{"hot"},
		Checks: []core.Check{{Name: "abi", Passed: true, Detail: "160 bytes"}}, Schema: json.RawMessage(`{"attributes":[],"blocks":[]}`),
	}
	must.NoError(t, s.SetProbe("cpu", probe))
	got, err := s.Binary(b.ID)
	must.NoError(t, err)
	must.Eq(t, []core.Device{{ID: "cpu", Kind: "cpu"}}, got.Devices)
	must.Eq(t, "no problem at all", got.Problem)
	must.Eq(t, probe.Checks, got.Checks)
	must.Eq(t, probe.Warnings, got.Warnings)
	must.EqJSON(t, string(probe.Schema), string(got.Schema))
	must.False(t, got.ProbedAt.IsZero())
	must.Eq(t, "", got.Damaged)
	list, err := s.Binaries()
	must.NoError(t, err)
	must.SliceLen(t, 1, list)
	must.SliceEmpty(t, list[0].Files)
	must.SliceEmpty(t, list[0].Checks)
	must.SliceEmpty(t, list[0].Schema)
	must.NotNil(t, list[0].InUseBy)

	for id, hint := range map[string]string{"cpu@1": "cpu", "cpuu": "cpu", "cuda": "rbee worker binary download cuda", "../cpu": "cpu"} {
		_, err := s.Binary(id)
		must.Eq(t, core.NotFound, core.KindOf(err), must.Sprint(id))
		must.StrContains(t, core.HintOf(err), hint)
	}
}

func TestBinaryWithoutEngine(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	in := store.BinarySpec{Type: "openai", Version: "1.0.0", Executable: pluginExecutable(t, "x"), Source: "local"}
	b, err := s.PutBinary(t.Context(), in, nil, nil)
	must.NoError(t, err)
	must.Eq(t, "openai@1.0.0", b.ID)
	_, engine, err := s.BinaryPaths("openai@1.0.0")
	must.NoError(t, err)
	must.Eq(t, "", engine)
}

func TestBinarySpecRefused(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	archive := goodArchive(t)
	o := &origin{body: archive}
	tests := map[string]struct {
		change func(*store.BinarySpec)
		kind   core.Kind
		says   string
	}{
		"type is a path":        {func(b *store.BinarySpec) { b.Type = "../cpu" }, core.Invalid, "cannot be a worker type"},
		"type in capitals":      {func(b *store.BinarySpec) { b.Type = "CPU" }, core.Invalid, "cannot be a worker type"},
		"version is a path":     {func(b *store.BinarySpec) { b.Version = "1/../.." }, core.Invalid, "cannot be a version"},
		"version with dots":     {func(b *store.BinarySpec) { b.Version = "1..2" }, core.Invalid, "cannot be a version"},
		"version as revision":   {func(b *store.BinarySpec) { b.Version = "1~2" }, core.Invalid, "cannot be a version"},
		"no executable":         {func(b *store.BinarySpec) { b.Executable += "x" }, core.NotFound, "open the plugin executable"},
		"executable is folder":  {func(b *store.BinarySpec) { b.Executable = filepath.Dir(b.Executable) }, core.Invalid, "not a regular file"},
		"no digest":             {func(b *store.BinarySpec) { b.Engine.Digest = "" }, core.Integrity, "publishes no digest"},
		"absolute prefix":       {func(b *store.BinarySpec) { b.Prefix = "/package/" }, core.Invalid, "must be a relative folder"},
		"prefix upwards":        {func(b *store.BinarySpec) { b.Prefix = "package/../../" }, core.Invalid, "must be a relative folder"},
		"prefix without slash":  {func(b *store.BinarySpec) { b.Prefix = "package" }, core.Invalid, "must be a relative folder"},
		"nothing below it":      {func(b *store.BinarySpec) { b.Prefix = "package/bins/z/" }, core.Invalid, "no file below"},
		"link out of it":        {func(b *store.BinarySpec) { b.Links = map[string]string{"l": "../../x"} }, core.Invalid, "two plain names"},
		"link to an absolute":   {func(b *store.BinarySpec) { b.Links = map[string]string{"l": "/etc/passwd"} }, core.Invalid, "two plain names"},
		"link elsewhere":        {func(b *store.BinarySpec) { b.Links = map[string]string{"../l": "libggml.so"} }, core.Invalid, "two plain names"},
		"link to itself":        {func(b *store.BinarySpec) { b.Links = map[string]string{"l": "l"} }, core.Invalid, "two plain names"},
		"link to the parent":    {func(b *store.BinarySpec) { b.Links = map[string]string{"l": ".."} }, core.Invalid, "two plain names"},
		"link to nothing":       {func(b *store.BinarySpec) { b.Links = map[string]string{"l": "libnone.so"} }, core.Invalid, "no file libnone.so"},
		"link over a file":      {func(b *store.BinarySpec) { b.Links = map[string]string{"libggml.so": "libllama.v0.5.0.so"} }, core.Invalid, "has a file libggml.so already"},
		"links without engine":  {func(b *store.BinarySpec) { b.Engine = nil }, core.Invalid, "does not have"},
		"wrong digest":          {func(b *store.BinarySpec) { b.Engine.Digest = sha512Of([]byte("x")) }, core.Integrity, "digest mismatch"},
		"right digest, smaller": {func(b *store.BinarySpec) { b.Engine.SizeBytes-- }, core.Integrity, "longer than"},
		"right digest, larger":  {func(b *store.BinarySpec) { b.Engine.SizeBytes++ }, core.Integrity, "ended after"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			in := binarySpec(t, archive)
			tc.change(&in)
			_, err := s.PutBinary(t.Context(), in, store.Fetch(o.fetch), nil)
			must.ErrorContains(t, err, tc.says)
			must.Eq(t, tc.kind, core.KindOf(err))
			nothingPublished(t, s)
			must.SliceEmpty(t, stages(t, s))
		})
	}
}

// stages returns the entries of partial/ other than resumable files.
func stages(t *testing.T, s *store.Store) []string {
	t.Helper()
	var out []string
	for _, f := range files(t, s, "partial") {
		if !strings.HasPrefix(f, "sha") {
			out = append(out, f)
		}
	}
	return out
}

// Archives with the right digest that must not be unpacked.
func TestArchivesRefused(t *testing.T) {
	t.Parallel()
	const in = "package/bins/x/"
	ok := item{name: in + "libllama.v0.5.0.so", body: "llama"}
	many := make([]item, 50)
	for i := range many {
		many[i] = item{name: fmt.Sprintf("%sf%d", in, i), body: "x"}
	}
	whole := targz(t, ok, item{name: in + "b", body: strings.Repeat("random", 1000)})
	plain := func() []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		must.NoError(t, w.WriteHeader(&tar.Header{Name: in + "a", Typeflag: tar.TypeReg, Mode: 0o644}))
		must.NoError(t, w.Close())
		return b.Bytes()
	}
	crc := bytes.Clone(whole)
	crc[len(crc)-8] ^= 1
	bomb := func() []byte {
		var b bytes.Buffer
		z, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
		must.NoError(t, err)
		w := tar.NewWriter(z)
		must.NoError(t, w.WriteHeader(&tar.Header{Name: "elsewhere", Typeflag: tar.TypeReg, Mode: 0o644, Size: 64 << 20}))
		_, err = io.CopyN(w, zeros{}, 64<<20)
		must.NoError(t, errors.Join(err, w.Close(), z.Close()))
		return b.Bytes()
	}
	tests := map[string]struct {
		archive []byte
		kind    core.Kind
		says    string
	}{
		"upwards":               {targz(t, ok, item{name: in + "../../../../x"}), core.Integrity, "unsafe name"},
		"upwards, elsewhere":    {targz(t, ok, item{name: "../x"}), core.Integrity, "unsafe name"},
		"absolute":              {targz(t, ok, item{name: "/tmp/x"}), core.Integrity, "unsafe name"},
		"dot in the middle":     {targz(t, ok, item{name: in + "./x"}), core.Integrity, "unsafe name"},
		"double slash":          {targz(t, ok, item{name: in + "/x"}), core.Integrity, "unsafe name"},
		"backslash":             {targz(t, ok, item{name: in + `..\x`}), core.Integrity, "unsafe name"},
		"drive":                 {targz(t, ok, item{name: "c:x"}), core.Integrity, "unsafe name"},
		"newline":               {targz(t, ok, item{name: in + "a\nb"}), core.Integrity, "unsafe name"},
		"symlink then write":    {targz(t, item{name: in + "d", typ: tar.TypeSymlink, link: "/tmp"}, item{name: in + "d/x", body: "x"}), core.Integrity, "links and devices"},
		"symlink inside":        {targz(t, ok, item{name: in + "l", typ: tar.TypeSymlink, link: "libllama.v0.5.0.so"}), core.Integrity, "links and devices"},
		"symlink elsewhere":     {targz(t, ok, item{name: "package/l", typ: tar.TypeSymlink, link: "x"}), core.Integrity, "links and devices"},
		"hard link":             {targz(t, ok, item{name: in + "l", typ: tar.TypeLink, link: in + "libllama.v0.5.0.so"}), core.Integrity, "links and devices"},
		"hard link out":         {targz(t, ok, item{name: in + "l", typ: tar.TypeLink, link: "/etc/passwd"}), core.Integrity, "links and devices"},
		"character device":      {targz(t, ok, item{name: in + "c", typ: tar.TypeChar}), core.Integrity, "links and devices"},
		"block device":          {targz(t, ok, item{name: in + "b", typ: tar.TypeBlock}), core.Integrity, "links and devices"},
		"pipe":                  {targz(t, ok, item{name: in + "p", typ: tar.TypeFifo}), core.Integrity, "links and devices"},
		"the same twice":        {targz(t, ok, ok), core.Integrity, "twice"},
		"twice by case":         {targz(t, ok, item{name: in + "LIBLLAMA.v0.5.0.so"}), core.Integrity, "twice"},
		"file, then folder":     {targz(t, ok, item{name: in + "a", body: "x"}, item{name: in + "a", typ: tar.TypeDir}), core.Integrity, "twice"},
		"file, then below it":   {targz(t, ok, item{name: in + "a", body: "x"}, item{name: in + "a/b", body: "x"}), core.Integrity, "below a file"},
		"below it, then file":   {targz(t, ok, item{name: in + "a/b", body: "x"}, item{name: in + "A", body: "x"}), core.Integrity, "twice"},
		"very deep":             {targz(t, ok, item{name: in + strings.Repeat("d/", 20) + "x"}), core.Integrity, "nested more than"},
		"very long":             {targz(t, ok, item{name: in + strings.Repeat("d", 2000)}), core.Integrity, "name of 20"},
		"too many":              {targz(t, append(many, ok)...), core.TooLarge, "more than 40 entries"},
		"too large":             {bomb(), core.TooLarge, "unpacks to more than"},
		"not compressed":        {plain(), core.Integrity, "cannot be read as .tar.gz"},
		"cut":                   {whole[:len(whole)-20], core.Integrity, "cannot be read as .tar.gz"},
		"checksum":              {crc, core.Integrity, "cannot be read as .tar.gz"},
		"no archive at all":     {[]byte("hello"), core.Integrity, "cannot be read as .tar.gz"},
		"compressed nonsense":   {gzipped(t, "hello"), core.Integrity, "cannot be read as .tar.gz"},
		"empty archive":         {targz(t), core.Invalid, "no file below"},
		"only folders":          {targz(t, item{name: in, typ: tar.TypeDir}), core.Invalid, "no file below"},
		"prefix is a file":      {targz(t, item{name: "package/bins/x", body: "x"}), core.Invalid, "no file below"},
		"neighbour of a prefix": {targz(t, item{name: "package/bins/xx/a", body: "x"}), core.Invalid, "no file below"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			outside := t.TempDir()
			s := open(t, filepath.Join(outside, "store"))
			s.SetLimits(40, 8<<20)
			spec := binarySpec(t, tc.archive)
			_, err := s.PutBinary(t.Context(), spec, store.Fetch((&origin{body: tc.archive}).fetch), nil)
			must.ErrorContains(t, err, tc.says)
			must.Eq(t, tc.kind, core.KindOf(err))
			must.NotEq(t, "", core.HintOf(err))
			nothingPublished(t, s)
			must.SliceEmpty(t, stages(t, s))
			beside, err := os.ReadDir(outside)
			must.NoError(t, err)
			must.SliceLen(t, 1, beside)
		})
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

func gzipped(t *testing.T, s string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, err := io.WriteString(z, s)
	must.NoError(t, errors.Join(err, z.Close()))
	return b.Bytes()
}

// A running worker keeps the files that it was started from.
func TestForceKeepsTheOldFolder(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	archive := goodArchive(t)
	o := &origin{body: archive}
	in := binarySpec(t, archive)
	old, err := s.PutBinary(t.Context(), in, store.Fetch(o.fetch), nil)
	must.NoError(t, err)
	in.Force = true
	forced, err := s.PutBinary(t.Context(), in, store.Fetch(o.fetch), nil)
	must.NoError(t, err)
	must.Eq(t, old.ID, forced.ID)
	must.NotEq(t, old.Path, forced.Path)
	must.Eq(t, 2, o.fetches.Load())
	must.Eq(t, goodFiles, files(t, s, "workers/cpu/1.0.0-llama.cpp-v0.5.0"))
	list, err := s.Binaries()
	must.NoError(t, err)
	must.SliceLen(t, 1, list)
	must.Eq(t, forced.Path, list[0].Path)

	must.NoError(t, s.RemoveSuperseded(func(folder string) bool { return folder == old.Path }))
	must.DirExists(t, old.Path)
	must.NoError(t, s.RemoveSuperseded(func(string) bool { return false }))
	must.DirNotExists(t, old.Path)
	must.NoError(t, s.VerifyBinary(t.Context(), "cpu"))
	must.SliceEmpty(t, files(t, s, "partial"))
}

// A plugin rebuilt under the same version reuses the engine of the entry that it replaces.
func TestNewExecutableOldEngine(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	archive := goodArchive(t)
	o := &origin{body: archive}
	in := binarySpec(t, archive)
	first, err := s.PutBinary(t.Context(), in, store.Fetch(o.fetch), nil)
	must.NoError(t, err)
	in.Executable = pluginExecutable(t, "#!plugin, better")
	b, err := s.PutBinary(t.Context(), in, store.Fetch(o.fetch), nil)
	must.NoError(t, err)
	must.Eq(t, sha256Of([]byte("#!plugin, better")), b.Digest)
	must.Eq(t, 1, o.fetches.Load())
	must.Eq(t, goodFiles, files(t, s, "workers/cpu/"+b.Version))
	must.NoError(t, s.VerifyBinary(t.Context(), "cpu"))

	in.Executable = pluginExecutable(t, "#!plugin, best")
	for _, folder := range []string{first.Path, b.Path} {
		must.NoError(t, os.WriteFile(filepath.Join(folder, "engine", "libggml.so"), []byte("evil"), 0o600))
	}
	_, err = s.PutBinary(t.Context(), in, store.Fetch(o.fetch), nil)
	must.Eq(t, core.Integrity, core.KindOf(err), must.Sprint("a changed file of the same size is not taken over"))
}

func TestNewReleaseTakesTheEngineOver(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	archive := goodArchive(t)
	o := &origin{body: archive}
	in := binarySpec(t, archive)
	old, err := s.PutBinary(t.Context(), in, store.Fetch(o.fetch), nil)
	must.NoError(t, err)
	in.Version = "1.1.0"
	in.Executable = pluginExecutable(t, "#!plugin, next release")
	b, err := s.PutBinary(t.Context(), in, store.Fetch(o.fetch), nil)
	must.NoError(t, err)
	must.NotEq(t, old.ID, b.ID)
	must.Eq(t, 1, o.fetches.Load())
	must.NoError(t, s.VerifyBinary(t.Context(), b.ID))
	must.NoError(t, s.VerifyBinary(t.Context(), old.ID)) // the old entry is unchanged

	// Another engine makes another entry, and so does a renewal.
	other := targz(t, item{name: "package/bins/x/libllama.v0.5.0.so", body: "other"})
	in = binarySpec(t, other)
	in.Version = "1.2.0"
	_, err = s.PutBinary(t.Context(), in, store.Fetch((&origin{body: other}).fetch), nil)
	must.NoError(t, err)
	in = binarySpec(t, archive)
	in.Force = true
	_, err = s.PutBinary(t.Context(), in, store.Fetch(o.fetch), nil)
	must.NoError(t, err)
	must.Eq(t, 2, o.fetches.Load())
}

func TestDamagedBinaries(t *testing.T) {
	t.Parallel()
	archive := goodArchive(t)
	write := func(name, text string) func(string) error {
		return func(dir string) error { return os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600) }
	}
	tests := map[string]struct {
		damage func(dir string) error
		says   string
	}{
		"engine file missing": {func(d string) error { return os.Remove(filepath.Join(d, "engine/libggml.so")) }, "engine/libggml.so is missing"},
		"executable missing":  {func(d string) error { return os.Remove(filepath.Join(d, "rbee-worker-cpu")) }, "rbee-worker-cpu is missing"},
		"link missing":        {func(d string) error { return os.Remove(filepath.Join(d, "engine/libllama.so")) }, "engine/libllama.so is missing"},
		"wrong size":          {write("engine/libggml.so", "ggml and more"), "has 13 bytes and should have 4"},
		"something more":      {write("engine/libevil.so", "x"), "engine/libevil.so does not belong there"},
		"link elsewhere": {func(d string) error {
			l := filepath.Join(d, "engine/libllama.so")
			return errors.Join(os.Remove(l), os.Symlink("/etc/passwd", l))
		}, "should be a link to libllama.v0.5.0.so"},
		"file is a link": {func(d string) error {
			l := filepath.Join(d, "engine/libggml.so")
			return errors.Join(os.Remove(l), os.Symlink("libllama.so", l))
		}, "is not a regular file"},
		"manifest missing": {func(d string) error { return os.Remove(filepath.Join(d, "manifest.json")) }, "manifest.json is missing"},
		"manifest torn":    {write("manifest.json", `{"format":`), "manifest.json cannot be read"},
		"manifest with a flipped bit": {func(d string) error {
			b, err := os.ReadFile(filepath.Join(d, "manifest.json"))
			b[bytes.Index(b, []byte("installed_at"))+len(`installed_at": "2`)] ^= 1 // a different time
			return errors.Join(err, os.WriteFile(filepath.Join(d, "manifest.json"), b, 0o600))
		}, "its checksum is wrong"},
		"manifest of another":  {write("manifest.json", `{"format":1,"executable":"x","binary":{"id":"cuda@1"}}`), "not one of this worker binary"},
		"manifest with a path": {write("manifest.json", `{"format":1,"executable":"../../x","binary":{"id":"cpu@1.0.0-llama.cpp-v0.5.0"}}`), "not one of this worker binary"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := open(t, t.TempDir())
			o := &origin{body: archive}
			in := binarySpec(t, archive)
			b, err := s.PutBinary(t.Context(), in, store.Fetch(o.fetch), nil)
			must.NoError(t, err)
			must.NoError(t, tc.damage(b.Path))
			list, err := s.Binaries()
			must.NoError(t, err)
			must.SliceLen(t, 1, list)
			must.Eq(t, b.ID, list[0].ID)
			must.StrContains(t, list[0].Damaged, tc.says)
			_, _, err = s.BinaryPaths("cpu")
			must.Eq(t, core.Integrity, core.KindOf(err))
			must.StrContains(t, core.HintOf(err), "rbee worker binary download cpu")

			fixed, err := s.PutBinary(t.Context(), in, store.Fetch(o.fetch), nil)
			must.NoError(t, err)
			must.Eq(t, "", fixed.Damaged)
			must.NoError(t, s.VerifyBinary(t.Context(), "cpu"))
		})
	}
	t.Run("content", func(t *testing.T) {
		t.Parallel()
		s := open(t, t.TempDir())
		b, err := s.PutBinary(t.Context(), binarySpec(t, archive), store.Fetch((&origin{body: archive}).fetch), nil)
		must.NoError(t, err)
		must.NoError(t, write("engine/libggml.so", "evil")(b.Path))
		got, err := s.Binary("cpu")
		must.NoError(t, err)
		must.Eq(t, "", got.Damaged)
		must.Eq(t, core.Integrity, core.KindOf(s.VerifyBinary(t.Context(), "cpu")))
		must.NoError(t, s.SetProbe("cpu", store.Probe{}))
		got, err = s.Binary("cpu")
		must.NoError(t, err)
		must.StrContains(t, got.Damaged, "does not match its digest")
	})
}

// The newest sound entry stands for the type.
func TestNewestSound(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	put := func(version string) core.WorkerBinary {
		b, err := s.PutBinary(t.Context(), store.BinarySpec{Type: "cpu", Version: version, Executable: pluginExecutable(t, version), Source: "local"}, nil, nil)
		must.NoError(t, err)
		return b
	}
	put("1.10.0")
	last := put("1.9.0")
	got, err := s.Binary("cpu")
	must.NoError(t, err)
	must.Eq(t, last.ID, got.ID)
	must.NoError(t, os.Remove(filepath.Join(last.Path, "rbee-worker-cpu")))
	got, err = s.Binary("cpu")
	must.NoError(t, err)
	must.Eq(t, "cpu@1.10.0", got.ID)
}

func TestBinaryCrashPoints(t *testing.T) {
	t.Parallel()
	archive := goodArchive(t)
	for _, step := range []string{"unpack", "executable", "manifest", "publish"} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			s := open(t, t.TempDir())
			o := &origin{body: archive}
			ctx, cancel := context.WithCancel(t.Context())
			s.FailAt(func(at string) error {
				if at == step {
					cancel()
					return ctx.Err()
				}
				return nil
			})
			_, err := s.PutBinary(ctx, binarySpec(t, archive), store.Fetch(o.fetch), nil)
			must.Eq(t, core.Cancelled, core.KindOf(err))
			nothingPublished(t, s)
			must.SliceEmpty(t, stages(t, s))
			s.FailAt(nil)
			_, err = s.PutBinary(t.Context(), binarySpec(t, archive), store.Fetch(o.fetch), nil)
			must.NoError(t, err)
			must.Eq(t, 1, o.fetches.Load(), must.Sprint("what had arrived is used"))
		})
	}
}

func TestOneBinaryForAll(t *testing.T) {
	t.Parallel()
	archive := goodArchive(t)
	s := open(t, t.TempDir())
	g := newGate(archive)
	in := binarySpec(t, archive)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			_, err := s.PutBinary(t.Context(), in, store.Fetch(g.fetch), nil)
			must.NoError(t, err)
		})
	}
	<-g.reached
	close(g.let)
	wg.Wait()
	must.Eq(t, 1, g.fetches.Load())
	must.Eq(t, goodFiles, files(t, s, "workers/cpu/1.0.0-llama.cpp-v0.5.0"))
	must.DirNotExists(t, filepath.Join(s.Dir(), "workers/cpu/1.0.0-llama.cpp-v0.5.0~2"))
}

// The next Open removes what a killed process left, but not what a running one works on.
func TestLeftovers(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir)
	partial := filepath.Join(dir, "partial")
	for _, d := range []string{"stage-dead", "stage-lockless", "trash-dead"} {
		must.NoError(t, os.MkdirAll(filepath.Join(partial, d, "engine"), 0o700))
		must.NoError(t, os.WriteFile(filepath.Join(partial, d, "engine", "x"), nil, 0o600))
	}
	old := "sha256-" + strings.Repeat("0", 64)
	for _, f := range []string{"stage-dead.lock", "tmp-dead", old, "sha256-" + strings.Repeat("1", 64), "unknown"} {
		must.NoError(t, os.WriteFile(filepath.Join(partial, f), nil, 0o600))
	}
	must.NoError(t, os.Chtimes(filepath.Join(partial, old), time.Time{}, time.Now().Add(-30*24*time.Hour)))

	// A running process in the middle of its work.
	archive := goodArchive(t)
	alive := make(chan struct{})
	goOn := make(chan struct{})
	s.FailAt(func(step string) error {
		if step == "publish" {
			close(alive)
			<-goOn
		}
		return nil
	})
	done := make(chan error, 1)
	go func() {
		_, err := s.PutBinary(t.Context(), binarySpec(t, archive), store.Fetch((&origin{body: archive}).fetch), nil)
		done <- err
	}()
	<-alive
	open(t, dir)
	var left []string
	for _, f := range files(t, s, "partial") {
		top, _, _ := strings.Cut(f, "/")
		if len(left) == 0 || left[len(left)-1] != top {
			left = append(left, top)
		}
	}
	must.SliceContains(t, left, "unknown")
	must.SliceContains(t, left, "sha256-"+strings.Repeat("1", 64))
	for _, gone := range []string{"stage-dead", "stage-dead.lock", "stage-lockless", "trash-dead", "tmp-dead", old} {
		must.SliceNotContains(t, left, gone)
	}
	close(goOn)
	must.NoError(t, <-done)
	must.NoError(t, s.VerifyBinary(t.Context(), "cpu"))
}

func TestOpenUnusable(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "file")
	must.NoError(t, os.WriteFile(name, nil, 0o600))
	_, err := store.Open(name, nil)
	must.Error(t, err)
	must.StrContains(t, core.HintOf(err), "store_dir")
}

// From any archive, only harmless names get through, each once, and never more bytes than allowed.
func FuzzArchive(f *testing.F) {
	add := func(headers ...tar.Header) {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range headers {
			h.Mode = 0o644
			must.NoError(f, w.WriteHeader(&h))
			_, err := w.Write(make([]byte, h.Size))
			must.NoError(f, err)
		}
		must.NoError(f, w.Close())
		f.Add(b.Bytes())
	}
	add(tar.Header{Name: "p/a", Typeflag: tar.TypeReg, Size: 1}, tar.Header{Name: "p/b/c", Typeflag: tar.TypeReg, Size: 600})
	add(tar.Header{Name: "p/", Typeflag: tar.TypeDir}, tar.Header{Name: "p/../../../x", Typeflag: tar.TypeReg})
	add(tar.Header{Name: "p/l", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"}, tar.Header{Name: "p/l/x", Typeflag: tar.TypeReg})
	add(tar.Header{Name: "p/" + strings.Repeat("long", 60), Typeflag: tar.TypeReg})
	f.Fuzz(func(t *testing.T, raw []byte) {
		names, total, err := store.WalkArchive(t.Context(), raw, "p/", 1<<20)
		if err != nil && core.KindOf(err) == core.Internal {
			t.Fatalf("unclassified: %v", err)
		}
		seen := map[string]bool{}
		for _, n := range names {
			if !filepath.IsLocal(n) || filepath.Clean(n) != n || seen[strings.ToLower(n)] {
				t.Fatalf("%q got through", n)
			}
			seen[strings.ToLower(n)] = true
		}
		if total > 1<<20 {
			t.Fatalf("%d bytes got through", total)
		}
	})
}
