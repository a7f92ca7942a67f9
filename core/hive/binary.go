package hive

import (
	"context"
	"slices"
	"strings"

	"github.com/hashicorp/go-hclog"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/job"
	"github.com/rbee-project/rbee/plugins/sdk"
)

// binaries installs worker binaries, lists and deletes them.
type binaries struct {
	hive     string // display name
	log      hclog.Logger
	store    shelf
	catalogs *catalogs
	beat     *beater
	settings *settings
	roster   *roster
	claims   *claims
	types    *typeSet
	engines  *engines
}

// binaryDelete removes a worker binary that no worker runs from.
func (bs *binaries) binaryDelete(ctx context.Context, r core.Request, run *job.Run) (core.WorkerBinary, error) {
	var claimed []string
	defer func() { bs.claims.endRemove(claimed) }()
	b, err := bs.store.DeleteBinary(r.Binary, func(folders []string) error {
		err := bs.claims.beginRemove(r.Binary, folders)
		if err == nil {
			claimed = folders
		}
		return err
	})
	if err != nil {
		return core.WorkerBinary{}, err
	}
	run.Log("worker binary %s is deleted", b.ID)
	bs.types.forgetType(ctx, b.Type)
	return b, nil
}

// removeSuperseded removes installed files that a renewal has replaced and no worker runs from.
func (bs *binaries) removeSuperseded() {
	if err := bs.store.RemoveSuperseded(bs.claims.folderInUse); err != nil {
		bs.log.Warn("remove superseded worker binaries", "error", err)
	}
}

// engineOf picks the engine of a plugin for a version: the version of the engine (v0.5.0 or 0.5.0),
// of the package that contains it (3.22.1), or of the worker binary as a whole. Empty: the plugin's
// first choice. Errors: NotFound with the available versions.
func engineOf(typ string, info sdk.Info, version string) (sdk.Engine, error) {
	var names []string
	for _, e := range append([]sdk.Engine{info.Engine}, info.OtherEngines...) {
		whole := binaryVersion(info, e)
		_, packaged, _ := cutLast(e.Ref, "@")
		if version == "" || version == whole || e.Name != "" && slices.Contains([]string{e.Version, strings.TrimPrefix(e.Version, "v"), packaged}, version) {
			return e, nil
		}
		if e.Name == "" {
			names = append(names, whole)
		} else {
			names = append(names, e.Version+" ("+e.Ref+")")
		}
	}
	return sdk.Engine{}, core.Errorf(core.NotFound, "install worker type: worker type %s has no version %q", typ, version).Hint(
		"It has: %s.", strings.Join(names, ", "))
}

// engineByRef returns the engine of a plugin with that reference.
func engineByRef(info sdk.Info, ref string) (sdk.Engine, bool) {
	for _, e := range append([]sdk.Engine{info.Engine}, info.OtherEngines...) {
		if e.Name != "" && e.Ref == ref {
			return e, true
		}
	}
	return sdk.Engine{}, false
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// binaryList lists the worker binaries, including damaged ones, without their files.
func (bs *binaries) binaryList(context.Context, core.Request) ([]core.WorkerBinary, error) {
	list, err := bs.store.Binaries()
	if err != nil {
		return nil, err
	}
	for i, b := range list {
		b.Files = nil
		list[i] = bs.roster.withUsers(b)
	}
	return list, nil
}

// binaryGet returns one worker binary by "<type>@<version>", or "<type>" for its newest. Errors:
// NotFound.
func (bs *binaries) binaryGet(_ context.Context, r core.Request) (core.WorkerBinary, error) {
	b, err := bs.store.Binary(r.Binary)
	if err != nil {
		return core.WorkerBinary{}, err
	}
	return bs.roster.withUsers(b), nil
}
