"""Faults of `jax_tkg.models` but for the head, each with the tests that must notice it."""

from __future__ import annotations

from scripts.mutations.mutation import Mutation

MODELS: tuple[Mutation, ...] = (
    Mutation(
        "temperature multiplies",
        "models/sampling.py",
        "return relative(logits) / min(",
        "return relative(logits) * min(",
        ("models/test_sampling.py",),
    ),
    Mutation(
        "nucleus leaves out the token that reaches top_p",
        "models/sampling.py",
        "inside = before < top_p",
        "inside = before + probabilities < top_p",
        ("models/test_sampling.py",),
    ),
    Mutation(
        "GGUF rows stay in adjacent pairs",
        "models/layer_tensors.py",
        "rotary.reshape(-1, 2).T if interleaved else",
        "rotary.reshape(2, -1) if interleaved else",
        ("models/test_gguf.py",),
    ),
    Mutation(
        "padded gains are not corrected",
        "models/packing.py",
        "gain = np.sqrt(gamma.shape[0] / hidden)",
        "gain = 1.0",
        (
            "models/test_gguf.py",
            "models/test_forward.py",
        ),
    ),
    Mutation(
        "norms of heads notice the padding",
        "models/packing.py",
        "float(np.sqrt(config.hidden_size / hidden)) if config.head_norms",
        "1.0 if config.head_norms",
        ("models/families/test_families.py",),
    ),
    Mutation(
        "windows are one token short",
        "models/forward.py",
        "Kind(ring, frequencies, kind.window, concentrations)",
        "Kind(ring, frequencies, kind.window - 1, concentrations)",
        ("models/families/test_families.py",),
    ),
    Mutation(
        "heads are untied by default",
        "models/safetensors.py",
        "if tied or tied is None:",
        "if tied:",
        ("models/test_safetensors_files.py",),
    ),
    Mutation(
        "two descriptions of RoPE may differ",
        "models/json_rope.py",
        "if len(described) == 2 and described[0] != described[1]:",
        "if False:",
        ("models/test_json_config.py",),
    ),
    Mutation(
        "GGUF drops linear scaling beside factors",
        "models/families/gguf_layers.py",
        "[factor * divisor for divisor in stored]",
        "stored",
        ("models/test_gguf_config.py",),
    ),
    Mutation(
        "a finished sequence grows",
        "models/decode.py",
        "lengths = state.lengths + counts",
        "lengths = state.lengths + 1",
        ("models/test_decode.py",),
    ),
    Mutation(
        "begin token is doubled",
        "models/tokenizer.py",
        "ids if ids[: len(begin)] == begin else begin + ids",
        "begin + ids",
        ("models/test_tokenizer.py",),
    ),
    Mutation(
        "every space at a step's start is dropped",
        "models/tokenizer.py",
        "            self._drops_space = False\n",
        "",
        ("models/test_tokenizer_families.py",),
    ),
    Mutation(
        "Qwen's text is not composed",
        "models/pre_tokenization.py",
        "PreTokenization(_QWEN2, composes=True)",
        "PreTokenization(_QWEN2)",
        ("models/test_tokenizer_families.py",),
    ),
    Mutation(
        "words of Llama 3 are not taken whole",
        "models/pre_tokenization.py",
        "PreTokenization(_CL100K, whole_words=True",
        "PreTokenization(_CL100K, whole_words=False",
        ("models/test_tokenizer_families.py",),
    ),
    Mutation(
        "pieces with the lowest scores are merged first",
        "models/gguf_backend.py",
        "0.0 if spaces else -score",
        "0.0 if spaces else score",
        ("models/test_tokenizer_families.py",),
    ),
    Mutation(
        "chat prompts do not ask for an answer",
        "models/chat.py",
        '"add_generation_prompt": True',
        '"add_generation_prompt": False',
        ("models/test_chat.py",),
    ),
    Mutation(
        "the hidden size is padded to tiles on CPUs too",
        "generate/loading.py",
        "hidden_multiple_for(device.platform, values.implementation)",
        "hidden_multiple_for(device.platform, 'simulate')",
        ("generate/test_loading.py",),
    ),
    Mutation(
        "chunks of prompts attend the first keys of a window",
        "prefill/attention.py",
        "own.new_values[:, begin:last]",
        "own.new_values[:, : last - begin]",
        ("prefill/test_operation.py",),
    ),
)
