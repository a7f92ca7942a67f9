package remote

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/disk"
	"github.com/rbee-project/rbee/core/ssh"
)

const maxHosts = 10000

// Hosts is the list of machines with hives, or on which hives can be installed: a file on the
// machine whose SSH identity reaches them. It is safe for concurrent use.
type Hosts struct {
	file string

	mu   sync.Mutex // guards below
	list []core.HiveHost
}

type hostsFile struct {
	Hosts []core.HiveHost `json:"hosts"`
}

func openHosts(file string) (*Hosts, error) {
	h := &Hosts{file: file}
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return h, nil
	}
	var f hostsFile
	if err == nil {
		err = json.Unmarshal(b, &f)
	}
	if err != nil {
		return nil, core.WithHint(core.Wrap(err, core.Internal, "read the list of hosts"), "Correct or remove %s: \"rbee hive import-ssh\" makes it anew.", file)
	}
	for _, x := range f.Hosts {
		if (ssh.Target{Host: x.Name, HostName: x.HostName, User: x.User, Port: x.Port}).Check() == nil {
			h.list = append(h.list, x)
		}
	}
	return h, nil
}

// List returns all hosts, sorted by name.
func (h *Hosts) List() []core.HiveHost {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.list)
}

// Find returns the host with a name.
func (h *Hosts) Find(name string) (core.HiveHost, bool) {
	return h.first(func(x core.HiveHost) bool { return x.Name == name })
}

func (h *Hosts) ofHive(id string) (core.HiveHost, bool) {
	return h.first(func(x core.HiveHost) bool { return x.Hive == id && id != "" })
}

func (h *Hosts) first(want func(core.HiveHost) bool) (core.HiveHost, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if i := slices.IndexFunc(h.list, want); i >= 0 {
		return h.list[i], true
	}
	return core.HiveHost{}, false
}

// change changes the list in memory and on disk, or neither.
func (h *Hosts) change(f func([]core.HiveHost) []core.HiveHost) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	list := f(slices.Clone(h.list))
	if len(list) > maxHosts {
		return core.Errorf(core.TooLarge, "remember the hosts: there would be %d hosts, at most %d are kept", len(list), maxHosts)
	}
	slices.SortFunc(list, func(a, b core.HiveHost) int { return strings.Compare(a.Name, b.Name) })
	b, err := json.MarshalIndent(hostsFile{list}, "", "  ")
	if err == nil {
		err = publish(h.file, append(b, '\n'))
	}
	if err != nil {
		return core.WithHint(core.Wrap(err, core.Internal, "remember the hosts"), "The data folder of the agent must be writable.")
	}
	h.list = list
	return nil
}

func publish(file string, data []byte) error {
	if err := disk.MakeFolder(filepath.Dir(file)); err != nil {
		return err
	}
	return disk.Replace(file, data, 0o600)
}

// put adds a host or replaces the one with its name.
func (h *Hosts) put(x core.HiveHost) error {
	return h.change(func(list []core.HiveHost) []core.HiveHost {
		list = slices.DeleteFunc(list, func(y core.HiveHost) bool { return y.Name == x.Name })
		return append(list, x)
	})
}

// uninstalled records that a host no longer has a hive, and drops the host unless it was imported.
func (h *Hosts) uninstalled(name string) error {
	return h.change(func(list []core.HiveHost) []core.HiveHost {
		list = slices.DeleteFunc(list, func(x core.HiveHost) bool { return x.Name == name && !x.Imported })
		for i := range list {
			if list[i].Name == name {
				list[i].Hive = ""
			}
		}
		return list
	})
}

// Import runs hive_import_ssh: it adds the hosts of an OpenSSH configuration on this machine.
// Existing hosts do not change.
func (r *Remote) Import(_ context.Context, req core.Request, run Run) (core.ImportResult, error) {
	file := req.File
	switch rest, home := strings.CutPrefix(file, "~/"); {
	case file == "":
		file = filepath.Join(r.o.Home, ".ssh", "config")
	case home:
		file = filepath.Join(r.o.Home, rest)
	case !filepath.IsAbs(file):
		return core.ImportResult{}, core.Errorf(core.Invalid, "the file is not an absolute path").Hint("It is on the machine of the queen that is asked: write its whole path.")
	}
	if info, err := os.Stat(file); err != nil || !info.Mode().IsRegular() {
		return core.ImportResult{}, core.Errorf(core.NotFound, "read the SSH configuration: there is no file %s on %s that can be read", clip(file), r.o.Name).Hint("Name the file: rbee hive import-ssh FILE. It is read on the machine of the queen.")
	}
	c, err := ssh.ReadConfig(file, r.o.Home)
	if err != nil {
		return core.ImportResult{}, err
	}
	res := core.ImportResult{File: file, Added: []core.HiveHost{}, Kept: []string{}, Problems: []string{}}
	for _, p := range c.Problems {
		res.Problems = append(res.Problems, p.String())
		run.Log("%s", p.String())
	}
	err = r.hosts.change(func(list []core.HiveHost) []core.HiveHost {
		for _, name := range c.Hosts() {
			if slices.ContainsFunc(list, func(x core.HiveHost) bool { return x.Name == name }) {
				res.Kept = append(res.Kept, name)
				continue
			}
			x := core.HiveHost{Name: name, HostName: strings.ReplaceAll(c.Lookup(name, "hostname"), "%h", name), User: c.Lookup(name, "user"), Imported: true}
			x.Port, _ = strconv.Atoi(c.Lookup(name, "port")) // validated when it was read
			if files := c.LookupAll(name, "identityfile"); len(files) > 0 {
				x.IdentityFile = files[0]
			}
			if err := (ssh.Target{Host: x.Name, HostName: x.HostName, User: x.User, Port: x.Port}).Check(); err != nil {
				res.Problems = append(res.Problems, "host "+name+": "+err.Error())
				continue
			}
			list, res.Added = append(list, x), append(res.Added, x)
		}
		return list
	})
	return res, err
}
