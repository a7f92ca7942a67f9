package dialogue

import "strings"

// harmonyHeader is the header of a message in the format of gpt-oss, where an answer consists of
// several messages on several channels. Other formats use it to track where they are.
type harmonyHeader struct {
	kind  Kind
	open  bool // a block of thinking is open
	final bool // the message is the answer
	text  []byte
}

// maxHeader bounds the header of a message, in bytes.
const maxHeader = 1 << 10

var (
	harmonyStarts = []string{"<|channel|>", "<|start|>", "<|message|>", "<|constrain|>", " to=", "to="}
	harmonyEnds   = []string{"<|end|>", "<|call|>", "<|return|>", "<|start|>", "<|channel|>"}
)

// harmonyStart is at the beginning of a message's header: the prompt ends with the role.
func (p *Parser) harmonyStart() bool {
	i, wait := p.atAny(harmonyStarts)
	switch {
	case wait || p.buf == "":
		return false
	case i < 0: // no header: the model is speaking
		p.header = harmonyHeader{kind: Content}
		p.state = (*Parser).harmonyText
		return true
	}
	p.hold()
	p.header = harmonyHeader{}
	p.state = (*Parser).harmonyHead
	return true
}

func (p *Parser) harmonyHead() bool {
	h := &p.header
	switch _, st := p.until([]string{"<|message|>"}, maxHeader, &h.text); st {
	case more:
		return false
	case bad:
		return p.failHarmony()
	}
	p.take(len("<|message|>"))
	head := string(h.text)
	word := func(after string) string {
		_, rest, _ := strings.Cut(head, after)
		if i := strings.IndexAny(rest, " <\n"); i >= 0 {
			rest = rest[:i]
		}
		return rest
	}
	channel, to := word("<|channel|>"), word("to=")
	p.space, p.trimmed = p.space[:0], true
	name, isFunction := strings.CutPrefix(to, "functions.")
	_, known := p.tools[name]
	switch {
	case p.opts.Calls && (isFunction || known) && validName(name) && p.calls < MaxCalls:
		p.object = objectCall{name: name}
		p.state = (*Parser).harmonyArguments
		return true
	case to != "" && to != "assistant" && to != "user":
		return p.failHarmony()
	}
	p.holding = false
	*h = harmonyHeader{kind: Content, final: channel == "final"}
	if channel == "analysis" {
		*h = harmonyHeader{kind: Reasoning, open: true}
	}
	p.join = p.said[h.kind]
	p.state = (*Parser).harmonyText
	return true
}

// failHarmony treats the held header of a message as content.
func (p *Parser) failHarmony() bool {
	p.fail()
	p.header = harmonyHeader{kind: Content}
	p.state = (*Parser).harmonyText
	return true
}

func (p *Parser) harmonyArguments() bool {
	p.skipSpace()
	if p.buf == "" {
		return false
	}
	if p.buf[0] != '{' {
		return p.failHarmony()
	}
	p.begin(p.object.name, "")
	p.scan = scanner{}
	p.state = (*Parser).harmonyJSON
	return true
}

func (p *Parser) harmonyJSON() bool {
	out, n, st := p.scan.feed(p.buf, nil)
	p.take(n)
	p.arguments(out)
	if st == more {
		return false
	}
	p.header = harmonyHeader{kind: Content}
	p.begun = false
	p.state = (*Parser).harmonyText
	return true
}

// harmonyText is the body of a message. A marker that no message border follows is text, as a model
// may write about its own format. Content with a required form has no markers at all.
func (p *Parser) harmonyText() bool {
	if p.header.final && p.opts.Formed {
		p.say(Content, p.take(len(p.buf)))
		return false
	}
	at, which, free := p.find(harmonyEnds)
	if at < 0 {
		p.say(p.header.kind, p.take(free))
		if p.eof && p.header.kind == Reasoning {
			p.space = p.space[:0]
		}
		return false
	}
	p.say(p.header.kind, p.take(at))
	end := harmonyEnds[which]
	switch border, wait := p.harmonyBorder(end); {
	case wait:
		return false
	case !border:
		p.say(p.header.kind, p.take(len(end)))
		return true
	}
	p.space, p.trimmed, p.header.open = p.space[:0], true, false
	if end != "<|channel|>" && end != "<|start|>" {
		p.take(len(end))
		p.skipSpace()
	}
	p.state = (*Parser).harmonyStart
	return true
}

// harmonyHeads are the texts that can begin the header of another message.
var harmonyHeads = []string{
	"<|start|>assistant<|", "<|start|>assistant ", "<|channel|>analysis<|", "<|channel|>analysis ",
	"<|channel|>commentary<|", "<|channel|>commentary ", "<|channel|>final<|", "<|channel|>final ",
}

// harmonyBorder reports whether a message ends at the next marker: the answer ends after it, or the
// header of another message follows. wait is true when more text is needed to tell.
func (p *Parser) harmonyBorder(end string) (border, wait bool) {
	rest := p.buf
	if end != "<|channel|>" && end != "<|start|>" {
		if rest = strings.TrimLeft(rest[len(end):], spaces); rest == "" {
			return p.eof, !p.eof
		}
	}
	for _, head := range harmonyHeads {
		if strings.HasPrefix(rest, head) {
			return true, false
		}
		wait = wait || !p.eof && strings.HasPrefix(head, rest)
	}
	return false, wait
}
