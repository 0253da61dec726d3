"""The command line as a person or a script uses it."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from conftest import COMMAND, AgentProcess, run_command

from agent import paths
from agent.config import load_config
from agent.errors import NotReadyError
from agent.search import SearchAPI

QUESTION = "how tightly can equal spheres be packed in eight dimensions"
ANSWER = "1603.04246"


def test_search_prints_the_result_message_as_json(sample_data_dir: Path) -> None:
    done = run_command("search", QUESTION, "--json", "--max-results", "3", data_dir=sample_data_dir)
    message = json.loads(done.stdout)
    assert (message["results"][0]["arxiv_id"], message["count"]) == (ANSWER, 3)
    assert set(message) == {"timestamp", "request_id", "client_id", "query", "results", "count", "metadata"}
    assert done.stderr == b""


def test_search_prints_papers_for_a_person(sample_data_dir: Path) -> None:
    done = run_command("search", QUESTION, data_dir=sample_data_dir)
    assert b"The sphere packing problem in dimension 8" in done.stdout
    assert b"Maryna Viazovska" in done.stdout


def test_search_takes_every_filter(sample_data_dir: Path) -> None:
    options = ["--category", "cs.*", "--category", "stat.ML", "--author", "Hinton", "--from", "2012-01-01"]
    options += ["--to", "2018-12", "--mode", "keyword", "--offset", "0", "--json"]
    message = json.loads(run_command("search", "network", *options, data_dir=sample_data_dir).stdout)
    assert message["results"]
    for hit in message["results"]:
        assert any("Hinton" in author for author in hit["authors"])
        assert "2012-01-01" <= hit["published"] <= "2018-12-01"
    nothing = run_command("search", "network", "--category", "no.such", data_dir=sample_data_dir)
    assert (nothing.returncode, b"No papers match" in nothing.stdout) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["search", "x", "--mode", "magic"], 2, "magic"),
        (["search", "x", "--max-results", "0"], 2, "--max-results"),
        (["search", "x", "--from", "yesterday"], 2, "YYYY-MM-DD"),
        (["search"], 2, "QUERY"),
        (["search", "x"], 1, "corpus import"),
        (["search", ""], 1, "corpus import"),
        (["nonsense"], 2, "nonsense"),
        (["corpus", "import"], 2, "--sample"),
        (["corpus", "import", "x.jsonl", "--sample"], 2, "--sample"),
        (["corpus", "import", "/absent.jsonl"], 1, "/absent.jsonl"),
        (["corpus", "import", "--sample", "--vectors", "/absent.npy"], 2, "/absent.npy"),
        (["corpus", "import", "--sample", "--vectors", "/dev/null"], 2, "--sample"),
        (["corpus", "import", "x.jsonl", "--vectors", "/dev/null"], 1, "/dev/null cannot be read as .npy"),
        (["evaluate", "/absent"], 2, "/absent"),
        (["ask", "x"], 1, "mosquitto"),
    ],
)
def test_what_went_wrong_is_said_with_the_right_exit_code(arguments: list[str], code: int, said: str, tmp_path) -> None:
    done = run_command(*arguments, data_dir=tmp_path / "data", ARXPLORER__LOCAL_BROKER__PORT="1")
    assert (done.returncode, said in done.stderr.decode()) == (code, True), done.stderr.decode()
    assert b"Traceback" not in done.stderr


def test_an_output_that_cannot_be_written_is_an_error_in_words(sample_data_dir: Path) -> None:
    command = [COMMAND, "--data-dir", str(sample_data_dir), "corpus", "stats"]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr.splitlines()[0]) == (1, b"Error: the output: No space left on device")
    assert b"Traceback" not in done.stderr
    assert b"ignored" not in done.stderr


def test_ask_asks_a_running_agent(agent: AgentProcess) -> None:
    port = {"ARXPLORER__LOCAL_BROKER__PORT": str(agent.port)}
    asked = run_command("ask", QUESTION, "--json", data_dir=agent.data_dir, **port)
    message = json.loads(asked.stdout)
    assert message["results"][0]["arxiv_id"] == ANSWER
    assert message["metadata"]["processed_by"] == "test-agent"
    alone = run_command("ask", QUESTION, "--thing-name", "test-agent", data_dir=agent.data_dir, **port)
    assert b"sphere packing" in alone.stdout
    refused = run_command("ask", " ", data_dir=agent.data_dir, **port)
    assert (refused.returncode, b"query" in refused.stdout) == (1, True)
    nobody = run_command("ask", "x", "--thing-name", "nobody", "--timeout", "0.5", data_dir=agent.data_dir, **port)
    assert (nobody.returncode, b"no answer" in nobody.stderr) == (1, True)


def test_embed_prints_a_vector_for_each_text(tmp_path: Path) -> None:
    message = json.loads(run_command("embed", "one", "two", "--json", data_dir=tmp_path / "d").stdout)
    assert (len(message["embeddings"]), message["dimensions"]) == (2, 384)
    assert sum(value * value for value in message["embeddings"][0]) == pytest.approx(1, abs=1e-3)
    assert len(run_command("embed", "one", data_dir=tmp_path / "d").stdout.split()) == 384


def test_corpus_stats_count_what_is_there(sample_data_dir: Path) -> None:
    figures = json.loads(run_command("corpus", "stats", "--json", data_dir=sample_data_dir).stdout)
    assert (figures["papers"], figures["embedded"], figures["version"]) == (149, 149, "local+149")
    assert figures["bytes"]["papers"] > 0


def test_the_sample_is_taken_out_and_nothing_else(sample_data_dir: Path) -> None:
    run_command("corpus", "add", '{"arxiv_id": "2401.00001", "title": "Zebrafish"}', data_dir=sample_data_dir)
    done = run_command("corpus", "remove", "--sample", "--json", data_dir=sample_data_dir)
    assert json.loads(done.stdout)["removed"] == 149
    left = run_command("corpus", "export", data_dir=sample_data_dir).stdout.splitlines()
    assert [json.loads(line)["arxiv_id"] for line in left] == ["2401.00001"]
    assert run_command("corpus", "remove", data_dir=sample_data_dir).returncode == 2


def test_who_may_not_use_the_agents_corpus_is_told_how_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "SYSTEM_DATA_DIR", tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(os, "access", lambda *_: False)  # tests may run as root, who is never shut out
    with pytest.raises(NotReadyError) as error:
        SearchAPI(load_config(environment={})).open()
    assert error.value.hint
    assert f"{tmp_path}, the agent's, is for root and the group arxplorer" in error.value.hint
    assert paths.shut_out(tmp_path / "named by hand") is None
    monkeypatch.setattr(os, "access", lambda *_: True)
    assert paths.shut_out(paths.default_data_dir()) is None


def test_corpus_embed_fills_in_what_an_import_left_out(tmp_path: Path) -> None:
    rows = b'{"arxiv_id": "2401.00001", "title": "Zebrafish"}\n'
    run_command("corpus", "import", "-", "--no-embed", data_dir=tmp_path / "d", stdin=rows)
    assert json.loads(run_command("corpus", "embed", "--json", data_dir=tmp_path / "d").stdout) == {"embedded": 1}
    assert b"0 papers embedded" in run_command("corpus", "embed", data_dir=tmp_path / "d").stdout


def test_config_shows_and_validates(tmp_path: Path) -> None:
    shown = json.loads(run_command("config", "show", "--json", data_dir=tmp_path / "d").stdout)
    assert shown["store"]["data_dir"] == str(tmp_path / "d")
    (tmp_path / "config.yaml").write_text("search: {max_result: 5}")
    bad = run_command("config", "validate", data_dir=tmp_path / "d")
    assert (bad.returncode, b"search.max_result" in bad.stderr, b"max_results" in bad.stderr) == (1, True, True)
    (tmp_path / "config.yaml").write_text("search: {max_results: 5}")
    assert b"valid" in run_command("config", "validate", data_dir=tmp_path / "d").stdout


def test_evaluate_scores_a_folder_of_its_own_format(tmp_path: Path) -> None:
    (tmp_path / "qrels").mkdir()
    docs = [("d1", "Zebrafish", "A fish."), ("d2", "Galaxies", "Stars far away."), ("d3", "Proofs", "A lemma.")]
    rows = [json.dumps({"_id": i, "title": t, "text": x}) for i, t, x in docs]
    (tmp_path / "corpus.jsonl").write_text("\n".join(rows))
    (tmp_path / "queries.jsonl").write_text('{"_id": "q1", "text": "zebrafish"}\n{"_id": "q2", "text": "galaxies"}\n')
    (tmp_path / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td2\t1\n")
    done = run_command("evaluate", str(tmp_path), "--qrels", "dev", "--json", data_dir=tmp_path / "d")
    perfect = {"ndcg@10": 1.0, "recall@100": 1.0}
    assert json.loads(done.stdout) == {"keyword": perfect, "semantic": perfect, "hybrid": perfect}
    missing = run_command("evaluate", str(tmp_path), data_dir=tmp_path / "d")
    assert (missing.returncode, b"test.tsv" in missing.stderr) == (1, True)
