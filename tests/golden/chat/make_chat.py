#!/usr/bin/env python3
"""What transformers (5.23, with jinja2 3.1.6) renders from chat templates.

    make_chat.py                                    writes cases.json beside this script
    make_chat.py --templates DIR --ds PATH          compares `PATH --render` (PATH: ds-run) with transformers on every *.jinja below DIR,
                                                    over the conversations of this script; exit code 1 where one differs

cases.json   {"now": seconds since 1970 that strftime_now() takes as UTC,
              "snippets": [{"template": s, "variables": {..}, "text": s} or {.., "error": what is raised}, ..],
              "conversations": [{"messages": [..], ..}, ..],
              "rendered": {"NAME": [text, or null where the template raises, ..for every conversation], ..of templates/NAME.jinja}}

Snippets are small templates, one for each thing of the language, and what makes it raise. A failure is compared as such, its text is not.
"""
import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

from transformers.utils import chat_template_utils

HERE = os.path.dirname(os.path.abspath(__file__))
NOW = 1767225845  # 2026-01-01 00:04:05 UTC
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


class FixedTime(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime.datetime.fromtimestamp(NOW, datetime.timezone.utc).replace(tzinfo=None)


WEATHER = {"type": "function", "function": {
    "name": "get-weather", "description": "Weather of a place.\nUse it <often> & \"well\".",
    "parameters": {"type": "object", "required": ["place"], "properties": {
        "place": {"type": "string", "description": "city, country"},
        "days": {"type": "integer", "description": "how many", "enum": [1, 3, 7]},
        "points": {"type": "array", "description": "corners", "items": {"type": "object", "required": ["x"],
                                              "properties": {"x": {"type": "number"}, "y": {"type": "number"}}}}}}}}
ADD = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {
    "b": {"type": "number", "description": "second", "default": 1.5}, "a": {"type": "number", "description": "first", "default": 1e-7}}, "required": ["a", "b"]}}}
TYPES = {"type": "function", "function": {"name": "any", "description": "", "parameters": {"type": "object", "properties": {
    "units": {"type": ["string", "null"]}, "free": {}}}}}


def call(name, arguments, id="call_00000001"):
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def system(text):
    return {"role": "system", "content": text}


def conversations():
    hi = [user("Hi, who are you?")]
    turns = [system("  Be brief.\n"), user("One?"), assistant(" One. "), user("Two?"), assistant("Two.\n\n"), user(" And\n three? ")]
    calls = [user("Weather in Oslo?"), assistant("", tool_calls=[call("get-weather", {"place": "Oslo <N>", "days": 3})]),
             {"role": "tool", "name": "get-weather", "tool_call_id": "call_00000001", "content": "{\"sky\": \"grey\"}"}]
    parts = [{"role": "user", "content": [{"type": "text", "text": "What is on "}, {"type": "image"}, {"type": "text", "text": "it?"}]}]
    odd = "naïve ÅSA ß ﬁ İstanbul ΟΔΟΣ 你好 🙂 \u200d\u00a0'quoted' \"twice\" \\n <|x|> {{ no }} {% no %}\t\x1b\x7f"
    return [
        {"messages": hi},
        {"messages": hi, "add_generation_prompt": False},
        {"messages": turns},
        {"messages": turns[:-1]},
        {"messages": turns[:-1], "add_generation_prompt": False},
        {"messages": [system("Only this.")]},
        {"messages": hi, "tools": [WEATHER, ADD]},
        {"messages": [system("Use tools."), *calls], "tools": [WEATHER]},
        {"messages": [*calls, assistant("It is grey."), user("And tomorrow?")], "tools": [WEATHER, ADD]},
        {"messages": [user("Both!"), assistant("I look.", tool_calls=[call("get-weather", {"place": "Rome"}), call("add", {"a": 1, "b": -2.5}, "call_00000002")]),
                      {"role": "tool", "name": "get-weather", "tool_call_id": "call_00000001", "content": "sunny"},
                      {"role": "tool", "name": "add", "tool_call_id": "call_00000002", "content": "-1.5"}, user("Thanks.")], "tools": [WEATHER, ADD]},
        {"messages": [user("Call."), assistant(None, tool_calls=[call("add", "{\"a\": 1}", "short")]), {"role": "tool", "content": "2"}]},
        {"messages": parts},
        {"messages": [system("See."), *parts, assistant([{"type": "text", "text": "A cat."}]), user("Sure?")]},
        {"messages": [user(odd), assistant(odd), user(odd)]},
        {"messages": [user("one"), user("two")]},
        {"messages": [assistant("I begin."), user("No.")]},
        {"messages": [user("q"), assistant("a"), system("late"), user("r")]},
        {"messages": [user("")]},
        {"messages": [user("Think."), assistant("<think>\nhm\n</think>\n\nYes.", reasoning_content=None), user("Again."),
                      assistant("<think>\nlong\n\nthought</think>So."), user("<result>x</result>"), assistant("", reasoning_content="\nwell\n")]},
        {"messages": [user("2+2?"), assistant("4", reasoning_content="sum"), user("3+3?")], "chat_template_kwargs": {"enable_thinking": False}},
        {"messages": [user("By the documents?")], "documents": [{"title": "on élan vital", "text": "It is a force, they say."}, {"title": "Zwei", "text": "x"}]},
        {"messages": [{"role": "developer", "content": "Short."}, user("Now"), {"role": "ghost", "content": "boo"}]},
        {"messages": [user(None)]},
        {"messages": [{"role": "user"}]},
        {"messages": [user("x"), assistant("y", tool_calls=[]), user("z")], "tools": []},
        {"messages": [user("x")], "tools": [TYPES]},
        {"messages": [system("s"), user("x"), assistant("", tool_calls=[call("add", {"a": 1, "b": 2})]),
                      {"role": "tool", "name": "add", "tool_call_id": "call_00000001", "content": "3"}, assistant("It is 3.")], "tools": [ADD],
         "add_generation_prompt": False},
        {"messages": [user("data"), {"role": "tool", "content": {"a": [1, 2.0, None, True], "é": "ü"}}, {"role": "tool", "content": ["x"]}]},
        {"messages": [user("\n\n  lines\r\n  and\u2028more \u3000")] , "chat_template_kwargs": {"dated": "1 May"}},
    ]


