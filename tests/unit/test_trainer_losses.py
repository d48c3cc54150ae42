"""Every loss of the preference methods against its formula, on a model whose log-probabilities numpy computes by hand.

The model has no layers: what it says of the next token depends on the last one alone.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from trl import DPOTrainer, KTOTrainer
from trl.kernels import chunked_logprob
from trl.trainer import utils as trl_utils

from still_ray.methods.dpo import LOSSES, SMOOTHED, DpoConfig
from still_ray.methods.kto import KtoConfig
from still_ray.trainer import model as model_module
from still_ray.trainer.methods.base import TrainingMethod
from still_ray.trainer.methods.dpo import DpoTraining, TokenizedPair
from still_ray.trainer.methods.kto import KtoTraining, TokenizedJudgement
from still_ray.trainer.trl_trainers import ReferencedTrainer

Array = NDArray[np.float64]

VOCAB = 12
BETA = 0.7
SMOOTHING = 0.1
PAIRS = [
    TokenizedPair(prompt_ids=(1, 2), chosen_ids=(3, 4, 5), rejected_ids=(6,)),
    TokenizedPair(prompt_ids=(7,), chosen_ids=(8, 9), rejected_ids=(10, 2, 3, 4)),
    TokenizedPair(prompt_ids=(5, 6, 1), chosen_ids=(2,), rejected_ids=(9, 8)),
]
JUDGED = [
    TokenizedJudgement(prompt_ids=(1, 2), completion_ids=(3, 4, 5), desirable=True),
    TokenizedJudgement(prompt_ids=(7,), completion_ids=(8, 9), desirable=False),
    TokenizedJudgement(prompt_ids=(5, 6, 1), completion_ids=(2,), desirable=True),
    TokenizedJudgement(prompt_ids=(10,), completion_ids=(6, 2, 2, 9), desirable=False),
    TokenizedJudgement(prompt_ids=(4, 4), completion_ids=(1, 10), desirable=False),
]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """The LM head as it is on a CPU, in several tiles; neither the last tokens nor the last entries fill one."""
    for module, name in (
        (trl_utils, "_CHUNKED_LOGPROB_CHUNK_SIZE"),
        (trl_utils, "_use_triton"),
        (chunked_logprob, "TOKEN_CHUNK_SIZE"),
    ):
        monkeypatch.setattr(module, name, getattr(module, name))  # so that it is what it was after the test
    monkeypatch.setattr(model_module, "CPU_TILE", (3, 5))
    model_module.fit_lm_head(VOCAB, use_gpu=False)


def test_the_head_scores_the_tokens_that_have_a_label_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []

    def noted(tile: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        shapes.append(tuple(tile.shape))
        forward_tile(tile, *args, **kwargs)

    forward_tile = chunked_logprob._forward_tile
    monkeypatch.setattr(chunked_logprob, "_forward_tile", noted)
    policy = model(seed=0)
    trl_utils.add_fused_lm_head(policy)
    ids = torch.tensor([[1, 2, 3, 4, 5, 6, 7]])
    labels = torch.tensor([[-100, -100, 3, 4, 5, 6, -100]])
    result = policy(input_ids=ids, labels=labels, fused_lm_head=True).log_probs
    assert shapes == [(rows, entries) for rows in (3, 1) for entries in (5, 5, 2)]
    table = next_logprobs(policy)
    assert result[0].tolist() == pytest.approx([0, table[2, 3], table[3, 4], table[4, 5], table[5, 6], 0], abs=1e-5)


def model(seed: int) -> Qwen2ForCausalLM:
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=VOCAB,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=0,
        num_attention_heads=1,
        num_key_value_heads=1,
        tie_word_embeddings=False,
        initializer_range=0.6,
    )
    return Qwen2ForCausalLM(config)


def next_logprobs(weights: Qwen2ForCausalLM) -> Array:
    """log p(next | last) by [last, next]: normalized embeddings times the output matrix, then softmax."""
    embedding = weights.model.embed_tokens.weight.detach().numpy().astype(np.float64)
    output = weights.lm_head.weight.detach().numpy().astype(np.float64)
    size = np.sqrt((embedding**2).mean(axis=1, keepdims=True) + weights.config.rms_norm_eps)
    logits = (embedding / size) @ output.T
    whole: Array = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return whole


def logprob(table: Array, prompt: Sequence[int], completion: Sequence[int]) -> float:
    """log p(completion | prompt), summed over its tokens."""
    before = [*prompt, *completion][len(prompt) - 1 : -1]
    return float(sum(table[last, token] for last, token in zip(before, completion, strict=True)))


def log_sigmoid(x: Array) -> Array:
    return np.asarray(-np.log1p(np.exp(-x)))


def sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """What the formulas are about, one entry a pair: summed log-probabilities and lengths of the completions."""

    chosen: Array
    rejected: Array
    ref_chosen: Array
    ref_rejected: Array
    chosen_tokens: Array
    rejected_tokens: Array

    @property
    def ratio_w(self) -> Array:
        """log pi(y_w|x) / pi_ref(y_w|x)."""
        return self.chosen - self.ref_chosen

    @property
    def ratio_l(self) -> Array:
        """log pi(y_l|x) / pi_ref(y_l|x)."""
        return self.rejected - self.ref_rejected

    @property
    def margin(self) -> Array:
        """The difference of rewards, beta times the difference of log-ratios."""
        return BETA * (self.ratio_w - self.ratio_l)


def exo(n: Numbers) -> Array:
    """Efficient exact optimisation, arXiv 2402.00856, eq. 16: KL of the policy's choice from the smoothed label."""
    rewards = BETA * np.stack([n.ratio_w, n.ratio_l])
    policy = np.exp(rewards) / np.exp(rewards).sum(axis=0)
    label = np.array([[1 - SMOOTHING], [SMOOTHING]])
    return np.asarray((policy * np.log(policy / label)).sum(axis=0))


