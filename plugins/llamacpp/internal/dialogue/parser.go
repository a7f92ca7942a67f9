package dialogue

import (
	"crypto/rand"
	"slices"
	"strconv"
	"strings"
)

// Kind is what a Delta adds to an answer.
type Kind uint8

const (
	// Reasoning is text of the model's thinking.
	Reasoning Kind = iota
	// Content is text for the user.
	Content
	// Call begins a call of a tool: Index, ID and Name are set.
	Call
	// Arguments is a piece of the JSON text of the arguments of call number Index.
	Arguments
)

// Delta is a piece of an answer.
type Delta struct {
	Kind     Kind
	Text     string
	Index    int
	ID, Name string
}

// Bounds of what a parser accepts as calls; text beyond them is content.
const (
	MaxCalls = 128
	maxName  = 256
	maxLead  = 1 << 10  // bytes of whitespace before a block of thinking
	maxHeld  = 64 << 10 // bytes before a call is recognised as one
	maxValue = 1 << 20  // bytes of a value that must be complete before it is passed on
)

// Options configures the parser of an answer.
type Options struct {
	Tools    []Tool        // tools on offer; their schemas type the arguments
	Calls    bool          // look for calls
	Thinking bool          // the prompt has opened a block of thinking
	Formed   bool          // content has a required form: an answer that does not begin with a call has no calls
	NewID    func() string // generates the id of a call; nil: random
}

// Parser turns the text of one answer into deltas. The deltas, joined, do not depend on how the
// text is cut into pieces. It is not safe for concurrent use.
type Parser struct {
	f     *Format
	tools map[string]*Tool
	opts  Options

	buf   string // received and not consumed: at most an incomplete marker
	eof   bool
	out   []Delta
	state func(*Parser) bool // makes progress, or reports false when it needs more text

	marks   []string // markers that may interrupt content
	space   []byte   // whitespace that is content only if more content follows
	trimmed bool     // drop the whitespace before the next content
	tail    bool     // only whitespace and closing markers since a call
	said    [2]bool  // reasoning, content: whether any has been sent
	join    bool     // a separate message follows another one of its kind

	closes  []string // markers that end the block of thinking
	calls   int
	begun   bool // the delta Call of the current call has been sent
	held    []byte
	holding bool // consumed text may turn out to be content

	array  bool // calls are in a JSON array
	object objectCall
	scan   scanner
	name   []byte
	params paramCall
	lit    literalCall
	header harmonyHeader
}

// NewParser returns a parser for a new answer.
func (f *Format) NewParser(opts Options) *Parser {
	p := &Parser{f: f, opts: opts, tools: map[string]*Tool{}, state: (*Parser).start}
	for _, t := range opts.Tools {
		p.tools[t.Name] = &t
	}
	if opts.NewID == nil {
		p.opts.NewID = f.newID
	}
	p.marks = f.drop
	if opts.Calls {
		p.marks = slices.Concat(f.drop, f.sections, f.opens)
	}
	switch {
	case f.syntax == harmony:
		p.state = (*Parser).harmonyStart
	case opts.Thinking && len(f.thinks) > 0:
		p.state = (*Parser).think
		p.trimmed = true
		for _, t := range f.thinks {
			p.closes = append(p.closes, t.close)
		}
	}
	return p
}

// Push adds the next piece of the answer. The result is valid until the next call.
func (p *Parser) Push(text string) []Delta {
	p.out = p.out[:0]
	p.buf += text
	p.run()
	return p.out
}

// Close ends the answer and returns what was held back. An incomplete call keeps the arguments
// received so far.
func (p *Parser) Close() []Delta {
	p.out = p.out[:0]
	p.eof = true
	p.run()
	if p.holding {
		p.fail()
		p.run()
	}
	if p.buf != "" { // the state waits for text that will not arrive
		p.content(p.take(len(p.buf)))
	}
	if len(p.space) > 0 && !p.trimmed {
		p.emit(Delta{Kind: Content, Text: string(p.space)})
	}
	p.space = nil
	return p.out
}

