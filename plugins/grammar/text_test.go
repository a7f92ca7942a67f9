package grammar_test

import (
	"errors"
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/grammar"
)

func TestRegex(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, pattern  string
		accept, refuse []string
	}{
		{"literal", `abc`, []string{"abc"}, []string{"ab", "abcd", ""}},
		{"alternatives", `a|bc*|`, []string{"a", "b", "bcc", ""}, []string{"ab", "c"}},
		{"classes", `[^a-c\d]\w\s\S.`, []string{"xy\u00a0zz", "é_ xö"}, []string{"ay zz", "xy zz\n", "1y zz"}},
		{"counts", `a{2}b{1,2}c{2,}d?`, []string{"aabcc", "aabbcccd"}, []string{"abcc", "aabbbcc", "aabc"}},
		{"braces that are literal", `a{,}x{`, []string{"a{,}x{"}, []string{"ax"}},
		{"escapes", `\x41\u00e9\u{1F600}\cA\t\/\-`, []string{"A\u00e9\U0001F600\x01\t/-"}, []string{"A"}},
		{"surrogates", `\ud83d\ude00`, []string{"\U0001F600"}, []string{"x"}},
		{"properties", `\p{Lu}\P{L}\p{Script=Greek}`, []string{"Ä1α"}, []string{"ä1α", "Äxα"}},
		{"lookahead", `(?=.*\d)(?!.*x)[a-z0-9x]{3}`, []string{"ab1", "1ab"}, []string{"abc", "x1a", "a1"}},
		{"nested lookahead", `a(?=b(?!c))b.?`, []string{"ab", "abd"}, []string{"abc", "a"}},
		{"word boundary", `\bfoo\b.*\Bx`, []string{"foo yx"}, []string{"foox", "foo x"}},
		{"anchors", `^a$|^$`, []string{"a", ""}, []string{"b"}},
		{"anchor in a loop", `(a($|/))+`, []string{"a", "a/a", "a/"}, []string{"aa", "/", ""}},
		{"folded", `(?i)aBc[d-e]`, []string{"ABCD", "abce"}, []string{"abcf"}},
		{"lazy", `a+?b*?`, []string{"aab"}, []string{"b"}},
		{"named group", `(?<x>a)(?:b)`, []string{"ab"}, []string{"a"}},
		{"beyond the basic plane", `[\u{10000}-\u{10FFFF}]`, []string{"\U0001F600", "\U0010FFFF"}, []string{"\uffff", "a"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			g, err := grammar.CompileRegex(c.pattern, grammar.Options{})
			must.NoError(t, err)
			for _, s := range c.accept {
				must.True(t, g.Accepts([]byte(s)), must.Sprintf("%q", s))
			}
			for _, s := range c.refuse {
				must.False(t, g.Accepts([]byte(s)), must.Sprintf("%q", s))
			}
		})
	}
}

func TestRegexRefused(t *testing.T) {
	t.Parallel()
	for _, pattern := range []string{
		`(`, `)`, `a)`, `[a`, `*a`, `a{3,2}`, `[b-a]`, `\`, `(?<=a)b`, `(a)\1`, `\p{Nope}`, "\xff", `(?:a(?=b))*c`, `a{99999999}`,
		`[^\s\S]`, `a(?!.*)`, strings.Repeat("(", 1000), `(?!.*a.{30}$)(?=.*b.{30}$)(.*c.{30})$`,
	} {
		_, err := grammar.CompileRegex(pattern, grammar.Options{})
		_, ok := errors.AsType[*grammar.Error](err)
		must.True(t, ok, must.Sprintf("%q: %v", pattern, err))
	}
}

// randomPattern returns an expression with the same meaning in Go and in ECMA 262.
func randomPattern(rng *rand.Rand, depth int) string {
	pick := func(of ...string) string { return of[rng.IntN(len(of))] }
	var b strings.Builder
	for range 1 + rng.IntN(3) {
		k := rng.IntN(12)
		if depth == 0 {
			k = rng.IntN(6)
		}
		var atom string
		switch {
		case k < 6:
			atom = pick("a", "b", "c", "é", ".", `\d`, `\w`, "[a-c]", "[^b]", "[é-ö1]", `\.`, "")
		case k < 8:
			atom = "(" + randomPattern(rng, depth-1) + ")"
		case k < 9:
			atom = "(?:" + randomPattern(rng, depth-1) + "|" + randomPattern(rng, depth-1) + ")"
		case k < 10:
			b.WriteString(pick("^", "$", `\b`, `\B`))
			continue
		default:
			atom = "(?:" + pick("a", "b1", "[ab]", ".é") + ")"
			atom += pick("*", "+", "?", "{2}", "{1,3}", "{0,2}", "*?")
		}
		b.WriteString(atom)
	}
	return b.String()
}

func checkPattern(t testing.TB, seed uint64) {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 2))
	pattern := randomPattern(rng, 3)
	re, err := regexp.Compile(`\A(?:` + pattern + `)\z`)
	must.NoError(t, err)
	g, err := grammar.CompileRegex(pattern, grammar.Options{})
	if err != nil {
		for range 50 {
			if s := randomText(rng); re.MatchString(s) && strings.Contains(err.Error(), "no text") {
				t.Fatalf("%q is refused (%v), but matches %q", pattern, err, s)
			}
		}
		return
	}
	for range 50 {
		s := randomText(rng)
		if g.Accepts([]byte(s)) != re.MatchString(s) {
			t.Fatalf("%q on %q: regexp says %v", pattern, s, re.MatchString(s))
		}
	}
	v := byteVocabulary()
	for range 3 {
		if doc := randomDocument(g, v, rng); doc != nil && !re.Match(doc) {
			t.Fatalf("%q accepts %q", pattern, doc)
		}
	}
}

func randomText(rng *rand.Rand) string {
	var b strings.Builder
	for range rng.IntN(7) {
		b.WriteString([]string{"a", "b", "c", "é", "1", ".", " ", "ö", "x"}[rng.IntN(9)])
	}
	return b.String()
}

func TestRegexAgainstGo(t *testing.T) {
	t.Parallel()
	n := uint64(3000)
	if testing.Short() {
		n = 300
	}
	for seed := range n {
		checkPattern(t, seed)
	}
}

func FuzzRegex(f *testing.F) {
	f.Add(uint64(1))
	f.Fuzz(func(t *testing.T, seed uint64) { checkPattern(t, seed) })
}

func TestChoice(t *testing.T) {
	t.Parallel()
	g, err := grammar.CompileChoice([]string{"yes", "yesterday", "no", "né"}, grammar.Options{})
	must.NoError(t, err)
	for text, ok := range map[string]bool{"yes": true, "yesterday": true, "no": true, "né": true, "ye": false, "": false, "noo": false} {
		must.EqOp(t, ok, g.Accepts([]byte(text)), must.Sprint(text))
	}
	_, err = grammar.CompileChoice(nil, grammar.Options{})
	must.Error(t, err)
}

const jsonGBNF = `
# JSON, written anew
root   ::= value
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
array  ::=
  "[" ws ( value
    ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt/] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9]+)? ws
