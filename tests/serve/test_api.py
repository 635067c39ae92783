# SPDX-License-Identifier: Apache-2.0
"""What goes in and comes out over HTTP is what the library says; faults of the client are 4xx in one shape."""

from __future__ import annotations

import json

import pytest
import torch

from srr_fast import BestOfN

from ..best_of_n import make_ranker
from ..tiny_models import CHAT_TEMPLATE, tiny, tokenizer
from .conftest import ranker

TEXTS = ["w40 w41 w42", "w43", "", "w44 w45 w46"]
USER = [{"role": "user", "content": "w30 w31"}]


def rank(texts=TEXTS):
    return ranker().rank(tiny("llama"), tokenizer(CHAT_TEMPLATE), "w30 w31", texts)


def draw(prompt, seed, n=4, **options):
    bon = BestOfN(tiny("llama"), tokenizer(CHAT_TEMPLATE), ranker())
    torch.manual_seed(seed)
    return bon.generate(prompt, n, **options)[0]


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank"])
def test_rerank_answers_as_the_library_does(client, path):
    documents = [TEXTS[0], {"text": TEXTS[1], "id": 7}, *TEXTS[2:]]
    got = client.post(path, json={"query": "w30 w31", "documents": documents, "return_documents": True}).json()
    assert got["model"] == "tiny" and got["usage"]["total_tokens"] == 4 + 3 + 1 + 0 + 3
    for result, want in zip(got["results"], rank(), strict=True):
        assert result["index"] == want.index and result["document"] == {"text": TEXTS[want.index]}
        assert (result["prob"], result["safety"]) == pytest.approx((want.prob, want.safety), abs=1e-5)
        if want.index == 2:
            assert result["relevance_score"] is None and result["prob"] == 0
        else:
            assert result["relevance_score"] == pytest.approx(want.score, abs=1e-5)
    top = client.post(path, json={"query": "w30 w31", "documents": documents, "top_n": 2}).json()["results"]
    assert [one["index"] for one in top] == [one.index for one in rank()[:2]]
    assert all(one["document"] is None for one in top)


def test_rerank_cuts_documents_where_asked(client):
    body = {"query": "w30 w31", "documents": ["w40 w41 w42", "w43"], "max_tokens_per_doc": 1}
    got = client.post("/v1/rerank", json=body).json()["results"]
    want = rank(["w40", "w43"])
    assert [one["index"] for one in got] == [one.index for one in want]
    assert [one["relevance_score"] for one in got] == pytest.approx([one.score for one in want], abs=1e-5)


def test_chat_answers_as_the_library_does(client):
    want = draw("w30 w31", 3, max_new_tokens=5, temperature=0.7, top_p=0.9)
    body = {"messages": USER, "seed": 3, "max_tokens": 5, "temperature": 0.7, "top_p": 0.9, "return_candidates": True}
    for _ in range(2):  # a seed draws the same again, whatever was drawn before
        got = client.post("/v1/chat/completions", json=body).json()
        assert [one["text"] for one in got["ranking"]["candidates"]] == [one.text for one in want.candidates]
        (choice,) = got["choices"]
        assert choice["message"]["content"] == want.text and choice["candidate"] == want.index
        assert choice["relevance_score"] == pytest.approx(want.score, abs=1e-5)
        assert choice["finish_reason"] == "length"
        assert got["object"] == "chat.completion" and got["ranking"]["abstained"] is None
        assert got["usage"] == {"prompt_tokens": 4, "completion_tokens": 20, "total_tokens": 24}
        client.post("/v1/chat/completions", json={"messages": USER, "max_tokens": 2})


def test_n_choices_come_back_the_safest_first(client):
    body = {"messages": USER, "n": 3, "best_of": 6, "max_tokens": 4, "return_candidates": True}
    got = client.post("/v1/chat/completions", json=body).json()
    scores = [one["relevance_score"] for one in got["ranking"]["candidates"]]
    assert len(scores) == 6
    assert [one["relevance_score"] for one in got["choices"]] == sorted(scores, reverse=True)[:3]
    assert [one["index"] for one in got["choices"]] == [0, 1, 2]
    for one in got["choices"]:
        assert one["message"]["content"] == got["ranking"]["candidates"][one["candidate"]]["text"]
    alone = client.post("/v1/chat/completions", json={"messages": USER, "temperature": 0, "max_tokens": 4}).json()
    again = client.post("/v1/chat/completions", json={"messages": USER, "temperature": 0.0, "max_tokens": 4}).json()
    assert len(alone["ranking"]["candidates"]) == 1 and alone["choices"] == again["choices"]
    without = client.post("/v1/chat/completions", json={"messages": USER, "max_tokens": 2}).json()
    assert all(one["text"] is None for one in without["ranking"]["candidates"])


