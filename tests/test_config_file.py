"""Values are put into config.yaml, and every other character of it stays."""

import pytest
import yaml
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from agent.cloud.setup.config_file import edited
from agent.errors import AgentError

LINK = {"aws_iot": {"enabled": True, "endpoint": "e", "certificates": {"ca_cert": "/c"}}}
BLOCK = "aws_iot:\n  enabled: true\n  endpoint: e\n  certificates:\n    ca_cert: /c\n"


# fmt: off
@pytest.mark.parametrize(("before", "after"), [
    pytest.param("", BLOCK, id="an empty file"),
    pytest.param("# mine\n", "# mine\n" + BLOCK, id="nothing but a comment"),
    pytest.param("# mine", "# mine\n" + BLOCK, id="without an end of line"),
    pytest.param(BLOCK, BLOCK, id="all there"),
    pytest.param("store: {data_dir: /d}  # mine\n", BLOCK + "store: {data_dir: /d}  # mine\n", id="another section"),
    pytest.param("aws_iot:\n", "aws_iot: {enabled: true, endpoint: e, certificates: {ca_cert: /c}}\n", id="an empty section"),
    pytest.param("aws_iot: {qos: 0} # mine\nsearch:\n", "aws_iot: {qos: 0, enabled: true, endpoint: e, certificates: {ca_cert: /c}} # mine\nsearch:\n", id="a section on one line"),
    pytest.param("{}\n", "{aws_iot: {enabled: true, endpoint: e, certificates: {ca_cert: /c}}}\n", id="a file on one line"),
    pytest.param(
        "# top\naws_iot:\n  # why\n  enabled: no   # off for now\n  qos: 0\n  endpoint:\n  certificates:\n    # key\n    private_key: k\n\n# next\nsearch:\n  candidates: 200\n",
        "# top\naws_iot:\n  # why\n  enabled: true   # off for now\n  qos: 0\n  endpoint: e\n  certificates:\n    # key\n    ca_cert: /c\n    private_key: k\n\n# next\nsearch:\n  candidates: 200\n",
        id="comments, order and empty lines"),
    pytest.param("aws_iot:\r\n  enabled: false\r\n  endpoint: \"x y\"\r\n  certificates: {ca_cert: '/c'}\r\n", "aws_iot:\r\n  enabled: true\r\n  endpoint: e\r\n  certificates: {ca_cert: '/c'}\r\n", id="ends of line as in Windows"),
    pytest.param("aws_iot:\n    enabled: true\n    endpoint: e\n    certificates:\n        ca_cert: >-\n            /long\n    qos: 1\n", None, id="a folded text"),
    pytest.param("aws_iot:\n  certificates: &c\n    ca_cert: /x\nother: *c\n", None, id="a section that is used twice"),
])
# fmt: on
def test_values_change_and_the_rest_stays(before: str, after: str | None) -> None:
    if after is None:
        with pytest.raises(AgentError, match="cannot be changed safely") as caught:
            edited(before, LINK)
        assert yaml.safe_load(str(caught.value.hint).partition("\n")[2]) == LINK
    else:
        assert edited(before, LINK) == after


values = st.text(max_size=20) | st.booleans() | st.integers(0, 9999)
documents = st.dictionaries(
    st.sampled_from(["enabled", "endpoint", "qos", "other"]), values | st.dictionaries(st.sampled_from(["a", "b"]), values)
)


@given(documents, documents, st.booleans())
def test_whatever_the_values_the_result_holds_the_changes_and_the_rest(old, new, flow) -> None:
    text = yaml.safe_dump({"aws_iot": old, "rest": "x"}, default_flow_style=flow)
    try:
        result = edited(text, {"aws_iot": new})
    except AgentError:
        return  # said so, and changed nothing
    found = yaml.safe_load(result)
    assert found["rest"] == "x"
    for key, value in {**old, **new}.items():
        wanted = {**old[key], **value} if isinstance(value, dict) and isinstance(old.get(key), dict) else value
        assert found["aws_iot"][key] == wanted


def test_the_shipped_file_keeps_its_comments() -> None:
    before = (ROOT / "config.yaml").read_text("utf-8")
    after = edited(before, LINK)
    assert after.count("#") == before.count("#")
    assert len(after.splitlines()) == len(before.splitlines())
