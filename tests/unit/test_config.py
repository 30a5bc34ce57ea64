"""Settings: one precedence, errors that name the place, and no secrets."""

from __future__ import annotations

from pathlib import Path

import pytest

from processor.cli.settings_page import settings_page
from processor.config import (
    KEY_VARIABLES,
    Settings,
    credentials,
    load,
    resolve_handlers,
    unknown_variables,
)
from processor.errors import ConfigError


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty folder and no variables of ours or ComfyUI's."""
    monkeypatch.chdir(tmp_path)
    for name in ("COMFYUI_URL", "COMFYUI_DIR", "COMFYUI_PYTHON"):
        monkeypatch.delenv(name, raising=False)


def write(text: str, name: str = "dropbatch.toml") -> Path:
    path = Path(name)
    path.write_text(text, "utf-8")
    return path


def test_defaults_are_those_of_the_design() -> None:
    """The page of defaults and the code agree (design, section 8)."""
    settings = load()
    assert (settings.settle_s, settings.lease_s, settings.renew_s) == (600, 600, 120)
    assert (settings.max_attempts, settings.max_tasks) == (3, 10_000)
    assert (settings.render_timeout_s, settings.train_timeout_s) == (20 * 60, 24 * 3600)
    assert (settings.max_job_cost_usd, settings.max_day_cost_usd) == (10, 25)
    assert (f"{settings.night_start:%H:%M}", f"{settings.night_end:%H:%M}") == ("01:00", "07:00")
    assert settings.config_file is None


def test_flags_beat_environment_beats_file_beats_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one documented precedence."""
    assert load().max_tasks == 10_000
    write("max_tasks = 1")
    assert load().max_tasks == 1
    monkeypatch.setenv("DROPBATCH_MAX_TASKS", "2")
    assert load().max_tasks == 2
    assert load(max_tasks=3).max_tasks == 3
    assert load(max_tasks=None).max_tasks == 2


def test_comfyuis_own_variables_stand_between_ours_and_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """They say where an engine is on this machine; ours say it about this product."""
    write('comfyui_url = "http://file"')
    assert load().comfyui_url == "http://file"
    monkeypatch.setenv("COMFYUI_URL", "http://comfy")
    assert load().comfyui_url == "http://comfy"
    monkeypatch.setenv("DROPBATCH_COMFYUI_URL", "http://ours")
    assert load().comfyui_url == "http://ours"


def test_another_file_by_option_or_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The option goes first; a file that is named must be there."""
    write("max_tasks = 1")
    other = write("max_tasks = 2", "other.toml")
    monkeypatch.setenv("DROPBATCH_CONFIG_FILE", str(other))
    assert load().max_tasks == 2
    assert load(Path("dropbatch.toml")).max_tasks == 1
    with pytest.raises(ConfigError, match=r"missing\.toml: no such file"):
        load(Path("missing.toml"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_task = 3", r"dropbatch\.toml: unknown key 'max_task'\. Did you mean 'max_tasks'\?"),
        ('zone = "Europ/Berlin"', r"dropbatch\.toml: zone: no such time zone: 'Europ/Berlin'"),
        ('bucket = "ftp://x"', r"dropbatch\.toml: bucket: a bucket is file:///path"),
        ("renew_s = 500", "at most half of lease_s"),
        ('lease_backend = "modl"', "Did you mean 'modal'"),
        ("max_tasks = ", "not valid TOML"),
        ('b2_key = "K001"', "secrets don't belong in this file: 'b2_key'"),
        ("handlers = 3", "handlers: 3 is not a valid object"),
        ('bucket = ""', r"dropbatch\.toml: bucket: a bucket's name is empty"),
        ("night_start = 7", "night_start: 7 is not a time of day; write it like 01:00"),
        ('night_end = "01:00+02:00"', r'night_end: "01:00\+02:00" is not a time of day'),
        ('comfyui_url = "127.0.0.1:8188"', r"comfyui_url: '127.* write it like http://127"),
    ],
)
def test_a_wrong_file_is_refused_with_the_place_and_the_mend(text: str, message: str) -> None:
    """Never a traceback, never a guess."""
    write(text)
    with pytest.raises(ConfigError, match=message):
        load()


def test_wrong_values_name_their_flag_or_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A person has to know which of the four places to mend."""
    with pytest.raises(ConfigError, match=r"^--max-tasks: -1 is not greater"):
        load(max_tasks=-1)
    monkeypatch.setenv("DROPBATCH_NIGHT_END", "late")
    with pytest.raises(ConfigError, match=r'^DROPBATCH_NIGHT_END: "late" is not'):
        load()


def test_what_is_empty_says_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A script's `export DROPBATCH_BUCKET=$UNSET` is not the current directory; nor is the option's."""
    write('bucket = "here"\nmax_tasks = 1\ndeny_nodes = ["Exec*"]')
    for name in ("BUCKET", "MAX_TASKS", "DENY_NODES", "ZONE", "HANDLERS"):
        monkeypatch.setenv(f"DROPBATCH_{name}", "")
    settings = load()
    assert settings.store_url == (tmp_path / "here").as_uri()
    assert (settings.max_tasks, settings.deny_nodes, settings.zone) == (1, ["Exec*"], "UTC")
    for empty in ("", " "):
        with pytest.raises(ConfigError, match=r"^--bucket: a bucket's name is empty"):
            load(bucket=empty)
    write("max_tasks = -1")
    with pytest.raises(ConfigError, match=r"^dropbatch\.toml: max_tasks"):
        load()


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_file_of_another_encoding_is_named(encoding: str) -> None:
    """Not called a defect of ours."""
    Path("dropbatch.toml").write_bytes('bucket = "Bücher"'.encode(encoding))
    with pytest.raises(ConfigError, match=r"dropbatch\.toml: not UTF-8 text"):
        load()


