"""Records what transformers renders for chat templates, for template_parity_test.cc.

Usage: python record_templates.py SHARED_DATA > recorded_templates.json
with transformers and jinja2 installed; SHARED_DATA holds tokenizers/<name>/chat_template.jinja. Those
templates are named in the record, not copied; the others here are written for this test.
"""

import json
import pathlib
import sys

from transformers.utils.chat_template_utils import render_jinja_template

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a town: \"sun\", <b>rain</b> & snow – façade",
        "parameters": {
            "type": "object",
            "properties": {
                "town": {"type": "string", "description": "Name's first letter is a capital"},
                "days": {"type": "integer", "enum": [1, 3, 7]},
                "units": {"type": "array", "items": {"type": "number"}, "default": [1.5, 1e-7, 1e22]},
            },
            "required": ["town"],
        },
    },
}
EMPTY = {"type": "function", "function": {"name": "now", "parameters": {}, "extra": [], "x": None, "y": True}}


def call(name, arguments):
    return {"role": "assistant", "content": "", "tool_calls": [
        {"type": "function", "function": {"name": name, "arguments": arguments}}]}


CONVERSATIONS = {
    "user": [{"role": "user", "content": "Hi there"}],
    "turns": [
        {"role": "system", "content": "  You are terse.  "},
        {"role": "user", "content": "What's 2 + 2?\n"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "And \"3\" 🦙 + <é>?"},
        {"role": "assistant", "content": "\n  You cannot add a llama.\n\n"},
    ],
    "tools": [
        {"role": "user", "content": "Weather in Łódź?"},
        call("get_weather", {"town": "Łódź", "days": 3, "nested": {"b": [True, None, 0.1], "a": "\t\\"}}),
        {"role": "tool", "name": "get_weather", "content": "sunny, 21°"},
        {"role": "assistant", "content": "Sunny."},
        {"role": "user", "content": "Thanks"},
    ],
    "two_results": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Both?"},
        call("now", {}),
        {"role": "tool", "content": "one"},
        {"role": "tool", "content": "two"},
        {"role": "assistant", "content": "Both."},
    ],
    "result_object": [
        {"role": "user", "content": "x"},
        {"role": "tool", "content": {"z": 1, "a": [1, 2.0, -0.0, 12345678901234567890], "ü": "é\u2028"}},
    ],
    "thinking": [
        {"role": "user", "content": "q1"},
        {"role": "assistant", "content": "<think>\nlong thought\n</think>\n\nanswer 1"},
        {"role": "user", "content": "q2"},
        {"role": "assistant", "content": "<think>\nshort\n</think>\n\nanswer 2"},
    ],
    "empty": [],
}

