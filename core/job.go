package core

import (
	"encoding/json"
	"time"
)

// Operation names what a job does. The names are the public API's.
type Operation string

// The operations. Package core/operation describes each.
const (
	OpWorkerDownload          Operation = "worker_download"
	OpWorkerBuild             Operation = "worker_build"
	OpWorkerUpgrade           Operation = "worker_upgrade"
	OpWorkerBinaryList        Operation = "worker_binary_list"
	OpWorkerBinaryGet         Operation = "worker_binary_get"
	OpWorkerBinaryDelete      Operation = "worker_binary_delete"
	OpWorkerSpawn             Operation = "worker_spawn"
	OpWorkerProcessList       Operation = "worker_process_list"
	OpWorkerProcessGet        Operation = "worker_process_get"
	OpWorkerProcessDelete     Operation = "worker_process_delete"
	OpModelDownload           Operation = "model_download"
	OpModelList               Operation = "model_list"
	OpModelGet                Operation = "model_get"
	OpModelDelete             Operation = "model_delete"
	OpAliasSet                Operation = "alias_set"
	OpAliasList               Operation = "alias_list"
	OpAliasRemove             Operation = "alias_remove"
	OpCatalogSearch           Operation = "catalog_search"
	OpStoreVerify             Operation = "store_verify"
	OpStoreGC                 Operation = "store_gc"
	OpHiveList                Operation = "hive_list"
	OpHiveInstall             Operation = "hive_install"
	OpHiveUninstall           Operation = "hive_uninstall"
	OpHiveStart               Operation = "hive_start"
	OpHiveStop                Operation = "hive_stop"
	OpSSHTest                 Operation = "ssh_test"
	OpHiveImportSSH           Operation = "hive_import_ssh"
	OpHiveGet                 Operation = "hive_get"
	OpHiveStatus              Operation = "hive_status"
	OpHiveRefreshCapabilities Operation = "hive_refresh_capabilities"
	OpActiveWorkerList        Operation = "active_worker_list"
	OpActiveWorkerGet         Operation = "active_worker_get"
	OpActiveWorkerRetire      Operation = "active_worker_retire"
	OpInfer                   Operation = "infer"
	OpStatus                  Operation = "status"
	OpDeploymentPlan          Operation = "deployment_plan"
	OpDeploymentApply         Operation = "deployment_apply"
	OpDeploymentList          Operation = "deployment_list"
	OpDeploymentGet           Operation = "deployment_get"
	OpDeploymentStop          Operation = "deployment_stop"
	OpDeploymentRevert        Operation = "deployment_revert"
	OpSettingList             Operation = "setting_list"
	OpSettingSet              Operation = "setting_set"
)

// Limits of a request. They reject nonsense, not large machines.
const (
	MaxRequestBytes   = 1 << 20 // the whole JSON
	MaxRequestIDBytes = 128
	MaxTextBytes      = 1 << 10 // a text, unless its field defines another limit
	MaxPromptBytes    = 256 << 10
	MaxTexts          = 256 // elements of a list of texts
	MaxSlots          = 1024
	MaxContextTokens  = 1 << 24
	MaxThreads        = 4096
	MaxGrace          = 24 * time.Hour
)