def test_answers_that_are_not_safe_enough_stay_in(client):
    body = {"messages": USER, "seed": 1, "n": 4, "max_tokens": 4}
    every = client.post("/v1/chat/completions", json=body).json()["choices"]
    least = sorted(one["safety"] for one in every)[2]
    some = client.post("/v1/chat/completions", json=body | {"min_safety": least}).json()["choices"]
    assert some == [one for one in every if one["safety"] >= least] and len(some) < len(every)
    refused = client.post("/v1/chat/completions", json=body | {"min_safety": 1.0, "fallback": "no"}).json()
    (choice,) = refused["choices"]
    assert choice["message"]["content"] == "no" and choice["finish_reason"] == "content_filter"
    assert choice["candidate"] is choice["safety"] is choice["relevance_score"] is None
    assert "below min_safety" in refused["ranking"]["abstained"] and len(refused["ranking"]["candidates"]) == 4
    silent = client.post("/v1/chat/completions", json=body | {"min_safety": 1.0}).json()
    assert silent["choices"][0]["message"]["content"] is None
    assert "srr_fast_abstentions_total 2.0" in client.get("/metrics").text


def test_stop_strings_end_an_answer_and_are_left_out(client):
    body = {"messages": USER, "seed": 5, "best_of": 8, "max_tokens": 8, "return_candidates": True}
    plain = [one["text"] for one in client.post("/v1/chat/completions", json=body).json()["ranking"]["candidates"]]
    stop = plain[0].split()[3]
    stopped = client.post("/v1/chat/completions", json=body | {"stop": stop}).json()
    for before, after in zip(plain, stopped["ranking"]["candidates"], strict=True):
        assert after["text"] == before.split(stop)[0]
        assert (after["n_tokens"] == 8) == (stop not in before or before.split(stop)[1].strip() == "")
    assert stopped["ranking"]["candidates"][0]["n_tokens"] == 4
    # A prompt may hold the string.
    prompted = client.post("/v1/chat/completions", json=body | {"stop": ["w30", "never said"]}).json()
    assert prompted["ranking"]["candidates"][0]["n_tokens"] > 1 or plain[0].startswith("w30")


def test_a_stop_string_at_the_last_token_is_no_cut(client):
    body = {"messages": USER, "temperature": 0, "max_tokens": 4}
    (plain,) = client.post("/v1/chat/completions", json=body).json()["choices"]
    body["stop"] = plain["message"]["content"]
    (stopped,) = client.post("/v1/chat/completions", json=body).json()["choices"]
    assert (plain["finish_reason"], stopped["finish_reason"]) == ("length", "stop")
    assert stopped["message"]["content"] == ""


@pytest.mark.parametrize("stop", [None, "w3"])
def test_candidates_come_as_they_are_finished_then_the_answer(client, stop):
    body = {"messages": USER, "seed": 5, "best_of": 6, "max_tokens": 8, "return_candidates": True, "stop": stop}
    want = client.post("/v1/chat/completions", json=body).json()
    answer = client.post("/v1/chat/candidates", json=body)
    assert answer.headers["content-type"] == "application/x-ndjson"
    *candidates, last = [json.loads(line) for line in answer.text.splitlines()]
    got, candidates = last["answer"], [one["candidate"] for one in candidates]
    assert got["choices"] == want["choices"] and got["ranking"]["candidates"] == want["ranking"]["candidates"]
    assert sorted(one["index"] for one in candidates) == list(range(6))
    lengths = [one["n_tokens"] for one in candidates]
    assert lengths == sorted(lengths) and (stop is None or lengths[0] < lengths[-1])
    for one in candidates:
        final = got["ranking"]["candidates"][one["index"]]
        assert (one["text"], one["n_tokens"]) == (final["text"], final["n_tokens"])


def test_a_stream_of_candidates_that_fails(client, monkeypatch):
    assert client.post("/v1/chat/candidates", json={"messages": []}).status_code == 400
    generate = BestOfN.generate

    def late(*arguments, **options):
        generate(*arguments, **options)
        raise RuntimeError("a secret")

    for broken, status in ((late, 200), (lambda *_, **__: 1 / 0, 500)):
        monkeypatch.setattr(BestOfN, "generate", broken)
        answer = client.post("/v1/chat/candidates", json={"messages": USER, "max_tokens": 2})
        assert answer.status_code == status and "secret" not in answer.text
        *candidates, last = [json.loads(line) for line in answer.text.splitlines()]
        assert last["error"]["type"] == "server_error" and len(candidates) == (4 if status == 200 else 0)