SNIPPETS = r"""
{{ 1 + 2 * 3 - 4 / 2 }} {{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 % -3 }} {{ 2 ** 10 }} {{ 2 ** -1 }} {{ 7.5 // 2 }} {{ -7.5 % 2 }}
{{ 1.0 }} {{ 0.1 + 0.2 }} {{ 1e16 }} {{ 1e15 }} {{ 1.5e-5 }} {{ 0.0001 }} {{ 123456789.125 }} {{ -0.0 }} {{ 1_000 }} {{ 1e400 }}
{{ true }} {{ True }} {{ none }} {{ None }} {{ [1, 'a', none, true, 1.0, (1,), (), {'k': [2]}] }} {{ () }} {{ {} }} {{ [] }}
{{ "a'b" ~ ['a\'b', "c\"d", 'e\'"f', 'g\\h\n\t\x01é\u2028\U0001F600'] }}
{{ undefined_name }}|{{ x.y }}|{{ x['z'] }}|{{ [][0] }}|{{ 'abc'[5] }}|{{ none.a }}|{{ (1).b }}
{{ nothing.more }}
{{ nothing['more'] }}
{{ nothing() }}
{{ nothing + 1 }}
{{ 1 + nothing }}
{{ 'a' ~ nothing ~ none ~ 1 ~ 1.5 ~ true ~ [nothing] }}
{{ nothing is defined }} {{ x is defined }} {{ x.q is defined }} {{ nothing is undefined }} {{ nothing == other }} {{ nothing == none }} {{ not nothing }}
{{ 'x' in nothing }} {{ nothing in [1] }} {{ 1 in [1, 2] }} {{ 'b' in 'abc' }} {{ 'k' in {'k': 1} }} {{ 'v' not in {'k': 'v'} }} {{ 2 not in (1, 2) }}
{{ 1 in 'abc' }}
{{ 1 in none }}
{{ 1 < 2 < 3 }} {{ 1 < 3 < 2 }} {{ 1 == 1.0 == true }} {{ 'a' < 'b' }} {{ [1, 2] < [1, 3] }} {{ 1 != 2 }} {{ (1, 2) == [1, 2] }} {{ {'a': 1} == {'a': 1.0} }}
{{ none < 1 }}
{{ 'a' < 1 }}
{{ 'a' + 1 }}
{{ 'a' * 3 }} {{ 2 * [1] }} {{ 0 * 'a' }} {{ -1 * 'a' }} {{ [1] + [2] }} {{ (1,) + (2,) }} {{ true + 1 }}
{{ [1] + (2,) }}
{{ 1 / 0 }}
{{ 1 % 0 }}
{{ 1 and 2 }} {{ 0 and 2 }} {{ 0 or 'x' }} {{ '' or none }} {{ not 1 }} {{ not not 'a' }} {{ 1 if 0 else 2 }} {{ 1 if 0 }}| {{ 'a' if x else 'b' if y else 'c' }}
{{ 'abc'[0] }} {{ 'abc'[-1] }} {{ 'abc'[1:] }} {{ 'abc'[:-1] }} {{ 'abc'[::-1] }} {{ 'abcdef'[1:5:2] }} {{ 'abc'[5:] }} {{ 'aé🙂b'[1:3] }} {{ 'aé🙂b'[2] }} {{ [1,2,3][-2:] }} {{ (1,2,3)[::-2] }} {{ [1,2,3][10:0:-1] }} {{ 'abc'[none:2] }}
{{ x.nul[1:] }}
{{ x[1:] }}
{{ x.a.b }} {{ x['a']['b'] }} {{ x.l[0] }} {{ x.l.0 }} {{ x['l'][-1] }} {{ x.l[1].n }} {{ x.l.1.n }}
{{ d.items is defined }} {{ d['items'] }} {{ d.keys() | list }} {{ d.values() | list }} {{ d.items() | list }} {{ d.get('items') }} {{ d.get('no') }} {{ d.get('no', 5) }} {{ d | length }}
{% for k, v in d.items() %}{{ loop.index }}:{{ k }}={{ v }}{{ "," if not loop.last }}{% endfor %}
{% for k in d %}{{ k }}{% endfor %} {{ d.keys()[0] }}| {{ d.values() | length }} {{ d.items() | first }} {{ d | list }} {{ d | join('-') }}
{{ [3,1,2] | sort }} {{ ['b','A','c'] | sort }} {{ ['b','A','c'] | sort(case_sensitive=true) }} {{ [3,1,2] | sort(reverse=true) }} {{ [{'n': 2}, {'n': 1}] | sort(attribute='n') }}
{{ {'b': 1, 'A': 2} | dictsort }} {{ {'b': 1, 'a': 2} | dictsort(by='value') }} {{ {'b': 1, 'a': 2} | dictsort(reverse=true) }} {{ {'b': 1, 'A': 2} | dictsort(true) }}
{{ [1, 'a'] | sort }}
{{ 'Hello' | upper }} {{ 'Hello' | lower }} {{ 'hello wORLD-x (y' | title }} {{ 'hELLO' | capitalize }} {{ 'ßéﬁ' | upper }} {{ 'ÉΣΑΣ İ' | lower }} {{ "it's ǆ" | title }}
{{ '  a b ' | trim }}| {{ 'xxaxx' | trim('x') }} {{ '\u00a0a\u2003' | trim }}| {{ 5 | trim }} {{ none | trim }} {{ nothing | trim }}|
{{ 'a,b' | replace(',', ';') }} {{ 'aaa' | replace('a', 'b', 2) }} {{ 'ab' | replace('', '-') }} {{ 12 | replace(1, 2) }}
{{ [1, 2] | join }} {{ [1, 'a', none] | join(', ') }} {{ [{'n': 1}, {'n': 2}] | join('+', attribute='n') }} {{ 'abc' | join('.') }} {{ nothing | join(',') }}|
{{ nothing | default('d') }} {{ none | default('d') }} {{ '' | default('d', true) }} {{ none | d('e', boolean=true) }} {{ x.q | default }}|
{{ [1,2,3] | first }} {{ [1,2,3] | last }} {{ [] | first }}| {{ 'abc' | last }} {{ [] | last }}| {{ [1,2] | length }} {{ 'aé🙂' | length }} {{ {} | count }} {{ nothing | length }}
{{ 5 | length }}
{{ '12' | int }} {{ ' -7 ' | int }} {{ 'x' | int }} {{ 'x' | int(9) }} {{ '3.7' | int }} {{ 3.99 | int }} {{ 'ff' | int(0, 16) }} {{ '1.5' | float }} {{ 'x' | float }} {{ 3 | float }} {{ none | int }} {{ true | int }} {{ '1_0' | int }} {{ 'inf' | float }}
{{ 2.5 | round }} {{ 3.5 | round }} {{ 2.675 | round(2) }} {{ 2.1 | round(method='ceil') }} {{ 2.99 | round(1, 'floor') }} {{ 5 | round }} {{ -3 | abs }} {{ -3.5 | abs }}
{{ [1,2,3,4] | select('even') | list }} {{ [1,2,3] | reject('odd') | list }} {{ [0, 1, '', 'a'] | select | list }} {{ [1,5,9] | select('gt', 4) | list }} {{ ['a', 'b'] | select('in', ['a']) | list }} {{ [1, none] | select('none') | list }}
{{ ms | selectattr('r', 'equalto', 'u') | map(attribute='c') | list }} {{ ms | rejectattr('r', 'eq', 'u') | list }} {{ ms | selectattr('q') | list }} {{ ms | selectattr('q', 'defined') | list | length }} {{ ms | map(attribute='q', default='-') | join }} {{ ms | map(attribute='c.0') | join }}
{{ ['a', 'b'] | map('upper') | join }} {{ [' a '] | map('trim') | first }} {{ ['a-b'] | map('replace', '-', '+') | list }} {{ [1, 2] | map('string') | list }} {{ [[1, 2], [3]] | map('length') | sum }}
{{ [1, 2, 1, 3, 2] | unique | list }} {{ ['a', 'A'] | unique | list }} {{ [1, 2, 3] | batch(2) | list }} {{ [1, 2, 3] | batch(2, 0) | list }} {{ [1, 2, 3, 4, 5] | slice(3) | list }} {{ [1, 2, 3] | reverse | list }} {{ 'aé🙂' | reverse }}
{{ [3, 1, 2] | min }} {{ [3, 1, 2] | max }} {{ ['b', 'A'] | min }} {{ [] | max }}| {{ [1, 2.5] | sum }} {{ ms | sum(attribute='n') }} {{ {'a': 1} | items | list }} {{ nothing | items | list }}
{{ 'a\nb\n\nc' | indent }}|{{ 'a\nb' | indent(2, true) }}|{{ 'a\n\nb' | indent(1, blank=true) }}|{{ 'a\nb' | indent('>') }}|
{{ x | tojson }} {{ 'é<&>\'"\n\u2028\x7f/' | tojson }} {{ [1.0, 1e20, 1e-7, none, true] | tojson }} {{ {} | tojson }} {{ [] | tojson(indent=2) }} {{ (1, 2) | tojson }} {{ 'é🙂' | tojson(ensure_ascii=true) }}
{{ {'b': [1, {'c': {}}], 'a': []} | tojson(indent=2) }} {{ {'b': 1, 'a': 2} | tojson(sort_keys=true) }} {{ [1, 2] | tojson(separators=(',', ':')) }} {{ {1: 2, none: 3, true: 4, 1.5: 0} | tojson }} {{ [1] | tojson(indent='\t') }}
{{ nothing | tojson }}
{{ ms | map(attribute='c') | tojson }}
{{ d.items() | tojson }}
{{ '<b>' | e }} {{ '<b>' | safe }} {{ '<b>' | safe + '<c>' }} {{ ('<b>' | safe) ~ '<c>' }} {{ '&' + ('<b>' | e) }}
{{ 'a b  c' | wordcount }} {{ '%s-%d-%05.2f%%' | format('x', 3, 2.5) }} {{ '%(a)s' | format(a=1) }} {{ '%5s|%-5s|%x' % ('a', 'b', 255) }} {{ '%s' % none }} {{ '%s' % x.l }} {{ '%r' % 'a' }} {{ 'a' | center(5) }}| {{ [1] | string }} {{ 'x' | attr('upper') is callable }}
{{ '%s %s' % 'a' }}
{{ '%d' % 'a' }}
{{ 'a' % 1 }}
{{ 'abc' | nosuch }}
{{ 'abc' is nosuch }}
{{ 1 is number }} {{ true is number }} {{ true is integer }} {{ 1.0 is float }} {{ 'a' is string }} {{ [] is sequence }} {{ 'a' is sequence }} {{ {} is sequence }} {{ {} is mapping }} {{ [] is iterable }} {{ 1 is iterable }} {{ none is none }} {{ true is true }} {{ 1 is true }} {{ false is false }} {{ true is boolean }} {{ 3 is odd }} {{ 4 is even }} {{ 4 is divisibleby 2 }} {{ 4 is divisibleby(3) }} {{ 'a' is lower }} {{ 'A1' is upper }} {{ 1 is eq 1 }} {{ 1 is ne(1) }} {{ 1 is lt 2 }} {{ 1 is ge 2 }} {{ 'a' is in ['a'] }} {{ 'a' is not in 'b' }} {{ x is sameas x }} {{ range is callable }} {{ 'upper' is filter }} {{ 'odd' is test }} {{ nothing is sequence }} {{ nothing is iterable }} {{ nothing is none }} {{ d.items() is sequence }} {{ d.items() is iterable }}
{{ 'a' is string and 1 is number or false }} {{ 1 is not string }} {{ not 1 is string }} {{ (1 is defined) == true }} {{ 'abc' is string == true }}
{{ 'a-b-c'.split('-') }} {{ ' a  b '.split() }} {{ 'a-b-c'.split('-', 1) }} {{ 'a-b-c'.rsplit('-', 1) }} {{ ' a b c '.rsplit(none, 1) }} {{ 'a b c'.split(none, 1) }} {{ ''.split() }} {{ ''.split(',') }} {{ 'a\nb\r\nc'.splitlines() }} {{ 'a\n'.splitlines(true) }} {{ 'a=b=c'.partition('=') }} {{ 'a=b=c'.rpartition('=') }} {{ 'ab'.partition('x') }}
{{ 'a'.split('') }}
{{ ' a '.strip() }}|{{ 'xyaxy'.strip('yx') }}|{{ '\n\na\n'.lstrip('\n') }}|{{ 'a\n\n'.rstrip() }}| {{ 'Ab'.upper() }} {{ 'Ab'.lower() }} {{ "they're bill's ǆ".title() }} {{ 'ab CD'.capitalize() }} {{ 'abc'.startswith('ab') }} {{ 'abc'.startswith(('x', 'a')) }} {{ 'abc'.endswith('c') }} {{ 'abc'.startswith('b', 1) }} {{ 'abcab'.find('b') }} {{ 'é🙂b'.find('b') }} {{ 'abcab'.rfind('b') }} {{ 'abc'.find('x') }} {{ 'abab'.count('ab') }} {{ 'abc'.index('c') }} {{ 'aXbX'.replace('X', '-', 1) }} {{ '-'.join(['a', 'b']) }} {{ '{} {}'.format('a', 1) }} {{ '{0}{1}{0}{{}}'.format('a', 'b') }} {{ '{n}'.format(n=2) }} {{ 'a1'.isalnum() }} {{ 'ab'.isalpha() }} {{ '12'.isdigit() }} {{ ' '.isspace() }} {{ ''.isdigit() }} {{ 'ab'.islower() }} {{ 'AB'.isupper() }} {{ '7'.zfill(3) }} {{ '-7'.zfill(4) }} {{ 'a'.ljust(3, '.') }} {{ 'a'.rjust(3) }} {{ 'ab'.center(5, '*') }} {{ 'abc'.removeprefix('a') }} {{ 'abc'.removesuffix('c') }}
{{ '-'.join([1]) }}
{{ 'abc'.index('x') }}
{{ 'abc'.nosuch() }}
{{ [1, 2, 1].count(1) }} {{ [1, 2].index(2) }} {{ (1, 2).index(2) }} {{ {'a': 1}.copy() }} {{ [1].copy() }}
{{ [].append(1) }}
{{ {}.update({}) }}
{% set l = [] %}{% set _ = l.append(1) %}
{{ [].append is defined }}
{% for i in range(3) %}{{ i }}{% endfor %} {% for i in range(1, 8, 3) %}{{ i }}{% endfor %} {% for i in range(3, 0, -1) %}{{ i }}{% endfor %} {{ range(3) | list }} {{ range(0) | length }} {{ range(5)[1:3] | list }} {{ 2 in range(3) }}
{{ range(1000000) | length }}
{{ range(1, 2, 0) }}
{{ dict(a=1, b=2) }} {{ dict({'a': 1}, c=3) }} {{ dict([('a', 1)]) }} {{ {'a': 1, 'a': 2} }} {{ {1: 'x', 1.0: 'y', true: 'z'} }} {{ {(1, 2): 3}[(1, 2)] }}
{{ {[]: 1} }}
{% for x in [1, 2, 3] %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.previtem }}{{ loop.nextitem }}{{ loop.depth }} {% endfor %}
{% for x in [1, 2, 3, 4] if x is even %}{{ loop.index }}/{{ loop.length }}:{{ x }}:{{ loop.nextitem }};{% endfor %} {% for x in [] %}a{% else %}none{% endfor %} {% for x in [1] if x > 1 %}a{% else %}e{% endfor %} {% for x in nothing %}{% else %}u{% endfor %}
{% for x in none %}{% endfor %}
{% for x in 5 %}{% endfor %}
{% for x in 'aé🙂' %}[{{ x }}]{% endfor %} {% for a, b in [(1, 2), [3, 4]] %}{{ a }}{{ b }}{% endfor %} {% for a, (b, c) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %} {% for x in (1, 2) %}{{ x }}{% endfor %} {% for x in 1, 2 %}{{ x }}{% endfor %}
{% for a, b in [(1, 2, 3)] %}{% endfor %}
{% for a, b in [1] %}{% endfor %}
{% for x in [1,2,3,4] %}{% if x == 2 %}{% continue %}{% endif %}{% if x == 4 %}{% break %}{% endif %}{{ x }}{% endfor %} {% for x in [1, 2] %}{% break %}{% else %}e{% endfor %} {% for x in [1, 2] %}{% continue %}{% else %}f{% endfor %} {% for x in [1, 2] %}{% if x == 2 %}{% break %}{% endif %}{% else %}g{% endfor %}
{% set ns = namespace(found=false, n=0) %}{% for x in [1, 2, 3] if not ns.found %}{{ x }}{% set ns.n = ns.n + x %}{% if x == 2 %}{% set ns.found = true %}{% endif %}{% endfor %} {{ ns.n }} {{ ns.found }} {{ ns['n'] }} {{ ns.none_such is defined }}
{% set a = 1 %}{% for x in [1, 2] %}{{ a }}{% set a = a + x %}{{ a }} {% endfor %}{{ a }} {% if true %}{% set a = 9 %}{% endif %}{{ a }} {% with a = 3, b = a %}{{ a }}{{ b }}{% set a = 4 %}{{ a }}{% endwith %}{{ a }}
{% set a, b = 1, 2 %}{{ a }}{{ b }} {% set c = (1, 2) %}{{ c }} {% set d = 1, %}{{ d }} {% set e %} x {{ a }} {% endset %}[{{ e }}] {% set f | upper | trim %} y {% endset %}[{{ f }}] {% set ns = namespace() %}{% set ns.z %}q{% endset %}{{ ns.z }}
{% set x.a = 1 %}
{% set ns = namespace(_x=1) %}
{% set ns = namespace({'a': 1}, b=2) %}{{ ns.a }}{{ ns.b }}
{% macro m(a, b=2, c=a) %}{{ a }}{{ b }}{{ c }}|{% endmacro %}{{ m(1) }}{{ m(1, 3) }}{{ m(b=5, a=4) }}{{ m() }}{{ m(1, c='z') }}{{ m(*[7, 8]) }}{{ m(**{'a': 9}) }} {{ m(1) | length }} {{ m.name }}
{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}
{% macro m(a) %}{{ a }}{% endmacro %}{{ m(b=2) }}
{% macro m(a) %}{{ a }}:{{ varargs }}:{{ kwargs }}{% endmacro %}{{ m(1, 2, 3, k=4) }} {{ m() }}
{% macro fact(n) %}{{ n * (fact(n - 1) | int) if n > 1 else 1 }}{% endmacro %}{{ fact(10) }}
{% macro outer(x) %}<{{ caller(x) }}>{% endmacro %}{% call(y) outer(5) %}{{ y + 1 }}{% endcall %} {% macro o2() %}{{ caller is defined }}{% endmacro %}{{ o2() }}
{% set g = 1 %}{% macro m() %}{{ g }}{% endmacro %}{{ m() }}{% set g = 2 %}{{ m() }}{% for g in [5] %}{{ m() }}{% endfor %} {% for i in [7] %}{% macro n() %}{{ i }}{% endmacro %}{{ n() }}{% endfor %}
{% macro a(x) %}{% if x %}{{ x[0] }}{{ a(x[1:]) }}{% endif %}{% endmacro %}{{ a('abc') }} {% filter upper %}x{{ 1 }}y{% endfilter %}
{% set it = [1, 2, 3] | select('odd') %}{{ it | list }}{{ it | list }} {% set v = d.items() %}{{ v | list | length }}{{ v | list | length }} {% set r = [1, 2] | map('string') %}{{ r | first }}{{ r | list }}
{{ raise_exception('no ' ~ 'way') }}
{{ strftime_now('%d %b %Y %H:%M %A %j %%') }}|{{ strftime_now('%Y-%m-%d') }}|{{ strftime_now('%z%Z') }}|
{% set j = joiner(', ') %}{% for x in [1, 2, 3] %}{{ j() }}{{ x }}{% endfor %} {% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{{ c.current }}
{% for x in [1, 1, 2] %}{{ loop.changed(x) }}{{ loop.cycle('o', 'e') }}{% for y in [1] %}{{ loop.depth }}{% endfor %}{% set outer = loop %}{% for y in [1] %}{{ outer.index }}{% endfor %}{% endfor %}
{% generation %}in {{ x.a.b }}{% set q = 1 %}{% endgeneration %}{{ q is defined }}
{%- if x -%} a {%- elif y -%} b {%- else -%} c {%- endif -%} d
{% raw %}{{ x }} {% if %} {# #}{% endraw %} {%- raw -%} {{ y }} {%- endraw -%} z
a{# c #}b {#- c -#} d {#+ e +#} f
  {{ 1 }}  {{- 2 -}}  {{ 3 }}  {%- if true %} 4 {% endif -%}  5
{{ {'a': {'b': {}}} }}{{ "}}" }}{{ '%}' }}{{ {'x': '}}'}['x'] }}
{{ 'a' 'b' "c" }} {{ 'line\
joined' }} {{ '\x41\u0042\103\q\0' | tojson }} {{ '''' }}
{{ (1) }} {{ (1, ) }} {{ ((1, 2), 3)[0][1] }} {{ [1, 2, ] }} {{ {'a': 1, } }} {{ 1, 2 }} {{ -1 | abs }} {{ -(1) }} {{ +1 }} {{ - 1 }} {{ 2 * -3 }} {{ 10 - 2 - 3 }} {{ 2 ** 3 ** 2 }} {{ -2 ** 2 }}
{{ 'a' ~ 1 + 2 }}
{{ 1 + 2 ~ 'a' }}
{{ [1, 2, 3] | map('float') | map('int') | sum + 1 }} {{ ('a', 'b') | join | upper ~ 'c' }} {{ 'a' | default('b') | upper }} {{ (1 if x else 2) + 1 }} {{ x.l | length > 1 and 'many' }}
{% if 'a' in x and x.a is mapping and x.a.b == 1 %}yes{% endif %}{% if not (x.l is string) %}list{% endif %}{% if x.l is iterable and x.l is not string %}it{% endif %}{% if x %}{% else %}{% endif %}
{% print 1, 2 %} {% print 'a' ~ 'b' %}
{{ 'a' is undefined or 'b' }} {{ x.l[0] is number }} {{ x.l[0] is eq(x.l[0]) }} {{ x.get('a').get('b', 0) is number }}
{{ {'type': 'x'}.type }} {{ {'get': 1}.get('get') }} {{ x.__class__ }}|{{ ''.__class__ is defined }}
{% if %}{% endif %}
{% for x %}{% endfor %}
{{ 1 +
{% if true %}
{{ 'abc }}
{% endif %}
{% nosuch %}
{{ a b }}
{{ 1 ) }}
{% set 1 = 2 %}
{% break %}
""".strip("\n").replace("'line\\\njoined'", "'line\\\x00joined'").split("\n")
LINES = ["a\n\n", "a\r\nb\rc\n", "", "\n", "{% if true %}\n  x\n{% endif %}\ny\n", "  {% if true %}\n  x\n  {% endif %}  \n  z {% if true %}\nq{% endif %}",
         "{%+ if true +%}\n  x\n   {%+ endif %}\n y", "   {# c #}\n  a\n {#- d #}\n  {{ 1 }}\n{{ 2 }}\n\n", "\t{%- if true -%}\n\n x \n\n{%- endif -%}\n\n y",
         "{% raw -%}\n  {{ a }}\n  {%- endraw %}\n b", "{% raw %}\n  {{ a }}\n  {% endraw %}\n b", "{% for x in [1, 2] %}\n  - {{ x }}\n{% endfor %}\nend",
         "{% set x %}\n line\n{% endset %}\n[{{ x }}]", "a {% if true %} b {% endif %} c\n  {% if true %}d\n{% endif %}", "\u2003{% if true %}\n\u00a0x{%- endif %}",
         "{% macro m() %}\n  in\n{% endmacro %}\n{{ m() }}{{ m() | trim }}", "x\n{#\n many\n lines\n#}\ny{{ '\n' }}\n", "{{ 'a\nb' }}\n\n\n"]
