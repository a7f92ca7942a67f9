// Package config reads rbee's configuration: HCL or JSON files, environment and flags, merged into
// one Config that records the origin of every value.
package config

import (
	"time"

	"github.com/hashicorp/hcl/v2"
)

// The default ports of an agent.
const (
	DefaultHTTPPort   = 7833 // HTTP API
	DefaultRPCPort    = 7834 // raft, gRPC and inference data between the machines of a cluster
	DefaultGossipPort = 7835 // gossip, TCP and UDP
)

// Config is the configuration of one agent: complete, defaults filled in, paths absolute. It is not
// changed after Load.
type Config struct {
	DataDir   string // state of this machine's agent: cluster, raft, hive, run
	StoreDir  string // models and worker binaries
	PluginDir string // folder of plugin executables
	LogLevel  string // trace, debug, info, warn, error
	LogJSON   bool   // log lines as JSON
	// Name is this machine's name, shown to people and unique in a cluster; empty: the host name.
	Name string
	// Insecure allows an agent that is in no cluster to listen beyond loopback without TLS and
	// tokens.
	Insecure bool
	Bind     Bind
	HTTP     HTTP
	Queen    Queen
	Hive     Hive
	Gossip   Gossip
	TLS      TLS
	Workers  []Plugin // sorted by name
	Catalogs []Plugin // sorted by name
	Dev      bool     // everything in a temporary folder, nothing survives

	origins map[string]Origin
	files   map[string]*hcl.File
	env     Env
}

// Bind configures where the agent listens.
type Bind struct {
	// an IP address, or "localhost"; if it is empty, see ListenAddress
	Address    string
	HTTPPort   int // 0: any free port
	RPCPort    int // used only in a cluster; 0: any free port
	GossipPort int // used only in a cluster; 0: any free port
	// IP address or host name at which other machines reach this one; empty: see AdvertiseHost
	Advertise string
	// AdvertiseNAT reports that Advertise is not an address of this machine: a router forwards its
	// traffic.
	AdvertiseNAT bool
}

// Queen holds the settings of the queen role.
type Queen struct {
	Enabled bool
	// BootstrapExpect is the number of queens that must find each other before the first election:
	// 1, 3, 5, 7 or 9; 1: no wait.
	BootstrapExpect int
	// how long followers wait for a silent leader before they hold an election
	ElectionTimeout time.Duration
	CertificateTTL  time.Duration // life of the certificates that this queen signs
	// TokenGrace is how long a queen without a leader accepts tokens that it verified earlier.
	TokenGrace time.Duration
	// QueueLimit and QueueTimeout bound the requests that wait for a free slot of one model.
	QueueLimit   int
	QueueTimeout time.Duration
	// FirstTokenTimeout bounds the wait for the first byte of a worker that makes no progress;
	// TokenTimeout bounds the wait between two events of a stream.
	FirstTokenTimeout time.Duration
	TokenTimeout      time.Duration
	MaxBody           Bytes // per inference request
	MaxForm           Bytes // per form with files
	FormDisk          Bytes // for forms whose model follows their files; one token gets half of it
	BodyMemory        Bytes // for the bodies of all running requests; one token gets half of it
	// OperatorTokenFile holds the first operator's token, for a cluster whose certificates come
	// from files; empty: another queen starts the cluster.
	OperatorTokenFile string
}

// HTTP lists the callers, besides programs on this machine, that may use the API.
type HTTP struct {
	AllowOrigins []string // origins of web pages that may call the API, or "*" for all; empty: none
	// names that a request's Host may have at a loopback address, besides the machine's own
	AllowHosts []string
}

// Gossip holds the settings by which the machines of a cluster find each other.
type Gossip struct {
	// RetryJoin lists addresses or host names, with or without a port, to try until one answers.
	RetryJoin []string
	// KeyFile names a file with a gossip key in base64, for clusters whose files were created
	// elsewhere; empty: use the registry's key.
	KeyFile string
}

// TLS names the files of a node whose certificates were created elsewhere: all three, or none.
type TLS struct {
	CAFile   string // certificates of the CA, PEM
	CertFile string // this node's certificate, PEM
	KeyFile  string // its key, PEM
}

