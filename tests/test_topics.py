"""Topics: where requests come from and where answers may go."""

import paho.mqtt.client as paho
import pytest
from awscrt import mqtt5
from hypothesis import given
from hypothesis import strategies as st

from agent.config import Topics
from agent.errors import RequestError
from agent.protocol.topics import AgentTopics, topic_matches, valid_filter

OFFLINE = mqtt5.Client(mqtt5.ClientOptions(host_name="127.0.0.1", port=1))
TOPICS = AgentTopics.of(Topics(), "pi-7")

levels = st.sampled_from(["a", "b", "", "$s", "long"])
filter_levels = st.sampled_from(["a", "b", "", "$s", "+", "long"])


@given(st.lists(levels, min_size=1, max_size=4), st.lists(filter_levels, min_size=1, max_size=4), st.booleans())
def test_filters_match_as_another_implementation_says(topic: list[str], wanted: list[str], open_end: bool) -> None:
    name, topic_filter = "/".join(topic), "/".join([*wanted, "#"] if open_end else wanted)
    if name and topic_filter:
        assert paho.topic_matches_sub(topic_filter, name) == topic_matches(topic_filter, name)


def test_a_shared_subscription_matches_like_the_filter_inside_it() -> None:
    assert topic_matches("$share/group/a/+", "a/b")


@given(st.text(alphabet="a+#/\x00\x7f\u00e9\ufdd0", max_size=6))
def test_a_filter_that_is_accepted_can_be_subscribed_to_and_no_other(text: str) -> None:
    packet = mqtt5.SubscribePacket([mqtt5.Subscription(topic_filter=text, qos=mqtt5.QoS.AT_LEAST_ONCE)])
    try:
        OFFLINE.subscribe(packet)
    except Exception:  # noqa: BLE001  the library's own verdict
        assert not valid_filter(text)
    else:
        assert valid_filter(text)


def test_the_agent_listens_for_everyone_and_for_itself() -> None:
    assert (TOPICS.shared_requests, TOPICS.own_requests) == (
        "arxplorer/search/requests",
        "arxplorer/search/requests/pi-7",
    )


@pytest.mark.parametrize(
    ("response_topic", "reply_to", "expected"),
    [
        (None, None, "arxplorer/search/results"),
        ("arxplorer/responses/me", None, "arxplorer/responses/me"),
        (None, "arxplorer/responses/me/7", "arxplorer/responses/me/7"),
        ("arxplorer/responses/first", "arxplorer/responses/second", "arxplorer/responses/first"),
    ],
)
def test_an_answer_goes_where_the_request_asks(response_topic, reply_to, expected) -> None:
    assert expected == TOPICS.answer_topic(response_topic, reply_to, "client")


@pytest.mark.parametrize(
    "topic",
    [
        "somewhere/else",
        "arxplorer/responses/",
        "arxplorer/responses/#",
        "arxplorer/responses/a/+",
        "arxplorer/responses/a\x00b",
        "arxplorer/responses/" + "x" * 256,
        "arxplorer/search/requests",
        "$SYS/broker",
        "",
    ],
)
@pytest.mark.parametrize("field", ["response_topic", "reply_to"])
def test_a_refused_topic_is_named_by_its_field(topic: str, field: str) -> None:
    given_topics = {"response_topic": None, "reply_to": None, field: topic}
    with pytest.raises(RequestError) as caught:
        TOPICS.answer_topic(**given_topics, client_id=None)
    assert caught.value.field == field


def test_the_agents_own_topics_are_refused_even_under_an_open_prefix() -> None:
    topics = AgentTopics.of(Topics(response_prefix="arxplorer/"), "pi-7")
    for own in topics.taken():
        with pytest.raises(RequestError):
            topics.answer_topic(own, None, None)


def test_client_ids_are_filled_in_only_when_they_are_plain_names() -> None:
    topics = AgentTopics.of(Topics(search_results="results/{thing_name}/{client_id}"), "pi-7")
    assert topics.results_for("app.1") == "results/pi-7/app.1"
    assert topics.results_for("+/#") == "results/pi-7/unknown"
    assert topics.results_for(None) == "results/pi-7/unknown"
    looping = AgentTopics.of(Topics(search_results="arxplorer/search/{client_id}"), "pi-7")
    assert looping.results_for("requests") == "arxplorer/search/unknown"


@given(st.text(alphabet=st.characters(codec=None, exclude_categories=()), max_size=5))
def test_whatever_topic_is_accepted_can_be_published(text: str) -> None:
    try:
        topic = TOPICS.answer_topic(None, f"arxplorer/responses/{text}", None)
    except RequestError:
        return
    # The library checks a packet when it is made, before it looks for a link; a refusal raises.
    OFFLINE.publish(mqtt5.PublishPacket(topic=topic, payload=b"{}", qos=mqtt5.QoS.AT_LEAST_ONCE))
