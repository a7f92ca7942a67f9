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
	// Status reports the state and the load of the worker. It is cheap and answers also while a
	// model loads.
	Status(ctx context.Context) (Status, error)
	// Drain refuses new work and returns when the last running request is finished, or with ctx.
	Drain(ctx context.Context) error
	// Stop ends the work within grace and frees the device. It is idempotent; the process exits
	// after it.
	Stop(ctx context.Context, grace time.Duration) error
}

// Sharer is a Backend that takes another part of the processor while it runs: hosts tell it, now
// and then, how many workers compute with it, as StartSpec.CPUWorkers did. Share does not block.
type Sharer interface {
	Share(cpuWorkers int)
}

// Fingerprint is what a worker type detects on its machine.
type Fingerprint struct {
	// Problem says in one sentence why the worker type cannot work here and what to do; empty: it
	// can.
	Problem string
	// Warnings are worth telling the operator although the type works.
	Warnings []string
	Devices  []Device
	// Checks lists what the worker type has verified, for example that the engine is one that it
	// was built for; people see them with the installed binary.
	Checks []Check
	// ByName says that the type's server finds models itself, by their names: StartSpec.ModelPath
	// is empty then.
	ByName bool
	// Models lists names of such models, at most MaxModels of at most MaxModelBytes. They are
	// offered to clients; others can be started by name all the same.
	Models []string
	// Beside lists what each worker loads beside its model with the settings of its block: files
	// of RoleAdapter and RoleDraft, at most MaxBeside. The host counts their memory.
	Beside []ModelFile
	// BesideBytes is memory of the device that each worker takes beside that, whatever its model.
	BesideBytes int64
	// Formats and Architectures are those of sdk.Info where the settings of the block decide them:
	// a host takes them in place of Info's if there are Formats.
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

// Device is one thing that models can be loaded on.
type Device struct {
	ID         string // unique on the machine: "cpu", "cuda:0", "metal:0"
	Kind       string // "cpu", "cuda", "metal", "vulkan", …
	Name       string // for people: "NVIDIA RTX 4090"
	TotalBytes int64  // memory of the device; 0: unknown
	FreeBytes  int64  // memory free now; 0 with a TotalBytes of 0: unknown
	Problem    string // why the device cannot be used; empty: it can
}

// StartSpec says what a worker should serve.
type StartSpec struct {
	WorkerID string
	// Nonce is random per start; Status returns it, so that a host can tell this worker from
	// another behind the same socket.
	Nonce string
	// ModelPath is a GGUF file; empty for a type that serves models by name.
	ModelPath string
	ModelID   string // the name that clients use
	Device    string // a Device.ID
	Slots     int    // requests served at once, 1 or more
	// ContextTokens is positions per slot; 0: the backend's choice, at most what the model was
	// trained for.
	ContextTokens int
	Threads       int    // CPU threads; 0: the backend's choice
	EngineDir     string // as in sdk.Config
	// DataOpening is what each connection to the data socket must begin with, MaxDataOpening bytes
	// at most; empty: nothing. Package worker sees to it: a Backend gets an empty one.
	DataOpening string
	// Files are what to load, ModelPath first. The first of several parts of a model stands for
	// all, which are beside it. Empty where the host is older or there is none. The SDK refuses a
	// role that it does not know.
	Files []ModelFile
	// ModelDigest is the digest of the model's files, such as "sha256:…"; empty: unknown.
	ModelDigest string
	// StateFile is a file in a folder of the worker's own, in which it may keep what it has read of
	// conversations when it is stopped: the host hands it to a later worker of the same type and
	// ModelDigest. Where it is there at Start, an earlier worker left it, or something else did: a
	// backend checks it and removes it. Empty: nothing may be kept. It is the text of users, so
	// that a backend keeps nothing unless its configuration says so.
	StateFile string
	// PrefixKey is the secret for Status.PrefixBlocks, at most MaxPrefixKey bytes. Empty: they are
	// not made.
	PrefixKey []byte
	// CPUWorkers is how many workers compute with the machine's processor, this one included: where
	// nobody says a number of threads, they share its cores. 0: the host does not know.
	CPUWorkers int
}

// MaxPrefixKey is the most that StartSpec.PrefixKey holds, in bytes.
const MaxPrefixKey = 64

// MaxDataOpening is the most that StartSpec.DataOpening holds, in bytes.
const MaxDataOpening = 256

// ModelFile is one file of what a worker serves.
type ModelFile struct {
	Path string
	Role string // RoleModel; in Fingerprint.Beside RoleAdapter or RoleDraft
}

// Roles of files. StartSpec.Files has RoleModel only: later releases add projector and tokenizer.
const (
	RoleModel   = "model"   // the model itself
	RoleAdapter = "adapter" // a LoRA adapter: it takes the size of its file
	RoleDraft   = "draft"   // a smaller model, with slots and contexts as the model has
)

// Progress is how far a model is loaded.
type Progress struct {
	Phase   string // for people: "reading the model"
	Done    int64  // in Unit; never goes backwards within a phase
	Total   int64  // in Unit; 0: unknown
	Unit    string // "bytes", "percent" or empty
	Message string // a log line for people, where there is something to say
}

// State is the stage of a worker's life.
type State string

// The states, in the order of a worker's life.
const (
	StateIdle     State = "idle"     // started as a process, no model asked for
	StateLoading  State = "loading"  //
	StateReady    State = "ready"    //
	StateDraining State = "draining" // refuses new requests
	StateStopped  State = "stopped"  //
	StateFailed   State = "failed"   // the process is of no more use
)

// Capability names something that a worker can do with the model it serves. Callers request only
// what a worker names; it refuses the rest with status 400 or 501. Authors may add names of their
// own: lower-case letters, digits and _, at most MaxCapabilityBytes.
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
	// /infill, and suffix in /v1/completions
	CapabilityInfill     Capability = "infill"
	CapabilityTools      Capability = "tools"       // tools and tool_choice of a chat
	CapabilityJSONSchema Capability = "json_schema" // response_format json_object and json_schema
	CapabilityLogprobs   Capability = "logprobs"    // logprobs and top_logprobs
	// thoughts separate from the answer, reasoning_content
	CapabilityReasoning Capability = "reasoning"
	CapabilityVision    Capability = "vision" // parts image_url of a message
	CapabilityAudio     Capability = "audio"  // parts input_audio of a message

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
	TokensPerSecond float64 // generated tokens of all slots, over the last seconds
	TokensTotal     int64   // generated tokens since Start
	KVUsedTokens    int     // cache positions in use, all slots
	MemoryBytes     int64   // of the device, if the engine can tell; 0: unknown
	// Capabilities lists what the worker can do, sorted, once it is ready. Empty: unknown, so that
	// callers may request anything.
	Capabilities []Capability
	// DataGuarded says that the data socket serves only connections that begin with
	// StartSpec.DataOpening. Package worker fills it in.
	DataGuarded bool
	// PromptTokensTotal counts the tokens of prompts that were evaluated since Start, and
	// CachedTokensTotal those that were not, as a cache had them: what clients asked is the sum, as
	// with llama-server's prompt_tokens_total and prompt_tokens_cached_total.
	PromptTokensTotal int64
	CachedTokensTotal int64
	// DraftTokensTotal counts the draft tokens of answers since Start: guessed, to evaluate
	// several in a step. AcceptedTokensTotal counts those that were what the model chose.
	DraftTokensTotal    int64
	AcceptedTokensTotal int64
	// PrefixBlocks says which beginnings of prompts the worker has read and not forgotten, so that
	// a prompt that begins alike is answered sooner: a hash for each whole block of
	// PrefixBlockTokens tokens of each sequence, made with StartSpec.PrefixKey of the block's
	// tokens and the hash of the block before it. At most MaxPrefixBlocks, without repetitions,
	// those of sequences that were used last first. They tell nobody without the key what was read.
	PrefixBlocks      []uint64
	PrefixBlockTokens int // 0: the worker reports none
}

// MaxPrefixBlocks bounds Status.PrefixBlocks; a host drops the excess.
const MaxPrefixBlocks = 512