ws ::= | " " | "\n" [ \t]{0,20}
`

func TestGBNF(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, text     string
		accept, refuse []string
	}{
		{"JSON", jsonGBNF, []string{`{"a": [1, -2.5e+3, "é\n\u00e9", null]}`, `[]`, `""`}, []string{`{`, `{"a"}`, `[1,]`, `01.`, "\"\x01\""}},
		{
			"arithmetic", "root ::= (expr \"=\" num \"\\n\")+\nexpr ::= term ([-+*/] term)*\nterm ::= num | \"(\" expr \")\"\nnum ::= [0-9]+",
			[]string{"1+2=3\n", "(1+(2*3))=7\n4=4\n"},
			[]string{"1+=3\n", "1=1", "(1=1\n"},
		},
		{"counts", `root ::= "ab"{2} [x-z]{1,2} "-"? .{0,1} "\u00e9"?`, []string{"ababx", "ababxz-qé", "ababzé"}, []string{"abx", "abababx", "ababxyzz"}},
		{"choice over lines", "root ::= \"a\" |\n  \"b\"\n# end\nother ::= \"c\"", []string{"a", "b"}, []string{"c", ""}},
		{"ambiguous", "root ::= a a\na ::= \"x\" | \"x\" a", []string{"xx", "xxxxx"}, []string{"x", "", "y"}},
		{"palindromes", "root ::= \"a\" root \"a\" | \"b\" root \"b\" | \"c\"", []string{"c", "abcba", "aacaa"}, []string{"abcab", "ab", "cc"}},
		{"wide characters", `root ::= [ぁ-んァ-ン一-龯]+ [^\U00010000-\U0010FFFF]`, []string{"かな漢x"}, []string{"かな😀", "x"}},
		{"rule without end", "root ::= \"a\" | loop\nloop ::= \"b\" loop", []string{"a"}, []string{"b", "bb"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			g, err := grammar.CompileGBNF(c.text, grammar.Options{})
			must.NoError(t, err)
			for _, s := range c.accept {
				must.True(t, g.Accepts([]byte(s)), must.Sprintf("%q", s))
			}
			for _, s := range c.refuse {
				must.False(t, g.Accepts([]byte(s)), must.Sprintf("%q", s))
			}
			w := &schemaWriter{rand.New(rand.NewPCG(7, 7))}
			v, tokens := w.vocabulary()
			for range 20 {
				if text := checkMasks(t, g, v, tokens, w.rng); text != nil {
					must.True(t, g.Accepts(text), must.Sprintf("%q", text))
				}
			}
		})
	}
}

func TestGBNFRefused(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		``:                        "no rule root",
		`a ::= "x"`:               "no rule root",
		`root ::= b`:              "not defined",
		`root ::= root "a" | "b"`: "left-recursive",
		"root ::= e root \"a\" | \"b\"\ne ::= \"\"": "left-recursive",
		`root ::= "a`:                           "unterminated",
		`root ::= [a`:                           "missing ]",
		`root ::= (("a")`:                       "missing )",
		`root ::= "a"{1`:                        "malformed",
		`root ::= ("a"{100}){100}{100}`:         "too large",
		`root = "a"`:                            "expected ::=",
		"root ::= \"a\"\nroot ::= \"b\"":        "twice",
		`root ::= "a" root`:                     "no text",
		`root ::= <think>`:                      "not supported",
		`root ::= ` + strings.Repeat("(", 5000): "too deeply",
	} {
		_, err := grammar.CompileGBNF(text, grammar.Options{})
		_, ok := errors.AsType[*grammar.Error](err)
		must.True(t, ok, must.Sprintf("%.40q: %v", text, err))
		must.StrContains(t, err.Error(), want)
	}
}

func FuzzGBNF(f *testing.F) {
	f.Add(jsonGBNF, `{"a":1}`)
	f.Add(`root ::= "a"* [b-c]+ (root | "")`, "aab")
	f.Fuzz(func(t *testing.T, text, doc string) {
		if len(text) > 1000 || len(doc) > 200 {
			t.Skip()
		}
		g, err := grammar.CompileGBNF(text, grammar.Options{})
		if err == nil {
			g.Accepts([]byte(doc))
		}
	})
}
