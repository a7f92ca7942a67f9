package dialogue

import (
	"encoding/json"
	"strings"
)

// paramCall is a call whose arguments arrive one by one between markers, and are converted to JSON.
type paramCall struct {
	tool  *Tool
	n     int  // arguments so far
	text  bool // the value is a string, passed on as it arrives
	kind  typeSet
	value []byte
	first bool // at the beginning of the value
	json  bool // the value is marked as JSON
	raw   bool // the value is marked as a string
}

// maxParams bounds the arguments of one call.
const maxParams = 1 << 10

// xmlName reads the name of a function.
func (p *Parser) xmlName() bool {
	if p.f.bareName {
		p.skipSpace()
	}
	which, st := p.until(p.f.nameEnds, maxName, &p.name)
	if st == more {
		return false
	}
	name := p.takeName()
	if st == bad || !validName(name) || p.calls >= MaxCalls {
		return p.fail()
	}
	if !p.f.bareName {
		p.take(len(p.f.nameEnds[which]))
	}
	p.begin(name, "")
	p.arguments([]byte("{"))
	p.params = paramCall{tool: p.tools[name]}
	p.state = (*Parser).xmlNext
	return true
}

// xmlNext is between the arguments.
func (p *Parser) xmlNext() bool {
	p.skipSpace()
	if p.buf == "" {
		return false
	}
	i, wait := p.atAny([]string{p.f.paramOpen, p.f.callClose})
	switch {
	case i == 0 && p.params.n < maxParams:
		p.keep()
		p.take(len(p.f.paramOpen))
		p.state = (*Parser).xmlKey
		return true
	case i == 1:
		p.take(len(p.f.callClose))
		p.arguments([]byte("}"))
		return p.end()
	case wait:
		return false
	}
	return p.fail()
}

// xmlKey reads the name of an argument.
func (p *Parser) xmlKey() bool {
	which, st := p.until(p.f.keyEnds, maxName, &p.name)
	if st == more {
		return false
	}
	key := p.takeName()
	if st == bad {
		return p.fail()
	}
	p.take(len(p.f.keyEnds[which]))
	if p.f.valueOpen == "" {
		p.holding = false
	}
	var out []byte
	if p.params.n > 0 {
		out = append(out, ',')
	}
	p.arguments(append(appendQuoted(out, key), ':'))
	c := &p.params
	c.n++
	c.value, c.first = c.value[:0], true
	c.kind = c.tool.typesOf(key)
	c.json, c.raw = strings.Contains(p.f.keyEnds[which], `"false"`), strings.Contains(p.f.keyEnds[which], `"true"`)
	c.text = c.kind == 0 && !c.json || c.kind == tString || c.raw
	if p.state = (*Parser).xmlValue; p.f.valueOpen != "" {
		p.state = (*Parser).xmlValueOpen
	}
	return true
}

func (p *Parser) xmlValueOpen() bool {
	p.skipSpace()
	yes, wait := p.at(p.f.valueOpen)
	switch {
	case yes:
		p.take(len(p.f.valueOpen))
		p.holding = false
		p.state = (*Parser).xmlValue
		return true
	case wait || p.buf == "":
		return false
	}
	return p.fail()
}

// xmlValue reads the value of an argument. Line breaks after its opening marker and before its
// closing one are not part of it.
func (p *Parser) xmlValue() bool {
	c := &p.params
	if c.first {
		if p.buf == "" && !p.eof {
			return false
		}
		if p.f.lines && strings.HasPrefix(p.buf, "\n") {
			p.take(1)
		}
		c.first = false
		if c.text {
			p.arguments([]byte(`"`))
		}
	}
	ends := []string{p.f.paramClose}
	if p.f.lines {
		ends = append(ends, "\n"+p.f.paramClose)
	}
	at, which, free := p.find(ends)
	if at < 0 {
		if c.text {
			p.arguments(appendEscaped(nil, p.take(free)))
			return false
		}
		c.value = append(c.value, p.take(min(free, maxValue+1-len(c.value)))...)
		switch {
		case len(c.value) > maxValue: // too long to wait for its end: a string
			p.arguments(appendEscaped([]byte(`"`), string(c.value)))
			c.text, c.value = true, nil
			return true
		case p.eof: // cut off
			p.arguments(c.value)
			c.value = nil
		}
		return false
	}
	text := p.take(at)
	p.take(len(ends[which]))
	if c.text {
		p.arguments(append(appendEscaped(nil, text), '"'))
	} else {
		c.value = append(c.value, text...)
		if len(c.value) > maxValue {
			c.kind, c.json = tString, false
		}
		p.arguments(typed(string(c.value), c.kind, c.json))
	}
	p.state = (*Parser).xmlNext
	return true
}

// typed converts a value given as text to JSON. kind holds the types that its schema allows; 0:
// unknown.
func typed(text string, kind typeSet, isJSON bool) []byte {
	trimmed := strings.TrimSpace(text)
	switch trimmed { // Python's spelling
	case "True":
		trimmed = "true"
	case "False":
		trimmed = "false"
	case "None":
		trimmed = "null"
	}
	if !json.Valid([]byte(trimmed)) || !shallow(trimmed) {
		return appendQuoted(nil, text)
	}
	is := typeOfJSON(trimmed)
	if isJSON || kind&tString == 0 || is != tString && kind&is != 0 {
		return []byte(trimmed)
	}
	return appendQuoted(nil, text)
}

// shallow reports whether the JSON text is nested within bounds.
func shallow(text string) bool {
	var s scanner
	_, _, st := s.feed(text, nil)
	return st != bad
}

func typeOfJSON(text string) typeSet {
	switch text[0] {
	case '{':
		return tObject
	case '[':
		return tArray
	case '"':
		return tString
	case 't', 'f':
		return tBool
	case 'n':
		return tNull
	}
	if strings.ContainsAny(text, ".eE") {
		return tNumber
	}
	return tNumber | tInteger
}
