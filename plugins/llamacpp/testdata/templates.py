#!/usr/bin/env python3
"""Makes templates.json: chat templates of our own in the manner of well-known ones, and what Jinja itself makes of them with the settings that
models are trained with. Needs the Python package jinja2. Usage: templates.py > templates.json"""
import json
from jinja2.sandbox import ImmutableSandboxedEnvironment

CHATML = """{% for message in messages %}
{{ '<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
' }}
{%- endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{% endif %}
"""
LLAMA = """{{- bos_token }}
{%- if not date is defined %}
    {%- set date = "26 Jul 2024" %}
{%- endif %}
{#- the first message may be the system's #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Today is " + date + "\\n\\n" }}
{{- system }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if 'tool_calls' in message %}
        {%- if message.tool_calls|length != 1 %}
            {{- raise_exception("one call at a time") }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
        {{- '{"name": "' + call.name + '", "parameters": ' }}
        {{- call.arguments | tojson }}
        {{- "}<|eot_id|>" }}
    {%- elif message.role == "tool" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {{- message.content | tojson }}
        {{- "<|eot_id|>" }}
    {%- else %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set ns = namespace(index=0) %}
{%- for message in loop_messages %}
    {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
        {{- raise_exception("roles must alternate user/assistant") }}
    {%- endif %}
    {%- set ns.index = ns.index + 1 %}
{%- endfor %}

{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- else %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- endif %}
{%- endfor %}
"""
GEMMA = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set prefix = messages[0]['content'] + '

' -%}
    {%- set rest = messages[1:] -%}
{%- else -%}
    {%- set prefix = "" -%}
    {%- set rest = messages -%}
{%- endif -%}
{%- macro turn(role, text) -%}
    {{ '<start_of_turn>' + role + '
' + text | trim + '<end_of_turn>
' }}
{%- endmacro -%}
{%- for message in rest -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ turn(role, (prefix if loop.first else "") + message['content']) }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model
'}}
{%- endif -%}
"""
SPACES = """head
  {% if true %}
    kept: {{ messages[0].content }}
  {% endif %}
\t{# a comment on its own line #}
a {% if true %} b {% endif %}
c {# inline #}
  {{ '%}' }} {{ "{% x %}" }} {{ {'a': {'b': 1}}['a']['b'] }}
  {%+ if true %}
  plus stays
  {% endif +%}
end {%- if true -%}   glued   {%- endif %}

  {% for m in messages %}
  - {{ m.role }}
  {% endfor %}
{% set x = 'multi
line' %}
  {%- raw_like | default('none') if false else '' %}
last line


"""
SPACES = SPACES.replace("  {%- raw_like | default('none') if false else '' %}\n", "")
THINGS = """{% for t in things %}
{{ t | tojson }}
{{ t|tojson(indent=2) }}
{% endfor %}
{{ things | length }}{{ "<&>" | tojson }}{{ none | tojson }}{{ [] | tojson }}{{ {} | tojson }}"""

PLAIN = {"messages": [{"role": "user", "content": "  Hello <there> & you \n"}]}
SYSTEM = {"messages": [{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": " Yes? "}, {"role": "user", "content": "Zwölf Bienen 🐝"}]}
DEVELOPER = {"messages": [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hi"}]}
TWICE = {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}
CALL = {"messages": [{"role": "user", "content": "weather?"},
                     {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": {"name": "get", "arguments": "{\"zone\": \"<Köln>\", \"at\": [1, 2.5, true, null]}"}}]},
                     {"role": "tool", "tool_call_id": "1", "content": "{\"t\": 1}"}]}
JSON = {"messages": [{"role": "user", "content": "x"}], "chat_template_kwargs": {"things": [
    {"z": 1, "a": {"q": "<b>&amp;'\"\\\n\t\u0001é東"}, "m": [], "k": {}, "f": 1.0, "g": 0.1, "n": -3, "y": [1, [2, {"x": None}]]}, "text", 7, True, None]}}
DATE = {**PLAIN, "chat_template_kwargs": {"date": "1 Jan 2030"}}


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message):
    raise ValueError(message)


def render(template, request):
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    messages = []
    for m in request["messages"]:
        m = dict(m)
        m["content"] = m["content"] or ""
        if m["role"] == "developer":
            m["role"] = "system"
        if "tool_calls" in m:
            m["tool_calls"] = [{**c, "function": {**c["function"], "arguments": json.loads(c["function"]["arguments"])}} for c in m["tool_calls"]]
        messages.append(m)
    return env.from_string(template).render(messages=messages, add_generation_prompt=True, bos_token="<s>", eos_token="</s>", tools=None, **request.get("chat_template_kwargs", {}))


cases = []
for name, template, requests in [("chatml", CHATML, [PLAIN, SYSTEM, DEVELOPER]), ("llama", LLAMA, [PLAIN, SYSTEM, CALL, DATE]), ("mistral", MISTRAL, [PLAIN, SYSTEM, TWICE]),
                                 ("gemma", GEMMA, [PLAIN, SYSTEM, TWICE]), ("spaces", SPACES, [PLAIN, SYSTEM]), ("things", THINGS, [JSON])]:
    for i, request in enumerate(requests):
        case = {"name": f"{name} {i}", "template": template, "request": request}
        try:
            case["want"] = render(template, request)
        except ValueError as e:
            case["refused"] = str(e)
        cases.append(case)
print(json.dumps(cases, indent=1, ensure_ascii=False))
