package anthropic

import (
	"cmp"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/gateway/dialect"
)

// Model is one model of GET /v1/models.
type Model struct {
	Type           string    `json:"type"` // "model"
	ID             string    `json:"id"`
	DisplayName    string    `json:"display_name"`
	CreatedAt      time.Time `json:"created_at"`
	MaxInputTokens int       `json:"max_input_tokens,omitempty"`
}

// Models is a page of the list of models.
type Models struct {
	Data    []Model `json:"data"`
	FirstID *string `json:"first_id"`
	LastID  *string `json:"last_id"`
	HasMore bool    `json:"has_more"`
}

const (
	defaultModels = 20
	maxModels     = 1000
)

// ModelOf describes a model.
func ModelOf(m core.Model) Model {
	return Model{Type: "model", ID: m.ID, DisplayName: m.ID, CreatedAt: m.CreatedAt.UTC().Truncate(time.Second), MaxInputTokens: m.ContextTokens}
}

// ModelsOf lists models sorted by id. The query has the list's limit, and after_id or before_id,
// the model after which it begins or before which it ends. Errors: *openai.Error.
func ModelsOf(models []core.Model, query url.Values) (Models, error) {
	out, limit := Models{Data: []Model{}}, defaultModels
	if l := query.Get("limit"); l != "" {
		n, err := strconv.Atoi(l)
		if err != nil || n < 1 || n > maxModels {
			return out, dialect.Invalid("limit", "limit must be a number from 1 to %d", maxModels)
		}
		limit = n
	}
	models = slices.Clone(models)
	slices.SortStableFunc(models, func(a, b core.Model) int { return cmp.Compare(a.ID, b.ID) })
	after, before := query.Get("after_id"), query.Get("before_id")
	models = slices.DeleteFunc(models, func(m core.Model) bool { return after != "" && m.ID <= after || before != "" && m.ID >= before })
	if out.HasMore = len(models) > limit; out.HasMore {
		if before != "" {
			models = models[len(models)-limit:]
		} else {
			models = models[:limit]
		}
	}
	for _, m := range models {
		out.Data = append(out.Data, ModelOf(m))
	}
	if n := len(out.Data); n > 0 {
		out.FirstID, out.LastID = &out.Data[0].ID, &out.Data[n-1].ID
	}
	return out, nil
}
