"""Settings: what is read, what is refused all at once, and that no secret shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from runnerpool.settings import APP_FOLDER, Settings, SettingsError, is_loopback

GUID = "8b3c3c1e-0c1a-4e67-9f3d-6a1f2b9c0d11"
PEM = "-----BEGIN RSA PRIVATE KEY-----\\nMIIB\\n-----END RSA PRIVATE KEY-----"


def problems(**env: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        Settings.from_env(env)
    return list(caught.value.problems)


def test_an_empty_environment_gives_the_defaults() -> None:
    settings = Settings.from_env({})
    assert settings.github_api_url == "https://api.github.com"
    assert settings.arm_endpoint == "https://management.azure.com"
    assert settings.pool_config == APP_FOLDER / "pool-config.yaml"
    assert settings.github_webhook_secrets == () and settings.runner_agent_keys == ()
    assert settings.storage is None
    assert (settings.smtp_port, settings.smtp_starttls, settings.alert_to) == (587, True, ())


def test_a_planning_pass_is_told_everything_that_it_lacks() -> None:
    names = [text.partition(":")[0] for text in Settings.from_env({}).lacking]
    assert names == ["AzureWebJobsStorage", "GITHUB_TOKEN", "AZURE_SUBSCRIPTION_ID", "RUNNER_AGENT_KEY"]


def test_a_full_environment_lacks_nothing() -> None:
    settings = Settings.from_env(
        {
            "AzureWebJobsStorage": "AccountName=a;AccountKey=b",
            "GITHUB_APP_ID": "123",
            "GITHUB_APP_PRIVATE_KEY": PEM,
            "GITHUB_APP_INSTALLATION_ID": "456",
            "AZURE_SUBSCRIPTION_ID": GUID,
            "RUNNER_AGENT_KEY": "k",
            "SMTP_HOST": "mail.example.com",
            "SMTP_PORT": "2525",
            "SMTP_STARTTLS": "False",
            "ALERT_FROM": "ci@example.com",
            "ALERT_TO": "a@example.com, b@example.com;",
            "POOL_CONFIG": "/etc/pools.yaml",
        }
    )
    assert settings.lacking == ()
    assert settings.github_app_private_key.splitlines()[1] == "MIIB"
    assert settings.github_app_installation_id == 456
    assert settings.alert_to == ("a@example.com", "b@example.com")
    assert (settings.smtp_port, settings.smtp_starttls) == (2525, False)
    assert settings.pool_config == Path("/etc/pools.yaml")


def test_empty_variables_count_as_unset() -> None:
    names = (
        "GITHUB_API_URL",
        "ARM_ENDPOINT",
        "POOL_CONFIG",
        "GITHUB_WEBHOOK_SECRET",
        "SMTP_PORT",
        "SMTP_STARTTLS",
        "ALERT_WEBHOOK_URL",
    )
    assert Settings.from_env(dict.fromkeys(names, "")) == Settings.from_env({})


def test_two_secrets_are_honoured_during_rotation() -> None:
    settings = Settings.from_env(
        {
            "GITHUB_WEBHOOK_SECRET": "new",
            "GITHUB_WEBHOOK_SECRET_PREVIOUS": "old",
            "RUNNER_AGENT_KEY": "k2",
            "RUNNER_AGENT_KEY_PREVIOUS": "k1",
        }
    )
    assert settings.github_webhook_secrets == ("new", "old")
    assert settings.runner_agent_keys == ("k2", "k1")


def test_everything_wrong_is_reported_at_once_by_name() -> None:
    found = problems(
        SMTP_PORT="many",
        SMTP_STARTTLS="maybe",
        ARM_ENDPOINT="http://management.example.com",
        GITHUB_API_URL="ftp://example.com",
        AZURE_SUBSCRIPTION_ID="my subscription",
        GITHUB_APP_ID="12",
        GITHUB_TOKEN="t",
        AZURE_CLIENT_SECRET="s",
        ALERT_TO="nobody",
        GITHUB_WEBHOOK_SECRET_PREVIOUS="old",
    )
    text = "\n".join(found)
    for name in (
        "SMTP_PORT",
        "SMTP_STARTTLS",
        "ARM_ENDPOINT",
        "GITHUB_API_URL",
        "AZURE_SUBSCRIPTION_ID",
        "AZURE_TENANT_ID",
        "ALERT_TO",
    ):
        assert name in text
    assert "GITHUB_APP_PRIVATE_KEY, GITHUB_APP_INSTALLATION_ID: not set" in text
    assert "GITHUB_TOKEN and GITHUB_APP_ID are both set" in text
    assert "GITHUB_WEBHOOK_SECRET_PREVIOUS is set without GITHUB_WEBHOOK_SECRET" in text


@pytest.mark.parametrize("name", ["ARM_ENDPOINT", "GITHUB_API_URL", "ALERT_WEBHOOK_URL"])
@pytest.mark.parametrize(
    ("url", "accepted"),
    [
        ("https://ghe.example.com/api/v3/", True),
        ("http://127.0.0.1:8080", True),
        ("http://127.8.9.10:1", True),
        ("http://localhost:8080/", True),
        ("http://[::1]:8080", True),
        ("http://10.0.0.4:8080", False),
        ("http://localhost.example.com", False),
        ("http://127.0.0.1.example.com", False),
        ("http://127.0.0.1@example.com", False),
        ("https://user:pass@example.com", False),
        ("https://", False),
        ("example.com", False),
        ("http://[::1", False),
        ("https://example.com:99999", False),
    ],
)
def test_plain_http_is_accepted_for_loopback_only(name: str, url: str, accepted: bool) -> None:
    if accepted:
        assert getattr(Settings.from_env({name: url}), name.lower()) == url.rstrip("/")
    else:
        (problem,) = problems(**{name: url})
        assert problem.startswith(f"{name}: must be an https:// address") and "pass@" not in problem


def test_the_website_of_github_is_not_its_api() -> None:
    (problem,) = problems(GITHUB_API_URL="https://github.com")
    assert "https://api.github.com" in problem


def test_loopback_is_a_matter_of_addresses_not_of_spelling() -> None:
    assert is_loopback("127.0.0.1") and is_loopback("::1") and is_loopback("localhost")
    assert not is_loopback("127.0.0.1.example.com") and not is_loopback("")


class TestStorage:
    def test_a_connection_string_is_taken_as_it_is(self) -> None:
        storage = Settings.from_env({"AzureWebJobsStorage": "AccountName=a;AccountKey=b=="}).storage
        assert storage is not None and storage.connection_string == "AccountName=a;AccountKey=b=="

    @pytest.mark.parametrize("text", ["UseDevelopmentStorage=true", "usedevelopmentstorage=True;"])
    def test_the_short_form_for_the_emulator_is_spelled_out(self, text: str) -> None:
        storage = Settings.from_env({"AzureWebJobsStorage": text}).storage
        assert storage is not None and "TableEndpoint=http://127.0.0.1:10002/devstoreaccount1" in storage.connection_string

    def test_an_account_name_gives_both_services(self) -> None:
        storage = Settings.from_env({"AzureWebJobsStorage__accountName": "acct1", "AzureWebJobsStorage__clientId": GUID}).storage
        assert storage is not None
        assert storage.table_uri == "https://acct1.table.core.windows.net"
        assert storage.queue_uri == "https://acct1.queue.core.windows.net"
        assert storage.client_id == GUID and storage.connection_string == ""

    def test_service_addresses_replace_the_account_name(self) -> None:
        env = {
            "AzureWebJobsStorage__tableServiceUri": "https://a.table.core.usgovcloudapi.net/",
            "AzureWebJobsStorage__queueServiceUri": "https://a.queue.core.usgovcloudapi.net",
        }
        storage = Settings.from_env(env).storage
        assert storage is not None and storage.table_uri == "https://a.table.core.usgovcloudapi.net"

    @pytest.mark.parametrize(
        "env",
        [
            {"AzureWebJobsStorage": "nonsense"},
            {"AzureWebJobsStorage__accountName": "Not An Account"},
            {"AzureWebJobsStorage__tableServiceUri": "https://a.table.core.windows.net"},
        ],
    )
    def test_what_cannot_be_a_connection_is_refused(self, env: dict[str, str]) -> None:
        (problem,) = problems(**env)
        assert problem.startswith("AzureWebJobsStorage")


SECRETS = {
    "GITHUB_WEBHOOK_SECRET": "hush-1",
    "GITHUB_WEBHOOK_SECRET_PREVIOUS": "hush-2",
    "GITHUB_TOKEN": "hush-3",
    "RUNNER_STATUS_TOKEN": "hush-4",
    "RUNNER_AGENT_KEY": "hush-5",
    "SMTP_USERNAME": "mailer",
    "SMTP_PASSWORD": "hush-6",
    "ALERT_WEBHOOK_URL": "https://example.com/hush-7",
    "AzureWebJobsStorage": "AccountName=a;AccountKey=hush-8",
}


def test_no_secret_shows_in_the_representation() -> None:
    assert "hush" not in repr(Settings.from_env(SECRETS))


def test_no_secret_shows_in_a_message() -> None:
    broken = {name: f" {value} \n" for name, value in SECRETS.items()} | {
        "GITHUB_APP_PRIVATE_KEY": "hush-9",
        "ALERT_WEBHOOK_URL": "gopher://example.com/hush-7",
        "AzureWebJobsStorage": "hush-8",
    }
    found = problems(**broken)
    assert any(text.startswith("GITHUB_APP_PRIVATE_KEY: is not a PEM") for text in found)
    assert any(text.startswith("GITHUB_WEBHOOK_SECRET: begins or ends with white space") for text in found)
    assert "hush" not in "\n".join(found)


def test_an_unresolved_key_vault_reference_is_not_taken_for_a_secret() -> None:
    (problem,) = problems(GITHUB_WEBHOOK_SECRET="@Microsoft.KeyVault(SecretUri=https://vault.example.com/secrets/hook)")
    assert problem.startswith("GITHUB_WEBHOOK_SECRET: its Key Vault reference was not resolved")
