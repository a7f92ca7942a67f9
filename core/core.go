// Package core holds rbee's nouns (hives, workers, models, devices, jobs) and error kinds. It
// imports only the standard library.
//
// The JSON form of these types is the public HTTP API's: sizes are bytes, times RFC 3339, empty
// lists [] and never null.
package core

import (
	"encoding/json"
	"time"
)

// LocalHive is the name that refers to the hive on the machine of the queen that is asked.
const LocalHive = "localhost"

// Device is hardware of a hive that models can be loaded on.
type Device struct {
	ID         string `json:"id"`   // unique on the hive: "cpu", "cuda:0"
	Kind       string `json:"kind"` // "cpu", "cuda", "metal", "vulkan", …
	Name       string `json:"name"`
	TotalBytes int64  `json:"total_bytes"` // 0: unknown
	FreeBytes  int64  `json:"free_bytes"`
	Problem    string `json:"problem,omitempty"` // why it cannot be used
}

// HiveStatus is the availability of a hive.
type HiveStatus string

// The hive statuses.
const (
	HiveReady   HiveStatus = "ready"
	HiveSuspect HiveStatus = "suspect" // silent, not yet given up
	HiveDown    HiveStatus = "down"
	// HiveConfigured is a machine without a hive that one can be installed on, as the queen that is
	// asked remembers it. It has a name and no id.
	HiveConfigured HiveStatus = "configured"
)

// Hive is the agent of one machine that runs workers, as the registry records it.
type Hive struct {
	ID          string     `json:"id"` // unique in the cluster, kept on the hive's disk
	Name        string     `json:"name"`
	Version     string     `json:"version"`
	OS          string     `json:"os"`
	Arch        string     `json:"arch"`
	Incarnation uint64     `json:"incarnation"` // increases at every start of the agent; an older one never overwrites a newer one
	Status      HiveStatus `json:"status"`
	Devices     []Device   `json:"devices"`
	WorkerTypes []string   `json:"worker_types"` // worker types that the hive can run, installed or not
	// Unconfined is the reason that the hive's plugins are not confined as well as they could be;
	// empty if they are, or if the hive has not reported it.
	Unconfined  string    `json:"unconfined,omitempty"`
	Problems    []string  `json:"problems,omitempty"` // worker types that cannot be installed or used, and how to fix it; at most 16
	Probing     bool      `json:"probing,omitempty"`  // still probing its worker types: Devices and WorkerTypes may be incomplete
	LastBeat    time.Time `json:"last_beat,omitzero"`
	RPCAddress  string    `json:"rpc_address,omitempty"` // host:port; empty: only reachable in its own process
	Draining    bool      `json:"draining"`              // gets no new workers, and its workers no new requests
	CreateIndex uint64    `json:"create_index"`          // raft index of its first appearance
	ModifyIndex uint64    `json:"modify_index"`          // raft index of its last change
}

// MaxHiveProblems bounds the length of Hive.Problems.
const MaxHiveProblems = 16

// WorkerState is the stage of a worker's life.
type WorkerState string

// The worker states.
const (
	WorkerLoading  WorkerState = "loading"  // the process runs, but the model is not ready
	WorkerReady    WorkerState = "ready"    // takes requests
	WorkerRetiring WorkerState = "retiring" // takes no new requests; running ones finish, then it stops
	WorkerFailed   WorkerState = "failed"   // could not load; about to be removed
)

// Worker is an active worker, an entry of the replicated registry.
type Worker struct {
	ID            string       `json:"id"`
	Hive          string       `json:"hive"` // Hive.ID
	Type          string       `json:"type"` // "cpu", "cuda", …
	Version       string       `json:"version"`
	Model         string       `json:"model"` // Model.ID: the name that clients use
	ModelDigest   string       `json:"model_digest"`
	Device        string       `json:"device"`
	Slots         int          `json:"slots"`          // concurrent requests
	ContextTokens int          `json:"context_tokens"` // positions per slot
	State         WorkerState  `json:"state"`
	Nonce         string       `json:"nonce"`                  // random per start: distinguishes this worker from a later one with the same id
	Capabilities  Capabilities `json:"capabilities,omitempty"` // what it can do with its model; absent: not reported, it may be asked for anything
	Replica       string       `json:"replica,omitempty"`      // label of the replica of a deployment, see Replica.Label; empty: none
	CreateIndex   uint64       `json:"create_index"`
	ModifyIndex   uint64       `json:"modify_index"`
	Load          Load         `json:"load"` // never stored in raft; zero until the first report
}