// Request is the body of POST /v1/jobs: the operation's name, where to run it, and the fields of
// that operation. Package core/operation defines which operation accepts which field, and what the
// field means there. Fields that an operation does not accept are refused.
type Request struct {
	Operation Operation `json:"operation"`
	Hive      string    `json:"hive,omitempty"`       // id, name or LocalHive; empty: the cluster chooses
	RequestID string    `json:"request_id,omitempty"` // two requests with the same id are one job; at most MaxRequestIDBytes

	Type          string `json:"type,omitempty"`   // worker type
	Binary        string `json:"binary,omitempty"` // "<type>@<version>", or "<type>" for the newest
	Source        string `json:"source,omitempty"` // source of a program: a folder, or package@version
	Version       string `json:"version,omitempty"`
	From          string `json:"from,omitempty"` // catalog reference
	Force         bool   `json:"force,omitempty"`
	Model         string `json:"model,omitempty"` // any of its names, or a catalog reference
	Device        string `json:"device,omitempty"`
	Slots         int    `json:"slots,omitempty"`
	ContextTokens int    `json:"context_tokens,omitempty"` // per slot
	// ReplicaContext replaces ContextTokens if neither the request nor the hive's configuration
	// sets it: the context of the model's other workers. A queen fills it in.
	ReplicaContext int      `json:"replica_context,omitempty"`
	Threads        int      `json:"threads,omitempty"`
	KeepAlive      string   `json:"keep_alive,omitempty"` // as ParseKeepAlive reads it, or KeepAliveDefault; empty: the worker stays
	Pin            bool     `json:"pin,omitempty"`
	Replica        string   `json:"replica,omitempty"` // label of the deployment's replica that the worker becomes: core.Replica.Label
	PID            int      `json:"pid,omitempty"`
	DryRun         bool     `json:"dry_run,omitempty"` // only report what would be done
	Grace          Duration `json:"grace,omitzero"`    // how long running requests may continue
	Now            bool     `json:"now,omitempty"`
	KeepState      bool     `json:"keep_state,omitempty"` // keep the state of a worker that ends: see the hive's states.go
	Worker         string   `json:"worker,omitempty"`     // id or unique prefix

	Prompt       string `json:"prompt,omitempty"`
	SystemPrompt string `json:"system_prompt,omitempty"`
	MaxTokens    int    `json:"max_tokens,omitempty"` // maximum length of the answer

	Host       string `json:"host,omitempty"` // reached over SSH: alias of ~/.ssh/config, host name or IP address; or the name of a hive there
	User       string `json:"user,omitempty"` // user on the host
	Port       int    `json:"port,omitempty"` // port of the host's SSH server
	HostKey    string `json:"host_key,omitempty"`
	AcceptNew  bool   `json:"accept_new,omitempty"`
	System     bool   `json:"system,omitempty"`  // for the whole machine
	Service    string `json:"service,omitempty"` // systemd-user, systemd-system, launchd, none, auto
	Name       string `json:"name,omitempty"`    // name of the new hive, model or alias
	Bind       string `json:"bind,omitempty"`    // IP address that the new hive listens on
	Advertise  string `json:"advertise,omitempty"`
	Queen      bool   `json:"queen,omitempty"` // the new hive is also a queen
	Drain      bool   `json:"drain,omitempty"`
	KeepModels bool   `json:"keep_models,omitempty"`

	Text  string `json:"q,omitempty"`     // search text
	Kind  string `json:"kind,omitempty"`  // as in CatalogItem
	Limit int    `json:"limit,omitempty"` // maximum length of a list
	File  string `json:"file,omitempty"`  // path on the machine of the queen that is asked

	Deployment string `json:"deployment,omitempty"` // name of a deployment
	Specs      string `json:"specs,omitempty"`      // a list of DeploymentSpec, as JSON
	Index      int    `json:"index,omitempty"`      // DeploymentPlan.Index
	Revision   int    `json:"revision,omitempty"`   // DeploymentVersion.Version

	Setting string `json:"setting,omitempty"` // name of a setting of the cluster
	Value   string `json:"value,omitempty"`   // value of the setting, as text
	Unset   bool   `json:"unset,omitempty"`   // return the setting to its default
}

// JobState is the stage of a job's life.
type JobState string

// The job states. All but JobRunning are terminal.
const (
	JobRunning   JobState = "running"
	JobSucceeded JobState = "succeeded"
	JobFailed    JobState = "failed"
	JobCancelled JobState = "cancelled"
)

// Job is one run of an operation. Its id is "<ulid>-<node id>", so that any queen can find its
// owner.
type Job struct {
	ID        string          `json:"id"`
	Operation Operation       `json:"operation"`
	Hive      string          `json:"hive"` // id of the owner: Hive.ID, or Node.ID for a queen's job
	State     JobState        `json:"state"`
	CreatedAt time.Time       `json:"created_at"`
	EndedAt   time.Time       `json:"ended_at,omitzero"`
	LastSeq   int64           `json:"last_seq"`         // sequence number of its newest event
	Result    json.RawMessage `json:"result,omitempty"` // a value of the operation's result type, once it succeeded
	Error     *Failure        `json:"error,omitempty"`  // once it failed or was cancelled
}

// EventKind is the kind of an event.
type EventKind string

// The event kinds. A job has any number of progress and log events, at most one result, and exactly
// one end, which is the last.
const (
	EventProgress EventKind = "progress"
	EventLog      EventKind = "log"
	EventResult   EventKind = "result"
	EventEnd      EventKind = "end"
)