# Each exercises a corner of the dialect.
TEMPLATES = {
    "chatml": "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content']"
              " + '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}"
              "{{ '<|im_start|>assistant\\n' }}{% endif %}",
    "blocks": """
{# trim_blocks and lstrip_blocks #}
  {% for message in messages %}
    {% if loop.first %}
first {{ loop.index }}/{{ loop.length }}
    {% elif loop.last %}
last
    {% endif %}
  {%- if message.role == 'user' -%}
     U:{{ message.content | trim }}
  {%- else %}
     O:{{ message.content | default('none', true) | trim | replace('\\n', ' ') }}
  {% endif %}
  {% endfor %}
tail
""",
    "methods": "{% for m in messages %}{% set parts = m.role.split('s') %}{{ parts }}|{{ m.role.upper() }}|"
               "{{ m.role.startswith('a') }}|{{ m.items() | list | length }}|{{ m.get('nope') }}|"
               "{{ m.get('nope', 'x') }}|{{ m['role'].strip('u').title() }}|{{ m.role[1:3] }}|{{ m.role[::-1] }}|"
               "{{ m.missing }}|{{ m.missing is defined }}|{{ m.role is string }}|{{ m is mapping }}|"
               "{{ m.role is sequence }}|{{ m.role is iterable }}|{{ none }}|{{ true }}|{{ 1.0 }}|{{ 7 // 2 }}|"
               "{{ 7 / 2 }}|{{ m.keys() | list }}|{{ 'a' in m.role }}|{{ 'role' in m }}\n{% endfor %}",
    "control": "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}"
               "{% if loop.index0 > 3 %}{% break %}{% endif %}{{ m.role }};{% else %}none{% endfor %}"
               "{% set ns = namespace(n=0, found=false) %}{% for m in messages[::-1] %}"
               "{% if not ns.found and m.role == 'user' %}{% set ns.found = true %}"
               "{% set ns.n = loop.index0 %}{% endif %}{% endfor %}{{ ns.n }} {{ ns.found }}",
    "macros": "{% macro turn(m, sep='::') %}{{ m.role ~ sep ~ (m.content if m.content is string else 'obj') }}"
              "{% endmacro %}{% for m in messages %}{{ turn(m) }}{{ turn(m, sep='=') }}\n{% endfor %}"
              "{{ messages | map(attribute='role') | join(',') }} "
              "{{ messages | selectattr('role', 'equalto', 'user') | list | length }} "
              "{{ messages | rejectattr('role', 'in', ['user', 'tool']) | map(attribute='role') | unique | list }}",
    "json": "{% for m in messages %}{{ m | tojson }}\n{{ m | tojson(indent=2) }}\n"
            "{{ m | tojson(ensure_ascii=True) }}\n{{ m | tojson(separators=(',', ':'), sort_keys=True) }}\n"
            "{% endfor %}{% for t in tools or [] %}{{ t | tojson(indent=4) }}\n{{ t }}\n{{ t | string | length }}"
            "\n{% endfor %}",
    "generation": "{{ bos_token }}{%- for message in messages -%}\n{%- if message.role == 'assistant' -%}\n"
                  "A: {% generation %}{{ message.content }}{{ eos_token }}{% endgeneration %}\n"
                  "{% else %}\n{{ message.role }}: {{ message.content }}\n  {%- generation -%}\n x "
                  "{%- endgeneration %}\n{% endif %}\n{% endfor %}",
    "reasoning": """
{%- set ns = namespace(last=messages|length - 1, more=true) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.more and message.role == "user" and not(message.content.startswith('<tool>')) %}
        {%- set ns.more = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "assistant" %}
        {%- set content = message.content %}
        {%- set thought = '' %}
        {%- if '</think>' in message.content %}
            {%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}
            {%- set thought = message.content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or thought) %}
            {{- '<|im_start|>assistant\\n<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>assistant\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
""",
    "refusal": "{% if messages[0].role != 'system' %}\n{{ raise_exception('System first, please!') }}{% endif %}ok",
}

PAIRS = [
    ("chatml", ["user", "turns", "thinking", "empty"]),
    ("blocks", ["user", "turns", "tools", "two_results"]),
    ("methods", ["user", "turns", "result_object"]),
    ("control", ["user", "turns", "two_results"]),
    ("macros", ["user", "turns", "result_object"]),
    ("json", ["turns", "tools", "result_object"]),
    ("generation", ["turns"]),
    ("reasoning", ["turns", "thinking"]),
    ("refusal", ["user", "turns"]),
    ("tokenizers/llama3", ["user", "turns", "tools", "two_results", "result_object", "empty"]),
    ("tokenizers/qwen2", ["user", "turns", "tools", "two_results", "thinking", "empty"]),
]


def main():
    shared = pathlib.Path(sys.argv[1])
    cases = []
    for template, names in PAIRS:
        source = TEMPLATES.get(template)
        if source is None:
            source = (shared / template / "chat_template.jinja").read_text()
        for name in names:
            for tools in (None, [WEATHER, EMPTY]):
                if tools and "tools" not in source:
                    continue
                for prompt in (False, True):
                    if prompt and "add_generation_prompt" not in source:
                        continue
                    case = {"template": template, "conversation": name, "tools": bool(tools), "prompt": prompt}
                    try:
                        rendered, _ = render_jinja_template(
                            conversations=[CONVERSATIONS[name]], tools=tools, chat_template=source,
                            add_generation_prompt=prompt, bos_token="<s>", eos_token="</s>")
                        case["text"] = rendered[0]
                    except Exception as error:
                        case["error"] = str(error)
                    cases.append(case)
    record = {"templates": TEMPLATES, "conversations": CONVERSATIONS, "tools": [WEATHER, EMPTY], "cases": cases}
    json.dump(record, sys.stdout, ensure_ascii=False, indent=1)
    print()


main()
