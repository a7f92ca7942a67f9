#!/usr/bin/env python3
"""Records what Jinja2 itself renders, for TestRenderAsRecorded.

Needs Debian's python3-jinja2. Usage: testdata/record.py SEED COUNT > testdata/recorded.json
The environment is the one that transformers makes for chat templates.
"""
import copy
import json
import random
import sys

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols])
env.filters["tojson"] = tojson

VARS = {
    "s": "Hello, World", "e": "", "u": "é天🌦 x", "n": None, "t": True, "f": False, "i": 7, "z": 0, "neg": -3, "x": 2.5,
    "big": 12345678901234567890, "l": [3, 1, 2], "ls": ["b", "A", "c"], "d": {"b": 1, "a": {"k": "v"}},
    "ld": [{"a": 2, "n": "x"}, {"a": 1, "n": "y"}, {"a": 2, "n": "z"}], "el": [], "ed": {}, "ml": "a\n b\n\nc\r\nd",
    "html": "<b>&'\"", "m": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": None}],
}
NAMES = [*VARS, "nothing"]
STRINGS = ["''", "'a'", "'ab'", "'l'", "', '", "'\\n'", "' '", "'%s'", "'{}'", "'x y z'", "'Hello'", "'12'", "'1.5'", "'-3'"]
FILTERS = """abs;capitalize;center(9);count;default('d');default('d',true);dictsort;dictsort(true);dictsort(by='value');escape;first;
float;float(1.5);forceescape;indent;indent(2,true);indent(3,blank=true);int;int(3);int(base=16);items|list;join;join('-');
join(',',attribute='a');last;length;list;lower;map('upper')|list;map(attribute='a')|list;map('string')|list;map('int')|list;
map('length')|list;max;min;max(attribute='a');reject|list;rejectattr('a')|list;replace('l','L');replace('','-');replace('l','LL',1);
reverse|list;round;round(1);round(1,'floor');round(2,'ceil');safe;select|list;select('string')|list;selectattr('a','equalto',2)|list;
selectattr('n','in',['x'])|list;slice(2)|list;sort;sort(reverse=true);sort(case_sensitive=true);sort(attribute='a');
sort(attribute='a,n');string;striptags;sum;sum(attribute='a');sum(start=1);title;tojson;tojson(indent=2);trim;trim('H');truncate(5);
truncate(5,true);truncate(7,false,'..',0);unique|list;upper;urlencode;wordcount;batch(2)|list;batch(2,'-')|list;groupby('a')|list;
attr('a');wordwrap(5);filesizeformat;format('q');e""".replace("\n", "").split(";")
TESTS = """defined;undefined;none;boolean;true;false;integer;float;number;string;mapping;iterable;sequence;callable;lower;upper;odd;even;
divisibleby 3;eq 7;ne 7;lt 5;le 5;gt 5;ge 5;in l;sameas true;escaped;not none;not defined""".replace("\n", "").split(";")
METHODS = """upper();lower();strip();strip('H');lstrip();rstrip('d');split();split(',');split(' ',1);rsplit(' ',1);rsplit(None,1);
split(None,1);splitlines();splitlines(true);partition(',');rpartition('o');find('o');rfind('o');index('l');count('l');
replace('o','0');replace('l','',1);startswith('He');endswith(('d','x'));join(ls);title();capitalize();swapcase();center(15,'*');
ljust(14);rjust(14,'.');zfill(15);expandtabs();isdigit();isalpha();isspace();isupper();islower();istitle();isalnum();isnumeric();
removeprefix('Hello');removesuffix('ld');format(1,x=2);casefold();get('a');get('zz','q');keys()|list;values()|list;items()|list;
copy();count(2);index(2);append(1);nosuch;a;b;k;isidentifier();isascii();isdecimal();find('o',5);startswith('W',7)"""
METHODS = METHODS.replace("\n", "").split(";")
OPERATORS = ["+", "-", "*", "/", "//", "%", "~", "==", "!=", "<", ">", "<=", ">=", "in", "not in", "and", "or"]
INDEXES = ["0", "-1", "1:", "::2", ":-1", "::-1", "1:3", "-3:", "'a'", "'b'", "5", "i", "s", "n", ":2"]

rand = random.Random(int(sys.argv[1]))


