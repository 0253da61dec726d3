"""A text has the same vector on every processor: what can be shown on one. scripts/test-arm64 compares two."""

import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from test_model import BERT, manifest, publish

from agent.model.bert import write_graph
from agent.search.embedder import session_options


def test_products_of_bytes_are_exact_on_every_processor(tmp_path: Path) -> None:
    # Of the processors of x86-64 those without VNNI are in danger: two products of 255 and 127 exceed 16 bits.
    random = np.random.default_rng(1)
    weights = random.integers(-127, 128, (384, 64)).astype(np.int8)
    constants = [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(np.array(128, np.uint8), "z")]
    given_x = helper.make_tensor_value_info("x", TensorProto.UINT8, ["rows", 384])
    result = helper.make_tensor_value_info("y", TensorProto.INT32, ["rows", 64])
    product = helper.make_node("MatMulInteger", ["x", "w", "z"], ["y"])
    graph = helper.make_graph([product], "product", [given_x], [result], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "g.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "g.onnx", session_options())
    for rows in (1, 9):
        x = random.integers(0, 256, (rows, 384)).astype(np.uint8)
        exact = (x.astype(np.int64) - 128) @ weights.astype(np.int64)
        assert (session.run(None, {"x": x})[0] == exact).all()


def test_no_sum_of_floats_comes_before_an_activation_is_rounded(tmp_path: Path) -> None:
    # Each processor adds floats up in an order of its own. As the runtime rewrites the graph, since it might put back
    # its own operators, which sum floats. Products of matrices of floats add up in one order everywhere.
    write_graph(publish(tmp_path / "p", manifest()) / "model.safetensors", BERT, manifest(), tmp_path / "g.onnx")
    options = session_options()
    options.optimized_model_filepath = str(tmp_path / "run.onnx")
    onnxruntime.set_default_logger_severity(3)
    onnxruntime.InferenceSession(tmp_path / "g.onnx", options)
    nodes = list(onnx.load(tmp_path / "run.onnx", load_external_data=False).graph.node)
    by_output = {name: node for node in nodes for name in node.output}
    before, waiting = {}, [name for node in nodes if "Integer" in node.op_type for name in node.input]
    while waiting:
        name = waiting.pop()
        if name in by_output and name not in before:
            before[name] = by_output[name]
            waiting += by_output[name].input
    sums = [node for node in before.values() if re.search("Sum|Mean|Norm|Softmax|ReduceL|Attention", node.op_type)]
    casts = [by_output[node.input[0]] for node in sums]
    assert {(node.op_type, *(one.i for one in node.attribute)) for node in casts} == {("Cast", TensorProto.DOUBLE)}
    assert len(sums) == 2 * 4 + 2  # two for each layer norm but the last one, one for each softmax
