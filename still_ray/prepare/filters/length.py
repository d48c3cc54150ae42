"""Too short or too long."""

from still_ray.config.prepare import LengthConfig
from still_ray.prepare.filters.row import Drop, RowTexts

NAME = "length"


def check_length(texts: RowTexts, limits: LengthConfig) -> Drop | None:
    """Checks characters; a problem has only a question, a general row may lack a thought."""
    num_question, num_thought, num_response = len(texts.question), len(texts.thought), texts.response_chars
    if num_question < limits.min_question_chars:
        return _drop("question_too_short", num_question, "characters, at least", limits.min_question_chars)
    if num_question > limits.max_question_chars:
        return _drop("question_too_long", num_question, "characters, at most", limits.max_question_chars)
    if 0 < num_thought < limits.min_thought_chars:
        return _drop("thought_too_short", num_thought, "characters, at least", limits.min_thought_chars)
    if num_response > limits.max_response_chars:
        return _drop("response_too_long", num_response, "characters, at most", limits.max_response_chars)
    return None


def check_tokens(num_tokens: int, limits: LengthConfig) -> Drop | None:
    """Checks the tokens of a whole response."""
    if num_tokens < limits.min_response_tokens:
        return _drop("too_few_tokens", num_tokens, "tokens, at least", limits.min_response_tokens)
    if num_tokens > limits.max_response_tokens:
        return _drop("too_many_tokens", num_tokens, "tokens, at most", limits.max_response_tokens)
    return None


def _drop(rule: str, found: int, relation: str, limit: int) -> Drop:
    return Drop(NAME, rule, f"{found} {relation} {limit}")
