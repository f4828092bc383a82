"""The settings: environment variables, read once into one frozen object; nothing else in runnerpool reads the environment.

A variable that is empty counts as unset. What is set wrongly is reported all at once. What is not set is no error by itself,
since the webhook needs less than a planning pass: whoever is about to call GitHub and Azure asks `lacking` first.
No secret is ever part of a `repr` or a message.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

APP_FOLDER = Path(__file__).resolve().parent.parent
"""The folder of `function_app.py`: a relative POOL_CONFIG is meant from here, wherever the host was started."""

_AZURITE = (
    "DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;"
    "AccountKey=Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==;"
    "BlobEndpoint=http://127.0.0.1:10000/devstoreaccount1;"
    "QueueEndpoint=http://127.0.0.1:10001/devstoreaccount1;"
    "TableEndpoint=http://127.0.0.1:10002/devstoreaccount1;"
)
"""What `UseDevelopmentStorage=true` stands for: Azurite's published account. azure-data-tables does not know the short form."""


class SettingsError(Exception):
    """What is wrong with the settings; each of `problems` names the variable and what would be right."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class StorageConnection:
    """Either `connection_string`, or the two service addresses for an identity: the managed one, or a service principal.

    `client_id` names a user-assigned managed identity; empty means the system-assigned one.
    """

    connection_string: str = field(default="", repr=False)
    table_uri: str = ""
    queue_uri: str = ""
    client_id: str = ""


@dataclass(frozen=True, slots=True)
class Settings:
    storage: StorageConnection | None = None
    pool_config: Path = APP_FOLDER / "pool-config.yaml"
    github_webhook_secrets: tuple[str, ...] = field(default=(), repr=False)
    github_token: str = field(default="", repr=False)
    github_app_id: str = ""
    github_app_private_key: str = field(default="", repr=False)
    github_app_installation_id: int | None = None
    github_api_url: str = "https://api.github.com"
    azure_subscription_id: str = ""
    arm_endpoint: str = "https://management.azure.com"
    runner_status_token: str = field(default="", repr=False)
    runner_agent_keys: tuple[str, ...] = field(default=(), repr=False)  # the first is used for new VMs, every one is honoured
    smtp_host: str = ""
    smtp_port: int = 587
    smtp_username: str = ""
    smtp_password: str = field(default="", repr=False)
    smtp_starttls: bool = True
    alert_from: str = ""
    alert_to: tuple[str, ...] = ()
    alert_webhook_url: str = field(default="", repr=False)  # Teams' and Slack's addresses are secrets

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Settings:
        """Raises SettingsError."""
        read = _Reading(env)
        settings = cls(
            storage=_storage(read),
            pool_config=APP_FOLDER / (read.text("POOL_CONFIG") or "pool-config.yaml"),
            github_webhook_secrets=read.rotated("GITHUB_WEBHOOK_SECRET"),
            github_token=read.secret("GITHUB_TOKEN"),
            github_app_id=read.like("GITHUB_APP_ID", r"\d+|Iv[\w.]+", "the App's numeric id or its client id"),
            github_app_private_key=_private_key(read),
            github_app_installation_id=read.whole("GITHUB_APP_INSTALLATION_ID", None),
            github_api_url=_github_url(read),
            azure_subscription_id=read.like("AZURE_SUBSCRIPTION_ID", r"[0-9a-fA-F-]{36}", "a subscription's id, a GUID"),
            arm_endpoint=read.url("ARM_ENDPOINT", "https://management.azure.com"),
            runner_status_token=read.secret("RUNNER_STATUS_TOKEN"),
            runner_agent_keys=read.rotated("RUNNER_AGENT_KEY"),
            smtp_host=read.like("SMTP_HOST", r"[\w.:-]+", "a host's name without a port"),
            smtp_port=read.whole("SMTP_PORT", 587, most=65535) or 587,
            smtp_username=read.text("SMTP_USERNAME"),
            smtp_password=read.secret("SMTP_PASSWORD"),
            smtp_starttls=read.flag("SMTP_STARTTLS", True),
            alert_from=read.like("ALERT_FROM", _ADDRESS, "a mail address"),
            alert_to=_addresses(read),
            alert_webhook_url=read.url("ALERT_WEBHOOK_URL", ""),
        )
        read.whole_or_nothing("GITHUB_APP_ID", "GITHUB_APP_PRIVATE_KEY", "GITHUB_APP_INSTALLATION_ID")
        read.whole_or_nothing("SMTP_USERNAME", "SMTP_PASSWORD")
        read.needs("AZURE_CLIENT_SECRET", "AZURE_TENANT_ID", "AZURE_CLIENT_ID")
        read.needs("SMTP_HOST", "ALERT_FROM", "ALERT_TO")
        read.needs("ALERT_TO", "SMTP_HOST")
        if read.text("GITHUB_TOKEN") and read.text("GITHUB_APP_ID"):
            read.problems.append("GITHUB_TOKEN and GITHUB_APP_ID are both set: keep the token or the App, not both")
        if read.problems:
            raise SettingsError(tuple(read.problems))
        return settings

    @property
    def github_app(self) -> bool:
        return bool(self.github_app_id)

    @property
    def lacking(self) -> tuple[str, ...]:
        """What a planning pass cannot do without and is not set; each entry is a sentence for `SettingsError`."""
        checks = {
            "AzureWebJobsStorage: set the storage account's connection string, or AzureWebJobsStorage__accountName": self.storage,
            "GITHUB_TOKEN: set a token, or GITHUB_APP_ID, GITHUB_APP_PRIVATE_KEY and GITHUB_APP_INSTALLATION_ID": (
                self.github_token or self.github_app
            ),
            "AZURE_SUBSCRIPTION_ID: set the subscription in which the VMs live": self.azure_subscription_id,
            "RUNNER_AGENT_KEY: set a random key, as `openssl rand -hex 32` makes one": self.runner_agent_keys,
        }
        return tuple(text for text, present in checks.items() if not present)


# ---------------------------------------------------------------------------------------------- one variable

_ADDRESS = r"[^\s@,;]+@[^\s@,;]+"


@dataclass(slots=True)
class _Reading:
    env: Mapping[str, str]
    problems: list[str] = field(default_factory=list)

    def text(self, name: str) -> str:
        return self.env.get(name, "").strip()

    def like(self, name: str, pattern: str, what: str) -> str:
        text = self.text(name)
        if text and re.fullmatch(pattern, text, re.ASCII) is None:
            self.problems.append(f"{name}: {text!r} is not {what}")
            return ""
        return text

    def secret(self, name: str) -> str:
        value = self.env.get(name, "")
        if value != value.strip():  # nearly always a line end that was copied along, and then nothing ever verifies
            self.problems.append(f"{name}: begins or ends with white space: remove it")
        if value.strip().startswith(
            "@Microsoft.KeyVault("
        ):  # Azure hands the reference itself over: anybody could guess that secret
            self.problems.append(
                f"{name}: its Key Vault reference was not resolved: check the reference and the app's access to the vault"
            )
            return ""
        return value.strip()

    def rotated(self, name: str) -> tuple[str, ...]:
        """The present secret and the one before it."""
        present, previous = self.secret(name), self.secret(f"{name}_PREVIOUS")
        if previous and not present:
            self.problems.append(f"{name}_PREVIOUS is set without {name}: set the present one too")
        return tuple(secret for secret in (present, previous) if secret)

    def whole(self, name: str, default: int | None, *, most: int = 2**63 - 1) -> int | None:
        text = self.text(name)
        if not text:
            return default
        if not re.fullmatch(r"[0-9]{1,19}", text) or not 1 <= int(text) <= most:
            self.problems.append(f"{name}: {text!r} is not a whole number from 1 to {most}")
            return default
        return int(text)

    def flag(self, name: str, default: bool) -> bool:
        text = self.text(name).lower()
        if text not in ("", "true", "false", "1", "0", "yes", "no", "on", "off"):
            self.problems.append(f"{name}: {text!r} is neither true nor false")
        return default if not text else text in ("true", "1", "yes", "on")

    def url(self, name: str, default: str) -> str:
        """Without a slash at its end. The value is not repeated in a message: an address may hold a password or a token."""
        text = self.text(name) or default
        try:
            parts = urlsplit(text)
            secure = parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))
            sound = bool(parts.hostname) and parts.username is None and (parts.port is None or parts.port > 0)
        except ValueError:
            secure = sound = False
        if text and not (secure and sound):
            self.problems.append(f"{name}: must be an https:// address; plain http:// is accepted for a loopback address only")
        return text.rstrip("/")

    def whole_or_nothing(self, *names: str) -> None:
        lacking = [name for name in names if not self.text(name)]
        if lacking and len(lacking) < len(names):
            present = ", ".join(name for name in names if name not in lacking)
            self.problems.append(f"{', '.join(lacking)}: not set, but {present}: set all of {', '.join(names)}, or none")

    def needs(self, name: str, *others: str) -> None:
        lacking = [other for other in others if not self.text(other)]
        if self.text(name) and lacking:
            self.problems.append(f"{', '.join(lacking)}: not set, but {name} is and cannot do without")


def is_loopback(host: str) -> bool:
    """Whether this host name can only mean this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


