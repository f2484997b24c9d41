"""What is compared: arms, and which of them a stage runs, the most decisive first."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to train. `tokens` is the spec's message of that name; the others are controls."""
    name: str
    keep: float = 1.0           # share of rows, of steps, or of the window
    tokens: dict = dataclasses.field(default_factory=dict)
    steps_share: float = 1.0    # dense at equal time: fewer steps
    window_share: float = 1.0   # dense at equal tokens: shorter windows, as many of them
    train: bool = True          # False: the base as it is
    spec: dict = dataclasses.field(default_factory=dict)  # other fields, "memory.policy": "input"


BASE = Arm("base", train=False)
DENSE = Arm("dense")


def fewer_steps(keep):
    return Arm("dense, fewer steps", keep, steps_share=keep)


def short(keep):
    return Arm("dense, short windows", keep, window_share=keep)


def sparse(policy, scope, keep, **options):
    """The name tells what differs from the defaults of the scope."""
    score = options.get("table_score")
    name = f"{policy} {score}" if score else policy
    name += f", {scope}"
    for key, value in options.items():
        if key != "table_score":
            name += f", {key} {str(value).lower()}"
    return Arm(name, keep, {"policy": policy, "scope": scope, "keep": [keep], **options})


def curve(make, *arguments, keeps=(0.8, 0.6, 0.4, 0.3), **options):
    return [make(*arguments, keep, **options) for keep in keeps]


def per_layer(policy, keep=0.5):
    """The paper's form and what becomes of it with MLP and layers."""
    return [sparse(policy, "layer", keep, mlp="off", layers="auto"),
            sparse(policy, "layer", keep, mlp="shared", layers="auto"),
            sparse(policy, "layer", keep, mlp="off", layers="all"),
            sparse(policy, "layer", keep, mlp="shared", layers="all")]


def screen(task, steps):
    """One seed at a short length: where to look."""
    half = 0.5
    arms = [BASE, DENSE, sparse("random", "stack", half), short(half), fewer_steps(half)]
    arms += [arm for pair in zip(per_layer("random"), per_layer("oracle")) for arm in pair]
    arms += [sparse("recency", "stack", half), sparse("norm", "stack", half)]
    arms += [sparse("oracle", "stack", half)]
    arms += [sparse("table", "stack", half, table_score=score)
             for score in ("low_loss", "attention", "entropy", "loss")]
    if task == "c":
        arms += [sparse("random", "stack", half, keep_labels=False)]
    arms += per_layer("norm")
    arms += [sparse("random", "stack", half, warmup_steps=steps // 4),
             sparse("random", "stack", half, cooldown_steps=steps // 4),
             sparse("random", "stack", half, warmup_steps=steps // 8, cooldown_steps=steps // 8),
             sparse("random", "stack", half, anneal_steps=steps // 2)]
    # Two chunks of a quarter of the window each, at their true distance: PoSE on a grid.
    arms += [sparse("random", "stack", half, chunk_blocks=8, sink_blocks=0, local_blocks=0),
             sparse("random", "stack", half, chunk_blocks=4)]
    arms += curve(lambda keep: sparse("random", "stack", keep)) + curve(short)
    arms += [sparse("random", "nested", half), sparse("oracle", "nested", half),
             sparse("random", "group", half, mlp="shared", layers="auto"),
             sparse("random", "group", half, mlp="shared", layers="all", group_layers=6),
             sparse("oracle", "group", half, mlp="shared", layers="auto")]
    arms += [sparse("random", "layer", half, mlp="off", layers="auto", kv_all=True),
             sparse("random", "layer", half, mlp="shared", layers="all", kv_all=True)]
    arms += [sparse("random", "layer", half, mlp="shared", layers="all", loss_rows="through"),
             sparse("random", "nested", half, loss_rows="all"),
             sparse("random", "layer", half, mlp="own", layers="auto"),
             sparse("norm", "layer", half, mlp="own", layers="auto")]
    arms += [sparse("predictor", "layer", half, mlp="off", layers="auto"),
             sparse("predictor", "layer", half, mlp="shared", layers="auto"),
             sparse("predictor", "nested", half)]
    arms += curve(lambda keep: sparse("norm", "layer", keep, mlp="shared", layers="all"))
    arms += curve(lambda keep: sparse("random", "layer", keep, mlp="off", layers="auto"))
    arms += curve(lambda keep: sparse("table", "stack", keep, table_score="low_loss"))
    arms += [sparse("random", "stack", half, block=size) for size in (32, 128)]
    return unique(arms)


# Shares in which the arms of the long stage are taken.
LONG = [BASE, DENSE, sparse("random", "stack", 0.5), short(0.5), fewer_steps(0.5),
        sparse("random", "layer", 0.5, mlp="off", layers="auto"),
        sparse("oracle", "layer", 0.5, mlp="off", layers="auto"),
        sparse("table", "stack", 0.5, table_score="low_loss"),
        sparse("norm", "stack", 0.5)]


def unique(arms):
    found = {}
    for arm in arms:
        found.setdefault((arm.name, arm.keep), arm)
    return list(found.values())
