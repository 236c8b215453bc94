"""DeltaLoss: which samples of a data set are worth learning from, by two models of the same family.

A sample's score is the log ratio of the probabilities that a large and a small model give to its answer. About 0: both
know it, or neither can; low: the small model believes it and the large one does not, so the label is wrong or
distracts; high: the large model has learned what the small one has not, so it can be learned. Of each sub-dataset the
highest are kept.

Source: NVILA (arXiv 2412.04468), section on dataset pruning, equation 1. It does not say whether the tokens' log
ratios are summed, as the ratio of whole answers would be, or averaged. The mean is the default here: with the sum, long
answers fill both ends of the order, however little each token contributes.

Shapes: N samples, T learned tokens.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from nvila_ros.errors import CheckpointError, ConfigError
from nvila_ros.models.checkpoint import Checkpoint
from nvila_ros.models.nvila import Nvila
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.training.conversations.bad_samples import DataError
from nvila_ros.training.conversations.encoding import EncodedSample, encode_sample
from nvila_ros.training.conversations.forward import learned_log_probs
from nvila_ros.training.conversations.packing import join, pack
from nvila_ros.training.conversations.samples import Sample

SCORES = ("mean", "sum")
"""How the log ratios of an answer's tokens become one number."""


@dataclass(frozen=True, slots=True)
class SampleScore:
    """The probabilities that two models give to the answers of one sample.

    Attributes:
        log_large: log probability of all answers under the large model.
        log_small: the same under the small one.
        num_tokens: learned tokens, at least two.
    """

    log_large: float
    log_small: float
    num_tokens: int


class Scorer:
    """A model that gives the log probabilities of the answers of samples.

    Args:
        checkpoint: opened.
        dtype: of the weights and the work.
        device: such as `cpu` or `cuda:0`.
    """

    def __init__(
        self, checkpoint: Checkpoint, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> None:
        self.name = str(checkpoint.path)
        self.spec = checkpoint.spec
        self.tokenizer = ChatTokenizer.from_folder(checkpoint.tokenizer_folder)
        self.model = load_for_scoring(checkpoint, dtype, device)

    def encode(self, sample: Sample) -> EncodedSample:
        """Return what this model reads of a sample.

        Raises:
            SampleError: it cannot be read, or is too long for this model.
        """
        return encode_sample(self.spec, self.tokenizer, sample)

    @torch.inference_mode()
    def log_probs(self, samples: Sequence[EncodedSample], row_tokens: int) -> np.ndarray:
        """Return the log probability of each sample's answers, (N,) float64, read in rows of `row_tokens`."""
        found = np.zeros(len(samples))
        for group in pack(enumerate(samples), row_tokens):
            row = join([sample for _, sample in group])
            log_prob_T = learned_log_probs(self.model, row).double().cpu().numpy()
            found[[i for i, _ in group]] = np.bincount(row.learned_owners, log_prob_T, minlength=len(group))
        return found


def load_for_scoring(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device | str) -> Nvila:
    """Return the reference model; on the way one tensor at a time is held in float32."""
    with torch.device("meta"):
        model = Nvila(checkpoint.spec)
    weights = checkpoint.weights()
    state = {key: torch.from_numpy(weights[key]).to(device, dtype) for key in weights}
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)


def check_tokenizers(large: Scorer, small: Scorer) -> None:
    """Refuse two models with different tokenizers: the ratio of their probabilities would mean nothing.

    Raises:
        CheckpointError: they differ.
    """
    first, second = large.tokenizer, small.tokenizer
    size = max(first.num_tokens, second.num_tokens)
    is_same = first.named_ids == second.named_ids and first.first_ids == second.first_ids
    if not is_same or first.token_bytes(size) != second.token_bytes(size):
        raise CheckpointError(
            f"the two models must have one tokenizer, those of {large.name} and {small.name} differ; "
            "score with two sizes of one family"
        )


def score_samples(
    large: Scorer, small: Scorer, samples: Iterable[tuple[str, EncodedSample, EncodedSample]], row_tokens: int
) -> list[SampleScore]:
    """Return the score of each sample.

    Args:
        large: the larger model.
        small: the smaller one.
        samples: name of each, and its encoding for the large and for the small model.
        row_tokens: most tokens of a row.

    Raises:
        CheckpointError: the two models tokenize an answer differently.
        DataError: a model gives no number to an answer.
    """
    names, for_large, for_small = zip(*samples, strict=True)
    for name, first, second in zip(names, for_large, for_small, strict=True):
        if not np.array_equal(first.learned_ids, second.learned_ids):
            raise CheckpointError(
                f"{name}: {large.name} and {small.name} tokenize its answer differently; take models of one tokenizer"
            )
    logs = [large.log_probs(for_large, row_tokens), small.log_probs(for_small, row_tokens)]
    for scorer, log_N in zip((large, small), logs, strict=True):
        for name, value in zip(names, log_N.tolist(), strict=True):
            if not math.isfinite(value):
                raise DataError(
                    f"{name}: {scorer.name} gives its answer the log probability {value}; score in float32, or check "
                    "the checkpoint with nvila inspect"
                )
    counts = [len(sample.learned_ids) for sample in for_large]
    return [SampleScore(*values) for values in zip(*(log_N.tolist() for log_N in logs), counts, strict=True)]


def delta_loss(log_large_N: np.ndarray, log_small_N: np.ndarray, num_tokens_N: np.ndarray, how: str) -> np.ndarray:
    """Return the scores, (N,) float64.

    Raises:
        ConfigError: `how` is none of `SCORES`.
    """
    if how not in SCORES:
        raise ConfigError(f"score must be one of {', '.join(SCORES)}, got {how!r}")
    delta_N = log_large_N - log_small_N
    return delta_N / num_tokens_N if how == "mean" else delta_N


def content_key(line: bytes) -> int:
    """Return 63 bits that stand for a record, wherever it stands in its file."""
    return int.from_bytes(hashlib.blake2b(line, digest_size=8).digest(), "big") >> 1


def select_top(score_N: np.ndarray, key_N: np.ndarray, keep: float) -> np.ndarray:
    """Return which samples of one sub-dataset are kept, (N,) bool: the share with the highest scores.

    The choice does not depend on the order of the samples: of equal scores the one with the smaller key is kept.

    Args:
        score_N: finite.
        key_N: of each sample's content, int64.
        keep: in (0, 1]; the number kept is rounded, half up, and at least one where there is any.
    """
    is_kept_N = np.zeros(len(score_N), bool)
    num_kept = min(max(math.floor(keep * len(score_N) + 0.5), 1), len(score_N))
    is_kept_N[np.lexsort((key_N, -score_N))[:num_kept]] = True
    return is_kept_N
