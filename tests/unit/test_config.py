"""Settings: file < environment < flags; what is unknown or bad is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from memoryd import config
from memoryd.errors import SettingsError


def refused(
    file: Path | None = None, environment: dict[str, str] | None = None, flags: dict[str, object] | None = None
) -> SettingsError:
    with pytest.raises(SettingsError) as caught:
        config.load(file, environment or {}, flags or {})
    assert caught.value.reason == "BAD_SETTING"
    return caught.value


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    return tmp_path / "memoryd.toml"


def test_without_any_settings_the_daemon_is_for_this_host_only() -> None:
    settings = config.load(environment={})
    assert (settings.listen, settings.auth, settings.loopback) == ("127.0.0.1:7437", "off", True)


def test_flags_beat_the_environment_which_beats_the_file(toml: Path) -> None:
    toml.write_text("job_slots = 1\njob_attempts = 1\nmax_answers = 1\ncache_bytes = 16777216\n")
    environment = {"MEMORYD_JOB_ATTEMPTS": "2", "MEMORYD_MAX_ANSWERS": "2"}
    settings = config.load(toml, environment, {"max_answers": "3"})
    assert (settings.job_slots, settings.job_attempts, settings.max_answers) == (1, 2, 3)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("database_url", "nosuch://user:secret@host/name", "postgresql+psycopg://"),
        ("database_url", "not a url", "sqlite:////path"),
        ("database_url", "mysql+pymysql://user:secret@host/name", "postgresql+psycopg://"),
        ("blob_url", "nosuch://bucket/folder", "Protocol not known"),
        ("redis_url", "localhost:6379", "must be redis://host:6379/0"),
        ("redis_url", "redis://user:secret", "must be redis://host:6379/0"),  # no host: the password stands for a port
        ("redis_url", "redis://host:6379/0?pasword=secret", "must be redis://host:6379/0"),
        ("redis_url", "redis://host:6379/0?socket_timeout=secret", "must be redis://host:6379/0"),
    ],
)
def test_a_store_that_cannot_be_used_is_refused_without_its_secret(key: str, value: str, says: str) -> None:
    error = refused(flags={key: value})
    assert error.details["key"] == key
    assert says in error.message
    assert "secret" not in error.message


def test_stores_that_can_be_used_are_taken() -> None:
    for url in ("sqlite:////tmp/x.db", "postgresql+psycopg://user:secret@host/name"):
        assert config.load(environment={}, flags={"database_url": url}).database_url == url
    for url in ("memory://x", "/srv/blobs", "file:///srv/blobs"):
        assert config.load(environment={}, flags={"blob_url": url}).blob_url == url
    for url in ("redis://h", "redis://user:secret@h:6379/0", "rediss://h:6379/0?ssl_cert_reqs=none", "unix:///run/v.sock?db=1"):
        assert config.load(environment={}, flags={"redis_url": url}).redis_url == url


def test_the_environment_may_name_the_file(toml: Path) -> None:
    toml.write_text("job_slots = 7\n")
    assert config.load(environment={"MEMORYD_CONFIG": str(toml)}).job_slots == 7


def test_the_clients_own_variables_are_no_settings() -> None:
    config.load(environment={"MEMORYD_TARGET": "x:1", "MEMORYD_API_KEY": "k", "PATH": "/bin"})


def test_an_unknown_key_is_named_with_where_it_came_from_and_what_there_is(toml: Path) -> None:
    toml.write_text("listem = 'x'\n")
    error = refused(toml)
    assert "listem: no such setting" in error.message
    assert str(toml) in error.message
    assert "listen" in error.message.partition("there are:")[2]
    assert error.details["key"] == "listem"


def test_an_unknown_environment_variable_is_refused() -> None:
    assert "MEMORYD_LISTEM" in refused(environment={"MEMORYD_LISTEM": "x"}).message


def test_all_that_is_wrong_is_said_at_once() -> None:
    message = refused(flags={"job_slots": "0", "ratio": "5", "nonsense": "1"}).message
    assert [line.partition(":")[0] for line in message.splitlines()] == ["ratio", "job_slots", "nonsense"]
    assert "flag --job-slots" in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("listen", "7437"),
        ("listen", "127.0.0.1:99999"),
        ("listen", ":7437"),
        ("auth", "on"),
        ("device", "gpu"),
        ("threads", "many"),
        ("embedding_storage", "int4"),
        ("max_document_bytes", "1000"),
        ("max_context_tokens", "64"),
        ("max_answers", "0"),
        ("job_lease_seconds", "0.1"),
        ("drain_seconds", "-1"),
        ("log_level", "loud"),
        ("log_format", "xml"),
        ("model", ""),
    ],
)
def test_a_bad_value_is_refused_by_its_key(key: str, value: str) -> None:
    assert refused(flags={key: value}).details["key"] == key


@pytest.mark.parametrize("text", ["listen = ", "\x00", "[unclosed"])
def test_a_file_that_is_not_toml_is_refused_by_its_name(toml: Path, text: str) -> None:
    toml.write_text(text)
    assert str(toml) in refused(toml).message


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "nowhere.toml" in refused(tmp_path / "nowhere.toml").message


@pytest.mark.parametrize("listen", ["0.0.0.0:7437", "[::]:7437", "192.168.1.2:7437", "memory.example.com:7437"])
def test_other_hosts_are_let_in_only_with_keys(listen: str) -> None:
    assert "auth=keys" in refused(flags={"listen": listen}).message
    assert config.load(environment={}, flags={"listen": listen, "auth": "keys"}).listen == listen


@pytest.mark.parametrize("listen", ["127.0.0.1:1", "localhost:1", "[::1]:1", "127.9.9.9:1"])
def test_loopback_needs_no_keys(listen: str) -> None:
    assert config.load(environment={}, flags={"listen": listen}).loopback


def test_certificate_and_key_go_together(tmp_path: Path) -> None:
    assert "go together" in refused(flags={"tls_cert": str(tmp_path / "c.pem")}).message


def test_the_data_directory_is_absolute_whatever_was_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert config.load(environment={}, flags={"data_dir": "here"}).data_dir == tmp_path / "here"
    assert config.load(environment={}, flags={"data_dir": "~/there"}).data_dir == Path("/home/somebody/there")


def test_settings_do_not_change_once_loaded() -> None:
    settings = config.load(environment={})
    with pytest.raises(ValidationError):
        settings.listen = "127.0.0.1:1"


def test_the_token_of_the_index_is_not_in_the_representation() -> None:
    settings = config.load(environment={}, flags={"milvus_uri": "http://x:1", "milvus_token": "root:secret"})
    assert "secret" not in repr(settings)
