// Package worker is the contract of a worker type: a plugin that serves models on the devices of
// one machine.
//
// One plugin process is one worker. The same executable runs as a probe (Configure and Fingerprint,
// no device memory) or as a worker (Start with one model).
package worker

import (
	"context"
	"net/http"
	"time"

	"github.com/rbee-project/rbee/plugins/sdk"
)

// Backend is the interface that the author of a worker type implements. Methods may be called
// concurrently.
type Backend interface {
	sdk.Plugin
	// Fingerprint reports devices and health: at once, on change, and at least every 30 s, until
	// ctx ends or emit fails. It must answer without an engine folder and must not allocate device
	// memory.
	Fingerprint(ctx context.Context, emit func(Fingerprint) error) error
	// Start loads the model and returns when it can serve. Progress never goes backwards. It is
	// called at most once in the life of a process. The SDK serves the returned handler, which
	// speaks OpenAI's HTTP API, on the worker's data socket.
	Start(ctx context.Context, spec StartSpec, progress func(Progress) error) (http.Handler, error)
	// Status reports the state and the load of the worker. It is cheap, and answers even while a
	// model loads.
	Status(ctx context.Context) (Status, error)
	// Drain refuses new work and returns when the last running request has finished, or when ctx
	// ends.
	Drain(ctx context.Context) error
	// Stop ends the work within grace and frees the device. It is idempotent; the process exits
	// afterwards.
	Stop(ctx context.Context, grace time.Duration) error
}

// Sharer is a Backend that can change its share of the processor while it runs. The host
// occasionally reports the number of workers that compute with the processor, as
// StartSpec.CPUWorkers does at the start. Share does not block.
type Sharer interface {
	Share(cpuWorkers int)
}

// Fingerprint is what a worker type detects on its machine.
type Fingerprint struct {
	// Problem is a sentence that says why the worker type cannot work here and what to do; empty:
	// it can.
	Problem string
	// Warnings are for the operator, about issues that do not stop the type from working.
	Warnings []string
	Devices  []Device
	// Checks lists what the worker type has verified, for example that the engine is one that it
	// was built for; they are shown with the installed binary.
	Checks []Check
	// ByName means that the type's server finds models itself, by name: StartSpec.ModelPath is then
	// empty.
	ByName bool
	// Models lists names of such models: at most MaxModels, each of at most MaxModelBytes. They are
	// offered to clients; others can still be started by name.
	Models []string
	// Beside lists what each worker loads in addition to its model with the settings of its block:
	// files of RoleAdapter and RoleDraft, at most MaxBeside. The host counts their memory.
	Beside []ModelFile
	// BesideBytes is the device memory that each worker takes on top of that, whatever its model.
	BesideBytes int64
	// Formats and Architectures replace those of sdk.Info if the settings of the block decide them:
	// a host uses them instead if Formats is not empty.
	Formats       []string
	Architectures []string
}

// Bounds of Fingerprint.Models and Fingerprint.Beside; a host drops the excess.
const (
	MaxModels     = 256
	MaxModelBytes = 200
	MaxBeside     = 128
)

// Check is one verified fact.
type Check struct {
	Name   string // such as "abi"
	Passed bool
	Detail string // for people: what was compared with what
}

// Device is something that models can be loaded on.
type Device struct {
	ID         string // unique on the machine: "cpu", "cuda:0", "metal:0"
	Kind       string // "cpu", "cuda", "metal", "vulkan", …
	Name       string // for people: "NVIDIA RTX 4090"
	TotalBytes int64  // device memory; 0: unknown
	FreeBytes  int64  // memory free now; unknown if TotalBytes is 0 as well
	Problem    string // why the device cannot be used; empty: it can
}

// StartSpec describes what a worker must serve.
type StartSpec struct {
	WorkerID string
	// Nonce is random per start; Status returns it, so that a host can distinguish this worker from
	// another one behind the same socket.
	Nonce string
	// ModelPath is a GGUF file; empty for a type that serves models by name.
	ModelPath string
	ModelID   string // the name that clients use
	Device    string // a Device.ID
	Slots     int    // requests served at once, 1 or more
	// ContextTokens is the number of positions per slot; 0: the backend's choice, at most what the
	// model was trained for.
	ContextTokens int
	Threads       int    // CPU threads; 0: the backend's choice
	EngineDir     string // as in sdk.Config
	// DataOpening is what each connection to the data socket must begin with, at most
	// MaxDataOpening bytes; empty: nothing. Package worker enforces it: the Backend's own copy is
	// empty.
	DataOpening string
	// Files lists the files to load, ModelPath first. The first part of a split model stands for
	// all its parts, which lie beside it. Empty if the host is older or there is no file. The SDK
	// rejects an unknown role.
	Files []ModelFile
	// ModelDigest is the digest of the model's files, such as "sha256:…"; empty: unknown.
	ModelDigest string
	// StateFile is a file in the worker's own folder, where it may save what it has read of
	// conversations when it is stopped: the host passes it to a later worker of the same type and
	// ModelDigest. If the file exists at Start, an earlier worker, or something else, left it: the
	// backend checks it and removes it. Empty: nothing may be saved. The file would hold users'
	// text, so a backend saves nothing unless its configuration allows it.
	StateFile string
	// PrefixKey is the secret for computing Status.PrefixBlocks, at most MaxPrefixKey bytes. Empty:
	// the backend reports none.
	PrefixKey []byte
	// CPUWorkers is how many workers, including this one, compute with the machine's processor:
	// they share its cores unless a number of threads is configured. 0: the host does not know.
	CPUWorkers int
}

