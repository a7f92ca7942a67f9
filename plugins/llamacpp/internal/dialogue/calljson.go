package dialogue

import (
	"encoding/json"
	"strings"
)

// objectCall is a call written as one JSON object with a name and arguments.
type objectCall struct {
	phase   objectPhase
	nested  int    // objects around this one, as in {"function":{…}}
	key     string // key of the value being read
	value   []byte // the part of the value read so far
	name    string
	id      string
	args    []byte // arguments received before the name
	hasArgs bool
}

type objectPhase uint8

const (
	oOpen   objectPhase = iota // {
	oKey                       // a key or }
	oInKey                     //
	oColon                     //
	oValue                     // the beginning of a value
	oPlain                     // within a number or a word
	oText                      // within a value that must be complete
	oSkip                      // within an ignored value
	oArgs                      // within arguments that are passed on
	oBefore                    // within arguments whose name is not known yet
	oAfter                     // a comma or }
)

// jsonOpen expects a call object or an array of them.
func (p *Parser) jsonOpen() bool {
	p.skipSpace()
	if p.buf == "" {
		return false
	}
	switch p.buf[0] {
	case '[':
		p.take(1)
		p.array = true
		p.state = (*Parser).jsonItem
		return true
	case '{':
		p.array = false
		p.state = (*Parser).jsonItem
		return true
	}
	if p.f.python && p.scriptOpen() {
		return true
	}
	return p.fail()
}

func (p *Parser) jsonItem() bool {
	p.skipSpace()
	if p.buf == "" {
		return false
	}
	if p.buf[0] != '{' || p.calls >= MaxCalls {
		return p.fail()
	}
	p.object = objectCall{}
	p.state = (*Parser).jsonObject
	return true
}

// jsonNext follows an object in an array.
func (p *Parser) jsonNext() bool { return p.nextOf((*Parser).jsonItem) }

// nextOf follows an item of a list of calls.
func (p *Parser) nextOf(item func(*Parser) bool) bool {
	p.skipSpace()
	if p.buf == "" {
		return false
	}
	switch p.buf[0] {
	case ',':
		p.hold()
		p.take(1)
		p.skipSpace()
		p.state = item
		return true
	case ']':
		p.take(1)
		return p.end()
	}
	return p.fail()
}

func (p *Parser) jsonObject() bool {
	o := &p.object
	for p.buf != "" {
		if p.holding && len(p.held) > maxHeld {
			return p.fail()
		}
		switch o.phase {
		case oInKey, oText, oBefore, oSkip:
			limit := len(p.buf)
			if p.holding {
				limit = min(limit, maxHeld+1-len(p.held))
			}
			out, n, st := p.scan.feed(p.buf[:limit], nil)
			p.take(n)
			if o.phase != oSkip {
				o.value = append(o.value, out...)
			}
			if st == bad || st == done && !p.objectValue() {
				return p.fail()
			}
			continue
		case oArgs:
			out, n, st := p.scan.feed(p.buf, nil)
			p.take(n)
			p.arguments(out)
			switch st {
			case bad:
				return p.fail()
			case done:
				o.phase = oAfter
				p.keep()
			}
			continue
		}
		b := p.buf[0]
		if o.phase == oPlain {
			if b != ',' && b != '}' && !isSpace(b) {
				if len(o.value) >= maxName {
					return p.fail()
				}
				o.value = append(o.value, b)
				p.take(1)
				continue
			}
			if !json.Valid(o.value) || !p.objectValue() {
				return p.fail()
			}
			continue
		}
		if isSpace(b) {
			p.take(1)
			continue
		}
		ok, ended := p.objectByte(b)
		if !ok {
			return p.fail()
		}
		if ended {
			p.end()
			if p.array {
				p.state, p.tail = (*Parser).jsonNext, false
			}
			return true
		}
	}
	return false
}

