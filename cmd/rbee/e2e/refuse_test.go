package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha512"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest"
)

// refused checks the output of a refused command: one clear error, what to do next, no panic.
func refused(t testing.TB, r result, code int, says ...string) {
	t.Helper()
	must.Eq(t, code, r.code, must.Sprint(r.stderr))
	for _, s := range says {
		must.StrContains(t, r.stderr, s)
	}
	must.StrNotContains(t, r.stderr, "panic")
	must.StrNotContains(t, r.stderr, "goroutine ")
}

// tinyModel returns the project's own model.
func tinyModel(t testing.TB) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", "..", "plugins", "catalog-builtin", "rbee-tiny.gguf"))
	must.NoError(t, err)
	return b
}

func TestBadModels(t *testing.T) {
	t.Parallel()
	good := tinyModel(t)
	lying := bytes.Clone(good)
	binary.LittleEndian.PutUint64(lying[8:], 1<<60) // tensors that do not exist
	dir := t.TempDir()
	for name, data := range map[string][]byte{
		"truncated": good[:len(good)/2],
		"lying":     lying,
		"text":      []byte("this is no model"),
		"empty":     nil,
	} {
		must.NoError(t, os.WriteFile(filepath.Join(dir, name+".gguf"), data, 0o600))
	}
	store := t.TempDir()
	a := startAgent(t, agentOptions{store: store, config: oneMachine + fileCatalog(dir)})
	for _, c := range []struct {
		name, model string
		says        []string
	}{
		{"truncated", "file:" + filepath.Join(dir, "truncated.gguf"), []string{"beyond the end"}},
		{"lying header", "file:" + filepath.Join(dir, "lying.gguf"), []string{"tensors"}},
		{"not a model", "file:" + filepath.Join(dir, "text.gguf"), []string{"GGUF"}},
		{"empty", "file:" + filepath.Join(dir, "empty.gguf"), nil},
		{"missing file", "file:" + filepath.Join(dir, "nothing.gguf"), []string{"nothing.gguf"}},
		{"outside the allowed folders", "file:/etc/passwd", []string{"paths"}},
		{"unknown name", "rbee-tyni", []string{"rbee-tiny"}},
		{"unknown source", "nowhere:thing", []string{"nowhere"}},
		{"path in a name", "../../etc/passwd", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			refused(t, a.rbee("infer", "--model", c.model, "--prompt", "hello"), 1, c.says...)
			refused(t, a.rbee("model", "download", c.model), 1, c.says...)
		})
	}
	must.Len(t, 0, jsonOf[[]core.Model](a, "model", "list"))
	blobs, err := os.ReadDir(filepath.Join(store, "blobs"))
	if err == nil {
		must.Len(t, 0, blobs)
	}
}

// fakeRegistry is an npm registry that serves one archive for every package, with the digest of
// digestOf, which may be another one.
func fakeRegistry(t testing.TB, archive []byte, digestOf []byte) *httptest.Server {
	t.Helper()
	sum := sha512.Sum512(digestOf)
	var server *httptest.Server
	server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, ".tgz") {
			_, _ = w.Write(archive)
			return
		}
		parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
		name := strings.ReplaceAll(strings.Join(parts[:min(2, len(parts))], "/"), "%2f", "/")
		version := func(v string) map[string]any {
			return map[string]any{
				"name": name, "version": v,
				"dist": map[string]any{"tarball": server.URL + "/engine.tgz", "integrity": "sha512-" + base64.StdEncoding.EncodeToString(sum[:])},
			}
		}
		versions := map[string]any{}
		for _, v := range []string{"3.21.1", "3.22.1"} {
			versions[v] = version(v)
		}
		doc := any(map[string]any{"name": name, "versions": versions, "dist-tags": map[string]string{"latest": "3.22.1"}})
		if len(parts) == 3 { // a specific version was requested
			doc = version(parts[2])
		}
		_ = json.NewEncoder(w).Encode(doc)
	}))
	t.Cleanup(server.Close)
	return server
}

// archiveOf returns a package archive with the given entries.
func archiveOf(t testing.TB, entries ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for _, h := range entries {
		must.NoError(t, w.WriteHeader(&h))
		_, err := w.Write(make([]byte, h.Size))
		must.NoError(t, err)
	}
	must.NoError(t, w.Close())
	must.NoError(t, z.Close())
	return b.Bytes()
}

func TestBadEngines(t *testing.T) {
	t.Parallel()
	file := func(name string) tar.Header {
		return tar.Header{Name: name, Mode: 0o644, Size: 100, Typeflag: tar.TypeReg}
	}
	sound := archiveOf(t, file("package/bins/linux-x64/libllama.v0.5.0.so"))
	tampered := slices.Concat(sound[:len(sound)-9], []byte{sound[len(sound)-9] ^ 1}, sound[len(sound)-8:])
	slip := archiveOf(t, file("package/bins/linux-x64/../../../../evil"))
	link := archiveOf(t, tar.Header{Name: "package/bins/linux-x64/libllama.v0.5.0.so", Linkname: "/etc/passwd", Typeflag: tar.TypeSymlink})
	for _, c := range []struct {
		name              string
		archive, digestOf []byte
		says              string
	}{
		{"tampered archive", tampered, sound, "digest"},
		{"wrong digest in the registry", sound, []byte("something else"), "digest"},
		{"truncated archive", sound[:len(sound)/2], sound, ""},
		{"archive that leaves its folder", slip, slip, ""},
		{"archive with a link", link, link, ""},
		{"no archive at all", []byte("hello"), []byte("hello"), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			store := t.TempDir()
			registry := fakeRegistry(t, c.archive, c.digestOf)
			a := startAgent(t, agentOptions{store: store, env: []string{"NPM_CONFIG_REGISTRY=" + registry.URL}})
			refused(t, a.rbee("infer", "--model", "rbee-tiny", "--prompt", "hello"), 1, c.says)
			must.Len(t, 0, jsonOf[[]core.WorkerBinary](a, "worker", "binary", "list"))
			must.Len(t, 0, jsonOf[[]core.Process](a, "worker", "process", "list"))
			coretest.Eventually(t, patience, func() error { // with the next report of the hive
				for _, p := range jsonOf[core.Status](a, "status").Problems {
					if strings.Contains(p, "worker type cpu cannot be installed") && strings.Contains(p, c.says) {
						return nil
					}
				}
				return errors.New("the status does not name the engine")
			})
			entries, err := os.ReadDir(filepath.Join(store, "workers", "cpu"))
			if err == nil {
				must.Len(t, 0, entries)
			}
		})
	}
}