// MaxPrefixKey is the longest StartSpec.PrefixKey, in bytes.
const MaxPrefixKey = 64

// MaxDataOpening is the longest StartSpec.DataOpening, in bytes.
const MaxDataOpening = 256

// ModelFile is one file that a worker loads.
type ModelFile struct {
	Path string
	Role string // RoleModel; in Fingerprint.Beside RoleAdapter or RoleDraft
}

// Roles of files. StartSpec.Files has only RoleModel: later releases add projector and tokenizer.
const (
	RoleModel   = "model"   // the model itself
	RoleAdapter = "adapter" // a LoRA adapter: takes as much memory as its file's size
	RoleDraft   = "draft"   // a smaller model, with the same slots and contexts as the model
)

// Progress is how far a model has loaded.
type Progress struct {
	Phase   string // for people: "reading the model"
	Done    int64  // in Unit; never goes backwards within a phase
	Total   int64  // in Unit; 0: unknown
	Unit    string // "bytes", "percent" or empty
	Message string // a log line for people; empty: none
}

// State is the stage of a worker's life.
type State string

// The states, in the order of a worker's life.
const (
	StateIdle     State = "idle"     // the process runs, but no model was requested
	StateLoading  State = "loading"  //
	StateReady    State = "ready"    //
	StateDraining State = "draining" // refuses new requests
	StateStopped  State = "stopped"  //
	StateFailed   State = "failed"   // the process is of no further use
)

// Capability names something that a worker can do with the model it serves. Callers request only
// what a worker lists; it rejects anything else with status 400 or 501. Authors may add names of
// their own: lower-case letters, digits and _, at most MaxCapabilityBytes.
type Capability = string

// The capabilities that a host knows.
const (
	CapabilityChat        Capability = "chat"        // /v1/chat/completions
	CapabilityCompletions Capability = "completions" // /v1/completions
	CapabilityEmbeddings  Capability = "embeddings"  // /v1/embeddings
	CapabilityRerank      Capability = "rerank"      // /v1/rerank
	// /tokenize and /detokenize; with chat also /apply-template and
	// /v1/chat/completions/input_tokens
	CapabilityTokenize Capability = "tokenize"
	// /infill, and the field suffix of /v1/completions
	CapabilityInfill     Capability = "infill"
	CapabilityTools      Capability = "tools"       // tools and tool_choice of a chat
	CapabilityJSONSchema Capability = "json_schema" // response_format json_object and json_schema
	CapabilityLogprobs   Capability = "logprobs"    // logprobs and top_logprobs
	// thoughts separate from the answer, reasoning_content
	CapabilityReasoning Capability = "reasoning"
	CapabilityVision    Capability = "vision" // image_url parts of a message
	CapabilityAudio     Capability = "audio"  // input_audio parts of a message

	CapabilityTranscription Capability = "transcription" // /v1/audio/transcriptions
	CapabilityTranslation   Capability = "translation"   // /v1/audio/translations
	CapabilitySpeech        Capability = "speech"        // /v1/audio/speech
	CapabilityImages        Capability = "images"        // /v1/images/generations
	CapabilityImageEdit     Capability = "image_edit"    // /v1/images/edits and /v1/images/variations
	CapabilityModeration    Capability = "moderation"    // /v1/moderations
)

// Bounds of Status.Capabilities; a host drops the excess.
const (
	MaxCapabilities    = 32
	MaxCapabilityBytes = 32
)

// Status is the state and load of a worker at one moment.
type Status struct {
	WorkerID        string
	Nonce           string
	ModelID         string
	State           State
	Problem         string  // why it failed
	Slots           int     // requests served at once
	ContextTokens   int     // positions per slot
	Active          int     // requests in a slot
	Queued          int     // waiting requests
	TokensPerSecond float64 // tokens generated in all slots, over the last few seconds
	TokensTotal     int64   // tokens generated since Start
	KVUsedTokens    int     // cache positions in use, over all slots
	MemoryBytes     int64   // device memory, if the engine reports it; 0: unknown
	// Capabilities lists what the worker can do, sorted, once it is ready. Empty: unknown, so
	// callers may request anything.
	Capabilities []Capability
	// DataGuarded means that the data socket serves only connections that begin with
	// StartSpec.DataOpening. Package worker sets it.
	DataGuarded bool
	// PromptTokensTotal counts the prompt tokens evaluated since Start, and CachedTokensTotal those
	// that a cache already held. Their sum is what clients sent, as with llama-server's
	// prompt_tokens_total and prompt_tokens_cached_total.
	PromptTokensTotal int64
	CachedTokensTotal int64
	// DraftTokensTotal counts the draft tokens of answers since Start: guesses, so that several
	// tokens are evaluated in one step. AcceptedTokensTotal counts the guesses that matched the
	// model's choice.
	DraftTokensTotal    int64
	AcceptedTokensTotal int64
	// PrefixBlocks describes the prompt prefixes that the worker still has in its cache, so that a
	// prompt with the same beginning is answered sooner. It has a hash for each whole block of
	// PrefixBlockTokens tokens of each sequence, computed with StartSpec.PrefixKey from the block's
	// tokens and the previous block's hash. At most MaxPrefixBlocks, without repetitions, those of
	// the most recently used sequences first. Without the key they reveal nothing about the
	// prompts.
	PrefixBlocks      []uint64
	PrefixBlockTokens int // 0: the worker reports none
}

// MaxPrefixBlocks bounds Status.PrefixBlocks; a host drops the excess.
const MaxPrefixBlocks = 512