def atom(d):
    c = rand.random()
    if c < 0.55 or d <= 0:
        return rand.choice(NAMES)
    if c < 0.7:
        return rand.choice(STRINGS)
    if c < 0.8:
        return "(%s)" % rand.choice([0, 1, 2, 3, 10, -1, 2.0, 1.5, 0.1, 1e20, 1e-7, 100])
    if c < 0.85:
        return "[%s, %s]" % (expr(d - 1), expr(d - 1))
    if c < 0.88:
        return "{'a': %s, 'k': %s}" % (expr(d - 1), expr(d - 1))
    if c < 0.91:
        return "(%s, %s)" % (expr(d - 1), expr(d - 1))
    return "(%s)" % expr(d - 1)


def expr(d):
    c = rand.random()
    if d <= 0 or c < 0.12:
        return atom(d)
    if c < 0.36:
        return "%s|%s" % (atom(d - 1), rand.choice(FILTERS))
    if c < 0.40:
        return "%s|%s|%s" % (atom(d - 1), rand.choice(FILTERS), rand.choice(FILTERS))
    if c < 0.56:
        return "%s.%s" % (atom(d - 1), rand.choice(METHODS))
    if c < 0.64:
        return "(%s is %s)" % (atom(d - 1), rand.choice(TESTS))
    if c < 0.78:
        return "%s %s %s" % (expr(d - 1), rand.choice(OPERATORS), expr(d - 1))
    if c < 0.82:
        return "%s if %s else %s" % (expr(d - 1), expr(d - 1), expr(d - 1))
    if c < 0.85:
        return "not %s" % expr(d - 1)
    if c < 0.94:
        return "%s[%s]" % (rand.choice(NAMES), rand.choice(INDEXES))
    return "%s ~ %s ~ %s" % (expr(d - 1), expr(d - 1), expr(d - 1))


def space():
    return rand.choice(["", "", "\n", " ", "  ", "\n  ", "a", "b\n", " c "])


def tag(inside):
    return rand.choice(["{%", "{%", "{%-", "{%+"]) + " " + inside + " " + rand.choice(["%}", "%}", "-%}"])


def body(d):
    out = ""
    for _ in range(rand.randint(1, 3)):
        c = rand.random()
        out += space()
        if c < 0.4 or d <= 0:
            out += rand.choice(["{{", "{{", "{{-"]) + " " + expr(2) + " " + rand.choice(["}}", "}}", "-}}"])
        elif c < 0.55:
            out += tag("if " + expr(1)) + body(d - 1) + tag("else") + body(d - 1) + tag("endif")
        elif c < 0.7:
            items = rand.choice(["l", "ls", "ld", "d", "el", "s", "range(3)", "m", "d.items()", "nothing"])
            inner = ["{{q}}", "{{loop.index}}/{{loop.length}}", "{{loop.last}}", "{{loop.previtem}}", "{{loop.revindex0}}", "{{loop.cycle('x','y')}}"]
            out += tag("for q in " + items) + rand.choice(inner) + body(d - 1) + tag("endfor")
        elif c < 0.78:
            out += tag("set w = " + expr(2)) + "{{ w }}"
        elif c < 0.83:
            out += "{% set ns = namespace(v=1) %}" + tag("for q in l") + tag("set ns.v = ns.v + q") + tag("endfor") + "{{ns.v}}"
        elif c < 0.88:
            out += tag("macro mm(a, b='dd')") + "{{a}}{{b}}" + tag("endmacro") + "{{ mm(%s) }}" % expr(1)
        elif c < 0.92:
            out += rand.choice(["{#", "{#-"]) + " note " + rand.choice(["#}", "-#}"])
        elif c < 0.96:
            out += tag("set blk") + body(d - 1) + tag("endset") + "[{{ blk }}]"
        else:
            out += tag("filter upper") + body(d - 1) + tag("endfilter")
        out += space()
    return out


# What Python prints by address, what only 3.1.2 lets through, and what a compiler of constants decides.
LEFT_OUT = ["object at 0x", "generator", "bound method", "built-in", "Generator"]

cases = []
while len(cases) < int(sys.argv[2]):
    template = "{{ %s }}" % expr(rand.randint(1, 3)) if rand.random() < 0.7 else body(2)
    case = {"template": template}
    try:
        case["want"] = env.from_string(template).render(**copy.deepcopy(VARS))
    except Exception as err:  # noqa: BLE001
        case["refused"] = type(err).__name__
    if not any(text in case.get("want", "") for text in LEFT_OUT) and len(template) < 300:
        cases.append(case)
json.dump({"vars": VARS, "cases": cases}, sys.stdout, ensure_ascii=False, indent=0)
