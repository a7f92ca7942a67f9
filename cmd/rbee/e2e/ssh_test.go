package e2e

import (
	"archive/tar"
	"compress/gzip"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/crypto/ssh"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest"
)

// sshd is a private OpenSSH server whose users have another home folder: to SSH, it is another
// machine.
type sshd struct {
	home        string
	port        int
	fingerprint string
	log         *lockedBuffer
}

// startSSHD starts the server for a key. It is Debian's package openssh-server; the test is skipped
// without it.
func startSSHD(t *testing.T, key ssh.PublicKey) *sshd {
	t.Helper()
	program := "/usr/sbin/sshd"
	if _, err := os.Stat(program); err != nil {
		t.Skip("there is no OpenSSH server here: the Debian package openssh-server has it")
	}
	if os.Getuid() == 0 { // its first process confines itself to this folder, which a service would have created
		must.NoError(t, os.MkdirAll("/run/sshd", 0o755))
	}
	s := &sshd{home: filepath.Join(shortDir(t), "home"), log: &lockedBuffer{}}
	must.NoError(t, os.Mkdir(s.home, 0o700))
	dir := t.TempDir()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	must.NoError(t, err)
	block, err := ssh.MarshalPrivateKey(private, "")
	must.NoError(t, err)
	signer, err := ssh.NewSignerFromSigner(private)
	must.NoError(t, err)
	s.fingerprint = ssh.FingerprintSHA256(signer.PublicKey())
	must.NoError(t, os.WriteFile(filepath.Join(dir, "host"), pem.EncodeToMemory(block), 0o600))
	must.NoError(t, os.WriteFile(filepath.Join(dir, "authorized_keys"), ssh.MarshalAuthorizedKey(key), 0o600))
	for range 5 { // another process may take the port first
		l, err := net.Listen("tcp", "127.0.0.1:0")
		must.NoError(t, err)
		s.port = l.Addr().(*net.TCPAddr).Port
		l.Close()
		config := fmt.Sprintf(`Port %d
ListenAddress 127.0.0.1
HostKey %s/host
AuthorizedKeysFile %s/authorized_keys
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
PidFile none
PrintMotd no
SetEnv HOME=%s XDG_RUNTIME_DIR=%s/none
`, s.port, dir, dir, s.home, dir)
		file := filepath.Join(dir, "sshd_config")
		must.NoError(t, os.WriteFile(file, []byte(config), 0o600))
		cmd := exec.Command(program, "-D", "-e", "-f", file)
		cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
		cmd.Stdout, cmd.Stderr = s.log, s.log
		cmd.WaitDelay = time.Second
		must.NoError(t, cmd.Start())
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = cmd.Wait()
		}()
		up := false
		coretest.Eventually(t, patience, func() error {
			select {
			case <-done:
				return nil
			default:
			}
			conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", s.port))
			if err == nil {
				conn.Close()
				up = true
			}
			return err
		})
		if up {
			t.Cleanup(func() {
				if t.Failed() {
					t.Logf("the SSH server's log:\n%s", s.log)
				}
				_ = cmd.Process.Kill()
				<-done
			})
			return s
		}
	}
	t.Fatalf("the SSH server does not start:\n%s", s.log)
	return nil
}

// identity writes a user's key into a home folder.
func identity(t *testing.T, home string) ssh.PublicKey {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	must.NoError(t, err)
	block, err := ssh.MarshalPrivateKey(private, "")
	must.NoError(t, err)
	signer, err := ssh.NewSignerFromSigner(private)
	must.NoError(t, err)
	must.NoError(t, os.MkdirAll(filepath.Join(home, ".ssh"), 0o700))
	must.NoError(t, os.WriteFile(filepath.Join(home, ".ssh", "id_ed25519"), pem.EncodeToMemory(block), 0o600))
	return signer.PublicKey()
}

// tree lists what is below a folder.
func tree(t *testing.T, dir string) []string {
	t.Helper()
	list := []string{}
	must.NoError(t, filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		list = append(list, p)
		return err
	}))
	return list
}

