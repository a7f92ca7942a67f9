package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/worker"
	"github.com/rbee-project/rbee/plugins/sdk/worker/forward"
)

const (
	maxURLs       = 32
	maxNames      = 256
	maxFormats    = 16
	maxSecretFile = 64 << 10
	mostStart     = 24 * time.Hour
)

// settings is the decoded config block.
type settings struct {
	Preset       string            `json:"preset"`
	Program      string            `json:"program"`
	Command      []string          `json:"command"`
	Args         []string          `json:"args"`
	Env          map[string]string `json:"env"`
	URL          []string          `json:"url"`
	KeyFile      string            `json:"api_key_file"`
	CAFile       string            `json:"ca_file"`
	Model        string            `json:"model"`
	Models       []string          `json:"models"`
	Capabilities []string          `json:"capabilities"`
	Devices      []string          `json:"devices"`
	Formats      []string          `json:"formats"`
	HealthPath   string            `json:"health_path"`
	StartTimeout string            `json:"start_timeout"`

	preset  preset
	timeout time.Duration
	targets []forward.Target // parsed from url
}

// Schema lists the settings.
func (b *backend) Schema(context.Context) (sdk.Schema, error) {
	attr := func(name, typ, def, doc string) sdk.Attribute {
		a := sdk.Attribute{Name: name, Type: typ, Doc: doc}
		if def != "" {
			a.Default = json.RawMessage(def)
		}
		return a
	}
	known := strings.Join(slices.Sorted(maps.Keys(presets())), ", ")
	return sdk.Schema{Attributes: []sdk.Attribute{
		attr("preset", "string", `""`, "The kind of server, with its command line and its habits: "+known+". Empty: any server; command or url must be given."),
		attr("program", "string", `""`, "The server's program in place of the preset's, such as /opt/llama.cpp/llama-server. Without a slash it is looked up in PATH."),
		attr("command", "list(string)", "[]", "The server's whole command line in place of the preset's. $${model.path}, $${model.id}, $${model.name}, $${port}, $${socket}, $${context}, $${context_total}, $${slots}, $${threads} and $${device} stand for what the worker is started with."),
		attr("args", "list(string)", "[]", "Further arguments behind the command line. The same names may stand in them."),
		attr("env", "map(string)", "{}", "Environment variables of the server, with their values. The variables that env of the worker block names reach it as well."),
		attr("url", "list(string)", "[]", "Servers that run already, in place of starting one: the address before /v1, such as http://127.0.0.1:8000. Several are replicas of each other."),
		attr("api_key_file", "string", `""`, "A file with the key that the servers of url demand."),
		attr("ca_file", "string", `""`, "A file with the certificates (PEM) that the servers of url are checked by. Empty: those of the system."),
		attr("model", "string", `""`, "The model's name at the server. Empty: the name that rbee's clients use, or the only one that the server has."),
		attr("models", "list(string)", "[]", "Models that are offered to clients by these names, beside those that the servers of url list."),
		attr("capabilities", "list(string)", "[]", "What the server can do, such as chat, tools, vision. Empty: the worker asks it and tries."),
		attr("devices", "list(string)", "[]", "Devices that models are loaded on, such as cuda:0 or cpu. Empty: NVIDIA's cards, else cpu."),
		attr("formats", "list(string)", "[]", "Formats of model files, such as gguf, for which a hive may choose this type by itself. Empty: it is used only where --type names it."),
		attr("health_path", "string", `""`, "The path that is asked whether the server lives. Empty: /v1/models, or the preset's."),
		attr("start_timeout", "string", `"10m"`, "How long the server may take until it answers a request."),
	}}, nil
}

// Configure checks the settings.
func (b *backend) Configure(_ context.Context, c sdk.Config) (sdk.Diagnostics, error) {
	var s settings
	if err := json.Unmarshal(c.JSON, &s); err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	diags := s.check()
	if !diags.HasErrors() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.settings = s
	}
	return diags, nil
}

// complaints collects diagnostics.
type complaints sdk.Diagnostics

func (c *complaints) add(summary, detail string, path ...any) {
	*c = append(*c, sdk.Diagnostic{Summary: summary, Detail: detail, Path: path})
}

