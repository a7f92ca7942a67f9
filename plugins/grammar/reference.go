package grammar

import (
	"net/url"
	"strconv"
	"strings"
)

// resource is a schema with its own identifier.
type resource struct {
	root *jvalue
	uri  *url.URL
}

// index finds the identifiers and anchors below v.
func (p *parser) index(v *jvalue, base *resource, root bool) {
	switch v.kind {
	case jArray:
		for _, e := range v.arr {
			p.index(e, base, false)
		}
	case jObject:
		for _, key := range []string{"$id", "id"} {
			id := v.get(key)
			if id == nil || id.kind != jString {
				continue
			}
			if strings.HasPrefix(id.str, "#") {
				p.anchors[base.uri.String()+id.str] = v
				continue
			}
			if u, err := base.uri.Parse(id.str); err == nil && (key == "$id" || root || p.draft == 4) {
				u.Fragment = ""
				base = &resource{root: v, uri: u}
				p.resources[u.String()] = base
			}
			break
		}
		if root {
			p.resources[""] = base
		}
		for _, key := range []string{"$anchor", "$dynamicAnchor"} {
			if a := v.get(key); a != nil && a.kind == jString {
				p.anchors[base.uri.String()+"#"+a.str] = v
			}
		}
		p.bases[v] = base
		for _, k := range v.keys {
			switch k {
			case "enum", "const", "default", "examples", "example":
			default:
				p.index(v.obj[k], base, false)
			}
		}
	}
}

func escapePointer(s string) string {
	return strings.ReplaceAll(strings.ReplaceAll(s, "~", "~0"), "/", "~1")
}

// resolve finds the target of ref, relative to base.
func (p *parser) resolve(ref string, base *resource) *jvalue {
	target, fragment, _ := strings.Cut(ref, "#")
	res := base
	if target != "" {
		u, err := base.uri.Parse(target)
		if err != nil {
			return nil
		}
		if res = p.resources[u.String()]; res == nil {
			return nil
		}
	}
	if decoded, err := url.PathUnescape(fragment); err == nil {
		fragment = decoded
	}
	if fragment != "" && fragment[0] != '/' {
		return p.anchors[res.uri.String()+"#"+fragment]
	}
	if v := pointer(res.root, fragment); v != nil || target != "" {
		return v
	}
	return pointer(p.root, fragment)
}

func pointer(v *jvalue, path string) *jvalue {
	if path == "" {
		return v
	}
	for part := range strings.SplitSeq(path[1:], "/") {
		part = strings.ReplaceAll(strings.ReplaceAll(part, "~1", "/"), "~0", "~")
		switch {
		case v == nil:
			return nil
		case v.kind == jArray:
			i, err := strconv.Atoi(part)
			if err != nil || i < 0 || i >= len(v.arr) {
				return nil
			}
			v = v.arr[i]
		default:
			v = v.get(part)
		}
	}
	return v
}

// refSiblings reports whether keywords beside $ref apply.
func (p *parser) refSiblings() bool { return p.draft == 0 || p.draft >= 2019 }

func (p *parser) ref(s *schema, ref *jvalue) error {
	if ref.kind != jString {
		return refuse(s.at, "$ref", "must be a string")
	}
	target := p.resolve(ref.str, s.base)
	if target == nil {
		return refuse(s.at, "$ref", "cannot resolve %q", ref.str)
	}
	at := s.at + "/$ref"
	if _, fragment, ok := strings.Cut(ref.str, "#"); ok && strings.HasPrefix(fragment, "/") {
		at = fragment
	}
	t, err := p.parse(target, at)
	if err != nil {
		return err
	}
	s.all = append(s.all, lit{s: t})
	return nil
}