// Given reports whether the certificates come from files.
func (t TLS) Given() bool { return t.CAFile != "" }

// Hive holds the settings of the hive role.
type Hive struct {
	Enabled bool
	// Slots is the number of concurrent requests per worker, unless a spawn sets it; 1 or more.
	Slots int
	// ContextTokens is the number of positions per slot, unless a spawn sets it; 0: the model's
	// trained context, as far as memory allows.
	ContextTokens int
	// MemoryLimit bounds the main memory that all workers of the hive take together, as their
	// estimates say; 0: what the machine or its control group has.
	MemoryLimit Bytes
	// CPU threads of a worker, unless a spawn sets them; 0: the worker's choice
	Threads   int
	StopGrace time.Duration // how long running requests may continue when a worker is stopped
	// WorkerTimeout bounds how long a worker may neither report its state nor make progress before
	// it is killed.
	WorkerTimeout time.Duration
	// KeepWorkers keeps workers running when the agent ends; the next agent adopts them.
	KeepWorkers bool
	Download    Download
	Build       Build
	Engines     Engines
	// PluginUser names the user that plugins run as if the agent runs as root on Linux: a user of
	// this machine; "root"; empty: numeric ids without an account, different for each plugin.
	PluginUser string
}

// Engines lists the engines that a hive may install besides those that the plugins name.
type Engines struct {
	// Allow lists archives by digest ("sha256:<hex>"), catalog references, and prefixes of
	// references that end with ":" or "/".
	Allow []string
}

// Build configures whether and how worker plugins are built on this machine.
type Build struct {
	Enabled bool
	Go      string // path of the go command; empty: the one in PATH
	// CacheDir keeps the compiler's cache and modules between builds; empty: keeps nothing.
	CacheDir string
	// also compile C code, which lets a module run commands during the build
	CGO     bool
	Timeout time.Duration // per build
	MaxDisk Bytes         // disk space that one build may take below data_dir
}

// Download holds the settings by which a hive fetches models and engines.
type Download struct {
	Connections int   // concurrent connections to one server, for one file; 1 to 64
	RateLimit   Bytes // per second, of all transfers from servers together; 0: none
	// AllowAddresses lists addresses and CIDR prefixes that files may be fetched from although they
	// are not public.
	AllowAddresses []string
	Seed           bool  // let other hives of the cluster fetch model files from this one
	UploadLimit    Bytes // per second, for all uploads to other hives together; 0: none
}

// Bytes is a size, written "50MiB", "1.5GB" or "4096".
type Bytes int64

// Plugin is one worker or catalog block.
type Plugin struct {
	Kind       string // "worker" or "catalog"
	Label      string // worker type or catalog source
	Executable string // file name in the plugin folder: rbee-<kind>-<name>
	// names of environment variables that the plugin may see besides the default ones
	Env    []string
	Read   []string  // what else the plugin may read, absolute paths
	Write  []string  // what else it may write, absolute paths
	SHA256 string    // digest of the executable, lower-case hex; empty: not checked
	Body   hcl.Body  // content of the config block; empty if there is none
	Range  hcl.Range // the block's header; zero if no file configures the plugin

	owner *Config
}

// Source is the kind of place that provides a value.
type Source string

// The sources, weakest first.
const (
	SourceDefault Source = "default"
	SourceFile    Source = "file"
	SourceEnv     Source = "env"
	SourceFlag    Source = "flag"
)

// Origin records where a value comes from.
type Origin struct {
	Source Source
	Name   string    // name of the variable or the flag
	Range  hcl.Range // position in the file
}

// Setting is one value of a Config, for display.
type Setting struct {
	Name   string // "bind.http_port"
	Value  any    // string, []string, int, bool, time.Duration or Bytes
	Origin Origin
}

// Flag is a value from the command line. It overrides all other sources.
type Flag struct {
	Name  string // name of the setting: "bind.http_port"
	Value string // a list's elements are separated by commas
}

// Env looks up an environment variable, as os.LookupEnv does.
type Env func(name string) (string, bool)
