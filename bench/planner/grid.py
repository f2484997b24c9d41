"""The runs of the memory grid: what each trains, as a run spec and as the planner is asked. Standard library
only."""

import json
import random

EOS, FIRST_WORD, VOCABULARY, LAYERS = 2, 3, 4096, 4
BLOCK = 64  # rows, the default of `tokens.block`

COMMON = {"hidden_size": 256, "num_hidden_layers": LAYERS, "num_attention_heads": 8, "vocab_size": VOCABULARY,
          "tie_word_embeddings": False}
LLAMA = {**COMMON, "architectures": ["LlamaForCausalLM"], "model_type": "llama", "head_dim": 32,
         "intermediate_size": 704, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "hidden_act": "silu"}
SHAPES = {
    "llama-gqa": {**LLAMA, "num_key_value_heads": 2},
    "llama-mha": {**LLAMA, "num_key_value_heads": 8},
    "qwen3": {**LLAMA, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "num_key_value_heads": 4,
              "head_dim": 48, "tie_word_embeddings": True},
    "opt": {**COMMON, "architectures": ["OPTForCausalLM"], "model_type": "opt", "ffn_dim": 1024,
            "word_embed_proj_dim": 256, "do_layer_norm_before": True, "activation_function": "relu",
            "tie_word_embeddings": True},
}
# The head is small, so that layers have the peak; one head of keys.
SHAPES["llama-wide"] = {**LLAMA, "num_key_value_heads": 1, "intermediate_size": 2816, "vocab_size": 512}
SHAPES["opt-post"] = {**SHAPES["opt"], "do_layer_norm_before": False, "word_embed_proj_dim": 128}
ATTENTION = {"llama": ["q_proj", "k_proj", "v_proj", "o_proj"], "qwen3": ["q_proj", "k_proj", "v_proj", "o_proj"],
             "opt": ["q_proj", "k_proj", "v_proj", "out_proj"]}


def case(shape, length, policy="attn_out", *, tuner="attention", keep=1.0, scope=None, mlp="shared",
         documents=1, evaluates=False, checkpoints=False, tile=0, segment=0, layers=None, dtype="float32",
         ranks=None, threads=1, rank=8, dropout=0.0, by="random", kv_all=False, learns=None, online=False):
    """One run: `documents` equal ones packed into sequences of `length` rows, or one. `layers`: policies by
    layer in place of `policy`. `ranks`: RunSpec.parallel of two ranks. `by`: RunSpec.tokens.policy, a table's with
    its score behind a dash. `learns`: RunSpec.predictor in place of a tuner, on two sequences a step; it is measured
    in any case. `online`: a new predictor, which learns on the way."""
    parts = [shape, str(length), policy, tuner] if learns is None else [shape, str(length), "predictor"]
    parts += [f"{field}-{value}" for field, value in (learns or {}).items()]
    parts += [f"keep{keep}-{scope}" + ("" if mlp == "shared" else f"-mlp_{mlp}")] if scope else []
    parts += [by] if by != "random" else []
    parts += ["online"] if online else []
    parts += ["kv_all"] if kv_all else []
    parts += [f"packed{documents}"] if documents > 1 else []
    parts += ["eval"] if evaluates else []
    parts += ["checkpoint"] if checkpoints else []
    parts += [f"tile{tile}"] if tile else []
    parts += [f"segment{segment}"] if segment else []
    parts += ["by-layer"] if layers else []
    parts += ["-".join(f"{k}{v}" for k, v in ranks.items())] if ranks else []
    parts += [f"{threads}-threads"] if threads > 1 else []
    parts += [f"rank{rank}"] if rank != 8 else []
    parts += [f"dropout{dropout}"] if dropout else []
    parts += [dtype] if dtype != "float32" else []
    return {"name": "/".join(parts), "shape": shape, "length": length, "policy": policy, "tuner": tuner,
            "keep": keep, "scope": scope, "mlp": mlp, "documents": documents, "evaluates": evaluates,
            "checkpoints": checkpoints, "tile": tile, "segment": segment, "layers": layers, "dtype": dtype,
            "ranks": ranks, "threads": threads, "rank": rank, "dropout": dropout, "by": by, "kv_all": kv_all,
            "learns": learns, "online": online}


