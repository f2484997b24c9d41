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
    skip_positions: bool = False  # with positions of the full window
    train: bool = True          # False: the base as it is
    taught: bool = False        # by policy predictor: of one that was trained eight times as long, on more books
    spec: dict = dataclasses.field(default_factory=dict)  # other fields, "memory.policy": "input"


BASE = Arm("base", train=False)
DENSE = Arm("dense")


def fewer_steps(keep):
    return Arm("dense, fewer steps", keep, steps_share=keep)


def short(keep):
    return Arm("dense, short windows", keep, window_share=keep)


def pose(keep):
    return Arm("PoSE, short windows", keep, window_share=keep, skip_positions=True)


def sparse(policy, scope, keep, taught=False, **options):
    """The name tells what differs from the defaults of the scope."""
    score = options.get("table_score")
    name = f"{policy} {score}" if score else "taught predictor" if taught else policy
    name += f", {scope}"
    for key, value in options.items():
        if key != "table_score":
            name += f", {key}" + (f" {str(value).lower()}" if value != {} else "")
    return Arm(name, keep, {"policy": policy, "scope": scope, "keep": [keep], **options}, taught=taught)


def screen(task, steps):
    """Where to look: first the controls and the scopes, then scores, then what can be turned besides."""
    half = 0.5

    def layered(policy, mlp, layers, keep=half, **options):
        return sparse(policy, "layer", keep, mlp=mlp, layers=layers, **options)

    def table(score, keep=half):
        return sparse("table", "stack", keep, table_score=score)

    arms = [BASE, DENSE, sparse("random", "stack", half), short(half), pose(half), fewer_steps(half)]
    # The paper's form (first) and what becomes of it.
    arms += [layered("random", "off", "auto"), layered("random", "shared", "all"),
             layered("norm", "shared", "all"), sparse("norm", "stack", half), sparse("recency", "stack", half)]
    if task == "c":
        arms += [sparse("random", "stack", half, keep_labels=False)]
    arms += [sparse("oracle", "stack", half), layered("oracle", "off", "auto"), table("low_loss"),
             layered("oracle", "shared", "all"), table("attention")]
    # Two chunks of a quarter of the window each, at their true distance: PoSE on a grid, with the text
    # that is there.
    arms += [sparse("random", "stack", half, chunk_blocks=8, sink_blocks=0, local_blocks=0),
             sparse("random", "stack", half, cooldown_steps=steps // 4),
             sparse("random", "stack", 0.8), sparse("random", "stack", 0.3), short(0.3)]
    arms += [sparse("random", "nested", half), layered("random", "shared", "auto"),
             sparse("random", "group", half, mlp="shared", layers="all", group_layers=6),
             layered("norm", "off", "auto"), table("entropy"), table("loss")]
    arms += [sparse("random", "stack", half, warmup_steps=steps // 4),
             sparse("random", "stack", half, anneal_steps=steps // 2),
             layered("random", "off", "auto", kv_all=True), layered("random", "off", "all"),
             layered("oracle", "off", "all"), layered("norm", "shared", "auto")]
    arms += [sparse("predictor", "stack", half), layered("predictor", "off", "auto"),
             layered("predictor", "off", "allocated"), sparse("predictor", "nested", half),
             sparse("predictor", "stack", half, online={}), layered("predictor", "off", "auto", online={}),
             sparse("predictor", "stack", half, taught=True), layered("predictor", "off", "auto", taught=True)]
    arms += [sparse("random", "stack", 0.6), sparse("random", "stack", 0.4), short(0.8), short(0.6), short(0.4)]
    arms += [sparse("random", "group", half, mlp="shared", layers="auto"), sparse("oracle", "nested", half),
             sparse("random", "nested", half, loss_rows="all"),
             layered("random", "shared", "all", loss_rows="through"),
             layered("random", "shared", "all", kv_all=True),
             layered("random", "own", "auto"), layered("norm", "own", "auto"),
             sparse("random", "stack", half, chunk_blocks=4)]
    for keep in (0.8, 0.6, 0.4, 0.3):
        arms += [table("low_loss", keep), layered("norm", "shared", "all", keep),
                 layered("random", "off", "auto", keep)]
    arms += [sparse("random", "stack", half, block=size) for size in (32, 128)]
    return unique(arms)


# Shares in which the arms of the long stage are taken.
LONG = [BASE, DENSE, sparse("random", "stack", 0.5), short(0.5), pose(0.5), fewer_steps(0.5),
        sparse("random", "layer", 0.5, mlp="off", layers="auto"),
        sparse("oracle", "layer", 0.5, mlp="off", layers="auto"),
        sparse("table", "stack", 0.5, table_score="attention"),
        sparse("predictor", "stack", 0.5),
        sparse("predictor", "stack", 0.5, taught=True),
        sparse("oracle", "stack", 0.5),
        sparse("recency", "stack", 0.5),
        sparse("table", "stack", 0.5, table_score="low_loss"),
        sparse("norm", "stack", 0.5)]


def unique(arms):
    found = {}
    for arm in arms:
        found.setdefault((arm.name, arm.keep), arm)
    return list(found.values())
