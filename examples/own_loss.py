"""A loss of one's own: SimPO (arXiv 2405.14734), pairs without a reference. `own_loss.py RUN_DIR [key=value ...]`."""

import sys
from typing import Any

from torch import Tensor
from torch.nn.functional import logsigmoid
from trl.trainer.utils import selective_log_softmax

from still_ray import Driver, load_recipe, open_run
from still_ray.methods.dpo import Dpo, DpoConfig
from still_ray.trainer.methods.dpo import DpoTraining, TokenizedDpoTrainer


class SimPoConfig(DpoConfig):
    """`beta` scales the difference of the mean log-probabilities, `margin` is how large it should become."""

    beta: float = 2.0
    margin: float = 1.0


class SimPo(Dpo):
    """What plan, driver and report ask: pairs as DPO takes them, no reference."""

    name, title = "simpo", "SimPO"
    settings = SimPoConfig
    trainer = "own_loss:SimPoTraining"
    loss_text = "SimPO: how far chosen responses are more likely than rejected ones, per token."

    def reference(self, settings: DpoConfig) -> str:
        """None."""
        return ""


class SimPoTrainer(TokenizedDpoTrainer):
    """TRL's trainer with another loss."""

    needs_reference = False
    settings: SimPoConfig

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], *_: Any, **__: Any) -> Tensor:
        """The loss of a batch: chosen sequences first, then rejected ones."""
        ids, mask = inputs["input_ids"], inputs["completion_mask"][:, 1:]
        logits = model(input_ids=ids, attention_mask=inputs["attention_mask"]).logits[:, :-1]
        per_token = selective_log_softmax(logits.float(), ids[:, 1:])
        chosen, rejected = ((per_token * mask).sum(dim=1) / mask.sum(dim=1)).chunk(2)
        return -logsigmoid(self.settings.beta * (chosen - rejected) - self.settings.margin).mean()


class SimPoTraining(DpoTraining):
    """DPO's rows and batches under that loss."""

    trainer_type = SimPoTrainer


if __name__ == "__main__":
    rounds = 'rounds=[{explore: {}, train: ["own_loss:SimPo"]}]'
    with open_run(load_recipe("jobs/demo.yaml", [rounds, *sys.argv[2:]]), sys.argv[1]) as run:
        for line in Driver(run.recipe, run.ports, backbone=run.backbone, baseline=run.baseline).run():
            print(f"{line.name}: {line.evaluation.accuracy:.1%}")