POLICIES = ["all", "mlp", "attn_out", "input"]
MIXED = ["input", "attn_out+offload", "mlp", "all"]


def grid():
    """Every axis of the planner's memory: family, length, policy, offload, kept rows and scope, tuner, packing,
    evaluation, checkpoint, tiles and segments."""
    cases = [case(shape, 1024, policy) for shape in SHAPES for policy in POLICIES]
    cases += [case(shape, 2048, policy) for shape in ("llama-gqa", "opt") for policy in POLICIES]
    cases += [case(shape, length) for shape in SHAPES for length in (512, 4096)]
    cases += [case("llama-gqa", 8192), case("llama-gqa", 8192, "input", keep=0.5, scope="stack"),
              case("opt", 8192, "input", tuner="attention")]
    cases += [case(shape, 1024, policy + "+offload") for shape in ("llama-gqa", "opt")
              for policy in ("all", "attn_out")]
    cases += [case(shape, 2048, policy, keep=keep, scope=scope) for shape in ("llama-gqa", "qwen3")
              for policy in ("attn_out", "input") for keep in (0.5, 0.3) for scope in ("layer", "stack")]
    cases += [case("opt", 2048, keep=keep, scope=scope) for keep in (0.5, 0.3) for scope in ("layer", "stack")]
    cases += [case("llama-gqa", 2048, "mlp", keep=0.5, scope="layer", mlp="off"),
              case("llama-mha", 4096, "attn_out", keep=0.3, scope="stack")]
    cases += [case(shape, 1024, policy, tuner="full") for shape in SHAPES for policy in ("attn_out", "input")]
    cases += [case("llama-gqa", 2048, "mlp", tuner="full", keep=0.5, scope="stack"),
              case("llama-gqa", 2048, "all", tuner="full")]
    cases += [case(shape, 1024, policy, tuner="all-linear") for shape in ("llama-gqa", "opt", "qwen3")
              for policy in ("all", "attn_out")]
    cases += [case(shape, 2048, policy, documents=4) for shape in ("llama-gqa", "opt")
              for policy in ("attn_out", "input")]
    cases += [case("llama-gqa", 4096, "attn_out", documents=4, keep=0.5, scope=scope)
              for scope in ("layer", "stack")]
    cases += [case("llama-gqa", 1024, evaluates=True), case("opt", 2048, "input", evaluates=True),
              case("llama-gqa", 2048, keep=0.3, scope="stack", evaluates=True)]
    cases += [case("llama-gqa", 512, tuner="full", checkpoints=True), case("llama-gqa", 1024, checkpoints=True)]
    cases += [case("llama-gqa", 2048, tile=256, segment=128), case("opt", 2048, tile=2048, segment=2048),
              case("llama-gqa", 1024, layers=MIXED), case("llama-gqa", 512, dtype="bfloat16")]
    cases += [case("llama-wide", 2048, "all", tuner="all-linear"),
              case("llama-wide", 2048, "mlp", keep=0.5, scope="layer", mlp="off"),
              case("llama-wide", 1024, evaluates=True), case("llama-wide", 2048, keep=0.5, scope="nested")]
    cases += [case(shape, 1024, ranks={"tensor": 2}) for shape in ("llama-gqa", "llama-wide", "opt")]
    rows = {"tensor": 2, "sequence": True}
    cases += [case(shape, 1024, policy, ranks=rows) for shape in ("llama-gqa", "llama-wide", "opt")
              for policy in ("attn_out", "input")]
    cases += [case("llama-wide", 2048, "mlp", keep=0.5, scope=scope, ranks=rows)
              for scope in ("layer", "nested", "stack")]
    cases += [case("llama-wide", 2048, "all", tuner="all-linear", ranks=rows),
              case("llama-wide", 1024, tuner="full", ranks=rows), case("llama-gqa", 1024, evaluates=True, ranks=rows)]
    cases += [case("llama-gqa", 1024, ranks={"data": 2})]
    cases += [case(shape, 2048, policy, dtype="bfloat16") for shape in ("llama-gqa", "llama-wide", "qwen3", "opt")
              for policy in ("all", "input")]
    cases += [case("llama-gqa", 2048, tuner="full", dtype="bfloat16"),
              case("llama-gqa", 4096, keep=0.5, scope="stack", dtype="bfloat16"),
              case("opt", 1024, tuner="all-linear", dtype="bfloat16")]
    # Where the update has the peak, and where evaluation has it.
    cases += [case("llama-gqa", 128, tuner="full"), case("llama-wide", 2048, keep=0.3, scope="stack", evaluates=True)]
    cases += [case(shape, 1024, tuner=tuner, dropout=0.1) for shape in ("llama-wide", "opt")
              for tuner in ("attention", "all-linear")]
    cases += [case("llama-wide", 1024, policy, tuner="all-linear", rank=128) for policy in ("all", "input")]
    cases += [case("llama-wide", 1024, threads=2), case("opt", 2048, "input", threads=2)]
    cases += [case("llama-gqa", 512, tuner="full", ranks={"data": 2, "shard": shard})
              for shard in ("none", "optimizer", "gradients", "parameters")]
    # What rows are chosen by, where layers leave room for it to have the peak, and where they do not.
    cases += [case(shape, 2048, "input", keep=0.3, scope="stack", by=by) for shape in ("llama-wide", "opt")
              for by in ("norm", "predictor", "table-attention", "table-loss", "table-entropy")]
    cases += [case("llama-wide", 2048, "mlp", keep=0.5, scope="layer", mlp=mlp, by="predictor")
              for mlp in ("shared", "own")]
    cases += [case(shape, 2048, "input", keep=0.3, scope="stack", by="oracle") for shape in ("llama-wide", "opt")]
    cases += [case(shape, 2048, "input", keep=0.3, scope="layer", by="oracle") for shape in ("llama-mha", "qwen3")]
    cases += [case("llama-gqa", 2048, keep=0.3, scope="nested", by="oracle"),
              case("llama-mha", 4096, "input", documents=4, keep=0.3, scope="group", mlp="off", by="oracle"),
              case("llama-wide", 2048, "input", keep=0.3, scope="layer", mlp="own", by="oracle"),
              case("llama-wide", 2048, "input", keep=0.3, scope="stack", by="oracle", dtype="bfloat16")]
    cases += [case("llama-gqa", 2048, keep=0.5, scope="nested", by="predictor"),
              case("llama-gqa", 4096, documents=4, keep=0.5, scope="group", mlp="off"),
              case("llama-wide", 2048, "input", keep=0.3, scope="stack", by="predictor", dtype="bfloat16")]
    cases += [case(shape, 2048, policy, keep=0.5, scope="layer", kv_all=True)
              for shape in ("llama-gqa", "llama-mha", "qwen3", "opt") for policy in ("attn_out", "input")]
    cases += [case("llama-mha", 4096, documents=4, keep=0.3, scope="group", mlp="off", kv_all=True),
              case("llama-mha", 2048, "all+offload", keep=0.3, scope="layer", mlp="own", kv_all=True),
              case("llama-mha", 2048, tuner="full", keep=0.3, scope="layer", kv_all=True, dtype="bfloat16"),
              case("llama-wide", 2048, "mlp", keep=0.3, scope="layer", kv_all=True, ranks=rows)]
    cases += [case(shape, 2048, learns={}) for shape in SHAPES]
    cases += [case("llama-gqa", 512, learns={}), case("llama-gqa", 4096, documents=4, learns={}),
              case("llama-wide", 2048, learns={"mlp": False}), case("opt", 2048, learns={"score_rope": True}),
              case("llama-mha", 2048, learns={"score_rope": True, "nested_from": [2]}),
              case("llama-gqa", 2048, learns={"kind": "flat_slice"}), case("opt", 1024, learns={"kind": "flat_slice"}),
              case("llama-gqa", 2048, learns={"allocate": 0.5}), case("llama-wide", 4096, learns={"allocate": 0.5}),
              case("llama-gqa", 2048, threads=2, learns={}), case("opt", 1024, learns={}, dtype="bfloat16"),
              case("llama-wide", 2048, learns={}, dtype="bfloat16")]
    learning = {"by": "predictor", "online": True, "keep": 0.3}
    cases += [case(shape, 2048, "input", scope=scope, **learning) for shape in ("llama-wide", "opt")
              for scope in ("stack", "layer")]
    cases += [case("llama-gqa", 2048, scope="nested", **learning),
              case("qwen3", 2048, "all", scope="group", mlp="off", **learning),
              case("llama-mha", 4096, "input", documents=4, scope="stack", **learning),
              case("llama-gqa", 1024, "input", scope="stack", checkpoints=True, evaluates=True, **learning),
              case("opt-post", 1024, "input", scope="nested", threads=2, **learning),
              case("llama-wide", 2048, "input", scope="stack", dtype="bfloat16", **learning)]
    return cases