func (s *settings) check() sdk.Diagnostics {
	var c complaints
	known := presets()
	var ok bool
	if s.preset, ok = known[s.Preset]; !ok && s.Preset != "" {
		c.add("Unknown preset", "There are: "+strings.Join(slices.Sorted(maps.Keys(known)), ", ")+".", "preset")
	}
	var err error
	if s.timeout, err = time.ParseDuration(s.StartTimeout); err != nil || s.timeout < time.Second || s.timeout > mostStart {
		c.add("Unsuitable time", "Write a duration from 1s to 24h, such as \"10m\".", "start_timeout")
	}
	if s.HealthPath != "" && !strings.HasPrefix(s.HealthPath, "/") {
		c.add("Unsuitable path", "Write a path that begins with a slash, such as \"/health\".", "health_path")
	}
	if len(s.Command) > 0 && len(s.URL) > 0 {
		c.add("Two servers", "Give command for a server that the worker starts, or url for servers that run already.", "url")
	}
	if s.Program != "" && len(s.Command) > 0 {
		c.add("Two programs", "The program is the first element of command. Leave one of the two out.", "program")
	}
	for _, list := range []struct {
		name string
		args []string
	}{{"command", s.Command}, {"args", s.Args}} {
		for i, a := range list.args {
			if name := unknownName(a); name != "" {
				c.add("Unknown name", fmt.Sprintf("Nothing is called ${%s}. There are: %s.", name, strings.Join(names(), ", ")), list.name, i)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.Env)) {
		if !regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`).MatchString(name) || strings.HasPrefix(name, "PLUGIN_") || strings.HasPrefix(name, "RBEE_PLUGIN") {
			c.add("Unsuitable variable", fmt.Sprintf("%q cannot be set for the server.", name), "env")
		}
	}
	for i, name := range s.Capabilities {
		if !regexp.MustCompile(`^[a-z0-9_]{1,32}$`).MatchString(name) || i >= worker.MaxCapabilities {
			c.add("Unsuitable capability", "Write at most 32 names of lower-case letters, digits and _, such as \"chat\".", "capabilities", i)
		}
	}
	if len(s.Formats) > 0 && (s.adopts() || len(s.Formats) > maxFormats || slices.ContainsFunc(s.Formats, func(f string) bool { return !regexp.MustCompile(`^[a-z0-9_]{1,32}$`).MatchString(f) })) {
		c.add("Unsuitable formats", "Write names such as \"gguf\", for a server that the worker starts.", "formats")
	}
	if len(s.Models) > maxNames {
		c.add("Too many models", fmt.Sprintf("At most %d names fit.", maxNames), "models")
	}
	s.checkTargets(&c)
	return sdk.Diagnostics(c)
}

func (s *settings) checkTargets(c *complaints) {
	if len(s.URL) == 0 && (s.KeyFile != "" || s.CAFile != "") {
		c.add("Setting without url", "api_key_file and ca_file are for servers that run already. Give their addresses in url.", "url")
	}
	if len(s.URL) > maxURLs {
		c.add("Too many addresses", fmt.Sprintf("At most %d replicas fit.", maxURLs), "url")
		return
	}
	key := ""
	if s.KeyFile != "" {
		text, err := readFile(s.KeyFile)
		key = strings.TrimSpace(string(text))
		if err != nil || key == "" || strings.ContainsAny(key, "\r\n") {
			c.add("No key", fmt.Sprintf("The file must hold the key in one line (%v).", err), "api_key_file")
		}
	}
	var trust *tls.Config
	if s.CAFile != "" {
		pem, err := readFile(s.CAFile)
		pool := x509.NewCertPool()
		if err != nil || !pool.AppendCertsFromPEM(pem) {
			c.add("No certificates", fmt.Sprintf("The file must hold certificates in PEM (%v).", err), "ca_file")
		}
		trust = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	}
	for i, text := range s.URL {
		u, err := url.Parse(text)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
			c.add("Unsuitable address", "Write http://HOST:PORT or https://HOST, without credentials.", "url", i)
			continue
		}
		u.Path = strings.TrimSuffix(strings.TrimSuffix(u.Path, "/"), "/v1")
		s.targets = append(s.targets, forward.Target{URL: u, Key: key, TLS: trust})
	}
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxSecretFile))
	return bytes.TrimSpace(text), err
}

// adopts reports whether the servers are already running.
func (s *settings) adopts() bool { return len(s.URL) > 0 }

// configured reports whether there is a server to use.
func (s *settings) configured() bool {
	return s.adopts() || len(s.Command) > 0 || len(s.preset.command) > 0
}

// template returns the command line before expansion.
func (s *settings) template() []string {
	command := s.Command
	if len(command) == 0 {
		command = slices.Clone(s.preset.command)
		if s.Program != "" && len(command) > 0 {
			command[0] = s.Program
		}
	}
	return append(slices.Clone(command), s.Args...)
}

// byName reports whether the server finds its models itself, by name.
func (s *settings) byName() bool {
	return s.configured() && (s.adopts() || !slices.ContainsFunc(s.template(), func(a string) bool { return strings.Contains(a, "${model.path}") }))
}

func (s *settings) healthPath() string {
	switch {
	case s.HealthPath != "":
		return s.HealthPath
	case s.preset.health != "":
		return s.preset.health
	}
	return "/v1/models"
}