func (p *Parser) run() {
	for p.state(p) {
	}
}

// Calls returns the number of calls that have begun.
func (p *Parser) Calls() int { return p.calls }

// Thinking reports whether the answer is within a block of thinking.
func (p *Parser) Thinking() bool { return p.header.kind == Reasoning && p.header.open }

func (p *Parser) emit(d Delta) {
	if n := len(p.out); n > 0 && d.Kind != Call && p.out[n-1].Kind == d.Kind && p.out[n-1].Index == d.Index {
		p.out[n-1].Text += d.Text
		return
	}
	p.out = append(p.out, d)
}

// take consumes n bytes.
func (p *Parser) take(n int) string {
	s := p.buf[:n]
	p.buf = p.buf[n:]
	if p.holding {
		p.held = append(p.held, s...)
	}
	return s
}

// hold starts keeping consumed text, in case it turns out to be content.
func (p *Parser) hold() {
	p.holding, p.held, p.begun = true, p.held[:0], false
}

// keep is hold within a call that has begun.
func (p *Parser) keep() { p.holding, p.held = true, p.held[:0] }

// fail abandons a call: the held text is content, and so is what follows.
func (p *Parser) fail() bool {
	p.holding, p.begun, p.tail = false, false, false
	p.state = (*Parser).text
	held := string(p.held)
	p.held = p.held[:0]
	p.content(held)
	return true
}

// begin sends the delta Call.
func (p *Parser) begin(name, id string) {
	if id == "" {
		id = p.opts.NewID()
	}
	p.holding, p.begun, p.held = false, true, p.held[:0]
	p.space, p.trimmed = p.space[:0], true
	p.emit(Delta{Kind: Call, Index: p.calls, ID: id, Name: name})
	p.calls++
}

func (p *Parser) arguments(text []byte) {
	if len(text) > 0 {
		p.emit(Delta{Kind: Arguments, Index: p.calls - 1, Text: string(text)})
	}
}

// end ends the call.
func (p *Parser) end() bool {
	p.holding, p.begun, p.tail = false, false, true
	p.state = (*Parser).text
	return true
}

// content sends text for the user, but holds back trailing whitespace, which is dropped before a
// call.
func (p *Parser) content(s string) { p.say(Content, s) }

func (p *Parser) say(kind Kind, s string) {
	if p.trimmed {
		if s = strings.TrimLeft(s, spaces); s == "" {
			return
		}
		p.trimmed = false
	}
	end := len(s)
	if p.opts.Calls || kind == Reasoning { // what follows decides about trailing whitespace
		end = len(strings.TrimRight(s, spaces))
	}
	if end > 0 {
		if p.join {
			p.emit(Delta{Kind: kind, Text: "\n"})
			p.join = false
		}
		if len(p.space) > 0 {
			p.emit(Delta{Kind: kind, Text: string(p.space)})
			p.space = p.space[:0]
		}
		p.emit(Delta{Kind: kind, Text: s[:end]})
		p.said[kind] = true
	}
	p.space = append(p.space, s[end:]...)
}

const spaces = " \t\r\n"

// skipSpace consumes whitespace.
func (p *Parser) skipSpace() {
	p.take(len(p.buf) - len(strings.TrimLeft(p.buf, spaces)))
}

// at reports whether s comes next; wait is true when more text is needed to tell.
func (p *Parser) at(s string) (yes, wait bool) {
	if strings.HasPrefix(p.buf, s) {
		return true, false
	}
	return false, !p.eof && len(p.buf) < len(s) && strings.HasPrefix(s, p.buf)
}

// atAny returns which of list comes next, preferring the longest, or -1.
func (p *Parser) atAny(list []string) (which int, wait bool) {
	which = -1
	for i, s := range list {
		yes, w := p.at(s)
		if w {
			return -1, true
		}
		if yes && (which < 0 || len(s) > len(list[which])) {
			which = i
		}
	}
	return which, false
}

