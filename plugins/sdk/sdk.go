// Package sdk is the contract of every rbee plugin: its identity, its configuration schema, and the
// checks of its configuration.
//
// A plugin author imports this package and one of sdk/worker or sdk/catalog, implements the Go
// interface there and calls its Serve in main. Nothing here depends on hcl, raft or memberlist.
package sdk

import (
	"context"
	"encoding/json"
)

// ProtocolVersion is the newest plugin protocol version that this SDK and a host of the same
// release support, and OldestProtocolVersion the oldest. Adding a field keeps the number; a change
// that breaks older plugins increases it. See contributing/plugin-protocol.md.
const (
	ProtocolVersion       = 1
	OldestProtocolVersion = 1
)

// ProtocolVersions returns the plugin protocol versions that this SDK and a host of the same
// release support, oldest first.
func ProtocolVersions() []int {
	var list []int
	for v := OldestProtocolVersion; v <= ProtocolVersion; v++ {
		list = append(list, v)
	}
	return list
}

// Kind is the kind of a plugin. The executable of a plugin is named rbee-<kind>-<name>.
type Kind string

// The kinds of plugin that a host knows.
const (
	KindWorker  Kind = "worker"
	KindCatalog Kind = "catalog"
)

// Plugin is what every plugin implements, whatever its kind. Methods may be called concurrently.
type Plugin interface {
	// Info describes the plugin. It needs no configuration, is cheap, and returns the same result
	// for the life of the process.
	Info(ctx context.Context) (Info, error)
	// Schema returns the schema of the plugin's config block. It returns the same result for the
	// life of the process.
	Schema(ctx context.Context) (Schema, error)
	// Configure checks and applies the configuration. It is called once, before anything but Info
	// and Schema. Diagnostics report the user's mistakes and are shown at the line of the
	// configuration file; an error means that the plugin itself failed.
	Configure(ctx context.Context, config Config) (Diagnostics, error)
}

// Info describes a plugin.
type Info struct {
	Name         string   // the part of the executable's name after rbee-<kind>-, such as "cpu"
	Kind         Kind     //
	Version      string   // the plugin's version, without a leading v
	Summary      string   // one line for people
	Capabilities []string // additive features, sorted; see the constants of the kind's package
	// Engine is the engine library set that the plugin needs beside its executable on this
	// operating system and architecture. The zero value means none.
	Engine Engine
	// OtherEngines lists other releases of Engine that the plugin works with, best first, for users
	// who need a particular version.
	OtherEngines []Engine
	// Formats lists the formats of model files that a worker type serves, such as FormatGGUF. The
	// host never chooses a type without formats; it uses one only by name.
	Formats []string
	// Architectures lists the model architectures that a worker type serves, as the model's file
	// names them, such as "llama". Empty: every architecture of its formats.
	Architectures []string
}

// FormatGGUF is the format of llama.cpp's models.
const FormatGGUF = "gguf"

// Engine names a library set that a catalog source provides and the host unpacks beside the plugin.
type Engine struct {
	Name    string // such as "llama.cpp"; empty: no engine needed
	Version string // such as "v0.5.0"
	Ref     string // catalog reference, such as "npm:@node-llama-cpp/linux-x64@3.22.1"
	// Prefix selects the files of the archive that are below this folder, and is removed from their
	// paths. It ends with a slash.
	Prefix string
	// Links maps a link's name to the file that it points to, both in the unpacked folder.
	Links map[string]string
}

// Config is the argument of Configure.
type Config struct {
	// JSON is the decoded config block: an object whose keys are those of the Schema, with defaults
	// filled in.
	JSON json.RawMessage
	// EngineDir is the folder of the unpacked Engine; empty if the plugin needs none or it is not
	// unpacked yet.
	EngineDir string
	// AllowAddresses lists address prefixes (CIDR, such as "10.0.0.0/8") that may be dialled
	// although they are not public. All other addresses of this machine and its networks are
	// refused: see package origin. Empty: none.
	AllowAddresses []string
}

// Schema describes a config block: its attributes and nested blocks.
type Schema struct {
	Attributes []Attribute
	Blocks     []Block
}

// Attribute is one name = value of a config block.
type Attribute struct {
	Name string
	// an HCL type expression: "string", "number", "bool", "list(string)", "map(string)", …
	Type      string
	Required  bool            // a required attribute has no default
	Default   json.RawMessage // nil: null if the attribute is omitted
	Sensitive bool            // never shown or logged
	Doc       string          // one or two sentences for people
}

// Block is a nested block of a config block.
type Block struct {
	Name     string
	Schema   Schema
	Repeated bool // decoded as a list of objects; otherwise as one object or null
	Required bool
	Doc      string
}

// Severity is how serious a Diagnostic is.
type Severity int

// The severities. The zero value is Error, so that a forgotten severity is never milder than meant.
const (
	Error Severity = iota
	Warning
)

// Diagnostic is one error or warning about the configuration.
type Diagnostic struct {
	Severity Severity
	Summary  string // short, capitalised, no full stop: "No such device"
	Detail   string // full sentences that say what to do
	// Path leads to the value: string steps are attribute and block names, int steps are list
	// indexes.
	Path []any
}

// Diagnostics is a list of diagnostics. Empty means that the configuration is accepted.
type Diagnostics []Diagnostic

// HasErrors reports whether any of the diagnostics is an error.
func (d Diagnostics) HasErrors() bool {
	for _, x := range d {
		if x.Severity == Error {
			return true
		}
	}
	return false
}
