"""Reading a pool file: whatever YAML it is, it is answered, and each value has its line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runnerpool.pool_file import ConfigError, load_config, read_pool_file
from tests.pool_files import FULL, SMALLEST, load, messages


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "1: the file is empty"),
        ("# only a comment\n", "1: the file is empty"),
        ("null", "1: azure: is required"),
        ("- a\n- b\n", "1: must be a mapping of azure, github, pools, not a list"),
        ("hello", "1: must be a mapping of azure, github, pools, not 'hello'"),
        ("a: b\n---\nc: d\n", "2: this is not valid YAML: expected a single document"),
        ("azure:\n\tlocation: x\n", "2: a tab stands where YAML wants spaces"),
        ("azure: [\n", "2: this is not valid YAML"),
        ("azure: *nowhere\n", "1: this is not valid YAML: found undefined alias 'nowhere'"),
        ("azure: &a {tags: *a}\n", "1: azure.tags: an alias refers to what it is part of"),
        ("azure: {<<: 5}\n", "1: this is not valid YAML"),
        ("azure: {? [a, b] : c}\n", "1: azure: a key must be a plain word"),
        ("azure: !!python/object:os.system {}\n", "1: azure: the tag"),
        ("azure: !!set {a, b}\n", "1: azure: the tag"),
        ("azure: !secret x\n", "1: azure: 'x' cannot be read: could not determine a constructor for the tag '!secret'"),
        ("azure: !!int x\n", "1: azure: 'x' cannot be read"),
        ("azure: !!timestamp x\n", "1: azure: 'x' cannot be read"),
        (b"azure: {}\n\xff\xfe\n", "2: this is not UTF-8 text"),
        (b"azure: {}\nx: \x00\n", "2: the character U+0000 is not allowed"),
        ("[" * 5_000, "1: the values are nested too deeply"),
        (b"#" * 1_000_001, "0: is larger than 1000000 bytes"),
    ],
)
def test_strange_files_are_answered_not_crashed_on(tmp_path: Path, text: str | bytes, expected: str) -> None:
    assert messages(tmp_path, text)[0].startswith(expected)


def test_a_file_that_means_billions_of_values_is_refused_at_once(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    assert any("too many values" in message for message in messages(tmp_path, "\n".join(lines)))


def test_a_missing_file_and_a_folder_are_answered(tmp_path: Path) -> None:
    for path, expected in ((tmp_path / "none.yaml", "there is no such file"), (tmp_path, "cannot be read")):
        with pytest.raises(ConfigError) as caught:
            load_config(path)
        assert str(caught.value).startswith(f"{path}: {expected}")


def test_anchors_and_merged_keys_work_and_keep_their_lines(tmp_path: Path) -> None:
    text = """\
azure: {}
github: {owner: octo-org}
pools:
  - labels: [linux]
    vm: &shape
      sizes: [Standard_D4ads_v5]
      zones: ["1"]
  - labels: [large]
    vm:
      <<: *shape
      sizes: [Standard_D16ads_v5]
"""
    config = load(tmp_path, text)
    assert config.pools[1].vm.sizes == ("Standard_D16ads_v5",) and config.pools[1].vm.zones == ("1",)
    found = messages(tmp_path, text.replace('["1"]', "[x]"))
    assert [message.partition(" is ")[0] for message in found] == ["7: pools[0].vm.zones[0]: 'x'", "7: pools[1].vm.zones[0]: 'x'"]


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    assert load(tmp_path, b"\xef\xbb\xbf" + SMALLEST.encode()) == load(tmp_path, SMALLEST)


def test_the_lines_of_a_sound_file_are_known_too(tmp_path: Path) -> None:
    path = tmp_path / "pools.yaml"
    path.write_text(FULL)
    read = read_pool_file(path)
    assert read.line(("pools", 0, "vm", "os_disk", "ephemeral")) == 31
    assert read.line(("pools", 0, "vm", "nothing")) == 26
    assert read.line(("nowhere",)) == 1


WORDS = [
    "azure",
    "github",
    "pools",
    "owner",
    "labels",
    "vm",
    "sizes",
    ": ",
    "\n",
    "  ",
    "- ",
    "[",
    "]",
    "{",
    "}",
    "x",
    "1",
    "&a",
    "*a",
    "<<",
    "!",
]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.one_of(st.binary(max_size=200), st.lists(st.sampled_from(WORDS), max_size=60).map(lambda words: "".join(words).encode())))
def test_no_file_whatever_crashes_the_reading(tmp_path: Path, content: bytes) -> None:
    try:
        load(tmp_path, content)
    except ConfigError as error:
        assert error.problems
