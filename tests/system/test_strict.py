"""The one reader of JSON and TOML: plain data within bounds, or one line that says why not."""

from __future__ import annotations

import json
import os
import re

import pytest

from diffkit.errors import SpecError
from diffkit.runtime.strict_json import (
    DEEPEST,
    check_fields,
    json_object,
    parse_json,
    parse_toml,
    read_bytes,
    read_json,
    word,
)

DEEP = "it is more than 32 levels deep"
WRONG_JSON = [
    ("[" * 100_000, DEEP),
    ('{"a":' * 40 + "1" + "}" * 40, DEEP),
    ('{"a": 1, "b": 2, "a": 3}', "it names 'a' twice"),
    ("[NaN]", "NaN is not a number in JSON"),
    ("[-Infinity]", "-Infinity is not a number in JSON"),
    ("1e999", "it has a number that is not finite"),
    (str(2**64), "it has a number of 65 bits; 64 are the most"),
    ("1" * 5000, "Exceeds the limit"),
    ('"\\ud800"', "it has half of a surrogate pair, in '\\ud800'"),
    ('{"\\u001b[31m": 1}', "it has a name with control characters, '\\x1b[31m'"),
    ('{"\\u202ea": 1}', "it has a name with control characters, '\\u202ea'"),
    (b"\xff\xfe{\0}\0", "it is not UTF-8 (byte 0 is 0xff)"),
    ("", "Expecting value"),
]
WRONG_TOML = [
    ("a=" + "[" * 100_000, DEEP),
    (".".join("a" * 100_000) + " = 1", DEEP),
    ("x = {" + " . ".join("a" * 100_000) + " = 1}", DEEP),
    ("[" + ".".join("a" * 100_000) + "]", DEEP),
    ("a = 0x" + "f" * 6000, "it has a number of 24000 bits; 64 are the most"),
    ("a = " + "1" * 6000, "Exceeds the limit"),
    ("a = 1\na = 2", "Cannot overwrite a value"),
    ('"\\u001b" = 1', "it has a name with control characters, '\\x1b'"),
    (b"\xff", "it is not UTF-8"),
]


@pytest.mark.parametrize(("content", "text"), WRONG_JSON, ids=[w[1][:30] for w in WRONG_JSON])
def test_json_that_is_refused(content, text):
    with pytest.raises(ValueError, match=re.escape(text)) as caught:
        parse_json(content)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(("content", "text"), WRONG_TOML, ids=[w[1][:30] for w in WRONG_TOML])
def test_toml_that_is_refused(content, text):
    with pytest.raises(ValueError, match=re.escape(text)) as caught:
        parse_toml(content)
    assert str(caught.value).isprintable()


def test_what_is_written_is_read():
    found = {"a": [1, -0.5, None, True, "é\n"], "b": {"c": 2**63}, "name of a file": "\udcff"}
    assert parse_json(json.dumps(found)) == found
    assert parse_json(b"\xef\xbb\xbf{}") == {}
    assert parse_toml(b"\xef\xbb\xbfa = [0.5, 1.5]\r\n[b]\nc = '1.2.3'\n") == {"a": [0.5, 1.5], "b": {"c": "1.2.3"}}
    deepest = "[" * DEEPEST + "1" + "]" * DEEPEST
    assert parse_json(deepest)


def test_files_that_are_not_ordinary_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"[" + b" " * 100 + b"]")
    for path, text in ((tmp_path / "pipe", "it is a pipe or a device"), (tmp_path, "it is a folder")):
        with pytest.raises(ValueError, match=text):
            read_bytes(path)
    with pytest.raises(ValueError, match="it has more than 100 bytes"):
        json_object(tmp_path / "large", most=100)


def test_an_error_names_the_file_and_what_would_help(tmp_path):
    path = tmp_path / "a.json"
    with pytest.raises(SpecError, match=re.escape(f"{path} cannot be read as JSON: No such file or directory; do x")):
        read_json(path, SpecError, "; do x")
    path.write_text("[1]")
    with pytest.raises(SpecError, match=re.escape(f"{path} cannot be read as JSON: it holds a list, not an object")):
        read_json(path, SpecError)


@pytest.mark.parametrize(
    ("table", "text"),
    [
        (3, "the file must be an object, got 3"),
        ({}, "the file lacks 'size'"),
        ({"size": True}, "'size' of the file must be an integer, got True"),
        ({"size": 1, "rate": "x" * 1000}, "'rate' of the file must be a number, got '" + "x" * 79 + "..."),
        ({"size": 1, "name": 3}, "'name' of the file must be a text or a list, got 3"),
    ],
)
def test_fields_of_another_type(table, text):
    fields = dict(size=int, rate=(float, type(None)), name=(str, list, type(None)))
    with pytest.raises(SpecError, match=re.escape(text)):
        check_fields(table, "the file", SpecError, **fields)
    check_fields({"size": 1, "rate": 2}, "the file", SpecError, **fields)


def test_words_of_a_file_are_shown_without_control_characters():
    assert word("1.2.3") == "1.2.3"
    assert word("\x1b[31m") == repr("\x1b[31m")
    assert word(3) == "3"