def test_a_byte_order_mark_is_no_text() -> None:
    """As Windows' editors begin a file."""
    Path("dropbatch.toml").write_bytes("max_tasks = 7".encode("utf-8-sig"))
    assert load().max_tasks == 7


def test_a_table_that_is_no_json_names_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """With how it is written."""
    monkeypatch.setenv("DROPBATCH_HANDLERS", "x")
    with pytest.raises(ConfigError, match=r"^DROPBATCH_HANDLERS: not valid JSON.*is written as JSON"):
        load()


@pytest.mark.parametrize("text", ["7", "420", "01:00Z", "late", "25:00"])
def test_a_time_of_day_has_hours_and_minutes_and_no_zone(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """`7` was seven seconds past midnight."""
    monkeypatch.setenv("DROPBATCH_NIGHT_START", text)
    with pytest.raises(ConfigError, match=r"^DROPBATCH_NIGHT_START: "):
        load()
    monkeypatch.setenv("DROPBATCH_NIGHT_START", "22:30")
    assert f"{load().night_start:%H:%M}" == "22:30"


def test_lists_and_tables_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commas for lists, JSON for tables."""
    monkeypatch.setenv("DROPBATCH_DENY_NODES", "Exec*, Shell")
    monkeypatch.setenv("DROPBATCH_HANDLERS", '{"train": "a:b"}')
    settings = load()
    assert settings.deny_nodes == ["Exec*", "Shell"]
    assert settings.handlers == {"train": "a:b"}


def test_a_path_is_a_folder_bucket(tmp_path: Path) -> None:
    """And no bucket at all is said when one is needed."""
    assert load(bucket="b").store_url == (tmp_path / "b").as_uri()
    assert load(bucket="b2://renders/x").store_url == "b2://renders/x"
    with pytest.raises(ConfigError, match="dropbatch init"):
        _ = load().store_url


def test_the_first_complete_pair_of_keys_is_used() -> None:
    """Half a pair is none; a bucket of its own may have a key of its own."""
    environ: dict[str, str] = {"DROPBATCH_KEY_ID": "half"}
    assert credentials(environ) is None
    for id_name, key_name in reversed(KEY_VARIABLES):
        environ |= {id_name: f"id-{id_name}", key_name: "the-secret"}
        found = credentials(environ)
        assert found is not None
        assert (found.key_id, found.key, found.source) == (f"id-{id_name}", "the-secret", id_name)
        assert "the-secret" not in repr(found)
    own = environ | {"DROPBATCH_MODELS_KEY_ID": "m", "DROPBATCH_MODELS_KEY": "k"}
    found = credentials(own, bucket="models")
    assert found is not None
    assert found.key_id == "m"


def test_secrets_of_the_environment_never_enter_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever prints the settings prints no secret."""
    monkeypatch.setenv("DROPBATCH_KEY_ID", "the-id-of-it")
    monkeypatch.setenv("DROPBATCH_KEY", "the-secret-of-it")
    assert "of-it" not in repr(load()) + load().model_dump_json()


def test_a_variable_that_nothing_reads_is_found() -> None:
    """`doctor` says so, with the nearest that is read."""
    found = unknown_variables({"DROPBATCH_MAX_TASK": "1", "DROPBATCH_KEY": "x", "PATH": "y"})
    assert found == {"DROPBATCH_MAX_TASK": "DROPBATCH_MAX_TASKS"}


def test_handlers_are_found_by_name() -> None:
    """A name that can't be imported is a matter of settings."""
    assert resolve_handlers(load(handlers={"x": "pathlib:Path"})) == {"x": Path}
    with pytest.raises(ConfigError, match=r"handlers\.x: 'no\.such:Thing' can't be imported"):
        resolve_handlers(load(handlers={"x": "no.such:Thing"}))


def test_every_setting_is_described_and_the_page_is_current() -> None:
    """docs/settings.md is made from the settings: `dropbatch schema --settings > docs/settings.md`."""
    page = settings_page()
    for name, field in Settings.model_fields.items():
        if not field.exclude:
            assert field.description
            assert f"| `{name}` |" in page
    committed = Path(__file__).parents[2] / "docs" / "settings.md"
    assert committed.read_text("utf-8") == page