// objectByte consumes a byte between keys and values. It reports whether the object has ended.
func (p *Parser) objectByte(b byte) (ok, ended bool) {
	o := &p.object
	switch o.phase {
	case oOpen:
		ok = b == '{'
		o.phase = oKey
	case oKey:
		switch b {
		case '"':
			p.scan, o.value, o.phase = scanner{}, nil, oInKey
			return true, false
		case '}':
			return p.objectClose()
		}
	case oColon:
		ok = b == ':'
		o.phase = oValue
	case oValue:
		return p.objectOpenValue(b), false
	case oAfter:
		switch b {
		case ',':
			ok = true
			o.phase = oKey
		case '}':
			return p.objectClose()
		}
	}
	if ok {
		p.take(1)
	}
	return ok, false
}

// objectClose consumes the brace at the end of an object.
func (p *Parser) objectClose() (ok, ended bool) {
	o := &p.object
	p.take(1)
	if o.nested > 0 {
		o.nested--
		o.phase = oAfter
		return true, false
	}
	if !p.begun {
		if o.name == "" {
			return false, false
		}
		p.begin(o.name, o.id)
		if !o.hasArgs {
			o.args = []byte("{}")
		}
		p.arguments(o.args)
	}
	return true, true
}

// objectOpenValue decides by the key how to read the value that begins with b.
func (p *Parser) objectOpenValue(b byte) bool {
	o := &p.object
	p.scan, o.value = scanner{}, nil
	compound := b == '{' || b == '[' || b == '"'
	switch o.key {
	case "arguments", "parameters", "args":
		if o.hasArgs {
			return false
		}
		switch {
		case b == '{' && o.name != "" && !p.begun:
			p.begin(o.name, o.id)
			o.phase, o.hasArgs = oArgs, true
			return true
		case b == '{':
			o.phase = oBefore
			return true
		case b == '"':
			o.phase = oText
			return true
		case b == 'n':
			o.phase = oPlain
			return true
		}
		return false
	case "name", "tool_name":
		o.phase = oText
		return b == '"' && o.name == ""
	case "function":
		if b == '{' && o.name == "" && o.nested == 0 {
			p.take(1)
			o.nested++
			o.phase = oKey
			return true
		}
		o.phase = oText
		return b == '"' && o.name == ""
	case "id", "tool_call_id":
		if o.phase = oPlain; compound {
			o.phase = oText
		}
		return b != '{' && b != '['
	}
	if p.f.weak && o.key != "type" && !p.begun {
		return false // a JSON answer that is not a call
	}
	if o.phase = oPlain; compound {
		o.phase = oSkip
	}
	return true
}

// objectValue handles a complete key or value.
func (p *Parser) objectValue() bool {
	o := &p.object
	phase := o.phase
	o.phase = oAfter
	if phase == oInKey {
		o.phase = oColon
		return json.Unmarshal(o.value, &o.key) == nil
	}
	switch o.key {
	case "arguments", "parameters", "args":
		args := o.value
		if phase == oText { // JSON within a string
			var text string
			if json.Unmarshal(args, &text) != nil {
				return false
			}
			args = []byte(strings.TrimSpace(text))
		}
		switch {
		case string(args) == "null" || len(args) == 0:
			args = []byte("{}")
		case args[0] != '{' || !json.Valid(args):
			return false
		}
		o.hasArgs = true
		if o.name != "" && !p.begun {
			p.begin(o.name, o.id)
			p.arguments(args)
		} else {
			o.args = args
		}
	case "name", "tool_name", "function":
		var name string
		if json.Unmarshal(o.value, &name) != nil || !validName(name) || !p.mayCall(name) {
			return false
		}
		o.name = name
		if o.hasArgs {
			p.begin(name, o.id)
			p.arguments(o.args)
		}
	case "id", "tool_call_id":
		var id string
		if json.Unmarshal(o.value, &id) == nil && len(id) > 2 && validName(id) { // others count from 0
			o.id = id
		}
	}
	return true
}

// mayCall reports whether name can be called: without a marker, only known tools can.
func (p *Parser) mayCall(name string) bool {
	if !p.f.weak {
		return true
	}
	_, known := p.tools[name]
	return known
}

