package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/gguf"
	"github.com/rbee-project/rbee/core/modelname"
)

// ModelSpec is a model to put into the store.
type ModelSpec struct {
	ID      string   // valid as in modelname.Valid
	Ref     string   // catalog reference, with the source's name
	License string   // empty: take it from the GGUF
	Aliases []string // further names; PutModel refuses those of other models
	Files   []FileSpec
}

// modelRecord is the contents of models/<id>.json.
type modelRecord struct {
	Format  int        `json:"format"`
	Model   core.Model `json:"model"`
	Origins []string   `json:"origins"` // the files' digests as their source published them
	// Parts is the number of GGUF files, that the model is split into, the first of its files; 0:
	// one.
	Parts int `json:"parts,omitempty"`
}

const (
	recordFormat = 1
	maxAttempts  = 3 // attempts to fetch a model whose files are deleted in the meantime
)

// errVanished reports a blob that was deleted with another model before the model being added was
// published.
var errVanished = core.Errorf(core.Conflict, "a file of the model was deleted during the download")

// blob is a file in blobs/.
type blob struct {
	digest digest // sha256
	size   int64
	header *gguf.File // GGUF files only
}

func blobName(d digest) string    { return path.Join(blobsDir, d.fileName()) }
func damagedName(d digest) string { return path.Join(blobsDir, "damaged-"+d.fileName()) }

// Models lists the models, sorted by id. It marks damaged ones.
func (s *Store) Models() ([]core.Model, error) {
	records, err := s.modelRecords()
	if err != nil {
		return nil, err
	}
	out := make([]core.Model, 0, len(records))
	for _, r := range records {
		out = append(out, r.Model)
	}
	return out, nil
}

// modelRecords reads all records. It marks an unreadable one as damaged instead of failing.
func (s *Store) modelRecords() ([]modelRecord, error) {
	entries, err := fs.ReadDir(s.root.FS(), modelsDir)
	if err != nil {
		return nil, fmt.Errorf("list models: %w", err)
	}
	var out []modelRecord
	for _, e := range entries {
		id, ok := recordID(e.Name())
		if !ok {
			continue
		}
		r, err := s.modelRecord(id)
		if core.KindOf(err) == core.NotFound {
			continue // removed in the meantime
		}
		if err != nil {
			r = modelRecord{Model: core.Model{ID: id, Damaged: err.Error()}}
		}
		m := &r.Model
		m.Aliases, m.Hives, m.LoadedBy = nonNil(m.Aliases), nonNil(m.Hives), nonNil(m.LoadedBy)
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b modelRecord) int { return cmp.Compare(a.Model.ID, b.Model.ID) })
	return out, nil
}

func nonNil[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

// modelRecord reads one record and checks that its files exist.
func (s *Store) modelRecord(id string) (modelRecord, error) {
	var r modelRecord
	if err := s.readJSON(recordName(id), &r); err != nil {
		return r, err
	}
	if r.Format != recordFormat || r.Model.ID != id || len(r.Model.Files) == 0 || len(r.Origins) != len(r.Model.Files) || r.Parts < 0 || r.Parts > len(r.Model.Files) {
		return r, core.Errorf(core.Integrity, "%s.json is not a record of this model that this version of rbee can read", id)
	}
	r.Model.Damaged = ""
	for _, f := range r.Model.Files {
		d, err := parseDigest(f.Digest)
		if err != nil || d.algorithm != "sha256" {
			return r, core.Errorf(core.Integrity, "%s.json has the unusable digest %q", id, f.Digest)
		}
		if why := s.blobDamage(d, f.SizeBytes); why != "" {
			r.Model.Damaged = f.Path + ": " + why
			break
		}
	}
	return r, nil
}

// blobDamage returns why a blob cannot be used; empty if a quick check finds nothing.
func (s *Store) blobDamage(d digest, size int64) string {
	info, err := s.root.Lstat(blobName(d))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if _, err := s.root.Lstat(damagedName(d)); err == nil {
			return "its content did not match its digest when it was checked"
		}
		return "its file is missing"
	case err != nil:
		return err.Error()
	case !info.Mode().IsRegular():
		return "it is not a regular file"
	case info.Size() != size:
		return fmt.Sprintf("it has %d bytes and should have %d", info.Size(), size)
	}
	return ""
}

// Model finds a model by any of its names, and returns the path of its GGUF file, or of the
// first of several in the same folder. core.NotFound carries the nearest names as hint; a damaged
// model is core.Integrity.
func (s *Store) Model(name string) (core.Model, string, error) {
	r, err := s.findModel(name)
	if err != nil {
		return core.Model{}, "", err
	}
	if r.Model.Damaged != "" {
		return r.Model, "", damagedModel(r.Model)
	}
	name, err = s.modelFile(r)
	if err != nil {
		return core.Model{}, "", err
	}
	return r.Model, s.abs(name), nil
}

