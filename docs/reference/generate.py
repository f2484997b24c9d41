#!/usr/bin/env python3
"""Writes the reference pages of this folder from the comments in proto/.

generate.py          writes the pages
generate.py --check  fails, naming the page, when one is not what would be written
"""

import os
import re
import sys

HERE = os.path.dirname(os.path.realpath(__file__))
PROTO = os.path.join(HERE, "..", "..", "proto", "lemo", "v1")

_MESSAGE = re.compile(r"message (\w+) \{(\})?")
_FIELD = re.compile(
    r"(?:(?P<label>optional|repeated) )?(?P<type>map<[^>]+>|[\w.]+) (?P<name>\w+) = \d+;"
    r"(?: *// (?P<note>.*))?$"
)
_ONEOF = re.compile(r"oneof (\w+) \{")

_JSON_TYPES = {
    "int32": "integer", "int64": "integer", "uint32": "integer", "uint64": "integer",
    "double": "number", "float": "number", "bool": "true or false", "string": "text",
}


class Field:
    def __init__(self, name, label, type_name, text, choice):
        self.name, self.label, self.type, self.text, self.choice = name, label, type_name, text, choice


class Message:
    def __init__(self, name, text):
        self.name, self.text, self.fields = name, text, []


def sentence(note):
    """A note behind a field, as a sentence."""
    if not note:
        return ""
    return note[0].upper() + note[1:] + ("" if note.endswith(".") else ".")


def parse(path):
    """The comment at the top of a proto file and its messages, in order."""
    with open(path, encoding="utf-8") as file:
        lines = [line.strip() for line in file]
    head, comment, messages, message, oneof, shared = "", [], [], None, None, False
    for number, line in enumerate(lines, 1):
        if line.startswith("//"):
            comment.append(line[2:].strip())
            continue
        text = " ".join(comment)
        if line.startswith("syntax"):
            head = "\n".join(comment).replace("\n\n", "\0").replace("\n", " ").replace("\0", "\n\n")
        elif found := _MESSAGE.match(line):
            message, shared = Message(found[1], text), False
            messages.append(message)
        elif found := _ONEOF.match(line):
            oneof = found[1]
        elif line == "}":
            oneof, message = (None, message) if oneof else (None, None)
        elif found := _FIELD.match(line):
            note = sentence(found["note"])
            if not text and not note and shared:
                text = "As above."
            shared = bool(text)  # a comment may stand over several fields
            note = " ".join(part for part in (text, note) if part)
            message.fields.append(Field(found["name"], found["label"], found["type"], note, oneof))
        elif line and not line.startswith(("package", "import", "option", "reserved")):
            raise ValueError(f"{path}:{number}: not understood: {line}")
        comment = []
    return head, messages


def type_text(field, names):
    if found := re.match(r"map<(\w+), *(\w+)>", field.type):
        return f"object of {_JSON_TYPES[found[2]]}"
    text = _JSON_TYPES.get(field.type, f"[{field.type}](#{field.type.lower()})")
    if field.type not in _JSON_TYPES and field.type not in names:
        text = field.type
    return f"list of {text}" if field.label == "repeated" else text


def page(title, proto, introduction):
    head, messages = parse(os.path.join(PROTO, proto))
    names = {message.name for message in messages}
    out = [f"# {title}", "", f"<!-- Written by generate.py from proto/lemo/v1/{proto}. -->", ""]
    out += [head, "", introduction, ""]
    for message in messages:
        out += [f"## {message.name}", ""]
        if message.text:
            out += [message.text, ""]
        if not message.fields:
            out += ["No fields: `{}`.", ""]
            continue
        choices = {}
        for field in message.fields:
            if field.choice:
                choices.setdefault(field.choice, []).append(f"`{field.name}`")
        for fields in choices.values():
            out += [f"Exactly one of {', '.join(fields)}.", ""]
        out += ["| field | type | meaning |", "| --- | --- | --- |"]
        for field in message.fields:
            meaning = field.text.replace("|", "\\|")
            out.append(f"| `{field.name}` | {type_text(field, names)} | {meaning} |")
        out.append("")
    return "\n".join(out).rstrip("\n") + "\n"


def pages():
    yield "run-spec.md", page(
        "The run spec",
        "run_spec.proto",
        "A field's path, as `--set` and error messages write it, is the names from the top joined by dots: "
        "`train.learning_rate`, `data.train[0].path`. A name that is not here is refused, with the nearest "
        "one that is.",
    )
    yield "job-spec.md", page(
        "The job spec",
        "job_spec.proto",
        "`run` is [the run spec](run-spec.md), `plan` a [PlanSpec](plan.md#planspec). A name that is not known is "
        "refused, with the nearest one that is.",
    )
    yield "plan.md", page(
        "Plans",
        "plan.proto",
        "[Choosing an offer](../choosing-an-offer.md) tells how they are used.",
    )
    yield "timing.md", page(
        "Times",
        "timing.proto",
        "[Choosing an offer](../choosing-an-offer.md#the-times) tells how far to trust them.",
    )
    yield "run-events.md", page(
        "The events of a run",
        "run_event.proto",
        "In JSON the fields of the event stand beside `type`, `sequence` and `unix_seconds`; a number that "
        "is not finite is null.",
    )


def main():
    check = sys.argv[1:] == ["--check"]
    for name, text in pages():
        path = os.path.join(HERE, name)
        if check:
            try:
                with open(path, encoding="utf-8") as file:
                    current = file.read() == text
            except FileNotFoundError:
                current = False
            if not current:
                sys.exit(f"docs/reference/{name} is not what proto/ says; run ./dev format")
        else:
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)


if __name__ == "__main__":
    main()