// Load is how busy a worker is, as its hive last reported it.
type Load struct {
	At              time.Time `json:"at,omitzero"` // time of the report
	Active          int       `json:"active"`
	Queued          int       `json:"queued"`
	TokensPerSecond float64   `json:"tokens_per_second"`
	TokensTotal     int64     `json:"tokens_total"`
	KVUsedTokens    int       `json:"kv_used_tokens"`
	DraftTokens     int64     `json:"draft_tokens,omitempty"`    // guessed since the worker began
	AcceptedTokens  int64     `json:"accepted_tokens,omitempty"` // guessed tokens that the model accepted
	Silence         Duration  `json:"silence"`                   // time since the worker last reported its state, at the time of the report
	Stalled         Duration  `json:"stalled"`                   // time since a worker with requests last made progress, likewise; 0: just now, or not reported
	Unloads         bool      `json:"unloads,omitempty"`         // it unloads keep_alive after its last request; otherwise only on request, or for another worker
	KeepAlive       Duration  `json:"keep_alive,omitempty"`      // how long it stays without requests; 0: if it unloads, at once
	Idle            Duration  `json:"idle,omitempty"`            // time since its last request, at the time of the report; 0: it has requests, or not reported
	Pinned          bool      `json:"pinned,omitempty"`          // it neither unloads by itself nor makes room for another worker
	MemoryBytes     int64     `json:"memory_bytes,omitempty"`    // memory on its device, as its hive counts it; 0: unknown
	LoadTook        Duration  `json:"load_took,omitempty"`       // duration of its start; 0: unknown
}

// UnloadsAt returns when the worker unloads if it gets no further requests, or false if it does not
// unload by itself.
func (l Load) UnloadsAt() (time.Time, bool) {
	return l.At.Add(time.Duration(max(l.KeepAlive-l.Idle, 0))), l.Unloads
}

// Process is one worker process of a hive, as the operating system reports it.
type Process struct {
	PID         int         `json:"pid"`
	WorkerID    string      `json:"worker_id"`
	Type        string      `json:"type"`
	Model       string      `json:"model"`
	Device      string      `json:"device"`
	State       WorkerState `json:"state"`
	MemoryBytes int64       `json:"memory_bytes"` // resident set, the process and its children
	CPUPercent  float64     `json:"cpu_percent"`  // percent of one core, the process and its children, over the life of the process
	StartedAt   time.Time   `json:"started_at"`
	CommandLine []string    `json:"command_line,omitempty"` // only for a single process, like all below
	Children    []int       `json:"children,omitempty"`
	Sockets     []string    `json:"sockets,omitempty"`
	Log         []string    `json:"log,omitempty"` // the last lines, oldest first
}

// File is one file of a model or a worker binary.
type File struct {
	Path      string `json:"path"` // slash-separated, relative
	SizeBytes int64  `json:"size_bytes"`
	Digest    string `json:"digest"` // "sha256:<hex>"
}

// WorkerBinary is an installed worker type: plugin executable, engine libraries and manifest in the
// hive's worker catalog.
type WorkerBinary struct {
	ID            string    `json:"id"` // "<type>@<version>"
	Type          string    `json:"type"`
	Version       string    `json:"version"` // the plugin's; with an engine "<plugin version>-<engine name>-<engine version>"
	EngineName    string    `json:"engine_name,omitempty"`
	EngineVersion string    `json:"engine_version,omitempty"`
	Source        string    `json:"source"` // catalog reference of the engine, or "local"
	Digest        string    `json:"digest"` // digest of the executable
	SizeBytes     int64     `json:"size_bytes"`
	Path          string    `json:"path"`
	InstalledAt   time.Time `json:"installed_at"`
	Devices       []Device  `json:"devices"`           // what the probe found
	Problem       string    `json:"problem,omitempty"` // why the probe considers it unusable here
	Damaged       string    `json:"damaged,omitempty"` // why the entry cannot be used
	InUseBy       []string  `json:"in_use_by"`         // worker ids
	ProbedAt      time.Time `json:"probed_at,omitzero"`
	Checks        []Check   `json:"checks,omitempty"`   // what the probe verified; only for a single binary, like all below
	Warnings      []string  `json:"warnings,omitempty"` // warnings of the probe
	Files         []File    `json:"files,omitempty"`
	// Schema is the plugin's Schema as JSON, passed on unchanged; nil if unknown.
	Schema json.RawMessage `json:"schema,omitempty"`
}

