package fsm

import (
	"unicode"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	"github.com/rbee-project/rbee/core"
	raftv1 "github.com/rbee-project/rbee/proto/raft/v1"
)

// The limits of a command; Validate holds them before the command is logged. They bound one entry of the log, not the registry.
const (
	MaxIDBytes         = 128     // of an id, a state or another name
	MaxTextBytes       = 1 << 10 // of a model, a digest, a device's name or problem
	MaxWorkers         = 4096    // of one hive
	MaxDevices         = 256     // of one hive
	MaxWorkerTypes     = 256     // of one hive
	MaxHivesPerCommand = 512
	MaxCommandBytes    = 4 << 20 // encoded

	// commandOverhead is what a command may have around the state of one hive.
	commandOverhead = 4 << 10
)

// Validate says whether a command may be logged. What it lets pass, Apply of this version never panics at. Errors: Invalid, TooLarge.
func Validate(c *raftv1.Command) error {
	v := &validator{}
	v.text("request id", c.GetRequestId(), MaxIDBytes)
	switch op := c.GetOp().(type) {
	case *raftv1.Command_SyncHive:
		v.syncHive(op.SyncHive)
	case *raftv1.Command_SetHiveStatus:
		v.id("hive id", op.SetHiveStatus.GetHive())
		v.oneOf("hive status", op.SetHiveStatus.GetStatus(), core.HiveReady, core.HiveSuspect, core.HiveDown)
	case *raftv1.Command_RetireWorker:
		v.id("worker id", op.RetireWorker.GetWorker())
	case *raftv1.Command_RemoveHive:
		v.id("hive id", op.RemoveHive.GetHive())
	default:
		v.fail(core.Invalid, "the command says nothing to do")
	}
	if size := proto.Size(c); size > MaxCommandBytes {
		v.fail(core.TooLarge, "the command has %d bytes, at most %d are allowed", size, MaxCommandBytes)
	}
	return v.err
}

// validator keeps the first complaint.
type validator struct{ err error }

func (v *validator) fail(kind core.Kind, format string, args ...any) {
	if v.err == nil {
		v.err = core.Errorf("check raft command", kind, format, args...)
	}
}

func (v *validator) text(what, s string, limit int) {
	switch {
	case len(s) > limit:
		v.fail(core.Invalid, "%s has %d bytes, at most %d are allowed", what, len(s), limit)
	case !utf8.ValidString(s):
		v.fail(core.Invalid, "%s is not valid UTF-8", what)
	default:
		for _, r := range s {
			if unicode.IsControl(r) {
				v.fail(core.Invalid, "%s %q has a control character", what, s)
				return
			}
		}
	}
}

func (v *validator) id(what, s string) {
	if s == "" {
		v.fail(core.Invalid, "%s is empty", what)
	}
	v.text(what, s, MaxIDBytes)
}

func (v *validator) oneOf(what, s string, allowed ...core.HiveStatus) {
	for _, a := range allowed {
		if s == string(a) {
			return
		}
	}
	v.fail(core.Invalid, "%s %q is none of %q", what, s, allowed)
}

func (v *validator) syncHive(op *raftv1.SyncHive) {
	h := op.GetHive()
	v.id("hive id", h.GetId())
	v.text("hive version", h.GetVersion(), MaxIDBytes)
	v.text("hive os", h.GetOs(), MaxIDBytes)
	v.text("hive arch", h.GetArch(), MaxIDBytes)
	v.text("hive name", h.GetName(), MaxTextBytes)
	v.oneOf("hive status", h.GetStatus(), "", core.HiveReady, core.HiveSuspect)
	if n := len(h.GetDevices()); n > MaxDevices {
		v.fail(core.TooLarge, "hive %s has %d devices, at most %d are allowed", h.GetId(), n, MaxDevices)
	}
	for _, d := range h.GetDevices() {
		v.id("device id", d.GetId())
		v.text("device kind", d.GetKind(), MaxIDBytes)
		v.text("device name", d.GetName(), MaxTextBytes)
		v.text("device problem", d.GetProblem(), MaxTextBytes)
		if d.GetTotalBytes() < 0 {
			v.fail(core.Invalid, "device %s has %d bytes of memory", d.GetId(), d.GetTotalBytes())
		}
	}
	if n := len(h.GetWorkerTypes()); n > MaxWorkerTypes {
		v.fail(core.TooLarge, "hive %s has %d worker types, at most %d are allowed", h.GetId(), n, MaxWorkerTypes)
	}
	for _, t := range h.GetWorkerTypes() {
		v.id("worker type", t)
	}
	if n := len(op.GetWorkers()); n > MaxWorkers {
		v.fail(core.TooLarge, "hive %s has %d workers, at most %d are allowed", h.GetId(), n, MaxWorkers)
	}
	seen := make(map[string]bool, len(op.GetWorkers()))
	for _, w := range op.GetWorkers() {
		if seen[w.GetId()] {
			v.fail(core.Invalid, "worker %s is there twice", w.GetId())
		}
		seen[w.GetId()] = true
		v.worker(h.GetId(), w)
	}
}

func (v *validator) worker(hive string, w *raftv1.Worker) {
	v.id("worker id", w.GetId())
	if w.GetHive() != hive {
		v.fail(core.Invalid, "worker %s is of hive %q, not of %q", w.GetId(), w.GetHive(), hive)
	}
	v.id("worker type", w.GetType())
	v.text("worker version", w.GetVersion(), MaxTextBytes)
	v.text("worker model", w.GetModel(), MaxTextBytes)
	v.text("worker model digest", w.GetModelDigest(), MaxTextBytes)
	v.text("worker device", w.GetDevice(), MaxIDBytes)
	v.text("worker nonce", w.GetNonce(), MaxIDBytes)
	if w.GetSlots() < 0 || w.GetContextTokens() < 0 {
		v.fail(core.Invalid, "worker %s has %d slots of %d tokens", w.GetId(), w.GetSlots(), w.GetContextTokens())
	}
	switch core.WorkerState(w.GetState()) {
	case core.WorkerLoading, core.WorkerReady, core.WorkerRetiring, core.WorkerFailed:
	default:
		v.fail(core.Invalid, "worker %s has the unknown state %q", w.GetId(), w.GetState())
	}
}
