"""Published BERT weights -> one int8 ONNX graph: tokens in, unit vectors out.

The recipe: activations are quantised per token to u8 at run time, weights per output channel to s8 at build
time, both by standard ONNX operators. Unlike per-tensor dynamic quantisation, a text's vector then depends
neither on its neighbours in the batch nor on the processor. Layer norm, softmax and GELU stay in float, but
their sums are doubles: each processor, and each length of a batch, adds floats up in an order of its own, and the last
bit of a float decides here and there how an activation is rounded. Through six layers that grew to a cosine of 0.9986.

Graph inputs: input_ids, attention_mask (both int64, batch x tokens). Output: embedding (f32, batch x dimensions),
pooled and L2-normalised.

The layers follow Devlin et al. 2018 (BERT), arXiv:1810.04805.
"""

import json
import math
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from agent.errors import ModelError, validation_place
from agent.protocol.manifest import CONVERTIBLE, ModelManifest

OPSET = 17
FLOAT, UINT8, DOUBLE = 1, 2, 11  # ONNX's numbers of the types that a Cast is told
IR_VERSION = 8
MASKED = -10_000.0
"""Added to the scores of padding: exp() of it is exactly 0 in f32."""

Floats = NDArray[np.float32]
PositiveInt = Annotated[int, msgspec.Meta(ge=1)]


class BertConfig(msgspec.Struct, frozen=True):
    """The part of a published config.json that shapes the graph."""

    model_type: str
    hidden_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    intermediate_size: PositiveInt
    max_position_embeddings: PositiveInt
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    position_embedding_type: str = "absolute"


def read_config(path: Path) -> BertConfig:
    """Read config.json. Raises ModelError for any architecture that the graph builder does not know."""
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path.name} is not valid JSON: {error}") from error
    architecture = document.get("model_type") if isinstance(document, dict) else None
    if architecture not in CONVERTIBLE:
        raise ModelError(
            f"config.json: model_type {architecture!r} cannot be converted (known: {', '.join(CONVERTIBLE)})",
            hint="install a ready-made ONNX file instead: model install NAME --from model.onnx",
        )
    try:
        config = msgspec.convert(document, BertConfig)
    except msgspec.ValidationError as error:
        place, reason = validation_place(str(error))
        raise ModelError(f"config.json: {place + ': ' if place else ''}{reason}") from error
    if config.hidden_size % config.num_attention_heads:
        raise ModelError(
            f"config.json: num_attention_heads: {config.num_attention_heads} does not divide "
            f"hidden_size {config.hidden_size}"
        )
    if config.hidden_act != "gelu" or config.position_embedding_type != "absolute":
        raise ModelError(
            f"config.json: hidden_act {config.hidden_act!r} with {config.position_embedding_type!r} positions "
            "cannot be converted (known: 'gelu' with 'absolute')"
        )
    return config


def write_graph(
    weights_path: Path, config: BertConfig, manifest: ModelManifest, target: Path, *, int8: bool = True
) -> None:
    """Write the ONNX model to `target`, its table of word vectors beside it as TARGET.data.

    The runtime maps that file instead of reading it, so that of its 12 MB only the rows that are looked up take
    memory. `int8=False` keeps f32 weights: the yardstick of tests.

    Raises ModelError when the weights are truncated, or of other shapes than the configuration says.
    """
    if manifest.dimensions != config.hidden_size:
        raise ModelError(f"dimensions: model.yaml says {manifest.dimensions}, the weights {config.hidden_size}")
    if manifest.max_tokens > config.max_position_embeddings:
        raise ModelError(
            f"max_tokens: model.yaml says {manifest.max_tokens}, the weights end at {config.max_position_embeddings}"
        )
    table = target.with_name(f"{target.name}.data")
    graph = _GraphBuilder(_Weights(weights_path), config, manifest.pooling, table, int8=int8).build()
    target.write_bytes(graph)


class _Weights:
    """The tensors of a safetensors file by name, as f32, whatever prefix the checkpoint gives them."""

    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            tensors = load_file(path)
        except (SafetensorError, OSError, KeyError, TypeError) as error:
            raise ModelError(f"{path.name} is damaged or truncated: {error}") from error
        self._tensors = {name.removeprefix("bert."): value for name, value in tensors.items()}

    def get(self, name: str, *shape: int) -> Floats:
        tensor = self._tensors.get(name)
        if tensor is None:
            raise ModelError(f"the weights hold no tensor {name!r}: not a BERT encoder")
        if shape and tensor.shape != shape:
            raise ModelError(f"tensor {name!r} has shape {tensor.shape}, expected {shape}")
        return tensor.astype(np.float32)


