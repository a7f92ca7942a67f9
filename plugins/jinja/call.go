package jinja

// filter is a function of a value and arguments; test is one that returns a bool.
type (
	filter func(c *call, v any) (any, error)
	test   func(c *call, v any) (bool, error)
)

// call hands out the arguments of one call, first by position and then by name.
type call struct {
	in    *interp
	name  string
	args  []any
	kw    *dict
	named int // keyword arguments used
}

// arg returns the next argument, or otherwise.
func (c *call) arg(name string, otherwise any) any {
	if len(c.args) > 0 {
		v := c.args[0]
		c.args = c.args[1:]
		return v
	}
	if v, ok := c.kw.getString(name); ok {
		c.named++
		return v
	}
	return otherwise
}

// need returns the next argument, which is required.
func (c *call) need(name string) (any, error) {
	v := c.arg(name, missing)
	if v == missing {
		return nil, typeError("%s() missing required argument '%s'", c.name, name)
	}
	return v, nil
}

var missing = &function{name: "missing"}

func (c *call) integer(name string, otherwise int) (int, error) {
	v := c.arg(name, int64(otherwise))
	i, ok := wholeNumber(v)
	if !ok {
		return 0, typeError("'%s' object cannot be interpreted as an integer", typeName(v))
	}
	return int(i), nil
}

func (c *call) text(name, otherwise string) (Text, error) {
	return textOf(c.arg(name, TemplateText(otherwise)))
}

func (c *call) needText(name string) (Text, error) {
	v, err := c.need(name)
	if err != nil {
		return Text{}, err
	}
	return textOf(v)
}

func textOf(v any) (Text, error) {
	switch v := v.(type) {
	case Text:
		return v, nil
	case *undefined:
		return Text{}, v.err()
	}
	return Text{}, typeError("must be str, not %s", typeName(v))
}

func (c *call) boolean(name string, otherwise bool) bool {
	return truth(c.arg(name, otherwise))
}

// rest returns all remaining arguments.
func (c *call) rest() ([]any, *dict) {
	args, kw := c.args, c.kw
	c.args, c.kw, c.named = nil, nil, 0
	return args, kw
}

// finish fails if an argument was not used.
func (c *call) finish() error {
	if len(c.args) > 0 {
		return typeError("%s() takes %d fewer argument(s)", c.name, len(c.args))
	}
	if n := c.kw.len(); n > c.named {
		for _, k := range c.kw.keys {
			if t, ok := k.(Text); ok {
				return typeError("%s() got an unexpected keyword argument, one of %s and %d more", c.name, reprString(t.s), n-1)
			}
		}
	}
	return nil
}

// method returns a function of the environment with checked arguments.
func method(name string, f func(c *call) (any, error)) *function {
	return &function{name: name, call: func(in *interp, args []any, kw *dict) (any, error) {
		c := &call{in: in, name: name, args: args, kw: kw}
		v, err := f(c)
		if err == nil {
			err = c.finish()
		}
		return v, err
	}}
}