func damagedModel(m core.Model) error {
	return core.Errorf(core.Integrity, "model %s is damaged: %s", m.ID, m.Damaged).Hint(
		"Download it again: what is damaged is replaced. It came from %s.", cmp.Or(m.Ref, "an unknown place"))
}

// findModel finds a model, damaged or not, by the rules of modelname.Resolve.
func (s *Store) findModel(name string) (modelRecord, error) {
	records, err := s.modelRecords()
	if err != nil {
		return modelRecord{}, err
	}
	models := make([]core.Model, 0, len(records))
	for _, r := range records {
		models = append(models, r.Model)
	}
	id, ok, err := modelname.Resolve(name, models, nil)
	if err != nil {
		return modelRecord{}, err
	}
	if ok {
		return records[slices.IndexFunc(records, func(r modelRecord) bool { return r.Model.ID == id })], nil
	}
	err = core.Errorf(core.NotFound, "no model %q in the store", name)
	if near := core.Nearest(name, modelname.All(models, nil)); len(near) > 0 {
		return modelRecord{}, core.WithHint(err, "Did you mean %s?", strings.Join(near, " or "))
	}
	return modelRecord{}, core.WithHint(err, "`rbee model list` shows what is there; builtin:rbee-tiny is always available.")
}

// Header reads the GGUF header of a model with all its parts, for memory estimates with other
// numbers of slots and context lengths. name is as in Model.
func (s *Store) Header(name string) (*gguf.File, error) {
	r, err := s.findModel(name)
	if err != nil {
		return nil, err
	}
	if r.Model.Damaged != "" {
		return nil, damagedModel(r.Model)
	}
	headers := make([]*gguf.File, max(r.Parts, 1))
	for i := range headers {
		d, err := parseDigest(r.Model.Files[i].Digest)
		if err != nil {
			return nil, err
		}
		if headers[i], err = s.header(blobName(d)); err != nil {
			return nil, err
		}
	}
	return gguf.Join(headers...)
}

func (s *Store) header(name string) (*gguf.File, error) {
	f, err := s.root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return gguf.Read(f, info.Size())
}

// PutModel fetches a model into the store, or returns the existing one with the new aliases added.
// It replaces a damaged one.
//
// It publishes nothing unless every file has its announced size and digest, and the first file and
// each file named .gguf is a sound GGUF file (core.Integrity otherwise) of a model rather than an
// adapter or a projector (core.Unsupported). A model that is split into several GGUF files lists
// them first, in order; one of them alone is core.Unsupported. The same reference with other files
// replaces the model; the same id from another reference with other files is core.Conflict. Files
// that do not fit on the disk are core.TooLarge.
func (s *Store) PutModel(ctx context.Context, spec ModelSpec, from Supply, progress func(core.Progress)) (core.Model, error) {
	m, err := s.putModel(ctx, spec, from, progress)
	if err != nil {
		return core.Model{}, fmt.Errorf("store model %s: %w", spec.ID, err)
	}
	return m, nil
}

func (s *Store) putModel(ctx context.Context, spec ModelSpec, from Supply, progress func(core.Progress)) (core.Model, error) {
	if err := checkModelSpec(spec); err != nil {
		return core.Model{}, err
	}
	records, err := s.modelRecords()
	if err != nil {
		return core.Model{}, err
	}
	if err := clash(records, spec); err != nil {
		return core.Model{}, err
	}
	if there, ok := sameModel(records, spec); ok && there.Model.Damaged == "" {
		return s.addAliases(spec)
	}
	for attempt := 1; ; attempt++ {
		m, err := s.bringModel(ctx, spec, from, progress)
		if !errors.Is(err, errVanished) || attempt == maxAttempts {
			return m, err
		}
	}
}