// releaseOf creates a folder with a release of another build: the built program plus one byte,
// which loaders ignore.
func releaseOf(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	name := fmt.Sprintf("rbee-9.9.9-%s-%s", runtime.GOOS, runtime.GOARCH)
	f, err := os.Create(filepath.Join(dir, name+".tar.gz"))
	must.NoError(t, err)
	h := sha256.New()
	z, err := gzip.NewWriterLevel(io.MultiWriter(f, h), gzip.NoCompression)
	must.NoError(t, err)
	w := tar.NewWriter(z)
	files, err := filepath.Glob(filepath.Join(binDir(t), "plugins", "rbee-*"))
	must.NoError(t, err)
	for _, file := range append(files, filepath.Join(binDir(t), "rbee")) {
		b, err := os.ReadFile(file)
		must.NoError(t, err)
		inside := name + "/plugins/" + filepath.Base(file)
		if filepath.Base(file) == "rbee" {
			inside, b = name+"/rbee", append(b, 0)
		}
		must.NoError(t, w.WriteHeader(&tar.Header{Name: inside, Mode: 0o755, Size: int64(len(b))}))
		_, err = w.Write(b)
		must.NoError(t, err)
	}
	must.NoError(t, errors.Join(w.Close(), z.Close(), f.Close()))
	must.NoError(t, os.WriteFile(filepath.Join(dir, "SHA256SUMS"), fmt.Appendf(nil, "%x  %s.tar.gz\n", h.Sum(nil), name), 0o600))
	return dir
}

// resultOf decodes what a command with --format json printed.
func resultOf[T any](n *node, args ...string) T {
	n.c.t.Helper()
	r := n.run(append(args, "--format", "json")...)
	must.Eq(n.c.t, 0, r.code, must.Sprintf("rbee %s\n%s%s\n%s", strings.Join(args, " "), r.stdout, r.stderr, n.log))
	var v T
	must.NoError(n.c.t, json.Unmarshal([]byte(r.stdout), &v), must.Sprint(r.stdout))
	return v
}

