package openai

// NativeRequest is the body of llama-server's own POST /completion: a CompletionRequest without
// OpenAI's default of max_tokens.
type NativeRequest struct{ CompletionRequest }

// MaxOutput returns the number of tokens to generate at most; 0: as many as fit.
func (r *NativeRequest) MaxOutput() int { return maxOutput(r.NPredict, r.MaxTokens) }

// DecodeNative is DecodeChat for a NativeRequest.
func DecodeNative(body []byte) (*NativeRequest, error) {
	r, err := DecodeCompletion(body)
	if err != nil {
		return nil, err
	}
	return &NativeRequest{*r}, nil
}

// Bounds of an InfillRequest.
const (
	MaxExtra      = 1024 // further texts
	MaxExtraBytes = 512  // of a text's name
)

// InfillRequest is the body of POST /infill, which is llama-server's: a text with a gap, that the
// model fills.
type InfillRequest struct {
	Model  string      `json:"model"`
	Prefix string      `json:"input_prefix"`     // before the gap
	Suffix string      `json:"input_suffix"`     // behind the gap
	Prompt string      `json:"prompt,omitempty"` // what the gap begins with
	Extra  []ExtraText `json:"input_extra,omitempty"`
	Sampling
	Structure
}

// ExtraText is another text that the model is shown, such as a file that is open as well.
type ExtraText struct {
	Filename string `json:"filename,omitempty"`
	Text     string `json:"text"`
}

// MaxOutput returns the number of tokens to generate at most; 0: as many as fit.
func (r *InfillRequest) MaxOutput() int { return maxOutput(r.NPredict, r.MaxTokens) }

// NoOutput reports whether the client asks for no tokens: the worker only evaluates the prompt.
func (r *InfillRequest) NoOutput() bool { return noOutput(r.NPredict, r.MaxTokens) }

// DecodeInfill is DecodeChat for an InfillRequest.
func DecodeInfill(body []byte) (*InfillRequest, error) {
	r := new(InfillRequest)
	if err := decode(body, r); err != nil {
		return nil, err
	}
	if len(r.Extra) > MaxExtra {
		return nil, Invalid("input_extra", "input_extra has %d texts; at most %d are taken", len(r.Extra), MaxExtra)
	}
	for i, x := range r.Extra {
		if len(x.Filename) > MaxExtraBytes {
			return nil, Invalid("input_extra", "input_extra[%d] has a filename of %d bytes; at most %d are taken", i, len(x.Filename), MaxExtraBytes)
		}
	}
	if _, err := r.Shape(); err != nil {
		return nil, err
	}
	return r, r.validate()
}

// The values of stop_type.
const (
	StopNone  = "none" // not yet
	StopEOS   = "eos"
	StopLimit = "limit"
	StopWord  = "word"
)

// NativeResponse is the answer of POST /completion and POST /infill, and the data of one event of
// their streams: the last one has Stop.
type NativeResponse struct {
	Index           int      `json:"index"`
	Content         string   `json:"content"`
	Tokens          []int32  `json:"tokens"` // always empty: they are not told
	IDSlot          int      `json:"id_slot"`
	Stop            bool     `json:"stop"`
	Model           string   `json:"model,omitempty"`
	TokensPredicted int      `json:"tokens_predicted"`
	TokensEvaluated int      `json:"tokens_evaluated"`
	TokensCached    int      `json:"tokens_cached"`
	Truncated       bool     `json:"truncated"`
	StopType        string   `json:"stop_type,omitempty"` // with Stop
	StoppingWord    string   `json:"stopping_word"`
	Timings         *Timings `json:"timings,omitempty"`
}

// Timings say how long an answer took, as llama-server does. Waiting for a slot is not in them.
type Timings struct {
	CacheN             int     `json:"cache_n"`  // tokens of the prompt that were known already
	PromptN            int     `json:"prompt_n"` // tokens of the prompt that were evaluated
	PromptMS           float64 `json:"prompt_ms"`
	PromptPerTokenMS   float64 `json:"prompt_per_token_ms"`
	PromptPerSecond    float64 `json:"prompt_per_second"`
	PredictedN         int     `json:"predicted_n"`
	PredictedMS        float64 `json:"predicted_ms"`
	PredictedPerToken  float64 `json:"predicted_per_token_ms"`
	PredictedPerSecond float64 `json:"predicted_per_second"`
	DraftN             int     `json:"draft_n,omitempty"` // tokens that were guessed
	DraftAccepted      int     `json:"draft_n_accepted,omitempty"`
}

// Rate fills in what follows from the counts and the times.
func (t *Timings) Rate() {
	rate := func(n int, ms float64) (each, second float64) {
		if n == 0 || ms <= 0 {
			return 0, 0
		}
		return ms / float64(n), 1000 * float64(n) / ms
	}
	t.PromptPerTokenMS, t.PromptPerSecond = rate(t.PromptN, t.PromptMS)
	t.PredictedPerToken, t.PredictedPerSecond = rate(t.PredictedN, t.PredictedMS)
}

// Props is the answer of GET /props: what llama-server tells of its model and itself.
type Props struct {
	Settings     PropsSettings   `json:"default_generation_settings"`
	TotalSlots   int             `json:"total_slots"`
	ModelAlias   string          `json:"model_alias"`
	ModelPath    string          `json:"model_path"` // the model's name: where it lies is nobody's business
	Modalities   map[string]bool `json:"modalities"`
	ChatTemplate string          `json:"chat_template"`
	TemplateCaps map[string]bool `json:"chat_template_caps,omitempty"`
	BOSToken     string          `json:"bos_token"`
	EOSToken     string          `json:"eos_token"`
	BuildInfo    string          `json:"build_info"`
	IsSleeping   bool            `json:"is_sleeping"`
	Slots        bool            `json:"endpoint_slots"`
	Props        bool            `json:"endpoint_props"`
	Metrics      bool            `json:"endpoint_metrics"`
}

// PropsSettings are the settings of a request that says none.
type PropsSettings struct {
	Params  map[string]any `json:"params"`
	Context int            `json:"n_ctx"` // tokens of a slot
}

// Slot is an entry of the answer of GET /slots.
type Slot struct {
	ID           int  `json:"id"`
	Context      int  `json:"n_ctx"`
	Speculative  bool `json:"speculative"`
	IsProcessing bool `json:"is_processing"`
}