// Event is one numbered event of a job.
type Event struct {
	Seq      int64           `json:"seq"` // 1, 2, 3, … without gaps
	At       time.Time       `json:"at"`
	Kind     EventKind       `json:"kind"`
	Progress *Progress       `json:"progress,omitempty"`
	Message  string          `json:"message,omitempty"` // for a log event
	Result   json.RawMessage `json:"result,omitempty"`  // for a result event
	State    JobState        `json:"state,omitempty"`   // for the end event
	Error    *Failure        `json:"error,omitempty"`   // for the end event of a job that failed
}

// Progress is the progress of one phase of a job.
type Progress struct {
	Phase string `json:"phase"` // for people, and the key of a progress bar: "download rbee-tiny.gguf"
	Done  int64  `json:"done"`
	Total int64  `json:"total"`          // 0: unknown
	Unit  string `json:"unit,omitempty"` // "bytes", "percent" or empty
}

// Failure is an error on the wire.
type Failure struct {
	Kind    Kind   `json:"kind"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"` // what to do next
}

// FailureOf returns err in its wire form, or nil for a nil err.
func FailureOf(err error) *Failure {
	if err == nil {
		return nil
	}
	return &Failure{Kind: KindOf(err), Message: err.Error(), Hint: HintOf(err)}
}

// Err returns the failure as a classified error, or nil for a nil failure.
func (f *Failure) Err() error {
	if f == nil {
		return nil
	}
	return &Error{kind: f.Kind, hint: f.Hint, err: errorString(f.Message)}
}

type errorString string

func (e errorString) Error() string { return string(e) }

// Duration is a time.Duration that is encoded as "1m30s" in JSON.
type Duration time.Duration

// MarshalText formats the duration as time.Duration.String does.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText parses what time.ParseDuration parses.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return WithKind(err, Invalid)
	}
	*d = Duration(v)
	return nil
}

// SpawnResult is the result of worker_spawn.
type SpawnResult struct {
	Worker Worker `json:"worker"`
	PID    int    `json:"pid"`
}

// ModelDeleteResult is the result of model_delete.
type ModelDeleteResult struct {
	Model      string `json:"model"`       // Model.ID
	FreedBytes int64  `json:"freed_bytes"` // disk space freed
	Files      []File `json:"files"`       // removed files; those that other models need were kept
	DryRun     bool   `json:"dry_run"`     // nothing was done: the result is what would be done
}

// StoreVerifyResult is the result of store_verify.
type StoreVerifyResult struct {
	Models       int         `json:"models"`        // number checked
	Binaries     int         `json:"binaries"`      // number of worker binaries checked
	CheckedBytes int64       `json:"checked_bytes"` // bytes read and compared
	Damaged      []StoreItem `json:"damaged"`       // no longer used; a download replaces them
}

// StoreGCResult is the result of store_gc.
type StoreGCResult struct {
	Removed    []StoreItem `json:"removed"`
	FreedBytes int64       `json:"freed_bytes"`
	DryRun     bool        `json:"dry_run"` // nothing was done: the result is what would be done
}

// StoreItemKind is the kind of an item in a hive's store.
type StoreItemKind string

// The kinds of store items.
const (
	StoreModel      StoreItemKind = "model"
	StoreFile       StoreItemKind = "file" // a file of models, named by its digest
	StorePartial    StoreItemKind = "partial"
	StoreQuarantine StoreItemKind = "quarantine"
	StoreBinary     StoreItemKind = "worker binary"
)

// StoreItem is an item in a hive's store.
type StoreItem struct {
	Kind      StoreItemKind `json:"kind"`
	Name      string        `json:"name"` // the id of a model or worker binary
	SizeBytes int64         `json:"size_bytes"`
	Reason    string        `json:"reason"` // why it is listed
}

// InferResult is the result of infer. It is kept only in memory, like its request.
type InferResult struct {
	Model            string `json:"model"`
	Text             string `json:"text"`
	FinishReason     string `json:"finish_reason"` // "stop", "length", …
	PromptTokens     int    `json:"prompt_tokens"`
	CompletionTokens int    `json:"completion_tokens"`
	Worker           string `json:"worker,omitempty"` // Worker.ID; empty if one had to be started first
}

// ExitResult is the result of worker_process_delete and active_worker_retire.
type ExitResult struct {
	WorkerID    string `json:"worker_id"`
	PID         int    `json:"pid"`
	AlreadyGone bool   `json:"already_gone"`
	Forced      bool   `json:"forced"` // it did not exit by itself within the grace
	Exit        string `json:"exit"`   // "exit code 0", "signal killed"; empty if unknown
}
