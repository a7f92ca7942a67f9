package llamacpp

import (
	"errors"
	"fmt"

	"github.com/hashicorp/go-hclog"

	"github.com/rbee-project/rbee/plugins/llamacpp/internal/batch"
	"github.com/rbee-project/rbee/plugins/llamacpp/internal/native"
	"github.com/rbee-project/rbee/plugins/sdk"
)

// draft is a smaller model that drafts the next tokens of a larger one.
type draft struct {
	model *native.Model
	ctx   *native.Context
	vocab int // tokens below this are shared with the larger model
}

// mostPadding bounds the difference in vocabulary size, in tokens: files of one family are padded
// to different multiples.
const mostPadding = 128

// openDraft prepares a loaded model to draft for another one. It takes ownership of the model and
// frees it on failure.
func openDraft(small *native.Model, large *model, slots, tokens, threads int) (*draft, error) {
	d := &draft{model: small}
	err := d.fits(large)
	if err == nil {
		d.ctx, err = small.NewContext(native.ContextParams{Sequences: slots, Tokens: tokens, BatchTokens: max(batch.DraftStep, slots), Threads: threads, OutputTokens: slots})
	}
	if err != nil {
		err = fmt.Errorf("load draft model: %w: %w", err, sdk.ErrInvalid)
		return nil, errors.Join(sdk.WithHint(err, "Set draft in the worker type's configuration to a smaller model of the same family, or leave it out."), d.free())
	}
	return d, nil
}

// fits returns an error when the draft model cannot draft for the large one. It sets the common
// vocabulary.
func (d *draft) fits(large *model) error {
	small := d.model
	if small.Reads() || small.Recurrent() {
		return errors.New("a model that cannot generate, or whose cache cannot be cut, cannot draft")
	}
	n, m := small.VocabSize(), len(large.pieces)
	if max(n, m)-min(n, m) > mostPadding {
		return fmt.Errorf("it has %d tokens and the model %d: their vocabularies differ", n, m)
	}
	d.vocab = min(n, m)
	for t := range token(d.vocab) {
		if small.Piece(t) != large.pieces[t] || small.Text(t) != large.tokenText(t) {
			return fmt.Errorf("its token %d is %q and the model's is %q: their vocabularies differ", t, small.Text(t), large.tokenText(t))
		}
	}
	return nil
}

func (d *draft) drafter(slots int, log hclog.Logger) *batch.Drafter {
	if d == nil {
		return nil
	}
	return batch.NewDrafter(d.ctx, slots, d.ctx.SequenceTokens(), d.vocab, log)
}

func (d *draft) free() error {
	if d == nil {
		return nil
	}
	var err error
	if d.ctx != nil {
		err = d.ctx.Free()
	}
	return errors.Join(err, d.model.Free())
}
