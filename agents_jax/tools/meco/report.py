"""report.md, report.json and the plots by layer."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agents_jax.tools.meco.config import MecoConfig
from agents_jax.tools.meco.plots import plot_layers
from agents_jax.tools.meco.study import SetStudy

_PLOTTED = ("meco, any layer", "meco, pre_token", "probe: logistic", "probe: mean difference",
            "probe: pca", "random direction")  # fmt: skip


def write_report(
    folder: pathlib.Path, report: Mapping[str, Any], studies: Mapping[str, SetStudy],
    layers: Sequence[int], config: MecoConfig,
) -> None:  # fmt: skip
    """Writes report.json, report.md, layers_auroc.png and layers_accuracy.png."""
    folder.mkdir(parents=True, exist_ok=True)
    by_layer = {
        name: {
            method: {key: [_json(v) for v in values] for key, values in found.items()}
            for method, found in study.by_layer.items()
        }
        for name, study in studies.items()
    }
    plain = {**report, "layers": list(layers), "by_layer": by_layer}
    (folder / "report.json").write_text(json.dumps(plain, indent=1), encoding="utf-8")
    (folder / "report.md").write_text(_markdown(report, config), encoding="utf-8")
    if studies and len(layers) > 1:
        marked = [layer for layer in config.primary_layers if layer in layers] or list(layers)
        for key in ("auroc", "accuracy"):
            curves = {
                name: {m: study.by_layer[m][key] for m in _PLOTTED if m in study.by_layer}
                for name, study in studies.items()
            }
            levels = {name: _levels(study, key) for name, study in studies.items()}
            plot_layers(
                folder / f"layers_{key}.png", curves, layers, value=key.upper()
                if key == "auroc" else key, levels=levels, marked=marked,
            )  # fmt: skip


def _levels(study: SetStudy, key: str) -> dict[str, float]:
    best = study.report["tests"]["best_control"]
    return {
        "P(Yes)": getattr(study.results["p_yes"], key),
        "best text control": getattr(study.results[best], key),
    }


def _json(value: Any) -> Any:
    value = float(value)
    return value if math.isfinite(value) else None


def _markdown(report: Mapping[str, Any], config: MecoConfig) -> str:
    lines = [
        f"# When a tool is needed: {report['model']}",
        "",
        f"{report.get('seconds', 0):.0f} s. Folds {config.folds}, seeds {list(config.seeds)}; "
        "every example is tested once per seed. Accuracy and AUROC are of the first seed with "
        "95 % bootstrap intervals over independent groups; 'seeds' gives the accuracy of each. "
        "A call is due where the label says so; the model's own answer is the likelier of Yes and "
        "No. Rows 'text:' see no model.",
        "",
    ]
    for name, found in report["sets"].items():
        lines += _set_lines(name, found)
    lines += _carried_lines(report.get("carried") or [])
    lines += _agent_lines(report.get("agent"))
    lines += _overhead_lines(report.get("overhead"))
    lines += _contrast_lines(report.get("contrast"))
    if report.get("skipped"):
        lines += ["## Skipped", ""]
        lines += [f"* {name}: {why}" for name, why in report["skipped"].items()]
    return "\n".join(lines).rstrip() + "\n"


def _set_lines(name: str, found: Mapping[str, Any]) -> list[str]:
    lines = [
        f"## {name}",
        "",
        f"{found['about']}. {found['examples']} examples in {found['independent_groups']} groups, "
        f"{found['needed']} need a call; the model says Yes to {found['says_yes']:.1%}.",
    ]
    if "own_answers" in found:
        balance = ", ".join(
            f"{kind} {v['right']} of {v['asked']}" for kind, v in found["own_answers"].items()
        )
        lines.append(f"Right own answers by kind: {balance}.")
    if "verbalised_unread" in found:
        lines.append(f"Stated confidence: {found['verbalised_unread']} replies held no number.")
    lines += [
        "",
        "| method | accuracy | AUROC | Brier | ECE | seeds | layers | right flips |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for method, row in found["methods"].items():
        chosen = [c["layer"] for c in row["details"]["chosen"] if "layer" in c]
        shown = f"{min(chosen)} to {max(chosen)}" if chosen else ""
        flips = row["flips"]
        turned = ""
        if flips:
            turned = (
                f"Y→N {flips['yes_to_no_right']}/{flips['yes_to_no']}, "
                f"N→Y {flips['no_to_yes_right']}/{flips['no_to_yes']}"
            )
        seeds = ", ".join(f"{a:.3f}" for a in row["details"]["accuracy_by_seed"])
        lines.append(
            f"| {method} | {_number(row['accuracy'])} {_interval(row['accuracy_interval'])} | "
            f"{_number(row['auroc'])} {_interval(row['auroc_interval'])} | "
            f"{_number(row['brier'])} | {_number(row['ece'])} | {seeds} | {shown} | {turned} |"
        )
    tests = dict(found["tests"])
    lines += ["", f"Best text control in validation: {tests.pop('best_control')}. McNemar:"]
    for test, value in tests.items():
        lines.append(
            f"* {test}: only the first right {value['only_one']}, only the second "
            f"{value['only_other']}, p = {value['p']:.2g}"
        )
    return [*lines, ""]


def _carried_lines(carried: Sequence[Mapping[str, Any]]) -> list[str]:
    if not carried:
        return []
    lines = ["## Thresholds carried to another set", ""]
    for entry in carried:
        lines += [
            f"{entry['from']} → {entry['to']}: fitted on {entry['fitted_on']}, "
            f"tested on {entry['examples']} ({entry['needed']} need a call).",
            "",
            "| method | accuracy | AUROC |",
            "|---|---|---|",
        ]
        lines += [
            f"| {name} | {_number(v['accuracy'])} {_interval(v['accuracy_interval'])} | "
            f"{_number(v['auroc'])} |"
            for name, v in entry["methods"].items()
        ]
        lines.append("")
    return lines


def _agent_lines(agent: Mapping[str, Any] | None) -> list[str]:
    if not agent:
        return []
    lines = [
        "## In use",
        "",
        f"{agent['examples']} items of {agent['data_set']}; calls forced to the function's schema, "
        f"{agent['unreadable_calls']} of them cut off or unreadable. Tokens: of deciding and "
        "calling, not of answers without a call.",
        "",
        "| policy | right calls | missed | needless calls | all right | tokens a query | p |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in agent["rows"]:
        lines.append(
            f"| {row['policy']} | {row['right_calls']}/{row['needed']} "
            f"{_interval(row['right_calls_interval'])} | {row['missed']} | "
            f"{row['needless']}/{row['not_needed']} {_interval(row['needless_interval'])} | "
            f"{row['success']:.3f} | {row['tokens_per_query']:.0f} | "
            f"{row['p_against_always']:.2g} |"
        )
    return [*lines, ""]


def _overhead_lines(overhead: Mapping[str, Any] | None) -> list[str]:
    if not overhead:
        return []
    return [
        "## Overhead per query",
        "",
        f"Medians over {overhead['queries']} queries of {overhead['data_set']}, one at a time: "
        f"first token {overhead['first_token_ms']:.1f} ms (prompt cached: "
        f"{overhead['first_token_cached_ms']:.1f} ms), hidden state at the answer "
        f"{overhead['hidden_state_ms']:.1f} ms (right after the first token: "
        f"{overhead['hidden_state_cached_ms']:.1f} ms), probe {overhead['probe_ms']:.4f} ms.",
        "",
    ]


def _contrast_lines(contrast: Mapping[str, Any] | None) -> list[str]:
    if not contrast:
        return []
    lines = ["## Contrast", "", f"{contrast['queries']} queries, in no other set."]
    for name, values in contrast["held_out_pair_accuracy"].items():
        shown = np.asarray(values)
        at = dict(zip(contrast["layers"], shown, strict=True))
        named = ", ".join(f"{layer}: {at[layer]:.2f}" for layer in (-5, -4, -3, -2) if layer in at)
        lines.append(
            f"* {name}: T+ above T- on held-out pairs in {shown.min():.2f} to {shown.max():.2f} of "
            f"cases over layers ({named}). This tells instructions apart, not need."
        )
    return [*lines, ""]


def _number(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.3f}"


def _interval(values: Sequence[float | None]) -> str:
    if any(v is None or not math.isfinite(v) for v in values):
        return ""
    return f"[{values[0]:.3f}, {values[1]:.3f}]"
