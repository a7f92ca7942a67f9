package core

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"
)

// Bounds of deployments.
const (
	MaxDeployments       = 256 // per cluster
	MaxReplicas          = 64  // per deployment
	MaxDeploymentHistory = 10  // earlier versions kept per deployment
	MaxDeploymentName    = 48  // bytes: it is part of its workers' names
	MaxDeploymentPlaces  = 64  // devices or hives that a deployment names
	MaxPriority          = 100 // per deployment
)

// DeploymentSpec declares what should run: the deployment block of a file.
type DeploymentSpec struct {
	Name     string `json:"name"`
	Model    string `json:"model"`    // any of its names, or a catalog reference
	Replicas int    `json:"replicas"` // workers that serve it; 0: none for now
	Type     string `json:"type,omitempty"`
	// Devices lists ids or kinds of devices that it may use, Hives ids or names of hives; empty:
	// any.
	Devices       []string `json:"devices,omitempty"`
	Hives         []string `json:"hives,omitempty"`
	Slots         int      `json:"slots,omitempty"`          // per worker; 0: the hive's default
	ContextTokens int      `json:"context_tokens,omitempty"` // per slot; 0: the model's own, as far as memory allows
	Priority      int      `json:"priority,omitempty"`       // 0 to MaxPriority: higher ones are placed first
}

// Check returns an error if the spec is invalid. It does not check whether the model, devices and
// hives exist. Errors: Invalid.
func (s DeploymentSpec) Check() error {
	bad := func(format string, args ...any) *Error {
		return Errorf(Invalid, "deployment %q: "+format, append([]any{s.Name}, args...)...)
	}
	if err := CheckDeploymentName(s.Name); err != nil {
		return err
	}
	for _, n := range []struct {
		name       string
		value, max int
	}{
		{"replicas", s.Replicas, MaxReplicas},
		{"slots", s.Slots, MaxSlots},
		{"context_tokens", s.ContextTokens, MaxContextTokens},
		{"priority", s.Priority, MaxPriority},
	} {
		if n.value < 0 || n.value > n.max {
			return bad("%s is %d", n.name, n.value).Hint("It must be between 0 and %d.", n.max)
		}
	}
	if s.Model == "" {
		return bad("it has no model").Hint(`Add model = "…": "rbee model list" shows those that are there.`)
	}
	for _, list := range [][]string{{s.Model, s.Type}, s.Devices, s.Hives} {
		if len(list) > MaxDeploymentPlaces {
			return bad("it names %d devices or hives", len(list)).Hint("At most %d are allowed; leave them all out to allow any.", MaxDeploymentPlaces)
		}
		for _, text := range list {
			if len(text) > MaxTextBytes || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f }) || strings.ToValidUTF8(text, "") != text {
				return bad("a text of it is too long, or has control characters")
			}
		}
	}
	for what, list := range map[string][]string{"devices": s.Devices, "hives": s.Hives} {
		if slices.Contains(list, "") {
			return bad("%s has an empty name", what)
		}
	}
	return nil
}

// CheckDeploymentName returns an error if a deployment cannot have the name. Errors: Invalid.
func CheckDeploymentName(name string) error {
	odd := func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_' && r != '.'
	}
	if name == "" || len(name) > MaxDeploymentName || strings.ContainsFunc(name, odd) {
		return Errorf(Invalid, "%.64q cannot be the name of a deployment", name).Hint(
			"It has 1 to %d letters, digits, dots, dashes and underscores.", MaxDeploymentName)
	}
	return nil
}

// sameStart reports whether both specs start their workers in the same way.
func (s DeploymentSpec) sameStart(t DeploymentSpec) bool {
	return s.Model == t.Model && s.Type == t.Type && s.Slots == t.Slots && s.ContextTokens == t.ContextTokens
}

// Equal reports whether both specs declare the same.
func (s DeploymentSpec) Equal(t DeploymentSpec) bool {
	return reflect.DeepEqual(s.normal(), t.normal())
}

func (s DeploymentSpec) normal() DeploymentSpec {
	s.Devices, s.Hives = append([]string{}, s.Devices...), append([]string{}, s.Hives...)
	return s
}

// Deployment is a declared deployment, with the places where it runs.
type Deployment struct {
	DeploymentSpec
	Version      uint64 `json:"version"`       // number of the declared change: 1, 2, 3, …
	StartVersion uint64 `json:"start_version"` // the version that last changed how its workers are started
	Stopped      bool   `json:"stopped"`       // it runs nothing
	// ChangedAt is when its declaration was last changed.
	ChangedAt time.Time `json:"changed_at"`
	// Placed lists the workers that it has or should have.
	Placed  []Replica           `json:"placed"`
	History []DeploymentVersion `json:"history"` // earlier versions, oldest first
	// SpecIndex is the raft index of the last change of the declaration, ModifyIndex that of the
	// last change of any kind.
	SpecIndex   uint64 `json:"spec_index"`
	CreateIndex uint64 `json:"create_index"`
	ModifyIndex uint64 `json:"modify_index"`
}

// DeploymentVersion is an earlier version of a deployment.
type DeploymentVersion struct {
	Version   uint64         `json:"version"`
	Spec      DeploymentSpec `json:"spec"`
	Stopped   bool           `json:"stopped"`
	ChangedAt time.Time      `json:"changed_at"`
}

