package forward

import "bytes"

// tailBytes is how much of the end of an answer is kept to find its usage in, and headBytes how
// much of the beginning of an answer that is not streamed.
const (
	tailBytes = 2 << 10
	headBytes = 1 << 10
)

// counter counts the tokens of an answer without decoding it: each event of a stream counts as one
// token, until the usage at the end, if present, corrects the count.
type counter struct {
	events bool
	count  func(Usage)

	counted int // tokens
	last    byte
	head    []byte
	tail    []byte
}

// add processes the next bytes of the answer.
func (c *counter) add(b []byte) {
	if c.events {
		// A line that begins in the previous piece is missed; the usage corrects that.
		n := bytes.Count(b, []byte("\ndata:"))
		if (c.last == '\n' || c.last == 0) && bytes.HasPrefix(b, []byte("data:")) {
			n++
		}
		if n > 0 {
			c.counted += n
			c.count(Usage{Generated: n})
		}
	} else if room := headBytes - len(c.head); room > 0 {
		c.head = append(c.head, b[:min(room, len(b))]...)
	}
	if len(b) > 0 {
		c.last = b[len(b)-1]
	}
	if len(b) >= tailBytes {
		c.tail = append(c.tail[:0], b[len(b)-tailBytes:]...)
		return
	}
	if over := len(c.tail) + len(b) - tailBytes; over > 0 {
		c.tail = append(c.tail[:0], c.tail[over:]...)
	}
	c.tail = append(c.tail, b...)
}

// end reports the part of the usage that was not counted yet.
func (c *counter) end() {
	u := Usage{
		Prompt:    max(numberAt(c.tail, "prompt_tokens"), numberAt(c.head, "prompt_tokens")),
		Cached:    max(numberAt(c.tail, "cached_tokens"), numberAt(c.head, "cached_tokens")),
		Generated: max(numberAt(c.tail, "completion_tokens"), numberAt(c.head, "completion_tokens")),
	}
	u.Cached = min(u.Cached, u.Prompt)
	u.Generated = max(u.Generated-c.counted, 0)
	if u != (Usage{}) {
		c.count(u)
	}
}

// maxTokens bounds the usage that an answer may report.
const maxTokens = 1 << 30

// numberAt returns the number that follows the last member with the name; 0: there is none.
func numberAt(b []byte, name string) int {
	i := bytes.LastIndex(b, []byte(`"`+name+`":`))
	if i < 0 {
		return 0
	}
	n := 0
	for _, d := range bytes.TrimLeft(b[i+len(name)+3:], " ") {
		if d < '0' || d > '9' {
			break
		}
		if n = n*10 + int(d-'0'); n > maxTokens {
			return 0
		}
	}
	return n
}
