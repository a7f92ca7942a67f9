package store

import (
	"fmt"
	"slices"
	"strings"

	"github.com/rbee-project/rbee/core"
)

// DeleteBinary removes a worker binary, damaged or not, with all its revisions, and returns it. id
// is as in Binary, but a type alone must have only one version (core.Invalid). It first calls claim
// with the folders to remove; if claim fails, nothing is removed.
func (s *binaries) DeleteBinary(id string, claim func(folders []string) error) (core.WorkerBinary, error) {
	current, err := s.current()
	if err != nil {
		return core.WorkerBinary{}, err
	}
	found := slices.DeleteFunc(current, func(r revision) bool { return r.id() != id && r.typ != id })
	switch len(found) {
	case 0:
		_, err := s.binary(id)
		return core.WorkerBinary{}, err // its hint has the nearest names
	case 1:
	default:
		var ids []string
		for _, r := range found {
			ids = append(ids, r.id())
		}
		return core.WorkerBinary{}, core.Errorf(core.Invalid, "%d versions of the worker type %s are installed", len(ids), id).Hint("Say which: %s.", strings.Join(ids, ", "))
	}
	gone := found[0]
	all, err := s.revisions()
	if err != nil {
		return core.WorkerBinary{}, err
	}
	all = slices.DeleteFunc(all, func(r revision) bool { return r.id() != gone.id() })
	var folders []string
	for _, r := range all {
		folders = append(folders, s.abs(r.folder))
	}
	if err := claim(folders); err != nil {
		return core.WorkerBinary{}, err
	}
	// Remove the newest last: while it exists, none of the older ones represents the id.
	for _, r := range all {
		if err := s.removeFolder(r.folder); err != nil {
			return core.WorkerBinary{}, fmt.Errorf("delete worker binary %s: %w", gone.id(), err)
		}
	}
	return gone.entry(s), nil
}