# ---------------------------------------------------------------------------------------------- settings with a form of their own


def _storage(read: _Reading) -> StorageConnection | None:
    name = "AzureWebJobsStorage"
    text = read.secret(name)
    if text.rstrip(";").lower() == "usedevelopmentstorage=true":
        return StorageConnection(connection_string=_AZURITE)
    if text:
        keys = {part.partition("=")[0].strip().lower() for part in text.split(";")}
        if not keys & {"accountname", "tableendpoint"}:
            read.problems.append(f"{name}: is not a storage connection string (AccountName=…;AccountKey=…)")
        return StorageConnection(connection_string=text)
    return _storage_by_identity(read, name)


def _storage_by_identity(read: _Reading, name: str) -> StorageConnection | None:
    account = read.like(
        f"{name}__accountName", r"[a-z0-9]{3,24}", "a storage account's name (3 to 24 lower-case letters and digits)"
    )
    domain = "core.windows.net"
    table = read.url(f"{name}__tableServiceUri", f"https://{account}.table.{domain}" if account else "")
    queue = read.url(f"{name}__queueServiceUri", f"https://{account}.queue.{domain}" if account else "")
    if not table and not queue:
        return None
    if not (table and queue):
        read.problems.append(f"{name}: set {name}__accountName, or both {name}__tableServiceUri and {name}__queueServiceUri")
    return StorageConnection(table_uri=table, queue_uri=queue, client_id=read.text(f"{name}__clientId"))


def _private_key(read: _Reading) -> str:
    """PEM text; line ends written as `\\n`, as one-line settings need them, are made real."""
    key = read.text("GITHUB_APP_PRIVATE_KEY").replace("\\n", "\n")
    if key and not re.match(r"-----BEGIN [A-Z ]*PRIVATE KEY-----\s", key):
        read.problems.append("GITHUB_APP_PRIVATE_KEY: is not a PEM private key (-----BEGIN RSA PRIVATE KEY-----)")
    return key


def _github_url(read: _Reading) -> str:
    url = read.url("GITHUB_API_URL", "https://api.github.com")
    if re.fullmatch(r"https://(www\.)?github\.com(/.*)?", url):
        read.problems.append("GITHUB_API_URL: github.com answers no API calls: leave it unset, or set https://api.github.com")
    return url


def _addresses(read: _Reading) -> tuple[str, ...]:
    addresses = tuple(part.strip() for part in re.split(r"[,;]", read.text("ALERT_TO")) if part.strip())
    for address in addresses:
        if not re.fullmatch(_ADDRESS, address):
            read.problems.append(f"ALERT_TO: {address!r} is not a mail address; separate several by commas")
    return addresses