// Replica is one worker of a deployment, running or to be started.
type Replica struct {
	Ordinal int    `json:"ordinal"` // 0, 1, 2, …; the successor of a leaving one has another
	Version uint64 `json:"version"` // version of the deployment when it was placed
	Hive    string `json:"hive"`    // Hive.ID
	Device  string `json:"device,omitempty"`
	Index   uint64 `json:"index"` // raft index of the command that placed it; 0: not yet
}

// Label returns the unique name of the replica of a deployment: Worker.Replica of its worker. It is
// never reused.
func (r Replica) Label(deployment string) string {
	return fmt.Sprintf("%s/%d/%d", deployment, r.Ordinal, r.Index)
}

// DeploymentOf returns the deployment of a label, or an empty string if the label belongs to none.
func DeploymentOf(label string) string {
	name, _, _ := strings.Cut(label, "/")
	return name
}

// Wanted returns how many workers the deployment should have.
func (d Deployment) Wanted() int {
	if d.Stopped {
		return 0
	}
	return d.Replicas
}

// Change returns the deployment after spec, or a stop, is declared, and whether that changes
// anything. The caller sets the indexes.
func (d Deployment) Change(spec DeploymentSpec, stopped bool, at time.Time) (Deployment, bool) {
	if d.Version > 0 && d.Equal(spec) && d.Stopped == stopped {
		return d, false
	}
	next := d
	if d.Version > 0 {
		was := DeploymentVersion{Version: d.Version, Spec: d.DeploymentSpec, Stopped: d.Stopped, ChangedAt: d.ChangedAt}
		next.History = append(slices.Clone(d.History), was)
		if more := len(next.History) - MaxDeploymentHistory; more > 0 {
			next.History = next.History[more:]
		}
	}
	next.Version, next.DeploymentSpec, next.Stopped, next.ChangedAt = d.Version+1, spec, stopped, at
	if d.Version == 0 || !d.sameStart(spec) {
		next.StartVersion = next.Version
	}
	return next, true
}

// DeploymentsIndex returns the raft index of the last declared change of any of the deployments: a
// plan is stale once it has changed.
func DeploymentsIndex(all []Deployment) uint64 {
	if len(all) == 0 {
		return 0
	}
	return slices.MaxFunc(all, func(a, b Deployment) int { return cmp.Compare(a.SpecIndex, b.SpecIndex) }).SpecIndex
}

// DeploymentPlan is what would happen if some deployments were declared.
type DeploymentPlan struct {
	Index   uint64             `json:"index"` // DeploymentsIndex of the state it was made from
	Changes []DeploymentChange `json:"changes"`
	Steps   []DeploymentStep   `json:"steps"`
	// Problems lists the replicas that find no place.
	Problems []DeploymentProblem `json:"problems"`
}

// Nothing reports whether there is nothing to do.
func (p DeploymentPlan) Nothing() bool {
	return len(p.Changes) == 0 && len(p.Steps) == 0 && len(p.Problems) == 0
}

// DeploymentChange is what a plan changes in a deployment.
type DeploymentChange struct {
	Deployment string `json:"deployment"`
	Action     string `json:"action"` // "create", "update" or "start", if it was stopped
	// Fields lists the changed fields, as in "replicas: 1 → 2".
	Fields []string `json:"fields"`
}

// DeploymentStep is a worker that a plan starts or stops.
type DeploymentStep struct {
	Deployment string `json:"deployment"`
	Action     string `json:"action"` // "start" or "stop"
	Hive       string `json:"hive"`   // Hive.Name
	Device     string `json:"device,omitempty"`
	Reason     string `json:"reason"`
	// NeedBytes is what a start takes of the device; 0: unknown. FreeBytes are free there
	// beforehand, EvictBytes of them only after workers unload.
	NeedBytes     int64    `json:"need_bytes,omitempty"`
	FreeBytes     int64    `json:"free_bytes,omitempty"`
	EvictBytes    int64    `json:"evict_bytes,omitempty"`
	Evicts        []string `json:"evicts,omitempty"`         // ids of workers that may have to unload
	DownloadBytes int64    `json:"download_bytes,omitempty"` // 0: none, or unknown
	Download      bool     `json:"download,omitempty"`       // the hive must fetch the model first
}

// DeploymentProblem explains why replicas of a deployment find no place.
type DeploymentProblem struct {
	Deployment string `json:"deployment"`
	Missing    int    `json:"missing"` // number of replicas
	Reason     string `json:"reason"`
	// Lacks lists the devices that are too small or too full.
	Lacks []DeviceLack `json:"lacks"`
}

// DeviceLack is the memory that a device lacks.
type DeviceLack struct {
	Hive         string `json:"hive"` // Hive.Name
	Device       string `json:"device"`
	NeedBytes    int64  `json:"need_bytes"`
	FreeBytes    int64  `json:"free_bytes"` // including memory that can be freed by unloading
	MissingBytes int64  `json:"missing_bytes"`
}

// DeploymentStatus is a deployment with its current state.
type DeploymentStatus struct {
	Deployment
	Ready    int                 `json:"ready"` // workers that serve
	Workers  []ReplicaStatus     `json:"workers"`
	Problems []DeploymentProblem `json:"problems"`
}

// ReplicaStatus is the current state of a replica.
type ReplicaStatus struct {
	Replica
	HiveName string `json:"hive_name"`
	Worker   string `json:"worker,omitempty"` // Worker.ID; empty: not started yet
	State    string `json:"state"`            // "starting", or the worker's state
	Leaving  bool   `json:"leaving"`          // it stays until its successor serves
}
