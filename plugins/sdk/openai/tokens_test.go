package openai

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

func TestDecodeTokenize(t *testing.T) {
	t.Parallel()
	r, err := DecodeTokenize([]byte(`{"content":["a",5,"b"],"add_special":true,"parse_special":false,"with_pieces":true}`))
	must.NoError(t, err)
	must.Eq(t, MixedText{{Text: "a"}, {Token: 5, IsToken: true}, {Text: "b"}}, r.Content)
	must.True(t, r.AddSpecial)
	must.False(t, *r.ParseSpecial)
	must.True(t, r.WithPieces)
	r, err = DecodeTokenize([]byte(`{"content":""}`))
	must.NoError(t, err)
	must.Eq(t, MixedText{{}}, r.Content)
	must.Nil(t, r.ParseSpecial)
	r, err = DecodeTokenize([]byte(`{"content":[]}`))
	must.NoError(t, err)
	must.Len(t, 0, r.Content)
	d, err := DecodeDetokenize([]byte(`{"tokens":[` + strings.Repeat("7,", MaxValues) + `8]}`)) // tokens do not count as values
	must.NoError(t, err)
	must.Len(t, MaxValues+1, d.Tokens)
}

func TestPiece(t *testing.T) {
	t.Parallel()
	for wire, bytes := range map[string]string{`"ü"`: "ü", `[195]`: "\xc3", `""`: "", `[97,255]`: "a\xff"} {
		b, err := json.Marshal(Piece(bytes))
		must.NoError(t, err)
		must.Eq(t, wire, string(b))
		var back Piece
		must.NoError(t, json.Unmarshal(b, &back))
		must.Eq(t, bytes, string(back))
	}
}

func TestDecodeRerank(t *testing.T) {
	t.Parallel()
	r, err := DecodeRerank([]byte(`{"query":"q","documents":["a",{"text":"b","title":"x"}],"top_n":9,"return_documents":true}`))
	must.NoError(t, err)
	must.Eq(t, []Document{{"a"}, {"b"}}, r.Documents)
	must.Eq(t, 9, *r.TopN)
	r, err = DecodeRerank([]byte(`{"query":"q","texts":["a"]}`))
	must.NoError(t, err)
	must.Eq(t, []Document{{"a"}}, r.Documents)
}

func TestTokensRefuse(t *testing.T) {
	t.Parallel()
	tokenize := func(b []byte) error { _, err := DecodeTokenize(b); return err }
	detokenize := func(b []byte) error { _, err := DecodeDetokenize(b); return err }
	rerank := func(b []byte) error { _, err := DecodeRerank(b); return err }
	for _, c := range []struct {
		decode      func([]byte) error
		body, param string
		says        string
	}{
		{tokenize, `{}`, "content", "content is missing"},
		{tokenize, `{"content":null}`, "content", "content is missing"},
		{tokenize, `{"content":5}`, "content", "must be a string or an array of strings and token ids, not a number"},
		{tokenize, `{"content":["a",1.5]}`, "content", "must be a string or an array of strings and token ids"},
		{tokenize, `{"content":[null]}`, "content", "must be a string or an array of strings and token ids"},
		{tokenize, `{"content":[99999999999]}`, "content", "must be a string or an array of strings and token ids"},
		{tokenize, `{"content":[` + strings.Repeat("7,", MaxValues) + `8]}`, "", "at most"},
		{detokenize, `{}`, "tokens", "tokens is missing"},
		{detokenize, `{"tokens":["a"]}`, "tokens", "must be an integer"},
		{rerank, `{"documents":["a"]}`, "query", "query is missing"},
		{rerank, `{"query":"q"}`, "documents", "documents is missing"},
		{rerank, `{"query":"q","documents":[]}`, "documents", "documents is missing"},
		{rerank, `{"query":"q","documents":"a"}`, "documents", "must be an array of strings or of objects with a text"},
		{rerank, `{"query":"q","documents":[5]}`, "documents", "must be an array of strings or of objects with a text"},
		{rerank, `{"query":"q","documents":[{"a":1}]}`, "documents", "must be an array of strings or of objects with a text"},
		{rerank, `{"query":"q","documents":["a"],"top_n":0}`, "top_n", "top_n must be 1 or more"},
		{rerank, `{"query":"q","documents":["a"],"truncate_prompt_tokens":0}`, "truncate_prompt_tokens", "must be -1"},
		{rerank, `{"query":"q","documents":[` + strings.Repeat(`"a",`, MaxDocuments) + `"a"]}`, "documents", "at most 2048"},
	} {
		e, ok := errors.AsType[*Error](c.decode([]byte(c.body)))
		must.True(t, ok, must.Sprint(c.body[:min(len(c.body), 60)]))
		must.StrContains(t, e.Message, c.says)
		if c.param != "" {
			must.StrHasPrefix(t, c.param, *e.Param)
		}
	}
}
