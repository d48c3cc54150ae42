"""Where everything comes from: the rows of every training set, the settings, the versions, the data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import cycle
from typing import Any, Final

from still_ray.config.methods import RowSource
from still_ray.report.charts import AMBER, GREEN, GREY, RED, VIOLET, Axis, Series, stacked_bars
from still_ray.report.facts import RunFacts, RunStage
from still_ray.report.parts import Figure, ReportSection, Table, count, missing, percent, round_colors, round_label

DEMONSTRATIONS: Final = "demonstrations"
UNKNOWN: Final = "not in the pool"
_SHOWN_COLORS: Final = (AMBER, VIOLET, GREEN, RED)


def provenance(facts: RunFacts) -> ReportSection:
    """The section."""
    return ReportSection(
        id="provenance",
        title="Provenance",
        text="",
        figures=(lineage(facts), final_training_set(facts), settings(facts), versions(facts)),
    )


def lineage(facts: RunFacts) -> Figure:
    """Which part of every training set comes from where."""
    name, title = "lineage", "What each policy was trained on"
    stages = [stage for stage in facts.stages if stage.sources]
    if not stages:
        return missing(name, title, "No training set has been written yet.")
    mixes = {stage.label: Counter(origin for origin, *_ in _origins(stage, facts)) for stage in stages}
    shown = dict.fromkeys(origin for mix in mixes.values() for origin in mix if origin.startswith(DEMONSTRATIONS))
    colors = {**dict(zip(shown, cycle(_SHOWN_COLORS))), **round_colors(facts.rounds), UNKNOWN: GREY}
    colors = {origin: color for origin, color in colors.items() if any(mix[origin] for mix in mixes.values())}
    rows = [
        {"stage": label, "origin": origin, "rows": mix[origin], "tip": f"{label}: {count(mix[origin])} from {origin}"}
        for label, mix in mixes.items()
        for origin in colors
        if mix[origin]
    ]
    value = Axis(field="rows", title="rows, or preference pairs")
    series = Series(field="origin", colors=colors)
    return Figure(
        id=name,
        title=title,
        text="Every row of a training set names its source: a demonstration, or a response by round, problem and "
        "sample. A preference pair counts once, by its chosen side.",
        draw=lambda size: stacked_bars(rows, category="stage", value=value, series=series, size=size, legend=False),
        height=70 + 34 * len(stages),
        legend=colors,
        table=Table(
            columns=("stage", *colors, "all"),
            rows=tuple(
                (label, *(count(mix[origin]) for origin in colors), count(mix.total())) for label, mix in mixes.items()
            ),
        ),
    )


def final_training_set(facts: RunFacts) -> Figure:
    """The origins of what the newest policy learnt from, back to the backbone."""
    name, title = "final-set", "Lineage of the final policy's training data"
    chain = _chain(facts)
    if not chain:
        return missing(name, title, "No policy has been trained yet.")
    rows = tuple(row for stage in chain for row in _origin_rows(stage, facts))
    labels = ", then ".join(stage.label for stage in chain)
    return Figure(
        id=name,
        title=title,
        text=f"Policy v{chain[-1].policy_version} is the backbone, trained by {labels}. Share: of the rows or "
        "pairs of its stage.",
        table=Table(
            columns=("stage", "origin", "made by", "domain", "rows", "share", "problems"),
            rows=rows,
            text_columns=frozenset({1, 2, 3}),
        ),
        open=True,
    )


def _origin_rows(stage: RunStage, facts: RunFacts) -> list[tuple[str, ...]]:
    origins = _origins(stage, facts)
    mix = Counter(one[:3] for one in origins)
    problems = {key: len({one[3] for one in origins if one[:3] == key}) for key in mix}
    unit = stage.unit
    return [
        (stage.label, *key, f"{count(number)}{unit}", percent(number / len(origins)), count(problems[key]))
        for key, number in sorted(mix.items())
    ]


def _chain(facts: RunFacts) -> list[RunStage]:
    """The stages that made the newest policy, each from the weights of the one before it."""
    stages = [stage for stage, _ in facts.trained if stage.sources]
    chain = stages[-1:]
    while chain and _goes_on(chain[0], facts) and len(chain) < len(stages):
        chain.insert(0, stages[-len(chain) - 1])
    return chain


def _goes_on(stage: RunStage, facts: RunFacts) -> bool:
    """Whether a stage starts from the policy before it rather than from the backbone."""
    if not stage.round:
        return False
    return stage.settings is not None and stage.settings.init == "previous"


def _origins(stage: RunStage, facts: RunFacts) -> list[tuple[str, str, str, str]]:
    """Origin, policy, domain and problem of every row or pair."""
    known = {row.id: row for number in facts.rounds if number <= stage.round for row in facts.rounds[number]}

    def explored(identity: str) -> tuple[str, str, str, str]:
        row = known.get(identity)
        if row is None:
            return UNKNOWN, "", "", identity
        return round_label(row.round), f"policy v{row.policy_version}", row.domain, row.problem_id

    def shown(row: RowSource) -> tuple[str, str, str, str]:
        name = f"{DEMONSTRATIONS}: {row.dataset}" if row.dataset else DEMONSTRATIONS
        return name, "teacher", row.domain, row.source_id

    return [explored(row.source_id) if row.ids else shown(row) for row in stage.sources]


def settings(facts: RunFacts) -> Figure:
    """The settings that people ask for first."""
    recipe = facts.recipe
    if not recipe:
        return missing("settings", "Settings", "There is no recipe.yaml.")
    rows = [(name, _shown(value)) for name, value in _main_settings(facts)]
    return Figure(
        id="settings",
        title="Settings",
        text="The resolved recipe, every default written out, is beside.",
        table=Table(columns=("setting", "value"), rows=tuple(rows), text_columns=frozenset({1}), wrap=True),
        open=True,
    )


def _main_settings(facts: RunFacts) -> list[tuple[str, Any]]:
    recipe = facts.recipe
    methods = dict.fromkeys(stage.method for stage in facts.stages if stage.method)
    keys = (
        *("seed", "model.path", "model.max_length", "data.demonstrations", "data.problems", "data.test"),
        *("imitate.epochs", "imitate.optimizer.learning_rate", "explore.samples_per_problem", "explore.temperature"),
        *("explore.top_p", "explore.max_tokens"),
        *(f"{method.name}.{key}" for method in methods for key in method.main_settings),
        *("evaluate.max_tokens", "placement", "sampler.num_replicas"),
        *("trainer.num_workers", "trainer.zero_stage", "trainer.lora", "sync.transport"),
    )
    found = [(key, _at(recipe, key)) for key in keys]
    trained = [stage.name.partition("-")[2] for stage in facts.stages if stage.trains and stage.round]
    return [("rounds", " → ".join(trained) or "none"), *((key, value) for key, value in found if value is not None)]


def _at(recipe: Mapping[str, Any], dotted: str) -> Any:
    node: Any = recipe
    for key in dotted.split("."):
        node = node.get(key) if isinstance(node, Mapping) else None
    return node


def _shown(value: Any) -> str:
    if isinstance(value, list):  # e.g. several files of demonstrations
        return ", ".join(_shown(one) for one in value)
    if isinstance(value, Mapping):
        return " ".join(f"{key}={_shown(one)}" for key, one in value.items() if one not in (None, False))
    return f"{value:g}" if isinstance(value, float) else str(value)


def versions(facts: RunFacts) -> Figure:
    """Versions of the packages."""
    if not facts.versions:
        return missing("versions", "Versions", "The run directory records no versions.")
    return Figure(
        id="versions",
        title="Versions",
        table=Table(columns=("package", "version"), rows=tuple(facts.versions.items()), text_columns=frozenset({1})),
        open=True,
    )
