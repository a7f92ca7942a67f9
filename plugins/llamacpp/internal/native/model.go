package native

import (
	"fmt"
	"runtime"

	"github.com/hybridgroup/yzma/pkg/llama"

	"github.com/rbee-project/rbee/plugins/sdk"
)

// Token is a token of a model's vocabulary; negative: none.
type Token = int32

// ModelParams configures how a model is loaded.
type ModelParams struct {
	Placement
	Repack bool // keep a second copy of the weights in a layout optimised for the CPU
	// Progress is called with increasing values from 0 to 100. Its error aborts the load and is
	// returned. May be nil.
	Progress func(percent int) error
}

// Model is a loaded model. Its methods are safe for concurrent use, except Free.
type Model struct {
	handle llama.Model
	vocab  llama.Vocab

	recurrent bool // some layers have a state instead of a cache
	window    int  // positions that layers with a sliding window see

	adapters []llama.AdapterLora // freed with the model
}

// LoadModel loads a model file. The libraries must be loaded. The caller frees the model.
func LoadModel(path string, p ModelParams) (*Model, error) {
	params := llama.ModelDefaultParams()
	held, err := p.apply(&params)
	if err != nil {
		return nil, fmt.Errorf("load model: %w", err)
	}
	if len(p.Devices) == 0 && !p.Repack {
		params.UseExtraBufts = 0
	}
	var stopped error
	percent := -1
	params.SetProgressCallback(func(progress float32, _ uintptr) uint8 {
		if stopped != nil {
			return 0
		}
		if n := int(progress * 100); n > percent && p.Progress != nil {
			percent = n
			if stopped = p.Progress(n); stopped != nil {
				return 0
			}
		}
		return 1
	})
	theLibrary.logs.forget()
	handle, err := llama.ModelLoadFromFile(path, params)
	runtime.KeepAlive(held)
	switch {
	case stopped != nil:
		if handle != 0 {
			_ = llama.ModelFree(handle) // only fails without a model
		}
		return nil, stopped
	case err != nil:
		err = fmt.Errorf("load model: the engine cannot load %s%s: %w", path, theLibrary.logs.explain(), sdk.ErrInvalid)
		return nil, sdk.WithHint(err, "If the file is damaged, delete the model and download it again; if it does not fit in memory, take a smaller one.")
	}
	return &Model{
		handle: handle, vocab: llama.ModelGetVocab(handle),
		recurrent: llama.ModelIsRecurrent(handle) || llama.ModelIsHybrid(handle), window: int(llama.ModelNSWA(handle)),
	}, nil
}

// Recurrent reports whether some layers have a state instead of a cache, so that sequences cannot
// be cut.
func (m *Model) Recurrent() bool { return m.recurrent }

// Free frees the model. Free its contexts first.
func (m *Model) Free() error { return llama.ModelFree(m.handle) }

// TrainedTokens returns the context length that the model was trained for, or 0.
func (m *Model) TrainedTokens() int { return int(llama.ModelNCtxTrain(m.handle)) }

// ChatTemplate returns the source of the model's own chat template, or the empty string.
func (m *Model) ChatTemplate() string { return llama.ModelChatTemplate(m.handle, "") }

// SamplingDefault returns the value that the model's file recommends for a sampling setting:
// "temp", "top_k", "top_p", "min_p" or "penalty_repeat". It reports false without a recommendation.
func (m *Model) SamplingDefault(name string) (string, bool) {
	key, ok := map[string]llama.ModelMetaKey{
		"temp": llama.ModelMetaKeySamplingTemp, "top_k": llama.ModelMetaKeySamplingTopK, "top_p": llama.ModelMetaKeySamplingTopP,
		"min_p": llama.ModelMetaKeySamplingMinP, "penalty_repeat": llama.ModelMetaKeySamplingPenaltyRepeat,
	}[name]
	if !ok {
		return "", false
	}
	return llama.ModelMetaValStr(m.handle, llama.ModelMetaKeyStr(key))
}

// EmbeddingSize returns the dimension of text vectors.
func (m *Model) EmbeddingSize() int { return int(llama.ModelNEmbdOut(m.handle)) }

// VocabSize returns the number of tokens. Tokens are 0 to VocabSize-1.
func (m *Model) VocabSize() int { return int(llama.VocabNTokens(m.vocab)) }

// Piece returns the bytes of a token; empty for control tokens.
func (m *Model) Piece(t Token) string {
	var room [128]byte
	buf := room[:]
	n := llama.TokenToPiece(m.vocab, llama.Token(t), buf, 0, false)
	if n < 0 { // the needed size
		buf = make([]byte, -n)
		n = llama.TokenToPiece(m.vocab, llama.Token(t), buf, 0, false)
	}
	return string(buf[:max(0, n)])
}

// Ends reports whether a token ends a generation.
func (m *Model) Ends(t Token) bool { return llama.VocabIsEOG(m.vocab, llama.Token(t)) }

// Control reports whether a token is a control token or the unknown one.
func (m *Model) Control(t Token) bool {
	return llama.VocabGetAttr(m.vocab, llama.Token(t))&(llama.TokenAttrControl|llama.TokenAttrUnknown) != 0
}

// Text returns the vocabulary's spelling of a token, including control tokens; empty for none.
func (m *Model) Text(t Token) string {
	if t < 0 || int(t) >= m.VocabSize() {
		return ""
	}
	return llama.VocabGetText(m.vocab, llama.Token(t))
}

// BOS returns the token that begins a text, or a negative number.
func (m *Model) BOS() Token { return Token(llama.VocabBOS(m.vocab)) }

// EOS returns the token that ends a text, or a negative number.
func (m *Model) EOS() Token { return Token(llama.VocabEOS(m.vocab)) }

// AddsBOS reports whether the model expects BOS before every prompt.
func (m *Model) AddsBOS() bool { return llama.VocabGetAddBOS(m.vocab) }

// Tokenize returns the tokens of a text, which must not contain NUL. addSpecial adds BOS and EOS
// where the model expects them; parseSpecial turns the spellings of control tokens into control
// tokens.
func (m *Model) Tokenize(text string, addSpecial, parseSpecial bool) []Token {
	list := llama.Tokenize(m.vocab, text, addSpecial, parseSpecial)
	out := make([]Token, len(list))
	for i, t := range list {
		out[i] = Token(t)
	}
	return out
}