VARIABLES = {"x": {"a": {"b": 1}, "nul": None, "l": [10, {"n": "é"}]}, "d": {"one": 1, "items": [2], "k": "v"}, "y": "",
             "ms": [{"r": "u", "c": "hi", "n": 1, "q": 1}, {"r": "a", "c": "yo", "n": 2}, {"r": "u", "c": "ok", "n": 3}]}


def render(template, conversation):
    """The text, or an exception's name and text."""
    messages = [{k: v for k, v in m.items() if v is not None} for m in conversation["messages"]]  # as apply_chat_template does
    try:
        texts, _ = chat_template_utils.render_jinja_template(
            conversations=[messages], tools=conversation.get("tools"), documents=conversation.get("documents"), chat_template=template,
            add_generation_prompt=conversation.get("add_generation_prompt", True), **TOKENS, **conversation.get("chat_template_kwargs", {}))
        return texts[0], None
    except Exception as e:
        return None, f"{type(e).__name__}: {e}"


def render_snippet(template):
    try:
        return {"text": chat_template_utils._compile_jinja_template(template).render(**VARIABLES)}
    except Exception as e:
        return {"error": f"{type(e).__name__}: {e}"}


def write_cases():
    cases = {"now": NOW, "variables": VARIABLES, "snippets": [], "conversations": conversations(), "rendered": {}}
    for template in [s.replace("\x00", "\n") for s in SNIPPETS] + LINES:
        cases["snippets"].append({"template": template, **render_snippet(template)})
    for name in sorted(os.listdir(os.path.join(HERE, "templates"))):
        with open(os.path.join(HERE, "templates", name), encoding="utf-8") as f:
            template = f.read()
        cases["rendered"][name.removesuffix(".jinja")] = [render(template, c)[0] for c in cases["conversations"]]
    with open(os.path.join(HERE, "cases.json"), "w", encoding="utf-8") as f:
        json.dump(cases, f, ensure_ascii=False, indent=0)
        f.write("\n")
    raised = sum(t is None for texts in cases["rendered"].values() for t in texts)
    print(f"{len(cases['snippets'])} snippets, {sum('error' in s for s in cases['snippets'])} of them raise; {len(cases['rendered'])} templates over "
          f"{len(cases['conversations'])} conversations, {raised} of them raise")


