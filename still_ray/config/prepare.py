"""The recipe of `still-ray prepare`: where the columns are, and every filter with its switch and its thresholds.

"paper" is STILL-2 (arXiv 2412.09413), which names its filters (repetition, gibberish, mixed languages, short examples,
duplicates) and none of their thresholds; those are "ours", or of the work that is named.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from still_ray.config.names import FormatName, OwnVerifiers
from still_ray.config.schema import Fraction, PositiveFloat, PositiveInt, Section

Kind = Literal["auto", "demonstrations", "problems"]
DuplicateScope = Literal["whole", "question"]

Count = Annotated[int, Field(ge=0)]


class FieldsConfig(Section):
    """Names of the columns, where the input has other ones than those that are recognised; "a.b" looks into objects."""

    question: str | None = Field(default=None, description="What is asked. Source: no default, recognised.")
    response: str | None = Field(
        default=None, description="Thought and solution in one text, in any format. Source: no default."
    )
    response_format: FormatName = Field(
        default="auto",
        description="Format of that text, as a recipe's prompt.format, also your own; auto: what the text tells. "
        "Source: ours.",
    )
    thought: str | None = Field(default=None, description="The thought alone. Source: no default, recognised.")
    solution: str | None = Field(default=None, description="The solution alone. Source: no default, recognised.")
    answer: str | None = Field(default=None, description="The reference answer. Source: no default, recognised.")
    messages: str | None = Field(default=None, description="Chat turns. Source: no default, recognised.")
    domain: str | None = Field(default=None, description='Problem type. Source: no default, "domain".')
    id: str | None = Field(default=None, description="Name of the row. Source: no default, recognised.")


class Filter(Section):
    """A filter."""

    enabled: bool = Field(default=True, description="Whether it drops anything. Source: ours.")


class FormatConfig(Filter):
    """A demonstration is one thought and then one solution. Off, such rows count as broken: they cannot be written."""

    require_box: bool = Field(
        default=False,
        description="Also drop solutions without a non-empty \\boxed{}. Source: ours, off: code has none.",
    )


class LengthConfig(Filter):
    """Short examples teach no long thought; over-long ones do not fit the sequence."""

    min_question_chars: Count = Field(default=10, description="Shortest question, characters. Source: ours.")
    max_question_chars: PositiveInt = Field(default=20_000, description="Longest question, characters. Source: ours.")
    min_thought_chars: Count = Field(
        default=200, description="Shortest thought, characters. Source: ours (paper: short examples are dropped)."
    )
    max_response_chars: PositiveInt = Field(
        default=200_000, description="Longest thought and solution, characters. Source: ours."
    )
    tokenizer: str | None = Field(
        default=None,
        description="A tokenizer.json or a folder that holds one; null: tokens are not counted. Source: no default.",
    )
    min_response_tokens: Count = Field(default=0, description="Shortest response, tokens. Source: ours.")
    max_response_tokens: PositiveInt = Field(
        default=20_000, description="Longest response, tokens. Source: a sister recipe of the paper's group."
    )


class RepetitionConfig(Filter):
    """Texts that repeat themselves, thought and solution each for itself.

    Shares as in MassiveText (Rae et al. 2021, table A1), but thoughts repeat short phrases by nature ("Wait, let me
    check"), so short sentences do not count, and the n-gram rules look for longer repetitions than of web text.
    """

    min_repeated_chars: PositiveInt = Field(
        default=30, description="A shorter sentence or paragraph may repeat freely, characters. Source: ours."
    )
    max_paragraph_share: Fraction = Field(
        default=0.3,
        description="Most characters in paragraphs that came before. Source: MassiveText, its share of lines.",
    )
    max_sentence_share: Fraction = Field(
        default=0.3,
        description="Most characters in sentences that came before. Source: MassiveText, its share of lines.",
    )
    ngram: PositiveInt = Field(
        default=20, description="Words of a passage that counts as repeated. Source: ours (MassiveText: 5 to 10)."
    )
    max_ngram_share: Fraction = Field(
        default=0.5, description="Most words in passages that came before. Source: ours, by trying long thoughts."
    )
    loop_repeats: Annotated[int, Field(ge=2)] = Field(
        default=8, description="Back-to-back repeats that make a loop. Source: ours."
    )
    loop_words: PositiveInt = Field(
        default=150, description="Fewest words that a loop covers; a row of zeros is shorter. Source: ours."
    )
    loop_period: PositiveInt = Field(
        default=100, description="Longest period of a loop, words; sentences cover longer ones. Source: ours."
    )
    loop_share: Fraction = Field(
        default=0.2,
        description="Least share of the words that a loop covers; one that ends the text always counts. Source: ours: "
        "a matrix inside a thought is none.",
    )


class LanguageConfig(Filter):
    """Texts that mix languages, seen by their scripts; fenced code is left out, languages of one script are alike."""

    max_foreign_share: Fraction = Field(
        default=0.02,
        description="Most letters outside the main script, Greek left out. Source: ours (paper: the rule).",
    )
    max_latin_share: Fraction = Field(
        default=0.2, description="The same for Latin letters in another script: terms and code. Source: ours."
    )
    min_foreign_letters: PositiveInt = Field(
        default=10, description="Fewer foreign letters are a name or a slip. Source: ours."
    )


class GibberishConfig(Filter):
    """Texts that are no language: damaged encodings, key mashing, data."""

    max_damaged_share: Fraction = Field(
        default=0.001,
        description="Most replacement, control and private characters and wrongly decoded pairs. Source: ours.",
    )
    min_entropy_bits: Annotated[float, Field(ge=0)] = Field(
        default=2.0, description="Least entropy of a character in a text of 200 or more; English has 4. Source: ours."
    )
    max_unbroken_chars: PositiveInt = Field(
        default=1000, description="Longest run of ASCII without a space. Source: ours (MassiveText: mean word length)."
    )
    max_odd_word_share: Fraction = Field(
        default=0.25,
        description="Most Latin words, of 20 or more, without a vowel or with 6 consonants in a row. Source: ours.",
    )


class OverlapConfig(Filter):
    """Rows that overlap with evaluation sets: n-grams of words, as GPT-3 (Brown et al. 2020, appendix C)."""

    files: tuple[str, ...] = Field(
        default=(),
        strict=False,
        description="Evaluation sets, files of rows with a question. Source: no default.",
    )
    ngram: Annotated[int, Field(ge=2)] = Field(
        default=13,
        description="Words in a row shared with an evaluation question. Operators, LaTeX commands and single letters "
        "and digits between them must be equal but do not count; a Chinese, Japanese or Korean character is half a "
        "word. Source: GPT-3; what counts: ours.",
    )
    min_words: Annotated[int, Field(ge=2)] = Field(
        default=8,
        description="A question shorter than `ngram` overlaps if contained as a whole, and below this many words (and "
        "below `ngram` with what does not count) if equal. Source: GPT-3, its shortest n-gram.",
    )
    max_sharing: PositiveInt = Field(
        default=2,
        description="An n-gram of more different evaluation questions than this is boilerplate and does not count. "
        "Source: ours (GPT-3 leaves out n-grams of more than 10 documents).",
    )
    scope: DuplicateScope = Field(
        default="question", description="Where to look: the question, or the response as well. Source: ours."
    )

    @model_validator(mode="after")
    def _short_of_long(self) -> Self:
        if self.min_words > self.ngram:
            raise ValueError(f"min_words ({self.min_words}) must not exceed ngram ({self.ngram})")
        return self


class WrongAnswerConfig(Filter):
    """Demonstrations whose answer the verifier finds wrong, or that give none, where there is a reference."""

    keep_unjudged: bool = Field(
        default=True, description="Keep what the verifier cannot judge (timeout, error); counted. Source: ours."
    )
    timeout_s: PositiveFloat = Field(default=5.0, description="Time for one answer, seconds. Source: ours.")
    memory_mib: PositiveInt = Field(default=1024, description="Memory for one answer, MiB. Source: ours.")
    custom: OwnVerifiers = Field(
        default_factory=dict,
        description="Verifiers of your own by domain, as in a recipe's verifier.custom. Source: ours.",
    )


class ExactDuplicatesConfig(Filter):
    """Rows equal but for spacing; the first in input order stays."""

    scope: DuplicateScope = Field(
        default="whole", description="What must be equal; `question` keeps one response a question. Source: ours."
    )


class NearDuplicatesConfig(Filter):
    """Rows that share most of their shingles, by MinHash; of a cluster the first in input order stays."""

    scope: DuplicateScope = Field(
        default="whole", description="What is compared; `question` keeps one response a question. Source: ours."
    )
    threshold: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.8, description="Least estimated Jaccard similarity. Source: Lee et al. 2022 (0.8)."
    )
    shingle: PositiveInt = Field(default=5, description="Words of a shingle. Source: Lee et al. 2022.")
    num_permutations: PositiveInt = Field(
        default=128, description="Values of a signature; the estimate's error is at most 0.045. Source: ours (speed)."
    )
    bands: PositiveInt = Field(
        default=16, description="Pairs at 0.8 meet in one of 16 bands of 8 values with p = 0.95. Source: ours."
    )
    same_numbers: bool = Field(
        default=True,
        description="Only rows whose questions hold the same numbers: with others it is another problem. Rows with "
        "different references are never near-duplicates. Source: ours.",
    )

    @model_validator(mode="after")
    def _whole_bands(self) -> Self:
        if self.num_permutations % self.bands:
            raise ValueError(f"num_permutations ({self.num_permutations}) must be a multiple of bands ({self.bands})")
        return self


class PrepareConfig(Section):
    """How raw rows become demonstrations or problems."""

    kind: Kind = Field(
        default="auto",
        description="What to make; auto: of a row with a thought a demonstration, else with an answer a problem. "
        "Source: ours.",
    )
    general: bool = Field(
        default=False,
        description="Plain instruction data, whose responses may lack a thought; a recipe lists what comes out with "
        "general: true. Source: ours.",
    )
    seed: Count = Field(default=42, description="Seed of the samples of dropped rows. Source: ours.")
    sample_per_filter: Count = Field(
        default=10, description="Dropped rows written for inspection, for each filter. Source: ours."
    )
    max_broken_named: Count = Field(default=1000, description="Broken rows named in broken.jsonl. Source: ours.")
    allow_damaged: bool = Field(
        default=False,
        description="Prepare what can be read of files that are damaged; otherwise the first one is an error. "
        "Source: ours.",
    )
    block_mib: PositiveFloat = Field(default=8.0, description="Input that one task reads, MiB. Source: ours.")
    fields: FieldsConfig = Field(default_factory=FieldsConfig, description="Columns. Source: see its fields.")
    format: FormatConfig = Field(default_factory=FormatConfig, description="Thought and solution. Source: paper.")
    length: LengthConfig = Field(default_factory=LengthConfig, description="Lengths. Source: paper.")
    repetition: RepetitionConfig = Field(default_factory=RepetitionConfig, description="Repetition. Source: paper.")
    language: LanguageConfig = Field(default_factory=LanguageConfig, description="Mixed languages. Source: paper.")
    gibberish: GibberishConfig = Field(default_factory=GibberishConfig, description="Gibberish. Source: paper.")
    decontaminate: OverlapConfig = Field(default_factory=OverlapConfig, description="Evaluation sets. Source: ours.")
    wrong_answer: WrongAnswerConfig = Field(default_factory=WrongAnswerConfig, description="Answers. Source: ours.")
    exact_duplicates: ExactDuplicatesConfig = Field(
        default_factory=ExactDuplicatesConfig, description="Equal rows. Source: paper."
    )
    near_duplicates: NearDuplicatesConfig = Field(
        default_factory=NearDuplicatesConfig, description="Nearly equal rows. Source: paper."
    )


FILTERS = (
    "format",
    "length",
    "repetition",
    "language",
    "gibberish",
    "decontaminate",
    "wrong_answer",
    "exact_duplicates",
    "near_duplicates",
)
"""The sections that drop rows, in the order in which they look: a row is counted by the first that drops it."""