def test_conversations_and_parts(client):
    parts = [{"type": "text", "text": "w30 "}, {"type": "text", "text": "w31"}]
    options = {"seed": 2, "max_tokens": 3}
    whole = client.post("/v1/chat/completions", json={"messages": USER, **options}).json()
    split = client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": parts}], **options})
    assert split.json()["choices"] == whole["choices"]
    turns = [
        {"role": "developer", "content": "w50"},
        *USER,
        {"role": "assistant", "content": "w32", "name": "x"},
        {"role": "user", "content": "w33"},
    ]
    assert client.post("/v1/chat/completions", json={"messages": turns, **options}).status_code == 200


def test_what_openai_sends_by_default_is_accepted(client):
    neutral = {
        "stream": False,
        "tools": [],
        "response_format": {"type": "text"},
        "presence_penalty": 0.0,
        "logprobs": None,
        "user": "somebody",
        "metadata": {"a": "b"},
        "model": "tiny",
        "n": None,
    }
    body = {"messages": USER, "max_completion_tokens": 2, **neutral}
    assert client.post("/v1/chat/completions", json=body).status_code == 200


CHAT_FAULTS = {
    "stream cannot be served: the best answer": {"stream": True},
    "tools cannot be served": {"tools": [{"type": "function"}]},
    "response_format cannot be served": {"response_format": {"type": "json_object"}},
    "Extra inputs are not permitted": {"colour": "red"},
    "n=5 choices cannot be made from best_of=2": {"n": 5, "best_of": 2},
    "at most 64 candidates": {"best_of": 65},
    "at most 8 tokens are generated": {"max_tokens": 9},
    "temperature=0 has one answer": {"temperature": 0, "best_of": 2},
    "temperature must be 0 or at least": {"temperature": 1e-30},
    "less than or equal to 2": {"temperature": 3},
    "greater than 0": {"top_p": 0},
    "max_tokens and max_completion_tokens differ": {"max_tokens": 3, "max_completion_tokens": 4},
    "min_safety: ": {"min_safety": 1.5},
    "this server serves 'tiny'": {"model": "other"},
    "messages: List should have at least 1": {"messages": []},
    "messages.0.role": {"messages": [{"role": "tool", "content": "x"}]},
    "messages.0.content": {"messages": [{"role": "user", "content": None}]},
    "messages and max_tokens have 122 + 8 tokens, the model takes 128": {
        "messages": [{"role": "user", "content": "w30 " * 120}],
        "max_tokens": 8,
    },
    "at most 64 characters": {"stop": "x" * 65},
    "at most 4 items": {"stop": list("abcde")},
    "n: ": {"n": True},
    "content.constrained-str: Input should be a valid string, unable": {
        "messages": [{"role": "user", "content": "w30 \ud800"}]
    },
    "text: Input should be a valid string, unable to parse": {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "\ud800"}]}]
    },
    "fallback: Input should be a valid string, unable to parse": {"fallback": "\ud800"},
}


@pytest.mark.parametrize("message", CHAT_FAULTS)
def test_faults_of_chat_requests(client, message):
    body = json.dumps({"messages": USER, **CHAT_FAULTS[message]})
    answer = client.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    error = answer.json()["error"]
    assert answer.status_code == (404 if "model" in CHAT_FAULTS[message] else 400), answer.text
    assert message in error["message"] and "Value error" not in error["message"]
    assert error["type"] == "invalid_request_error" and set(error) == {"message", "type", "param", "code"}


RERANK_FAULTS = {
    "documents: List should have at least 1": {"documents": []},
    "at most 256 documents": {"documents": ["w40"] * 257},
    "documents": {"documents": [3]},
    "top_n: ": {"top_n": 0},
    "query: ": {"query": ""},
    "unable to parse raw data as a unicode string": {"query": "\ud800"},
    "documents.1.constrained-str: Input should be a valid string, unable": {"documents": ["w40", "w41 \ud800"]},
    "documents.0.Document.text: Input should be a valid string, unable": {"documents": [{"text": "\ud800"}]},
    "the query and its longest document have 4 + 125 tokens": {"documents": ["w40 " * 125]},
    "query and documents have 16504 tokens, this server reads 16384": {"documents": ["w40 " * 110] * 150},
    "relevant_spans cannot be served": {"relevant_spans": {"a": 1}},
}