// A hive is installed over SSH on another machine, answers, is upgraded under a running worker,
// stopped, started and removed without a trace.
func TestHivesOverSSH(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	q := c.add("queen-1", true, false)
	home := filepath.Dir(q.file) // HOME of the queen's agent
	s := startSSHD(t, identity(t, home))
	must.NoError(t, os.WriteFile(filepath.Join(home, ".ssh", "config"), fmt.Appendf(nil, "Host box\n  HostName 127.0.0.1\n  Port %d\n", s.port), 0o600))
	t.Cleanup(func() { endAgentsOf(t, s.home) })
	c.join(1, 0)

	imported := resultOf[core.ImportResult](q, "hive", "import-ssh")
	must.Len(t, 1, imported.Added)
	must.SliceContainsFunc(t, resultOf[[]core.Hive](q, "hive", "list"), "box", func(h core.Hive, name string) bool {
		return h.Name == name && h.Status == core.HiveConfigured
	})

	// An unknown host key is refused with its fingerprint, until it is accepted.
	r := q.run("hive", "install", "box", "--service", "none")
	must.Eq(t, 1, r.code)
	must.StrContains(t, r.stderr, s.fingerprint)
	r = q.run("hive", "ssh-test", "box", "--format", "json")
	must.Eq(t, 1, r.code)
	must.StrContains(t, r.stdout, `"failed": "host key"`)
	test := resultOf[core.SSHTest](q, "hive", "ssh-test", "box", "--host-key", s.fingerprint)
	must.True(t, test.OK, must.Sprint(test))
	must.Eq(t, runtime.GOOS+"/"+runtime.GOARCH, test.OS+"/"+test.Arch)
	before := tree(t, s.home)

	ip := c.net + ".77"
	first := resultOf[core.InstallResult](q, "hive", "install", "box", "--service", "none", "--bind", ip)
	must.Eq(t, "box", first.Name)
	must.False(t, first.Already)
	must.SliceNotEmpty(t, first.Devices)
	must.StrHasPrefix(t, s.home, first.Path)
	again := resultOf[core.InstallResult](q, "hive", "install", "box", "--service", "none")
	must.True(t, again.Already)
	// The join token is in no file, here or there.
	for _, dir := range []string{s.home, q.dir} {
		for _, file := range tree(t, dir) {
			if info, err := os.Stat(file); err == nil && info.Mode().IsRegular() && info.Size() < 1<<20 { // the program contains the prefix of tokens
				b, err := os.ReadFile(file)
				must.NoError(t, err)
				must.False(t, strings.Contains(string(b), "rbeejoin_"), must.Sprint(file))
			}
		}
	}

	stopped := resultOf[core.InstallResult](q, "hive", "stop", "box", "--yes")
	must.False(t, stopped.Already)
	must.True(t, resultOf[core.InstallResult](q, "hive", "stop", "box", "--yes").Already)
	// The engine is installed already, so that the test needs no network.
	must.NoError(t, os.CopyFS(filepath.Join(s.home, ".cache", "rbee"), os.DirFS(sharedStore(t))))
	must.False(t, resultOf[core.InstallResult](q, "hive", "start", "box").Already)
	must.True(t, resultOf[core.InstallResult](q, "hive", "start", "box").Already)

	spawned := resultOf[core.SpawnResult](q, "worker", "spawn", "--model", "rbee-tiny", "--hive", "box", "--slots", "2")
	infer := func() {
		t.Helper()
		r := q.run("infer", "--model", "rbee-tiny", "--prompt", "What is a queen?", "--max-tokens", "8")
		must.Eq(t, 0, r.code, must.Sprint(r.stderr))
		must.NotEq(t, "", strings.TrimSpace(r.stdout))
	}
	infer()

	// Another build takes over the worker, which keeps running.
	up := resultOf[core.InstallResult](q, "hive", "install", "box", "--service", "none", "--from", releaseOf(t))
	must.Eq(t, first.Build, up.Before)
	must.StrHasPrefix(t, "9.9.9-", up.Build)
	must.Eq(t, first.Hive, up.Hive)
	processes := resultOf[[]core.Process](q, "worker", "process", "list", "--hive", "box")
	must.Len(t, 1, processes)
	must.Eq(t, spawned.PID, processes[0].PID)
	infer()

	removed := resultOf[core.UninstallResult](q, "hive", "uninstall", "box", "--yes")
	must.Eq(t, first.Hive, removed.Hive)
	must.Eq(t, before, tree(t, s.home))
	must.False(t, runs(spawned.PID), must.Sprint("its worker must end with it"))
	hives := resultOf[[]core.Hive](q, "hive", "list")
	must.False(t, slices.ContainsFunc(hives, func(h core.Hive) bool { return h.ID == first.Hive }))
	must.Len(t, 1, hives, must.Sprint("the imported host stays in the list"))
	must.True(t, resultOf[core.UninstallResult](q, "hive", "uninstall", "box", "--yes").Already)
	must.StrNotContains(t, q.log.String(), "rbeejoin_")

	// Another key in the host's place is never accepted.
	own := filepath.Join(q.dir, "ssh", "known_hosts")
	_, private, err := ed25519.GenerateKey(rand.Reader)
	must.NoError(t, err)
	other, err := ssh.NewSignerFromSigner(private)
	must.NoError(t, err)
	must.NoError(t, os.WriteFile(own, fmt.Appendf(nil, "[127.0.0.1]:%d %s", s.port, ssh.MarshalAuthorizedKey(other.PublicKey())), 0o600))
	r = q.run("hive", "install", "box", "--service", "none", "--accept-new")
	must.Eq(t, 1, r.code)
	must.StrContains(t, r.stderr, "the host key has changed")
}

// runs reports whether a process runs. A zombie does not.
func runs(pid int) bool {
	out, err := exec.Command("ps", "-o", "stat=", "-p", fmt.Sprint(pid)).Output()
	return err == nil && !strings.HasPrefix(strings.TrimSpace(string(out)), "Z")
}

// endAgentsOf ends what a failed installation left running.
func endAgentsOf(t *testing.T, home string) {
	t.Helper()
	if b, err := os.ReadFile(filepath.Join(home, ".local/lib/rbee/agent.log")); err == nil && t.Failed() {
		t.Logf("the installed hive's log:\n%s", b)
	}
	out, _ := exec.Command("ps", "-e", "-o", "pid=", "-o", "args=").Output()
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, home) {
			var pid int
			if _, err := fmt.Sscan(line, &pid); err == nil && pid > 1 {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	}
}