def robust(n: Numbers) -> Array:
    """Robust DPO, arXiv 2403.00409: unbiased where labels are flipped with a known chance."""
    right, wrong = -log_sigmoid(n.margin), -log_sigmoid(-n.margin)
    return np.asarray(((1 - SMOOTHING) * right - SMOOTHING * wrong) / (1 - 2 * SMOOTHING))


def smoothed(x: Array) -> Array:
    return np.asarray(-(1 - SMOOTHING) * log_sigmoid(x) - SMOOTHING * log_sigmoid(-x))


def aot(n: Numbers) -> Array:
    """Alignment by optimal transport, arXiv 2406.05882, paired: sorted margins of policy and of reference."""
    return smoothed(BETA * (np.sort(n.chosen - n.rejected) - np.sort(n.ref_chosen - n.ref_rejected)))


def aot_unpaired(n: Numbers) -> Array:
    """The same, unpaired: sorted log-ratios of the chosen and of the rejected ones."""
    return smoothed(BETA * (np.sort(n.ratio_w) - np.sort(n.ratio_l)))


def ipo(n: Numbers) -> Array:
    """Identity preference optimisation, arXiv 2310.12036, eq. 17, of log-ratios per token (as its authors do)."""
    return np.asarray((n.ratio_w / n.chosen_tokens - n.ratio_l / n.rejected_tokens - 1 / (2 * BETA)) ** 2)


def nca(n: Numbers) -> Array:
    """Noise contrastive alignment, arXiv 2402.05369, for pairs."""
    won, lost = BETA * n.ratio_w, BETA * n.ratio_l
    return np.asarray(-log_sigmoid(won) - (log_sigmoid(-won) + log_sigmoid(-lost)) / 2)


def discopop(n: Numbers) -> Array:
    """Discovered preference optimisation, arXiv 2406.08414, eq. 5, temperature 0.05."""
    mix = sigmoid(n.margin / 0.05)
    return np.asarray((1 - mix) * -log_sigmoid(n.margin) + mix * np.exp(-n.margin))


FORMULAS: dict[str, Callable[[Numbers], Array]] = {
    # DPO, arXiv 2305.18290, eq. 7
    "sigmoid": lambda n: -log_sigmoid(n.margin),
    # The same of log-ratios per token: Tulu 3, arXiv 2411.15124, eq. 6
    "sigmoid_norm": lambda n: -log_sigmoid(BETA * (n.ratio_w / n.chosen_tokens - n.ratio_l / n.rejected_tokens)),
    # RSO, arXiv 2309.06657, and SLiC-HF, arXiv 2305.10425: hinge on the normalized likelihood
    "hinge": lambda n: np.maximum(0, 1 - n.margin),
    "ipo": ipo,
    "exo_pair": exo,
    "nca_pair": nca,
    "robust": robust,
    # Binary classifier optimisation, arXiv 2404.04656, without its reward shift, which TRL leaves out for pairs
    "bco_pair": lambda n: -log_sigmoid(BETA * n.ratio_w) - log_sigmoid(-BETA * n.ratio_l),
    # SPPO, arXiv 2405.00675, eq. 4.7 with P = 1 for the winner and 0 for the loser, eta = 1 / beta
    "sppo_hard": lambda n: (n.ratio_w - (1 - 0.5) / BETA) ** 2 + (n.ratio_l - (0 - 0.5) / BETA) ** 2,
    "aot": aot,
    "aot_unpaired": aot_unpaired,
    # Anchored preference optimisation, arXiv 2408.06266, eqs. 7 and 8, plus a constant of 1
    "apo_zero": lambda n: 1 - sigmoid(BETA * n.ratio_w) + sigmoid(BETA * n.ratio_l),
    "apo_down": lambda n: 1 + sigmoid(BETA * n.ratio_w) - sigmoid(n.margin),
    "discopop": discopop,
    # Cross-entropy: mean over the chosen tokens of the batch
    "sft": lambda n: np.asarray(-n.chosen.sum() / n.chosen_tokens.sum()),
}