// bringModel fetches all files of a model into blobs/ and publishes it. On failure it removes the
// files it fetched.
func (s *Store) bringModel(ctx context.Context, spec ModelSpec, from Supply, progress func(core.Progress)) (_ core.Model, err error) {
	r := modelRecord{Format: recordFormat, Model: core.Model{
		ID: spec.ID, Aliases: nonNil(slices.Clone(spec.Aliases)), Ref: spec.Ref, License: spec.License, CreatedAt: time.Now().UTC().Truncate(time.Second),
	}}
	var keep pins
	defer func() { s.unpin(keep, core.KindOf(err) == core.Unsupported || core.KindOf(err) == core.Integrity) }()
	var headers []*gguf.File
	for i, f := range spec.Files {
		if want, err := parseDigest(f.Digest); err == nil {
			s.pin(&keep, want)
		}
		b, err := s.ensureBlob(ctx, f, i == 0 || isGGUF(f.Path), from, progress)
		if err != nil {
			return core.Model{}, err
		}
		s.pin(&keep, b.digest)
		r.Model.Files = append(r.Model.Files, core.File{Path: f.Path, SizeBytes: b.size, Digest: b.digest.String()})
		r.Origins = append(r.Origins, f.Digest)
		r.Model.SizeBytes += b.size
		headers = append(headers, b.header)
		if i == 0 {
			if err := checkParts(b.header, len(spec.Files)); err != nil {
				return core.Model{}, err
			}
		}
	}
	h, parts, err := join(headers)
	if err != nil {
		return core.Model{}, err
	}
	r.Parts = parts
	r.Model.Digest = r.Model.Files[0].Digest
	r.Model.License = cmp.Or(spec.License, h.License)
	r.Model.Architecture, r.Model.Quantization, r.Model.Parameters = h.Architecture, h.Quantization, h.Parameters
	r.Model.ContextTokens, r.Model.EstimateBytes = h.ContextTokens, h.EstimateBytes(1, 0)
	if err := s.step("record"); err != nil {
		return core.Model{}, err
	}
	return s.writeRecord(spec, r)
}

func checkModelSpec(spec ModelSpec) error {
	if err := modelname.Check(spec.ID, "a model's name"); err != nil {
		return err
	}
	for _, a := range spec.Aliases {
		if err := modelname.Check(a, "a model's alias"); err != nil {
			return err
		}
	}
	if len(spec.Files) == 0 {
		return core.Errorf(core.Invalid, "it has no files")
	}
	for _, f := range spec.Files {
		if err := checkFileSpec(f); err != nil {
			return err
		}
	}
	return nil
}

func checkFileSpec(f FileSpec) error {
	if !fs.ValidPath(f.Path) || f.Path == "." || strings.ContainsFunc(f.Path, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\\' }) {
		return core.Errorf(core.Invalid, "%q cannot be a file's name: it must be relative and without ..", f.Path)
	}
	if f.SizeBytes < 0 {
		return core.Errorf(core.Invalid, "%s cannot have %d bytes", f.Path, f.SizeBytes)
	}
	_, err := parseDigest(f.Digest)
	return err
}

// clash refuses names that belong to another model.
func clash(records []modelRecord, spec ModelSpec) error {
	for _, r := range records {
		if r.Model.ID == spec.ID {
			if r.Model.Damaged == "" && r.Model.Ref != spec.Ref && !sameFiles(r, spec) {
				return core.Errorf(core.Conflict, "the store has another model of this name, from %s", r.Model.Ref).Hint(
					"Use that one by its name, or give this one another: `rbee pull … --name NAME`.")
			}
			continue
		}
		if strings.EqualFold(r.Model.ID, spec.ID) {
			return core.Errorf(core.Conflict, "the store has the model %s, which differs only in capital letters", r.Model.ID).Hint("Choose another name.")
		}
		for _, a := range spec.Aliases {
			if r.Model.ID == a || slices.Contains(r.Model.Aliases, a) {
				return core.Errorf(core.Conflict, "the name %s belongs to the model %s", a, r.Model.ID).Hint("Choose another alias.")
			}
		}
	}
	return nil
}

// sameModel returns the record with spec's id and the same files.
func sameModel(records []modelRecord, spec ModelSpec) (modelRecord, bool) {
	for _, r := range records {
		if r.Model.ID == spec.ID && sameFiles(r, spec) {
			return r, true
		}
	}
	return modelRecord{}, false
}

// sameFiles compares the files by digest, or by reference and size if a source publishes no digest.
func sameFiles(r modelRecord, spec ModelSpec) bool {
	if len(r.Model.Files) != len(spec.Files) || len(r.Origins) != len(spec.Files) {
		return false
	}
	for i, f := range spec.Files {
		have := r.Model.Files[i]
		switch {
		case f.Digest == "":
			if r.Model.Ref != spec.Ref || f.SizeBytes > 0 && f.SizeBytes != have.SizeBytes {
				return false
			}
		case f.Digest != have.Digest && f.Digest != r.Origins[i]:
			return false
		}
	}
	return true
}

// addAliases returns the existing model with the spec's aliases added.
func (s *Store) addAliases(spec ModelSpec) (core.Model, error) {
	s.records.Lock()
	defer s.records.Unlock()
	r, err := s.modelRecord(spec.ID)
	if err != nil {
		return core.Model{}, err
	}
	before := len(r.Model.Aliases)
	r.Model.Aliases = merged(spec.ID, r.Model.Aliases, spec.Aliases)
	if len(r.Model.Aliases) > before {
		if err := s.writeJSON(recordName(spec.ID), r); err != nil {
			return core.Model{}, err
		}
	}
	r.Model.Hives, r.Model.LoadedBy = nonNil(r.Model.Hives), nonNil(r.Model.LoadedBy)
	return r.Model, nil
}