// callName reads a name up to one of the markers after it.
func (p *Parser) callName() bool {
	if p.f.arrays && len(p.name) == 0 { // the older form of the same family
		p.skipSpace()
		if p.buf == "" {
			return false
		}
		if p.buf[0] == '[' || p.buf[0] == '{' {
			p.state = (*Parser).jsonOpen
			return true
		}
	}
	end, st := p.nameUntil(p.f.nameEnds)
	if st == more {
		return false
	}
	name := p.takeName()
	if st == bad || p.calls >= MaxCalls {
		return p.fail()
	}
	id := ""
	switch {
	case end == "[CALL_ID]":
		if !validName(name) {
			return p.fail()
		}
		p.object = objectCall{name: name}
		p.state = (*Parser).callID
		return true
	case p.f.typed && name == "function":
		p.state = (*Parser).typedName
		return true
	case p.f.kimi:
		id = name
		name = trimIndex(strings.TrimPrefix(name, "functions."))
	}
	return p.callNamed(name, id)
}

func (p *Parser) callNamed(name, id string) bool {
	if !validName(name) {
		return p.fail()
	}
	p.object = objectCall{name: name, id: id}
	p.state = (*Parser).callArguments
	return true
}

// nameUntil reads a name up to one of ends, which it consumes unless it is a brace.
func (p *Parser) nameUntil(ends []string) (end string, st status) {
	which, st := p.until(ends, maxName, &p.name)
	if st == done {
		if end = ends[which]; end != "{" {
			p.take(len(end))
		}
	}
	return end, st
}

func (p *Parser) takeName() string {
	name := strings.Trim(string(p.name), spaces)
	p.name = p.name[:0]
	return name
}

// callID reads the id of a call between its name and its arguments.
func (p *Parser) callID() bool {
	_, st := p.nameUntil([]string{"[ARGS]"})
	if st == more {
		return false
	}
	id := p.takeName()
	if st == bad || !validName(id) {
		return p.fail()
	}
	return p.callNamed(p.object.name, id)
}

// typedName follows the type of a call; the name is on the next line.
func (p *Parser) typedName() bool {
	if len(p.name) == 0 && p.buf != "" && p.buf[0] == '{' { // a tool whose name is function
		return p.callNamed("function", "")
	}
	_, st := p.nameUntil([]string{"\n"})
	if st == more {
		return false
	}
	name := p.takeName()
	if st == bad {
		return p.fail()
	}
	return p.callNamed(name, "")
}

// recipient reads the addressee of a part of the answer: all, or a tool.
func (p *Parser) recipient() bool {
	if len(p.name) == 0 {
		p.skipSpace()
	}
	_, st := p.nameUntil([]string{"\n"})
	if st == more {
		return false
	}
	name := p.takeName()
	_, known := p.tools[name]
	switch {
	case st == done && name == "all":
		p.holding, p.trimmed = false, true
		p.space = p.space[:0]
		p.state = (*Parser).text
		if p.f.afterName != "" {
			p.tail = true // the marker between name and content
		}
		return true
	case st == bad || !known || p.calls >= MaxCalls:
		return p.fail()
	}
	return p.callNamed(name, "")
}

// callArguments expects the arguments after a name.
func (p *Parser) callArguments() bool {
	p.skipSpace()
	if p.buf == "" {
		return false
	}
	i, wait := p.atAny(p.f.fences)
	switch {
	case i >= 0:
		p.take(len(p.f.fences[i]))
		return true
	case wait:
		return false
	case p.buf[0] != '{':
		return p.fail()
	}
	p.begin(p.object.name, p.object.id)
	p.scan = scanner{}
	p.state = (*Parser).callJSON
	return true
}

func (p *Parser) callJSON() bool {
	out, n, st := p.scan.feed(p.buf, nil)
	p.take(n)
	p.arguments(out)
	switch st {
	case bad:
		return p.fail()
	case done:
		return p.end()
	}
	return false
}
