package openai

// The values of object.
const (
	ObjectChat       = "chat.completion"
	ObjectChatChunk  = "chat.completion.chunk"
	ObjectCompletion = "text_completion" // also the object of its chunks
	ObjectList       = "list"
	ObjectModel      = "model"
)

// The values of finish_reason.
const (
	FinishStop      = "stop"          // the model finished, or produced a stop string
	FinishLength    = "length"        // max_tokens was reached, or the context is full
	FinishToolCalls = "tool_calls"    //
	FinishFunction  = "function_call" // the old form of tool_calls
)

// ChatResponse is the response of POST /v1/chat/completions without stream.
type ChatResponse struct {
	ID                string       `json:"id"`
	Object            string       `json:"object"`  // ObjectChat
	Created           int64        `json:"created"` // seconds since 1970
	Model             string       `json:"model"`
	SystemFingerprint string       `json:"system_fingerprint,omitempty"`
	Choices           []ChatChoice `json:"choices"`
	Usage             *Usage       `json:"usage,omitempty"`
	Timings           *Timings     `json:"timings,omitempty"` // not OpenAI's
}

// ChatChoice is one answer of a ChatResponse.
type ChatChoice struct {
	Index        int           `json:"index"`
	Message      AnswerMessage `json:"message"`
	LogProbs     *LogProbs     `json:"logprobs"`
	FinishReason string        `json:"finish_reason"`
}

// AnswerMessage is a ChatChoice's message.
type AnswerMessage struct {
	Role    string  `json:"role"` // "assistant"
	Content *string `json:"content"`
	Refusal *string `json:"refusal"`
	// the model's thoughts; not OpenAI's
	ReasoningContent string        `json:"reasoning_content,omitempty"`
	ToolCalls        []ToolCall    `json:"tool_calls,omitempty"`
	FunctionCall     *ToolFunction `json:"function_call,omitempty"` // the old form of ToolCalls
}

// ChatChunk is the data of one event of a streamed chat completion.
type ChatChunk struct {
	ID                string        `json:"id"`
	Object            string        `json:"object"` // ObjectChatChunk
	Created           int64         `json:"created"`
	Model             string        `json:"model"`
	SystemFingerprint string        `json:"system_fingerprint,omitempty"`
	Choices           []ChunkChoice `json:"choices"` // empty in the usage chunk
	// Usage is set in the last chunk if the client asked for it.
	Usage *Usage `json:"usage,omitempty"`
	// Timings are set in the last chunk, or in every chunk if the client asked for that; not
	// OpenAI's.
	Timings *Timings `json:"timings,omitempty"`
}

// ChunkChoice is the part of a ChatChunk that belongs to one answer.
type ChunkChoice struct {
	Index        int       `json:"index"`
	Delta        Delta     `json:"delta"`
	LogProbs     *LogProbs `json:"logprobs,omitempty"`
	FinishReason *string   `json:"finish_reason"` // null until the answer's last chunk
}

// Delta is what a chunk adds to a message.
type Delta struct {
	Role             string        `json:"role,omitempty"` // in the first chunk
	Content          *string       `json:"content,omitempty"`
	Refusal          *string       `json:"refusal,omitempty"`
	ReasoningContent string        `json:"reasoning_content,omitempty"` // not OpenAI's
	ToolCalls        []ToolCall    `json:"tool_calls,omitempty"`
	FunctionCall     *ToolFunction `json:"function_call,omitempty"` // the old form of ToolCalls
}

// CompletionResponse is the response of POST /v1/completions, and the data of one event of its
// stream.
type CompletionResponse struct {
	ID                string             `json:"id"`
	Object            string             `json:"object"` // ObjectCompletion
	Created           int64              `json:"created"`
	Model             string             `json:"model"`
	SystemFingerprint string             `json:"system_fingerprint,omitempty"`
	Choices           []CompletionChoice `json:"choices"`
	Usage             *Usage             `json:"usage,omitempty"`
	Timings           *Timings           `json:"timings,omitempty"` // as in ChatChunk
}

// CompletionChoice is one answer of a CompletionResponse, or a part of it.
type CompletionChoice struct {
	Text         string              `json:"text"`
	Index        int                 `json:"index"`
	LogProbs     *CompletionLogProbs `json:"logprobs"`
	FinishReason *string             `json:"finish_reason"` // null until the answer's last chunk
}

// CompletionLogProbs holds the log probabilities of a legacy completion's tokens. Its lists are as
// long as Tokens.
type CompletionLogProbs struct {
	Tokens        []string             `json:"tokens"`
	TokenLogProbs []float64            `json:"token_logprobs"`
	TopLogProbs   []map[string]float64 `json:"top_logprobs"` // null if none were requested
	// offset of each token in the text, in characters
	TextOffset []int `json:"text_offset"`
}

// LogProbs holds the log probabilities of a choice's tokens.
type LogProbs struct {
	Content []TokenLogProb `json:"content"`
}

// TokenLogProb is one token's log probability.
type TokenLogProb struct {
	Token   string  `json:"token"`
	LogProb float64 `json:"logprob"`
	// the token's bytes as numbers; null: it stands for no text
	Bytes       []int        `json:"bytes"`
	TopLogProbs []TopLogProb `json:"top_logprobs"`
}

// TopLogProb is one of the likeliest tokens at a position.
type TopLogProb struct {
	Token   string  `json:"token"`
	LogProb float64 `json:"logprob"`
	Bytes   []int   `json:"bytes"`
}

// Usage counts the tokens of a request.
type Usage struct {
	PromptTokens            int                      `json:"prompt_tokens"`
	CompletionTokens        int                      `json:"completion_tokens"`
	TotalTokens             int                      `json:"total_tokens"`
	PromptTokensDetails     *PromptTokensDetails     `json:"prompt_tokens_details,omitempty"`
	CompletionTokensDetails *CompletionTokensDetails `json:"completion_tokens_details,omitempty"`
}

// PromptTokensDetails breaks down Usage.PromptTokens.
type PromptTokensDetails struct {
	CachedTokens int `json:"cached_tokens"`
}

// CompletionTokensDetails counts the draft tokens, which were predicted before the model was asked:
// those accepted into the answer, and the rejected ones.
type CompletionTokensDetails struct {
	AcceptedPredictionTokens int `json:"accepted_prediction_tokens"`
	RejectedPredictionTokens int `json:"rejected_prediction_tokens"`
}

// Model is one model of a ModelList.
type Model struct {
	ID      string `json:"id"`
	Object  string `json:"object"` // ObjectModel
	Created int64  `json:"created"`
	OwnedBy string `json:"owned_by"`
}

// ModelList is the response of GET /v1/models.
type ModelList struct {
	Object string  `json:"object"` // ObjectList
	Data   []Model `json:"data"`
}
