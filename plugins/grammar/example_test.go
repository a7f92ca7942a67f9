package grammar_test

import (
	"errors"
	"fmt"

	"github.com/rbee-project/rbee/plugins/grammar"
)

func Example() {
	g, err := grammar.Compile([]byte(`{
		"type": "object",
		"properties": {"city": {"enum": ["Berlin", "Bern"]}, "days": {"type": "integer", "minimum": 1, "maximum": 14}},
		"required": ["city", "days"], "additionalProperties": false
	}`), grammar.Options{})
	if err != nil {
		panic(err)
	}
	tokens := [][]byte{[]byte(`{"`), []byte(`city":"`), []byte("Ber"), []byte("lin"), []byte("n"), []byte(`","`), []byte(`days":`), []byte("14"), []byte("15"), []byte("}"), nil}
	v := grammar.NewVocabulary(tokens, 10)

	m := g.NewMatcher(v)
	fmt.Printf("forced: %s\n", m.Forced())
	for _, token := range []int{0, 1, 2} {
		if err := m.Accept(token); err != nil {
			panic(err)
		}
	}
	fmt.Println("lin:", m.Try(3), "days:", m.Try(6))
	for _, token := range []int{4, 5, 6} {
		if err := m.Accept(token); err != nil {
			panic(err)
		}
	}
	mask := make([]uint64, v.MaskLen())
	if err := m.Mask(mask); err != nil {
		panic(err)
	}
	fmt.Printf("mask: %011b\n", mask[0])
	// Output:
	// forced: {"city":"Ber
	// lin: true days: false
	// mask: 00010000000
}

func ExampleCompile_refused() {
	_, err := grammar.Compile([]byte(`{"properties":{"name":{"pattern":"(a)\\1"}}}`), grammar.Options{})
	if e, ok := errors.AsType[*grammar.Error](err); ok {
		fmt.Println(e.Pointer, e.Keyword)
	}
	// Output: /properties/name pattern
}

func ExampleCompileGBNF() {
	g, err := grammar.CompileGBNF(`root ::= "yes" | "no" ("," root)?`, grammar.Options{})
	if err != nil {
		panic(err)
	}
	fmt.Println(g.Accepts([]byte("no,no,yes")), g.Accepts([]byte("yes,no")))
	// Output: true false
}