def random_case(rng, number):
    """A run of a random shape, which joins SHAPES, and random everything else: runs that no term of the model
    was read from."""
    family, kv_heads, width = rng.choice(["llama", "qwen3", "opt"]), rng.choice([1, 2, 4]), rng.choice([16, 32, 40, 64])
    heads = kv_heads * rng.choice([1, 2, 3])
    hidden = rng.choice([96, 160, 320]) if family == "qwen3" else heads * width
    shape = {"hidden_size": hidden, "num_attention_heads": heads, "vocab_size": rng.choice([600, 3000, 9000]),
             "tie_word_embeddings": rng.random() < 0.5}
    inner = rng.choice([200, 500, 1500])
    if family == "opt":
        shape = {**SHAPES["opt"], **shape, "ffn_dim": inner, "word_embed_proj_dim": hidden}
    else:
        shape = {**SHAPES["qwen3" if family == "qwen3" else "llama-gqa"], **shape, "head_dim": width,
                 "num_key_value_heads": kv_heads, "intermediate_size": inner}
    name = f"random{number}"
    SHAPES[name] = shape
    documents = rng.choice([1, 1, 3])
    scope = rng.choice([None, None, "layer", "stack", "nested"])
    return case(name, rng.choice([300, 777, 1024, 1900, 3000]) // documents * documents,
                rng.choice(POLICIES) + rng.choice(["", "", "+offload"]),
                tuner=rng.choice(["attention", "all-linear", "full"]),
                keep=rng.choice([0.3, 0.5, 0.77]) if scope else 1.0, scope=scope,
                mlp=rng.choice(["shared", "off"]) if scope == "layer" else "shared", documents=documents,
                evaluates=rng.random() < 0.3, checkpoints=rng.random() < 0.2, tile=rng.choice([0, 0, 200]),
                segment=rng.choice([0, 0, 100]), dtype=rng.choice(["float32", "float32", "bfloat16"]),
                rank=rng.choice([4, 8, 32]), dropout=rng.choice([0, 0, 0.1]),
                layers=[rng.choice(POLICIES) for _ in range(LAYERS)] if rng.random() < 0.3 else None)


