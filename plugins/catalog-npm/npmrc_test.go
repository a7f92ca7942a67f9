package main

import (
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"
)

func TestParseNpmrc(t *testing.T) {
	t.Parallel()
	got := map[string]string{}
	parseNpmrc("\ufeff; comment\n# comment\r\n a = b \nflag\nquoted = \"x # y\\n\"\nsingle='z'\ntail=v ; comment\nhash=a\\#b\n=x\n//h/:_authToken = t=k==\n[section]\nregistry=evil\n",
		func(k, v string) { got[k] = v })
	must.Eq(t, map[string]string{
		"a": "b", "flag": "true", "quoted": "x # y\n", "single": "z", "tail": "v", "hash": "a#b", "//h/:_authToken": "t=k==",
	}, got)
}

func TestPrecedence(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		must.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
		must.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	write("home/.npmrc", "registry=https://user/\n@a:registry=https://a/\nprefix="+dir)
	write("etc/npmrc", "registry=https://global/\n@a:registry=https://no/\n@b:registry=https://b/x")
	own := write("own", "registry=https://own/")
	load := func(registry, userconfig string, env ...string) *settings {
		s, err := loadSettings(append([]string{"HOME=" + filepath.Join(dir, "home")}, env...), userconfig, registry)
		must.NoError(t, err)
		return s
	}
	is := func(s *settings, scope, want string) {
		t.Helper()
		u, err := s.registry(scope)
		must.NoError(t, err)
		must.Eq(t, want, u.String())
	}
	is(load("", ""), "", "https://user/")
	is(load("", ""), "@A", "https://a/")
	is(load("", ""), "@b", "https://b/x/")
	is(load("", ""), "@c", "https://user/")
	is(load("", "", "NPM_CONFIG_REGISTRY=https://env"), "", "https://env/")
	is(load("", "", "NPM_CONFIG_REGISTRY=https://upper", "npm_config_registry=https://lower"), "", "https://lower/")
	is(load("", "", "NPM_CONFIG_REGISTRY="), "", "https://user/")
	is(load("https://block", "", "NPM_CONFIG_REGISTRY=https://env"), "", "https://block/")
	is(load("https://block", ""), "@a", "https://a/")
	is(load("", own), "", "https://own/")
	is(load("", "", "npm_config_userconfig="+own), "", "https://own/")
	is(load("", "/none", "npm_config_prefix="+dir), "", "https://global/")
	is(load("", "/none", "npm_config_globalconfig="+own), "", "https://own/")
	is(load("", "/none", "npm_config_globalconfig=/none"), "", defaultRegistry)
	s, err := loadSettings(nil, "/dev/null", "")
	must.NoError(t, err, must.Sprint("no home at all"))
	must.Eq(t, "/dev/null", s.file())
}

func TestExpand(t *testing.T) {
	t.Parallel()
	s := &settings{}
	env := map[string]string{"A": "1", "EMPTY": ""}
	for in, want := range map[string]string{
		"${A}": "1", "x${A}y${A}": "x1y1", "${NONE}": "${NONE}", "${NONE?}": "", "${A?}": "1", `\${A}`: "${A}", "$A": "$A", "${}": "${}", "${EMPTY}": "",
	} {
		must.Eq(t, want, s.expand(in, env), must.Sprint(in))
	}
	must.Eq(t, []string{"NONE"}, s.unset)
}

func TestAuthorizationByAddress(t *testing.T) {
	t.Parallel()
	s := &settings{values: map[string]string{"//h/:_authToken": "root", "//h/team/npm/:_authToken": "team", "//h:8080/:_authToken": "port"}}
	for address, want := range map[string]string{
		"https://h/": "Bearer root", "https://h/x": "Bearer root", "https://h/team/npm/@a%2fb": "Bearer team", "https://h/team/npm": "Bearer root",
		"https://h/team/other/x": "Bearer root", "https://h:8080/x": "Bearer port", "https://h:9090/x": "", "https://hh/x": "", "https://sub.h/x": "", "https://h.evil/x": "",
	} {
		u, err := url.Parse(address)
		must.NoError(t, err)
		must.Eq(t, want, s.authorization(u), must.Sprint(address))
	}
}

func FuzzNpmrc(f *testing.F) {
	f.Add("registry=https://x/\n//x/:_authToken=${T}\nca[]=\"a\\nb\"\n")
	f.Add("=\n[\n\"\n'\n\\;")
	f.Fuzz(func(t *testing.T, text string) {
		got := map[string]string{}
		s := &settings{values: got}
		parseNpmrc(text, func(k, v string) { got[s.expand(k, nil)] = s.expand(v, nil) })
		if _, empty := got[""]; empty {
			t.Fatal("an empty key")
		}
		s.values = maps.Clone(got)
		s.credentialsInRegistries()
		if u, err := s.registry(""); err == nil && u.User != nil {
			t.Fatal("credentials in an address")
		}
	})
}

func FuzzRef(f *testing.F) {
	for _, s := range []string{llama, "x", "@a/b", "../x", "@a/b@latest", "x@", "@", "a@b@c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, err := parseRef(text)
		if err != nil {
			return
		}
		u, err := url.Parse("https://h/" + r.name)
		if err != nil || u.Path != "/"+r.name || u.RawQuery != "" || u.Fragment != "" {
			t.Fatalf("%q is not harmless in an address", r.name)
		}
		if again, err := parseRef(r.String()); err != nil || again != r {
			t.Fatalf("%+v became %+v, %v", r, again, err)
		}
	})
}
