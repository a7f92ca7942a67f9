package wire

import (
	"github.com/rbee-project/rbee/core"
	jobv1 "github.com/rbee-project/rbee/proto/job/v1"
)

// FailureToProto converts the failure of a job or event; nil stays nil.
func FailureToProto(f *core.Failure) *jobv1.Failure {
	if f == nil {
		return nil
	}
	return &jobv1.Failure{Kind: string(f.Kind), Message: f.Message, Hint: f.Hint}
}

// FailureFromProto reverses FailureToProto.
func FailureFromProto(f *jobv1.Failure) *core.Failure {
	if f == nil {
		return nil
	}
	return &core.Failure{Kind: core.Kind(f.GetKind()), Message: f.GetMessage(), Hint: f.GetHint()}
}

// ProgressToProto converts the progress of an event; nil stays nil.
func ProgressToProto(p *core.Progress) *jobv1.Progress {
	if p == nil {
		return nil
	}
	return &jobv1.Progress{Phase: p.Phase, Done: p.Done, Total: p.Total, Unit: p.Unit}
}

// ProgressFromProto reverses ProgressToProto.
func ProgressFromProto(p *jobv1.Progress) *core.Progress {
	if p == nil {
		return nil
	}
	return &core.Progress{Phase: p.GetPhase(), Done: p.GetDone(), Total: p.GetTotal(), Unit: p.GetUnit()}
}

// JobToProto converts a job for the answers of JobService.
func JobToProto(j core.Job) *jobv1.Job {
	return &jobv1.Job{
		Id:         j.ID,
		Operation:  string(j.Operation),
		Hive:       j.Hive,
		State:      string(j.State),
		CreatedAt:  timeToProto(j.CreatedAt),
		EndedAt:    timeToProto(j.EndedAt),
		LastSeq:    j.LastSeq,
		ResultJson: bytesOf(j.Result),
		Error:      FailureToProto(j.Error),
	}
}

// JobFromProto reverses JobToProto.
func JobFromProto(j *jobv1.Job) core.Job {
	return core.Job{
		ID:        j.GetId(),
		Operation: core.Operation(j.GetOperation()),
		Hive:      j.GetHive(),
		State:     core.JobState(j.GetState()),
		CreatedAt: timeFromProto(j.GetCreatedAt()),
		EndedAt:   timeFromProto(j.GetEndedAt()),
		LastSeq:   j.GetLastSeq(),
		Result:    bytesOf(j.GetResultJson()),
		Error:     FailureFromProto(j.GetError()),
	}
}

// EventToProto converts an event for the stream of JobService.
func EventToProto(e core.Event) *jobv1.Event {
	return &jobv1.Event{
		Seq:        e.Seq,
		At:         timeToProto(e.At),
		Kind:       string(e.Kind),
		Progress:   ProgressToProto(e.Progress),
		Message:    e.Message,
		ResultJson: bytesOf(e.Result),
		State:      string(e.State),
		Error:      FailureToProto(e.Error),
	}
}

// EventFromProto reverses EventToProto.
func EventFromProto(e *jobv1.Event) core.Event {
	return core.Event{
		Seq:      e.GetSeq(),
		At:       timeFromProto(e.GetAt()),
		Kind:     core.EventKind(e.GetKind()),
		Progress: ProgressFromProto(e.GetProgress()),
		Message:  e.GetMessage(),
		Result:   bytesOf(e.GetResultJson()),
		State:    core.JobState(e.GetState()),
		Error:    FailureFromProto(e.GetError()),
	}
}