def write_model(directory, shape, length):
    """config.json and a tokenizer with one word a token; the trainer draws the weights."""
    directory.mkdir(parents=True)
    config = {**SHAPES[shape], "max_position_embeddings": length, "bos_token_id": 1, "eos_token_id": EOS,
              "torch_dtype": "float32"}
    (directory / "config.json").write_text(json.dumps(config, indent=1))
    special = ["<unk>", "<s>", "</s>"]
    words = {token: i for i, token in enumerate(special)}
    words.update({f"w{i}": i for i in range(FIRST_WORD, config["vocab_size"])})
    (directory / "tokenizer.json").write_text(json.dumps({
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
                          "normalized": False, "special": True} for i, token in enumerate(special)],
        "normalizer": None, "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None,
        "decoder": None, "model": {"type": "WordLevel", "vocab": words, "unk_token": "<unk>"}}))
    (directory / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
        "unk_token": "<unk>"}))


def write_rows(path, shape, length, count):
    """Rows that are `length` tokens each once the trainer has put the EOS behind the text."""
    rng = random.Random(length)
    with path.open("w") as file:
        for _ in range(count):
            words = [f"w{rng.randrange(FIRST_WORD, SHAPES[shape]['vocab_size'])}" for _ in range(length - 1)]
            file.write(json.dumps({"text": " ".join(words)}) + "\n")