// find returns the position and the index of the first match of list, or -1 and how much of the
// text cannot begin a match.
func (p *Parser) find(list []string) (place, which, free int) {
	place, which = -1, -1
	for i, s := range list {
		if at := strings.Index(p.buf, s); at >= 0 && (place < 0 || at < place || at == place && len(s) > len(list[which])) {
			place, which = at, i
		}
	}
	if place >= 0 || p.eof {
		return place, which, len(p.buf)
	}
	keep := 0
	for _, s := range list {
		for n := min(len(p.buf), len(s)-1); n > keep; n-- {
			if p.buf[len(p.buf)-n:] == s[:n] {
				keep = n
				break
			}
		}
	}
	return -1, -1, len(p.buf) - keep
}

// until moves text up to one of ends to dst and returns the index of that end. It fails when dst
// would exceed limit, or the answer ends first.
func (p *Parser) until(ends []string, limit int, dst *[]byte) (which int, st status) {
	room := limit + 1 - len(*dst)
	at, which, free := p.find(ends)
	if at >= 0 {
		free = at
	}
	*dst = append(*dst, p.take(min(free, room))...)
	switch {
	case len(*dst) > limit:
		return -1, bad
	case at >= 0:
		return which, done
	case p.eof:
		return -1, bad
	}
	return -1, more
}

// start is the beginning of an answer: a block of thinking, a call that needs no marker, or
// content.
func (p *Parser) start() bool {
	n := min(len(p.buf)-len(strings.TrimLeft(p.buf, spaces)), maxLead)
	if n == len(p.buf) && n < maxLead && !p.eof {
		return false
	}
	lead := p.buf[:n]
	p.buf = p.buf[n:]
	opens := make([]string, len(p.f.thinks))
	for i, t := range p.f.thinks {
		opens[i] = t.open
	}
	i, wait := p.atAny(opens)
	switch {
	case wait:
		p.buf = lead + p.buf
		return false
	case i >= 0:
		p.take(len(opens[i]))
		p.state, p.trimmed = (*Parser).think, true
		p.closes = []string{p.f.thinks[i].close}
		return true
	}
	p.say(Content, lead)
	return p.answer()
}

// answer is the beginning of the text outside thinking.
func (p *Parser) answer() bool {
	p.state = (*Parser).text
	if !p.opts.Calls {
		return true
	}
	switch p.f.syntax {
	case jsonCalls:
		if p.f.weak {
			p.state = (*Parser).weakStart
		}
	case recipients:
		p.hold()
		p.state = (*Parser).recipient
	}
	return true
}

// weakStart is a place where a call may begin without a marker.
func (p *Parser) weakStart() bool {
	p.skipLead()
	if p.buf == "" {
		return false
	}
	p.state = (*Parser).text
	if p.buf[0] == '{' || p.buf[0] == '[' && !p.tail {
		p.hold()
		p.state = (*Parser).jsonOpen
	}
	return true
}

// skipLead moves whitespace to the space before content.
func (p *Parser) skipLead() {
	n := len(p.buf) - len(strings.TrimLeft(p.buf, spaces))
	p.content(p.take(n))
}

// think is a block of thinking.
func (p *Parser) think() bool {
	p.header = harmonyHeader{kind: Reasoning, open: true}
	closers := len(p.closes)
	ends := p.closes
	if p.opts.Calls {
		ends = p.f.endOfThinking(p.closes)
	}
	at, which, free := p.find(ends)
	if at < 0 {
		p.say(Reasoning, p.take(free))
		if p.eof {
			p.space = nil
		}
		return false
	}
	p.say(Reasoning, p.take(at))
	if which < closers {
		p.take(len(ends[which]))
	}
	p.header.open = false
	p.space, p.trimmed = p.space[:0], true
	return p.answer()
}