def numbers(policy: Array, reference: Array) -> Numbers:
    def of(table: Array, side: str) -> Array:
        return np.array([logprob(table, pair.prompt_ids, getattr(pair, side)) for pair in PAIRS])

    return Numbers(
        chosen=of(policy, "chosen_ids"),
        rejected=of(policy, "rejected_ids"),
        ref_chosen=of(reference, "chosen_ids"),
        ref_rejected=of(reference, "rejected_ids"),
        chosen_tokens=np.array([len(pair.chosen_ids) for pair in PAIRS], dtype=float),
        rejected_tokens=np.array([len(pair.rejected_ids) for pair in PAIRS], dtype=float),
    )


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """One that pads with 0; it is used for nothing else."""
    words = Tokenizer(WordLevel({"<pad>": 0}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<pad>")


def loss_of(
    training: TrainingMethod[Any, Any, Any],
    rows: Sequence[Any],
    reference: Sequence[tuple[float, float]],
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
) -> float:
    """What our trainer says of one forward pass over all rows."""
    given = training.training_rows(rows)
    arguments = training.arguments(
        {
            "output_dir": str(folder),
            "use_cpu": True,
            "bf16": False,
            "report_to": [],
            "max_length": None,
            "remove_unused_columns": False,
            "per_device_train_batch_size": len(rows),
            "train_sampling_strategy": "sequential",
        }
    )
    trl = training.trainer(
        {
            "model": model(seed=0),
            "args": arguments,
            "train_dataset": given.dataset,
            "processing_class": tokenizer,
            "callbacks": [],
        }
    )
    assert isinstance(trl, ReferencedTrainer)
    trl.reference = {tuple(range(len(rows))): tuple(reference)}
    batch = trl.data_collator([given.dataset[row] for row in range(len(rows))])
    return float(trl.compute_loss(trl.model, batch))


def pair_loss(settings: DpoConfig, tokenizer: PreTrainedTokenizerFast, folder: Path) -> tuple[float, Numbers]:
    found = numbers(next_logprobs(model(seed=0)), next_logprobs(model(seed=1)))
    reference = list(zip(found.ref_chosen.tolist(), found.ref_rejected.tolist(), strict=True))
    return loss_of(DpoTraining(settings), PAIRS, reference, tokenizer, folder), found


def test_every_loss_of_trl_is_known_and_has_a_formula() -> None:
    source = inspect.getsource(DPOTrainer._compute_loss)
    assert set(re.findall(r'loss_type == "(\w+)"', source)) == set(LOSSES) == set(FORMULAS)
    unpaired = re.findall(r'loss_type == "(\w+)"', inspect.getsource(KTOTrainer._compute_loss))
    assert set(unpaired) == {"kto", "apo_zero_unpaired"}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_of_pairs_is_its_formula(loss: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    settings = DpoConfig(beta=BETA, loss=loss, label_smoothing=SMOOTHING if loss in SMOOTHED else 0)
    computed, found = pair_loss(settings, tokenizer, tmp_path)
    assert computed == pytest.approx(FORMULAS[loss](found).mean(), rel=1e-5)


def test_losses_add_up_with_their_weights(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    settings = DpoConfig(beta=BETA, loss={"ipo": 0.25, "hinge": 2.0}, sft_weight=0.5)
    computed, found = pair_loss(settings, tokenizer, tmp_path)
    terms = {name: FORMULAS[name](found).mean() for name in ("ipo", "hinge", "sft")}
    assert computed == pytest.approx(0.25 * terms["ipo"] + 2 * terms["hinge"] + 0.5 * terms["sft"], rel=1e-5)


@pytest.mark.parametrize("swapped", [False, True], ids=["KL above 0", "KL below 0"])
@pytest.mark.parametrize("loss", ["kto", "apo_zero_unpaired"])
def test_a_loss_of_single_responses_is_its_formula(
    loss: Any, swapped: bool, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """KTO, arXiv 2402.01306, eqs. 7 and 8; its z0 is the mean log-ratio of completions that other prompts got.

    APO for single responses, arXiv 2408.06266, has no z0.
    """
    policy, other = next_logprobs(model(seed=0)), next_logprobs(model(seed=1))
    # What the reference says of the mismatched completions decides the sign of the KL term.
    offset = 9.0 if swapped else -9.0
    of_row = [
        (row.prompt_ids, row.completion_ids, JUDGED[index - 1].completion_ids) for index, row in enumerate(JUDGED)
    ]
    reference = [
        (logprob(other, prompt, completion), logprob(policy, prompt, mismatched) + offset)
        for prompt, completion, mismatched in of_row
    ]
    ratio = np.array([logprob(policy, p, c) - ref for (p, c, _), (ref, _) in zip(of_row, reference, strict=True)])
    z0 = max(0.0, -offset) if loss == "kto" else 0.0
    good = np.array([row.desirable for row in JUDGED])
    value = np.where(good, sigmoid(BETA * (ratio - z0)), sigmoid(BETA * (z0 - ratio)))
    weight = np.where(good, 1.5, 0.5)
    settings = KtoConfig(beta=BETA, loss=loss, desirable_weight=1.5, undesirable_weight=0.5, per_device_batch_size=5)
    computed = loss_of(KtoTraining(settings), JUDGED, reference, tokenizer, tmp_path)
    assert computed == pytest.approx((weight * (1 - value)).mean(), rel=1e-5)
