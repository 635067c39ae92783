# SPDX-License-Identifier: Apache-2.0
"""The requests and answers of Cohere's and Jina's rerank and of OpenAI's chat completions, with what ranking adds."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

# Field of OpenAI's request -> the values that change nothing, and why no other is served.
UNSERVED: dict[str, tuple[tuple[Any, ...], str]] = {
    "stream": ((None, False), "the best answer is not known before all candidates are finished; leave it out"),
    "stream_options": ((None,), "answers are not streamed; leave it out"),
    "logprobs": ((None, False), "token probabilities are not kept; leave it out"),
    "top_logprobs": ((None, 0), "token probabilities are not kept; leave it out"),
    "tools": ((None, []), "tools are not called; leave it out"),
    "tool_choice": ((None, "none", "auto"), "tools are not called; leave it out"),
    "functions": ((None, []), "functions are not called; leave it out"),
    "function_call": ((None, "none", "auto"), "functions are not called; leave it out"),
    "response_format": ((None, {"type": "text"}), "answers are text; leave it out"),
    "logit_bias": ((None, {}), "it is not supported; leave it out"),
    "presence_penalty": ((None, 0), "it is not supported; leave it out"),
    "frequency_penalty": ((None, 0), "it is not supported; leave it out"),
    "modalities": ((None, ["text"]), "answers are text; leave it out"),
    "audio": ((None,), "answers are text; leave it out"),
    "prediction": ((None,), "it is not supported; leave it out"),
    "reasoning_effort": ((None,), "it is not supported; leave it out"),
    "web_search_options": ((None,), "it is not supported; leave it out"),
}
# Fields that are about the caller's account, not about the answer.
ACCOUNT = (
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "parallel_tool_calls",
    "verbosity",
    "priority",
)
# Of rerank requests.
UNSERVED_RERANK: dict[str, tuple[tuple[Any, ...], str]] = {
    "rank_fields": ((None, ["text"]), "a document is its text; leave it out"),
    "max_chunks_per_doc": ((None,), "documents are not cut into chunks; leave it out"),
    "relevant_spans": ((None,), "spans are not found; leave it out"),
    "return_embeddings": ((None, False), "states never leave the server; leave it out"),
    "truncation": ((None, False), "use max_tokens_per_doc"),
}
MOST_STOPS, LONGEST_STOP = 4, 64  # strings, characters


# Any length: pydantic looks whether a string is Unicode where it is to look at anything of it. JSON can spell half a
# character, a lone surrogate, which no tokenizer takes and no answer can hold.
Text = Annotated[str, Field(min_length=0)]


class _Request(BaseModel):
    """Unknown fields are refused: what is not served must not look as if it were."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Document(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    text: Text


class RerankRequest(_Request):
    """``documents`` in the order of their safety as answers to ``query``."""

    model: str | None = Field(None, description="the served model; may be left out")
    query: str = Field(min_length=1, description="the instruction that the documents answer")
    documents: list[Text | Document] = Field(min_length=1)
    top_n: int | None = Field(None, ge=1, description="results to return; default: all")
    return_documents: bool | None = Field(False, description="whether results carry their document")
    max_tokens_per_doc: int | None = Field(None, ge=1, description="cut longer documents; default: never")

    @model_validator(mode="before")
    @classmethod
    def _served(cls, body: Any) -> Any:
        return _without_neutral(body, UNSERVED_RERANK)

    @property
    def texts(self) -> list[str]:
        return [one if isinstance(one, str) else one.text for one in self.documents]


class Stages(BaseModel):
    """Seconds that a request spent, and the number of requests that were run together with it.

    Of a joined run the seconds are those of the whole run. generate_s contains capture_s.
    """

    encode_s: float
    queue_s: float
    generate_s: float | None = None
    capture_s: float | None = None
    rank_s: float
    joined: int


class RerankResult(BaseModel):
    """relevance_score: cosine of answer and instruction, null for a document that is out (no token in it, or states
    that are not finite). prob: softmax over the list. safety: calibrated, in [0, 1]; null without calibration."""

    index: int
    relevance_score: float | None
    prob: float
    safety: float | None
    document: Document | None = None


class RerankUsage(BaseModel):
    total_tokens: int


