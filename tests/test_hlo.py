"""The reader of compiled programs: a text made by hand, with every part that TPUs print, and a program of this machine."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from alexnet_jax import ops
from alexnet_jax.benchmark import hlo

TEXT = """HloModule jit_step, is_scheduled=true

FileNames
1 "/usr/lib/python/optax/update.py"
2 "PACKAGE/augment.py"
3 "PACKAGE/benchmark/programs.py"

FunctionNames
1 "crops.<locals>.<lambda>"
2 "apply_updates"
3 "lowered"

FileLocations
1 {file_name_id=2 function_name_id=1 line=36 end_line=36 column=10 end_column=52}
2 {file_name_id=1 function_name_id=2 line=9 end_line=9 column=10 end_column=52}
3 {file_name_id=3 function_name_id=3 line=70 end_line=70 column=10 end_column=52}

StackFrames
1 {file_location_id=3 parent_frame_id=1}
2 {file_location_id=1 parent_frame_id=2}
3 {file_location_id=2 parent_frame_id=3}


%fused (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %n = f32[8]{0:T(128)} negate(%p), metadata={op_name="neg" stack_frame_id=3}
}

%cond (c: (s32[], u8[4,3])) -> pred[] {
  %c = (s32[]{:T(128)}, u8[4,3]{1,0}) parameter(0)
  %limit = s32[]{:T(128)} constant(7)
  %i = s32[]{:T(128)} get-tuple-element(%c), index=0
  ROOT %less = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%body (b: (s32[], u8[4,3])) -> (s32[], u8[4,3]) {
  %b = (s32[]{:T(128)}, u8[4,3]{1,0}) parameter(0)
  %j = s32[]{:T(128)} get-tuple-element(%b), index=0
  %image = u8[4,3]{1,0} get-tuple-element(%b), index=1
  %copied = u8[4,3]{0,1:T(8,128)(4,1)} copy(%image), backend_config={"window_config":{"estimated_cycles":"100"}}
  ROOT %next = (s32[]{:T(128)}, u8[4,3]{1,0}) tuple(%j, %copied)
}

ENTRY %main (x: f32[8], y: u8[4,3]) -> f32[8] {
  %x = f32[8]{0:T(128)} parameter(0)
  %y = u8[4,3]{1,0} parameter(1)
  %start = (f32[8]{0:T(128)S(1)}, f32[8]{0:T(128)}, u32[]{:S(2)}) copy-start(%x)
  %done = f32[8]{0:T(128)S(1)} copy-done(%start)
  %two = (s32[], u8[4,3]) tuple(%z, %y)
  %loop = (s32[]{:T(128)}, /*index=1*/u8[4,3]{1,0}) while(%two), condition=%cond, body=%body, metadata={stack_frame_id=2}
  %sum = f32[8]{0:T(128)} all-reduce(%done), replica_groups={{0,1}}, to_apply=%fused
  ROOT %f = f32[8]{0:T(128)} fusion(%sum), kind=kLoop, calls=%fused, backend_config={"estimated_cycles":"30","a":"b"}
}
""".replace("PACKAGE/", hlo.PACKAGE)


def running() -> dict[str, hlo.Running]:
    return {one.instruction.name: one for one in hlo.parse(TEXT).running()}


def test_what_runs_is_what_the_entry_and_its_loops_hold():
    found = running()
    assert list(found) == ["start", "done", "less", "copied", "sum", "f"]
    assert {name: one.times for name, one in found.items() if one.times > 1} == {"less": 7, "copied": 7}
    assert {name: one.loop for name, one in found.items() if one.loop} == {"less": "loop", "copied": "loop"}
    assert {name: one.instruction.cycles for name, one in found.items()} == {
        "start": None, "done": None, "less": None, "copied": 100, "sum": None, "f": 30,
    }  # fmt: skip


def test_a_place_is_the_innermost_line_of_the_package():
    """A library's line belongs to ours that called it, a fused instruction's to its fusion, a loop's to what it holds. A
    line that only compiles belongs to none."""
    found = running()
    assert found["f"].place == "augment.py:36 crops"
    assert found["copied"].place == "augment.py:36 crops"
    assert found["start"].place == hlo.COMPILER


def test_bytes_are_those_of_the_large_memory():
    """512 bytes are a tile of 128 numbers. What moves to the fast memory counts once, and what lies there not at all."""
    found = running()
    assert {name: one.bytes for name, one in found.items()} == {
        "start": 512, "done": 0, "less": 4 + 4 + 1, "copied": 8 * 128 + 12, "sum": 512, "f": 1024,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "padded", "plain"),
    [
        ("f32[]", 4, 4),
        ("bf16[128,55,55,48]{0,3,2,1:T(8,128)(2,1)}", 2 * 128 * 48 * 55 * 55, 2 * 128 * 48 * 55 * 55),
        ("bf16[3,5]{1,0:T(8,128)(2,1)}", 2 * 8 * 128, 2 * 15),
        ("(pred[7]{0:T(512)}, s4[2,2], f8e4m3fn[3])", 512 + 2 + 3, 7 + 2 + 3),
    ],
)
def test_arrays_are_as_large_as_their_tiles(kind, padded, plain):
    assert hlo.array_bytes(kind) == padded
    assert hlo.array_bytes(kind, padded=False) == plain


def test_exchanges_are_found():
    assert [(one.name, times) for one, times in hlo.parse(TEXT).collectives()] == [("sum", 1)]


def test_a_text_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="no text that can be read"):
        hlo.parse("module @jit_step {}")


def test_the_program_of_this_machine_is_read():
    """A loop of five trips around a line of `ops`."""
    fresh = np.random.default_rng().random()  # a program that was compiled before comes from the cache, without its places

    def program(x):
        return lax.fori_loop(0, 5, lambda _, x: ops.window_sum(jnp.sin(x) + fresh, 3), x)

    compiled = jax.jit(program).lower(jax.ShapeDtypeStruct((4, 32), jnp.float32)).compile()
    found = [one for one in hlo.parse(compiled.as_text()).running() if "window_sum" in one.place]
    assert found
    assert {(one.times, bool(one.loop)) for one in found} == {(5, True)}
    assert all(one.place.startswith("ops.py:") and one.bytes >= 2 * 4 * 4 * 32 for one in found)