def targets(one):
    if one["tuner"] == "all-linear":
        return ["all-linear"]
    return ATTENTION[SHAPES[one["shape"]]["model_type"]]


def run_spec(one, model, rows, held_out, scratch):
    if one["learns"] is not None:
        return learning_spec(one, model, rows, held_out, scratch)
    tuner = {"full": {}} if one["tuner"] == "full" else {
        "lora": {"rank": one["rank"], "alpha": 16, "dropout": one["dropout"], "targets": targets(one)}}
    memory = {"policy": one["policy"]}
    if one["layers"]:
        memory["layers"] = [{"first": i, "last": i, "policy": p} for i, p in enumerate(one["layers"])]
    if one["tile"]:
        memory["mlp_tile_rows"] = one["tile"]
    if one["segment"]:
        memory["loss_segment_rows"] = one["segment"]
    spec = {
        "model": {"path": str(model), "random_init": {"seed": 1}, "compute_type": one["dtype"]},
        "data": {"train": [{"path": str(rows), "format": "text"}], "max_length": one["length"],
                 "packing": one["documents"] > 1, "cache_dir": str(scratch / "cache")},
        "tuner": tuner,
        "train": {"steps": 2, "batch_sequences": 1, "schedule": "constant", "seed": 1},
        "memory": memory, "output": {"dir": str(scratch / "out")}, "device": "cpu",
        **({"parallel": one["ranks"]} if one["ranks"] else {})}
    if one["scope"]:
        by, _, score = one["by"].partition("-")
        spec["tokens"] = {"policy": by, "keep": [one["keep"]], "scope": one["scope"], "layers": "all"}
        if one["scope"] in ("layer", "group"):
            spec["tokens"]["mlp"] = one["mlp"]
        if one["kv_all"]:
            spec["tokens"]["kv_all"] = True
        if score:
            spec["tokens"]["table_score"] = score
        if one["online"]:
            # The second step's lesson is beside all that the first one reserved.
            spec["tokens"] |= {"online": {}, "warmup_steps": 0, "anneal_steps": 0, "recall_every_steps": 1}
        elif by == "predictor":
            spec["tokens"]["predictor"] = str(scratch / "trained" / "predictor")
    if one["evaluates"]:
        spec["data"]["eval"] = [{"path": str(held_out), "format": "text"}]
        spec["eval"] = {"max_sequences": 2}
    if one["ranks"] and "data" in one["ranks"]:
        spec["train"]["batch_sequences"] = 2
    if one["checkpoints"]:
        spec["checkpoint"] = {"every_steps": 1, "keep_last": 1}
    return spec


