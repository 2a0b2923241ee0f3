"""A YAML file as plain values that remember their lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tinyscale.errors import ConfigError
from tinyscale.spec.document import MAX_DEPTH, load_document, parse_value


def load(folder: Path, text: str) -> Any:
    path = folder / "a.yaml"
    path.write_text(text)
    return load_document(path)


def refused(folder: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(folder, text)
    return str(caught.value).removeprefix(str(folder))


def test_values_are_plain_python_of_yaml_1_2(tmp_path: Path) -> None:
    text = "a: 3e-4\nb: yes\nc: 010\nd: [1, 2.0, null, true]\ne: {f: '1', g: 0x10}\nh: &x false\ni: *x\nj: ~\n"
    content = load(tmp_path, text).content
    assert content == {
        "a": 3e-4, "b": "yes", "c": 10, "d": [1, 2.0, None, True], "e": {"f": "1", "g": 16}, "h": False, "i": False,
        "j": None,
    }  # fmt: skip
    assert [type(v) for v in content.values()] == [float, str, int, list, dict, bool, bool, type(None)]
    assert [type(v) for v in content["d"]] == [int, float, type(None), bool]


def test_every_key_and_item_knows_its_line(tmp_path: Path) -> None:
    document = load(tmp_path, "# head\na:\n  b: 1\n\n  c: [1,\n      2]\nd:\n- 5\n- e: 6\n")
    assert document.lines == {
        ("a",): 2, ("a", "b"): 3, ("a", "c"): 5, ("a", "c", 0): 5, ("a", "c", 1): 6, ("d",): 7, ("d", 0): 8,
        ("d", 1): 9, ("d", 1, "e"): 9,
    }  # fmt: skip
    assert document.origin(("a", "b")) == f"{tmp_path}/a.yaml, line 3"
    assert document.origin(("a", "b", "unknown")) == f"{tmp_path}/a.yaml, line 3", "the nearest one above"
    assert document.origin(("unknown",)) == f"{tmp_path}/a.yaml"


def test_merged_and_repeated_anchors_are_read(tmp_path: Path) -> None:
    assert load(tmp_path, "a: &x {b: 1}\nc: {<<: *x, d: 2}\n").content["c"] == {"d": 2, "b": 1}
    assert load(tmp_path, "a: &x 1\nb: *x\nc: &x 2\nd: *x\n").content == {"a": 1, "b": 1, "c": 2, "d": 2}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [1\nb: 2\n", "/a.yaml, line 2: not YAML"),
        ("a: 1\na: 2\n", "/a.yaml, line 2: not YAML: found duplicate key"),
        ("a: 2024-01-01\n", "/a.yaml, line 1: date is not a value"),
        ("a: 2024-13-41\n", "/a.yaml: not YAML: month must be in 1..12"),
        ("b: 1\na: !foo [6, 10]\n", "/a.yaml, line 2: the tag !foo is not for a file like this"),
        ("b: {c: 1, a: !foo {d: 1}}\n", "/a.yaml, line 1: the tag !foo is not for a file like this"),
        ("a:\n- !!python/object/apply:os.system [exit]\n", "/a.yaml, line 2: the tag !!python/object"),
        ("!foo\na: 1\n", "/a.yaml: the tag !foo"),
        ("a: !!int x y\n", "/a.yaml: not YAML: invalid literal"),
        ("a: !!set 1\n", "/a.yaml: not YAML: "),
        ("a: " + "[x, " * 20_000, "not YAML: brackets open and do not close"),
        ("# " + "x" * 300_000, "longer than 200,000 characters"),
        ("b: 1\na: !foo 1\n", "/a.yaml, line 2: the tag !foo is not for a file like this"),
        ("a: !!bool maybe\n", "/a.yaml: not YAML"),
        ("a: !!binary x\n", "not YAML"),
        ("a: !!set {x}\n", "CommentedSet is not a value"),
        ("1: 2\n", "keys are text; 1 is not"),
        ("? [a, b]\n: 1\n", "keys are text; a list is not"),
        ("? [0x" + "F" * 5000 + "]\n: 1\n", "keys are text; a list is not"),
        ("? 0x" + "F" * 5000 + "\n: 1\n", "more than 64 bits"),
        ("- a\n", "is a mapping of keys"),
        ("", "is a mapping of keys"),
        ("a: *nowhere\n", "/a.yaml, line 1: not YAML: found undefined alias"),
        ("a: 1\n---\nb: 1\n", "not YAML"),
        ("a: " + "[" * 1500, "not YAML"),
        ("a: " + "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), f"nested deeper than {MAX_DEPTH} levels"),
        ("a: 0x" + "F" * 5000, "more than 64 bits"),
        ("a: 1" + "0" * 5000, "not YAML"),
        ("a: \0", "not YAML"),
    ],
)
def test_what_is_no_plain_mapping_is_refused_with_its_place(tmp_path: Path, text: str, says: str) -> None:
    assert says in refused(tmp_path, text)


def test_aliases_that_stand_for_billions_of_values_are_refused(tmp_path: Path) -> None:
    bomb = "l0: &l0 [1, 1]\n" + "".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]\n" for i in range(1, 12))
    assert "after expanding aliases" in refused(tmp_path, bomb)


def test_a_file_that_cannot_be_read_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("name: caf\xe9".encode("latin-1"))
    for path, says in (("nowhere.yaml", "no such file"), ("", "cannot be read"), ("latin.yaml", "UTF-8")):
        with pytest.raises(ConfigError, match=says):
            load_document(tmp_path / path)


def test_a_value_of_the_command_line_reads_as_in_a_file() -> None:
    read = [parse_value(text, "--set a") for text in ("3e-3", "2M", "[1, 2]", "{kind: char}", "true", "a b", "")]
    assert read == [3e-3, "2M", [1, 2], {"kind": "char"}, True, "a b", None]
    with pytest.raises(ConfigError, match=r"^--set a, line 1: not YAML"):
        parse_value("[1", "--set a")
