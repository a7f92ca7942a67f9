package openai

// NativeRequest is the body of llama-server's own POST /completion: a CompletionRequest without
// OpenAI's default of max_tokens.
type NativeRequest struct{ CompletionRequest }

// MaxOutput returns the maximum number of tokens to generate; 0: as many as fit.
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
	MaxExtra      = 1024 // input_extra texts
	MaxExtraBytes = 512  // bytes of a text's name
)

// InfillRequest is the body of llama-server's POST /infill: a text with a gap for the model to
// fill.
type InfillRequest struct {
	Model  string      `json:"model"`
	Prefix string      `json:"input_prefix"`     // before the gap
	Suffix string      `json:"input_suffix"`     // after the gap
	Prompt string      `json:"prompt,omitempty"` // start of the text in the gap
	Extra  []ExtraText `json:"input_extra,omitempty"`
	Sampling
	Structure
}

// ExtraText is further context for the model, such as another open file.
type ExtraText struct {
	Filename string `json:"filename,omitempty"`
	Text     string `json:"text"`
}

// MaxOutput returns the maximum number of tokens to generate; 0: as many as fit.
func (r *InfillRequest) MaxOutput() int { return maxOutput(r.NPredict, r.MaxTokens) }

// NoOutput reports whether the client asks for no tokens, in which case the worker only evaluates
// the prompt.
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
	StopNone  = "none" // not stopped yet
	StopEOS   = "eos"
	StopLimit = "limit"
	StopWord  = "word"
)

// NativeResponse is the response of POST /completion and POST /infill, and the data of one event of
// their streams. Stop is set in the last one.
type NativeResponse struct {
	Index           int      `json:"index"`
	Content         string   `json:"content"`
	Tokens          []int32  `json:"tokens"` // always empty: token ids are not reported
	IDSlot          int      `json:"id_slot"`
	Stop            bool     `json:"stop"`
	Model           string   `json:"model,omitempty"`
	TokensPredicted int      `json:"tokens_predicted"`
	TokensEvaluated int      `json:"tokens_evaluated"`
	TokensCached    int      `json:"tokens_cached"`
	Truncated       bool     `json:"truncated"`
	StopType        string   `json:"stop_type,omitempty"` // set when Stop is
	StoppingWord    string   `json:"stopping_word"`
	Timings         *Timings `json:"timings,omitempty"`
}

// Timings report how long an answer took, in llama-server's form. Waiting for a slot is not
// included.
type Timings struct {
	CacheN             int     `json:"cache_n"`  // prompt tokens found in the cache
	PromptN            int     `json:"prompt_n"` // prompt tokens that were evaluated
	PromptMS           float64 `json:"prompt_ms"`
	PromptPerTokenMS   float64 `json:"prompt_per_token_ms"`
	PromptPerSecond    float64 `json:"prompt_per_second"`
	PredictedN         int     `json:"predicted_n"`
	PredictedMS        float64 `json:"predicted_ms"`
	PredictedPerToken  float64 `json:"predicted_per_token_ms"`
	PredictedPerSecond float64 `json:"predicted_per_second"`
	DraftN             int     `json:"draft_n,omitempty"` // draft tokens
	DraftAccepted      int     `json:"draft_n_accepted,omitempty"`
}

// Rate computes the fields that follow from the counts and the times.
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

// Props is the response of GET /props: llama-server's description of its model and itself.
type Props struct {
	Settings     PropsSettings   `json:"default_generation_settings"`
	TotalSlots   int             `json:"total_slots"`
	ModelAlias   string          `json:"model_alias"`
	ModelPath    string          `json:"model_path"` // the model's name: clients must not see its path
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

// PropsSettings are the defaults for a request that sets nothing.
type PropsSettings struct {
	Params  map[string]any `json:"params"`
	Context int            `json:"n_ctx"` // tokens per slot
}

// Slot is one entry of the response of GET /slots.
type Slot struct {
	ID           int  `json:"id"`
	Context      int  `json:"n_ctx"`
	Speculative  bool `json:"speculative"`
	IsProcessing bool `json:"is_processing"`
}