def learning_spec(one, model, rows, held_out, scratch):
    """A run that trains a predictor."""
    return {
        "model": {"path": str(model), "random_init": {"seed": 1}, "compute_type": one["dtype"]},
        "data": {"train": [{"path": str(rows), "format": "text"}], "eval": [{"path": str(held_out), "format": "text"}],
                 "max_length": one["length"], "packing": one["documents"] > 1, "cache_dir": str(scratch / "cache")},
        "predictor": one["learns"], "train": {"steps": 1, "batch_sequences": 2, "seed": 1,
                                              "micro_batch_tokens": one["length"]},
        "eval": {"max_sequences": 2}, "output": {"dir": str(scratch / "out")}, "device": "cpu"}


def predictor_spec(spec, scratch):
    """The run that trains what `spec` (run_spec) names."""
    return {"model": spec["model"], "data": spec["data"], "predictor": {}, "train": {"steps": 1},
            "output": {"dir": str(scratch / "trained")}, "device": "cpu"}


def chooser(one):
    """A predictor's networks are of the default widths: 128, 128, 64, for q and for k."""
    by, _, score = one["by"].partition("-")
    if by == "oracle":
        # Groups are of two layers.
        layers = {"layer": 1, "group": 2}.get(one["scope"], LAYERS)
        return {"by": by, "layers": layers, "mlp": one["mlp"] == "own"}
    if by != "predictor":
        return {"by": by, **({"score": score} if score else {})}
    # Of two that choose for all layers above, one learns to guess the layer's own scores.
    heads = {"stack": 1, "nested": 2 if one["online"] else 1}.get(one["scope"], LAYERS)
    hidden, element = SHAPES[one["shape"]]["hidden_size"], 4 if one["dtype"] == "float32" else 2
    held = heads * 2 * (hidden * 128 * element + (256 * 128 + 128 * 64) * 4)
    if one["mlp"] == "own":
        held += LAYERS * (hidden * 64 * element + 65 * 4)
    found = {"by": by, "first_width": 256, "held_bytes": held}
    if one["online"]:
        joint = one["scope"] in ("stack", "nested")
        found["lessons"] = {"heads": heads, "joint": int(joint), "layers": LAYERS if joint else 1}
    return found


def question(one):
    """What lemo_plan_memory is asked."""
    row = one["length"] // one["documents"]
    if one["learns"] is not None:
        # Documents that are held out are measured one by one, as many as a micro-batch holds.
        together = min(2, one["documents"])
        return {"config": SHAPES[one["shape"]] | {"max_position_embeddings": one["length"]},
                "compute_type": one["dtype"], "learns": one["learns"], "threads": one["threads"], "rows": one["length"],
                "longest": row, "measured": row * together}

    def ranks_of(part, otherwise):
        return (one["ranks"] or {}).get(part, otherwise)

    ranks = {} if one["tuner"] == "full" else {"attention": one["rank"]}
    if one["tuner"] == "all-linear":
        ranks["mlp"] = one["rank"]
    return {
        "dropout": one["dropout"] > 0, "config": SHAPES[one["shape"]] | {"max_position_embeddings": one["length"]},
        "compute_type": one["dtype"], "full": one["tuner"] == "full", "ranks": ranks,
        "policies": one["layers"] or [one["policy"]] * LAYERS,
        "documents": [row] * one["documents"],
        "keep": one["keep"], "scope": one["scope"] or "dense", "mlp": one["mlp"], "kv_all": one["kv_all"],
        "block": BLOCK,
        "chooser": chooser(one) if one["scope"] else {"by": "random"},
        "mlp_tile_rows": one["tile"], "loss_segment_rows": one["segment"],
        "evaluation_documents": [row] * min(2, one["documents"]) if one["evaluates"] else [],
        "checkpoints": one["checkpoints"],
        "tensor_ranks": ranks_of("tensor", 1), "sequence": ranks_of("sequence", False),
        "data_ranks": ranks_of("data", 1),
        "shard": ranks_of("shard", "none"), "threads": one["threads"]}