@pytest.mark.parametrize("message", RERANK_FAULTS)
def test_faults_of_rerank_requests(client, message):
    body = {"query": "w30 w31", "documents": ["w40"], **RERANK_FAULTS[message]}
    answer = client.post("/v1/rerank", content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert message in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "application/json"),
        (b"{", "application/json"),
        (b"[" * 20000, "application/json"),
        (b"[]", "application/json"),
        (b'{"query": "w30", "documents": ["w40"], "top_n": NaN}', "application/json"),
        (b'{"query": "w30", "documents": ["w40"], "top_n": ' + b"9" * 5000 + b"}", "application/json"),
        (b'{"query": "w30", "documents": ["w40"], "\\ud800": 1}', "application/json"),
        (b'{"query": "\xff", "documents": ["w40"]}', "application/json"),
        (b'{"query": "w30", "documents": ["w40"]}', "text/plain"),
        (b"query=w30", "application/x-www-form-urlencoded"),
    ],
)
def test_bodies_that_are_no_request(client, content, kind):
    answer = client.post("/v1/rerank", content=content, headers={"Content-Type": kind})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_body_that_is_not_json_names_no_field(client):
    answer = client.post("/v1/rerank", content=b"{bad", headers={"Content-Type": "application/json"})
    fault = answer.json()["error"]
    assert fault["param"] is None and fault["message"].startswith("the body is not JSON: ")


def test_min_safety_wants_calibration(make_engine):
    from fastapi.testclient import TestClient

    from srr_fast.serve.app import create_app

    with TestClient(create_app(make_engine(make_ranker()))) as client:
        answer = client.post("/v1/chat/completions", json={"messages": USER, "min_safety": 0.5})
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "min_safety"
        plain = client.post("/v1/chat/completions", json={"messages": USER}).json()
        assert plain["choices"][0]["safety"] is None
        assert client.get("/healthz").json() == {"status": "ok", "model": "tiny", "calibrated": False}


def test_a_failure_says_nothing_of_itself(client, monkeypatch):
    def broken(*arguments):
        raise RuntimeError("a secret")

    monkeypatch.setattr("srr_fast.serve.engine.TextRanker.rank_many", broken)
    answer = client.post("/v1/rerank", json={"query": "w30", "documents": ["w40"]})
    assert answer.status_code == 500 and answer.json()["error"]["type"] == "server_error"
    assert "secret" not in answer.text and "Traceback" not in answer.text


def test_the_other_routes(client):
    assert client.get("/v1/models").json()["data"][0]["id"] == "tiny"
    missing = client.get("/v1/nothing")
    assert missing.status_code == 404 and missing.json()["error"]["message"] == "Not Found"
    slash = client.post("/v1/rerank/", json={"query": "w30", "documents": ["w40"]}, follow_redirects=False)
    assert slash.status_code == 404 and slash.json()["error"]["message"] == "Not Found"
    wrong = client.get("/v1/rerank")
    assert wrong.status_code == 405 and wrong.headers["allow"] == "POST"
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths) == {
        "/v1/rerank",
        "/v1/chat/completions",
        "/v1/chat/candidates",
        "/v1/models",
        "/healthz",
        "/metrics",
    }
    assert set(paths["/v1/rerank"]["post"]["responses"]) == {"200", "4XX", "5XX"}
    client.post("/v1/rerank", json={"query": "w30", "documents": ["w40"]})
    text = client.get("/metrics").text
    for line in (
        'srr_fast_requests_total{route="/v1/rerank",status="200"} 1.0',
        'srr_fast_requests_total{route="other",status="404"} 2.0',
        'srr_fast_batch_size_count{route="/v1/rerank"} 1.0',
        'srr_fast_stage_seconds_count{stage="queue"} 1.0',
        'srr_fast_request_seconds_count{route="/v1/rerank"} 1.0',
        "srr_fast_in_flight 0.0",
    ):
        assert line in text, text


def test_a_ranker_of_another_model_is_said_once(make_engine):
    other = ranker()
    other.model_fingerprint = "0" * 16
    with pytest.warns(UserWarning, match="fingerprint 0000000000000000") as told:
        make_engine(other)
    assert len([one for one in told if "fingerprint" in str(one.message)]) == 1
