"""How the pieces of a program of XLA are told apart; the profile itself needs JAX and minutes."""

import pytest

from recipes.benchmarks.jax_profile import STEPS, operations, part_of, rows

STEP = "jit(train_step)/transpose(jvp(decoder))/block0/"
PROGRAM = f"""
ENTRY %main (p: f32[2]) -> f32[2] {{
  %p = f32[2] parameter(0)
  %dot.3 = f32[2] dot(%p, %p), metadata={{op_name="{STEP}attention/qkv/dot_general" source_line=4}}
  ROOT %add_fusion = f32[2] fusion(%dot.3), metadata={{source_line=1 op_name="{STEP}add"}}
}}
"""


def test_operations():
    assert operations(PROGRAM) == {
        "dot.3": f"{STEP}attention/qkv/dot_general",
        "add_fusion": f"{STEP}add",
    }


@pytest.mark.parametrize(
    ("piece", "operation", "expected"),
    [
        ("ynn_fusion.2", f"{STEP}attention/output/add", ("projections of attention", "products")),
        ("dot.1", f"{STEP}attention/dot_general", ("attention", "products")),
        ("exp_fusion", f"{STEP}attention/exp", ("attention", "others")),
        ("mul", f"{STEP}attention_residual/norm/mul", ("norms", "others")),
        ("tanh", f"{STEP}feed_forward/tanh", ("feed-forward", "others")),
        ("add_fusion", f"{STEP}add", ("residual additions", "others")),
        ("sqrt", "jit(train_step)/adam_w/sqrt", ("optimizer", "others")),
        ("exp", "jvp(compile_loss)/jit(log_softmax)/exp", ("loss", "others")),
        ("dot_general", "jit(train_step)/jvp(tokens)/dot", ("embedding and logits", "products")),
        ("copy", "", ("other", "others")),
    ],
)
def test_parts(piece, operation, expected):
    assert part_of(piece, operation) == expected


def test_rows():
    spent = {("a", "others"): 1.0, ("b", "products"): 1.5, ("a", "products"): 2.0}
    assert rows({key: value * STEPS for key, value in spent.items()}) == [
        {"part": "a", "products": 2.0, "others": 1.0},
        {"part": "b", "products": 1.5, "others": 0.0},
    ]
