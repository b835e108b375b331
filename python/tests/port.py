"""The reference by function as a port of every algorithm."""

import numpy

import duogpt

LOOP = {"duogpt": duogpt.prune, "sparsegpt": duogpt.sparsegpt, "gptq": duogpt.gptq, "gptaq": duogpt.gptaq}


def settings(case):
    return {k: v for k, v in case.settings.items() if k not in ("mask_rule", "activation_sparsity")}


def statistics(case):
    inputs = case.inputs
    if "activations" in inputs:
        return duogpt.statistics(inputs["activations"], calls=inputs["calls"])
    both = inputs["sparse_activations"], inputs["dense_activations"]
    return duogpt.statistics(*both, calls=inputs["calls"])


def port(case):
    inputs = case.inputs
    if case.algorithm in LOOP:
        run = LOOP[case.algorithm]
        try:
            return run(inputs["weight"], statistics(case), stages=True, **settings(case)).stages
        except duogpt.NotPositiveDefiniteError:
            return {"output.error": [1]}
    if case.algorithm == "activation":
        return duogpt.prune_activations(inputs["activations"], case.settings["activation_sparsity"])
    if case.algorithm == "teal":
        asked = settings(case)
        prefill = asked.pop("apply_prefill")
        found = duogpt.thresholds(inputs["activations"], case.settings["activation_sparsity"], **asked)
        pruned = [
            duogpt.prune_activations(inputs["probe"], threshold=t, apply_prefill=prefill) for t in found
        ]
        return {"trace.thresholds": found, "output.activations": numpy.stack(pruned)}
    norms = {}
    if case.algorithm == "wanda":
        norms["stats.scaler_row"] = duogpt.channel_norms(inputs["activations"], calls=inputs["calls"])
        pruned = duogpt.wanda(inputs["weight"], norms["stats.scaler_row"], **settings(case))
    else:
        pruned = duogpt.magnitude(inputs["weight"], **settings(case))
    return {
        **norms,
        "trace.metric": pruned.score,
        "trace.mask": pruned.mask,
        "output.weight": pruned.weight,
    }
