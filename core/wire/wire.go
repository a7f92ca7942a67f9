// Package wire converts core nouns to protobuf messages and back.
//
// XToProto and XFromProto use the messages of queen.v1, hive.v1 and job.v1; XToRaft and XFromRaft
// those of raft.v1. A nil message becomes the zero noun, a zero time becomes a missing timestamp,
// and lists that the public API writes as [] are never nil after FromProto. Slices are copied: noun
// and message share no mutable memory.
package wire

import (
	"math"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/rbee-project/rbee/core"
	hivev1 "github.com/rbee-project/rbee/proto/hive/v1"
)

// All converts a list. The result is never nil, so that it is [] in JSON.
func All[A, B any](list []A, convert func(A) B) []B {
	out := make([]B, 0, len(list))
	for _, v := range list {
		out = append(out, convert(v))
	}
	return out
}

// filled copies a list; the copy of an empty list is [] in JSON.
func filled(list []string) []string {
	return append(make([]string, 0, len(list)), list...)
}

// bytesOf copies bytes; an empty slice becomes nil.
func bytesOf(b []byte) []byte {
	if len(b) == 0 {
		return nil
	}
	return slices.Clone(b)
}

// int32Of narrows a count, clamped to the range of int32.
func int32Of(n int) int32 {
	return int32(min(max(int64(n), math.MinInt32), math.MaxInt32))
}

func timeToProto(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// timeFromProto returns a time in UTC; a missing or invalid timestamp is the zero time.
func timeFromProto(t *timestamppb.Timestamp) time.Time {
	if !t.IsValid() {
		return time.Time{}
	}
	return t.AsTime()
}

// DeviceToProto converts a device for reports and a hive's answers.
func DeviceToProto(d core.Device) *hivev1.Device {
	return &hivev1.Device{
		Id: d.ID, Kind: d.Kind, Name: d.Name, TotalBytes: d.TotalBytes, FreeBytes: d.FreeBytes, Problem: d.Problem,
	}
}

// DeviceFromProto reverses DeviceToProto.
func DeviceFromProto(d *hivev1.Device) core.Device {
	return core.Device{
		ID: d.GetId(), Kind: d.GetKind(), Name: d.GetName(), TotalBytes: d.GetTotalBytes(), FreeBytes: d.GetFreeBytes(), Problem: d.GetProblem(),
	}
}
