"""YAML as recipes take it: what is read, and how what is not is told."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import yaml

from ddnkit.errors import InputError
from ddnkit.recipe import source
from ddnkit.recipe.source import Origin, dump, parse, quote, read


def value(text: str) -> object:
    return parse(text, Origin("t.yaml")).value


def failure(text: str) -> str:
    with pytest.raises(InputError) as caught:
        parse(text, Origin("t.yaml"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        ("-2e3", -2e3),
        ("1.5e-3", 1.5e-3),
        (".5", 0.5),
        ("3", 3),
        ("0", 0),
        ("1_000", 1000),
        ("-50_000.5", -50_000.5),
        ("1__000", "1__000"),
        ("1_", "1_"),
        ("1e400", float("inf")),
        ("+.5", 0.5),
        ("5.", 5.0),
        ("1.e3", 1000.0),
        ("-.INF", float("-inf")),
        ("0o17", 15),
        ("0x1F", 31),
        ("-0x1F", "-0x1F"),
        ("0b1", "0b1"),
        ("1:30", "1:30"),
        ("190:20:30.15", "190:20:30.15"),
        ("08", 8),
        ("-07", -7),
        ("010.5", 10.5),
        ("yes", "yes"),
        ("No", "No"),
        ("on", "on"),
        ("OFF", "OFF"),
        ("FALSE", False),
        ("tRUE", "tRUE"),
        ("NULL", None),
        ("nULL", "nULL"),
        ("=", "="),
        ("<<", "<<"),
        ("!!float 5", 5.0),
        ("!!null ''", None),
        ("2024-01-01", "2024-01-01"),
        ("e5", "e5"),
        ("'1e-3'", "1e-3"),
        ("!!str 5", "5"),
        ("~", None),
        ("true", True),
        ("{a: &x [1], b: *x}", {"a": [1], "b": [1]}),
        ("{on: 1, 2: b}", {"on": 1, "2": "b"}),
    ],
)
def test_plain_values(text: str, expected: object) -> None:
    assert value(text) == expected
    assert type(value(text)) is type(expected)


@pytest.mark.parametrize(
    "content",
    [
        {"a": 1e-5, "b": "1e-3", "c": [1.0, "2024-01-01", None, True], "d": {"e": "é"}},
        ["no", "1:30", "010", "08", "1_000", "0b1", "0o7", ".5", "~", "", "=", "<<", "-1", "- 1"],
        {"<<": 1, "no": 2, "010": 3, "": 4, "~": 5},
        [1e300, -1e-300, 10**40, 0, -7, 1e22],
    ],
)
def test_dump_is_read_back_to_the_same(content: object) -> None:
    assert repr(value(dump(content))) == repr(content)


def test_readers_of_yaml_1_1_take_what_is_dumped_for_the_same() -> None:
    content = ["no", "On", "1:30", "010", "08", "1_000", "0b1", "0o7", "1e3", 10, 1e-5, 1e22, True]
    assert repr(yaml.safe_load(dump(content))) == repr(content)


def test_dump_repeats_shared_values_instead_of_aliasing_them() -> None:
    shared = [1, 2]
    assert "&" not in dump({"a": shared, "b": shared})


def test_each_path_has_its_line_and_column() -> None:
    document = parse("a:\n  b: [1,\n    2]\n", Origin("t.yaml"))
    mark = document.mark(("a", "b", 1))
    assert (mark.line, mark.column, str(mark)) == (3, 4, "t.yaml:3")
    assert str(document.mark(("a", "b"))) == "t.yaml:2"
    assert str(document.mark(("a", "absent", "deeper"))) == "t.yaml:1"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a: 1\nb: 2\na: 3", ["t.yaml:3: a:", "line 1"]),
        ("a: 1\nx: !!python/object/apply:os.system [id]", ["t.yaml:2: x:", "os.system"]),
        ("x: !!python/name:os.system", ["t.yaml:1: x:", "!!python/name:os.system"]),
        ("x: !!binary aGk=", ["t.yaml:1: x:", "!!binary"]),
        ("x: !mine {a: 1}", ["t.yaml:1: x:", "!mine"]),
        ("x: !!int abc", ["t.yaml:1: x:", "'abc'", "int"]),
        ("x: !!bool yes", ["t.yaml:1: x:", "'yes'", "bool"]),
        ("a: 1\nx: [1, 010]", ["t.yaml:2: x[1]:", "010", "8", "10"]),
        ("x: 0_10", ["t.yaml:1: x:", "8", "10"]),
        ("x: -0777", ["t.yaml:1: x:", "-0777", "-511"]),
        ("x: " + "9" * 5000, ["t.yaml:1: x:", "'999"]),
        ("x: 0x" + "f" * 5000, ["t.yaml:1: x:", "'0xff"]),
        ("x: 0o" + "7" * 9000, ["t.yaml:1: x:", "'0o77"]),
        (r'x: [1, "a\ud800"]', ["t.yaml:1: x[1]:", r"\ud800"]),
        (r'x: {"\udfff": 1}', ["t.yaml:1: x:", r"\udfff"]),
        ("x: " + "[" * 101 + "]" * 101, ["t.yaml:1", "too deeply"]),
        ("x: 1\ny: [" + "1, " * 30_000 + "]", ["t.yaml:2", "20000"]),
        ("x: " + "é" * 1_000_001, ["t.yaml:1", "1,000,000"]),
        ("a: [1, 2\nb: 3", ["t.yaml:2", "',' or ']'", "':'"]),
        ("a: 1\n\tb: 2", ["t.yaml:2", "'\\t'"]),
        ("a: 1\n---\nb: 2", ["t.yaml:2", "document"]),
        ("a: 1\nb: \x00", ["t.yaml:2", "'\\x00'"]),
        ("a: &x [*x]", ["t.yaml:1: a[0]:", "alias"]),
        ("? [1]\n: 2", ["t.yaml:1", "key"]),
        ("a: {<<: {b: 1}}", ["t.yaml:1: a:", "<<"]),
        ("[" * 600, ["t.yaml:1", "too deeply"]),
    ],
)
def test_a_text_that_is_not_taken(text: str, parts: list[str]) -> None:
    message = failure(text)
    for part in parts:
        assert part in message


def test_a_tag_never_runs_code(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    failure(f"x: !!python/object/apply:os.mkdir ['{trace}']")
    assert not trace.exists()


def test_nested_aliases_do_not_explode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "MAXIMUM_NODES", 500)
    lines = ["a0: &a0 [1, 1, 1]"]
    lines += [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}]" for i in range(1, 30)]
    message = failure("\n".join(lines))
    assert message.startswith("t.yaml:1: a4[") and "500" in message


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", r"f\.yaml:1: .*empty"),
        (b"# only a comment\n", r"f\.yaml:1: .*empty"),
        (b"- 1\n", r"f\.yaml:1: .* \[1\]$"),
        (b"a: 1\n\xff", r"f\.yaml:2: .*UTF-8"),
    ],
)
def test_a_file_that_is_no_recipe(content: bytes, told: str, tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_bytes(content)
    with pytest.raises(InputError, match=told):
        read(file, "f.yaml")


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{tmp_path}: .*{os.strerror(errno.EISDIR)}"):
        read(tmp_path)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert read(file).value == {"a": 1}


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (None, "nothing"),
        (True, "true"),
        ("abc", "'abc'"),
        ([1, "a"], "[1, a]"),
        ({"a": 1}, "{a: 1}"),
        ({"a": [1]}, "{a: [1]}"),
        (1e-5, "1.0e-05"),
    ],
)
def test_values_are_shown_as_written(given: object, text: str) -> None:
    assert quote(given) == text


def test_a_long_value_is_cut() -> None:
    assert len(quote("x" * 200)) == 60