func TestMissingDevices(t *testing.T) {
	t.Parallel()
	if _, err := os.Stat("/dev/nvidia0"); err == nil {
		t.Skip("this machine has an NVIDIA device")
	}
	a := startAgent(t, agentOptions{})
	refused(t, a.rbee("worker", "spawn", "--model", "rbee-tiny", "--type", "cuda"), 1, "NVIDIA")
	refused(t, a.rbee("worker", "spawn", "--model", "rbee-tiny", "--type", "metal"), 1, "Apple")
	refused(t, a.rbee("worker", "spawn", "--model", "rbee-tiny", "--device", "cuda:0"), 1, "cuda")
	must.Len(t, 0, jsonOf[[]core.Worker](a, "ps")) // no silent fallback to the CPU
}

// stray runs the binary without any agent.
func stray(t testing.TB, env []string, args ...string) result {
	t.Helper()
	cmd := exec.CommandContext(patient(t), filepath.Join(binDir(t), "rbee"), args...)
	home := t.TempDir()
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "TMPDIR=" + home}, env...)
	return run(t, cmd)
}

func TestBadConfigurations(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, config string
		says         []string
		start        bool // only the agent's start detects it: it depends on whether the machine is in a cluster
	}{
		{"unknown block", "quen {\n  enabled = true\n}\n", []string{"rbee.hcl line 1", "queen"}, false},
		{"wrong type", "bind {\n  http_port = \"many\"\n}\n", []string{"rbee.hcl line 2", "number"}, false},
		{"error found by a plugin", "worker \"cpu\" {\n  config {\n    threads = -3\n  }\n}\n", []string{"rbee.hcl line 3", "cpu"}, false},
		{"unknown setting of a plugin", "worker \"cpu\" {\n  config {\n    thread = 2\n  }\n}\n", []string{"rbee.hcl line 3", "threads"}, false},
		{"unknown plugin", "worker \"cpuu\" {}\n", []string{"rbee.hcl line 1", "cpu"}, false},
		{"not HCL", "bind {\n", []string{"rbee.hcl line"}, false},
		{"open to the world", "bind {\n  address = \"0.0.0.0\"\n}\n", []string{"insecure"}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			file := filepath.Join(dir, "rbee.hcl")
			must.NoError(t, os.WriteFile(file, []byte(c.config+oneMachine), 0o600))
			if !c.start {
				refused(t, stray(t, nil, "config", "validate", "-config", file), 1, c.says...)
			}
			refused(t, stray(t, nil, "agent", "-config", file, "-data-dir", filepath.Join(shortDir(t), "data"), "-http-port", "0"), 1, c.says...)
		})
	}
}

func TestTakenPortAndDataFolder(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must.NoError(t, err)
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	must.NoError(t, err)
	refused(t, stray(t, nil, "agent", "-dev", "-http-port", port), 1, port, "-http-port")

	a := startAgent(t, agentOptions{})
	refused(t, stray(t, nil, "agent", "-dev", "-data-dir", a.dir, "-http-port", "0"), 1, a.dir)
}

func TestUsageErrors(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		args []string
		says string
	}{
		{[]string{"infre"}, "infer"},
		{[]string{"infer", "--model"}, "--model"},
		{[]string{"infer", "--mode", "x"}, "--model"},
		{[]string{"worker", "process", "get", "abc"}, "abc"},
		{[]string{"status", "--format", "xml"}, "json"},
	} {
		t.Run(strings.Join(c.args, " "), func(t *testing.T) {
			t.Parallel()
			refused(t, stray(t, []string{"RBEE_ADDR=127.0.0.1:1"}, c.args...), 2, c.says)
		})
	}
	refused(t, stray(t, []string{"RBEE_ADDR=127.0.0.1:1"}, "ps"), 1, "rbee agent")
}

func TestProcessDeleteTouchesNoStranger(t *testing.T) {
	t.Parallel()
	a := startAgent(t, agentOptions{})
	a.spawn()
	// This unrelated process records any signal it gets.
	stranger := exec.Command("sh", "-c", "trap 'echo signalled; exit 9' TERM INT HUP; echo up; while :; do sleep 0.05; done")
	var out lockedBuffer
	stranger.Stdout = &out
	must.NoError(t, stranger.Start())
	defer func() {
		_ = stranger.Process.Kill()
		_ = stranger.Wait()
	}()
	for _, pid := range []int{stranger.Process.Pid, a.cmd.Process.Pid, 1, os.Getpid(), 4194304} {
		r := a.rbee("worker", "process", "delete", fmt.Sprint(pid), "--hive", "localhost", "--yes")
		refused(t, r, 1, fmt.Sprint(pid))
	}
	must.NoError(t, stranger.Process.Signal(syscall.Signal(0)))
	must.StrNotContains(t, out.String(), "signalled")
	must.Len(t, 1, jsonOf[[]core.Process](a, "worker", "process", "list"))
}