// endOfThinking returns the markers that end a block of thinking: closes, and those of calls if
// they end it.
func (f *Format) endOfThinking(closes []string) []string {
	if !f.endsThinking {
		return closes
	}
	return slices.Concat(closes, f.sections, f.opens)
}

// text is content, up to the next marker.
func (p *Parser) text() bool {
	if p.tail {
		p.skipSpace()
		i, wait := p.atAny(p.f.closers)
		switch {
		case i >= 0:
			p.take(len(p.f.closers[i]))
			return true
		case wait || p.buf == "":
			return false
		}
		if p.f.weak && p.buf[0] == '{' && p.calls < MaxCalls {
			p.hold()
			p.state = (*Parser).jsonOpen
			return true
		}
		p.tail = false
	}
	if p.opts.Formed && p.calls == 0 {
		p.skipSpace()
		if i, wait := p.atAny(p.marks); wait || p.buf == "" {
			return false
		} else if i < 0 {
			p.opts.Formed, p.opts.Calls, p.marks = false, false, p.f.drop
		}
	}
	marks := p.marks
	if p.calls >= MaxCalls {
		marks = p.f.drop
	}
	at, which, free := p.find(marks)
	if at < 0 {
		p.content(p.take(free))
		return false
	}
	p.content(p.take(at))
	if which < len(p.f.drop) {
		p.take(len(marks[which]))
		return true
	}
	p.hold()
	p.take(len(marks[which]))
	switch {
	case which < len(p.f.drop)+len(p.f.sections):
		p.state = p.f.section()
	case p.f.python && marks[which] == "<function=":
		p.state = (*Parser).callName
	default:
		p.state = p.f.open()
	}
	return true
}

// section returns the state after a marker of a section of calls. open returns the state after a
// marker of a call.
func (f *Format) section() func(*Parser) bool {
	switch f.syntax {
	case jsonCalls:
		return (*Parser).jsonOpen
	case pythonCalls:
		return (*Parser).pythonOpen
	}
	return (*Parser).expectOpen
}

func (f *Format) open() func(*Parser) bool {
	switch f.syntax {
	case jsonCalls:
		return (*Parser).jsonOpen
	case xmlCalls:
		return (*Parser).xmlName
	case pythonCalls:
		return (*Parser).pythonOpen
	case gemmaCalls:
		return (*Parser).gemmaName
	case recipients:
		return (*Parser).recipient
	}
	return (*Parser).callName
}

// expectOpen expects the marker of the first call of a section.
func (p *Parser) expectOpen() bool {
	p.skipSpace()
	i, wait := p.atAny(p.f.opens)
	switch {
	case i >= 0:
		p.take(len(p.f.opens[i]))
		p.state = p.f.open()
		return true
	case wait || p.buf == "":
		return false
	case p.buf[0] == '{' && p.f.syntax == xmlCalls: // as related models write it
		p.state = (*Parser).jsonOpen
		return true
	}
	return p.fail()
}

// validName reports whether name is plausible as the name of a tool.
func validName(name string) bool {
	if name == "" || len(name) > maxName {
		return false
	}
	for i := range len(name) {
		if b := name[i]; b <= ' ' || strings.IndexByte("\"'`<>{}()[]=,;|\x7f", b) >= 0 {
			return false
		}
	}
	return true
}

func (f *Format) newID() string {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
	n, prefix := 24, "call_"
	if f.shortIDs {
		n, prefix = 9, ""
	}
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	for i := range b {
		b[i] = letters[int(b[i])%len(letters)]
	}
	return prefix + string(b)
}

func appendQuoted(out []byte, s string) []byte {
	return append(appendEscaped(append(out, '"'), s), '"')
}

// trimIndex returns the name in the id of a Kimi call, functions.NAME:INDEX, without the index.
func trimIndex(id string) string {
	if i := strings.LastIndexByte(id, ':'); i >= 0 {
		if _, err := strconv.ParseUint(id[i+1:], 10, 32); err == nil {
			return id[:i]
		}
	}
	return id
}
