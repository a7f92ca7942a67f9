package responses

import (
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strconv"

	"github.com/rbee-project/rbee/core/gateway/dialect"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// NotKept returns the error for an id with no stored answer.
func NotKept(id string) *openai.Error {
	return openai.NewError(http.StatusNotFound, openai.TypeInvalidRequest, "response_id", "response_not_found",
		"the response %s is not kept: the queen that gave it has it in memory for a while, unless store was false", clip(id))
}

// NotRunning returns the error for cancelling an answer that has ended.
func NotRunning(id string) *openai.Error {
	return openai.Invalid("response_id", "the response %s has ended: only one that is being made can be cancelled", clip(id))
}

// Deleted is the answer to deleting a response.
type Deleted struct {
	ID      string `json:"id"`
	Object  string `json:"object"` // "response"
	Deleted bool   `json:"deleted"`
}

// Cancelled is a response that was cancelled while running: its partial output went to the client
// that requested it.
type Cancelled struct {
	ID     string `json:"id"`
	Object string `json:"object"` // "response"
	Status string `json:"status"` // "cancelled"
	Output []any  `json:"output"`
}

// ItemList is a list of the input items of a response.
type ItemList struct {
	Object  string `json:"object"` // "list"
	Data    []any  `json:"data"`
	FirstID string `json:"first_id"`
	LastID  string `json:"last_id"`
	HasMore bool   `json:"has_more"`
}

const (
	defaultItems = 20
	maxItems     = 100
)

// Inputs lists the items before the stored answer with the given id. The query has the list's
// limit, order and after. Errors: *openai.Error.
func (s *Store) Inputs(id, key string, query url.Values) (ItemList, error) {
	out := ItemList{Object: openai.ObjectList, Data: []any{}}
	a, ok := s.get(id, key)
	if !ok {
		return out, NotKept(id)
	}
	limit := defaultItems
	if l := query.Get("limit"); l != "" {
		n, err := strconv.Atoi(l)
		if err != nil || n < 1 || n > maxItems {
			return out, dialect.Invalid("limit", "limit must be a number from 1 to %d", maxItems)
		}
		limit = n
	}
	places := make([]int, a.Inputs)
	for i := range places {
		places[i] = i
	}
	switch order := query.Get("order"); order {
	case "", "desc":
		slices.Reverse(places)
	case "asc":
	default:
		return out, dialect.Invalid("order", "order must be asc or desc")
	}
	if after := query.Get("after"); after != "" {
		at := slices.IndexFunc(places, func(i int) bool { return itemID(id, a.Items[i], i) == after })
		if at < 0 {
			return out, dialect.Invalid("after", "after must be the id of an item of this response")
		}
		places = places[at+1:]
	}
	for _, i := range places[:min(limit, len(places))] {
		out.Data = append(out.Data, shown(id, a.Items[i], i))
	}
	out.HasMore = len(places) > limit
	if n := min(limit, len(places)); n > 0 {
		out.FirstID, out.LastID = itemID(id, a.Items[places[0]], places[0]), itemID(id, a.Items[places[n-1]], places[n-1])
	}
	return out, nil
}

// itemID returns the id of the item at a position; clients need not set one.
func itemID(response string, it item, place int) string {
	if it.ID != "" {
		return it.ID
	}
	return "item_" + response + "_" + strconv.Itoa(place)
}

// shown returns an item in its list form: with an id, a type and a status, and a message's content
// as parts.
func shown(response string, it item, place int) any {
	it.ID = itemID(response, it, place)
	if it.Type == "" {
		it.Type = typeMessage
	}
	if it.Type == typeMessage && len(it.Content) > 0 && it.Content[0] == '"' {
		typ := "input_text"
		if it.Role == "assistant" {
			typ = "output_text"
		}
		it.Content = json.RawMessage(`[{"type":"` + typ + `","text":` + string(it.Content) + `}]`)
	}
	return struct {
		item
		Status string `json:"status"`
	}{it, completed}
}
