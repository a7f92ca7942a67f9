package grammar

import (
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// Error is the reason why a schema or a grammar was refused.
type Error struct {
	Pointer string // JSON pointer of the subschema; "" for the root, or when not about a schema
	Keyword string // the keyword that cannot be guaranteed; "" for the whole schema
	Reason  string
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString("grammar: ")
	if e.Pointer != "" || e.Keyword != "" {
		fmt.Fprintf(&b, "#%s: ", e.Pointer)
	}
	if e.Keyword != "" {
		fmt.Fprintf(&b, "%s: ", e.Keyword)
	}
	b.WriteString(e.Reason)
	return b.String()
}

// typeSet is a set of JSON types; true and false count as two.
type typeSet uint8

const (
	tNull typeSet = 1 << iota
	tFalse
	tTrue
	tNumber
	tString
	tObject
	tArray
	tAll = tNull | tFalse | tTrue | tNumber | tString | tObject | tArray
)

// schema is a parsed subschema: an intersection of its keywords' constraints. A keyword for one
// type does not constrain values of others.
type schema struct {
	id     int
	at     string // JSON pointer
	never  bool
	types  typeSet
	num    *numSpec
	str    rx
	length lengths // of a string, besides str
	obj    *objRule
	arr    *arrRule
	all    []lit     // all hold
	choice [][][]lit // of each choice, one conjunction holds
	ones   [][]lit   // of each list, exactly one holds
	enum   []*jvalue // nil: any value
	base   *resource
}

// lit is a schema or its negation.
type lit struct {
	s   *schema
	neg bool
}

func (l lit) key() int {
	if l.neg {
		return l.s.id*2 + 1
	}
	return l.s.id * 2
}

// objRule is one schema's constraints on objects.
type objRule struct {
	order    []string
	props    map[string][]lit
	patterns []patternRule
	rest     []lit // of other properties; nil: any
	required []string
	min, max int                 // max < 0: unbounded
	names    [][]lit             // all hold for every property's name
	deps     map[string][]string // property → properties that it requires
	some     []someRule          // properties that must exist
}

type patternRule struct {
	src  string
	lang rx
	lits []lit
}

// someRule demands a property whose name matches lang and whose value satisfies lits.
type someRule struct {
	lang rx
	lits []lit
}

// arrRule is one schema's constraints on arrays.
type arrRule struct {
	prefix   [][]lit
	rest     []lit // nil: any
	min, max int
	contains []containsRule
	unique   bool
}

// containsRule bounds how many items, starting at an index, satisfy lits.
type containsRule struct {
	lits     []lit
	min, max int
	from     int
}

// parser converts JSON to schemas, on demand.
type parser struct {
	opts      *Options
	set       *rxSet
	root      *jvalue
	draft     int // 4, 6, 7, 2019, 2020; 0: undeclared
	schemas   map[*jvalue]*schema
	resources map[string]*resource
	anchors   map[string]*jvalue
	bases     map[*jvalue]*resource
	nextID    int
	depth     int
	any, none *schema
	patterns  map[string]rx
	consts    map[*jvalue]*schema
}

func newParser(root *jvalue, opts *Options, set *rxSet) *parser {
	p := &parser{
		opts: opts, set: set, root: root,
		schemas: map[*jvalue]*schema{}, resources: map[string]*resource{}, anchors: map[string]*jvalue{},
		bases: map[*jvalue]*resource{}, patterns: map[string]rx{}, consts: map[*jvalue]*schema{},
	}
	p.draft = draftOf(root)
	p.any, p.none = p.synthetic(""), p.synthetic("")
	p.none.never = true
	p.index(root, &resource{root: root, uri: &url.URL{}}, true)
	return p
}

// synthetic returns a new schema that allows everything.
func (p *parser) synthetic(at string) *schema {
	p.nextID++
	p.set.charge(400)
	return &schema{id: p.nextID, at: at, types: tAll, str: rxAll, length: anyLength}
}

func refuse(at, keyword, format string, args ...any) *Error {
	return &Error{Pointer: at, Keyword: keyword, Reason: fmt.Sprintf(format, args...)}
}

// parse returns the schema defined by v.
func (p *parser) parse(v *jvalue, at string) (*schema, error) {
	if s, ok := p.schemas[v]; ok {
		return s, nil
	}
	if p.depth++; p.depth > maxSchemaDepth {
		return nil, refuse(at, "", "schemas are nested too deeply")
	}
	defer func() { p.depth-- }()
	switch v.kind {
	case jTrue:
		return p.any, nil
	case jFalse:
		return p.none, nil
	case jObject:
	default:
		return nil, refuse(at, "", "a schema is an object or a boolean")
	}
	s := p.synthetic(at)
	p.schemas[v] = s
	s.base = p.bases[v]
	if s.base == nil {
		s.base = p.resources[""]
	}
	if err := p.keywords(s, v); err != nil {
		delete(p.schemas, v)
		return nil, err
	}
	return s, nil
}

func (p *parser) sub(s *schema, v *jvalue, path ...string) (lit, error) {
	var at strings.Builder
	at.WriteString(s.at)
	for _, x := range path {
		at.WriteString("/" + escapePointer(x))
	}
	c, err := p.parse(v, at.String())
	return lit{s: c}, err
}

func (p *parser) subs(s *schema, v *jvalue, key string) ([]lit, error) {
	if v.kind != jArray || len(v.arr) == 0 {
		return nil, refuse(s.at, key, "must be an array of schemas")
	}
	out := make([]lit, len(v.arr))
	for i, e := range v.arr {
		l, err := p.sub(s, e, key, strconv.Itoa(i))
		if err != nil {
			return nil, err
		}
		out[i] = l
	}
	return out, nil
}

// constant returns a schema for exactly the array or object v.
func (p *parser) constant(v *jvalue) *schema {
	if s := p.consts[v]; s != nil {
		return s
	}
	s := p.synthetic("")
	p.consts[v] = s
	one := func(e *jvalue) []lit {
		x := p.synthetic("")
		x.enum = []*jvalue{e}
		return []lit{{s: x}}
	}
	switch v.kind {
	case jArray:
		s.types = tArray
		a := s.array()
		for _, e := range v.arr {
			a.prefix = append(a.prefix, one(e))
		}
		a.min, a.max = len(v.arr), len(v.arr)
	case jObject:
		s.types = tObject
		o := s.object()
		o.order, o.required = v.keys, v.keys
		o.rest = []lit{{s: p.none}}
		for _, k := range v.keys {
			o.props[k] = one(v.obj[k])
		}
	}
	return s
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
