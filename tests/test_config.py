"""config.yaml and the environment."""

import os
from pathlib import Path

import pytest

from agent.config import Config, find_config_file, load_config
from agent.errors import ConfigError

ROOT = Path(__file__).parents[1]


def load(text: str, tmp_path: Path, **environment: str) -> Config:
    file = tmp_path / "config.yaml"
    file.write_text(text, "utf-8")
    return load_config(file, environment=environment)


def test_the_shipped_file_is_valid_and_says_the_defaults() -> None:
    shipped = load_config(ROOT / "config.yaml", environment={})
    built_in = load_config(environment={})
    assert shipped.local_broker == built_in.local_broker
    assert shipped.search == built_in.search
    assert not shipped.aws_iot.enabled


def test_the_seed_documents_block_is_valid(tmp_path: Path) -> None:
    config = load(
        """
aws_iot:
  enabled: true
  region: "us-east-1"
  endpoint: "your-endpoint.iot.us-east-1.amazonaws.com"
  thing_name: "arxplorer-client"
  certificates: {ca_cert: certs/AmazonRootCA1.pem, cert_file: certs/device-certificate.pem.crt}
  topics: {search_requests: arxplorer/search/requests, status: arxplorer/status}
  qos: 1
  keep_alive: 30
""",
        tmp_path,
    )
    assert config.thing_name == "arxplorer-client"
    assert config.aws_iot.certificates.ca_cert == str(tmp_path / "certs/AmazonRootCA1.pem")


def test_a_folder_that_may_not_be_entered_holds_no_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.yaml").write_text("search: {max_results: 5}\n")
    monkeypatch.chdir(tmp_path)
    assert find_config_file(None) == Path("config.yaml")

    def refused(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "stat", refused)  # tests may run as root, who may enter every folder
    assert find_config_file(None) is None
    with pytest.raises(ConfigError, match="is no file"):
        find_config_file(Path("config.yaml"))


def test_the_environment_wins_over_the_file_and_the_command_line_over_both(tmp_path: Path) -> None:
    text = "local_broker: {port: 1}\nstore: {data_dir: here}\n"
    variables = {"ARXPLORER__LOCAL_BROKER__PORT": "18830", "ARXPLORER__STORE__DATA_DIR": "there", "OTHER": "x"}
    assert load(text, tmp_path).local_broker.port == 1
    assert load(text, tmp_path).data_dir == tmp_path / "here"
    assert load(text, tmp_path, **variables).local_broker.port == 18830
    assert load(text, tmp_path, **variables).data_dir == tmp_path / "there"
    named = load_config(tmp_path / "config.yaml", environment=variables, data_dir=tmp_path / "elsewhere")
    assert named.data_dir == tmp_path / "elsewhere"


def test_a_text_setting_takes_the_environment_as_it_is() -> None:
    variables = {"ARXPLORER__LOCAL_BROKER__USERNAME": "1234", "ARXPLORER__LOCAL_BROKER__CLIENT_ID": ""}
    broker = load_config(environment=variables).local_broker
    assert (broker.username, broker.client_id) == ("1234", "")


def test_the_thing_name_defaults_to_the_host() -> None:
    assert load_config(environment={}).thing_name.startswith("arxplorer-")


@pytest.mark.parametrize(
    ("text", "path", "said"),
    [
        ("local_broker: {prot: 1}", "local_broker.prot", "'port'"),
        ("aws_iot: {topics: {search_request: x}}", "aws_iot.topics.search_request", "'search_requests'"),
        ("aws_iott: {}", "aws_iott", "'aws_iot'"),
        ("local_broker: {port: 99999}", "local_broker.port", "65535"),
        ("local_broker: {port: eighteen}", "local_broker.port", "int"),
        ("search: {default_mode: fuzzy}", "search.default_mode", "fuzzy"),
        ("search: {semantic_weight: 1.5}", "search.semantic_weight", "1.0"),
        ("aws_iot: {keep_alive: 5}", "aws_iot.keep_alive", "30"),
        ("aws_iot: {thing_name: 'a b'}", "aws_iot.thing_name", "regex"),
        ("local_broker: {topics: {status: 'a/#'}}", "local_broker.topics.status", "regex"),
        ("local_broker: 5", "local_broker", "object"),
    ],
)
def test_a_bad_key_is_named_with_what_would_be_right(text: str, path: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(text, tmp_path)
    assert caught.value.path == path
    assert said in caught.value.message


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2", "\x00"])
def test_a_file_that_is_no_mapping_is_refused_by_name(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        load(text, tmp_path)


def test_an_environment_variable_below_a_value_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load("local_broker: {port: 5}", tmp_path, ARXPLORER__LOCAL_BROKER__PORT__X="1")
    assert caught.value.path == "local_broker.port"


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    assert load("", tmp_path).search == Config().search
