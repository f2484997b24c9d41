"""The dated table from the study's records."""

import datetime
import math
import platform
import statistics
from pathlib import Path


def cpu_model():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def spread(values, form="{:+.1f}"):
    """One number, or the mean and in brackets the least and the most of several seeds."""
    values = [value for value in values if value is not None]
    if not values:
        return ""
    text = form.format(statistics.mean(values))
    if len(values) > 1:
        text += f" ({form.format(min(values))}..{form.format(max(values))})"
    return text


class Group:
    """Records of one task at one setting, over all seeds."""

    def __init__(self, records):
        self.timings = [r for r in records if r["arm"] == "timing"]
        self.records = [r for r in records if r["arm"] != "timing"]
        self.base = {r["seed"]: r for r in self.records if r["arm"] == "base"}
        self.dense = {r["seed"]: r for r in self.records if r["arm"] == "dense"}

    def arms(self):
        """[(arm, keep, records)], controls first, then by name and falling share."""
        found = {}
        for record in self.records:
            found.setdefault((record["arm"], record["keep"]), []).append(record)
        controls = ["base", "dense", "dense, short windows", "PoSE, short windows", "dense, fewer steps"]
        rank = {arm: number for number, arm in enumerate(controls)}
        order = sorted(found, key=lambda at: (rank.get(at[0], len(rank)), *scope_of(found[at][0]), at[0], -at[1]))
        return [(arm, keep, found[arm, keep]) for arm, keep in order]

    def time(self, record):
        """Processor time of a step against dense runs next to it in time."""
        if "cpu_s" not in record or not self.timings:
            return None
        near = sorted(self.timings, key=lambda timing: abs(timing["when"] - record["when"]))[:2]
        return record["cpu_s"] / statistics.mean(timing["cpu_s"] for timing in near)

    def against_dense(self, record, value):
        dense = self.dense.get(record["seed"])
        return None if dense is None else value(record, dense)

    def gap(self, record):
        """Perplexity above dense, percent."""
        return self.against_dense(record, lambda r, d: (math.exp(r["loss"] - d["loss"]) - 1) * 100)

    def gain_kept(self, record):
        base = self.base.get(record["seed"])
        if base is None or base is record:
            return None
        ppl = [math.exp(r["loss"]) for r in (base, record)]
        return self.against_dense(
            record, lambda r, d: (ppl[0] - ppl[1]) / (ppl[0] - math.exp(d["loss"])) * 100)

    def position_gap(self, record, part):
        dense = self.dense.get(record["seed"])
        if not record.get("by_position") or not (dense and dense.get("by_position")):
            return None
        return self.against_dense(
            record, lambda r, d: (math.exp(r["by_position"][part] - d["by_position"][part]) - 1) * 100)

    def bytes_share(self, record, field):
        if "peak" not in record:
            return None

        def above(peak):
            return peak[field] - (peak["weights"] if field == "total" else 0)
        return self.against_dense(record, lambda r, d: above(r["peak"]) / above(d["peak"]))


def scope_of(record):
    scopes = ["", "stack", "nested", "group", "layer"]
    return (scopes.index(record["tokens"].get("scope", "")),)


def rows_of(group, task):
    columns = ["arm", "kept", "seeds", "perplexity", "gap to dense, %", "gain kept, %", "time", "peak above model",
               "saved bytes"]
    columns += (["exact match, %", "by distance, near to far, %"] if task == "c" else
                ["gap in first / last quarter, %"])
    columns += ["sparse - dense forward, nats", "recall"]
    lines = ["| " + " | ".join(columns) + " |", "| " + " | ".join(["---"] * len(columns)) + " |"]
    for arm, keep, records in group.arms():
        def over(value, form="{:+.1f}"):
            return spread([value(record) for record in records], form)
        cells = [arm, f"{keep:g}" if arm not in ("base", "dense") else "", str(len(records)),
                 over(lambda r: math.exp(r["loss"]), "{:.2f}"),
                 over(group.gap) if arm != "dense" else "0", over(group.gain_kept, "{:.0f}"),
                 over(group.time, "{:.2f}"), over(lambda r: group.bytes_share(r, "total"), "{:.2f}"),
                 over(lambda r: group.bytes_share(r, "saved_activations"), "{:.2f}")]
        if task == "c":
            cells += [over(lambda r: 100 * r["exact"] if "exact" in r else None, "{:.0f}"),
                      quarters(records)]
        else:
            cells += [" / ".join(over(lambda r, p=p: group.position_gap(r, p)) for p in (0, -1))]
        cells = [cell.strip(" /") for cell in cells]
        cells += [over(lambda r: r["sparse_loss"] - r["loss"] if "sparse_loss" in r else None, "{:+.2f}"),
                  over(lambda r: r.get("recall"), "{:.2f}")]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def quarters(records):
    found = [r["exact_by_distance"] for r in records if r.get("exact_by_distance")]
    if not found:
        return ""
    return " ".join(f"{100 * statistics.mean(of_part):.0f}" for of_part in zip(*found))


def probe_lines(group):
    """Loss on the second occurrence of a passage by its distance, mean over seeds."""
    found = [(arm, keep, [r["probe"] for r in records if r.get("probe")]) for arm, keep, records in group.arms()]
    found = [(arm, keep, probes) for arm, keep, probes in found if probes]
    if not found:
        return []
    distances = sorted(map(int, found[0][2][0]))
    lines = ["Loss on the second occurrence of a passage, by distance in tokens:", "",
             "| arm | kept | " + " | ".join(str(d) if d else "not seen before" for d in distances) + " |",
             "| --- | --- | " + " | ".join(["---"] * len(distances)) + " |"]
    for arm, keep, probes in found:
        cells = [f"{statistics.mean(each[str(d)] for each in probes):.2f}" for d in distances]
        lines.append(f"| {arm} | {keep:g} | " + " | ".join(cells) + " |")
    return lines + [""]


TITLES = {"a": "Task a: reading on in a novel that the base has not seen",
          "b": "Task b: the same at a length that the base was not trained for",
          "c": "Task c: facts in pages of a novel, questions at the end"}


def render(records):
    groups = {}
    for record in records:
        at = (record["task"], record["length"], record["steps"], record["batch"], record.get("base", ""))
        groups.setdefault(at, []).append(record)
    commits = sorted({record["commit"] for record in records})
    commands = sorted({record["command"] for record in records})
    lines = [f"# Token sparsity: what it costs in quality, {datetime.date.today().isoformat()}", "",
             f"{cpu_model()}, one thread, commits {', '.join(commits)} (+: with changes). "
             f"{len([r for r in records if r['arm'] != 'timing'])} runs from", ""]
    lines += [f"    {command}" for command in commands] + [""]
    lines += ["What the columns mean, how it is measured and what it does not show: "
              "[bench/quality](../quality/README.md).", ""]
    for (task, length, steps, batch, base), found in sorted(groups.items()):
        books = sorted({record["book"] for record in found if "book" in record})
        group = Group(found)
        lines += [f"## {TITLES[task]}: {length} tokens, {steps} steps of {batch}{base and f', base {base}'}", "",
                  f"Learning rate {found[0]['lr']:g}; text: {', '.join(books)}.", "",
                  *rows_of(group, task), "", *probe_lines(group)]
    return "\n".join(lines)