func merged(id string, have, more []string) []string {
	have = nonNil(have)
	for _, a := range more {
		if a != id && !slices.Contains(have, a) {
			have = append(have, a)
		}
	}
	return have
}

// writeRecord publishes a model whose blobs exist. It checks the names again: they may have been
// taken since the transfer began.
func (s *Store) writeRecord(spec ModelSpec, r modelRecord) (core.Model, error) {
	s.records.Lock()
	defer s.records.Unlock()
	records, err := s.modelRecords()
	if err != nil {
		return core.Model{}, err
	}
	if err := clash(records, spec); err != nil {
		return core.Model{}, err
	}
	for _, f := range r.Model.Files {
		if d, err := parseDigest(f.Digest); err != nil || s.blobDamage(d, f.SizeBytes) != "" {
			return core.Model{}, errVanished
		}
	}
	if i := slices.IndexFunc(records, func(r modelRecord) bool { return r.Model.ID == spec.ID }); i >= 0 {
		// people know the model by these aliases
		r.Model.Aliases = merged(spec.ID, records[i].Model.Aliases, spec.Aliases)
	}
	r.Model.Aliases = merged(spec.ID, nil, r.Model.Aliases)
	r.Model.Hives, r.Model.LoadedBy = []string{}, []string{}
	if err := s.writeJSON(recordName(spec.ID), r); err != nil {
		return core.Model{}, err
	}
	return r.Model, nil
}

// ensureBlob makes sure that f is in blobs/, fetched once for all callers.
func (s *Store) ensureBlob(ctx context.Context, f FileSpec, isGGUF bool, from Supply, progress func(core.Progress)) (blob, error) {
	key := f.Digest
	if key == "" {
		key = strings.Join([]string{"undigested", f.Ref, f.Path, f.Locator}, "\x00")
	}
	if isGGUF {
		key = "gguf " + key
	}
	return s.blobs.do(ctx, key, f.origin(), progress, func(ctx context.Context, report func(core.Progress)) (blob, error) {
		want, err := parseDigest(f.Digest)
		if err != nil {
			return blob{}, err
		}
		b, there := s.blobThere(want, f.SizeBytes, isGGUF)
		if there {
			return b, nil
		}
		a, err := s.bring(ctx, f, from, report, func() bool {
			// another process may have been faster
			b, there = s.blobThere(want, f.SizeBytes, isGGUF)
			return there
		})
		if err != nil || there {
			return b, err
		}
		return s.publishBlob(a, isGGUF)
	})
}

// blobThere finds a sound blob that exists already: another model may have fetched it.
func (s *Store) blobThere(want digest, size int64, isGGUF bool) (blob, bool) {
	if want.algorithm != "sha256" {
		return blob{}, false
	}
	info, err := s.root.Lstat(blobName(want))
	if err != nil || !info.Mode().IsRegular() || size > 0 && info.Size() != size {
		return blob{}, false
	}
	b := blob{digest: want, size: info.Size()}
	if isGGUF {
		if b.header, err = s.header(blobName(want)); err != nil {
			return blob{}, false
		}
	}
	return b, true
}

func (s *Store) publishBlob(a *arrival, isGGUF bool) (blob, error) {
	b := blob{digest: a.sha256, size: a.size}
	if isGGUF {
		var err error
		if b.header, err = gguf.Read(a.file, a.size); err == nil {
			err = b.header.Servable()
		}
		if err != nil {
			a.discard()
			return blob{}, err
		}
	}
	if err := s.step("blob"); err != nil {
		a.close()
		return blob{}, err
	}
	if err := s.publish(a.name, blobName(b.digest)); err != nil {
		a.discard()
		return blob{}, spaceError(blobName(b.digest), err)
	}
	a.forget()
	a.close()
	_ = s.root.Remove(damagedName(b.digest))
	if st, ok := s.stampNow(blobName(b.digest)); ok {
		s.noteBlob(b.digest, st)
	}
	return b, nil
}

// VerifyModel reads all files of a model, found as in Model, and compares their digests. A
// difference is core.Integrity; it quarantines the file and marks the model as damaged until it is
// downloaded again.
func (s *Store) VerifyModel(ctx context.Context, name string) error {
	r, err := s.findModel(name)
	if err != nil {
		return err
	}
	if r.Model.Damaged != "" {
		return damagedModel(r.Model)
	}
	for _, f := range r.Model.Files {
		want, err := parseDigest(f.Digest)
		if err != nil {
			return err
		}
		damaged, err := s.verifyBlob(ctx, want, func(int64) {})
		if err != nil {
			return fmt.Errorf("verify model %s: %w", r.Model.ID, err)
		}
		if damaged {
			r.Model.Damaged = f.Path + ": its content does not match its digest"
			return damagedModel(r.Model)
		}
	}
	return nil
}
