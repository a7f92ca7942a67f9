package grammar

import (
	"fmt"
	"strings"
)

// regexFormat returns an expression that matches regular expressions valid both in ECMA 262 and in
// dialects without lookaround. It allows groups nested three levels deep, no back references and no
// counts above 99.
func regexFormat() string {
	const (
		plain    = `[^\^$\\.*+?()\[\]{}|\u0000-\u001f\u007f-\uffff]`
		escaped  = `\\[dDwWsStnrfv^$\\.*+?()\[\]{}|/-]`
		hexCode  = `\\x[0-9a-fA-F]{2}`
		anchor   = `(?:[\^$]|\\[bB])`
		inClass  = `(?:[^\\\[\]\^&~:=-]|\\[dDwWsStnrfv^$\\.*+?()\[\]{}|/-])`
		span     = `(?:0-[0-9]|[0-9]-9|1-[1-9]|a-[a-z]|[a-z]-z|A-[A-Z]|[A-Z]-Z)`
		class    = `\[\^?-?(?:` + span + `|` + inClass + `)+-?\]`
		repeated = `[*+?]\??`
	)
	var counts []string // {n}, {n,} and {n,m}
	for n := range 10 {
		counts = append(counts, fmt.Sprintf(`\{%d(?:,(?:[%d-9]|[1-9]\d)?)?\}\??`, n, n))
	}
	counts = append(counts, `\{[1-9]\d,?\}\??`, `\{[1-9]\d,99\}\??`)
	counted := strings.Join(counts, "|")

	atom := `(?:` + plain + `|\.|` + escaped + `|` + hexCode + `|` + class + `)`
	bare := `(?:` + anchor + `|` + atom + `(?:` + repeated + `)?)` // without counts
	term := `(?:` + anchor + `|` + atom + `(?:` + repeated + `|` + counted + `)?)`
	group := func(term string) string { return `\((?:\?:)?(?:` + term + `|\|)*\)` }
	for level := range 3 {
		inner := bare // some dialects bound the product of nested counts
		if level == 0 {
			inner = term
		}
		term = `(?:` + term + `|` + group(term) + `(?:` + repeated + `)?|` + group(inner) + `\{[1-9]\}\??)`
		bare = `(?:` + bare + `|` + group(bare) + `(?:` + repeated + `)?)`
	}
	return `(?:` + term + `|\|)*`
}