def quantise_rows(matrix: Floats) -> tuple[NDArray[np.int8], Floats]:
    """Symmetric int8 with one scale a row: matrix ~ values * scale[:, None]."""
    scale = np.maximum(np.abs(matrix).max(axis=1), 1e-12).astype(np.float32) / np.float32(127)
    return np.rint(matrix / scale[:, None]).astype(np.int8), scale


class _GraphBuilder:
    """Writes nodes one after the other; each method takes and returns names of values."""

    def __init__(self, weights: _Weights, config: BertConfig, pooling: str, table: Path, *, int8: bool) -> None:
        self.weights, self.config, self.pooling, self.table, self.int8 = weights, config, pooling, table, int8
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.counter = 0

    def build(self) -> bytes:
        from onnx import TensorProto, helper

        hidden = self.embeddings()
        mask = self.attention_bias()
        for layer in range(self.config.num_hidden_layers):
            hidden = self.layer(hidden, mask, f"encoder.layer.{layer}")
        self.op("Identity", self.normalised(self.pooled(hidden)), output="embedding")
        tokens = ["batch", "tokens"]
        graph = helper.make_graph(
            self.nodes,
            "sentence_embedding",
            [
                helper.make_tensor_value_info("input_ids", TensorProto.INT64, tokens),
                helper.make_tensor_value_info("attention_mask", TensorProto.INT64, tokens),
            ],
            [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", self.config.hidden_size])],
            self.initializers,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        serialised: bytes = model.SerializeToString()
        return serialised

    # -- the network ------------------------------------------------------------------------------------------

    def embeddings(self) -> str:
        hidden, positions = self.config.hidden_size, self.config.max_position_embeddings
        words = self.weights.get("embeddings.word_embeddings.weight")
        if self.int8:
            values, scale = quantise_rows(words)
            rows = self.op("Cast", self.op("Gather", self.mapped(values), "input_ids"), to=FLOAT)
            word = self.op("Mul", rows, self.op("Gather", self.constant(scale[:, None]), "input_ids"))
        else:
            word = self.op("Gather", self.constant(words), "input_ids")
        # A sentence is one segment, so the first row of the segment table is added to every position.
        position = self.weights.get("embeddings.position_embeddings.weight", positions, hidden)
        position = position + self.weights.get("embeddings.token_type_embeddings.weight")[0]
        length = self.op("Slice", self.op("Shape", "input_ids"), self.ints(1), self.ints(2))
        here = self.op("Slice", self.constant(position), self.ints(0), length, self.ints(0))
        return self.layer_norm(self.op("Add", word, here), "embeddings.LayerNorm")

    def attention_bias(self) -> str:
        kept = self.op("Cast", self.op("Unsqueeze", "attention_mask", self.ints(1, 2)), to=FLOAT)
        return self.op("Mul", self.op("Sub", self.scalar(1.0), kept), self.scalar(MASKED))

    def layer(self, hidden: str, bias: str, prefix: str) -> str:
        attended = self.linear(
            self.attention(hidden, bias, f"{prefix}.attention.self"), f"{prefix}.attention.output.dense"
        )
        hidden = self.layer_norm(self.op("Add", hidden, attended), f"{prefix}.attention.output.LayerNorm")
        inner = self.gelu(self.linear(hidden, f"{prefix}.intermediate.dense"))
        outer = self.linear(inner, f"{prefix}.output.dense")
        return self.layer_norm(self.op("Add", hidden, outer), f"{prefix}.output.LayerNorm")

    def attention(self, hidden: str, bias: str, prefix: str) -> str:
        heads = self.config.num_attention_heads
        size = self.config.hidden_size // heads
        # Query, key and value in one product, so that the activations are quantised once for all three.
        packed = self.linear(hidden, f"{prefix}.query", f"{prefix}.key", f"{prefix}.value")
        split = self.op("Reshape", packed, self.ints(0, 0, 3, heads, size))
        by_head = self.op("Transpose", split, perm=[2, 0, 3, 1, 4])
        query, key, value = (self.op("Gather", by_head, self.int_scalar(which), axis=0) for which in range(3))
        scores = self.op("MatMul", query, self.op("Transpose", key, perm=[0, 1, 3, 2]))
        scores = self.op("Add", self.op("Mul", scores, self.scalar(1 / math.sqrt(size))), bias)
        context = self.op("MatMul", self.softmax(scores), value)
        back = self.op("Transpose", context, perm=[0, 2, 1, 3])
        return self.op("Reshape", back, self.ints(0, 0, self.config.hidden_size))

    def pooled(self, hidden: str) -> str:
        if self.pooling == "cls":
            return self.op("Gather", hidden, self.int_scalar(0), axis=1)
        kept = self.op("Cast", self.op("Unsqueeze", "attention_mask", self.ints(2)), to=FLOAT)
        total = self.op("ReduceSum", self.op("Mul", hidden, kept), self.ints(1), keepdims=0)
        return self.op("Div", total, self.op("ReduceSum", kept, self.ints(1), keepdims=0))

    def normalised(self, vector: str) -> str:
        norm = self.op("ReduceL2", vector, axes=[1], keepdims=1)
        return self.op("Div", vector, self.op("Max", norm, self.scalar(1e-12)))

    # -- its parts --------------------------------------------------------------------------------------------

    def linear(self, x: str, *names: str) -> str:
        """X times one or several weight matrices side by side, plus their biases."""
        weight = np.concatenate([self.weights.get(f"{name}.weight") for name in names])
        bias = self.constant(
            np.concatenate([self.weights.get(f"{name}.bias", len(weight) // len(names)) for name in names])
        )
        if not self.int8:
            return self.op("Add", self.op("MatMul", x, self.constant(weight.T)), bias)
        values, channel_scale = quantise_rows(weight)
        largest = self.op("ReduceMax", self.op("Abs", x), axes=[-1], keepdims=1)
        token_scale = self.op("Div", self.op("Max", largest, self.scalar(1e-8)), self.scalar(127.0))
        shifted = self.op("Add", self.op("Round", self.op("Div", x, token_scale)), self.scalar(128.0))
        quantised = self.op("Cast", shifted, to=UINT8)
        product = self.op("MatMulInteger", quantised, self.constant(values.T), self.zero_point())
        scaled = self.op(
            "Mul", self.op("Mul", self.op("Cast", product, to=FLOAT), token_scale), self.constant(channel_scale)
        )
        return self.op("Add", scaled, bias)

    def gelu(self, x: str) -> str:
        erf = self.op("Erf", self.op("Mul", x, self.scalar(1 / math.sqrt(2))))
        return self.op("Mul", self.op("Mul", x, self.scalar(0.5)), self.op("Add", erf, self.scalar(1.0)))

    def layer_norm(self, x: str, name: str) -> str:
        hidden = self.config.hidden_size
        scale = self.constant(self.weights.get(f"{name}.weight", hidden))
        shift = self.constant(self.weights.get(f"{name}.bias", hidden))
        off = self.op("Sub", x, self.mean(x))
        variance = self.op("Add", self.mean(self.op("Mul", off, off)), self.scalar(self.config.layer_norm_eps))
        return self.op("Add", self.op("Mul", self.op("Div", off, self.op("Sqrt", variance)), scale), shift)

    def softmax(self, x: str) -> str:
        powers = self.op("Exp", self.op("Sub", x, self.op("ReduceMax", x, axes=[-1], keepdims=1)))
        total = self.op("ReduceSum", self.op("Cast", powers, to=DOUBLE), self.ints(-1), keepdims=1)
        return self.op("Div", powers, self.op("Cast", total, to=FLOAT))

    def mean(self, x: str) -> str:
        return self.op("Cast", self.op("ReduceMean", self.op("Cast", x, to=DOUBLE), axes=[-1], keepdims=1), to=FLOAT)

    # -- nodes and constants ----------------------------------------------------------------------------------

    def op(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        from onnx import helper

        name = output or self.fresh(kind)
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def constant(self, value: NDArray[Any]) -> str:
        from onnx import numpy_helper

        name = self.fresh("const")
        self.initializers.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
        return name

    def mapped(self, value: NDArray[Any]) -> str:
        """A constant that stands in the table's file instead of in the graph."""
        from onnx.external_data_helper import set_external_data

        name = self.constant(value)
        tensor = self.initializers[-1]
        self.table.write_bytes(tensor.raw_data)
        set_external_data(tensor, self.table.name)
        tensor.ClearField("raw_data")
        return name

    def scalar(self, value: float) -> str:
        return self.constant(np.array(value, np.float32))

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def int_scalar(self, value: int) -> str:
        return self.constant(np.array(value, np.int64))

    def zero_point(self) -> str:
        return self.constant(np.array(128, np.uint8))

    def fresh(self, kind: str) -> str:
        self.counter += 1
        return f"{kind}_{self.counter}"
