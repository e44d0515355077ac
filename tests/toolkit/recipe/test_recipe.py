"""Recipes: defaults, what bad keys are told, and that each key is read."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p4q_edge.recipe.schema import ComputeSection, DataSection, LearnSection, ModelSection, QuantizationSection, Recipe
from p4q_edge.recipe.toml import parse_recipe, read_recipe, read_right_keys, to_toml
from p4q_edge.runtime.errors import UsageError

WORDS = st.text(min_size=1, max_size=5).filter(str.strip)
MINIMAL = {"model": {"name": "ViT-B-32"}, "data": {"train": "photos"}}


def test_a_minimal_recipe_gets_the_defaults() -> None:
    recipe = parse_recipe(MINIMAL, source="x.toml")
    assert recipe.learn == LearnSection()
    assert recipe.quantization.scheme().label == "W8A8"


@given(
    st.builds(
        Recipe,
        seed=st.integers(0, 99),
        model=st.builds(ModelSection, name=st.text("abc-\"\\'é", min_size=1), quick_gelu=st.none() | st.booleans()),
        data=st.builds(
            DataSection, train=st.just("/a"), class_names=st.lists(WORDS, max_size=3, unique_by=str.strip).map(tuple)
        ),
        learn=st.builds(
            LearnSection, residual_ratio=st.floats(0.01, 0.99), epochs=st.integers(1, 9), flip=st.booleans()
        ),
        compute=st.builds(ComputeSection, device=st.sampled_from(["auto", "cuda:3"]), workers=st.integers(0, 9)),
        quantization=st.builds(QuantizationSection, weight_bits=st.integers(2, 8), keep_float=st.just(("a.*",))),
    )
)
def test_toml_gives_the_same_recipe_back(recipe: Recipe) -> None:
    import tomllib

    assert parse_recipe(tomllib.loads(to_toml(recipe)), source="x") == recipe


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lern": {}}, "x.toml: unknown key 'lern'; did you mean 'learn'?"),
        ({"lern": {}, "learn": {"epoch": 3}}, "'lern'; did you mean 'learn'.*unknown key 'learn.epoch'"),
        ({"learn": {"epoch": 3}}, "x.toml: unknown key 'learn.epoch'; did you mean 'learn.epochs'?"),
        ({"learn": {"epochs": "three"}}, "x.toml: learn.epochs: expected a whole number, got a text$"),
        ({"learn": {"epochs": -1}}, "x.toml: learn.epochs must not be negative, got -1"),
        ({"quantization": {"weight_bits": 33}}, "quantization.weight_bits must be at most 8"),
        ({"quantization": {"attention_bits": 1}}, "quantization.attention_bits must be at least 2"),
        ({"quantization": {"headroom": 9.0}}, "quantization.headroom must be at most 4.0"),
        ({"learn": {"weight_decay": -1.0}}, "learn.weight_decay must be at least 0.0"),
        ({"learn": {"label_smoothing": 2}}, "learn.label_smoothing must be at most 1.0"),
        ({"learn": {"kl_temperature": 0.0}}, "learn.kl_temperature must be at least 0.001"),
        ({"data": {"train": "x", "shots": -1}}, "data.shots must be at least 0"),
        ({"learn": {"steps": 1 << 31}}, "x.toml: learn.steps must be between -2147483647 and 2147483647, got a larger"),
        ({"learn": {"kl_temperature": float("nan")}}, "learn.kl_temperature must be a number that is finite, got nan"),
        ({"model": {"mean": [0.1, float("inf"), 0.1]}}, "model.mean must be a number that is finite, got inf"),
        ({"seed": -1}, "x.toml: seed must be between 0 and 9223372036854775807, got -1"),
        ({"learn": {"steps": 0}}, "x.toml: learn.steps must be at least 1, got 0"),
        ({"learn": {"residual_ratio": 1.0}}, "residual_ratio must be between 0 and 1, got 1.0"),
        ({"learn": {"context_init": ""}}, "num_context_tokens must be at least 1 when context_init is empty"),
        ({"quantization": {"observer": "best"}}, "quantization.observer: expected minmax or .* or search, got 'best'$"),
        ({"learn": {"teacher": "wise"}}, "learn.teacher: expected learned or zero-shot or none, got 'wise'$"),
        ({"learn": {"distillation": -1.0}}, "distillation must be between 0 and 1e\\+30, got -1"),
        (
            {"learn": {"teacher": "none", "distillation": 1.0}},
            "distillation = 1 needs a teacher, and teacher = 'none'; leave one of them out",
        ),
        (
            {"learn": {"teacher": "learned", "distillation": 0.0}},
            "teacher = 'learned' teaches nothing at distillation = 0; leave distillation out for 1, or set teacher",
        ),
        (
            {"data": {"train": "photos", "unlabelled": "more"}},
            r"x.toml: data.unlabelled names images that only a teacher can tell .*; set learn.teacher = 'learned', or",
        ),
        (
            {"data": {"train": "photos", "unlabelled": "more"}, "learn": {"teacher": "none"}},
            "only a teacher can tell anything about, and there is none",
        ),
        (
            {"method": "as-released", "learn": {"teacher": "learned"}},
            "method = 'as-released' repeats the published code, which knows no data.unlabelled, learn.prompt_steps or",
        ),
        ({"learn": {"prompt_steps": -1}}, "prompt_steps must not be negative, got -1"),
        ({"learn": {"prompt_rate": -1.0}}, "prompt_rate must be between 0 and"),
        (
            {"learn": {"prompt_steps": 9, "prompts": False}},
            "prompt_steps = 9 learns prompts, and prompts = false; leave one out",
        ),
        ({"compute": {"device": "gpu"}}, "x.toml: compute.device must be auto, cpu, cuda or cuda:N, got 'gpu'"),
        ({"compute": {"device": "cuda:-1"}}, "cuda:N, got 'cuda:-1'"),
        ({"compute": {"workers": -1}}, "workers must be 'auto' or from 0 to 256, got -1"),
        ({"compute": {"workers": 257}}, "workers must be 'auto' or from 0 to 256, got 257"),
        ({"compute": {"batch_size": 0}}, "batch_size must be 'auto' or from 1 to 65536, got 0"),
        ({"compute": {"batch_size": "large"}}, "batch_size: expected a whole number or auto, got 'large'$"),
        ({"compute": {"batch_size": 2**16 + 1}}, "batch_size must be 'auto' or from 1 to 65536, got 65537"),
        ({"compute": {"memory_gib": -1.0}}, "memory_gib must be between 0 and 1048576, got -1.0"),
        ({"compute": {"memory_gib": float("nan")}}, "memory_gib must be a number that is finite, got nan"),
        (
            {"model": {"name": "demo", "interpolation": "area"}},
            "interpolation: expected bicubic or bilinear, got 'area'$",
        ),
        ({"compute": {"precision": "fp16"}}, "precision: expected float32 or tf32 or bf16, got 'fp16'$"),
        ({"schema_version": 2}, "x.toml: schema_version: expected 1, got 2$"),
    ],
)
def test_wrong_recipes_say_what_is_wrong(change: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_recipe(MINIMAL | change, source="x.toml")


def test_where_a_run_is_computed_is_told_from_what_decides_its_results() -> None:
    recipe = parse_recipe(MINIMAL, source="x.toml")
    elsewhere = ComputeSection(device="cuda:1", workers=4, batch_size=8, memory_gib=2.5)
    moved = msgspec.structs.replace(recipe, compute=elsewhere)
    assert moved != recipe
    assert moved.anywhere() == recipe
    coarse = msgspec.structs.replace(recipe, compute=ComputeSection(precision="bf16"))
    assert coarse.anywhere() == coarse


def test_recipes_that_are_no_toml_or_missing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist; `p4q-edge build --print-config`"):
        read_recipe(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("[model\n")
    with pytest.raises(UsageError, match=r"bad\.toml is not TOML"):
        read_recipe(tmp_path / "bad.toml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a" + ".a" * 200_000 + " = 1\n", "expected keys of a section and a name, got 200000 dots in line 1"),
        ('seed = 1\n"a"' + " . 'a'" * 200 + " = 1\n", "got 200 dots in line 2"),
        ('x = {a = """b"""", ' + "c." * 200 + "c = 1}\n", "got 200 dots in line 1"),
        ("seed = " + "9" * 5000, "is not TOML: Exceeds the limit"),
        ("seed = 0x" + "f" * 5000, f"seed must be between 0 and {(1 << 63) - 1}, got a larger one"),
        ("a = " + "[" * 100_000, "is not TOML: "),
    ],
    ids=["dots", "quoted", "behind a text", "digits", "hexadecimal", "lists"],
)
def test_what_takes_a_parser_minutes_or_its_own_errors_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "p4q.toml").write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        read_recipe(tmp_path / "p4q.toml")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_dots_of_texts_and_comments_are_none_of_keys(tmp_path: Path) -> None:
    dots = "a." * 300
    (tmp_path / "p4q.toml").write_text(
        f'# {dots}\n[model]\nname = "ViT-B-32"\npretrained = "openai"\n[data]\ntrain = "x"\n'
        f'class_names = [\'b {dots}\', "c \\" {dots}", """d {dots}"""]\n'
    )
    assert len(read_recipe(tmp_path / "p4q.toml").data.class_names) == 3


def test_paths_are_relative_to_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "p4q.toml").write_text(
        '[model]\nname = "ViT-B-32"\npretrained = "w.pt"\n[data]\ntrain = "photos"\nclass_names = "names.txt"\n'
        'unlabelled = "more"\n[learn]\nteacher = "learned"\n'
    )
    recipe = read_recipe(tmp_path / "p4q.toml")
    assert recipe.data.train == str(tmp_path / "photos")
    assert recipe.data.class_names == str(tmp_path / "names.txt")
    assert recipe.data.unlabelled == str(tmp_path / "more")
    assert recipe.model.pretrained == str(tmp_path / "w.pt")


def test_every_key_of_a_recipe_is_read_somewhere(repository: Path) -> None:
    """A field that no code outside its own record mentions would change nothing."""
    sources = {path: path.read_text() for path in (repository / "p4q_edge").rglob("*.py")}
    own = sources.pop(repository / "p4q_edge" / "recipe" / "schema.py")
    used_by_scheme = QuantizationSection().scheme().__dataclass_fields__
    for section in (ModelSection, DataSection, QuantizationSection, LearnSection, ComputeSection):
        for field in msgspec.structs.fields(section):
            read = any(f".{field.name}" in text for text in sources.values())
            assert read or field.name in used_by_scheme or own.count(f"self.{field.name}"), field.name


def test_unknown_keys_and_wrong_values_stand_in_one_list() -> None:
    document = {
        "model": {"name": "demo", "foo": 1},
        "data": {"train": "x", "shots": -1},
        "learn": {"steps": "many", "epochs": 1 << 40},
        "quantization": {"weight_bits": 99, "activation_bits": 1},
    }
    with pytest.raises(UsageError) as error:
        parse_recipe(document, source="x.toml")
    assert str(error.value).removeprefix("x.toml: ").split("; ") == [
        "unknown key 'model.foo'",
        "did you mean 'model.interpolation'?",
        "learn.epochs must be between -2147483647 and 2147483647, got a larger one",
        "data.shots must be at least 0, got -1",
        "learn.steps: expected a whole number, got a text",
        "quantization.weight_bits must be at most 8, got 99",
        "quantization.activation_bits must be at least 2, got 1",
    ]


def test_what_a_misspelt_key_leaves_out_is_not_called_missing() -> None:
    with pytest.raises(UsageError) as error:
        parse_recipe({"model": {"name": "demo"}, "data": {"trian": "x"}}, source="x.toml")
    assert str(error.value) == "x.toml: unknown key 'data.trian'; did you mean 'data.train'?"


def test_the_right_keys_of_a_refused_recipe_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "p4q.toml"
    path.write_text("[model]\nname = 'demo'\n[data]\ntrain = 'photos'\nshots = -1\n[learn]\nstepz = 3\n")
    expected = Recipe(model=ModelSection(name="demo"), data=DataSection(train=str(tmp_path / "photos")))
    assert read_right_keys(path) == expected
    path.write_text("[model]\nname = 'demo'\n[data]\ntrian = 'photos'\n")
    assert read_right_keys(path) is None
