"""Settings: a TOML file, then environment, then flags; the later wins. Unknown keys and bad values are refused by name."""

from __future__ import annotations

import ipaddress
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from memoryd.engine.request import LearnSettings
from memoryd.errors import SettingsError

ENVIRONMENT_PREFIX = "MEMORYD_"
NOT_SETTINGS = {"MEMORYD_CONFIG", "MEMORYD_TARGET", "MEMORYD_API_KEY"}  # where the file is; the client's own


def _default_data_dir() -> Path:
    home = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(home) / "memoryd"


class Settings(BaseModel):
    """What `memoryd serve` runs by. Every field is a key of the TOML file, MEMORYD_<KEY> and --<key>."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data_dir: Annotated[Path, Field(description="where everything lies that is not on a configured server")] = Field(
        default_factory=_default_data_dir
    )
    listen: Annotated[str, Field(description="host:port of the public API")] = "127.0.0.1:7437"
    auth: Annotated[
        Literal["off", "keys"],
        Field(description="off: everyone on this host is tenant `default`; keys: each call brings an API key"),
    ] = "off"
    tls_cert: Annotated[Path | None, Field(description="PEM certificate chain; with tls_key")] = None
    tls_key: Annotated[Path | None, Field(description="PEM private key; with tls_cert")] = None

    database_url: Annotated[str, Field(description="SQLAlchemy URL of the ledger; empty: SQLite in data_dir")] = ""
    blob_url: Annotated[str, Field(description="fsspec URL of the blobs; empty: files in data_dir")] = ""
    milvus_uri: Annotated[str, Field(description="a Milvus server; empty: Milvus Lite as a child")] = ""
    milvus_token: Annotated[str, Field(description="token of that server", repr=False)] = ""
    redis_url: Annotated[str, Field(description="a Valkey or Redis server; empty: Valkey as a child")] = ""
    cache_bytes: Annotated[int, Field(ge=16 << 20, description="memory cap of the embedded Valkey")] = 256 << 20

    model: Annotated[str, Field(min_length=1, description="base model: a name, a local directory or a hub name")] = (
        "smollm2-135m-instruct"
    )
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$", description="where the worker runs")] = "auto"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Field(description="of the base model; auto: bfloat16 on a GPU, else float32"),
    ] = "auto"
    threads: Annotated[int, Field(ge=0, le=256, description="CPU threads of the worker; 0: one per core")] = 0
    compressor: Annotated[
        Path | None,
        Field(
            description="directory that `memoryd train-compressor` made; empty: the one that ships for the base model, else "
            "one of first weights"
        ),
    ] = None
    ratio: Annotated[Literal[4, 8, 16, 32], Field(description="source tokens for each compressed embedding")] = 4
    compress_tokens: Annotated[
        int,
        Field(ge=0, le=1 << 20, description="tokens compressed at a time, which bounds memory; 0: 16384 on a GPU, else 512"),
    ] = 0
    embedding_storage: Annotated[
        Literal["bfloat16", "int8"],
        Field(description="how compressed embeddings are stored from now on; int8 takes half the bytes"),
    ] = "bfloat16"

    learn_rank: Annotated[int, Field(ge=1, le=256, description="rank of a memory's adapter")] = 8
    learn_alpha: Annotated[float, Field(gt=0, description="its LoRA alpha")] = 16.0
    learn_targets: Annotated[
        str, Field(min_length=1, description="names of the linear layers that it changes, with commas between them")
    ] = "q_proj,k_proj,v_proj,o_proj"
    learn_dropout: Annotated[
        float, Field(ge=0, lt=1, description="share of its input that is left out at random while it is trained")
    ] = 0.0
    learn_rslora: Annotated[bool, Field(description="divide alpha by the root of the rank, not by the rank (rsLoRA)")] = False
    learn_rate: Annotated[float, Field(gt=0, le=0.1, description="peak of the learning rate")] = 5e-4
    learn_epochs: Annotated[int, Field(ge=1, le=100, description="passes over the examples")] = 3
    learn_batch: Annotated[
        int, Field(ge=1, le=1024, description="contexts in a step of the optimizer; fewer where a memory is small")
    ] = 8
    learn_checkpoint_seconds: Annotated[
        float, Field(ge=0, description="from checkpoint to checkpoint: what a kill or a cancel costs at most")
    ] = 60.0
    learn_keep: Annotated[
        int,
        Field(ge=0, description="learned adapters kept beside the active one and the one that a rollback would serve; 0: all"),
    ] = 5
    learn_after_tokens: Annotated[
        int, Field(ge=0, description="new text in a memory that makes it study and learn by itself; 0: only when asked")
    ] = 0
    learn_after_seconds: Annotated[float, Field(ge=0, description="but not sooner than this after it last learned")] = 3600.0

    teacher_url: Annotated[
        str, Field(description="an OpenAI-compatible endpoint that makes the questions of self-study, and is sent the passages")
    ] = ""
    teacher_model: Annotated[str, Field(description="the model to ask there")] = ""
    teacher_key: Annotated[str, Field(description="the key for it", repr=False)] = ""

    max_document_bytes: Annotated[int, Field(ge=1 << 20, description="largest upload")] = 256 << 20
    max_context_tokens: Annotated[int, Field(ge=128, description="prompt budget of an answer, in tokens")] = 2048
    max_answers: Annotated[
        int,
        Field(
            ge=1, le=4096, description="answers at a time; more are turned away; with keys an eighth is left to other tenants"
        ),
    ] = 64
    job_slots: Annotated[int, Field(ge=1, le=64, description="jobs worked on at a time")] = 4
    job_attempts: Annotated[int, Field(ge=1, le=100, description="tries before a job is dead")] = 8
    job_lease_seconds: Annotated[float, Field(ge=1, description="after this a silent job is taken over")] = 10.0
    drain_seconds: Annotated[float, Field(ge=0, description="what running answers get on SIGTERM")] = 15.0

    log_level: Annotated[Literal["debug", "info", "warning", "error"], Field(description="least that is logged")] = "info"
    log_format: Annotated[Literal["auto", "json", "console"], Field(description="auto: console on a terminal")] = "auto"

    @field_validator("ratio", mode="before")
    @classmethod
    def _number(cls, value: object) -> object:
        return int(value) if isinstance(value, str) and value.isdigit() else value  # as flags and environment give it

    @field_validator("data_dir", "compressor")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return value and value.expanduser().absolute()

    @field_validator("listen")
    @classmethod
    def _host_and_port(cls, value: str) -> str:
        host, colon, port = value.rpartition(":")
        if not colon or not host or not port.isdigit() or int(port) > 65535:
            raise ValueError("must be host:port, e.g. 127.0.0.1:7437")
        return value

    @field_validator("database_url")
    @classmethod
    def _a_known_database(cls, value: str) -> str:
        if value:
            from sqlalchemy import make_url
            from sqlalchemy.exc import ArgumentError

            try:
                make_url(value).get_dialect().import_dbapi()
            except (ArgumentError, ImportError):  # never with the URL in it, which may hold a password
                raise ValueError(
                    "must be sqlite:////path/to/file or postgresql+psycopg://user:password@host/name, and its driver be "
                    "installed: pip install 'memoryd[postgresql]'"
                ) from None
        return value

    @field_validator("redis_url")
    @classmethod
    def _a_known_cache(cls, value: str) -> str:
        if value:
            import redis

            try:
                redis.Redis.from_url(value).connection_pool.make_connection()  # which connects only when it is used
            except (ValueError, TypeError, redis.RedisError):  # never with the URL in it, as above
                raise ValueError(
                    "must be redis://host:6379/0, redis://user:password@host:6379/0, the same with rediss:// for TLS, or "
                    "unix:///path/to/socket; what follows a ? must be options that redis-py knows"
                ) from None
        return value

    @field_validator("blob_url")
    @classmethod
    def _a_known_file_system(cls, value: str) -> str:
        if "://" in value:
            import fsspec

            try:
                fsspec.get_filesystem_class(value.partition("://")[0])
            except (ValueError, ImportError) as error:
                raise ValueError(f"fsspec cannot use it: {error}") from None
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ValueError("tls_cert and tls_key go together")
        if bool(self.teacher_url) != bool(self.teacher_model):
            raise ValueError("teacher_url and teacher_model go together")
        if self.auth == "off" and not self.loopback:
            raise ValueError(f"listen={self.listen} is reachable from other hosts: set auth=keys, or listen on 127.0.0.1")
        return self

    @property
    def learn_settings(self) -> LearnSettings:
        """As the worker takes them. One pass: the passes that are configured are made of different contexts."""
        targets = tuple(name.strip() for name in self.learn_targets.split(",") if name.strip())
        return LearnSettings(
            self.learn_rank,
            self.learn_alpha,
            targets,
            self.learn_rate,
            epochs=1.0,
            batch=self.learn_batch,
            checkpoint_seconds=self.learn_checkpoint_seconds,
            dropout=self.learn_dropout,
            rslora=self.learn_rslora,
        )

    @property
    def host(self) -> str:
        return self.listen.rpartition(":")[0].strip("[]")

    @property
    def loopback(self) -> bool:
        """Whether only this host can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def load(
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> Settings:
    """Merges file < environment < flags.

    Raises:
        SettingsError: a file that can't be read, a key that memoryd doesn't know, a value that it can't take.
    """
    environment = os.environ if environment is None else environment
    origin: dict[str, str] = {}
    values: dict[str, Any] = {}
    if file is None and environment.get("MEMORYD_CONFIG"):
        file = Path(environment["MEMORYD_CONFIG"])
    if file is not None:
        try:
            table = tomllib.loads(file.read_text())
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise SettingsError(f"{file}: {error}", details={"key": "config"}) from error
        for key, value in table.items():
            values[key], origin[key] = value, str(file)
    for name, value in environment.items():
        if name.startswith(ENVIRONMENT_PREFIX) and name not in NOT_SETTINGS:
            key = name.removeprefix(ENVIRONMENT_PREFIX).lower()
            values[key], origin[key] = value, f"environment variable {name}"
    for key, value in (flags or {}).items():
        values[key], origin[key] = value, f"flag --{key.replace('_', '-')}"
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise _refusal(error, origin) from None


def _refusal(error: ValidationError, origin: Mapping[str, str]) -> SettingsError:
    """All that is wrong in one message, each with its key and where it came from."""
    lines, keys = [], []
    for problem in error.errors(include_url=False):
        key = str(problem["loc"][0]) if problem["loc"] else "settings"
        keys.append(key)
        where = f" (from {origin[key]})" if key in origin else ""
        if problem["type"] == "extra_forbidden":
            lines.append(f"{key}: no such setting{where}; there are: {', '.join(sorted(Settings.model_fields))}")
        else:
            lines.append(f"{key}: {problem['msg'].removeprefix('Value error, ')}{where}")
    return SettingsError("\n".join(lines), details={"key": ",".join(keys)})
