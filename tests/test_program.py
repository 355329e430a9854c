"""What is read in the text of a compiled program, against texts that can be read by eye."""

import jax
import jax.numpy as jnp

from penn_jax.program import collectives, cycles, loops
from penn_jax.roofline import Collective

LOOPED = """HloModule step, is_scheduled=true
%sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %c = f32[] add(%a, %b)
}
%once_more (a: f32[8]) -> f32[8] {
  %all-reduce.1 = f32[8]{0} all-reduce(%a), to_apply=%sum
  ROOT %d = f32[8] fusion(%a), backend_config={"window_config":{"estimated_cycles":"10"}}
}
%inner (a: f32[8]) -> f32[8] {
  %begun = ((f32[8]), f32[8]) async-start(%a), calls=%once_more
  ROOT %e = f32[8] fusion(%a), backend_config={"window_config":{"estimated_cycles":"30"}}
}
%outer (a: f32[8]) -> f32[8] {
  %f = f32[8] while(%a), condition=%g, body=%inner, backend_config={"known_trip_count":{"n":"3"}}
}
%twice (a: s32[]) -> pred[] {
  %limit = s32[]{:T(128)} constant(2)
  ROOT %less = pred[]{:T(512)} compare(%a, %limit), direction=LT
}
ENTRY %main (a: f32[8]) -> f32[8] {
  %h = f32[8] while(%a), condition=%twice, body=%outer, metadata={op_name="as for a TPU"}
  %all-reduce.2 = f32[5]{0} all-reduce(%i), to_apply=%sum
  ROOT %j = f32[8] fusion(%h), backend_config={"window_config":{"estimated_cycles":"500"}}
}
"""


def test_collectives_of_each_kind():
    # Bytes by hand: 2·3·4 + 5·2; 8·4; the gathered 16·4 of an operand of 4·4; a quarter of 4·7·1.
    program = """
      %all-reduce.1 = (f32[2,3]{1,0:T(8,128)}, /*index=1*/bf16[5]{0}) all-reduce(%a, %b)
      %all-reduce-start.2 = f32[8]{0} all-reduce-start(%c), channel_id=2
      %done = f32[8]{0} all-reduce-done(%all-reduce-start.2)
      %all-gather-start = (f32[4]{0}, f32[16]{0}) all-gather-start(%d), dimensions={0}
      %scatter = u8[7]{0:T(128)S(1)} reduce-scatter(%e), dimensions={0}
      %fusion = f32[100]{0} fusion(%all-reduce.1), kind=kLoop, calls=%all-reduce-fused
    """
    assert collectives(program, 4) == [
        Collective("all-gather", 1, 64),
        Collective("all-reduce", 2, 24 + 10 + 32),
        Collective("reduce-scatter", 1, 28),
    ]


def test_what_a_loop_holds_counts_as_often_as_it_runs():
    # By hand: the inner loop runs 3 times in each of 2 runs of the outer one; each sums 8 numbers
    # and takes 30 cycles (what it begins beside it takes none of its own); the entry sums 5.
    assert collectives(LOOPED, 4) == [Collective("all-reduce", 7, 6 * 8 * 4 + 5 * 4)]
    assert cycles(LOOPED) == 6 * 30 + 500
    assert loops(LOOPED) == [2, 3]


def test_the_loop_of_a_real_program():
    devices = jax.sharding.Mesh(jax.devices(), ("batch",))
    split = jax.sharding.NamedSharding(devices, jax.sharding.PartitionSpec(None, "batch"))
    count = len(jax.devices())

    def total(parts):
        return jax.lax.scan(lambda seen, part: (jnp.sum(part) + seen, None), 0.0, parts)[0]

    values = jax.ShapeDtypeStruct((7, 3 * count), jnp.float32)
    program = jax.jit(total, in_shardings=split).lower(values).compile().as_text()
    assert 7 in loops(program)
    (found,) = collectives(program, count)
    assert (found.kind, found.count, found.size) == ("all-reduce", 7, 7 * 4)


def test_cycles_of_alternatives_are_the_longest():
    program = """HloModule step
%fused (a: f32[]) -> f32[] {
  %b = f32[] add(%a, %a)
}
%few (a: f32[]) -> f32[] {
  %c = f32[] fusion(%a), backend_config={"window_config":{"estimated_cycles":"10"}}
}
%many (a: f32[]) -> f32[] {
  %d = f32[] fusion(%a), backend_config={"window_config":{"estimated_cycles":"30"}}
}
ENTRY %main (a: f32[]) -> f32[] {
  %e = f32[] fusion(%a), calls=%fused, backend_config={"window_config":{"estimated_cycles":"500"}}
  ROOT %f = f32[] conditional(%p, %e, %e), branch_computations={%few, %many}
}
"""
    assert cycles(program) == 530
    assert cycles("ENTRY %main {\n}\n") is None  # a CPU's
