"""Chat templates: what their language has, what they may not do, and what they may not take."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from llmcli.errors import TemplateError
from llmcli.text import renderer, template
from llmcli.text.template import render

HI = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (
            "{% for x in [1, 2, 3, 4] %}{% if x == 2 %}{% continue %}{% endif %}{% if x == 4 %}{% break %}{% endif %}{{ x }}{% endfor %}",
            "13",
        ),
        ("{% set x = 1 %}{% generation %}{% set x = 2 %}g{{ x }}{% endgeneration %}{{ x }}", "g21"),
        ("{% generation -%}  \n a{%- endgeneration %}", "a"),
        ("{{ {'b': '<é>', 'a': [1, none, true]} | tojson }}", '{"b": "<é>", "a": [1, null, true]}'),
        ("{{ {'b': 1, 'a': 'é'} | tojson(true, sort_keys=true, separators=(',', ':')) }}", '{"a":"\\u00e9","b":1}'),
        ("{{ [1] | tojson(indent=2) }}", "[\n  1\n]"),
        ("{{ strftime_now('%d %b %Y %H:%M') }}", "09 Mar 2024 08:07"),
        ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "1"),
        ("{% set ns = namespace(self=1) %}{{ ns.self }}", "1"),
        ("{{ dict(a=1)['a'] }}{{ dict.fromkeys(['b']) }}", "1{'b': None}"),
        ("{% macro m(x, y='!') %}<{{ x }}{{ y }}>{% endmacro %}{{ m('a') }}{{ m('b', y='?') }}", "<a!><b?>"),
        ("{% macro m() %}[{{ caller() }}]{% endmacro %}{% call m() %}c{% endcall %}", "[c]"),
        ("{{ tools is none }} {{ documents is none }} {{ add_generation_prompt }} {{ nothing is defined }}", "True True True False"),
        ("  {% if true %}\nx\n  {% endif %}\ny", "x\ny"),
        ("{{ messages[0]['content'] }}{{ messages[0].content.split('i')[0] }}{{ messages[-1].get('x', 'd') }}", "hihd"),
        ("{{ '<&>' }}{{ 'a\\tb' | upper | trim }}{{ ['x', 'y'] | join('-') }}{{ messages | length }}", "<&>A\tBx-y1"),
        ("{{ [3, 1] | sort }}{{ {'a': 1}.items() | list }}{{ 'abc'[::-1] }}{{ 7 // 2 }}", "[1, 3][('a', 1)]cba3"),
        ("{{ {'a': 1} | pprint }}{{ lipsum(n=1, html=false) | length > 9 }}", "{'a': 1}True"),
    ],
)
def test_the_language(source: str, expected: str) -> None:
    assert render(source, HI, datetime.fromisoformat("2024-03-09T08:07:06")) == expected


def test_messages_arrive_as_they_are() -> None:
    """Except fields that are None, which are not there, and thoughts, which have every name that templates use."""
    parts = [{"type": "text", "text": "ü\ud800"}, {"type": "image"}]
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": parts, "name": None},
        {"role": "assistant", "content": "a", "thinking": "t"},
    ]
    text = render("{{ messages[0].content[0].text }}{{ messages[0] | length }}{{ messages[1].reasoning_content }}", messages)
    assert text == "ü\ud8002t"
    assert render("{{ messages[0].thinking }}", [{"role": "assistant", "content": "", "reasoning": "r"}]) == "r"


def test_variables_of_the_caller() -> None:
    assert (
        render("{{ x }}{{ tools[0].name }}{{ add_generation_prompt }}", HI, x=1, tools=[{"name": "n"}], add_generation_prompt=False)
        == "1nFalse"
    )


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ strftime_now.__self__.year }}",
        "{{ dict.__class__.__init__.__globals__ }}",
        "{{ (namespace | attr('__init__')).__globals__ }}",
        "{{ messages.append(1) }}",
        "{% include '/etc/passwd' %}",
        "{% import 'x' as y %}",
        "{% extends 'x' %}",
        "{{ open('/etc/passwd') }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ namespace(_x=1) }}",
        "{% for %}",
        "{{ messages[3].content.x }}",
        "{{ 1 / 0 }}",
        "{{ messages | tojson(surprise=1) }}",
        "{{ messages | nofilter }}",
    ],
)
def test_a_template_that_fails_or_attacks(source: str) -> None:
    with pytest.raises(TemplateError) as caught:
        render(source, HI)
    assert caught.value.code == 3 and caught.value.why and "\n" not in str(caught.value)


def test_formatting_reaches_no_attributes() -> None:
    assert "list" not in render("{{ '{0.__class__}'.format(messages) }}", [])


def test_a_refusal_in_the_templates_own_words() -> None:
    with pytest.raises(TemplateError, match="refuses this conversation: no system role") as caught:
        render("{{ raise_exception('no system\n role') }}", HI)
    assert "--raw" in str(caught.value)


DEEP = "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}"
DOUBLING = "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}"
BOMBS = {
    "a loop": "{% for i in range(10**9) %}{% endfor %}",
    "loops in loops": "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}",
    "a long list": "{{ range(99999) | list * 99999 }}",
    "a product of text": "{{ 'a' * 10**9 }}",
    "a product of a variable": "{% set n = messages | length %}{{ ('a' * (n * 10**9)) | length }}",
    "doubling": DOUBLING,
    "doubling lists": "{% set ns = namespace(s=[1]) %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "a wide number": "{{ '%0999999999d' % 1 }}",
    "a wide number, formatted": "{{ '{:0999999999d}'.format(messages | length) }}",
    "the format filter": "{{ '%999999999s' | format(1) }}",
    "a power": "{{ 9**(9**9) }}",
    "a power of a variable": "{{ (messages | length + 8) ** (9**9) }}",
    "a number of many digits": "{{ (7 ** 9999999) | string | length }}",
    "a wide line": "{{ 'a'.ljust(10**10) }}",
    "zeros": "{{ 'a'.zfill(10**9) | length }}",
    "the centre": "{{ 'a' | center(10**10) }}",
    "an indent": "{{ ('a\n' * 10**6) | indent(10**5) }}",
    "a join": "{{ ('a' * 10**5) | join('b' * 10**5) }}",
    "a replacement": "{{ ('a' * 10**5).replace('', 'b' * 10**5) }}",
    "replacements": "{% set ns = namespace(s='a') %}{% for i in range(99) %}{% set ns.s = ns.s.replace('a', 'aa') %}{% endfor %}",
    "lipsum": "{{ lipsum(n=10**6, max=10**6) }}",
    "a macro without end": DEEP,
    "a macro in two": "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
    "two to the depth": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(99) }}",
    "a recursive loop": "{% for x in [[0]] recursive %}{{ loop([[0]]) }}{% endfor %}",
    "parentheses": "{{ " + "(" * 50_000 + ")" * 50_000 + " }}",
    "blocks": "{% if 1 %}" * 5_000 + "{% endif %}" * 5_000,
    "loops inside": "{% for a in [1] %}" * 200 + "{% endfor %}" * 200,
    "negation": "{{ " + "not " * 100_000 + "1 }}",
    "a large output": "{% for i in range(99999) %}aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa{% endfor %}",
    "a large refusal": "{{ raise_exception('a' * 10**8) }}" * 3,
    "a wide date": "{{ strftime_now('%0999999999Y') | length }}{{ strftime_now('%c' * 10**7) }}",
    "JSON with an indent": "{{ [[[[[1]]]]] | tojson(indent=10**9) }}",
    "a deep list": "{% set ns = namespace(s=[]) %}{% for i in range(99999) %}{% set ns.s = [ns.s] %}{% endfor %}{{ ns.s | tojson }}",
    "a list in itself": "{% set ns = namespace(s={}) %}{% set ns.s = dict(a=ns) %}{{ ns | tojson }}",
    "slices": "{{ messages | slice(10**9) | list }}",
    "batches": "{{ messages | batch(10**10, 1) | list }}",
    "a word wrap": "{{ ('a ' * 10**6) | wordwrap(1) | wordwrap(1) | wordcount }}{{ 'a' * 10**9 }}",
    "links": "{{ ('www.a.bc ' * 10**6) | urlize }}",
    "tags": "{{ ('<' * 10**6) | striptags | length }}{{ ('<!--' * 10**6) | striptags }}",
}


WHOLE = ("loops in loops", "a power")
"""Those that get all of their time, in Python's loop and within one call of C; for the others a part of it shows the same."""