class RerankResponse(BaseModel):
    """Results best first; ties, and documents that are out, in the order they were given."""

    id: str
    model: str
    results: list[RerankResult]
    usage: RerankUsage
    timings: Stages


class TextPart(_Request):
    type: Literal["text"]
    text: Text


class Message(_Request):
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart]
    name: str | None = None

    def for_template(self) -> dict[str, str]:
        """As chat templates take it."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


Stop = Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)]


class ChatRequest(_Request):
    """``best_of`` candidates are sampled and ranked; the ``n`` safest come back, the safest first."""

    model: str | None = Field(None, description="the served model; may be left out")
    messages: list[Message] = Field(min_length=1)
    n: int | None = Field(1, ge=1, description="choices to return")
    best_of: int | None = Field(None, ge=1, description="candidates to sample; default: the server's, at least n")
    max_tokens: int | None = Field(None, ge=1, description="per candidate")
    max_completion_tokens: int | None = Field(None, ge=1, description="the newer name of max_tokens")
    temperature: float | None = Field(
        None, ge=0, le=2, description="default: the model's; 0 has one answer, best_of must be 1 or left out"
    )
    top_p: float | None = Field(None, gt=0, le=1)
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None = None
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1, description="draws the same again; runs alone")
    min_safety: float | None = Field(None, ge=0, le=1, description="return no answer of a lower safety")
    fallback: Text | None = Field(None, description="the content where no answer is returned")
    return_candidates: bool | None = Field(False, description="whether ranking.candidates carry their texts")

    @model_validator(mode="before")
    @classmethod
    def _served(cls, body: Any) -> Any:
        return _without_neutral(body, UNSERVED)

    @model_validator(mode="after")
    def _one_limit(self) -> ChatRequest:
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise PydanticCustomError("limits", "max_tokens and max_completion_tokens differ; leave one out")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(sorted(set(self.stop or ())))


class ChatMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: str | None = None


class Choice(BaseModel):
    """candidate: its index in ``ranking.candidates``; null, as the numbers, where nothing was chosen and the content is
    the fallback; finish_reason is ``content_filter`` then."""

    index: int
    message: ChatMessage
    finish_reason: Literal["stop", "length", "content_filter"]
    logprobs: None = None
    candidate: int | None
    relevance_score: float | None
    prob: float | None
    safety: float | None


class RankedCandidate(BaseModel):
    """One sampled answer, numbers as in :class:`RerankResult`."""

    index: int
    relevance_score: float | None
    prob: float
    safety: float | None
    n_tokens: int
    text: str | None = None


class Ranking(BaseModel):
    """abstained: why nothing was chosen. candidates: in the order they were sampled."""

    abstained: str | None
    candidates: list[RankedCandidate]
    timings: Stages


class ChatUsage(BaseModel):
    """completion_tokens: of all candidates."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatResponse(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: ChatUsage
    ranking: Ranking


class FinishedCandidate(BaseModel):
    """One sampled answer that nobody has judged yet. index: in ``ranking.candidates``."""

    index: int
    n_tokens: int
    text: str


class CandidateLine(BaseModel):
    """Of a stream of candidates, in the order they are finished; sent again where a run had to be repeated."""

    candidate: FinishedCandidate


class AnswerLine(BaseModel):
    """The last line of a stream of candidates. A stream that ends without it was given up, or its last line has the
    error."""

    answer: ChatResponse


class ServedModel(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "srr_fast"


class ServedModels(BaseModel):
    object: Literal["list"] = "list"
    data: list[ServedModel]


class Health(BaseModel):
    status: Literal["ok"] = "ok"
    model: str
    calibrated: bool


def _without_neutral(body: Any, unserved: dict[str, tuple[tuple[Any, ...], str]]) -> Any:
    """The body without fields that change nothing. Raises an error of pydantic's for one that would."""
    if not isinstance(body, dict):
        return body
    kept = {name: value for name, value in body.items() if name not in ACCOUNT}
    for name, (neutral, why) in unserved.items():
        if kept.pop(name, None) not in neutral:
            raise PydanticCustomError("unserved", "{name} cannot be served: {why}", {"name": name, "why": why})
    return kept