// Check is one thing that a probe verified, such as that the engine has the layouts that the plugin
// was built for.
type Check struct {
	Name   string `json:"name"`
	Passed bool   `json:"passed"`
	Detail string `json:"detail"`
}

// Schema describes what the config block of a plugin may contain.
type Schema struct {
	Attributes []SchemaAttribute `json:"attributes"`
	Blocks     []SchemaBlock     `json:"blocks"`
}

// SchemaAttribute is an attribute of a config block, name = value.
type SchemaAttribute struct {
	Name      string          `json:"name"`
	Type      string          `json:"type"` // an HCL type expression, such as list(string)
	Required  bool            `json:"required"`
	Default   json.RawMessage `json:"default,omitempty"`
	Sensitive bool            `json:"sensitive"`
	Doc       string          `json:"doc"`
}

// SchemaBlock is a nested block of a config block.
type SchemaBlock struct {
	Name     string `json:"name"`
	Repeated bool   `json:"repeated"`
	Required bool   `json:"required"`
	Doc      string `json:"doc"`
	Schema   Schema `json:"schema"`
}

// Model is a model in a hive's store.
type Model struct {
	ID            string    `json:"id"` // the name that clients use
	Aliases       []string  `json:"aliases"`
	Ref           string    `json:"ref"` // catalog reference it was fetched from, with the source's name
	Digest        string    `json:"digest"`
	SizeBytes     int64     `json:"size_bytes"`
	License       string    `json:"license,omitempty"`
	Architecture  string    `json:"architecture"`
	Quantization  string    `json:"quantization"`
	Parameters    int64     `json:"parameters"`
	ContextTokens int       `json:"context_tokens"` // context length that the model was trained for
	CreatedAt     time.Time `json:"created_at"`
	Hives         []string  `json:"hives"`     // Hive.IDs that have it; empty in one hive's own answer
	LoadedBy      []string  `json:"loaded_by"` // worker ids
	Files         []File    `json:"files,omitempty"`
	// EstimateBytes is the device memory needed by a worker with one slot and the model's own
	// context.
	EstimateBytes int64  `json:"estimate_bytes"`
	Damaged       string `json:"damaged,omitempty"` // why the entry cannot be used
	// Capabilities are what at least one of the workers that serve it can do. They are empty if
	// none runs, and, like the fields below, in a single hive's answer.
	Capabilities Capabilities `json:"capabilities,omitempty"`
	State        ModelState   `json:"state,omitempty"`
	// Progress is the progress of starting its first worker, downloads included, if the queen that
	// is asked follows it.
	Progress *Progress `json:"progress,omitempty"`
	// LoadedContextTokens is the largest context of a request that any ready worker can answer,
	// whichever it is.
	LoadedContextTokens int `json:"loaded_context_tokens,omitempty"`
	// The following is set only for a single model.
	Facts *ModelFacts `json:"facts,omitempty"`
	Fits  []ModelFit  `json:"fits,omitempty"` // estimates for the devices of the hives that have it
}

// ModelState tells how close a model is to answering.
type ModelState string

// The model states, closest first.
const (
	ModelLoaded    ModelState = "loaded"    // a worker is ready
	ModelLoading   ModelState = "loading"   // a worker is starting
	ModelStored    ModelState = "stored"    // on a hive's disk; a request loads it
	ModelAvailable ModelState = "available" // no files needed here: a worker type provides it by name; a request loads it
	ModelOffered   ModelState = "offered"   // offered by the builtin source; a request fetches and loads it
	ModelDamaged   ModelState = "damaged"   // on a disk, but unusable until it is fetched again
)