def compare(folder, tool):
    templates = sorted(os.path.join(root, f) for root, _, files in os.walk(folder) for f in files if f.endswith(".jinja"))
    with tempfile.TemporaryDirectory() as scratch:
        model = os.path.join(scratch, "model")
        os.mkdir(model)
        with open(os.path.join(model, "tokenizer_config.json"), "w") as f:
            json.dump(TOKENS, f)
        jobs = [(t, c, os.path.join(scratch, f"{i}.json")) for i, c in enumerate(conversations()) for t in templates]
        for _, c, path in jobs:
            with open(path, "w", encoding="utf-8") as f:
                json.dump(c, f)

        def run(job):
            template, conversation, path = job
            done = subprocess.run([tool, "--receiver", model, "--chat", path, "--template", template, "--template-time", str(NOW), "--render"],
                                  capture_output=True)
            return done.returncode, done.stdout.decode(), done.stderr.decode()

        with ThreadPoolExecutor(2) as pool:
            results = list(pool.map(run, jobs))
    bad = 0
    for template in templates:
        with open(template, encoding="utf-8") as f:
            source = f.read()
        mine = [(j, r) for j, r in zip(jobs, results) if j[0] == template]
        equal = raised = 0
        for (_, conversation, path), (code, out, err) in mine:
            text, error = render(source, conversation)
            same = (code != 0) if text is None else (code == 0 and out == text)
            equal += same
            raised += text is None
            if not same:
                bad += 1
                print(f"  {os.path.basename(template)}, conversation {os.path.basename(path)}: expected {text!r} {error or ''}, found {out!r} {err}")
        print(f"{os.path.basename(template)}: {equal} of {len(mine)} equal ({raised} raise)")
    print(f"{len(results) - bad} of {len(results)} equal, {len(templates)} templates")
    return bad


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--templates", help="folder with *.jinja to compare on")
    parser.add_argument("--ds", help="ds-run")
    options = parser.parse_args()
    os.environ["TZ"] = "UTC"
    chat_template_utils.datetime = FixedTime
    if options.templates:
        sys.exit(1 if compare(options.templates, options.ds) else 0)
    write_cases()