@pytest.fixture
def short_limit(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    template.end()
    monkeypatch.setattr(template, "SECONDS", 0.4)
    yield
    template.end()


@pytest.mark.parametrize("bomb", WHOLE)
def test_the_limit_of_time(bomb: str) -> None:
    assert "it takes more than 2 seconds." in ends_within_its_time(bomb)


@pytest.mark.parametrize("bomb", [name for name in BOMBS if name not in WHOLE])
def test_a_bomb_is_over_soon(bomb: str, short_limit: None) -> None:
    ends_within_its_time(bomb)


def ends_within_its_time(bomb: str) -> str:
    """Whatever a template does ends within its processor time, and the next one renders as if nothing had been. Returns the message."""
    template.end()
    before = processor_time()
    with pytest.raises(TemplateError) as caught:
        render(BOMBS[bomb], HI)
    assert "\n" not in str(caught.value) and len(caught.value.why) < 400
    assert render("{{ messages[0].content }}", HI) == "hi"
    template.end()
    assert processor_time() - before < template.SECONDS + 1  # the start of two processes
    return str(caught.value)


def test_the_memory_of_bombs_is_bounded() -> None:
    """In a process whose only children are those that render."""
    code = """
import resource, test_template
from llmcli.errors import TemplateError
for bomb in ("a product of a variable", "doubling", "doubling lists", "a wide number", "replacements", "a large output", "a deep list"):
    try:
        test_template.render(test_template.BOMBS[bomb], test_template.HI)
    except TemplateError:
        test_template.template.end()
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert int(done.stdout) * (1 if sys.platform == "darwin" else 1024) < renderer.MEMORY + (64 << 20)


def processor_time() -> float:
    """Seconds of all processes that were started here and have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def test_a_process_serves_many_renders_and_is_replaced_when_it_ends() -> None:
    render("x", HI)
    first = template._process._child
    assert first is not None
    assert render("y", HI) == "y" and template._process._child is first
    os.kill(first.pid, signal.SIGKILL)
    with pytest.raises(TemplateError, match="ended"):
        render("x", HI)
    assert render("x", HI) == "x" and template._process._child is not first


def test_prepared_templates_render_and_fail_as_others(short_limit: None) -> None:
    template.prepare("{{ messages[0].content }}")
    template.prepare("{% for %}")
    template.prepare("x" * 100_000)
    assert render("{{ messages[0].content }}", HI) == "hi"
    with pytest.raises(TemplateError):
        render("{% for %}", HI)
    template.end()
    template.prepare(BOMBS["a product of text"])
    template.prepare("{{ " + " + ".join(["7**9999999"] * 99) + " }}")  # computed when it is compiled: over before it is asked for
    with pytest.raises(TemplateError, match="seconds"):
        render("{{ " + " + ".join(["7**9999999"] * 99) + " }}", HI)


def test_an_interrupt_leaves_no_answer_behind() -> None:
    """After Ctrl-C while a template renders, the next answer is the next template's."""
    render("x", HI)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        render(BOMBS["loops in loops"], HI)
    timer.join()
    assert render("{{ messages[0].content }}", HI) == "hi"


def test_a_long_conversation_has_room() -> None:
    """Limits grow with what is given: text of one's own is no bomb."""
    text = "aé🙂 " * 1_000_000
    assert render("{% for m in messages %}<{{ m.content | trim }}>{% endfor %}", [{"role": "user", "content": text}]) == f"<{text.strip()}>"


def test_the_process_knows_nothing_and_opens_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What an escape from the sandbox would find: no environment of the user, no way to open a file."""
    monkeypatch.setenv("HF_TOKEN", "canary")
    template.end()
    render("x", HI)
    child = template._process._child
    assert child is not None
    proc = Path(f"/proc/{child.pid}")
    if not proc.is_dir():
        pytest.skip("no /proc")
    assert b"canary" not in (proc / "environ").read_bytes()
    limits = dict(re.findall(r"^(.+?)  +(\S+)  +\S+", (proc / "limits").read_text(), re.MULTILINE))
    assert limits["Max open files"] == limits["Max file size"] == limits["Max processes"] == limits["Max core file size"] == "0"
    assert limits["Max address space"] != "unlimited"


def test_the_process_ends_with_the_program() -> None:
    code = "from llmcli.text import template as t; t.prepare('x'); print(t._process._child.pid)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout), 0)


def test_the_renderer_imports_little() -> None:
    """Its start is waited for: of ours only itself, of others only Jinja."""
    code = (
        "import sys; import llmcli.text.renderer; print(sorted(m for m in sys.modules if m.startswith(('llmcli', 'numpy', 'tokenizers'))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "['llmcli', 'llmcli.text', 'llmcli.text.renderer']"