// Alias is a cluster-wide name for a model.
type Alias struct {
	Name        string `json:"name"`
	Model       string `json:"model"`        // Model.ID
	CreateIndex uint64 `json:"create_index"` // raft index of its first appearance
	ModifyIndex uint64 `json:"modify_index"` // raft index of its last change
}

// ModelFacts are facts from the model's GGUF header beyond those in Model. Numbers missing from the
// header are 0.
type ModelFacts struct {
	Name         string `json:"name"`
	Layers       int    `json:"layers"`
	Embedding    int    `json:"embedding"`
	FeedForward  int    `json:"feed_forward"` // width of the widest layer
	Heads        int    `json:"heads"`
	KVHeads      int    `json:"kv_heads"`
	Vocabulary   int    `json:"vocabulary"`
	Tensors      int    `json:"tensors"`
	Parts        int    `json:"parts"` // files that the model is split into; 1: not split
	ChatTemplate bool   `json:"chat_template"`
}

// ModelFit is what a worker with the model would take on a device, with the hive's own number of
// slots and the context that the worker would get.
type ModelFit struct {
	Hive          string `json:"hive"` // Hive.ID
	Device        string `json:"device"`
	Kind          string `json:"kind"` // kind of the device
	Slots         int    `json:"slots"`
	ContextTokens int    `json:"context_tokens"` // per slot
	WeightsBytes  int64  `json:"weights_bytes"`
	CacheBytes    int64  `json:"cache_bytes"`
	ComputeBytes  int64  `json:"compute_bytes"`
	OverheadBytes int64  `json:"overhead_bytes"`
	NeedBytes     int64  `json:"need_bytes"`        // the sum
	FreeBytes     int64  `json:"free_bytes"`        // free memory that no loading worker has reserved
	MissingBytes  int64  `json:"missing_bytes"`     // 0: it fits, or the device does not report its memory
	Problem       string `json:"problem,omitempty"` // why the device cannot be used
}

// CatalogItem is one thing that a catalog source offers.
type CatalogItem struct {
	Ref       string `json:"ref"` // reference with the source's name: "builtin:rbee-tiny"
	Kind      string `json:"kind"`
	Name      string `json:"name"`
	Summary   string `json:"summary"`
	SizeBytes int64  `json:"size_bytes"`
	License   string `json:"license,omitempty"`
}

// Queen is a member of the raft cluster.
type Queen struct {
	ID          string `json:"id"`                // Node.ID
	RaftID      string `json:"raft_id,omitempty"` // new each time a queen starts with an empty raft folder
	Name        string `json:"name,omitempty"`
	Address     string `json:"address"` // host:port that raft dials
	HTTPAddress string `json:"http_address,omitempty"`
	Version     string `json:"version,omitempty"`
	Leader      bool   `json:"leader"`
	Voter       bool   `json:"voter"`
	Gossip      string `json:"gossip,omitempty"` // "alive", "failed", "left", "unknown"; empty: no gossip
}

// Status is the whole cluster on one screen.
type Status struct {
	Version         string    `json:"version"`
	Node            string    `json:"node"` // the answering queen
	StartedAt       time.Time `json:"started_at"`
	Leader          string    `json:"leader"` // empty: unknown
	Index           uint64    `json:"index"`  // last applied raft index
	Read            ReadInfo  `json:"read"`   // how up to date the registry part is
	Cluster         *Cluster  `json:"cluster,omitempty"`
	CertificatesEnd time.Time `json:"certificates_end,omitzero"` // earliest expiry of a node's certificate
	Queens          []Queen   `json:"queens"`
	Hives           []Hive    `json:"hives"`
	Workers         []Worker  `json:"workers"`
	Models          []Model   `json:"models"`
	Jobs            []Job     `json:"jobs"` // running ones and those that ended most recently
	Problems        []string  `json:"problems"`
	Settings        []Setting `json:"settings"` // those that somebody set
}
